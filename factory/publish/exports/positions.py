"""Positions: a row's distributions moved to where a student's logits predict their tokens.

    index             0     1     2     3     4         P = 3, T = 2, S = P + T
    token             p0    p1    p2    c0    c1
    target            .     .     [0]   [1]   .         entry t of the columns stands at P - 1 + t
    labels           -100  -100  -100   c0    c1        as transformers shifts them itself

A dot is filler, and finite: where a loss multiplies with a mask of 0, an infinity would become NaN.
"""

from typing import Final

import numpy as np

from factory.dataset.rows import Row
from factory.errors import DatasetError
from factory.publish.exports.asked import Asked
from factory.signals import Array

FLOOR: Final = -1e4  # stands for the log of 0: its exp() is 0 in every dtype


def require_topk(row: Row) -> tuple[Array, Array]:
    """A row's ids int32 [T, k] and logprobs float32 [T, k]."""
    if row.topk_ids is None or row.topk_logprobs is None:
        raise DatasetError(f"row {row['id']}: no distributions in it; run `factory verify`")
    return row.topk_ids, row.topk_logprobs


def cut_topk(row: Row, k: int | None) -> tuple[Array, Array, Array]:
    """The k likeliest ids [T, k], their logprobs, finite, and which entries hold an id (bool); ids are 0 where none."""
    ids_TK, logprobs_TK = require_topk(row)
    if k is not None:
        ids_TK, logprobs_TK = ids_TK[:, :k], logprobs_TK[:, :k]
    kept_TK = ids_TK >= 0
    logprobs_TK = np.where(kept_TK, np.maximum(logprobs_TK, np.float32(FLOOR)), np.float32(FLOOR))
    return np.where(kept_TK, ids_TK, 0), logprobs_TK, kept_TK


def renormalise(logprobs_TK: Array, kept_TK: Array) -> Array:
    """Logprobs whose kept entries add up to 1 at each position that has any; float32 [T, k]."""
    logprobs = np.where(kept_TK, logprobs_TK.astype(np.float64), -np.inf)
    any_T = kept_TK.any(1)
    most_T = np.where(any_T, logprobs.max(1, initial=-np.inf), 0.0)
    # a position without any has no mass, and is filler below
    total_T = np.where(any_T, np.exp(logprobs - most_T[:, None]).sum(1), 1.0)
    shifted = logprobs - (most_T + np.log(total_T))[:, None]
    return np.where(kept_TK, np.maximum(shifted, FLOOR), FLOOR).astype(np.float32)


def all_ids(row: Row) -> Array:
    """Prompt and completion, int32 [S]."""
    return np.concatenate([row.prompt_token_ids, row.completion_token_ids])


def spread(values_T: Array, row: Row, filler: Array | float) -> Array:
    """Entries of the completion at the S positions that predict its tokens; `filler` elsewhere."""
    first, size = len(row.prompt_token_ids) - 1, len(row.prompt_token_ids) + len(row.completion_token_ids)
    spread_S = np.empty((size, *values_T.shape[1:]), values_T.dtype)
    spread_S[:] = filler
    spread_S[first : size - 1] = values_T
    return spread_S


def why_left(row: Row, asked: Asked) -> str | None:
    """Why a row is left out of a format of token ids; None where it is not."""
    if not len(row.completion_token_ids):
        return "no completion token"
    if not len(row.prompt_token_ids):
        return "no prompt token: nothing predicts the first of the completion"
    if asked.length and len(row.prompt_token_ids) + len(row.completion_token_ids) > asked.length:
        # cut off, it would teach to break off in the middle of an answer
        return f"longer than {asked.length} tokens"
    return None
