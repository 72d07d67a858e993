"""Chat: a row's messages as trainers take them, its reasoning inside the answer or beside it."""

from typing import Any, Final

from factory.dataset.tables import Kind
from factory.errors import DatasetError
from factory.publish.exports.asked import Asked
from factory.publish.exports.source import Source

MESSAGES: Final[Kind] = [{"role": "text", "content": "text"}]
TURNS: Final[Kind] = [{"role": "text", "content": "text", "reasoning_content": "text"}]


def inside(source: Source, asked: Asked, default: str) -> bool:
    """Whether the reasoning goes inside the content; without markers there is none to put there."""
    return (asked.reasoning or default) == "content" and source.markers is not None


def prompt_of(row: Any) -> list[dict[str, Any]]:
    """The messages that were asked. Raises DatasetError for a transcript that was given without any."""
    prompt: list[dict[str, Any]] = row["prompt"]
    if not prompt:
        told = "has no messages: it was scored from texts or token ids"
        raise DatasetError(f"row {row['id']}: {told}; export token ids (such as --to trl-sft)")
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt]


def turn_kind(source: Source, asked: Asked, default: str) -> Kind:
    """The kind of an assistant's turns."""
    return MESSAGES if inside(source, asked, default) or source.markers is None else TURNS


def turn(content: str, reasoning: str | None, source: Source, asked: Asked, default: str) -> dict[str, Any]:
    """An assistant's turn."""
    if source.markers is None:
        return {"role": "assistant", "content": content}
    if not inside(source, asked, default):
        return {"role": "assistant", "content": content, "reasoning_content": reasoning}
    start, end = source.markers
    thought = "" if reasoning is None else f"{start}\n{reasoning.strip()}\n{end}\n\n"
    return {"role": "assistant", "content": thought + content}


def completion_of(row: Any, name: str, source: Source, asked: Asked, default: str) -> list[dict[str, Any]]:
    """The assistant's turns in a row's column."""
    return [turn(said["content"] or "", said.get("reasoning_content"), source, asked, default) for said in row[name]]
