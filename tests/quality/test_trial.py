"""The trial of a task: what would make every row fail is told before a run, each fault once, with file and place."""

from pathlib import Path

import pytest
from conftest import SCHEMA, write_task

from factory.errors import TaskError
from factory.quality.trial import require_tried, try_check, try_seed, try_task
from factory.tasks.calls import call_sample, dump_scenario
from factory.tasks.tasks import Task, load_task


def load(workspace: Path, schema: str = SCHEMA, **texts: str) -> Task:
    write_task(workspace, schema=schema, **texts)
    task, problems = load_task(workspace, "adding")
    assert task is not None, problems
    return task


def put(line: str, body: str) -> str:
    """The task's file with a statement at the start of a function."""
    head = next(text for text in SCHEMA.splitlines() if text.startswith(f"def {line}("))
    return SCHEMA.replace(head, f"{head}\n    {body}")


def line_number(schema: str, text: str) -> int:
    return next(number for number, line in enumerate(schema.split("\n"), 1) if text in line)


def test_a_whole_task_has_no_problem(workspace: Path) -> None:
    task = load(workspace)
    assert try_task(task) == []
    require_tried([task])


@pytest.mark.parametrize("function", ["check", "solve", "sample"])
def test_one_fault_is_one_line_with_its_place(function: str, workspace: Path) -> None:
    schema = put(function, "{}['b']")
    task = load(workspace, schema)
    (told,) = try_task(task)
    where = f"KeyError: 'b' (adding.py, line {line_number(schema, chr(123) + chr(125) + '[')})"
    assert told.endswith(where)
    if function != "sample":  # which the templates meet first
        assert told == f"{task.schema_path}: level 'easy', seed 0 and 3 more: {function}_raised: {where}"
    with pytest.raises(TaskError, match="KeyError") as caught:
        require_tried([task, task])
    assert len(str(caught.value).splitlines()) == 2


def test_faults_at_two_places_are_two_lines(workspace: Path) -> None:
    schema = put("check", "if scenario.a % 2: {}['odd']\n    {}['even']")
    told = [line.rpartition("KeyError: ")[2] for line in try_task(load(workspace, schema))]
    first, second = line_number(schema, "'odd'"), line_number(schema, "'even'")
    assert sorted(told) == [f"'even' (adding.py, line {second})", f"'odd' (adding.py, line {first})"]


def test_solutions_that_the_own_check_rejects_are_told_once_though_each_says_other_numbers(workspace: Path) -> None:
    schema = SCHEMA.replace("Answer(total=total,", "Answer(total=total + 1,")
    (told,) = try_task(load(workspace, schema))
    assert "seed 0 and 3 more: solve: its own answer is not accepted, it ends rejected at check as wrong_total" in told


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (SCHEMA.replace("make {total}.", "make {total}.</think>"), "its reasoning holds </think>"),
        (SCHEMA.replace("    return [] if", "    return None if"), "check must return a list of findings, got None"),
        (
            SCHEMA.replace("total: int = Field(ge=0, le=1000)", "total: float = Field(ge=0, le=1000)").replace(
                "Answer(total=total,", "Answer(total=total * 1e-9,"
            ),
            "solve: its own answer is not accepted",
        ),
    ],
)
def test_other_faults_of_a_solution(schema: str, told: str, workspace: Path) -> None:
    (line,) = try_task(load(workspace, schema))
    assert told in line


def test_a_solution_that_the_grammar_forbids_is_told(workspace: Path) -> None:
    pytest.importorskip("llguidance")
    schema = SCHEMA.replace("from pydantic", "from decimal import Decimal\nfrom pydantic").replace(
        "total: int = Field(ge=0, le=1000)", "total: Decimal = Field(decimal_places=2)"
    )
    schema = schema.replace("Answer(total=total,", "Answer(total=Decimal(total).scaleb(3).normalize() / 1000,")
    assert try_task(load(workspace, schema)) == []
    exponents = schema.replace(".normalize() / 1000", ".normalize()").replace("return [] if", "return [] if 1 or")
    (told,) = try_task(load(workspace, exponents))
    assert "a teacher held to the answer's grammar cannot write its answer" in told


def test_a_task_without_sample_is_tried_as_far_as_it_goes(workspace: Path) -> None:
    schema = SCHEMA.partition("def sample")[0] + "def check" + SCHEMA.partition("def check")[2]
    task = load(workspace, schema)
    assert (try_seed(task, "easy", 0), try_task(task)) == ([], [])


def test_what_check_says_of_an_answer_that_knows_nothing(workspace: Path) -> None:
    task = load(workspace)
    text = dump_scenario(task, call_sample(task, 1, "hard"))
    findings = try_check(task, text, 1)
    assert findings is not None
    assert findings[0].startswith("wrong_total: ")
    never = SCHEMA.replace("from pydantic import", "from pydantic import model_validator,").replace(
        "    words: str",
        "    @model_validator(mode='after')\n    def _no(self):\n        raise ValueError('no')\n    words: str",
    )
    assert try_check(load(workspace, never), text, 1) is None
