"""Chat: a row's messages as trainers take them, reasoning and calls inside the content or beside it.

Inside, calls are text as Hermes and Qwen spell them, for trainers that know no `tool_calls` and would drop them;
beside, the student's own template spells them. What may be called stands in a column `tools` either way.

Pictures stand in a column `images`, and their places in the prompt: as parts of a content, which templates of models
that see take, or as `<image>` in its text, for trainers that put the pictures there themselves.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from factory.dataset.tables import Field, Kind
from factory.errors import DatasetError
from factory.messages import text_of
from factory.publish.exports.asked import Asked
from factory.publish.exports.source import Source
from factory.texts.calls import spell_answer

MESSAGE: Final[dict[str, Kind]] = {"role": "text", "content": "text"}
CALLS: Final[Kind] = [{"type": "text", "function": {"name": "text", "arguments": "json"}}]
PARTS: Final[Kind] = [{"type": "text", "text": "text"}]
PLACE: Final = "<image>"
TAKEN: Final = (PLACE, "<video>", "<audio>")  # what those trainers look for in every text
SPELT: Final = f"a text spells {', '.join(TAKEN[:-1])} or {TAKEN[-1]}, as these trainers mark where media stand"


def inside(source: Source, asked: Asked, default: str) -> bool:
    """Whether reasoning and calls go inside the content."""
    # templates of most models that see drop a reasoning beside the content, and without a word
    return (asked.reasoning or ("content" if source.signals.images else default)) == "content"


def tell_kept(source: Source, asked: Asked, default: str) -> str:
    """What messages hold of a row, and where its reasoning and calls stand."""
    parts = [*(["reasoning"] if source.markers else []), *(["calls"] if source.signals.tools else [])]
    where = "inside the content" if inside(source, asked, default) else "beside the content"
    return f"messages, {' and '.join(parts)} {where}" if parts else "messages"


def _beside(source: Source, asked: Asked, default: str) -> dict[str, Kind]:
    """What stands beside the content of a turn."""
    return {"tool_calls": CALLS} if source.signals.tools and not inside(source, asked, default) else {}


def prompt_kind(source: Source, asked: Asked, default: str) -> Kind:
    """The kind of the messages that were asked."""
    content: dict[str, Kind] = {"content": PARTS} if source.signals.images else {}
    return [MESSAGE | content | _beside(source, asked, default)]


def turn_kind(source: Source, asked: Asked, default: str) -> Kind:
    """The kind of an assistant's turns."""
    thoughts = source.markers is not None and not inside(source, asked, default)
    reasoning: dict[str, Kind] = {"reasoning_content": "text"} if thoughts else {}
    return [MESSAGE | reasoning | _beside(source, asked, default)]


def tool_fields(source: Source, kind: str = "json") -> Sequence[Field]:
    """A column of what may be called, in datasets with tools."""
    return [Field("tools", kind)] if source.signals.tools else []


def tools_of(row: Any, source: Source) -> dict[str, Any]:
    """Its value: JSON text, null for a task without tools."""
    return {"tools": row["tools"]} if source.signals.tools else {}


def picture_fields(source: Source) -> Sequence[Field]:
    """A column of what is shown, in datasets with pictures."""
    return [Field("images", "pictures")] if source.signals.images else []


def pictures_of(row: Any, source: Source) -> dict[str, Any]:
    """Its value: the bytes of each picture, in the order of their places; none for a row without any."""
    return {"images": row["images"]} if source.signals.images else {}


def placed(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages with each content as one text, in which `<image>` stands where a picture is shown."""
    return [turn | {"content": _with_places(turn["content"])} for turn in turns]


def _with_places(content: Any) -> str:
    # nothing between the parts: so the templates of models that see put them together
    if isinstance(content, str):
        return content
    return "".join(PLACE if part["type"] == "image" else part["text"] for part in content)


def is_taken(turns: list[dict[str, Any]], source: Source) -> bool:
    """Whether a text spells a place itself, and so would be taken for a picture."""
    if not source.signals.images:
        return False
    texts = [text_of(turn["content"]) for turn in turns]
    return any(place in text for place in TAKEN for text in texts)


def prompt_of(row: Any, source: Source, asked: Asked, default: str) -> list[dict[str, Any]]:
    """The messages that were asked. Raises DatasetError for a transcript that was given without any."""
    prompt: list[dict[str, Any]] = row["prompt"]
    if not prompt:
        told = "has no messages: it was scored from texts or token ids"
        raise DatasetError(f"row {row['id']}: {told}; export token ids (such as --to trl-sft)")
    return [{"role": said["role"], **_content(said, source, asked, default)} for said in prompt]


def turn(content: str, reasoning: str | None, source: Source, asked: Asked, default: str) -> dict[str, Any]:
    """An assistant's turn without calls, or with calls that are text already."""
    return _assistant({"content": content, "reasoning_content": reasoning}, source, asked, default)


def completion_of(row: Any, name: str, source: Source, asked: Asked, default: str) -> list[dict[str, Any]]:
    """The assistant's turns in a row's column."""
    return [_assistant(said, source, asked, default) for said in row[name]]


def _assistant(said: dict[str, Any], source: Source, asked: Asked, default: str) -> dict[str, Any]:
    made = {"role": "assistant", **_content(said, source, asked, default)}
    reasoning = said.get("reasoning_content")
    if source.markers is None:
        return made
    if not inside(source, asked, default):
        return made | {"reasoning_content": reasoning}
    if reasoning is None:
        return made
    (start, end), (lead, trail, gap) = source.markers, source.spelling
    return made | {"content": f"{start}{lead}{reasoning.strip()}{trail}{end}{gap}{made['content']}"}


def _content(said: dict[str, Any], source: Source, asked: Asked, default: str) -> dict[str, Any]:
    """What a turn says, and its calls: as text behind it, or beside it."""
    content, calls = said["content"] or "", said.get("tool_calls")
    if not source.signals.tools:
        return {"content": content}
    if not inside(source, asked, default):
        return {"content": content, "tool_calls": calls}
    if not calls:
        return {"content": content}
    content = _with_places(content)  # a turn with calls is the assistant's, and shows no picture
    asked_for = [call["function"] for call in calls_of(said)]
    return {"content": spell_answer("calls", json.dumps({"content": content, "tool_calls": asked_for}))}


def calls_of(said: dict[str, Any]) -> list[dict[str, Any]]:
    """A stored turn's calls as chat templates take them: their arguments as objects."""
    return [
        call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
        for call in said.get("tool_calls") or ()
    ]
