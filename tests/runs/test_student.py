"""What the student sees: a row keeps its prompt and ids beside the teacher's, and the completion serves both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_task
from dataset_support import read_table, read_tree

from factory.checks.verify import verify
from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.errors import JobError, TaskError
from factory.job.job import Job
from factory.load import collate, load_rows
from factory.publish.show import describe_prompt
from factory.runs.prepare import prepare, preview_job
from factory.runs.run import run
from factory.tasks.tasks import discover
from factory.teachers.scripted import encode

MakeJob = Callable[..., Job]
STUDENT = "{{ scenario.a }} plus {{ scenario.b }}?"
PRIVILEGED = "Add {{ scenario.a }} and {{ scenario.b }}. A hint: it is {{ scenario.a + scenario.b }}, is it not?"
SHORT = "{{ scenario.a }} + {{ scenario.b }}, which is {{ scenario.a + scenario.b }}"


@pytest.fixture
def privileged(tmp_path: Path) -> Path:
    """A workspace whose teacher is told the answer; and a task that shows the student the same prompt."""
    write_task(tmp_path, user_j2=PRIVILEGED, user_short_j2=SHORT, student_j2=STUDENT)
    write_task(tmp_path, "second")
    return tmp_path


def both(make_job: MakeJob, **changed: Any) -> Job:
    tasks = [{"name": "adding", "count": 12}, {"name": "second", "count": 4}]
    return make_job(**({"tasks": tasks, "signals": {"top_k": 3, "hidden_layers": [2], "positions": "all"}} | changed))


def test_a_row_has_both_prompts_and_both_ids(privileged: Path, make_job: MakeJob) -> None:
    out = privileged / "out"
    run(both(make_job), privileged, out)
    rows = read_table(out, "data")
    for row in rows:
        scenario = json.loads(row["scenario"])
        if row["task"] == "second":
            assert row["student_prompt"] == row["prompt"]
            assert row["student_prompt_token_ids"] == row["prompt_token_ids"]
            continue
        asked = f"{scenario['a']} plus {scenario['b']}?"
        assert row["student_prompt"] == [{"role": "user", "content": asked}]
        assert row["student_prompt_token_ids"] == encode(asked)
        assert str(scenario["a"] + scenario["b"]) in row["prompt"][-1]["content"]
        assert bytes(row["prompt_token_ids"]).decode().endswith(row["prompt"][-1]["content"])
    assert {row["task"] for row in rows} == {"adding", "second"}
    assert list(verify(out)) == []


def test_a_dataset_without_such_a_task_has_no_column_of_it(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    assert not any(name.startswith("student") for name in read_table(workspace / "out", "data")[0])


def test_rejected_rows_and_pairs_have_the_student_s_prompt_too(privileged: Path, make_job: MakeJob) -> None:
    teacher = {"backend": "scripted", "scripted": {"wrong": 0.5}}
    run(both(make_job, teacher=teacher, samples={"n": 4, "keep": "pair"}), privileged, privileged / "out")
    for config in ("rejected", "preferences"):
        rows = [row for row in read_table(privileged / "out", config) if row["task"] == "adding"]
        assert rows
        assert all(" plus " in row["student_prompt"][-1]["content"] for row in rows)


def test_a_phrasing_may_have_a_student_s_turn_and_a_system_turn_of_its_own(tmp_path: Path, make_job: MakeJob) -> None:
    write_task(tmp_path, student_j2="long {{ scenario.a }}", student_short_j2="short {{ scenario.a }}")
    (tmp_path / "prompts/adding/student_system.j2").write_text("Be brief.")
    run(make_job(), tmp_path, tmp_path / "out")
    for row in read_table(tmp_path / "out", "data"):
        system, user = row["student_prompt"]
        assert system == {"role": "system", "content": "Be brief."}
        assert user["content"].startswith("short" if row["prompt"][-1]["content"].endswith("?") else "long")


def test_loader_and_collate_take_either_prompt(privileged: Path, make_job: MakeJob) -> None:
    out = privileged / "out"
    run(both(make_job), privileged, out)
    given: dict[str, Any] = {"join_hidden_states": True, "cache_dir": privileged / "cache"}
    teachers, students = (list(load_rows(out, prompt=name, **given)) for name in ("teacher", "student"))
    for teacher, student in zip(teachers, students, strict=True):
        assert student["prompt"] == teacher["student_prompt"]
        assert student.prompt_token_ids.tolist() == teacher["student_prompt_token_ids"].tolist()
        if student["task"] == "second":
            assert student.prompt is not None  # the same prompt: nothing of it is lost
            continue
        np.testing.assert_array_equal(student.topk_ids, teacher.topk_ids)
        np.testing.assert_array_equal(student.completion_token_ids, teacher.completion_token_ids)
        # the prompt's own signals are of what the student does not see
        assert student.prompt is None
        assert student.positions is not None
        assert student.positions[0] == len(student.prompt_token_ids) - 1
        assert student.positions[-1] == student.inputs - 1
        assert bool((student.predicting_states == teacher.predicting_states).all())
    taken = collate([row for row in teachers if row["task"] == "adding"], 0, prompt="student")
    same = collate([row for row in students if row["task"] == "adding"], 0)
    assert taken.keys() == same.keys()
    assert all(bool((taken[name] == same[name]).all()) for name in same)
    # entry t of a signal still stands where the student predicts completion token t
    row, before = students[0], len(students[0].prompt_token_ids)
    one = collate([row], 0)
    assert one["labels"][0, before:].tolist() == row.completion_token_ids.tolist()
    assert one["topk_ids"][0, before - 1 : -1].tolist() == np.maximum(row.topk_ids, 0).tolist()
    streamed = list(load_rows(out, prompt="student", streaming=True))
    assert [row["prompt"] for row in streamed] == [row["prompt"] for row in students]
    assert load_rows(out, prompt="student", cache_dir=privileged / "cache")["prompt"] == [r["prompt"] for r in students]


def test_the_student_s_budget_counts_its_own_prompt(privileged: Path, make_job: MakeJob) -> None:
    tasks = [{"name": "adding", "count": 12}]
    job = make_job(tasks=tasks, student={"max_tokens": 60})
    totals = run(job, privileged, privileged / "out")
    rows = read_table(privileged / "out", "data")
    assert totals.accepted == len(rows) > 6
    assert all(len(row["prompt_token_ids"]) > 60 for row in rows)
    assert all(len(row["student_prompt_token_ids"]) + len(row["completion_token_ids"]) <= 60 for row in rows)
    # a student's prompt that is too long by itself is not asked
    write_task(privileged, user_j2="{{ scenario.a }}", user_short_j2="{{ scenario.a }}", student_j2="word " * 30)
    totals = run(job, privileged, privileged / "long")
    assert totals.reasons == {"filter/over_budget": 12}
    assert totals.completion_tokens == 0


def test_a_changed_student_prompt_makes_other_rows_and_is_copied(privileged: Path, make_job: MakeJob) -> None:
    job = both(make_job)
    before = {prompt.id for prompt in preview_job(job, privileged, "adding", None, 12)}
    run(job, privileged, privileged / "out")
    assert (privileged / "out/templates/adding/student.j2").read_text() == STUDENT
    write_task(privileged, user_j2=PRIVILEGED, user_short_j2=SHORT, student_j2=f"{STUDENT} Now.")
    assert not before & {prompt.id for prompt in preview_job(job, privileged, "adding", None, 12)}


def test_preview_shows_both(privileged: Path, make_job: MakeJob) -> None:
    (prompt,) = preview_job(both(make_job), privileged, "adding", "easy", 1)
    shown = describe_prompt(prompt, as_json=False)
    assert "── what the student is shown ──" in shown
    assert " plus " in shown.split("what the student is shown")[1]
    told = json.loads(describe_prompt(prompt, as_json=True))
    assert " plus " in told["student_messages"][0]["content"]


@pytest.mark.parametrize("repaired", [False, True])
def test_a_curriculum_takes_either_prompt(repaired: bool, privileged: Path, make_job: MakeJob) -> None:
    out = privileged / "out"
    validation = {"retries": 2, "retry": "repair"} if repaired else {}
    teacher = {"backend": "scripted", "scripted": {"wrong": 0.4}}
    tasks = [{"name": "adding", "count": 30}]
    run(both(make_job, teacher=teacher, tasks=tasks, validation=validation), privileged, out)
    rows = {row["id"]: row for row in read_table(out, "data")}
    assert not repaired or any(row["repaired"] for row in rows.values())
    for choice, prompt, ids in (
        (None, "student_prompt", "student_prompt_token_ids"),
        ("teacher", "prompt", "prompt_token_ids"),
    ):
        make_curriculum(out, CurriculumConfig(prompt=choice, by="tokens"), "curriculum")
        staged = [row for stage in (1, 2, 3) for row in read_table(out, f"curriculum/stage-{stage}")]
        assert len(staged) == len(rows)
        for row in staged:
            whole = rows[row["id"]]
            assert (row["prompt"], row["prompt_token_ids"]) == (whole[prompt], whole[ids])
            assert row["tokens"] == len(whole[ids]) + len(whole["completion_token_ids"])
        prompts = [row["prompt"] for row in read_table(out, "curriculum/hand-off")]
        assert all((" plus " in asked[-1]["content"]) == (choice is None) for asked in prompts)
        assert all(asked[-1]["role"] == "user" for asked in prompts)
        assert list(verify(out)) == []


def test_a_curriculum_of_prompts_that_are_not_there_is_refused(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    before = read_tree(workspace / "out")
    with pytest.raises(JobError, match=r"no task of the dataset has a student\.j2"):
        make_curriculum(workspace / "out", CurriculumConfig(prompt="student"), "c.toml")
    assert read_tree(workspace / "out") == before


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"student_short_j2": "x"}, "is of the student's prompt, and there is no student.j2"),
        ({"student_j2": "{{ scenery.a }}"}, r"student.j2: unknown variable 'scenery'"),
        ({"student_j2": "  "}, "student.j2: renders to nothing at level easy"),
    ],
)
def test_a_student_s_template_that_cannot_be_is_refused(
    files: dict[str, str], told: str, tmp_path: Path, make_job: MakeJob
) -> None:
    write_task(tmp_path, **files)
    with pytest.raises(TaskError, match=told):
        prepare(make_job(), tmp_path)
    assert "adding" in str(discover(tmp_path))
