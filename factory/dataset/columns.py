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
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from factory.messages import Message, as_turn
from factory.records import Generation, Outcome, Rejection
from factory.signals import Array, SignalSpec

MESSAGE: Final = pa.struct([("role", pa.string()), ("content", pa.string())])
# as TRL takes them: reasoning is part of the assistant's turn
COMPLETION: Final = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
# of jobs with tools; arguments are JSON, which `datasets` reads as objects: each tool has others
CALLS: Final = pa.list_(
    pa.struct([("type", pa.string()), ("function", pa.struct([("name", pa.string()), ("arguments", pa.json_())]))])
)
# of jobs with images: a content is a list of parts, which name the place of a picture among its text
IMAGES: Final = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # `datasets`' own Image
PARTS: Final = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
IDS: Final = pa.list_(pa.int32())
# of `Measures` those that are float32; `reasoning_tokens` is a number of tokens
MEASURES: Final = ("entropy_mean", "entropy_max", "surprise", "confidence", "difficulty")
# as they are called where a task shows the student another prompt, by the names of the teacher's
STUDENT_COLUMNS: Final = {"prompt": "student_prompt", "prompt_token_ids": "student_prompt_token_ids"}
TOKEN_IDS: Final = ("prompt_token_ids", "completion_token_ids")
MASK: Final = "completion_mask"


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
    plain = storage_of(kind)
    return lambda outcomes: pa.array([get(outcome) for outcome in outcomes], type=plain)


def storage_of(kind: pa.DataType) -> pa.DataType:
    """A type with JSON as the text that it is: Arrow makes arrays of that, and casts them to the type itself."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_list(kind):
        return pa.list_(storage_of(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, storage_of(field.type)) for field in kind])
    return kind


def message_type(signals: SignalSpec) -> pa.DataType:
    """One message of a prompt."""
    content = PARTS if signals.images else pa.string()
    return pa.struct([("role", pa.string()), ("content", content), *([("tool_calls", CALLS)] if signals.tools else [])])


def completion_type(signals: SignalSpec) -> pa.DataType:
    """One turn of the assistant."""
    return pa.struct([*COMPLETION, pa.field("tool_calls", CALLS)]) if signals.tools else COMPLETION


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


def _messages(outcome: Outcome, signals: SignalSpec) -> list[Message]:
    return _told(outcome.prompt.messages, signals)


def _told(messages: Sequence[Message], signals: SignalSpec) -> list[Message]:
    return [
        {"role": message["role"], "content": _content(message["content"], signals)}
        | ({"tool_calls": _calls_of(message.get("tool_calls"))} if signals.tools else {})
        for message in messages
    ]


def _student_messages(outcome: Outcome, signals: SignalSpec) -> list[Message]:
    return _told(outcome.prompt.student_messages or outcome.prompt.messages, signals)


def _student_ids(generation: Generation) -> Array:
    ids = generation.student_prompt_token_ids
    return generation.prompt_token_ids if ids is None else ids


def _content(content: Any, signals: SignalSpec) -> Any:
    """Text, or in a job with images parts, in every message: a column has one type."""
    if not signals.images:
        return _clean(content) or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{"type": part["type"], "text": _clean(part.get("text"))} for part in parts]


def _calls_of(calls: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Calls as chat templates take them, their arguments as JSON text."""
    if not calls:
        return None
    told = ((call["function"]["name"], json.dumps(call["function"]["arguments"])) for call in calls)
    return [{"type": "function", "function": {"name": _clean(name), "arguments": text}} for name, text in told]


def _turn(outcome: Outcome, tools: bool) -> list[dict[str, Any]]:
    # only accepted rows and pairs have a turn, and neither is made without a completion
    generation = outcome.generation
    assert generation is not None
    answer, reasoning = _clean(generation.answer_text), _clean(generation.reasoning)
    calls: list[dict[str, Any]] = []
    if generation.calls:
        # the worse side of a pair may hold what is no call: then its text stands as it was written
        with suppress(ValueError):
            turn = as_turn(generation.content, generation.calls)
            answer, calls = _clean(turn["content"]), turn["tool_calls"]
    more = {"tool_calls": _calls_of(calls)} if tools else {}
    return [{"role": "assistant", "content": answer, "reasoning_content": reasoning} | more]


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


def _turn_column(name: str, signals: SignalSpec, get: Callable[[Any], Outcome]) -> Column:
    """The assistant's turn, as TRL takes it: a row's own, or one side of a pair."""
    kind = pa.list_(completion_type(signals))
    return Column(name, kind, take_values(kind, lambda row: _turn(get(row), signals.tools)))


def _prompt_column(signals: SignalSpec, get: Callable[[Any], Outcome]) -> Column:
    kind = pa.list_(message_type(signals))
    return Column("prompt", kind, take_values(kind, lambda row: _messages(get(row), signals)))


def _more_columns(signals: SignalSpec, get: Callable[[Any], Outcome]) -> tuple[Column, ...]:
    """What a row is asked with beside its messages."""
    tools = Column("tools", pa.json_(), take_values(pa.json_(), lambda row: _clean(get(row).prompt.tools or None)))
    images = Column("images", IMAGES, take_values(IMAGES, lambda row: _pictures(get(row).prompt.images)))
    return (*((tools,) if signals.tools else ()), *((images,) if signals.images else ()))


def _pictures(images: Sequence[bytes]) -> list[dict[str, Any]]:
    return [{"bytes": png, "path": None} for png in images]


def _student_column(signals: SignalSpec, get: Callable[[Any], Outcome]) -> tuple[Column, ...]:
    """What the student is shown, only where a task shows it something else; the same for a row of another task."""
    kind = pa.list_(message_type(signals))
    shown = Column("student_prompt", kind, take_values(kind, lambda row: _student_messages(get(row), signals)))
    return (shown,) if signals.students else ()


def itself(row: Any) -> Any:
    return row


# only where rows come from the user's data
SOURCE_ROW: Final = text_column("source_row", lambda o: o.prompt.source_row)
# only where several teachers answer
TEACHER: Final = text_column("teacher", lambda o: o.prompt.teacher)
STUDENT_IDS: Final = array_column("student_prompt_token_ids", lambda o: _student_ids(o.generation), np.int32)


def identity_columns(signals: SignalSpec) -> tuple[Column, ...]:
    """What accepted and rejected rows have alike; None where a row has no such thing."""
    return (
        text_column("id", lambda o: o.prompt.id),
        # a prompt's first sample has the prompt's id for its own
        text_column("prompt_id", lambda o: o.prompt.group or o.prompt.id),
        int_column("sample", lambda o: o.prompt.sample),
        text_column("task", lambda o: o.prompt.task),
        text_column("level", lambda o: o.prompt.level),
        _prompt_column(signals, itself),
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
        *((SOURCE_ROW,) if signals.sourced else ()),
        *((TEACHER,) if signals.teachers else ()),
        *_student_column(signals, itself),
        *_more_columns(signals, itself),
    )


# only where an endpoint has answered: why a row has no ids, null where it has
WITHOUT_IDS: Final = text_column("without_ids", lambda o: o.generation.without_ids or None)


def accepted_columns(signals: SignalSpec) -> tuple[Column, ...]:
    """What accepted rows have beside that, but for their distributions."""
    return (
        *((STUDENT_IDS,) if signals.students else ()),
        _turn_column("completion", signals, itself),
        text_column("reasoning", lambda o: o.generation.reasoning),
        float_column("score", lambda o: o.score),
        array_column("prompt_token_ids", lambda o: o.generation.prompt_token_ids, np.int32),
        array_column("completion_token_ids", lambda o: o.generation.completion_token_ids, np.int32),
        int_column("answer_start", lambda o: o.generation.answer_start),
        *(float_column(name, _measure(name)) for name in MEASURES),
        Column("reasoning_tokens", pa.int32(), take_values(pa.int32(), lambda o: o.measures.reasoning_tokens)),
        *((WITHOUT_IDS,) if signals.source == "endpoint" else ()),
        # only where a completion may hold tokens between scored turns
        *([array_column(MASK, lambda o: o.generation.completion_mask, np.uint8)] if signals.masked else []),
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
# of the last attempt: with those of accepted rows they tell whether a sure answer is a right one
REJECTED_MEASURES: Final = (
    *(float_column(name, _measure(name)) for name in MEASURES if name != "difficulty"),
    Column("reasoning_tokens", pa.int32(), take_values(pa.int32(), lambda o: o.measures.reasoning_tokens)),
)


def preference_columns(signals: SignalSpec) -> tuple[Column, ...]:
    """Pairs as TRL's preference trainers take them; the ids lead to the whole rows."""
    return (
        text_column("id", lambda pair: pair[0].prompt.group),
        text_column("task", lambda pair: pair[0].prompt.task),
        text_column("level", lambda pair: pair[0].prompt.level),
        _prompt_column(signals, lambda pair: pair[0]),
        _turn_column("chosen", signals, lambda pair: pair[0]),
        _turn_column("rejected", signals, lambda pair: pair[1]),
        text_column("chosen_id", lambda pair: pair[0].prompt.id),
        text_column("rejected_id", lambda pair: pair[1].prompt.id),
        # an attempt that a retry replaced stands in no other config
        int_column("rejected_attempt", lambda pair: pair[1].prompt.attempt),
        text_column("rejected_reason", lambda pair: getattr(pair[1], "reason", None)),
        *_more_columns(signals, lambda pair: pair[0]),
        *_student_column(signals, lambda pair: pair[0]),
    )
