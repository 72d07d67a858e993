"""Rows: what the files hold of a row, as arrays and tensors, once its lengths agree.

    default        [row 0  row 1  row 2 ...]     a record batch at a time: each list column is one array and its
    hidden_states  [row 0  row 1  row 2 ...]     offsets, and a row is a view into it
    experts, ...   [row 0  row 1  row 2 ...]     joined by place; an id that differs is an error, not a search

Nothing is yielded of a batch with a row whose distributions are damaged: `find_damage` looks at whole columns before
any row is cut out of them. Ragged positions and the compact profile end here: a `Row` has rectangles, whichever way it
was stored.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, repeat, zip_longest
from typing import Any, Final

import numpy as np

from factory.dataset.codec import (
    CANDIDATE_COUNTS,
    CANDIDATES,
    COUNTS,
    SCALARS,
    STORED,
    Flat,
    find_candidate_damage,
    find_damage,
    read_candidates,
    read_topk,
    widen_row,
)
from factory.dataset.columns import MASK, TOKEN_IDS, read_list
from factory.dataset.signal_columns import PROMPT
from factory.errors import DatasetError
from factory.signals import Array

Tensor = Any  # a torch.Tensor: torch is imported only where a tensor is made

STUDENT_IDS: Final = "student_prompt_token_ids"
ARRAYS: Final = (*TOKEN_IDS, MASK, STUDENT_IDS, *STORED, *(PROMPT + name for name in STORED), *CANDIDATES)
TOPK: Final = ("topk_ids", "topk_logprobs", "topk_draws")
AGAIN: Final = "the curriculum was made from other rows, `factory curriculum` makes it anew"


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row. P prompt tokens, T completion tokens, k kept ids, L layers, H hidden size, N = P + T - 1.

    Entry t of a signal belongs to completion token t; entry i of `hidden_states` is taken at token i of prompt and
    completion (the last sampled token was never an input). Logprobs are natural logs. A signal that the dataset does
    not have is None. Arrays are read-only views of the batch that was read: copy them to keep a few rows of many.
    """

    columns: dict[str, Any]  # every column that is no array; `row["task"]` reads it too
    prompt_token_ids: Array  # int32 [P]
    completion_token_ids: Array  # int32 [T]
    completion_mask: Array | None = None  # uint8 [T]: 0 where a token is between two scored turns; None where none is
    topk_ids: Array | None = None  # int32 [T, k]; -1 where a position has fewer than k
    topk_logprobs: Array | None = None  # float32 [T, k], stored as float16 or compact; -inf where there is no id
    topk_draws: Array | None = None  # uint16 [T, k], how often each id was drawn, where ids are drawn
    sampled_logprobs: Array | None = None  # float32 [T]
    tail_logprobs: Array | None = None  # float32 [T], log of the mass outside the kept ids
    entropy: Array | None = None  # float32 [T], nats
    candidate_ids: Array | None = (
        None  # int32 [T, C], ids that the scored data named; -1 where a token has fewer than C
    )
    candidate_logprobs: Array | None = None  # float32 [T, C], the teacher's logprobs of them; -inf where there is no id
    prompt: "PromptSignals | None" = None  # the same of the prompt's tokens but the first, where they are kept
    hidden_states: Tensor | None = None  # bfloat16 [N, L, H], the row's own memory
    layers: tuple[int, ...] = ()
    positions: Array | None = None  # int32 [N]: the tokens the states were taken at, where only some are kept
    expert_ids: Array | None = None  # int16 [N, L, E]: where each input token went in each block with experts
    expert_weights: Array | None = None  # float32 [N, L, E], stored as float16
    expert_layers: tuple[int, ...] = ()
    attention: Array | None = None  # float16 [L, H, N, N] of decoder blocks `attention_layers`, where the row has any
    attention_layers: tuple[int, ...] = ()
    student_prompt_token_ids: Array | None = None  # int32: what the student is shown, where that is not the same
    has_tokens: bool = True  # False for pairs and hand-off labels, which are texts alone
    of_student: bool = False  # whether the prompt is the student's, where that is not the teacher's
    tokenizer: str = ""  # one name for the vocabulary of all ids here; "" where the dataset does not tell it

    def __getitem__(self, name: str) -> Any:
        if name in self.columns:
            return self.columns[name]
        if name in self.keys():
            return getattr(self, name) if name in ROW_ARRAYS else getattr(self.prompt, name.removeprefix(PROMPT))
        raise KeyError(name)

    def keys(self) -> list[str]:
        """Names of everything that the row has, as `dict(row)` gives it: columns, then arrays."""
        without = () if self.has_tokens else TOKEN_IDS
        arrays = [name for name in ROW_ARRAYS if getattr(self, name) is not None and name not in without]
        before = [name for name in (*TOPK, *SCALARS) if self.prompt and getattr(self.prompt, name) is not None]
        return [*self.columns, *arrays, *(PROMPT + name for name in before)]

    def fits(self, max_length: int) -> bool:
        """Whether a completion token is left where the row is cut to `max_length`: without one it teaches nothing."""
        return len(self.completion_token_ids) > 0 and len(self.prompt_token_ids) < max_length

    def as_student(self) -> "Row":
        """The row with the student's prompt in place of the teacher's; itself where they are the same.

        The completion's ids and signals stay: entry t still belongs to completion token t, and hidden states to the
        token that predicts it. What belongs to the teacher's prompt alone goes: its signals and states, all experts and
        attention. Raises DatasetError where the teacher's prompt has ids and the student's was kept as a text alone.
        """
        ids, asked = self.student_prompt_token_ids, self.columns.get("student_prompt")
        if asked is None or self.of_student:
            return self
        # the texts may differ where the ids do not: pairs have none, and neither has a row of some endpoints
        texts = self if asked == self.columns.get("prompt") else self._with_student_text()
        if not self.has_tokens or (ids is not None and np.array_equal(ids, self.prompt_token_ids)):
            return texts
        if ids is None:
            if texts is self:
                return self
            told = f"row {self['id']} has no ids of the student's prompt, which are kept of accepted rows alone"
            raise DatasetError(f'{told}; leave out prompt="student"')
        states, positions = self.predicting_states, None
        if states is not None:
            before = len(self.prompt_token_ids) - 1
            kept = np.arange(before, self.inputs) if self.positions is None else self.positions[-len(states) :]
            positions = (kept - before + len(ids) - 1).astype(np.int32) if len(states) else np.zeros(0, np.int32)
        return replace(
            self._with_student_text(),
            prompt_token_ids=ids,
            student_prompt_token_ids=None,
            prompt=None,
            hidden_states=states,
            positions=positions,
            expert_ids=None,
            expert_weights=None,
            expert_layers=(),
            attention=None,
            attention_layers=(),
        )

    def _with_student_text(self) -> "Row":
        return replace(self, columns=self.columns | {"prompt": self.columns["student_prompt"]}, of_student=True)

    @property
    def inputs(self) -> int:
        """N, the number of tokens that the teacher was given or went on from: all but the last."""
        return len(self.prompt_token_ids) + len(self.completion_token_ids) - 1

    @property
    def predicting_states(self) -> Tensor | None:
        """The hidden states that predict the completion, [T, L, H]: entry t is taken at position P - 1 + t.

        Where only some positions are kept, those of them that predict a completion token.
        """
        first = len(self.prompt_token_ids) - 1
        if self.hidden_states is None or self.positions is None:
            return None if self.hidden_states is None else self.hidden_states[first:]
        return self.hidden_states[int(np.searchsorted(self.positions, first)) :]


JOINED: Final = ("hidden_states", "positions", "expert_ids", "expert_weights", "attention")
OF_CANDIDATES: Final = ("candidate_ids", "candidate_logprobs")
ROW_ARRAYS: Final = (*TOKEN_IDS, MASK, STUDENT_IDS, *TOPK, *SCALARS, *OF_CANDIDATES, *JOINED)


def given_names(stored: Iterable[str]) -> list[str]:
    """The columns of a file by the names that its rows give them: compact distributions are decoded."""
    names = list(stored)
    plain = [name for name in names if name not in ARRAYS]
    packed = {"topk_id_places": "topk_ids", "topk_first": "topk_logprobs", "candidate_id_places": "candidate_ids"}
    known = {
        *TOKEN_IDS,
        MASK,
        STUDENT_IDS,
        *OF_CANDIDATES,
        *(prefix + name for prefix in ("", PROMPT) for name in (*TOPK, *SCALARS)),
    }
    arrays = (
        PROMPT * name.startswith(PROMPT) + packed.get(name.removeprefix(PROMPT), name.removeprefix(PROMPT))
        if name not in (*TOKEN_IDS, MASK, STUDENT_IDS)
        else name
        for name in names
        if name in ARRAYS
    )
    return [*plain, *(name for name in arrays if name in known)]


@dataclass(frozen=True, slots=True, eq=False)
class PromptSignals:
    """The distributions at a row's prompt: entry i belongs to prompt token i + 1, as nothing predicts the first."""

    topk_ids: Array
    topk_logprobs: Array
    sampled_logprobs: Array
    tail_logprobs: Array
    entropy: Array
    topk_draws: Array | None = None


def import_torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise DatasetError("tensors need torch, which is not installed; `pip install torch`") from error
    return torch


def record_batches(source: str, tables: Iterable[Any]) -> Iterator[Any]:
    """The record batches of Arrow tables, as they lie: to join them would copy."""
    try:
        for table in tables:
            yield from table.to_batches()
    except (ValueError, OSError) as error:
        raise DatasetError(f"{source}: cannot be read: {' '.join(str(error).split())}; run `factory verify`") from error


def read_rows(source: str, batch: Any, top_k: int | None) -> Iterator[Row]:
    """The rows of one record batch; numbers are views and never touched one by one."""
    present = [name for name in ARRAYS if name in batch.schema.names]
    flat = {name: _flatten(batch.column(name)) for name in present}
    columns = batch.select([name for name in batch.schema.names if name not in present]).to_pylist()
    if not set(TOKEN_IDS) <= set(present):  # pairs and hand-off labels: texts alone
        none = np.zeros(0, np.int32)
        yield from (Row(texts, none, none, has_tokens=False) for texts in columns)
        return
    tokens, before = np.diff(flat["completion_token_ids"][1]), np.diff(flat["prompt_token_ids"][1]) - 1
    # an empty prompt has no entries, not -1 of them
    before = np.maximum(before, 0)
    k = top_k or _find_top_k(flat, tokens)
    parts: dict[str, tuple[dict[str, Array], list[int]]] = {}
    for prefix, lengths in (("", tokens), (PROMPT, before)):
        stored = {name: flat[prefix + name] for name in STORED if prefix + name in flat}
        for bad, told in find_damage(stored, lengths, k):
            raise DatasetError(f"{source}: row {columns[bad]['id']}: {prefix}{told}; damaged")
        parts[prefix] = _read_logprobs(stored, k) if stored else {}, np.cumsum([0, *lengths]).tolist()
    if MASK in flat and (np.diff(flat[MASK][1]) != tokens).any():
        raise DatasetError(f"{source}: a row's {MASK} is not as long as its completion; damaged")
    candidates = _cut_candidates(source, flat, tokens, columns)
    given = [name for name in (*TOKEN_IDS, MASK, STUDENT_IDS) if name in flat]
    ids = {name: (flat[name][0], flat[name][1].tolist()) for name in given}
    for i, texts in enumerate(columns):
        cut: dict[str, dict[str, Any]] = {
            prefix: {name: array[ends[i] : ends[i + 1]] for name, array in arrays.items()}
            for prefix, (arrays, ends) in parts.items()
        }
        arrays: dict[str, Any] = {name: values[ends[i] : ends[i + 1]] for name, (values, ends) in ids.items()}
        prompt = PromptSignals(**cut[PROMPT]) if cut[PROMPT] else None
        yield Row(texts, **arrays, **cut[""], **next(candidates), prompt=prompt)


def _cut_candidates(source: str, flat: Flat, tokens: Array, columns: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What each row of a batch has of candidates; nothing, without end, where the dataset has none."""
    if CANDIDATE_COUNTS not in flat:
        return repeat(dict[str, Any]())
    for bad, told in find_candidate_damage(flat, tokens):
        raise DatasetError(f"{source}: row {columns[bad]['id']}: {told}; damaged")
    ids, logprobs = read_candidates(flat)
    counts, places = flat[CANDIDATE_COUNTS]
    rows = zip(pairwise(places.tolist()), pairwise(flat["candidate_logprobs"][1].tolist()), strict=True)
    return (
        {
            "candidate_ids": widen_row(ids[first:last], counts[begin:end], -1),
            "candidate_logprobs": widen_row(logprobs[first:last], counts[begin:end], -np.inf),
        }
        for (begin, end), (first, last) in rows
    )


def _read_logprobs(stored: Flat, k: int) -> dict[str, Array]:
    """The columns of a batch's distributions, [positions] or [positions, k] each."""
    return {name: stored[name][0] for name in SCALARS} | read_topk(stored, k)


def _find_top_k(flat: Flat, tokens: Array) -> int:
    """k by the first row that has a token, or, where positions differ, by the position with most ids."""
    if COUNTS in flat:
        return max(1, int(flat[COUNTS][0].max(initial=1)))
    # k is in a file's schema; this is for files that somebody rewrote without it
    offsets = next((flat[name][1] for name in ("topk_ids", "topk_id_places") if name in flat), None)
    filled = np.flatnonzero(tokens)[:1].tolist()
    if offsets is None or not filled:
        return 1
    return max(1, int((offsets[filled[0] + 1] - offsets[filled[0]]) // tokens[filled[0]]))


def _flatten(column: Any) -> tuple[Array, Array]:
    """The values and the offsets of a list column: views, but for float16, which becomes float32."""
    values, offsets = read_list(column)
    return values.astype(np.float32) if values.dtype == np.float16 else values, offsets


def label_rows(source: str, rows: Iterable[Row], batches: Iterable[Any]) -> Iterator[Row]:
    """The rows with what their stage says of them."""
    for row, label in zip(rows, (label for batch in batches for label in batch.to_pylist()), strict=True):
        if row["id"] != label["id"]:
            raise DatasetError(f"{source}: stage row {label['id']} points at {row['id']}; {AGAIN}")
        yield replace(row, columns=row.columns | label)


def _join(
    source: str, config: str, rows: Iterable[Row], batches: Iterable[Any], names: tuple[str, ...]
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Each row with what another config holds of it, as Arrow scalars: those columns of `names` that are there.

    Raises DatasetError where the two have not the same ids in the same order.
    """
    # longest: a config that ends early, or goes on after the rows, is one with other ids
    for row, values in zip_longest(rows, _scalars(batches, names)):
        ids = row and row["id"], values and values["id"].as_py()
        if row is None or ids[0] != ids[1]:
            told = f"id {ids[1]} where the other config has {ids[0]}"
            raise DatasetError(f"{source}: {config} has {told}; both need the same ids in the same order")
        yield row, values


def _scalars(batches: Iterable[Any], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        present = ["id", *(name for name in names if name in batch.schema.names)]
        for values in zip(*(batch.column(name) for name in present), strict=True):
            yield dict(zip(present, values, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class StateBits:
    """The hidden states of one row as they are stored; `positions` only where some are left out."""

    layers: tuple[int, ...]
    shape: tuple[int, ...]  # [N, L, H]
    blob: Any  # bytes-like: bits of bfloat16, little-endian, then one byte more
    positions: Array | None

    @property
    def bits_NLH(self) -> Array:
        """uint16 [N, L, H]; a view."""
        return np.frombuffer(self.blob, "<u2", count=int(np.prod(self.shape))).reshape(self.shape)


def join_bits(source: str, rows: Iterable[Row], batches: Iterable[Any]) -> Iterator[tuple[Row, StateBits]]:
    """The rows with their hidden states as stored, which needs no torch."""
    names = ("layers", "shape", "dtype", "states", "positions")
    for row, values in _join(source, "hidden_states", rows, batches, names):
        layers, shape, dtype = (values[name].as_py() for name in names[:3])
        blob, count = values["states"].as_buffer(), row.inputs
        positions = values["positions"].values.to_numpy() if "positions" in values else None
        if positions is not None:
            # bracketed by what lies just outside, so one look tells ascending, from 0 on and below the count
            if (np.diff(np.concatenate([[-1], positions, [count]])) <= 0).any():
                told = f"positions are not ascending in 0 to {count - 1}"
                raise DatasetError(f"{source}: row {row['id']}: {told}; damaged")
            count = len(positions)
        if dtype != "bfloat16" or shape[:2] != [count, len(layers)] or len(blob) != 2 * int(np.prod(shape)) + 1:
            told = f"hidden states are {dtype} {shape} in {len(blob)} bytes"
            expected = f"bfloat16 [{count}, {len(layers)}, H] in 2 bytes a value and 1 more"
            raise DatasetError(f"{source}: row {row['id']}: {told}, expected {expected}; damaged")
        yield row, StateBits(tuple(layers), tuple(shape), blob, positions)


def join_states(source: str, rows: Iterable[Row], batches: Iterable[Any]) -> Iterator[Row]:
    """The rows with their hidden states as tensors."""
    torch = import_torch()
    for row, found in join_bits(source, rows, batches):
        # One copy: a value may begin at an odd byte, and writing to a tensor over a read-only file map is a crash.
        flat = torch.frombuffer(bytearray(found.blob), dtype=torch.bfloat16, count=int(np.prod(found.shape)))
        yield replace(row, hidden_states=flat.reshape(found.shape), layers=found.layers, positions=found.positions)


def join_experts(source: str, rows: Iterable[Row], batches: Iterable[Any]) -> Iterator[Row]:
    """The rows with their expert routing."""
    names = ("layers", "shape", "expert_ids", "expert_weights")
    for row, values in _join(source, "experts", rows, batches, names):
        blocks, shape = values["layers"].as_py(), values["shape"].as_py()
        ids, weights = values["expert_ids"], values["expert_weights"]
        expected = [row.inputs, len(blocks)]
        if shape[:2] != expected or {len(ids), len(weights)} != {int(np.prod(shape))}:
            told = f"experts are {shape} in {len(ids)} ids"
            raise DatasetError(f"{source}: row {row['id']}: {told}, expected {expected} and E; damaged")
        ids_NLE, weights_NLE = (value.values.to_numpy().reshape(shape) for value in (ids, weights))
        yield replace(
            row, expert_ids=ids_NLE, expert_weights=weights_NLE.astype(np.float32), expert_layers=tuple(blocks)
        )


def join_attention(source: str, rows: Iterable[Row], batches: Iterable[Any]) -> Iterator[Row]:
    """The rows with their attention maps, where they have any."""
    for row, values in _join(source, "attention", rows, batches, ("layers", "shape", "maps")):
        blocks, shape, blob = values["layers"].as_py(), values["shape"].as_py(), values["maps"].as_buffer()
        # most rows have no maps: the job keeps those of a share
        if blob is None:
            yield row
            continue
        wanted = [row.inputs] * 2
        if (shape[:1], shape[2:]) != ([len(blocks)], wanted) or len(blob) != 2 * int(np.prod(shape)) + 1:
            told = f"maps are {shape} in {len(blob)} bytes, expected [{len(blocks)}, H, {row.inputs}, {row.inputs}]"
            raise DatasetError(f"{source}: row {row['id']}: {told}; damaged")
        maps = np.frombuffer(blob, "<f2", count=int(np.prod(shape))).reshape(shape)
        yield replace(row, attention=maps, attention_layers=tuple(blocks))
