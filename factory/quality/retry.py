"""Asking again: which rejected answers deserve another attempt, and what that attempt is asked.

`resample` asks the same request with another seed. `repair` shows the teacher its answer and what is wrong with it. A
row over the student's budget is asked again with half the tokens for reasoning.
"""

from contextlib import suppress
from dataclasses import replace

from factory.job.job import Job
from factory.quality.parse import OVER_BUDGET
from factory.quality.withhold import Cover, covers
from factory.records import Generation, Prompt, Rejection, as_turn

HOPELESS_REASONS = ("engine_crash", "contaminated")  # another answer would change nothing
MAX_FINDINGS = 10
MAX_ANSWER = 8000  # characters of the failed answer that the teacher is shown


def ask_again(job: Job, rejection: Rejection) -> Prompt | None:
    """The prompt of the next attempt, or None where the rejection stands."""
    if not _deserves_retry(rejection) or rejection.prompt.attempt >= job.validation.retries:
        return None
    prompt = rejection.prompt.again(rejection.as_attempt(whole=job.samples.keep == "pair"))
    if rejection.reason == OVER_BUDGET:
        return _shorten(prompt, rejection) if job.student is not None and job.student.over == "shorten" else None
    # an answer that never came cannot be repaired: the request is asked again as it was
    if job.validation.retry == "repair" and rejection.generation is not None and rejection.generation.answer_text:
        return _repair(job, prompt, rejection.generation, describe_findings(rejection))
    return prompt


def _repair(job: Job, prompt: Prompt, generation: Generation, told: str) -> Prompt:
    """What the teacher is shown stands in the row's `prompt` and its token ids, of an accepted row too."""
    cover = Cover(covers(job.filters))
    answer, told = cover.text(generation.answer_text), cover.text(told)
    if cover.counts and job.filters.rejected_pii == "dropped":
        return prompt
    turn = {"role": "assistant", "content": answer[:MAX_ANSWER]}
    if generation.calls and not cover.counts and len(answer) <= MAX_ANSWER:
        # as calls, which the model's template writes in its own way; what cannot be read as such, as it was written
        with suppress(ValueError):
            turn = as_turn(generation.content, generation.calls)
    return prompt.repair(turn, told)


def _deserves_retry(rejection: Rejection) -> bool:
    """The answer was at fault, not the prompt or our own code."""
    if rejection.generation is not None and rejection.generation.failure == OVER_BUDGET:
        return False  # the prompt alone was too long
    return rejection.kind != "error" and rejection.stage != "prompt" and rejection.reason not in HOPELESS_REASONS


def _shorten(prompt: Prompt, rejection: Rejection) -> Prompt:
    assert rejection.generation is not None
    # reasoning is what can be shortened by force; the answer has the length that the task needs
    budget = prompt.sampling.thinking_tokens or rejection.generation.answer_start
    return replace(prompt, sampling=replace(prompt.sampling, thinking_tokens=budget // 2))


def describe_findings(rejection: Rejection) -> str:
    """The user turn that asks for a repaired answer."""
    findings = rejection.findings[:MAX_FINDINGS] or (rejection.reason,)
    lines = ["That answer was not accepted:", *(f"- {finding}" for finding in findings)]
    return "\n".join([*lines, "Answer the request again, whole and in the form it asks for."])
