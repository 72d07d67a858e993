"""Questions: answer from numbered passages, shortly, and name the passages it stands on; or say that they do not say.

Trains reading before answering. Traps: the answer is not there though a neighbour has it, two passages disagree, the
newer of two holds, a number must be added, a name leads to another passage. `check` compares status, the value and the
sources with what the passages were written from; where a user's own passages come without `expected`, it holds every
figure of the answer against the passages it names.
"""

import re
from collections.abc import Iterator
from random import Random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ._questions_passages import LEVELS, Evidence, Expected, Scenario, Status, draft_questions

__all__ = ["Answer", "Scenario", "check", "sample", "solve"]

_MAX_WORDS = 25
_DENIAL = re.compile(r"\b(not|no|none|nothing|nowhere|cannot|can't|don't|doesn't|isn't|unknown)\b", re.IGNORECASE)


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    status: Status
    answer: str = Field(min_length=1, max_length=240)
    sources: list[Annotated[int, Field(ge=1, le=50)]] = Field(max_length=20)


def _figures(text: str) -> set[str]:
    """Numbers as digits alone: 1,200 is 1200."""
    return {re.sub(r"(?<=\d),(?=\d{3})", "", figure) for figure in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)}


def _holds(text: str, value: str) -> bool:
    if value.isdecimal():
        return value in _figures(text)
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def check(scenario: Scenario, answer: Answer) -> list[str]:
    findings = [*_form_findings(scenario, answer)]
    if scenario.expected is not None:
        return [*_expected_findings(scenario.expected, answer), *findings]
    return [*findings, *_passage_findings(scenario, answer)]


def _form_findings(s: Scenario, answer: Answer) -> Iterator[str]:
    words = len(answer.answer.split())
    if words > _MAX_WORDS:
        yield f"too_long: got {words} words, allowed {_MAX_WORDS}"
    if answer.sources != sorted(set(answer.sources)):
        yield f"sources_order: got {answer.sources}, each passage once and ascending"
    beyond = [number for number in answer.sources if number > len(s.passages)]
    if beyond:
        yield f"no_such_passage: {beyond[0]}, there are {len(s.passages)}"
    if answer.status == "unknown":
        if answer.sources:
            yield f"source_of_nothing: got {answer.sources}, an unknown answer stands on no passage"
        if not _DENIAL.search(answer.answer) or _figures(answer.answer):
            yield "unknown_unsaid: the answer must say that the passages do not say it, without a figure"


def _expected_findings(expected: Expected, answer: Answer) -> Iterator[str]:
    if answer.status != expected.status:
        yield f"wrong_status: got {answer.status}, expected {expected.status}"
        return
    missing = [value for value in expected.values if not _holds(answer.answer, value)]
    if missing:
        yield f"wrong_answer: {missing[0]!r} is not in it"
    told = [evidence.value for evidence in expected.evidence if evidence.value is not None]
    # of a sum the terms may be told too
    others = expected.others if expected.asked != "sum" else ()
    strange = [value for value in others if _holds(answer.answer, value)]
    strange += sorted(_figures(answer.answer) - _figures(" ".join((*expected.values, *told))))
    if strange:
        yield f"strange_value: {strange[0]!r} is not what was asked"
    lacking, needless = (
        sorted(set(a) - set(b)) for a, b in ((expected.sources, answer.sources), (answer.sources, expected.sources))
    )
    if lacking:
        yield f"source_missing: passage {lacking[0]} is needed, got {answer.sources}"
    elif needless:
        yield f"source_needless: passage {needless[0]} says nothing of it, expected {list(expected.sources)}"


def _passage_findings(s: Scenario, answer: Answer) -> Iterator[str]:
    """What can be said of an answer to a question whose right one nobody has told."""
    if answer.status == "unknown":
        return
    if len(answer.sources) < (2 if answer.status == "conflict" else 1):
        yield f"source_missing: an answer that is {answer.status} names more passages, got {answer.sources}"
    named = [s.passages[number - 1].text for number in answer.sources if number <= len(s.passages)]
    known = {figure for text in named for figure in _figures(text)}
    sums = {str(int(a) + int(b)) for a in known for b in known if a.isdecimal() and b.isdecimal()}
    for figure in sorted(_figures(answer.answer) - known - sums):
        yield f"strange_value: {figure!r} is not in the passages named"


def sample(rng: Random, level: str) -> Scenario:
    return draft_questions(rng, LEVELS[level])


def _tell(s: Scenario, expected: Expected, evidence: Evidence) -> str:
    date = s.passages[evidence.passage - 1].date
    dated = f" of {date}" if date is not None and expected.asked in ("update", "conflict") else ""
    value = f"{evidence.value}" if evidence.value is not None else f"no {expected.brief}"
    # said beside the name, so that what follows chooses among those that are asked for and compares no names
    asked = "yes" if evidence.place in s.question else "no"
    return f"Passage {evidence.passage}{dated}: {evidence.place}, {asked}: {value}."


def _add(values: list[str]) -> Iterator[str]:
    total = int(values[0])
    for value in values[1:]:
        yield f"{total} + {value} = {total + int(value)}."
        total += int(value)


def solve(scenario: Scenario) -> tuple[str, Answer]:
    expected = scenario.expected
    if expected is None:
        raise ValueError("expected: a question of one's own has no reference answer")
    told = [f"Asked: {expected.brief}."]
    told += [_tell(scenario, expected, evidence) for evidence in expected.evidence]
    used = [e for e in expected.evidence if e.passage in expected.sources]
    if expected.asked == "sum":
        told += _add([e.value for e in used if e.value is not None])
    elif expected.asked == "first":
        years = sorted(e.value for e in used if e.value is not None)
        told.append(f"{years[0]} is before {years[1]}: {expected.values[0]}.")
    elif expected.asked == "update":
        told.append(f"Passage {expected.sources[0]} is the newest of it: {expected.values[0]}.")
    elif expected.asked == "conflict":
        told.append(f"{expected.values[0]} is not {expected.values[1]}, and neither is newer: conflict.")
    elif expected.asked == "unknown":
        told.append("None says it of this place: unknown.")
    else:
        told.append(f"So {expected.values[0]}.")
    sources = list(expected.sources)
    told.append(f"Passages: {', '.join(map(str, sources))}." if sources else "No passage.")
    return " ".join(told), Answer(status=expected.status, answer=expected.sentence, sources=sources)
