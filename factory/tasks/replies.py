"""Replies: the answers of a task that declares tools. A tool is a pydantic model, a call an instance of it.

    class SetTimer(BaseModel):
        \"\"\"Start a timer.\"\"\"
        model_config = ConfigDict(extra="forbid")
        minutes: int = Field(ge=1, le=600, description="how long it runs")

    TOOLS = [SetTimer]
    Answer = Reply

    def solve(scenario) -> tuple[str, Reply]: return "Ten minutes.", Reply(calls=[SetTimer(minutes=10)])

A tool is called as its class is, in snake case (`set_timer`), or by the title of its `model_config`; what it does is
its docstring.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from factory.tasks.answers import Schema, describe_answer

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
NAMED = ("properties", "$defs")  # whose keys are names of the author's


@dataclass(frozen=True)
class Reply:
    """One turn of an assistant that has tools: what it says, and the calls that it makes, in order. Either may lack."""

    text: str = ""
    calls: Sequence[BaseModel] = ()


def tool_name(tool: type[BaseModel]) -> str:
    """What a tool is called."""
    title = tool.model_config.get("title")
    return title or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", tool.__name__).lower()


def describe_tool(tool: type[BaseModel]) -> dict[str, Any]:
    """A tool as chat templates and trainers take it: the JSON that transformers' `get_json_schema` makes."""
    schema = _untitled(describe_answer(tool))
    told = str(schema.pop("description", ""))
    schema.setdefault("properties", {})
    return {"type": "function", "function": {"name": tool_name(tool), "description": told, "parameters": schema}}


def describe_tools(tools: Sequence[type[BaseModel]]) -> str:
    """The JSON of a task's tools; empty where there are none."""
    return json.dumps([describe_tool(tool) for tool in tools], ensure_ascii=False) if tools else ""


def _untitled(schema: Any) -> Any:
    """A schema without pydantic's titles, which only repeat the names."""
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "title"}
    return {
        key: {name: _untitled(inner) for name, inner in value.items()}
        if key in NAMED
        else value
        if key in ("default", "enum", "const", "examples")
        else _untitled(value)
        for key, value in kept.items()
    }


def describe_reply(tools: Sequence[type[BaseModel]]) -> Schema:
    """The JSON schema of the answers that a task with these tools has."""
    call = {
        "type": "object",
        "properties": {
            "name": {"enum": [tool_name(tool) for tool in tools]},
            "arguments": {"type": "object", "additionalProperties": True},
        },
    }
    return {
        "type": "object",
        "properties": {"content": {"type": "string"}, "tool_calls": {"type": "array", "items": call}},
        "additionalProperties": False,
    }


def find_tool_problems(tools: Any, path: Path) -> Iterator[str]:
    """What keeps a module's TOOLS from being tools."""
    if not isinstance(tools, list | tuple) or not tools:
        yield f"{path}: TOOLS must be a list of pydantic models, got {tools!r:.80}"
        return
    if strange := [tool for tool in tools if not (isinstance(tool, type) and issubclass(tool, BaseModel))]:
        yield f"{path}: TOOLS must be a list of pydantic models, has {strange[0]!r:.80}"
        return
    names = [tool_name(tool) for tool in tools]
    for name in dict.fromkeys(names):
        if not NAME.fullmatch(name):
            yield f"{path}: TOOLS: a tool is called {name!r}; use letters, digits, _ and -, a letter first, at most 64"
        if names.count(name) > 1:
            yield f"{path}: TOOLS: two tools are called {name!r}; give one another title in its model_config"


def find_tool_warnings(tools: Sequence[type[BaseModel]], path: Path) -> Iterator[str]:
    """What of a tool is not wrong and will be missed."""
    for tool in tools:
        if tool.model_config.get("extra") != "forbid":
            yield f'{path}: {tool.__name__}: has no extra="forbid"; a teacher adds arguments that no check sees'
        if not describe_tool(tool)["function"]["description"]:
            yield f"{path}: {tool.__name__}: has no docstring; it is what tells a teacher what the tool does"
