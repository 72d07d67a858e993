"""Columns: how outcomes become Arrow arrays, and the columns of every row: who asked what, and what came of it.

A column is a name, a type and a function of a batch of outcomes, so what is written in a row can be read here line by
line. Names and types are the format, and `verify` compares them with each file's. Those of the signals stand in
`signal_columns`; which config has which is in `layouts`. No column depends on when or where a job runs: equal outcomes
are equal bytes.

    a list column of 3 rows     values   [a b c d e]        `flat_list` makes it of arrays of any shape,
                                offsets  [0 3 3 5]          `read_list` gives both back: row i is values[o_i : o_(i+1)]

docs/dataset-format.md describes every column for readers without this package.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from factory.records import Generation, Message, Outcome, Pair, Rejection
from factory.signals import Array

MESSAGE: Final = pa.struct([("role", pa.string()), ("content", pa.string())])
# as TRL takes them: reasoning is part of the assistant's turn
COMPLETION: Final = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
IDS: Final = pa.list_(pa.int32())
# of `Measures` those that are float32; `reasoning_tokens` is a number of tokens
MEASURES: Final = ("entropy_mean", "entropy_max", "surprise", "confidence", "difficulty")
TOKEN_IDS: Final = ("prompt_token_ids", "completion_token_ids")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its Arrow type and how its values are taken from a batch of rows."""

    name: str
    type: pa.DataType
    # Of all rows of a row group at once: numbers stay arrays and are not touched one by one.
    take: Callable[[Sequence[Any]], pa.Array]
    # Makes of an outcome what `take` is given, once for all columns that name the same function (they are compared by
    # identity): packing a distribution is dear, and four columns are taken from it. None: the outcome itself.
    of: Callable[[Any], Any] | None = None


def flat_list(arrays: Sequence[Array], dtype: Any) -> pa.Array:
    """Arrays of any shape as one list column, each flattened; no Python object per number."""
    # Arrow's plain list has int32 offsets; row groups of about 12 MB stay far below their end
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([array.size for array in arrays], out=offsets[1:])
    with np.errstate(over="ignore"):  # the floor that stands for the log of 0 becomes -inf in float16
        flat = [array.reshape(-1).astype(dtype, copy=False) for array in arrays]
    # an empty one first: no rows at all have a dtype too
    values = np.concatenate([np.zeros(0, dtype), *flat])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def read_list(column: Any) -> tuple[Array, Array]:
    """The values of a list column of B rows and its offsets from 0, [B + 1]: what `flat_list` made; views."""
    offsets = column.offsets.to_numpy()
    # a slice of a column keeps the values of the whole
    return column.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def list_lengths(column: Any) -> Array:
    """How many values each row of a list column has, int32 [B]."""
    lengths: Array = np.diff(column.offsets.to_numpy())
    return lengths


def take_values(kind: pa.DataType, get: Callable[[Any], Any]) -> Callable[[Sequence[Any]], pa.Array]:
    return lambda outcomes: pa.array([get(outcome) for outcome in outcomes], type=kind)


def text_column(name: str, get: Callable[[Any], Any]) -> Column:
    return Column(name, pa.string(), take_values(pa.string(), lambda outcome: _clean(get(outcome))))


def int_column(name: str, get: Callable[[Any], int], kind: pa.DataType | None = None) -> Column:
    kind = kind or pa.int32()
    return Column(name, kind, take_values(kind, get))


def array_column(name: str, get: Callable[[Any], Array], dtype: Any, of: Callable[[Any], Any] | None = None) -> Column:
    kind = pa.list_(pa.from_numpy_dtype(dtype))
    return Column(name, kind, lambda rows: flat_list([get(row) for row in rows], dtype), of)


def _clean(text: str | None) -> str | None:
    """Text that UTF-8 can hold: a lone surrogate becomes a question mark, or Arrow would refuse the whole shard."""
    return text if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _messages(outcome: Outcome) -> list[Message]:
    return [{key: _clean(text) or "" for key, text in message.items()} for message in outcome.prompt.messages]


def _turn(generation: Generation | None) -> list[dict[str, str | None]]:
    # only accepted rows and pairs have a turn, and neither is made without a completion
    assert generation is not None
    answer, reasoning = _clean(generation.answer_text), _clean(generation.reasoning)
    return [{"role": "assistant", "content": answer, "reasoning_content": reasoning}]


def _findings(outcome: Outcome) -> list[str]:
    return [_clean(finding) or "" for finding in outcome.findings]


def _history(rejection: Rejection) -> list[str]:
    names = ("seed", "stage", "reason", "findings", "text")
    attempts = rejection.prompt.history
    # one text an attempt: lists of structs stream 20 to 40 times slower, and few will read these
    return [json.dumps({name: getattr(attempt, name) for name in names}) for attempt in attempts]


def _rejected_ids(name: str) -> Callable[[Rejection], Array]:
    empty = np.zeros(0, np.int32)
    return lambda outcome: getattr(outcome.generation, name) if outcome.generation else empty


def float_column(name: str, get: Callable[[Any], float | None]) -> Column:
    return Column(name, pa.float32(), take_values(pa.float32(), get))


def _measure(name: str) -> Callable[[Any], float | None]:
    return lambda outcome: getattr(outcome.measures, name)


def bool_column(name: str, get: Callable[[Any], bool]) -> Column:
    return Column(name, pa.bool_(), take_values(pa.bool_(), get))


def _pair_messages(name: str, get: Callable[[Pair], Outcome]) -> Column:
    """One side of a pair: the assistant's turn, as TRL's preference trainers take it."""
    return Column(
        name, pa.list_(COMPLETION), take_values(pa.list_(COMPLETION), lambda pair: _turn(get(pair).generation))
    )


# what accepted and rejected rows have alike; None where a row has no such thing
IDENTITY: Final = (
    text_column("id", lambda o: o.prompt.id),
    # a prompt's first sample has the prompt's id for its own
    text_column("prompt_id", lambda o: o.prompt.group or o.prompt.id),
    int_column("sample", lambda o: o.prompt.sample),
    text_column("task", lambda o: o.prompt.task),
    text_column("level", lambda o: o.prompt.level),
    Column("prompt", pa.list_(MESSAGE), take_values(pa.list_(MESSAGE), _messages)),
    text_column("scenario", lambda o: o.prompt.scenario),
    text_column("text", lambda o: o.generation.text if o.generation else ""),
    text_column("finish_reason", lambda o: o.generation.finish_reason if o.generation else None),
    Column("findings", pa.list_(pa.string()), take_values(pa.list_(pa.string()), _findings)),
    int_column("seed", lambda o: o.prompt.seed, pa.int64()),
    int_column("attempt", lambda o: o.prompt.attempt),
    bool_column("repaired", lambda o: o.prompt.repaired),
    text_column("answer", lambda o: o.answer),
    float_column("pass_rate", lambda o: o.samples.pass_rate),
    float_column("agreement", lambda o: o.samples.agreement),
    float_column("judge_score", lambda o: o.verdict.score if o.verdict else None),
    text_column("judge_reasoning", lambda o: o.verdict.reasoning if o.verdict else None),
)
# only where rows come from the user's data
SOURCE_ROW: Final = text_column("source_row", lambda o: o.prompt.source_row)
# only where an endpoint has answered: why a row has no ids, null where it has
WITHOUT_IDS: Final = text_column("without_ids", lambda o: o.generation.without_ids or None)
ACCEPTED: Final = (
    Column("completion", pa.list_(COMPLETION), take_values(pa.list_(COMPLETION), lambda o: _turn(o.generation))),
    text_column("reasoning", lambda o: o.generation.reasoning),
    float_column("score", lambda o: o.score),
    array_column("prompt_token_ids", lambda o: o.generation.prompt_token_ids, np.int32),
    array_column("completion_token_ids", lambda o: o.generation.completion_token_ids, np.int32),
    int_column("answer_start", lambda o: o.generation.answer_start),
    *(float_column(name, _measure(name)) for name in MEASURES),
    Column("reasoning_tokens", pa.int32(), take_values(pa.int32(), lambda o: o.measures.reasoning_tokens)),
)


# without signals: nobody trains on these rows, and the ids say what the teacher did
REJECTED: Final = (
    text_column("kind", lambda o: o.kind),
    text_column("stage", lambda o: o.stage),
    text_column("reason", lambda o: o.reason),
    Column("history", pa.list_(pa.string()), take_values(pa.list_(pa.string()), _history)),
    array_column("prompt_token_ids", _rejected_ids("prompt_token_ids"), np.int32),
    array_column("completion_token_ids", _rejected_ids("completion_token_ids"), np.int32),
)
# as TRL's preference trainers take them; the ids lead to the whole rows
PREFERENCES: Final = (
    text_column("id", lambda pair: pair[0].prompt.group),
    text_column("task", lambda pair: pair[0].prompt.task),
    text_column("level", lambda pair: pair[0].prompt.level),
    Column("prompt", pa.list_(MESSAGE), take_values(pa.list_(MESSAGE), lambda pair: _messages(pair[0]))),
    _pair_messages("chosen", lambda pair: pair[0]),
    _pair_messages("rejected", lambda pair: pair[1]),
    text_column("chosen_id", lambda pair: pair[0].prompt.id),
    text_column("rejected_id", lambda pair: pair[1].prompt.id),
    # an attempt that a retry replaced stands in no other config
    int_column("rejected_attempt", lambda pair: pair[1].prompt.attempt),
    text_column("rejected_reason", lambda pair: getattr(pair[1], "reason", None)),
)
