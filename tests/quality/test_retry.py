"""Asking again: who gets another attempt, and what it is asked."""

from dataclasses import replace
from typing import Any

import pytest
from dataset_support import make_generation, make_prompt

from factory.job.job import Job
from factory.messages import Message
from factory.quality.retry import MAX_ANSWER, MAX_FINDINGS, ask_again, describe_findings
from factory.records import Prompt, Rejection, Sampling

TASKS = [{"name": "adding", "count": 1}]


def make_job(**sections: Any) -> Job:
    return Job.model_validate({"out": "out", "tasks": TASKS, "validation": {"retries": 2}} | sections)


def rejection(stage: Any = "check", reason: str = "wrong_total", kind: Any = "rejected", **prompt: Any) -> Rejection:
    generation = make_generation(1, answer_text='{"total":1}', answer_start=1)
    return Rejection(make_prompt(0, **prompt), generation, stage, reason, ("wrong_total: got 1",), kind)


@pytest.mark.parametrize(
    ("stage", "reason", "kind", "attempt", "again"),
    [
        ("parse", "no_answer", "rejected", 0, True),
        ("teacher", "truncated", "rejected", 1, True),
        ("schema", "missing", "rejected", 2, False),
        ("check", "check_raised", "error", 0, False),
        ("prompt", "prompt_too_long", "rejected", 0, False),
        ("teacher", "engine_crash", "rejected", 0, False),
        ("filter", "refusal", "rejected", 0, True),
        ("filter", "contaminated", "rejected", 0, False),
        ("filter", "over_budget", "rejected", 0, False),
        ("judge", "below_threshold", "rejected", 1, True),
    ],
)
def test_only_an_answer_at_fault_is_asked_for_again(stage: Any, reason: str, kind: Any, attempt: int, again: bool):
    assert (ask_again(make_job(), rejection(stage, reason, kind, attempt=attempt)) is not None) is again


def test_resampling_changes_the_seed_alone() -> None:
    failed = rejection()
    prompt = ask_again(make_job(), failed)
    assert prompt is not None
    assert prompt.seed != failed.prompt.seed
    assert prompt.messages == failed.prompt.messages
    assert not prompt.repaired
    assert prompt.history == (failed.as_attempt(),)


def repair(failed: Rejection) -> Prompt:
    prompt = ask_again(make_job(validation={"retries": 2, "retry": "repair"}), failed)
    assert prompt is not None
    return prompt


def test_a_repair_shows_the_answer_and_what_is_wrong_with_it() -> None:
    failed = rejection()
    prompt = repair(failed)
    *request, answer, feedback = prompt.messages
    assert tuple(request) == failed.prompt.messages
    assert prompt.repaired
    assert prompt.attempt == 1
    assert answer == {"role": "assistant", "content": '{"total":1}'}
    assert feedback["role"] == "user"
    assert "- wrong_total: got 1" in feedback["content"]
    assert prompt.turns[-1] == failed.prompt.messages[-1]


def test_a_second_repair_replaces_the_first() -> None:
    system: Message = {"role": "system", "content": "be right"}
    failed = rejection(messages=(system, {"role": "user", "content": "1 + 1"}))
    second = repair(replace(failed, prompt=repair(failed)))
    assert [message["role"] for message in second.messages] == ["system", "user", "assistant", "user"]
    assert second.attempt == 2
    assert len(second.history) == 2
    assert second.turns[-1]["content"] == "1 + 1"


def test_what_wrote_no_answer_is_resampled() -> None:
    failed = rejection("teacher", "truncated")
    empty = replace(failed, generation=make_generation(1, answer_text=""))
    assert not repair(empty).repaired
    assert not repair(replace(failed, generation=None)).repaired


def test_feedback_is_bounded() -> None:
    findings = tuple(f"wrong: {number}" for number in range(100))
    failed = replace(rejection(), findings=findings, generation=make_generation(1, answer_text="x" * 100_000))
    assert describe_findings(failed).count("\n- ") == MAX_FINDINGS
    assert len(repair(failed).messages[-2]["content"]) == MAX_ANSWER
    assert "- wrong_total" in describe_findings(replace(failed, findings=()))


def test_a_row_over_the_budget_is_asked_with_less_reasoning() -> None:
    job = make_job(student={"max_tokens": 16, "over": "shorten"})
    failed = rejection("filter", "over_budget", sampling=Sampling(thinking_tokens=100))
    once = ask_again(job, failed)
    assert once is not None
    assert once.sampling.thinking_tokens == 50
    assert once.messages == failed.prompt.messages
    twice = ask_again(job, replace(failed, prompt=once))
    assert twice is not None
    assert twice.sampling.thinking_tokens == 25
    unbounded = replace(failed, prompt=make_prompt(0), generation=make_generation(3, answer_start=3))
    first = ask_again(job, unbounded)
    assert first is not None
    assert first.sampling.thinking_tokens == 1
