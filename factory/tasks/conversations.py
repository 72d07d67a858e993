"""Conversations as a row of the user's holds them: messages, calls of tools, and which turns are scored."""

import json
from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from factory.messages import Message
from factory.records import Transcript


class Function(BaseModel):
    """What is called, and with what: JSON, or an object."""

    model_config = ConfigDict(extra="ignore")
    name: str = Field(min_length=1)
    arguments: dict[str, Any] | str = Field(default_factory=dict)


class Call(BaseModel):
    """A call of a tool: OpenAI's form, or its function alone."""

    model_config = ConfigDict(extra="ignore")
    id: str | None = None
    type: Literal["function"] = "function"
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _read_bare(cls, value: Any) -> Any:
        return (
            value if not isinstance(value, dict) or "function" in value else {"id": value.get("id"), "function": value}
        )

    def plain(self) -> dict[str, Any]:
        """Arguments as an object where they are one: templates print JSON of them."""
        arguments: Any = self.function.arguments
        if isinstance(arguments, str):
            with suppress(ValueError):
                arguments = json.loads(arguments)
        named = {"type": "function", "function": {"name": self.function.name, "arguments": arguments}}
        return named | ({} if self.id is None else {"id": self.id})


class Turn(BaseModel):
    """One message; whatever else it carries is not for the teacher. What calls tools may say nothing beside it."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _say_nothing(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("content") is None and value.get("tool_calls"):
            return value | {"content": ""}
        return value

    @model_validator(mode="after")
    def _who_calls(self) -> "Turn":
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a {self.role} turn calls tools; only an assistant does")
        return self

    def message(self, calls: bool) -> Message:
        """As the teacher is sent it: all values texts, calls as JSON. `calls`: whether the conversation has any."""
        told = {"role": self.role, "content": self.content}
        told |= {} if self.reasoning_content is None else {"reasoning_content": self.reasoning_content}
        if self.tool_calls:
            told["tool_calls"] = json.dumps([call.plain() for call in self.tool_calls])
        named = {"tool_call_id": self.tool_call_id, "name": self.name} if calls and self.role == "tool" else {}
        return told | {name: value for name, value in named.items() if value is not None}


TURNS = TypeAdapter(list[Turn])
MASK = TypeAdapter(list[Literal[0, 1]])  # true and false too


def read_turns(value: Any) -> list[Message]:
    turns = TURNS.validate_python(value)
    calls = any(turn.tool_calls for turn in turns)
    return [turn.message(calls) for turn in turns]


def is_empty(turn: Message) -> bool:
    return not turn["content"].strip() and "tool_calls" not in turn


def read_tools(value: Any) -> str | None:
    """The tools that a template is shown, as JSON: a list of objects, or the JSON of one. None without any."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError("tools: need a list of objects, or the JSON of one")
    return json.dumps(plain(value))


def read_several(turns: list[Message], mask: Any, tools: str | None) -> tuple[tuple[Message, ...], Transcript]:
    """A conversation whose assistant turns are scored where a mask says so: a number for each message, or each turn."""
    own = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    told = [1] * len(own) if mask is None else MASK.validate_python(mask)
    if len(told) not in (len(own), len(turns)):
        raise ValueError(f"a mask of {len(told)} entries for {len(turns)} messages, {len(own)} of them the assistant's")
    pairs = zip(own, told, strict=True) if len(told) == len(own) else enumerate(told)
    scored = [place for place, one in pairs if one]
    wrong = [place + 1 for place in scored if place not in own or is_empty(turns[place])]
    if wrong or not scored:
        told_wrong = (
            f"message {wrong[0]} is scored, and is empty or not the assistant's" if wrong else "no turn is scored"
        )
        raise ValueError(told_wrong)
    if not scored[0]:
        raise ValueError("nothing stands before the first turn that is scored")
    last = scored[-1]
    return tuple(turns[:last]), Transcript(turn=turns[last], scored=tuple(scored[:-1]), tools=tools)


def kept_calls(messages: tuple[Message, ...], transcript: Transcript) -> dict[str, Any]:
    """What the column `prompt` has no place for: the whole conversation where tools are in it, and the tools."""
    whole = [*messages, *([transcript.turn] if transcript.turn else [])]
    if transcript.tools is None and not any("tool_calls" in message for message in whole):
        return {}
    calls = [m | {"tool_calls": json.loads(m["tool_calls"])} if "tool_calls" in m else m for m in whole]
    return {"messages": calls, "tools": json.loads(transcript.tools or "[]")}


def plain(value: Any) -> Any:
    """Values of a table as JSON has them; what JSON has no form for as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
