"""The watch: a task whose rows all fail through no fault of the teacher's stops the run, or is told of at its end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import SCHEMA, write_task
from dataset_support import make_generation, make_prompt

from factory.dataset.ledger import read_ledger
from factory.errors import TaskError
from factory.job.job import Job
from factory.records import Record, Rejection
from factory.runs.run import run
from factory.runs.watch import FIRST_ROWS, Watch, is_hopeless

MakeJob = Callable[..., Job]
# right where `factory tasks` looks, and wrong for all that a job asks
FAILS = SCHEMA.replace("    right = ", '    if scenario.b >= 1000:\n        raise KeyError("b")\n    right = ')


def rejection(task: str = "adding", stage: Any = "prompt", reason: str = "sample_raised", **more: Any) -> Rejection:
    return Rejection(make_prompt(0, task=task), None, stage, reason, ("KeyError: 'b'",), **more)


def told_of(watch: Watch, planned: dict[str, int]) -> list[tuple[str, str, dict[str, str]]]:
    told: list[tuple[str, str, dict[str, str]]] = []
    watch.tell_failed(lambda: planned, lambda event, text, **fields: told.append((event, text, fields)))
    return told


def record(task: str = "adding") -> Record:
    return Record(make_prompt(0, task=task), make_generation(1), "{}", 1.0)


@pytest.mark.parametrize(
    ("stage", "reason", "kind", "hopeless"),
    [
        ("prompt", "sample_raised", "error", True),
        ("prompt", "scenario_invalid", "rejected", True),
        ("prompt", "prompt_too_long", "rejected", True),
        ("check", "check_raised", "error", True),
        ("schema", "validator_raised", "error", True),
        ("judge", "render_failed", "error", True),
        ("teacher", "refused_by_engine", "rejected", True),
        ("teacher", "refused_by_template", "rejected", True),
        ("signals", "nonfinite", "error", False),
        ("parse", "invalid_json", "rejected", False),
        ("check", "wrong_total", "rejected", False),
        ("teacher", "truncated", "rejected", False),
        ("filter", "over_budget", "rejected", False),
    ],
)
def test_what_no_teacher_can_mend(stage: Any, reason: str, kind: Literal["rejected", "error"], hopeless: bool) -> None:
    assert is_hopeless(rejection(stage=stage, reason=reason, kind=kind)) is hopeless


def test_each_task_is_watched_by_itself() -> None:
    watch = Watch()
    watch.saw(record("other"))
    for _ in range(FIRST_ROWS - 1):
        watch.saw(rejection())
        watch.saw(record("other"))
        assert watch.in_doubt
    told = (
        rf"^the first {FIRST_ROWS} rows of task 'adding' fail for one reason \(stage prompt, reason sample_raised\): "
        r"KeyError: 'b'; nothing was committed, mend it and run again$"
    )
    with pytest.raises(TaskError, match=told):
        watch.saw(rejection())


@pytest.mark.parametrize(
    "other", [record(), rejection(reason="scenario_not_json"), rejection(stage="parse", reason="invalid_json")]
)
def test_one_row_that_ends_otherwise_ends_the_watch(other: Record | Rejection) -> None:
    watch = Watch()
    for number in range(2 * FIRST_ROWS):
        watch.saw(other if number == FIRST_ROWS // 2 else rejection())
    assert not watch.in_doubt
    assert told_of(watch, {"adding": 2 * FIRST_ROWS}) == []


def test_a_task_with_accepted_rows_is_not_watched() -> None:
    watch = Watch(["adding"])
    for _ in range(2 * FIRST_ROWS):
        watch.saw(rejection())
    assert not watch.in_doubt


def test_a_small_task_is_told_of_when_all_its_rows_are_in() -> None:
    watch = Watch()
    for _ in range(3):
        watch.saw(rejection())
    assert told_of(watch, {"adding": 4, "other": 9}) == []
    (event,) = told_of(watch, {"adding": 3, "other": 9})
    told = "all 3 rows of task 'adding' fail for one reason (stage prompt, reason sample_raised): KeyError: 'b'"
    assert event == ("task_failed", told, {"task": "adding", "reason": "sample_raised"})


def failing_job(make_job: MakeJob, folder: Path, rows: int, beside: int = 0) -> Job:
    """A job over `failing`, whose check raises for each row of its source; and over `adding`, which is right."""
    write_task(folder, "failing", schema=FAILS)
    write_task(folder)
    (folder / "rows.jsonl").write_text('{"a": 0, "b": 1000}\n' * rows, encoding="utf-8")
    failing = {"name": "failing", "count": "all", "source": {"path": str(folder / "rows.jsonl")}}
    tasks = [failing, *([{"name": "adding", "count": beside}] if beside else [])]
    return make_job(tasks=tasks)


def test_a_run_stops_at_a_task_that_fails_beside_one_that_does_not(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=f"the first {FIRST_ROWS} rows of task 'failing'") as error:
        run(failing_job(make_job, tmp_path, 2 * FIRST_ROWS, 2 * FIRST_ROWS), tmp_path, tmp_path / "out")
    assert "nothing was committed" in str(error.value)
    assert read_ledger(tmp_path / "out").totals.done == 0


def test_a_few_rows_in_a_large_job_hold_nothing_back_for_ever(make_job: MakeJob, tmp_path: Path) -> None:
    totals = run(failing_job(make_job, tmp_path, 3, 400), tmp_path, tmp_path / "out")
    assert (totals.accepted, totals.errors) == (400, 3)


def test_a_small_job_that_fails_as_a_whole_says_why(
    make_job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = failing_job(make_job, tmp_path, 5)
    totals = run(job, tmp_path, tmp_path / "out", log_json=True)
    assert (totals.accepted, totals.errors) == (0, 5)
    (event,) = [e for line in capsys.readouterr().err.splitlines() if (e := json.loads(line))["event"] == "task_failed"]
    assert (event["task"], event["reason"]) == ("failing", "check_raised")
