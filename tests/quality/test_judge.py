"""Judges: the rubric's prompt, the verdict, the threshold, and a judge inside a whole run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task
from dataset_support import make_generation, make_prompt, read_table

from factory.errors import JobError
from factory.job.gates import JudgeConfig
from factory.job.job import Job
from factory.quality.judge import VERDICT_SCHEMA, Judge, judge_id, open_judges
from factory.records import Generation, Prompt, Record, Rejection
from factory.runs.run import run
from factory.tasks.tasks import discover

MakeJob = Callable[..., Job]
RUBRIC = "Grade {{ answer }} to {{ prompt }} ({{ level }}, {{ scenario.a }}): {{ reasoning or 'none' }}{{ style.tone }}"


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    write_task(tmp_path, judge_j2=RUBRIC)
    return tmp_path


def open_judge(workspace: Path, job: Job, **config: Any) -> Judge:
    job = job.model_copy(update={"judge": JudgeConfig(**config)})
    return open_judges(job, discover(workspace).tasks)["adding"]


def make_record(**prompt: Any) -> Record:
    generation = make_generation(1, reasoning="I add.", answer_text='{"total":3}')
    return Record(make_prompt(0, scenario='{"a":1,"b":2}', **prompt), generation, '{"total":3}', 1.0)


def verdict_of(text: str, **changed: Any) -> Generation:
    return make_generation(3, reasoning=None, answer_text=text, answer_start=0, **changed)


def ask(judge: Judge, record: Record) -> Prompt:
    question = judge.ask(record)
    assert isinstance(question, Prompt)
    return question


def test_the_rubric_sees_the_row(judged: Path, make_job: MakeJob) -> None:
    question = ask(open_judge(judged, make_job(), max_tokens=99, temperature=0.3), make_record())
    assert question.messages == ({"role": "user", "content": 'Grade {"total":3} to question 0 (easy, 1): I add.'},)
    assert (question.task, question.sampling.max_tokens, question.sampling.temperature) == ("adding.judge", 99, 0.3)
    assert question.id == judge_id("id0", 0)
    assert question.attempt == 0


def test_each_attempt_has_a_question_of_its_own(judged: Path, make_job: MakeJob) -> None:
    judge = open_judge(judged, make_job())
    assert ask(judge, make_record()).id != ask(judge, make_record(attempt=1)).id


@pytest.mark.parametrize(("score", "share"), [(1, 0.0), (2, 0.25), (3, 0.5), (4, 0.75), (5, 1.0)])
def test_scores_are_brought_to_one(judged: Path, make_job: MakeJob, score: int, share: float) -> None:
    judge, record = open_judge(judged, make_job(), threshold=0.5), make_record()
    text = json.dumps({"reasoning": "fine", "score": score})
    outcome = judge.conclude(record, ask(judge, record), verdict_of(text))
    assert outcome.verdict is not None
    assert (outcome.verdict.score, outcome.verdict.reasoning) == (share, "fine")
    assert isinstance(outcome, Rejection) is (share < 0.5)
    if isinstance(outcome, Rejection):
        assert (outcome.stage, outcome.reason, outcome.answer) == ("judge", "below_threshold", '{"total":3}')


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", '{"score": 3}', '{"reasoning": "x", "score": 6}', '{"reasoning": "x", "score": "3"}', "[]"],
)
def test_no_verdict_gates_only_where_a_bound_is_set(judged: Path, make_job: MakeJob, text: str) -> None:
    record = make_record()
    lenient, strict = (open_judge(judged, make_job(), threshold=threshold) for threshold in (0.0, 0.5))
    kept = lenient.conclude(record, ask(lenient, record), verdict_of(text))
    assert isinstance(kept, Record)
    assert kept.verdict is not None
    assert kept.verdict.score is None
    refused = strict.conclude(record, ask(strict, record), verdict_of(text))
    assert isinstance(refused, Rejection)
    assert refused.reason == "no_verdict"


def test_a_rubric_that_fails_on_a_row_is_an_error_of_that_row(tmp_path: Path, make_job: MakeJob) -> None:
    write_task(tmp_path, judge_j2="{{ 1 // (scenario.a - 1) }}")
    outcome = open_judge(tmp_path, make_job()).ask(make_record())
    assert isinstance(outcome, Rejection)
    assert (outcome.kind, outcome.stage) == ("error", "judge")


def test_the_verdict_schema_is_bounded() -> None:
    properties = VERDICT_SCHEMA["properties"]
    assert properties["score"] == {"minimum": 1, "maximum": 5, "title": "Score", "type": "integer"}
    assert properties["reasoning"]["maxLength"] == 1000
    assert VERDICT_SCHEMA["additionalProperties"] is False


def test_a_run_judges_every_accepted_row(judged: Path, make_job: MakeJob) -> None:
    job = make_job(judge={"threshold": 0.6}, validation={"retries": 1})
    totals = run(job, judged, judged / "out")
    rows, rejected = read_table(judged / "out", "data"), read_table(judged / "out", "rejected")
    assert totals.accepted == len(rows) > 0
    assert len(rows) + len(rejected) == 20
    assert {row["judge_score"] for row in rows} <= {0.75, 1.0}
    assert all(row["judge_reasoning"] for row in rows)
    assert {(row["stage"], row["reason"]) for row in rejected} <= {("judge", "below_threshold")}
    assert any(row["attempt"] for row in rows)
    manifest = json.loads((judged / "out" / "manifest.json").read_text())
    assert manifest["judge"]["model"]
    assert manifest["job"]["judge"]["threshold"] == 0.6


def test_a_judge_of_its_own_gives_the_same_rows_after_any_cut(judged: Path, make_job: MakeJob) -> None:
    job = make_job(judge={"teacher": {"backend": "scripted", "model": "critic", "in_flight": 3}})
    totals = run(job, judged, judged / "out")
    assert totals.accepted == 20
    assert not (judged / "out" / ".judge").exists()
    manifest = json.loads((judged / "out" / "manifest.json").read_text())
    assert manifest["judge"]["model"] == "critic"


def test_a_judge_without_any_rubric_is_told(workspace: Path, make_job: MakeJob) -> None:
    with pytest.raises(JobError, match=r"judge: no task of the job has a rubric \(judge.j2\): adding"):
        run(make_job(judge={}), workspace, workspace / "out")
