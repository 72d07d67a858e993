"""Shared partials: they belong to the tasks that include them, and to no others."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_task

from factory.checks.verify import verify
from factory.errors import DatasetError, TaskError
from factory.job.job import Job
from factory.runs.prepare import prepare
from factory.runs.probes import judge_probes
from factory.runs.provenance import describe_job
from factory.runs.run import run
from factory.tasks.catalog import preview
from factory.tasks.render import check_templates
from factory.tasks.tasks import Task, load_task

ASKS = '{% include "_shared/tone.j2" %} {{ scenario.a }} + {{ scenario.b }}?'


@pytest.fixture
def shared(workspace: Path) -> Path:
    """`adding` includes tone.j2, which includes deep.j2; nobody includes other.j2."""
    folder = workspace / "prompts" / "_shared"
    folder.mkdir()
    (folder / "tone.j2").write_text('Be brief{% include "_shared/deep.j2" %}.')
    (folder / "deep.j2").write_text(" at level {{ level }}")
    (folder / "other.j2").write_text("Unused.")
    write_task(workspace, user_j2=ASKS)
    return folder


def load(workspace: Path) -> Task:
    task, problems = load_task(workspace, "adding")
    assert task is not None, problems
    return task


def test_a_partial_is_part_of_the_tasks_that_include_it(workspace: Path, shared: Path) -> None:
    (prompt,) = preview(workspace, "adding", "easy", 0, 1)
    assert prompt.messages[-1]["content"].startswith("Be brief at level easy. ")
    before = load(workspace)
    assert {path.name for path in before.sources} >= {"tone.j2", "deep.j2"}
    assert {path.name for path in before.sources}.isdisjoint({"other.j2"})
    assert before.phrasings == ["user.j2", "user_short.j2"]
    (shared / "other.j2").write_text("Changed.")
    assert load(workspace).digests == before.digests
    (shared / "deep.j2").write_text(", level {{ level }}")
    assert load(workspace).digests != before.digests


def test_a_dataset_has_copies_and_refuses_another_text(
    workspace: Path, shared: Path, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(make_job(), workspace, out)
    assert list(verify(out)) == []
    copy = out / "templates" / "adding" / "deep.j2"
    assert copy.read_text() == " at level {{ level }}"
    copy.write_text("changed")
    assert any("deep.j2" in fault for fault in verify(out))
    (shared / "deep.j2").write_text("Another.")
    with pytest.raises(DatasetError, match=r"_shared/deep\.j2"):
        run(make_job(), workspace, out)


def test_what_is_wrong_with_a_partial_is_told_of_its_own_file(workspace: Path, shared: Path) -> None:
    (shared / "deep.j2").write_text("{{ nope }}")
    with pytest.raises(TaskError, match=r"prompts/_shared/deep\.j2: unknown variable 'nope'"):
        list(preview(workspace, "adding", None, 0, 1))
    (shared / "deep.j2").unlink()
    with pytest.raises(TaskError, match=r"cannot include '_shared/deep\.j2'"):
        list(preview(workspace, "adding", None, 0, 1))


def test_names_that_would_meet_among_the_copies_are_refused(workspace: Path, shared: Path) -> None:
    (workspace / "prompts" / "adding" / "tone.j2").write_text("Mine.")
    task, problems = load_task(workspace, "adding")
    assert task is None
    assert "has the same name" in problems[0]


def test_a_rubric_includes_partials_and_they_count_where_a_judge_reads_them(
    workspace: Path, shared: Path, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    (shared / "grade.j2").write_text("Grade {{ answer }} from 1 to 5.{% include '_shared/deep.j2' %}")
    write_task(workspace, judge_j2='{% include "_shared/grade.j2" %} It was asked: {{ prompt }}')
    task = load(workspace)
    assert check_templates(task) == []
    assert {path.name for path in task.sources} >= {"judge.j2", "grade.j2", "deep.j2"}
    (question, *_) = judge_probes(prepare(make_job(judge={}), workspace))
    assert question.messages[0]["content"].startswith('Grade {"total":')
    assert " from 1 to 5. at level " in question.messages[0]["content"]

    def digests() -> list[str]:
        jobs = make_job(), make_job(judge={})
        return [describe_job(prepare(job, workspace))["digest"] for job in jobs]

    before = digests()
    (shared / "grade.j2").write_text("Grade {{ answer }} anew.")
    after = digests()
    assert after[0] == before[0]  # nobody judges
    assert after[1] != before[1]


def test_a_partial_of_the_rubric_sees_what_the_rubric_sees(workspace: Path, shared: Path) -> None:
    (shared / "grade.j2").write_text("{{ answer_schema }}")
    write_task(workspace, judge_j2='{% include "_shared/grade.j2" %}')
    assert any("grade.j2: unknown variable 'answer_schema'" in line for line in check_templates(load(workspace)))
