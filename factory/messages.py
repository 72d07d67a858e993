"""Messages: the turns of a conversation as chat templates and trainers take them, and the calls of tools in one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# `role` and `content` (text, or parts: `type` "text" with `text`, or "image"); perhaps `reasoning_content`, or
# `tool_calls` as chat templates take them
Message = dict[str, Any]
IMAGE = "[image]"
KNOWN_MARKERS = (  # texts that models put around their reasoning
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, and most others
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
)


def text_of(content: str | Sequence[dict[str, Any]]) -> str:
    """A content as text; a picture is told as `[image]`."""
    if isinstance(content, str):
        return content
    return "\n".join(IMAGE if part["type"] == "image" else str(part["text"]) for part in content)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a teacher made: the tool's name and the JSON text of its arguments, neither trusted yet.

    What cannot be read as a call has no name, and stands as it was written in `arguments`.
    """

    name: str
    arguments: str


def as_turn(content: str, calls: Sequence[ToolCall]) -> Message:
    """An assistant's turn with calls as chat templates take it. Raises ValueError for a call that cannot be read."""
    told = [_as_function(call) for call in calls]
    return {"role": "assistant", "content": content} | ({"tool_calls": told} if told else {})


def _as_function(call: ToolCall) -> dict[str, Any]:
    arguments = json.loads(call.arguments)
    if not call.name or not isinstance(arguments, dict):
        raise ValueError(f"no call: {call.arguments[:80]}")
    return {"type": "function", "function": {"name": call.name, "arguments": arguments}}
