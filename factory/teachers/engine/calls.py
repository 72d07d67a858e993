"""Tool calls, read out of an answer in the model's own format by vLLM's parsers.

Which parser reads a model is tried out, as its chat template is: the template writes calls of ours as an assistant's
turn, and the first parser that gives exactly these back is the one. A job may name one instead (`teacher.tool_parser`).

A parser may drop what it does not understand: words after a call, a call that is no JSON. So what was read is written
by the template again, and where that has not the words of the answer, the answer cannot be read as calls.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from factory.errors import one_line
from factory.records import Message, ToolCall, as_turn
from factory.teachers.chat_template import ChatTemplate, TemplateRefusal
from factory.teachers.engine.build import Unfit

# tried first: the format of each is written by many models, and others read it too, with less care
FIRST: Final = ("hermes", "llama3_json", "mistral")
ASKED: Final[Message] = {"role": "user", "content": "Sentinelword"}
TRIAL_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "sentinel_tool",
        "description": "Try.",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "count": {"type": "integer"},
                "sure": {"type": "boolean"},
                "items": {"type": "array", "items": {"type": "string"}},
            },
        },
    },
}
TRIALS: Final = (
    ToolCall("sentinel_tool", '{"text": "Grüße, \\"you\\"", "count": 3, "sure": true, "items": ["a", "b c"]}'),
    ToolCall("sentinel_tool", '{"text": "again", "count": 14}'),
)
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
WORD = re.compile(r"[^\W\d_]+")


class CallReader:
    """Reads the answers to prompts with tools. Raises Unfit where no parser reads what the model's template writes."""

    def __init__(self, tokenizer: Any, template: ChatTemplate, name: str | None) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.parsers: dict[str, tuple[Any, Any]] = {}
        self.writes = self._trial_text(1) is not None
        self.name = self._choose(name)

    def read(self, answer: str, tools: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What an answer says and what it calls; one call without a name where it cannot be read."""
        if tools not in self.parsers:
            self.parsers[tools] = _open(self.name, self.tokenizer, json.loads(tools))
        content, calls = _extract(*self.parsers[tools], answer)
        if calls and self.writes and not self._is_whole(answer, content, calls):
            return "", (ToolCall("", answer),)
        if not calls and (mark := self._begun(answer)):
            return "", (ToolCall("", f"{mark} {answer}"),)
        return content, calls

    def _is_whole(self, answer: str, content: str, calls: tuple[ToolCall, ...]) -> bool:
        """Whether the template, given what was read, writes the words of the answer again."""
        with suppress(ValueError, TemplateRefusal):
            written = self.template.write_turn([ASKED], as_turn(content, calls))
            plain = ESCAPE.sub(lambda match: chr(int(match[1], 16)), answer)
            return Counter(WORD.findall(plain)) == Counter(WORD.findall(written))
        return False

    def _begun(self, answer: str) -> str:
        """The mark with which a call begins, where an answer without calls holds it; empty where it does not."""
        mark = self.mark
        return mark if mark and mark in answer else ""

    @property
    def mark(self) -> str:
        """What the template writes before a call that has nothing before it, up to its name; empty where nothing."""
        written = self._trial_text(1) or ""
        return re.split(r"[\s{\[(\"']|sentinel_tool", written.strip(), maxsplit=1)[0]

    def _choose(self, name: str | None) -> str:
        from vllm.tool_parsers import ToolParserManager

        known = ToolParserManager.list_registered()
        if name is not None and name not in known:
            raise Unfit(f"teacher.tool_parser {name!r}: vLLM has no such parser (has: {', '.join(known)})")
        if name is not None and not self.writes:
            return name  # the template writes no calls, so there is nothing to try it with
        order = [name] if name is not None else [*FIRST, *(other for other in known if other not in FIRST)]
        for candidate in order:
            if any(self._reads(candidate, count) for count in (2, 1)):
                return candidate
        if not self.writes:
            raise Unfit(
                "teacher.model: its chat template writes no tool calls, so their format is not known; name vLLM's "
                "parser of it as teacher.tool_parser, or use a model that was trained with tools"
            )
        which = "no parser of vLLM's reads" if name is None else f"teacher.tool_parser {name!r} does not read"
        raise Unfit(f"teacher.model: {which} the tool calls that its chat template writes")

    def _trial_text(self, count: int) -> str | None:
        """So many calls of ours as the template writes them; None where it drops or refuses them."""
        with suppress(TemplateRefusal):
            text = self.template.write_turn([ASKED], as_turn("", TRIALS[:count]))
            return text if text.count("sentinel_tool") == count else None
        return None

    def _reads(self, name: str, count: int) -> bool:
        text = self._trial_text(count)
        if text is None:
            return False
        try:
            parser, request = _open(name, self.tokenizer, [TRIAL_TOOL])
            # twice: one that remembers would read the second row otherwise
            results = [_extract(parser, request, text) for _ in range(2)]
        except Exception:  # many parsers ask for tokens of their model, each in its own way
            return False
        wanted = [(call.name, json.loads(call.arguments)) for call in TRIALS[:count]]
        return all(not content and list(_values(calls)) == wanted for content, calls in results)


def _values(calls: tuple[ToolCall, ...]) -> Iterator[tuple[str, Any]]:
    for call in calls:
        with suppress(ValueError):
            yield call.name, json.loads(call.arguments)


def _open(name: str, tokenizer: Any, tools: list[dict[str, Any]]) -> tuple[Any, Any]:
    """One of vLLM's parsers for these tools, and the request that it wants to be shown."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    request = ChatCompletionRequest(messages=[dict(ASKED)], model="teacher", tools=tools)
    return ToolParserManager.get_tool_parser(name)(tokenizer, request.tools), request


def _extract(parser: Any, request: Any, answer: str) -> tuple[str, tuple[ToolCall, ...]]:
    try:
        found = parser.extract_tool_calls(answer, request)
    except Exception as error:  # a parser is not ours, and a teacher may have written anything
        return "", (ToolCall("", f"{one_line(error, 200)}: {answer}"),)
    calls = tuple(ToolCall(call.function.name, call.function.arguments) for call in found.tool_calls)
    return (found.content or "").strip(), calls
