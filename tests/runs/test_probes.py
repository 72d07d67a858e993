"""Probes: every kind of prompt that a job will ask is tried on a model's chat template before an engine starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SCHEMA, write_task

from factory.errors import TeacherError
from factory.forecast.estimate import estimate
from factory.job.job import Job
from factory.runs.prepare import prepare
from factory.runs.probes import PROBES_PER_TASK, judge_probes, teacher_probes
from factory.teachers.demo import demo_teacher

MakeJob = Callable[..., Job]
RUBRIC = "Grade {{ answer }} to {{ prompt }}: {{ reasoning }}"
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('Begin with a system turn') }}{% endif %}"
ONE_QUESTION = "{% if messages[-2].role == 'assistant' %}{{ raise_exception('One question only') }}{% endif %}"


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    write_task(tmp_path, judge_j2=RUBRIC)
    return tmp_path


def model_with(template: str, folder: Path) -> str:
    """What a plan reads of a model: the demo teacher's files but for its weights, with another chat template."""
    folder.mkdir()
    for path in Path(demo_teacher()).glob("*.json"):
        shutil.copy(path, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(folder)


def test_a_judge_is_asked_about_the_reference_solution(judged: Path, make_job: MakeJob) -> None:
    prepared = prepare(make_job(judge={}), judged)
    questions = judge_probes(prepared)
    assert len(questions) == PROBES_PER_TASK
    asked = teacher_probes(prepared)
    # the same teacher judges, so it is asked both
    assert [probe.task for probe in asked] == ["adding"] * PROBES_PER_TASK + ["adding.judge"] * PROBES_PER_TASK
    scenario = json.loads(asked[0].scenario)
    total = scenario["a"] + scenario["b"]
    told = f'Grade {{"total":{total},"words":"done"}} to {asked[0].messages[-1]["content"]}: {scenario["a"]} and'
    assert questions[0].messages[0]["content"].startswith(told)


def test_without_a_solution_it_is_asked_about_an_answer_of_the_right_form(judged: Path, make_job: MakeJob) -> None:
    # no answer of the task can say so large a total, so its solve fails
    (judged / "rows.jsonl").write_text('{"a": 2000}\n' * 3, encoding="utf-8")
    sourced = {"name": "adding", "count": "all", "source": {"path": str(judged / "rows.jsonl")}}
    unsolved = judge_probes(prepare(make_job(judge={}, tasks=[sourced]), judged))
    write_task(judged, judge_j2=RUBRIC, schema=SCHEMA.partition("def solve")[0])
    unsolvable = judge_probes(prepare(make_job(judge={}), judged))
    assert (len(unsolved), len(unsolvable)) == (3, PROBES_PER_TASK)
    answers = [probe.messages[0]["content"].partition(" to ")[0] for probe in [*unsolved, *unsolvable]]
    assert all(set(json.loads(answer.removeprefix("Grade "))) == {"total", "words"} for answer in answers)


def test_a_teacher_that_repairs_is_tried_on_that_too(workspace: Path, make_job: MakeJob) -> None:
    def roles(**validation: object) -> set[tuple[str, ...]]:
        prepared = prepare(make_job(validation=validation), workspace)
        return {tuple(turn["role"] for turn in probe.messages) for probe in teacher_probes(prepared)}

    plain, repaired = ("system", "user"), ("system", "user", "assistant", "user")
    assert roles() == roles(retry="repair") == roles(retries=1) == {plain}
    assert roles(retries=1, retry="repair") == {plain, repaired}


def test_a_plan_refuses_a_judge_whose_template_does_not_take_its_questions(judged: Path, make_job: MakeJob) -> None:
    model = model_with(NEEDS_SYSTEM + TURNS, judged / "model")
    job = make_job(judge={"teacher": {"model": model}})
    with pytest.raises(TeacherError, match=r"^judge\.teacher\.model .*: Begin with a system turn"):
        estimate(job, judged, judged / "out")
    # as the teacher of the tasks, which have a system turn, the same model is right
    estimate(make_job(teacher={"model": model}, signals={"top_k": 2}), judged, judged / "out")


def test_a_plan_refuses_a_teacher_that_cannot_repair(workspace: Path, make_job: MakeJob) -> None:
    model = model_with(ONE_QUESTION + TURNS, workspace / "model")
    sections = {"teacher": {"model": model}, "signals": {"top_k": 2}}
    estimate(make_job(**sections), workspace, workspace / "out")
    with pytest.raises(TeacherError, match=r"^teacher\.model .*: One question only"):
        estimate(make_job(validation={"retries": 1, "retry": "repair"}, **sections), workspace, workspace / "out")
