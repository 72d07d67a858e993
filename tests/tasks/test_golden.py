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
from typing import Any

import numpy as np
import pytest

from factory.quality.validate import Gate, run_check
from factory.records import Generation, Prompt, Record, Sampling
from factory.runs.run import decide
from factory.tasks.catalog import scaffold
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
            digest.update((scenario.model_dump_json() + reasoning + answer.model_dump_json()).encode())
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
def read_golden(name: str) -> list[dict[str, Any]]:
    folder = PROMPTS / ("_template" if name == SCAFFOLDED else name)
    path = folder / "golden.jsonl"
    assert path.is_file(), f"{path}: missing; a task needs golden answers"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def as_generation(text: str) -> Generation:
    """What a reasoning teacher's text is to the factory: all before the first </think> is reasoning."""
    reasoning, closed, answer = text.partition("</think>")
    tokens = len(text.encode())
    return Generation(
        prompt_id="golden",
        attempt=0,
        text=text,
        reasoning=reasoning,
        answer_text=answer,
        prompt_token_ids=np.zeros(1, np.int32),
        completion_token_ids=np.zeros(tokens, np.int32),
        answer_start=tokens - len(answer.encode()) if closed else tokens,
        finish_reason="stop",
    )


def decide_line(task: Task, line: dict[str, Any]) -> dict[str, str]:
    """What becomes of a golden text, in the words of its line."""
    assert task.sample is not None
    scenario = task.sample(random.Random(line["seed"]), line["level"]).model_dump_json()
    prompt = Prompt("golden", 0, 0, task.name, line["level"], (), scenario, 0, Sampling())
    outcome = decide(Gate(task, check=True), prompt, as_generation(line["text"]))
    if isinstance(outcome, Record):
        return {"outcome": "accepted"}
    assert outcome.kind == "rejected", outcome.findings
    return {"outcome": "rejected", "stage": outcome.stage, "reason": outcome.reason}


def test_there_are_built_in_tasks() -> None:
    assert BUILT_IN


@pytest.mark.parametrize("name", ALL)
def test_every_golden_answer_ends_as_its_line_says(name: str) -> None:
    task, wrong = open_task(name), {}
    for line in read_golden(name):
        said = {key: line[key] for key in ("outcome", "stage", "reason") if key in line}
        got = decide_line(task, line)
        if got != said:
            wrong[line["case"]] = (said, got)
    assert not wrong


@pytest.mark.parametrize("name", ALL)
def test_golden_lines_are_enough_and_of_all_kinds(name: str) -> None:
    lines = read_golden(name)
    assert len(lines) >= 6
    assert {line["outcome"] for line in lines} == {"accepted", "rejected"}
    assert {line.get("stage") for line in lines if line["outcome"] == "rejected"} >= {"parse", "schema", "check"}
    cases = [line["case"] for line in lines]
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
            scenario = task.sample(random.Random(seed), level)
            reasoning, answer = task.solve(scenario)
            text = f"{reasoning}\n</think>\n{answer.model_dump_json()}"
            got = decide_line(task, {"level": level, "seed": seed, "text": text})
            if got != {"outcome": "accepted"}:
                wrong[level, seed] = (got, run_check(task, scenario.model_dump_json(), answer))
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
