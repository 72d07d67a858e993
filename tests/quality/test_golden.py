"""Every built-in task keeps its word: golden answers, reference solutions, templates, the same scenarios everywhere.

A new task in prompts/ is tested here with no line added.
"""

import json
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from factory.quality.golden import decide_line, end_of, said_of
from factory.quality.trial import try_seed
from factory.tasks.catalog import scaffold
from factory.tasks.golden_lines import GoldenLine
from factory.tasks.render import check_templates
from factory.tasks.tasks import Task, builtin_root, load_task

PROMPTS = builtin_root() / "prompts"
BUILT_IN = sorted(path.name for path in PROMPTS.iterdir() if path.is_dir() and not path.name.startswith(("_", ".")))
SCAFFOLDED = "scaffolded"
ALL = [*BUILT_IN, SCAFFOLDED]
DIGEST = """
import hashlib, json, random, sys
from pathlib import Path
from factory.tasks.tasks import discover
digests = {}
for task in discover(Path(sys.argv[1])).get(sys.argv[2:]):
    digest = hashlib.sha256()
    for level in task.levels:
        for seed in range(20):
            scenario = task.sample(random.Random(seed), level)
            reasoning, answer = task.solve(scenario)
            told = answer.model_dump_json() if hasattr(answer, "model_dump_json") else repr(answer)
            digest.update((scenario.model_dump_json() + reasoning + told).encode())
    digests[task.name] = digest.hexdigest()
print(json.dumps(digests))
"""


@cache
def open_task(name: str) -> Task:
    """A built-in task, or the one that `factory new` writes."""
    if name != SCAFFOLDED:
        task, problems = load_task(builtin_root(), name)
        assert task is not None, problems
        return task
    with TemporaryDirectory() as folder:
        scaffold(Path(folder), name)
        task, problems = load_task(Path(folder), name)
        assert task is not None, problems
        return task


@cache
def read_golden(name: str) -> list[GoldenLine]:
    folder = PROMPTS / ("_template" if name == SCAFFOLDED else name)
    path = folder / "golden.jsonl"
    assert path.is_file(), f"{path}: missing; a task needs golden answers"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [GoldenLine.model_validate_json(line) for line in lines if line.strip()]


def test_there_are_built_in_tasks() -> None:
    assert BUILT_IN


@pytest.mark.parametrize("name", ALL)
def test_every_golden_answer_ends_as_its_line_says(name: str) -> None:
    task = open_task(name)
    ended = {line.case: end_of(decide_line(task, line)) for line in read_golden(name)}
    assert {line.case: said_of(line) for line in read_golden(name)} == ended


@pytest.mark.parametrize("name", ALL)
def test_golden_lines_are_enough_and_of_all_kinds(name: str) -> None:
    lines = read_golden(name)
    assert len(lines) >= 6
    assert {line.outcome for line in lines} == {"accepted", "rejected"}
    assert {line.stage for line in lines if line.outcome == "rejected"} >= {"parse", "schema", "check"}
    cases = [line.case for line in lines]
    assert len(set(cases)) == len(cases)


@pytest.mark.parametrize("name", ALL)
def test_every_task_is_whole_and_without_warnings(name: str) -> None:
    task = open_task(name)
    assert check_templates(task) == []
    assert task.warnings == ()
    assert len(task.levels) >= 3
    assert len(task.phrasings) >= 2


@pytest.mark.parametrize("name", ALL)
def test_every_reference_solution_is_right(name: str) -> None:
    task, wrong = open_task(name), {}
    assert task.sample is not None
    assert task.solve is not None
    for level in task.levels:
        for seed in range(40):
            problems = list(try_seed(task, level, seed))
            if problems:
                wrong[level, seed] = problems
    assert not wrong


@pytest.mark.parametrize("name", ALL)
def test_levels_and_seeds_give_different_scenarios(name: str) -> None:
    task = open_task(name)
    assert task.sample is not None
    drawn = [task.sample(random.Random(seed), level) for level in task.levels for seed in range(10)]
    assert len({scenario.model_dump_json() for scenario in drawn}) > len(drawn) * 0.9


def test_scenarios_and_solutions_are_the_same_under_any_hash_seed_and_time_zone(tmp_path: Path) -> None:
    scaffold(tmp_path, SCAFFOLDED)
    here = dict(os.environ)
    settings = [{"PYTHONHASHSEED": "0", "TZ": "UTC"}, {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}]
    command = [sys.executable, "-c", DIGEST, str(tmp_path), *ALL]
    started = [subprocess.Popen(command, env=here | one, stdout=subprocess.PIPE, text=True) for one in settings]
    first, second = (json.loads(process.communicate(timeout=600)[0]) for process in started)
    assert set(first) == set(ALL)
    assert first == second
