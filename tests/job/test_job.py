"""The job file: what is in it is checked to the last key, and every problem is named in one error."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from factory.errors import JobError
from factory.job.job import Job, load_job
from factory.job.teacher import SamplingConfig
from factory.records import Repetition, Sampling

SMALLEST = 'out = "o"\n[[tasks]]\nname = "adding"\ncount = 5\n'
EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.toml"))


def load(tmp_path: Path, text: str | bytes) -> Job:
    path = tmp_path / "job.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_job(path)


def problem(tmp_path: Path, text: str | bytes) -> str:
    """The one line that a bad job file is answered with; it begins with the file's path."""
    with pytest.raises(JobError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'job.toml'}: ")
    return message.removeprefix(f"{tmp_path / 'job.toml'}: ")


def test_a_job_needs_little_and_the_rest_has_defaults(tmp_path: Path) -> None:
    job = load(tmp_path, SMALLEST)
    assert (job.out, job.seed, job.shard_rows) == ("o", 0, 256)
    assert (job.teacher.backend, job.signals.top_k, job.signals.hidden_layers) == ("vllm", 20, [])
    assert [(task.name, task.count, task.levels) for task in job.tasks] == [("adding", 5, {})]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_job_loads(path: Path) -> None:
    job = load_job(path)
    assert job.tasks or job.transcripts


def test_every_section_is_read(tmp_path: Path) -> None:
    job = load(
        tmp_path,
        'out = "o"\nseed = 7\n[teacher]\nmodel = "m"\nbackend = "scripted"\nreasoning = {start = "<r>", end = "</r>"}\n'
        "scripted = {bad_json = 0.5}\n[signals]\ntop_k = 0\nhidden_layers = [2, -1]\n[validation]\nretries = 2\n"
        '[[tasks]]\nname = "a"\ncount = 1\nlevels = {easy = 2, hard = 1}\ngate = "schema"\n'
        '[tasks.sampling]\ntop_p = 0.5\n[tasks.source]\npath = "x.jsonl"\nconstants = {b = 1}\n',
    )
    assert job.teacher.scripted.bad_json == 0.5
    assert not isinstance(job.teacher.reasoning, str)
    assert job.teacher.reasoning.end == "</r>"
    assert job.signals.hidden_layers == [2, -1]
    assert job.tasks[0].source is not None
    assert job.tasks[0].source.constants == {"b": 1}


def test_the_engine_is_fed_twice_its_batch_unless_told_otherwise(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST + "[teacher]\nmax_num_seqs = 8").teacher.feed_depth == 16
    assert load(tmp_path, SMALLEST + "[teacher]\nmax_num_seqs = 8\nin_flight = 3").teacher.feed_depth == 3


def test_a_directory_is_not_a_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"is a directory; give a job file such as .*job\.toml"):
        load_job(tmp_path)


def test_a_missing_file_points_to_an_example(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"nothing\.toml: no such job file; see docs/examples/"):
        load_job(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("out = \nseed = 1", r"not valid TOML: .*line 1"),
        ('out = "a"\nout = "b"\nseed = 1', r"not valid TOML: .*line 2"),
        (b"\xff\xfe", "cannot be read: 'utf-8'"),
        ("a = " + "[" * 5000 + "]" * 5000, "not valid TOML: nested too deeply"),
    ],
)
def test_text_that_is_no_toml_is_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert re.match(says, problem(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "out: missing; add it"),
        ('out = "o"\ntasks = []', "file: no [[tasks]] table; add one, or [transcripts]"),
        ('out = "o"\n[tasks]\nname = "adding"', "tasks: Input should be a valid list"),
        ("colour = 1\n" + SMALLEST, "colour: unknown key (known here: cluster, difficulty, filters, judge, "),
        (
            SMALLEST + "[signals]\ntopk = 5",
            "signals.topk: unknown key (known here: attention, capture, experts, final_norm, hidden_layers, "
            "hidden_positions, keep, min_entropy, positions, top_k, top_p, verify_rows)",
        ),
        (
            SMALLEST + "level = 5",
            "tasks.0.level: unknown key (known here: accepted, at_most, count, gate, level_teachers, levels, name, "
            "sampling, source, teacher)",
        ),
        (SMALLEST + "[teacher.scripted]\nlies = 1", "teacher.scripted.lies: unknown key (known here: bad_json, crash,"),
        (SMALLEST.replace("5", "-5"), "tasks.0.count: Input should be greater than or equal to 1, got -5"),
        (SMALLEST.replace("5", "0"), "tasks.0.count: Input should be greater than or equal to 1, got 0"),
        (SMALLEST.replace("5", "2.5"), "tasks.0.count: Input should be a valid integer"),
        (
            SMALLEST.replace("5", '"many"'),
            (SMALLEST.replace("5", '"many"'), 'tasks.0.count: need a whole number, or "all" for every row of a source'),
        ),
        (SMALLEST.replace("adding", "../etc"), "tasks.0.name: String should match pattern"),
        (SMALLEST + "levels = {easy = -1}", "tasks.0.levels.easy: Input should be greater than or equal to 0, got -1"),
        (SMALLEST + "levels = {easy = inf}", "tasks.0.levels.easy: Input should be less than or equal to 1000000000"),
        (SMALLEST + "levels = {easy = nan}", "tasks.0.levels.easy: Input should be"),
        (SMALLEST + "levels = {easy = 0, hard = 0.0}", "tasks.0: levels: every weight is 0; give at least one level"),
        (SMALLEST + 'gate = "hope"', "tasks.0.gate: Input should be 'schema' or 'check', got 'hope'"),
        (SMALLEST + "[tasks.source]", "tasks.0.source.path: missing; add it"),
        ("shard_rows = 0\n" + SMALLEST, "shard_rows: Input should be greater than or equal to 1, got 0"),
        ("seed = -1\n" + SMALLEST, "seed: Input should be greater than or equal to 0, got -1"),
        (
            SMALLEST + '[teacher]\nbackend = "gpt"',
            "teacher.backend: Input should be 'vllm', 'scripted', 'openai' or 'gemini', got 'gpt'",
        ),
        (SMALLEST + "[teacher]\ngpu_memory_utilization = 0", "teacher.gpu_memory_utilization: Input should be greater"),
        (SMALLEST + "[sampling]\ntemperature = nan", "sampling.temperature: Input should be"),
        (SMALLEST + "[sampling]\nmax_tokens = 0", "sampling.max_tokens: Input should be greater than or equal to 1"),
        (SMALLEST + "[sampling]\nstop_repetition = 3", "sampling.stop_repetition: Input should be a valid dictionary"),
        (
            SMALLEST + "[sampling.stop_repetition]\nmin_count = 1",
            "sampling.stop_repetition.min_count: Input should be greater than or equal to 2, got 1",
        ),
        (
            SMALLEST + "[sampling.stop_repetition]\nmin_pattern_size = 30",
            "sampling.stop_repetition: max_pattern_size 24 is below min_pattern_size 30; raise the one or lower",
        ),
        (
            SMALLEST + "[sampling.stop_repetition]\nmax_patern_size = 30",
            "sampling.stop_repetition.max_patern_size: unknown key (known here: max_pattern_size, min_count",
        ),
        (
            SMALLEST + "[teacher]\nreplicas = 0",
            'teacher.replicas: Input should be greater than or equal to 1, or "auto", got 0',
        ),
        (
            SMALLEST + '[teacher]\nreplicas = "all"',
            'teacher.replicas: Input should be a valid integer, unable to parse string as an integer, or "auto", got',
        ),
        (
            SMALLEST + "[teacher]\nreplicas = 1.5",
            "teacher.replicas: Input should be a valid integer, got a number with",
        ),
        (SMALLEST + "[teacher.scripted]\ncrash = 0.7\nwrong = 0.7", "teacher.scripted: the shares add up to 1.4, more"),
        (SMALLEST + SMALLEST.split("\n", 1)[1], "file: task named twice: adding; give each task one [[tasks]] table"),
    ],
)
def test_bad_values_are_named_by_place_with_what_is_allowed(tmp_path: Path, text: str, says: str) -> None:
    assert problem(tmp_path, text).startswith(says)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    said = problem(tmp_path, "seed = -1\nfoo = 1\n" + SMALLEST.replace("5", "-5"))
    assert [part.split(":")[0] for part in said.split("; ")] == ["seed", "tasks.0.count", "foo"]


def test_sampling_keeps_of_its_base_what_is_not_set() -> None:
    base = Sampling(temperature=0.1, max_tokens=9)
    assert SamplingConfig(top_p=0.5, temperature=0.0).over(base) == Sampling(temperature=0.0, top_p=0.5, max_tokens=9)
    assert math.isclose(base.temperature, 0.1)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, Repetition(9, 2, 3)),
        (True, Repetition(24, 1, 16)),
        (False, None),
        ({"min_count": 5}, Repetition(24, 1, 5)),
        ({"max_pattern_size": 0}, None),
    ],
)
def test_a_loops_bounds_are_a_switch_or_a_table_and_the_nearest_one_counts(asked: Any, expected: Any) -> None:
    base = Sampling(stop_repetition=Repetition(9, 2, 3))
    assert SamplingConfig(stop_repetition=asked).over(base) == Sampling(stop_repetition=expected)
