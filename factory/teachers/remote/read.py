"""Answers as rows: where the reasoning ends, which ids there are, which distributions.

What an endpoint sends is lists of log-probabilities, the sampled token's and those of the likeliest. Their ids are
exact (a vLLM server says them), or found by the bytes that each token stands for (`Spelling`). All arrays are made
here, for every dialect alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from factory.signals import Array, Logprobs, SignalSpec
from factory.teachers.chosen import beyond_mass
from factory.teachers.reasoning import KNOWN_MARKERS

# of a tail: what an endpoint writes adds up to 1 no closer, so less than this is rounding and told as this
LEAST_MASS: Final = 1e-6
LOG_OF_NOTHING: Final = -1e30
WORD: Final = re.compile(r"[a-z][a-z_]{0,39}")
FORBIDDEN: Final = -9000.0  # a vLLM server writes -9999 for the log of 0


class BadAnswer(Exception):
    """An answer that makes no row; `reason` is the rejected row's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def ended_otherwise(reason: Any) -> BadAnswer:
    """An answer that ended neither by itself nor at its length: the endpoint's own word becomes the row's reason."""
    word = reason.lower() if isinstance(reason, str) else ""
    if not WORD.fullmatch(word):
        return BadAnswer("unreadable_answer", f"the endpoint ended the answer with {str(reason)[:80]!r}")
    return BadAnswer(f"ended_by_{word}", f"the endpoint ended the answer: {word}")


class NoIds(Exception):
    """An answer whose tokens cannot be named; the message says why, and the row keeps it."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer: its id, its log-probability, and the likeliest at its place (id, log-probability)."""

    id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


def make_logprobs(tokens: Sequence[Token], signals: SignalSpec) -> Logprobs:
    """The distributions of T tokens. Raises NoIds where a place has fewer than k and the dataset's must have k."""
    count, k = len(tokens), signals.top_k
    ids_TK, values_TK = np.full((count, k), -1, np.int32), np.full((count, k), -np.inf, np.float64)
    for t, token in enumerate(tokens):
        best = sorted(token.likeliest, key=lambda pair: -pair[1])[:k]
        if len(best) < k and not signals.ragged:
            raise NoIds(f"token {t} has {len(best)} of {k} likeliest tokens")
        ids_TK[t, : len(best)] = [number for number, _ in best]
        values_TK[t, : len(best)] = [value for _, value in best]
    values_TK = np.minimum(values_TK, 0.0)
    values_TK[(values_TK <= FORBIDDEN) & (ids_TK >= 0)] = LOG_OF_NOTHING
    probs_TK = np.exp(values_TK)
    # the kept ids and all others as one: the true entropy is that or more
    rest_T = np.maximum(1 - probs_TK.sum(1), LEAST_MASS)
    entropy_T = -(probs_TK * np.where(ids_TK < 0, 0.0, values_TK)).sum(1) - rest_T * np.log(rest_T)
    if signals.keep == "top_p":
        beyond_TK = beyond_mass(probs_TK, signals.top_p)
        ids_TK[beyond_TK], values_TK[beyond_TK] = -1, -np.inf
    outside_T = 1 - np.where(ids_TK < 0, 0.0, np.exp(values_TK)).sum(1)
    tail_T = np.log(np.clip(outside_T, LEAST_MASS, 1.0))
    sampled_T = np.array([max(min(token.logprob, 0.0), LOG_OF_NOTHING) for token in tokens], np.float32)
    sampled_T[sampled_T <= FORBIDDEN] = LOG_OF_NOTHING
    with np.errstate(over="ignore"):
        kept_TK = values_TK.astype(np.float16)
    return Logprobs(sampled_T, ids_TK, kept_TK, tail_T.astype(np.float32), np.maximum(entropy_T, 0).astype(np.float32))


def no_logprobs(signals: SignalSpec) -> Logprobs | None:
    """The distributions of no token: of a row without ids, in a dataset whose rows have some."""
    return make_logprobs([], signals) if signals.top_k else None


@dataclass(frozen=True, slots=True)
class Parts:
    """An answer's texts: what the endpoint calls reasoning, or what stands between the markers in the text itself."""

    reasoning: str | None
    answer: str
    # a reasoning that has begun and not ended: there is no answer
    unclosed: bool = False


def split_text(told: str | None, content: str, markers: Sequence[tuple[str, str]]) -> Parts:
    """Reasoning and answer; `told` is the endpoint's own reasoning field, `markers` are looked for without one."""
    if told is not None:
        return Parts(told.strip("\n"), content)
    for start, end in markers:
        before, closed, after = content.partition(end)
        if closed:
            return Parts(before.strip().removeprefix(start).strip("\n"), after.lstrip("\n"))
        if content.lstrip().startswith(start):
            return Parts(content.lstrip().removeprefix(start).strip("\n"), "", unclosed=True)
    return Parts(None, content)


def text_markers(reasoning: Any) -> list[tuple[str, str]]:
    """Which markers a job's `teacher.reasoning` looks for in a text."""
    if reasoning == "off":
        return []
    if reasoning == "prompted":
        return [KNOWN_MARKERS[0]]
    return list(KNOWN_MARKERS) if reasoning == "auto" else [(reasoning.start, reasoning.end)]


def find_end(pieces: Sequence[bytes], markers: Sequence[tuple[str, str]]) -> int | None:
    """Index of the first token after the end of the reasoning, by the tokens' bytes; None where no marker ends it.

    A marker of several tokens ends with the last of them, whatever else that one holds.
    """
    whole, ends = b"", []
    for piece in pieces:
        whole += piece
        ends.append(len(whole))
    found = [whole.find(end.encode()) + len(end.encode()) for _, end in markers if end.encode() in whole]
    return int(np.searchsorted(ends, min(found))) + 1 if found else None


def as_ids(values: Any, where: str) -> Array:
    """Token ids that an endpoint sent. Raises NoIds where they are none."""
    if not isinstance(values, list) or not values or not all(type(value) is int and value >= 0 for value in values):
        raise NoIds(f"the endpoint sent no {where}")
    if max(values) >= 2**31:
        raise NoIds(f"the endpoint sent {where} beyond 32 bits")
    return np.array(values, np.int32)


def whole_number(found: Mapping[str, Any] | None, *path: str) -> int:
    """A count inside a reply; 0 where it is not there."""
    value: Any = found
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) and value >= 0 else 0
