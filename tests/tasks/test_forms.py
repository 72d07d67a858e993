"""Forms: what a task's Answer may be, and what each task of a form can and cannot say."""

from pathlib import Path
from typing import Annotated, Any

import free_text
import pytest
from conftest import write_task
from pydantic import BaseModel, Field

from factory.records import Form
from factory.tasks.calls import call_solve, dump_answer, invent_answer, read_answer
from factory.tasks.faults import TaskFault
from factory.tasks.forms import form_of
from factory.tasks.tasks import Task, discover


def open_task(root: Path, **replaced: str) -> Task:
    write_task(root, "greeting", **{"schema": free_text.SCHEMA, "task_toml": free_text.TASK} | replaced)
    found = discover(root)
    assert not found.problems, found.problems
    return found.tasks["greeting"]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return open_task(tmp_path, user_j2="Greet {{ scenario.name }}, who is {{ scenario.mood }}.")


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        (type("Answer", (BaseModel,), {}), "json"),
        (str, "text"),
        (Annotated[str, Field(max_length=9)], "text"),
        (int, None),
        (Annotated[int, Field(ge=0)], None),
        (list[str], None),
        (str | None, None),
        ("str", None),
    ],
)
def test_an_answer_is_a_model_or_a_text_and_nothing_else(answer: Any, form: Form | None) -> None:
    assert form_of(answer) == form


def test_a_text_has_its_bounds_as_a_schema_and_no_grammar(task: Task) -> None:
    assert task.answer_schema == {"type": "string", "minLength": 5, "maxLength": 400}
    assert task.grammar is None
    assert task.keys == []
    assert task.warnings == ()


def test_a_text_is_read_and_written_as_it_stands(task: Task) -> None:
    for text in ('{"a": 1}', '"quoted"', "3.0 is 3", "two\nlines"):
        assert read_answer(task, text) == text == dump_answer(task, text)


def test_solve_must_give_a_text(tmp_path: Path) -> None:
    wrong = free_text.SCHEMA.replace('return f"Greet {scenario.name}.", f"Hello', 'return "x", 5 or f"Hello')
    task = open_task(tmp_path, schema=wrong)
    with pytest.raises(TaskFault, match="got 5 as the answer"):
        call_solve(task, task.Scenario(name="Ada", mood="calm"))


@pytest.mark.parametrize(
    "bounds", ["", "min_length=200, max_length=300", 'pattern="^(yes|no)$"', "min_length=1, max_length=3"]
)
def test_an_invented_text_fits_its_bounds(tmp_path: Path, bounds: str) -> None:
    kind = f"Annotated[str, Field({bounds})]" if bounds else "str"
    schema = free_text.SCHEMA.replace("Annotated[str, Field(min_length=5, max_length=400)]", kind)
    task = open_task(tmp_path, schema=schema)
    texts = {invent_answer(task, seed) for seed in range(6)}
    assert len(texts) > 1
    assert all(read_answer(task, text) for text in texts)


def test_a_style_of_a_text_names_no_fields(tmp_path: Path) -> None:
    styled = free_text.TASK + 'fields = ["reason"]\n'
    write_task(tmp_path, "greeting", schema=free_text.SCHEMA, task_toml=styled)
    (problem,) = discover(tmp_path, ["greeting"]).problems["greeting"]
    assert problem.endswith(
        "style.fields: the answer is one text without fields, and style is of all of it; leave it out"
    )
