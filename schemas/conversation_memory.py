"""Conversation memory: after several sessions, answer a request that needs what was told earlier, or was forgotten.

Trains knowing which fact is current: told once, changed, taken back, told again after it was forgotten; whose it is;
and that what the user asked to forget, or never told, is not there. Levels grow in sessions, in facts of others, and
in what happened to the fact asked for (`LEVELS` in `_conversation_memory_talk.py`).
"""

import re
from collections.abc import Iterator
from random import Random
from typing import Annotated

from pydantic import Field

from ._conversation_memory_talk import LEVELS, Expected, Scenario, Step, draw_conversation

__all__ = ["Answer", "Scenario", "check", "sample", "solve"]

Answer = Annotated[str, Field(min_length=1, max_length=600)]
_MAX_WORDS = 40
_DENIAL = re.compile(
    r"\b(not|no longer|never|nothing|cannot|can't|don't|haven't|isn't|didn't|wasn't|forgot|forgotten|deleted)\b",
    re.IGNORECASE,
)


def _holds(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def check(scenario: Scenario, answer: str) -> list[str]:
    text = answer.replace("\u2019", "'")
    findings = [*_expected_findings(scenario.expected, text)] if scenario.expected is not None else []
    if len(text.split()) > _MAX_WORDS:
        findings.append(f"too_long: got {len(text.split())} words, allowed {_MAX_WORDS}")
    if "\n" in text.strip():
        findings.append("one_paragraph: the reply is one paragraph")
    return findings


def _expected_findings(expected: Expected, text: str) -> Iterator[str]:
    for value in expected.forgotten:
        if _holds(text, value):
            yield f"forgotten_used: {value!r} was to be forgotten"
    for value in expected.outdated:
        if _holds(text, value):
            yield f"outdated_fact: {value!r} no longer holds"
    for value in expected.others:
        if _holds(text, value):
            yield f"other_fact: {value!r} is of something or somebody else"
    for value in expected.values:
        if not _holds(text, value):
            yield f"fact_missing: {value!r} is not in the reply"
    if not expected.values and not _DENIAL.search(text):
        yield f"unknown_unsaid: {', '.join(expected.asked)} is not known, and the reply must say so"
    if not expected.values and "?" not in text:
        yield "not_asked: what is not known is to be asked for"


def sample(rng: Random, level: str) -> Scenario:
    return draw_conversation(rng, LEVELS[level])


def _tell(step: Step, asked: tuple[str, ...]) -> str:
    # whether it is the fact that is needed is decided beside it, and what holds now only among those that are
    phrase = f" {step.phrase}" if len(asked) > 1 else ""
    needed = "yes" if f"{step.whose} {step.phrase}" in asked else "no"
    return f"{step.session} {step.whose}{phrase}, {needed}: {'forgotten' if step.value is None else step.value}"


def solve(scenario: Scenario) -> tuple[str, str]:
    expected = scenario.expected
    if expected is None:
        raise ValueError("expected: a conversation of one's own has no reference reply")
    told = [f"Needed: {' and '.join(expected.asked)}."]
    # of everybody who has such a thing
    near = [step for step in expected.steps if any(asked.endswith(f" {step.phrase}") for asked in expected.asked)]
    # whose and what alone: sentences that begin alike teach a small model to loop
    steps = "; ".join(_tell(step, expected.asked) for step in near)
    told += [f"By session: {steps}."] if near else []
    told += [f"Now: {', '.join(expected.values)}." if expected.values else "Not known: say so and ask."]
    return " ".join(told), expected.reply
