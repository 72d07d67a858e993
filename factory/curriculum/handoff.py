"""Hand-off: which prompts a small model should pass on to a larger one, by how the teacher fared with them."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from factory.curriculum.config import HandOffConfig
from factory.signals import Array

NEVER_RIGHT, TOO_LONG, PASS_RATE, CONFIDENCE = "never_right", "too_long", "pass_rate", "confidence"
RIGHT_BUT_LEFT_OUT: Final = (b"filter", b"samples")  # stages that reject right answers
OVER_BUDGET: Final = b"over_budget"  # at stage filter: longer than the job's [student] allows
TEACHERS_FAULT: Final = (b"truncated", b"empty")  # at stage teacher; all else there is the engine's fault


@dataclass(frozen=True, slots=True)
class Attempts:
    """Every row of a dataset, R in all, accepted ones first, as what it says of its prompt."""

    prompt_R: Array  # uint64, the same for all rows of a prompt
    accepted_R: Array  # bool
    right_R: Array  # bool: accepted, or left out for another reason than being wrong
    answered_R: Array  # bool: the teacher was asked, and nothing broke
    fits_R: Array  # bool: accepted and short enough for the student
    over_R: Array  # bool: right, but too long for it
    pass_rate_R: Array  # float32, NaN where unknown
    confidence_R: Array


@dataclass(frozen=True, slots=True)
class Prompts:
    """The Q prompts that were answered at all, in an order as good as random that rows added later do not change."""

    row_Q: Array  # a row that holds the prompt, its first accepted one where there is one
    reason_Q: Array  # why it is handed off, None where it is not
    pass_rate_Q: Array
    confidence_Q: Array  # mean over the accepted rows
    unanswered: int  # prompts left out: none of their rows was ever answered


def was_answered(kind: Array, stage: Array, reason: Array) -> Array:
    """Which rejected rows tell of the teacher: not those of broken code, unmade prompts or a failing engine."""
    asked = (kind != b"error") & (stage != b"prompt")
    told: Array = asked & ((stage != b"teacher") | np.isin(reason, TEACHERS_FAULT))
    return told


def explain_rows(pass_rate: Array, confidence: Array, config: HandOffConfig) -> Array:
    """Why each row is handed off, None where it is not. What is not known is no reason."""
    reasons = np.full(len(pass_rate), None, object)
    with np.errstate(invalid="ignore"):
        reasons[confidence < np.float32(config.min_confidence)] = CONFIDENCE
        reasons[pass_rate < np.float32(config.min_pass_rate)] = PASS_RATE
    return reasons


def explain_prompts(rows: Attempts, config: HandOffConfig) -> Prompts:
    """What the rows of each prompt say of it together."""
    keys, prompt_R = np.unique(rows.prompt_R, return_inverse=True)
    count = len(keys)

    def any_of(flags: Array) -> Array:
        return np.bincount(prompt_R, flags, count) > 0

    # the same in all rows that know it; fmax passes over NaN
    pass_rate_Q = np.full(count, np.nan, np.float32)
    np.fmax.at(pass_rate_Q, prompt_R, rows.pass_rate_R)
    known = rows.accepted_R & ~np.isnan(rows.confidence_R)
    sums, counts = (np.bincount(prompt_R[known], w, count) for w in (rows.confidence_R[known], None))
    confidence_Q = np.divide(sums, counts, out=np.full(count, np.nan), where=counts > 0).astype(np.float32)
    reason_Q = explain_rows(pass_rate_Q, confidence_Q, config)
    # from the weakest reason to the strongest: the last one written stands
    reason_Q[any_of(rows.over_R) & ~any_of(rows.fits_R)] = TOO_LONG
    reason_Q[~any_of(rows.right_R)] = NEVER_RIGHT
    # accepted rows stand first, so the least number is an accepted row's where a prompt has any
    first_Q = np.full(count, len(prompt_R))
    np.minimum.at(first_Q, prompt_R[rows.answered_R], np.flatnonzero(rows.answered_R))
    there = first_Q < len(prompt_R)
    unanswered = count - int(there.sum())
    return Prompts(first_Q[there], reason_Q[there], pass_rate_Q[there], confidence_Q[there], unanswered)
