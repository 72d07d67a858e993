"""Tool calls as text: the spelling that the scripted teacher and golden lines have, and what an answer is made of.

    Right away.                                                       content, may be empty
    <tool_call>
    {"name": "set_timer", "arguments": {"minutes": 10}}
    </tool_call>                                                      one block a call

It is that of Hermes and Qwen. A real model writes its own format, which its engine reads; from there on both are
the same values. Reading is strict: what is neither content before the calls nor a whole call makes a call without a
name, whose arguments are the text that cannot be read.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from factory.records import Form, ToolCall

START, END = "<tool_call>", "</tool_call>"
BLOCK = re.compile(rf"\s*{START}(.*?){END}", re.DOTALL)
COMPACT = (",", ":")


def read_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """The content and the calls of a text in the spelling above."""
    content, mark, _ = text.partition(START)
    rest, calls = text[len(content) :], list[ToolCall]()
    while (block := BLOCK.match(rest)) is not None:
        calls.append(_read_call(block[1]))
        rest = rest[block.end() :]
    if rest.strip() and mark:
        calls.append(unreadable(rest.strip()))
    return content.strip(), tuple(calls)


def _read_call(text: str) -> ToolCall:
    try:
        call = json.loads(text)
        if call.keys() != {"name", "arguments"} or not isinstance(call["name"], str):
            raise ValueError
        return ToolCall(call["name"], json.dumps(call["arguments"], ensure_ascii=False))
    except (ValueError, RecursionError, AttributeError):
        return unreadable(text.strip())


def unreadable(text: str) -> ToolCall:
    """What stands for a call that cannot be read."""
    return ToolCall("", text)


def compose_reply(content: str, calls: Iterable[tuple[str, Any]]) -> str:
    """The answer of a task with tools as rows keep it: JSON of its content and its calls (name, arguments)."""
    told = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return json.dumps({"content": content, "tool_calls": told}, ensure_ascii=False, separators=COMPACT)


def spell_answer(form: Form, answer: str) -> str:
    """An answer as a teacher would write it: a reply with its calls spelt out, any other as it stands."""
    if form != "calls":
        return answer
    reply = json.loads(answer)
    blocks = [f"{START}\n{json.dumps(call, ensure_ascii=False)}\n{END}" for call in reply["tool_calls"]]
    return "\n".join([*filter(None, [reply["content"]]), *blocks])
