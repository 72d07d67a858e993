"""The calls of a task's own Python: each gives what the contract promises, or a TaskFault with its reason."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, write_task
from pydantic import ValidationError

from factory.tasks.calls import (
    adopt_scenario,
    call_check,
    call_sample,
    call_solve,
    dump_answer,
    dump_scenario,
    find_misfit,
    invent_answer,
    read_answer,
    read_scenario,
)
from factory.tasks.faults import TaskFault
from factory.tasks.tasks import Task, load_task

SETS = SCHEMA.replace("words: str = Field(max_length=20)", "words: set[str] = Field(alias='parts', max_length=9)")
SETS = SETS.replace('words="done"', 'parts={"b", "a", "ä", "c"}')


def validated(body: str) -> str:
    """The task with a validator of `total` that does this."""
    validator = f"    @field_validator('total')\n    @classmethod\n    def _look(cls, value):\n        {body}\n"
    text = SCHEMA.replace("from pydantic import", "from pydantic import field_validator,")
    return text.replace("    words: str", f"{validator}\n    words: str")


@pytest.fixture
def task(workspace: Path) -> Task:
    return load(workspace)


def load(workspace: Path) -> Task:
    task, problems = load_task(workspace, "adding")
    assert task is not None, problems
    return task


def scenario_of(task: Task) -> Any:
    return adopt_scenario(task, {"a": 1, "b": 2})


def fault_of(act: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(TaskFault) as caught:
        act()
    return caught.value.reason, str(caught.value)


def test_a_seed_gives_one_scenario_and_it_survives_its_json(task: Task) -> None:
    one, again = (call_sample(task, 7, "hard") for _ in range(2))
    assert one == again == read_scenario(task, dump_scenario(task, one))
    assert call_sample(task, 8, "hard") != one


@pytest.mark.parametrize(("value", "told"), [(None, "None"), ({"a": 1}, "dict"), ("x", "'x'"), (3, "3")])
def test_a_sample_that_is_no_scenario_is_told(value: object, told: str, task: Task) -> None:
    broken = replace(task, sample=lambda rng, level: value)
    assert fault_of(lambda: call_sample(broken, 1, "easy")) == (
        "sample_raised",
        f"TypeError: returned {told}, need a Scenario",
    )


def test_a_row_that_is_no_scenario_is_told_with_its_fields(task: Task) -> None:
    assert find_misfit(task, {"a": 1}) is None
    assert "a: missing" in str(find_misfit(task, {"b": 1}))
    assert fault_of(lambda: adopt_scenario(task, {"a": "x"}))[0] == "scenario_invalid"
    assert fault_of(lambda: read_scenario(task, '{"a": 1'))[0] == "scenario_not_json"


@pytest.mark.parametrize(
    "text", ["", "{}", '{"total": "3", "words": "x"}', '{"total": 3, "words": "x", "more": 1}', "[]"]
)
def test_an_answer_of_another_form_is_the_teacher_s_fault(text: str, task: Task) -> None:
    with pytest.raises(ValidationError):
        read_answer(task, text)


def test_a_validator_that_raises_is_the_task_s_fault(workspace: Path) -> None:
    write_task(workspace, schema=validated("return {}['x']"))
    reason, told = fault_of(lambda: read_answer(load(workspace), '{"total": 3, "words": "x"}'))
    assert reason == "validator_raised"
    assert told.startswith("KeyError: 'x' (adding.py, line ")


@pytest.mark.parametrize(
    ("findings", "told"),
    [
        (None, "check must return a list of findings, got None"),
        ("wrong", "check must return a list of findings, got 'wrong'"),
        (True, "check must return a list of findings, got True"),
        ([1], "check must return findings that are texts, got 1 among them"),
    ],
)
def test_a_check_that_returns_something_else_is_told(findings: Any, told: str, task: Task) -> None:
    broken = replace(task, check=lambda scenario, answer: findings)
    answer = read_answer(task, '{"total": 3, "words": "x"}')
    assert fault_of(lambda: call_check(broken, scenario_of(task), answer)) == ("check_raised", f"TypeError: {told}")


def test_findings_may_be_a_tuple_and_a_check_with_one_argument_is_told(task: Task) -> None:
    answer = read_answer(task, '{"total": 3, "words": "x"}')
    assert call_check(replace(task, check=lambda *_: ("a", "b")), scenario_of(task), answer) == ("a", "b")  # type: ignore[arg-type, return-value]
    narrow = replace(task, check=lambda scenario: [])  # type: ignore[misc, arg-type]
    assert fault_of(lambda: call_check(narrow, scenario_of(task), answer))[0] == "check_raised"


@pytest.mark.parametrize(
    ("solved", "told"),
    [
        (None, "got None"),
        (("why",), "got tuple"),
        ((1, {}), "got 1 as the reasoning"),
        (("why", {"total": 3}), "got dict as the answer"),
    ],
)
def test_a_solution_of_another_form_is_told(solved: Any, told: str, task: Task) -> None:
    reason, said = fault_of(lambda: call_solve(replace(task, solve=lambda scenario: solved), scenario_of(task)))
    assert (reason, said) == ("solve_raised", f"TypeError: solve must return (reasoning, Answer), {told}")


def test_an_answer_is_written_as_it_is_read_by_alias_and_a_set_in_one_order(workspace: Path) -> None:
    write_task(workspace, schema=SETS)
    task = load(workspace)
    reasoning, text = call_solve(task, scenario_of(task))
    assert (reasoning, text) == ("1 and 2 make 3.", '{"total":3,"parts":["a","b","c","ä"]}')
    assert dump_answer(task, read_answer(task, '{"total": 3, "parts": ["c", "a"]}')) == '{"total":3,"parts":["a","c"]}'
    code = (
        "import sys; from pathlib import Path; from factory.tasks.tasks import load_task; "
        "from factory.tasks.calls import adopt_scenario, call_solve; task = load_task(Path(sys.argv[1]), 'adding')[0]; "
        "print(call_solve(task, adopt_scenario(task, {'a': 1, 'b': 2}))[1])"
    )
    for seed in ("1", "2", "3"):  # the order of a set is that of hashes
        done = subprocess.run(
            [sys.executable, "-c", code, str(workspace)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "utf-8"},
        )
        assert done.stdout.strip() == text


def test_an_invented_answer_fits_the_form_and_is_the_seed_s(task: Task) -> None:
    one, again, other = (invent_answer(task, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert read_answer(task, one)
    write_task(task.folder.parents[1], schema=validated("raise ValueError('no')"))
    assert json.loads(invent_answer(load(task.folder.parents[1]), 1)) == {}
