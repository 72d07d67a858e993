"""Turns: a user template may hold the conversation before its request, each turn between two tags.

    {% turn "user" %}I moved to {{ scenario.city }}.{% endturn %}
    {% turn "assistant" %}Noted.{% endturn %}
    Which trains leave from where I live?

What stands outside the tags is the request, the last turn of the user. Where nothing does, the last tag is the request.

The tags are parsed when a template is compiled. A rendered turn leaves a mark in the text with a name that is drawn for
this one rendering, so nothing that a scenario holds can begin a turn or end one, whatever it spells.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from factory.errors import nearest
from factory.messages import Message, text_of
from factory.tasks.pictures import PictureError, read_picture

ROLES = ("user", "assistant")
TAG = "turn"


class TurnError(Exception):
    """Turns that are no conversation, or do not stand where they are read; `reason` is what the row will say."""

    def __init__(self, detail: str, reason: str = "render_failed") -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(slots=True)
class Marked:
    """What one rendering marked in its text, in the order in which it was made."""

    # of private use, and never seen in a prompt: the marks are taken out again
    name: str = field(default_factory=lambda: f"\ue0f4{secrets.token_hex(8)}")
    turns: list[Message] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)

    def mark_picture(self, png: bytes) -> str:
        self.pictures.append(png)
        return f"{self.name}!{len(self.pictures) - 1}\ue0f5"

    def mark(self, role: str, text: str) -> str:
        self.turns.append({"role": role, "content": text})
        return f"{self.name}:{len(self.turns) - 1}\ue0f5"

    def read(self, text: str) -> list[Message]:
        """The turns of a rendered text, the request last. Raises TurnError."""
        pieces = re.split(f"{self.name}:(\\d+)\ue0f5", text)
        before, order, request = pieces[:-1:2], [int(number) for number in pieces[1::2]], pieces[-1].strip()
        # a `set` or a macro may have kept a turn away or written it twice, a filter may have broken its mark
        if order != list(range(len(self.turns))) or f"{self.name}:" in "".join([*before, request]):
            raise TurnError("a turn does not stand once and whole in the text: no filter, `set` or turn around a turn")
        if outside := "".join(before).strip():
            raise TurnError(f"text stands before a turn and is part of none: {outside[:60]!r}")
        turns = [turn | {"content": str(turn["content"]).strip()} for turn in self.turns]
        turns += [{"role": "user", "content": request}] if request or not turns else []
        if empty := [number for number, turn in enumerate(turns[:-1], 1) if not turn["content"]]:
            raise TurnError(f"turn {empty[0]} ({turns[empty[0] - 1]['role']}) is empty")
        if turns[-1]["role"] != "user":
            raise TurnError("nothing follows the assistant's last turn: the last one must be the user's request")
        return self._place_pictures(turns)

    def _place_pictures(self, turns: list[Message]) -> list[Message]:
        """The same turns, with a content in parts where it shows a picture. Raises TurnError."""
        shown: list[int] = []
        placed = []
        for turn in turns:
            pieces = re.split(f"{self.name}!(\\d+)\ue0f5", turn["content"])
            numbers = [int(number) for number in pieces[1::2]]
            if numbers and turn["role"] != "user":
                raise TurnError("a picture stands in a turn of the user's alone")
            texts: list[dict[str, Any]] = [{"type": "text", "text": piece.strip()} for piece in pieces[::2]]
            images: list[dict[str, Any] | None] = [{"type": "image"} for _ in numbers]
            parts = [part for pair in zip_longest(texts, images) for part in pair if part and part.get("text") != ""]
            placed.append(turn | {"content": parts} if numbers else turn)
            shown += numbers
        if shown != list(range(len(self.pictures))) or self.name in "".join(text_of(t["content"]) for t in placed):
            raise TurnError("a picture does not stand once and whole in the text: no filter or `set` around one")
        return placed


_MARKED: ContextVar[Marked | None] = ContextVar("marked", default=None)


@contextmanager
def marking() -> Iterator[Marked]:
    """Let the templates that are rendered in the body hold turns."""
    marked = Marked()
    token = _MARKED.set(marked)
    try:
        yield marked
    finally:
        _MARKED.reset(token)


class TurnTag(Extension):
    """The tag `{% turn ROLE %} ... {% endturn %}`."""

    tags = {TAG}  # noqa: RUF012  (Jinja's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        role = parser.parse_expression()
        if isinstance(role, nodes.Const) and role.value not in ROLES:
            parser.fail(_wrong_role(role.value), line)
        body = parser.parse_statements(("name:endturn",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_make", [role]), [], [], body).set_lineno(line)

    def _make(self, role: Any, caller: Callable[[], str]) -> str:
        marked = _MARKED.get()
        if marked is None:
            raise TurnError("turns stand in user templates alone")
        if role not in ROLES:  # as a scenario may name it
            raise TurnError(_wrong_role(role))
        return marked.mark(role, caller())


class ImageTag(Extension):
    """The tag `{% image PICTURE %}`."""

    tags = {"image"}  # noqa: RUF012  (Jinja's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        value = parser.parse_expression()
        return nodes.Output([self.call_method("_show", [value])]).set_lineno(line)

    def _show(self, value: Any) -> str:
        marked = _MARKED.get()
        if marked is None:
            raise TurnError("pictures stand in user templates alone")
        try:
            return marked.mark_picture(read_picture(value))
        except PictureError as error:
            raise TurnError(f"image: {error}", "picture_unreadable") from None


def _wrong_role(role: object) -> str:
    return f"turn: no role {role!r} (has: {', '.join(ROLES)}){nearest(str(role), ROLES)}"


def find_tags(tree: nodes.Template) -> list[int]:
    """The lines of a template's tags of ours."""
    calls = tree.find_all(nodes.ExtensionAttribute)
    own = (TurnTag.identifier, ImageTag.identifier)
    return [call.lineno for call in calls if call.identifier in own]


def spell(turns: Sequence[Message]) -> str:
    """A conversation as one text: a single turn as it stands, several with their roles."""
    if len(turns) == 1:
        return text_of(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {text_of(turn['content'])}" for turn in turns)
