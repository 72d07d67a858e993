"""Withholding: what becomes of personal data in answers that are not accepted, by `filters.rejected_pii`.

A row that the filter `pii` rejects still holds what it was rejected for, and one that its check rejects was never
looked at. All that a rejected row or the worse side of a pair carries of an answer is covered here, before it is
written: text, reasoning, answer, findings, a judge's words, earlier attempts. Token ids spell the text out again, so
each becomes HIDDEN; their number stays, as all counts do. What a repair shows the teacher is covered in `retry`.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from factory.job.data import PersonalKind
from factory.job.gates import FiltersConfig
from factory.records import Generation, Outcome, Pair, Prompt, Rejection
from factory.texts.personal import Known, find_personal, resolve_kinds, scrub, scrub_row
from factory.texts.texts import every_text

DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"  # reasons whose finding is the name of another row
HIDDEN = -1  # in place of a token id; no vocabulary has it
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")  # an address may stand in JSON as jane\u0040example.com


class Cover:
    """Texts of one row with typed placeholders for what is personal, the same one for the same value in all of them."""

    def __init__(self, kinds: tuple[PersonalKind, ...]) -> None:
        self.kinds = kinds
        self.known: Known = {}
        self.counts: Counter[str] = Counter()

    def text(self, text: str) -> str:
        covered, counts = scrub(ESCAPE.sub(_read_escape, text), self.kinds, self.known)
        self.counts += counts
        # as it was where nothing is found, escapes too
        return covered if counts else text

    def texts(self, texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(self.text, texts))

    def json(self, text: str) -> str:
        """JSON stays JSON: its strings are covered, numbers are left as they are."""
        try:
            row, counts = scrub_row({"": json.loads(text)}, self.kinds, self.known)
        except (ValueError, RecursionError):
            return self.text(text)
        self.counts += counts
        return json.dumps(row[""], ensure_ascii=False, separators=(",", ":")) if counts else text


def covers(config: FiltersConfig) -> tuple[PersonalKind, ...]:
    """The kinds that a job does not want in what is not accepted; none where it keeps all."""
    return () if config.rejected_pii == "kept" else resolve_kinds(config.pii)


def withhold(
    config: FiltersConfig, outcomes: Sequence[Outcome], pairs: Sequence[Pair]
) -> tuple[list[Outcome], list[Pair]]:
    """The same outcomes and pairs without the personal data in what was not accepted; with "dropped" fewer pairs."""
    kinds, drops = covers(config), config.rejected_pii == "dropped"
    if not kinds:
        return list(outcomes), list(pairs)
    covered = [_cover(o, kinds, drops) if isinstance(o, Rejection) else o for o in outcomes]
    sides = [(right, _cover(wrong, kinds, drops) if isinstance(wrong, Rejection) else wrong) for right, wrong in pairs]
    # a pair needs two texts; one of which nothing is left teaches nothing
    return covered, [pair for pair in sides if pair[1].generation is None or pair[1].generation.text]


def _cover(rejection: Rejection, kinds: tuple[PersonalKind, ...], drops: bool) -> Rejection:
    cover, prompt, generation, verdict = Cover(kinds), rejection.prompt, rejection.generation, rejection.verdict
    history = tuple(
        replace(attempt, text=cover.text(attempt.text), findings=cover.texts(attempt.findings))
        for attempt in prompt.history
    )
    covered = replace(
        rejection,
        prompt=replace(prompt, history=history),
        generation=None if generation is None else _cover_generation(generation, cover),
        answer=None if rejection.answer is None else _cover_answer(prompt, rejection.answer, cover),
        findings=rejection.findings if _names_a_row(rejection) else cover.texts(rejection.findings),
        verdict=None if verdict is None else replace(verdict, reasoning=cover.text(verdict.reasoning)),
    )
    missed = _told(rejection) and (not cover.counts or _still_holds(covered, kinds))
    if not cover.counts and not missed:
        return rejection
    return _drop(covered) if drops or missed else covered


def _cover_answer(prompt: Prompt, answer: str, cover: Cover) -> str:
    return cover.text(answer) if prompt.form == "text" else cover.json(answer)


def _cover_generation(generation: Generation, cover: Cover) -> Generation:
    reasoning = generation.reasoning
    return replace(
        generation,
        text=cover.text(generation.text),
        reasoning=None if reasoning is None else cover.text(reasoning),
        answer_text=cover.text(generation.answer_text),
        failure_detail=cover.text(generation.failure_detail),
        completion_token_ids=np.full_like(generation.completion_token_ids, HIDDEN),
    )


def _names_a_row(rejection: Rejection) -> bool:
    """Whether its finding is of ours and holds the name of another row, in which digits may stand like those of a
    telephone number."""
    return rejection.stage == "filter" and rejection.reason in (DUPLICATE, NEAR_DUPLICATE)


def _told(rejection: Rejection) -> bool:
    """Whether the filter found something: what it sees across two strings of an answer no placeholder can cover."""
    return any(finding.startswith("pii:") for finding in rejection.findings)


def _still_holds(rejection: Rejection, kinds: tuple[PersonalKind, ...]) -> bool:
    value = None if rejection.answer is None else rejection.prompt.value(rejection.answer)
    texts = [text for _, text in every_text(value)]
    return bool(find_personal("\n".join(texts), kinds))


def _drop(rejection: Rejection) -> Rejection:
    """Nothing of what the teacher or a judge wrote; why it was rejected stays, covered."""
    generation, verdict = rejection.generation, rejection.verdict
    history = tuple(replace(attempt, text="") for attempt in rejection.prompt.history)
    return replace(
        rejection,
        prompt=replace(rejection.prompt, history=history),
        generation=None if generation is None else replace(generation, text="", reasoning=None, answer_text=""),
        answer=None,
        verdict=None if verdict is None else replace(verdict, reasoning=""),
    )


def _read_escape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character.isprintable() and character not in '"\\' else match[0]
