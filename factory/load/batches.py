"""Batches: rows of any length as one padded batch, in which a position holds what comes after it.

One row of P = 3 prompt and T = 2 completion tokens, padded to S = 6:

    input_ids          p0    p1    p2    c0    c1    pad
    labels            -100  -100  -100   c0    c1   -100       not shifted, as transformers' models take them
    topk_ids, ...       .     .   [0]   [1]     .     .        entry t stands at P - 1 + t, where the student's logits
    topk_mask           -     -     x     x     -     -        predict c_t; with the prompt's, from position 0 on
    hidden_states     [0]   [1]   [2]   [3]     .     .        entry n stands at n: the last token was never an input
    hidden_mask         x     x     x     x     -     -        a dot is filler: see `collate`
"""

import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np

from factory.dataset.rows import Row, Tensor, import_torch
from factory.errors import DatasetError
from factory.load.values import PROMPTS, require_known
from factory.signals import Array

LOGPROB_FLOOR: Final = -1e4  # its exp() is 0 in every dtype, and 0 * (floor - x) is 0 where 0 * -inf would be NaN


def collate(
    rows: Sequence[Row],
    pad_token_id: int,
    *,
    max_length: int | None = None,
    prompt: Literal["teacher", "student"] | None = None,
) -> dict[str, Tensor]:
    """B rows as one batch of S positions, padded on the right; a row longer than `max_length` loses its end.

    A row that has no completion token left (`Row.fits`) has nothing to learn from, and a mean over none is NaN: it is
    left out with a warning, and `row` tells which rows are there. So every batch has a label.

    - `input_ids` int64 [B, S] (padding: `pad_token_id`), `attention_mask` int64 [B, S], `completion_mask` bool [B, S]
    - `labels` int64 [B, S]: the input ids, not shifted; -100 on prompt and padding, and, where rows have a
      `completion_mask`, on what stands between their scored turns
    - `row` int64 [B]: the places in `rows` of those that are in the batch
    - `topk_ids` int64 and `topk_logprobs` float32 [B, S, k], `tail_logprobs` float32 [B, S], `topk_mask` bool [B, S],
      where a row has logprobs. Position s holds the teacher's distribution for the token after s: compare it with the
      student's logits at s. Where the mask is False: ids 0 to k-1, logprobs -1e4, tail 0 (all mass is outside the k),
      which keeps a KL finite; for the same reason no logprob is below -1e4.
    - `topk_kept` bool [B, S, k]: which entries hold an id, where positions have fewer than k: the others (id 0, logprob
      -1e4) are to be left out of the student's mass too. `topk_weights` float32 [B, S, k], where ids were drawn: the
      share of the draws, whose mean is the teacher's probability.
    - `candidate_ids` int64, `candidate_logprobs` float32 and `candidate_kept` bool [B, S, C], where the data that was
      scored named ids (a student's own, say): the teacher's logprobs of just these. Position s holds those named of the
      token after s; C is the most that any token here has, and an entry without an id is 0, -1e4 and False.
    - `hidden_states` bfloat16 [B, S, L, H] (padding: 0), `hidden_mask` bool [B, S], where a row has hidden states.
      Position s holds the state taken at token s, the one that predicts the token after s.

    `prompt="student"` puts what the student is shown before the completion (`Row.as_student`); left out, rows have the
    prompt that they were loaded with.

    Raises DatasetError where rows differ in tokenizer, k, layers or hidden size, a prompt has no ids, or none is left.
    """
    rows = list(rows)
    _require_values(rows, pad_token_id, max_length, prompt)
    torch = import_torch()
    rows = [row.as_student() for row in rows] if prompt == "student" else rows
    places, rows = _leave_out(rows, max_length)
    _require_alike(rows)
    longest = max((len(row.prompt_token_ids) + len(row.completion_token_ids) for row in rows), default=0)
    shape = (len(rows), longest if max_length is None else min(longest, max_length))
    rows = _widen_candidates(rows)
    floors = dict.fromkeys(("topk_logprobs", "candidate_logprobs"), LOGPROB_FLOOR)
    padding = {"input_ids": pad_token_id, "labels": -100} | floors  # all else is 0 or False
    arrays: dict[str, Array] = {"row": places}
    for i, row in enumerate(rows):
        for name, first, values in _place(row, torch):
            if name not in arrays:
                dtype = np.int64 if values.dtype == np.int32 else values.dtype
                # distinct ids where there is none: a student's gather of them counts no id twice
                fill = np.arange(values.shape[1]) if name == "topk_ids" else padding.get(name, 0)
                arrays[name] = np.full((*shape, *values.shape[1:]), fill, dtype)
            end, wide = min(first + len(values), shape[1]), (values.shape[1:], arrays[name].shape[2:])
            if wide[0] != wide[1]:
                raise DatasetError(f"row {row['id']}: {name} is {wide[0]} a token, {wide[1]} in the rows before it")
            # a row that is cut off loses its end, also where its entries begin after it
            arrays[name][i, first:end] = values[: max(0, end - first)]
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: value.view(torch.bfloat16) if name == "hidden_states" else value for name, value in batch.items()}


def _widen_candidates(rows: Sequence[Row]) -> list[Row]:
    """The rows with equally many columns of candidates: how many a token has is the data's own, row by row."""
    most = max((row.candidate_ids.shape[1] for row in rows if row.candidate_ids is not None), default=0)
    return [row if row.candidate_ids is None else _widen(row, row.candidate_ids, most) for row in rows]


def _widen(row: Row, ids_TC: Array, most: int) -> Row:
    assert row.candidate_logprobs is not None
    more = ((0, 0), (0, most - ids_TC.shape[1]))
    logprobs_TC = np.pad(row.candidate_logprobs, more, constant_values=-np.inf)
    return replace(row, candidate_ids=np.pad(ids_TC, more, constant_values=-1), candidate_logprobs=logprobs_TC)


def _require_values(rows: Sequence[Row], pad_token_id: int, max_length: int | None, prompt: str | None) -> None:
    """Raise DatasetError where there is nothing to make a batch of, or a keyword has a value that it cannot have."""
    require_known("prompt", prompt, PROMPTS)
    if not _is_count(pad_token_id):
        hint = "where a tokenizer has none, its eos_token_id serves"
        raise DatasetError(f"pad_token_id = {pad_token_id!r}: not a token id; {hint}")
    if max_length is not None and not _is_count(max_length):
        raise DatasetError(f"max_length = {max_length!r}: not a number of tokens; leave it out for whole rows")
    if not len(rows):
        raise DatasetError("no rows to make a batch of; a batch needs at least one, so leave out an empty one")
    if texts := [row["id"] for row in rows if not row.has_tokens]:
        told = f"{len(texts)} of {len(rows)} rows are texts alone, such as {texts[0]}: pairs and hand-off labels"
        raise DatasetError(f"{told} have no token ids and make no batch; take their texts as they are")
    # what the teacher was shown is no longer in such a row
    if prompt == "teacher" and (shown := [row["id"] for row in rows if row.of_student]):
        told = f"{len(shown)} of {len(rows)} rows have the student's prompt, such as {shown[0]}"
        raise DatasetError(f'{told}; load them with load_rows(..., prompt="teacher")')


def _is_count(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__index__") and operator.index(value) >= 0


def _require_alike(rows: Sequence[Row]) -> None:
    """Raise DatasetError where rows of one batch have ids of two tokenizers, or states of different layers."""
    vocabularies = {row.tokenizer: row for row in rows if row.tokenizer}
    if len(vocabularies) > 1:
        one, other = list(vocabularies.values())[:2]
        told = " and ".join(f"{row['id']}{_whose(row)}" for row in (one, other))
        raise DatasetError(
            f"rows {told} have ids of different tokenizers; batch one teacher at a time: load_rows(..., teacher=NAME)"
        )
    layers = sorted({row.layers for row in rows if row.layers})
    if len(layers) > 1:
        raise DatasetError(f"rows with hidden layers {layers[0]} and {layers[1]} in one batch; batch one kind of job")


def _require_prompts(rows: Sequence[Row]) -> None:
    """Raise DatasetError for a completion without its prompt: a student would learn to answer to nothing."""
    bare = [row["id"] for row in rows if len(row.completion_token_ids) and not len(row.prompt_token_ids)]
    if bare:
        raise DatasetError(
            f"{len(bare)} of {len(rows)} rows have no prompt ids, such as {bare[0]}: their teacher's endpoint gives "
            f"none; encode row['prompt'] as your student takes it and put the ids there with "
            f"dataclasses.replace(row, prompt_token_ids=...)"
        )


def _whose(row: Row) -> str:
    return f" (of {row.columns['teacher']})" if row.columns.get("teacher") else ""


def _leave_out(rows: Sequence[Row], max_length: int | None) -> tuple[Array, list[Row]]:
    """Places and rows of those that have something to learn from. Raises DatasetError where none has, or no prompt."""
    _require_prompts(rows)
    fit = [row.fits(len(row.prompt_token_ids) + 1 if max_length is None else max_length) for row in rows]
    out = [row for row, kept in zip(rows, fit, strict=True) if not kept]
    if not out:
        return np.arange(len(rows)), list(rows)
    shown = ", ".join(f"{row['id']} (prompt of {len(row.prompt_token_ids)})" for row in out[:4])
    within = "" if max_length is None else f" within max_length = {max_length}"
    told = f"{len(out)} of {len(rows)} rows have no completion token{within}: {shown}"
    # without a bound it is the completion that is empty
    hint = "leave such rows out with rows.filter(lambda row: len(row.completion_token_ids) > 0)"
    if max_length is not None:
        hint = "raise max_length, or leave such rows out with rows.filter(lambda row: row.fits(max_length))"
    if len(out) == len(rows):
        raise DatasetError(f"{told}; {hint}")
    warnings.warn(f"left out: {told}; {hint}", stacklevel=3)
    return np.flatnonzero(fit), [row for row, kept in zip(rows, fit, strict=True) if kept]


def _place(row: Row, torch: Any) -> Iterator[tuple[str, int, Array]]:
    """What a row adds to a batch: name, position of the first entry, entries. This is the alignment rule as code."""
    tokens, start = np.concatenate([row.prompt_token_ids, row.completion_token_ids]), len(row.prompt_token_ids)
    # what stands between two scored turns is read and not learned
    completed = np.ones(len(row.completion_token_ids), np.bool_)
    if row.completion_mask is not None:
        completed = row.completion_mask > 0
    yield "input_ids", 0, tokens
    yield "attention_mask", 0, np.ones(len(tokens), np.int64)
    yield "completion_mask", start, completed
    yield "labels", start, np.where(completed, row.completion_token_ids, np.int32(-100))
    if row.topk_ids is not None and row.topk_logprobs is not None and row.tail_logprobs is not None:
        parts = (row,) if row.prompt is None else (row.prompt, row)
        # the prompt's entries come right before the completion's: P - 1 of them, from position 0
        first = start - 1 if row.prompt is None else 0
        ids, logprobs, tail = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("topk_ids", "topk_logprobs", "tail_logprobs")
        )
        yield "topk_ids", first, np.maximum(ids, 0)
        yield "topk_logprobs", first, np.maximum(logprobs, LOGPROB_FLOOR)
        yield "tail_logprobs", first, np.maximum(tail, LOGPROB_FLOOR)
        yield "topk_kept", first, ids >= 0
        yield "topk_mask", first, ids[:, 0] >= 0
        if row.topk_draws is not None:
            draws = np.concatenate([part.topk_draws for part in parts]).astype(np.float32)
            yield "topk_weights", first, draws / np.maximum(draws.sum(1, keepdims=True), 1)
    if row.candidate_ids is not None and row.candidate_logprobs is not None:
        yield "candidate_ids", start - 1, np.maximum(row.candidate_ids, 0)
        yield "candidate_logprobs", start - 1, np.maximum(row.candidate_logprobs, LOGPROB_FLOOR)
        yield "candidate_kept", start - 1, row.candidate_ids >= 0
    if row.hidden_states is not None:
        positions = np.arange(len(row.hidden_states)) if row.positions is None else row.positions
        # uint16 bits: NumPy has no bfloat16, and the batch is viewed as it at the end
        spread = np.zeros((len(tokens) - 1, *row.hidden_states.shape[1:]), np.uint16)
        spread[positions] = row.hidden_states.view(torch.uint16).numpy()
        taken = np.zeros(len(tokens) - 1, np.bool_)
        taken[positions] = True
        yield "hidden_states", 0, spread
        yield "hidden_mask", 0, taken
