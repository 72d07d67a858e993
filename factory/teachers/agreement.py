"""Agreement: how far the stored signals of a row are from those of a second forward, and how far they may be.

Plain arithmetic in float64. `stored` is what a dataset's files hold, `again` what another engine computes for the same
token ids, at the same positions and for the same kept ids: entry by entry both speak of one thing. Bounds belong to the
dtype of the two forwards; docs/decisions/0012-fidelity-self-test.md has what was measured.

Figures are plain floats that JSON can hold, each of one row (and layer), each the larger the worse but for cosines.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from factory.signals import Array, Logprobs

Figures = dict[str, float]

# nats; its exp() weighs nothing, and no difference to it is infinite
LOG_FLOOR: Final = -100.0
# a padding token's embedding is zero, and has no direction
NORM_FLOOR: Final = 1e-6
# stands for NaN and infinity, which JSON does not have
NOT_A_NUMBER: Final = 1e30
# figures of which too little is the fault
LEAST: Final = ("state_cosine_mean", "state_cosine_min")

# float32: bfloat16 rounding of the kept states (0.2 %) and float16 rounding of the top-k are all that is between them.
# 16 bits: two right engines round every layer differently; the means tell right from wrong, the extremes are for gross
# faults of a single token.
EXACT: Final[Figures] = {
    "kl_mean": 1e-4,
    "kl_max": 1e-3,
    "logprob_max": 0.05,  # float16 of the compact profile is off by up to 0.03 at -100
    "entropy_max": 0.01,
    "candidate_mean": 0.01,  # float16 of a number around -60 is off by up to 0.016
    "candidate_max": 0.05,
    "state_error_mean": 0.005,
    "state_error_max": 0.01,
    "state_cosine_mean": 0.9999,
    "state_cosine_min": 0.9999,
}
ROUNDED: Final[Figures] = {
    "kl_mean": 0.02,
    "kl_max": 1.0,
    "logprob_max": 2.0,
    "entropy_max": 1.0,
    "candidate_mean": 0.25,
    "candidate_max": 4.0,
    "state_error_mean": 0.06,
    "state_error_max": 0.5,
    "state_cosine_mean": 0.998,
    "state_cosine_min": 0.9,
}
PICTURE = "picture-"  # and its number: what an array of a row's picture is called between the two processes
BOUNDS: Final[dict[str, Figures]] = {"float32": EXACT, "bfloat16": ROUNDED, "float16": ROUNDED}


def divergence(stored: Logprobs, again: Logprobs) -> Array:
    """KL(stored | again) at each token, [T] in nats, over the k kept ids and one outcome for all others.

    In the form that needs no normalising: it is the same for distributions, and float16's rounding of the kept
    log-probabilities enters it squared only.
    """
    # both at the ids that were stored: these need not be the likeliest of the second forward
    log_p, log_q = _outcomes(stored), _outcomes(again)
    p, q = np.exp(log_p), np.exp(log_q)
    total: Array = (p * (log_p - log_q) - p + q).sum(1)
    return total


def _outcomes(logprobs: Logprobs) -> Array:
    """[T, k + 1]: the kept ids' log-probabilities, then the tail's."""
    values = np.concatenate([logprobs.topk_TK.astype(np.float64), logprobs.tail_T.astype(np.float64)[:, None]], 1)
    floored: Array = np.maximum(values, LOG_FLOOR)
    return floored


def compare_logprobs(stored: Logprobs, again: Logprobs) -> Figures:
    """Mean and largest KL, largest difference of a sampled token's log-probability and of an entropy (nats).

    The KL is over the positions that keep any ids.
    """
    held_T = stored.kept_TK.any(1)
    kl_T = divergence(stored, again)[held_T] if held_T.any() else np.zeros(1)
    sampled_T, again_T = (np.maximum(one.sampled_T.astype(np.float64), LOG_FLOOR) for one in (stored, again))
    entropy_T = np.abs(stored.entropy_T.astype(np.float64) - again.entropy_T)
    return _finite(
        {
            "kl_mean": kl_T.mean(),
            "kl_max": kl_T.max(),
            "logprob_max": np.abs(sampled_T - again_T).max(),
            "entropy_max": entropy_T.max(),
        }
    )


def compare_candidates(stored_M: Array, again_M: Array) -> Figures:
    """Mean and largest difference of the log-probabilities of ids that the data named (nats); none of none.

    They may be ids that the teacher would hardly ever say, where two right engines differ most.
    """
    if not len(stored_M):
        return {}
    stored, again = (np.maximum(one.astype(np.float64), LOG_FLOOR) for one in (stored_M, again_M))
    error_M = np.abs(stored - again)
    return _finite({"candidate_mean": error_M.mean(), "candidate_max": error_M.max()})


def compare_states(stored_NH: Array, again_NH: Array) -> Figures:
    """Cosine and norm of the difference (relative to `again`) of one layer's states, over N positions; none of none."""
    if not len(stored_NH):
        return {}
    stored, again = stored_NH.astype(np.float64), again_NH.astype(np.float64)
    norm_N, norm_again_N = np.linalg.norm(stored, axis=1), np.linalg.norm(again, axis=1)
    error_N = np.linalg.norm(stored - again, axis=1) / np.maximum(norm_again_N, NORM_FLOOR)
    product_N = np.maximum(norm_N, NORM_FLOOR) * np.maximum(norm_again_N, NORM_FLOOR)
    # two zeros agree; a zero against anything else has the cosine 0
    both_zero_N = (norm_N < NORM_FLOOR) & (norm_again_N < NORM_FLOOR)
    cosine_N = np.where(both_zero_N, 1.0, (stored * again).sum(1) / product_N)
    return _finite(
        {
            "state_error_mean": error_N.mean(),
            "state_error_max": error_N.max(),
            "state_cosine_mean": cosine_N.mean(),
            "state_cosine_min": cosine_N.min(),
        }
    )


def _finite(figures: Mapping[str, float]) -> Figures:
    """Plain floats; what is no number is as bad as can be."""
    worst = {name: -NOT_A_NUMBER if name in LEAST else NOT_A_NUMBER for name in figures}
    return {name: float(value) if math.isfinite(value) else worst[name] for name, value in figures.items()}


def worst_of(many: Iterable[Figures]) -> Figures:
    """Of each figure the worst: the least cosine, the largest of all others."""
    worst: Figures = {}
    for figures in many:
        for name, value in figures.items():
            choose = min if name in LEAST else max
            worst[name] = choose(worst.get(name, value), value)
    return worst


def exceeded(figures: Figures, dtype: str) -> list[str]:
    """Names of the figures that are past the bound of forwards in `dtype` (one of BOUNDS), in the order of the bounds.

    An extreme comes after the mean of the same: the first name is the most telling.
    """
    # a figure that a row does not have (no states are kept, say) is past nothing
    bounds = BOUNDS[dtype]
    past = {name: figures[name] < bounds[name] if name in LEAST else figures[name] > bounds[name] for name in figures}
    return [name for name in bounds if past.get(name)]
