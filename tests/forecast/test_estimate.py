"""Estimates: what a job will take, told before a teacher starts; and refused where a run would be."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, write_task

from factory.errors import DatasetError, FactoryError, JobError, TeacherError
from factory.forecast.estimate import engine_lines, estimate, format_bytes, require_room, state_bytes
from factory.forecast.forecast import make_forecast
from factory.job.job import Job
from factory.runs.prepare import prepare
from factory.runs.provenance import describe_job
from factory.runs.room import Room
from factory.runs.run import run

MakeJob = Callable[..., Job]
CONFIG = {
    "vocab_size": 1000,
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with a config.json and nothing else: as much of a model as an estimate needs."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


def test_it_tells_the_rows_the_shards_and_the_job(workspace: Path, make_job: MakeJob) -> None:
    job = make_job(tasks=[{"name": "adding", "count": 1000, "levels": {"easy": 3, "hard": 1}}])
    lines = estimate(job, workspace, workspace / "out")
    digest = describe_job(prepare(job, workspace))["digest"]
    assert lines[0] == f"job {digest}: 1,000 rows in 125 shards of 8"
    assert lines[1] == "  adding: easy 750, hard 250; gate check; at most 120 completion tokens a row"


def test_it_tells_the_bytes_a_token_takes(workspace: Path, make_job: MakeJob) -> None:
    told = {
        (20, ()): "136 ids and logprobs (k=20) + 0 hidden states",
        (0, (1,)): "4 ids and logprobs (k=0) + 32 hidden states",
        (4, (2, -1)): "40 ids and logprobs (k=4) + 64 hidden states",
    }
    for (top_k, layers), text in told.items():
        job = make_job(signals={"top_k": top_k, "hidden_layers": list(layers)})
        assert f"  bytes a completion token, before compression: {text}" in estimate(job, workspace, workspace / "out")


def test_it_tells_which_of_the_engines_defaults_a_job_gives_up_and_for_which_key(
    workspace: Path, model: str, make_job: MakeJob
) -> None:
    def job(signals: dict[str, Any]) -> Job:
        return make_job(teacher={"model": model}, signals=signals)

    assert "    enforce_eager = True: compiling takes longer than most jobs (a processor)" in estimate(
        job({"top_k": 4}), workspace, workspace / "out"
    )
    assert engine_lines(job({"top_k": 4}), on_cpu=False) == ["  engine: with all of vLLM's own defaults"]
    head, *given_up = engine_lines(job({"top_k": 4, "hidden_layers": [1]}), on_cpu=False)
    assert head == "  engine: without these defaults of vLLM"
    assert [line.split(":")[0].strip() for line in given_up] == [
        "enforce_eager = True",
        "enable_prefix_caching = False",
    ]
    assert all(line.endswith("(signals.hidden_layers)") for line in given_up)
    assert engine_lines(make_job(), on_cpu=True) == []  # the scripted teacher has no engine


def test_hidden_states_cost_two_bytes_a_number(model: str, make_job: MakeJob) -> None:
    signals = {"hidden_layers": [0, 3, -1]}
    assert state_bytes(make_job(signals=signals, teacher={"model": model})) == 3 * 64 * 2
    assert state_bytes(make_job(signals=signals, teacher={"model": "demo"})) == 3 * 192 * 2
    assert state_bytes(make_job(signals=signals)) == 3 * 16 * 2


def test_nothing_is_written_and_the_disk_is_that_of_the_nearest_folder_there_is(
    workspace: Path, make_job: MakeJob
) -> None:
    before = sorted(workspace.rglob("*"))
    lines = estimate(make_job(), workspace, workspace / "not/yet/there")
    assert sorted(workspace.rglob("*")) == before
    assert re.search(r"disk: at most [\d.]+ [kM]B, .*free: [\d.]+ \wB", lines[-1])


def test_the_disk_told_is_enough_for_what_is_written(workspace: Path, make_job: MakeJob) -> None:
    job = make_job(tasks=[{"name": "adding", "count": 200}])
    (line,) = [line for line in estimate(job, workspace, workspace / "out") if "disk: at most" in line]
    most = re.search(r"at most ([\d.]+) MB", line)
    assert most is not None
    assert run(job, workspace, workspace / "out").bytes < float(most[1]) * 1e6


@pytest.mark.parametrize(
    "signals",
    [
        {"top_k": 0},
        {"top_k": 4},
        {"top_k": 4, "hidden_layers": [2, -1]},
        {"top_k": 8, "keep": "sampled", "positions": "all"},
        {"top_k": 8, "positions": "answer", "hidden_layers": [2, -1], "hidden_positions": "kept"},
    ],
    ids=["text", "logprobs", "states", "drawn", "chosen"],
)
def test_what_is_predicted_is_what_is_written(workspace: Path, make_job: MakeJob, signals: dict[str, Any]) -> None:
    faults = {"backend": "scripted", "scripted": {"wrong": 0.1, "truncated": 0.05}}
    job = make_job(signals=signals, teacher=faults, shard_rows=32, tasks=[{"name": "adding", "count": 320}])
    prepared, out = prepare(job, workspace), workspace / "out"
    forecast = make_forecast(prepared, out)
    totals = run(job, workspace, out)
    assert forecast.bytes == pytest.approx(totals.bytes, rel=0.15)
    assert forecast.prompt_tokens == pytest.approx(totals.prompt_tokens, rel=0.15)
    assert forecast.completion_tokens == pytest.approx(totals.completion_tokens, rel=0.15)
    known = make_forecast(prepared, out)
    assert (set(known.bases.values()), known.left) == ({"committed shards"}, pytest.approx(0, abs=1))


def test_a_pilot_leaves_nothing_behind_and_predicts(workspace: Path, make_job: MakeJob) -> None:
    job = make_job(shard_rows=32, tasks=[{"name": "adding", "count": 160}])
    before = sorted(workspace.rglob("*"))
    forecast = make_forecast(prepare(job, workspace), workspace / "out", pilot=40)
    assert sorted(path for path in workspace.rglob("*") if "__pycache__" not in path.parts) == [
        path for path in before if "__pycache__" not in path.parts
    ]
    assert set(forecast.bases.values()) == {"pilot"}
    assert forecast.rows_per_second is not None
    assert forecast.rows_per_second > 0
    assert forecast.startup_seconds >= 0
    (told,) = [line for line in estimate(job, workspace, workspace / "out", 40) if line.startswith("  time: ")]
    assert f" for {forecast.rows:,} rows at the pilot's " in told
    assert not any(line.startswith("  time: ") for line in estimate(job, workspace, workspace / "out"))
    assert forecast.bytes == pytest.approx(run(job, workspace, workspace / "out").bytes, rel=0.15)


def test_a_run_is_refused_where_the_disk_cannot_hold_what_is_left(
    workspace: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.mkdir()
    (large / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 10**9, "head_dim": 16}))
    job = make_job(teacher={"model": str(large)}, tasks=[{"name": "adding", "count": 10**5}])
    with pytest.raises(DatasetError, match=r"the disk cannot hold what is left of this job: .* nothing was started"):
        require_room(prepare(job, workspace), workspace / "out")
    write_task(workspace, "guessing", schema=SCHEMA.partition("def solve")[0])
    job = make_job(teacher={"model": str(large)}, tasks=[{"name": "guessing", "count": 10**5}])
    assert "stops in order" in (require_room(prepare(job, workspace), workspace / "out") or "")
    assert require_room(prepare(make_job(), workspace), workspace / "out") is None


def test_nothing_more_is_asked_when_the_next_shard_does_not_fit(tmp_path: Path) -> None:
    assert not Room(tmp_path, 8).short(in_flight=100)
    room = Room(tmp_path, 8, rows=1, bytes=10**18)
    assert room.short(in_flight=0)
    room.require_none_left(0)
    with pytest.raises(DatasetError, match=r"stopped before the disk is full: .* 5 rows are left"):
        room.require_none_left(5)


def test_a_job_that_may_not_fit_the_disk_is_warned_of(workspace: Path, make_job: MakeJob, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    (large / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 10**9, "head_dim": 16}))
    job = make_job(teacher={"model": str(large)}, tasks=[{"name": "adding", "count": 10**6}])
    assert "warning: the disk may not hold it" in estimate(job, workspace, workspace / "out")[-1]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"teacher": {"model": "/nope"}}, r"teacher\.model '/nope': no such model folder"),
        ({"signals": {"top_k": 1001}}, r"signals\.top_k 1001: more than the model's vocabulary of 1000"),
        ({"signals": {"hidden_layers": [7]}}, r"signals\.hidden_layers \[7\]: the model has 6 layers"),
        ({"teacher": {"max_model_len": 4096}}, r"teacher\.max_model_len 4096: the model's window is 2048"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    sections: dict[str, Any], told: str, workspace: Path, make_job: MakeJob, model: str
) -> None:
    teacher = {"model": model, "backend": "vllm"} | sections.get("teacher", {})
    with pytest.raises(TeacherError, match=told):
        estimate(make_job(**sections | {"teacher": teacher}), workspace, workspace / "out")


@pytest.mark.parametrize(("teacher", "layers"), [({"model": "demo"}, 6), ({"backend": "scripted"}, 4)])
def test_the_built_in_teachers_have_their_limits_too(
    teacher: dict[str, Any], layers: int, workspace: Path, make_job: MakeJob
) -> None:
    with pytest.raises(TeacherError, match=rf"signals\.hidden_layers \[40\]: the model has {layers} layers"):
        estimate(make_job(teacher=teacher, signals={"hidden_layers": [40]}), workspace, workspace / "out")


def test_a_broken_job_is_refused_here_as_in_a_run(workspace: Path, make_job: MakeJob) -> None:
    with pytest.raises(JobError, match="unknown level hardest"):
        estimate(make_job(tasks=[{"name": "adding", "count": 5, "levels": {"hardest": 1}}]), workspace, workspace)
    with pytest.raises(FactoryError, match="task 'absent': not found"):
        estimate(make_job(tasks=[{"name": "absent", "count": 5}]), workspace, workspace)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (1.25e15, "1250 TB")]
)
def test_sizes_are_told_for_people(size: float, text: str) -> None:
    assert format_bytes(size) == text
