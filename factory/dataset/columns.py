"""Columns: outcomes become Arrow tables, and nothing else decides what a column is called or how it is stored.

Logprobs are flat lists of length T or T*k beside the token ids: nested lists stream 20 to 40 times slower. Hidden
states are one binary value a row; docs/dataset-format.md describes every column for readers without this package.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from factory.dataset.codec import COUNTS, Packed, pack
from factory.records import Array, Generation, Logprobs, Message, Outcome, Pair, Rejection, SignalSpec, canonical_json

FORMAT_VERSION: Final = 1
SENTINEL: Final = b"\x01"  # ends every binary value: some readers strip trailing NUL bytes
MESSAGE: Final = pa.struct([("role", pa.string()), ("content", pa.string())])
COMPLETION: Final = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
IDS: Final = pa.list_(pa.int32())
MEASURES: Final = ("entropy_mean", "entropy_max", "surprise", "confidence", "difficulty")
CHOICES: Final = ("keep", "top_p", "positions", "min_entropy", "hidden_positions", "experts", "attention")
NO_SIGNALS: Final = SignalSpec()
PROMPT: Final = "prompt_"  # before the names of the columns that belong to the prompt's tokens
LABELS: Final = ("task", "level", "kind", "stage", "reason", "finish_reason")  # few values: a dictionary pays


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its Arrow type and how its values are taken from a batch of rows.

    `of` makes of an outcome what a value is taken from, once for all columns that name the same function.
    """

    name: str
    type: pa.DataType
    take: Callable[[Sequence[Any]], pa.Array]
    of: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one config, and how its files are compressed and encoded."""

    config: str
    folder: str
    columns: tuple[Column, ...]
    signals: SignalSpec

    @property
    def schema(self) -> pa.Schema:
        meaning = {
            "format_version": FORMAT_VERSION,
            "config": self.config,
            "top_k": self.signals.top_k,
            "layers": list(self.signals.layers),
            "final_norm": self.signals.final_norm,
        }
        meaning |= {"logprobs": "compact"} if self.signals.compact else {}
        choices = {name: getattr(self.signals, name) for name in CHOICES}
        meaning |= {name: value for name, value in choices.items() if value != getattr(NO_SIGNALS, name)}
        fields = [pa.field(column.name, column.type) for column in self.columns]
        return pa.schema(fields, metadata={"factory": canonical_json(meaning)})

    def writer_options(self) -> dict[str, Any]:
        """How Parquet stores this config (measured choices, see docs/decisions/0004 and 0018)."""
        common = {"write_page_index": True}  # where each page lies: readers of a few rows, the hub's viewer, skip to it
        if self.config == "hidden_states":
            # a page for each value: pyarrow copies each page, and small ones fit memory that was used before
            none = {"compression": "none", "use_dictionary": False, "write_statistics": False}
            return common | none | {"write_batch_size": 1}
        lists = {f"{c.name}.list.element": c for c in self.columns if pa.types.is_list(c.type)}
        split = [leaf for leaf, c in lists.items() if c.type.value_type in SPLIT and c.name not in PLAIN]
        levels = {leaf: HALF_LEVEL for leaf, c in lists.items() if c.type.value_type == pa.float16()}
        return common | {
            "compression": "zstd",
            "compression_level": levels or 1,
            "use_dictionary": [c.name for c in self.columns if c.name in LABELS],
            "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        }

    def table(self, outcomes: Sequence[Any]) -> pa.Table:
        """One table with a row for each outcome."""
        made: dict[Any, Sequence[Any]] = {None: outcomes}
        for of in {column.of for column in self.columns if column.of is not None}:
            made[of] = [of(outcome) for outcome in outcomes]
        arrays = [column.take(made[column.of]).cast(column.type) for column in self.columns]
        return pa.Table.from_arrays(arrays, schema=self.schema)


# Byte planes halve signals, but not every reader knows them: DuckDB none of float16, fastparquet none at all. So what
# is no signal, text and token ids, has only encodings that all readers know, and float16 a higher level in their place.
SPLIT: Final = (pa.int32(), pa.int16(), pa.uint16(), pa.float32())
PLAIN: Final = ("prompt_token_ids", "completion_token_ids", "layers", "shape")
HALF_LEVEL: Final = 3


def layouts(signals: SignalSpec) -> dict[str, Layout]:
    """The configs of a dataset with these signals, by name."""
    accepted = (*IDENTITY, *ACCEPTED, *logprob_columns(signals))
    configs = {
        "default": Layout("default", "data", accepted, signals),
        "rejected": Layout("rejected", "rejected", (*IDENTITY, *REJECTED), signals),
    }
    if signals.pairs:
        configs["preferences"] = Layout("preferences", "preferences", PREFERENCES, signals)
    if signals.layers:
        hidden = HIDDEN if signals.hidden_positions == "all" else (*HIDDEN, POSITIONS)
        configs["hidden_states"] = Layout("hidden_states", "hidden_states", hidden, signals)
    if signals.experts:
        configs["experts"] = Layout("experts", "experts", EXPERTS, signals)
    if signals.attention:
        configs["attention"] = Layout("attention", "attention", ATTENTION, signals)
    return configs


def row_bytes(outcome: Outcome) -> int:
    """About how many bytes an outcome holds in all its configs."""
    return config_bytes(outcome, "default") + sum(_inside_bytes(outcome).values())


def config_bytes(outcome: Outcome, config: str) -> int:
    """About how many bytes an outcome holds in one config, to cut row groups of an even size."""
    inside, generation = _inside_bytes(outcome), outcome.generation
    if config in inside:
        return inside[config]
    if generation is None:
        return 2000
    size = 4 * len(generation.text) + 2000 + generation.prompt_token_ids.nbytes
    for logprobs in (generation.logprobs, generation.prompt_logprobs):
        size += sum(array.nbytes for array in logprobs.arrays().values()) if logprobs is not None else 0
    return size


def _inside_bytes(outcome: Outcome) -> dict[str, int]:
    """Bytes of the configs beside the default one, which hold nothing else of a row."""
    sizes, generation = dict.fromkeys(("hidden_states", "experts", "attention"), 0), outcome.generation
    if generation is not None and generation.hidden_states is not None:
        sizes["hidden_states"] = generation.hidden_states.bits_NLH.nbytes
    if generation is not None and generation.experts is not None:
        sizes["experts"] = generation.experts.ids_NLE.nbytes + generation.experts.weights_NLE.nbytes
    if generation is not None and generation.attention is not None:
        sizes["attention"] = generation.attention.maps_LHNN.nbytes
    return sizes


def flat_list(arrays: Sequence[Array], dtype: Any) -> pa.Array:
    """Arrays of any shape as one list column, each flattened; no Python object per number."""
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([array.size for array in arrays], out=offsets[1:])
    with np.errstate(over="ignore"):  # the floor that stands for the log of 0 becomes -inf in float16
        flat = [array.reshape(-1).astype(dtype, copy=False) for array in arrays]
    values = np.concatenate([np.zeros(0, dtype), *flat])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def encode_states(rows: Sequence[Array]) -> pa.LargeBinaryArray:
    """Hidden states uint16 [N, L, H] as values of the column `states`: little-endian bits, then one sentinel byte.

    Each number is copied once.
    """
    states = [np.ascontiguousarray(bits_NLH, dtype="<u2") for bits_NLH in rows]
    ends = np.cumsum([0, *(bits.nbytes + len(SENTINEL) for bits in states)], dtype=np.int64)
    values = b"".join(part for bits in states for part in (bits.data, SENTINEL))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(states), [None, *map(pa.py_buffer, (ends, values))])


def decode_states(states: bytes, shape: Sequence[int]) -> Array:
    """The bits of a `states` value as uint16 [N, L, H]; a view, not a copy."""
    return np.frombuffer(states, dtype="<u2", count=int(np.prod(shape))).reshape(shape)


def _values(kind: pa.DataType, get: Callable[[Any], Any]) -> Callable[[Sequence[Any]], pa.Array]:
    return lambda outcomes: pa.array([get(outcome) for outcome in outcomes], type=kind)


def _text(name: str, get: Callable[[Any], Any]) -> Column:
    return Column(name, pa.string(), _values(pa.string(), lambda outcome: _clean(get(outcome))))


def _int(name: str, get: Callable[[Any], int], kind: pa.DataType | None = None) -> Column:
    kind = kind or pa.int32()
    return Column(name, kind, _values(kind, get))


def _array(name: str, get: Callable[[Any], Array], dtype: Any, of: Callable[[Any], Any] | None = None) -> Column:
    kind = pa.list_(pa.from_numpy_dtype(dtype))
    return Column(name, kind, lambda rows: flat_list([get(row) for row in rows], dtype), of)


def _clean(text: str | None) -> str | None:
    """Text that UTF-8 can hold: a lone surrogate becomes the replacement character."""
    return text if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _messages(outcome: Outcome) -> list[Message]:
    return [{key: _clean(text) or "" for key, text in message.items()} for message in outcome.prompt.messages]


def _turn(generation: Generation | None) -> list[dict[str, str | None]]:
    assert generation is not None
    answer, reasoning = _clean(generation.answer_text), _clean(generation.reasoning)
    return [{"role": "assistant", "content": answer, "reasoning_content": reasoning}]


def _findings(outcome: Outcome) -> list[str]:
    return [_clean(finding) or "" for finding in outcome.findings]


def _history(rejection: Rejection) -> list[str]:
    names = ("seed", "stage", "reason", "findings", "text")
    attempts = rejection.prompt.history
    return [json.dumps({name: getattr(attempt, name) for name in names}) for attempt in attempts]


def _rejected_ids(name: str) -> Callable[[Rejection], Array]:
    empty = np.zeros(0, np.int32)
    return lambda outcome: getattr(outcome.generation, name) if outcome.generation else empty


def _shape_of_maps(generation: Generation) -> tuple[int, ...]:
    return generation.attention.maps_LHNN.shape if generation.attention else ()


def _float(name: str, get: Callable[[Any], float | None]) -> Column:
    return Column(name, pa.float32(), _values(pa.float32(), get))


def _measure(name: str) -> Callable[[Any], float | None]:
    return lambda outcome: getattr(outcome.measures, name)


def _bool(name: str, get: Callable[[Any], bool]) -> Column:
    return Column(name, pa.bool_(), _values(pa.bool_(), get))


def _pair_messages(name: str, get: Callable[[Pair], Outcome]) -> Column:
    """One side of a pair: the assistant's turn, as TRL's preference trainers take it."""
    return Column(name, pa.list_(COMPLETION), _values(pa.list_(COMPLETION), lambda pair: _turn(get(pair).generation)))


IDENTITY: Final = (
    _text("id", lambda o: o.prompt.id),
    _text("prompt_id", lambda o: o.prompt.group or o.prompt.id),
    _int("sample", lambda o: o.prompt.sample),
    _text("task", lambda o: o.prompt.task),
    _text("level", lambda o: o.prompt.level),
    Column("prompt", pa.list_(MESSAGE), _values(pa.list_(MESSAGE), _messages)),
    _text("scenario", lambda o: o.prompt.scenario),
    _text("text", lambda o: o.generation.text if o.generation else ""),
    _text("finish_reason", lambda o: o.generation.finish_reason if o.generation else None),
    Column("findings", pa.list_(pa.string()), _values(pa.list_(pa.string()), _findings)),
    _int("seed", lambda o: o.prompt.seed, pa.int64()),
    _int("attempt", lambda o: o.prompt.attempt),
    _bool("repaired", lambda o: o.prompt.repaired),
    _text("answer", lambda o: o.answer),
    _float("pass_rate", lambda o: o.samples.pass_rate),
    _float("agreement", lambda o: o.samples.agreement),
    _float("judge_score", lambda o: o.verdict.score if o.verdict else None),
    _text("judge_reasoning", lambda o: o.verdict.reasoning if o.verdict else None),
)
ACCEPTED: Final = (
    Column("completion", pa.list_(COMPLETION), _values(pa.list_(COMPLETION), lambda o: _turn(o.generation))),
    _text("reasoning", lambda o: o.generation.reasoning),
    _float("score", lambda o: o.score),
    _array("prompt_token_ids", lambda o: o.generation.prompt_token_ids, np.int32),
    _array("completion_token_ids", lambda o: o.generation.completion_token_ids, np.int32),
    _int("answer_start", lambda o: o.generation.answer_start),
    *(_float(name, _measure(name)) for name in MEASURES),
    Column("reasoning_tokens", pa.int32(), _values(pa.int32(), lambda o: o.measures.reasoning_tokens)),
)


@dataclass(frozen=True, slots=True)
class Stored:
    """The distributions of one row as its columns hold them."""

    logprobs: Logprobs
    kept_TK: Array | None  # which entries hold an id; None where all do
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
    return columns


def _store(logprobs: Logprobs, signals: SignalSpec) -> Stored:
    return Stored(logprobs, logprobs.kept_TK if signals.ragged else None, pack(logprobs) if signals.compact else None)


def _logprob_columns(signals: SignalSpec, prefix: str, of: Callable[[Any], Stored]) -> tuple[Column, ...]:
    def column(name: str, dtype: Any, get: Callable[[Any], Array]) -> Column:
        return _array(prefix + name, get, dtype, of)

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


REJECTED: Final = (
    _text("kind", lambda o: o.kind),
    _text("stage", lambda o: o.stage),
    _text("reason", lambda o: o.reason),
    Column("history", pa.list_(pa.string()), _values(pa.list_(pa.string()), _history)),
    _array("prompt_token_ids", _rejected_ids("prompt_token_ids"), np.int32),
    _array("completion_token_ids", _rejected_ids("completion_token_ids"), np.int32),
)
PREFERENCES: Final = (
    _text("id", lambda pair: pair[0].prompt.group),
    _text("task", lambda pair: pair[0].prompt.task),
    _text("level", lambda pair: pair[0].prompt.level),
    Column("prompt", pa.list_(MESSAGE), _values(pa.list_(MESSAGE), lambda pair: _messages(pair[0]))),
    _pair_messages("chosen", lambda pair: pair[0]),
    _pair_messages("rejected", lambda pair: pair[1]),
    _text("chosen_id", lambda pair: pair[0].prompt.id),
    _text("rejected_id", lambda pair: pair[1].prompt.id),
    _int("rejected_attempt", lambda pair: pair[1].prompt.attempt),
    _text("rejected_reason", lambda pair: getattr(pair[1], "reason", None)),
)
HIDDEN: Final = (
    _text("id", lambda o: o.prompt.id),
    Column("layers", IDS, _values(IDS, lambda o: list(o.generation.hidden_states.layers))),
    Column("shape", IDS, _values(IDS, lambda o: list(o.generation.hidden_states.bits_NLH.shape))),
    _text("dtype", lambda o: "bfloat16"),
    Column(
        "states",
        pa.large_binary(),
        lambda outcomes: encode_states([o.generation.hidden_states.bits_NLH for o in outcomes]),
    ),
)
EXPERTS: Final = (
    _text("id", lambda o: o.prompt.id),
    Column("layers", IDS, _values(IDS, lambda o: list(o.generation.experts.blocks))),
    Column("shape", IDS, _values(IDS, lambda o: list(o.generation.experts.ids_NLE.shape))),
    _array("expert_ids", lambda o: o.generation.experts.ids_NLE, np.int16),
    _array("expert_weights", lambda o: o.generation.experts.weights_NLE, np.float16),
)


def _maps(outcomes: Sequence[Any]) -> pa.Array:
    """Maps as float16, then the sentinel; null where a row has none."""
    found = [outcome.generation.attention for outcome in outcomes]
    values = [None if one is None else one.maps_LHNN.astype("<f2", copy=False).tobytes() + SENTINEL for one in found]
    return pa.array(values, pa.large_binary())


ATTENTION: Final = (
    _text("id", lambda o: o.prompt.id),
    Column(
        "layers", IDS, _values(IDS, lambda o: list(o.generation.attention.blocks if o.generation.attention else ()))
    ),
    Column("shape", IDS, _values(IDS, lambda o: list(_shape_of_maps(o.generation)))),
    Column("maps", pa.large_binary(), _maps),
)
POSITIONS: Final = _array("positions", lambda o: o.generation.hidden_states.positions_N, np.int32)
