"""The columns of a row's signals: its distributions in the default config, and the configs beside it.

Logprobs are flat lists of length T or T*k beside the token ids: nested lists stream 20 to 40 times slower. Hidden
states and attention maps are one binary value a row; docs/dataset-format.md describes every column.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from factory.dataset.codec import CANDIDATE_COUNTS, COUNTS, Packed, pack, pack_ids
from factory.dataset.columns import IDS, Column, array_column, take_values, text_column
from factory.records import Generation
from factory.signals import Array, Candidates, Logprobs, SignalSpec

# no name in the default config begins so by chance: `prompt_id` and `prompt_token_ids` are not in codec.STORED
PROMPT: Final = "prompt_"  # before the names of the columns that belong to the prompt's tokens
SENTINEL: Final = b"\x01"  # ends every binary value: some readers strip trailing NUL bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """The distributions of one row as its columns hold them."""

    logprobs: Logprobs
    # bool: which entries hold an id. None where the job keeps k of them everywhere: then there are no counts either.
    kept_TK: Array | None
    # None in the exact profile.
    packed: Packed | None

    def flat(self, array_TK: Array) -> Array:
        """The entries that hold an id, token after token."""
        flat: Array = array_TK.reshape(-1) if self.kept_TK is None else array_TK[self.kept_TK]
        return flat

    def counts(self) -> Array:
        """How many ids each token has."""
        assert self.kept_TK is not None
        counts: Array = self.kept_TK.sum(1)
        return counts


def logprob_columns(signals: SignalSpec) -> tuple[Column, ...]:
    """The columns of the distributions that such a dataset keeps; those of the prompt's tokens begin with `prompt_`."""
    if not signals.top_k:
        return ()
    columns = _logprob_columns(signals, "", lambda o: _store(o.generation.logprobs, signals))
    if signals.of_prompt:
        columns += _logprob_columns(signals, PROMPT, lambda o: _store(o.generation.prompt_logprobs, signals))
    return (*columns, *_candidate_columns(signals)) if signals.candidates else columns


def _candidate_columns(signals: SignalSpec) -> tuple[Column, ...]:
    """What the teacher gives the ids that the data named."""

    def of(outcome: Any) -> Candidates:
        found: Candidates = outcome.generation.candidates
        return found

    ids = [array_column("candidate_ids", lambda c: c.ids_M, np.int32, of)]
    if signals.compact:

        def packed(outcome: Any) -> tuple[Array, Array]:
            return pack_ids(of(outcome).ids_M)

        ids = [
            array_column("candidate_id_table", lambda c: c[0], np.int32, packed),
            array_column("candidate_id_places", lambda c: c[1], np.int32, packed),
        ]
    return (
        *ids,
        array_column("candidate_logprobs", lambda c: c.logprobs_M, np.float16, of),
        array_column(CANDIDATE_COUNTS, lambda c: c.counts_T, np.uint16, of),
    )


def _store(logprobs: Logprobs, signals: SignalSpec) -> Stored:
    return Stored(logprobs, logprobs.kept_TK if signals.ragged else None, pack(logprobs) if signals.compact else None)


def _logprob_columns(signals: SignalSpec, prefix: str, of: Callable[[Any], Stored]) -> tuple[Column, ...]:
    def column(name: str, dtype: Any, get: Callable[[Any], Array]) -> Column:
        return array_column(prefix + name, get, dtype, of)

    # of the three numbers that every token has, whichever ids are kept of it
    number = np.float16 if signals.compact else np.float32
    columns = [column("sampled_logprobs", number, lambda s: s.logprobs.sampled_T)]
    if signals.compact:
        columns += [
            column("topk_id_table", np.int32, lambda s: s.packed.table_D),
            column("topk_id_places", np.int32, lambda s: s.packed.places),
            column("topk_first", np.int32, lambda s: s.packed.first_T),
            column("topk_steps", np.uint16, lambda s: s.packed.steps),
        ]
    else:
        columns += [
            column("topk_ids", np.int32, lambda s: s.flat(s.logprobs.topk_ids_TK)),
            column("topk_logprobs", np.float16, lambda s: s.flat(s.logprobs.topk_TK)),
        ]
    if signals.ragged:
        columns.append(column(COUNTS, np.uint16, lambda s: s.counts()))
    if signals.keep == "sampled":
        columns.append(column("topk_draws", np.uint16, lambda s: s.flat(s.logprobs.draws_TK)))
    columns.append(column("tail_logprobs", number, lambda s: s.logprobs.tail_T))
    return (*columns, column("entropy", number, lambda s: s.logprobs.entropy_T))


def encode_states(rows: Sequence[Array]) -> pa.LargeBinaryArray:
    """Hidden states uint16 [N, L, H] as values of the column `states`: little-endian bits, then one sentinel byte.

    Each number is copied once.
    """
    # Arrow's buffers are made by hand: pa.array() would copy every number once more
    states = [np.ascontiguousarray(bits_NLH, dtype="<u2") for bits_NLH in rows]
    ends = np.cumsum([0, *(bits.nbytes + len(SENTINEL) for bits in states)], dtype=np.int64)
    # NumPy's memory, as it asks for huge pages, and copies while other threads write and hash
    values = np.empty(ends[-1], np.uint8)
    for bits, first, end in zip(states, ends[:-1], ends[1:], strict=True):
        values[first : end - 1] = bits.reshape(-1).view(np.uint8)
    values[ends[1:] - 1] = SENTINEL[0]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(states), [None, *map(pa.py_buffer, (ends, values))])


def decode_states(states: bytes, shape: Sequence[int]) -> Array:
    """The bits of a `states` value as uint16 [N, L, H]; a view, not a copy."""
    # `count` leaves the sentinel out
    return np.frombuffer(states, dtype="<u2", count=int(np.prod(shape))).reshape(shape)


# `shape` and `dtype` in every row: a file explains itself to whoever has only a row of it
HIDDEN: Final = (
    text_column("id", lambda o: o.prompt.id),
    Column("layers", IDS, take_values(IDS, lambda o: list(o.generation.hidden_states.layers))),
    Column("shape", IDS, take_values(IDS, lambda o: list(o.generation.hidden_states.bits_NLH.shape))),
    text_column("dtype", lambda o: "bfloat16"),
    Column(
        "states",
        pa.large_binary(),
        lambda outcomes: encode_states([o.generation.hidden_states.bits_NLH for o in outcomes]),
    ),
)
POSITIONS: Final = array_column("positions", lambda o: o.generation.hidden_states.positions_N, np.int32)
EXPERTS: Final = (
    text_column("id", lambda o: o.prompt.id),
    Column("layers", IDS, take_values(IDS, lambda o: list(o.generation.experts.blocks))),
    Column("shape", IDS, take_values(IDS, lambda o: list(o.generation.experts.ids_NLE.shape))),
    array_column("expert_ids", lambda o: o.generation.experts.ids_NLE, np.int16),
    array_column("expert_weights", lambda o: o.generation.experts.weights_NLE, np.float16),
)


def _shape_of_maps(generation: Generation) -> tuple[int, ...]:
    return generation.attention.maps_LHNN.shape if generation.attention else ()


def _maps(outcomes: Sequence[Any]) -> pa.Array:
    """Maps as float16, then the sentinel; null where a row has none."""
    found = [outcome.generation.attention for outcome in outcomes]
    values = [None if one is None else one.maps_LHNN.astype("<f2", copy=False).tobytes() + SENTINEL for one in found]
    return pa.array(values, pa.large_binary())


ATTENTION: Final = (
    text_column("id", lambda o: o.prompt.id),
    Column(
        "layers", IDS, take_values(IDS, lambda o: list(o.generation.attention.blocks if o.generation.attention else ()))
    ),
    Column("shape", IDS, take_values(IDS, lambda o: list(_shape_of_maps(o.generation)))),
    Column("maps", pa.large_binary(), _maps),
)
