"""Judging: a second prompt asks a model how good an accepted answer is, by the task's rubric.

The rubric is the task's `judge.j2`; the verdict is a pydantic model like any answer, grammar-constrained and validated.
A judge's prompt is an ordinary prompt to a teacher, so it is spooled, resumed and supervised like every other.
"""

import json
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from factory.hashing import content_hash, derive_seed
from factory.job.gates import JudgeConfig
from factory.job.job import Job
from factory.quality.parse import parse
from factory.records import Generation, Outcome, Prompt, Record, Rejection, Sampling, Verdict
from factory.tasks.calls import read_scenario
from factory.tasks.faults import TaskFault
from factory.tasks.render import judge_messages, open_environment
from factory.tasks.tasks import JUDGE, Task

BEST_SCORE: Final = 5


class VerdictAnswer(BaseModel):
    """What a judge answers with: why, then a score from 1 (useless) to 5 (nothing to better)."""

    model_config = ConfigDict(extra="forbid")

    # before the score, because a grammar keeps the order: a model that has said why scores better
    reasoning: Annotated[str, Field(max_length=1000)]
    score: Annotated[int, Field(ge=1, le=BEST_SCORE)]


VERDICT_SCHEMA: Final[dict[str, Any]] = VerdictAnswer.model_json_schema()


def judge_name(task: str) -> str:
    """What a task's judge is called where schemas are looked up by name; no task can have such a name."""
    return f"{task}.judge"


def judge_id(prompt_id: str, attempt: int) -> str:
    """Id of the prompt that asks about one attempt's answer."""
    return content_hash(["judge", prompt_id, attempt])


@dataclass(frozen=True, slots=True)
class Judge:
    """One task's judge."""

    task: Task
    environment: ImmutableSandboxedEnvironment
    config: JudgeConfig

    def ask(self, record: Record) -> Prompt | Rejection:
        """The prompt that asks about an accepted answer, or the row's error where the rubric cannot be rendered."""
        try:
            return self.question(record.prompt, record.generation.reasoning or "", record.answer)
        except TaskFault as error:
            return reject(record, error.reason, str(error), "error")

    def question(self, prompt: Prompt, reasoning: str, answer: str) -> Prompt:
        """The prompt that asks about an answer to another prompt. Raises TaskFault."""
        texts = {"reasoning": reasoning, "answer": answer}
        scenario = read_scenario(self.task, prompt.scenario)
        messages = judge_messages(self.environment, self.task, prompt.level, prompt.turns, texts, scenario)
        name = judge_id(prompt.id, prompt.attempt)
        return replace(
            prompt,
            id=name,
            task=judge_name(self.task.name),
            messages=tuple(messages),
            seed=derive_seed(name),
            sampling=Sampling(temperature=self.config.temperature, max_tokens=self.config.max_tokens),
            # one verdict an attempt: the attempt is in the id, and a judge's answer is never asked for again
            attempt=0,
            history=(),
            keeps=False,
            form="json",
            tools="",
        )

    def conclude(self, record: Record, prompt: Prompt, generation: Generation) -> Outcome:
        """The record with its verdict, or its rejection: scored too low, or with no verdict where a bound is set."""
        verdict = read_verdict(prompt, generation)
        # a judge that says nothing usable must not cost a row, unless the job set a bar that it cannot show to pass
        if isinstance(verdict, str):
            if self.config.threshold:
                return reject(record, "no_verdict", verdict)
            return replace(record, verdict=Verdict(None, f"no verdict: {verdict}"))
        judged = replace(record, verdict=verdict)
        if verdict.score is not None and verdict.score < self.config.threshold:
            detail = f"{verdict.score:.2f}, need {self.config.threshold:g}: {verdict.reasoning}"
            return reject(judged, "below_threshold", detail)
        return judged


def reject(record: Record, reason: str, detail: str, kind: Any = "rejected") -> Rejection:
    """A record turned down by its judge."""
    return record.reject("judge", reason, (f"{reason}: {detail}", *record.findings), kind)


def read_verdict(prompt: Prompt, generation: Generation) -> Verdict | str:
    """The verdict of a judge's generation, its score brought to [0, 1]; or, as text, why there is none."""
    answer = parse(prompt, generation)
    if isinstance(answer, Rejection):
        return f"{answer.reason}: {' '.join(answer.findings)}"
    try:
        verdict = VerdictAnswer.model_validate(json.loads(answer), strict=True)
    except ValidationError as error:
        return f"not a verdict: {error.errors(include_url=False)[0]['msg']}"
    return Verdict((verdict.score - 1) / (BEST_SCORE - 1), verdict.reasoning)


def open_judges(job: Job, tasks: dict[str, Task]) -> dict[str, Judge]:
    """The judges of a job, by task: none without `[judge]`, else one for each task with a rubric."""
    if job.judge is None:
        return {}
    return {
        name: Judge(task, open_environment({JUDGE: task.judge} | task.judge_parts), job.judge)
        for name, task in tasks.items()
        if task.judge is not None
    }
