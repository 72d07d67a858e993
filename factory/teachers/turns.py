"""Several assistant turns of one conversation: the ids of all of it, and which of them are of turns that are scored.

    <user> 2+2? <assistant>   add(2,2) <end>  <tool> 4 <assistant>  It is 4. <end>
    |----- prompt ids -----|  |-------------- completion ids --------------------|
                              1 1 1 1  1      0 0 0  0 0            1 1 1  1      mask

The whole conversation is rendered once, as the model would be trained on it. Where a turn lies in that text is found by
rendering it again with another text in the turn's place: what changes is the turn. A template that writes a turn
otherwise when others follow (Qwen3 drops the reasoning of earlier ones) is taken at its word: what it wrote is scored.
"""

import json
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from factory.messages import Message
from factory.teachers.chat_template import ChatTemplate, TemplateRefusal
from factory.teachers.control_tokens import ControlTokens

# no two begin or end alike, nor does any text
STAND_INS = ("\ue0a0another turn\ue0a1", "\ue0a2a turn of its own\ue0a3")
Conversation = Sequence[dict[str, Any]]


def last_run(mask: Sequence[int]) -> int:
    """Where the last run of ones begins; 0 for an empty mask, which means all ones."""
    return next((place + 1 for place in reversed(range(len(mask))) if not mask[place]), 0)


def encode_turns(
    template: ChatTemplate,
    control: ControlTokens,
    turn_end: int | None,
    messages: Sequence[Message],
    scored: Sequence[int],
    tools: str | None,
) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Ids before the first scored turn, ids from it to the end of the last one, and the mask of these.

    A message's `tool_calls` are JSON, a list; `tools` too. Raises TemplateRefusal where the template does, where it
    does not show a turn's text or a call's name, and where a call or a tool spells a control token.
    """
    given, more = [_plain(message) for message in messages], {} if tools is None else {"tools": json.loads(tools)}
    parts = template.study(("user",)).parts
    _require_harmless(control, [*more.values(), *(message.get("tool_calls") for message in given)])
    texts = [message[name] for message in given for name in ("content", "reasoning_content") if message.get(name)]
    if any(end in text for text in texts for stand_in in STAND_INS for end in (stand_in[0], stand_in[-1])):
        raise TemplateRefusal("a message has characters of private use that mark a turn's place; take them out")
    mark = None if all(map(control.is_harmless, texts)) else control.choose_mark([*texts, template.source, *STAND_INS])
    marked = [_mark(message, control, mark) for message in given]

    def render(conversation: Conversation) -> str:
        return template.render(conversation, parts, prompts=False, **more)

    whole = render(marked)
    _require_shown(whole, marked)
    ids = control.encode(whole, mark)
    places = [_find_turn(render, marked, place, whole) for place in scored]
    return _cut(ids, [_as_ids(place, control, turn_end, whole, mark, ids) for place in places])


def _cut(ids: list[int], spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Prompt, completion and mask for these spans of ids."""
    mask = [0] * len(ids)
    for first, last in spans:
        mask[first:last] = [1] * (last - first)
    begin, end = spans[0][0], spans[-1][1]
    if not begin or not all(first < last for first, last in spans):
        raise TemplateRefusal("a scored turn has no token of its own in the conversation, or nothing before it")
    return ids[:begin], ids[begin:end], tuple(mask[begin:end])


def _plain(message: Message) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return dict(message) | ({} if calls is None else {"tool_calls": json.loads(calls)})


def _require_harmless(control: ControlTokens, values: Sequence[Any]) -> None:
    """What is no plain text cannot be marked: such a value would become a control token in the prompt."""
    for text in (text for value in values for text in _strings(value)):
        if control.pattern.search(text):
            raise TemplateRefusal(f"a tool, or a call of one, spells a control token of the model: {text[:40]!r}")


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in (*value.keys(), *value.values()) for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def _mark(message: dict[str, Any], control: ControlTokens, mark: str | None) -> dict[str, Any]:
    if mark is None:
        return message
    names = [name for name in ("content", "reasoning_content") if message.get(name)]
    return message | {name: control.mark(message[name], mark) for name in names}


def _require_shown(whole: str, messages: Conversation) -> None:
    """Raise TemplateRefusal where a text or the name of a tool that is called is not in the conversation."""
    for number, message in enumerate(messages, 1):
        calls = [(call.get("function") or call)["name"] for call in message.get("tool_calls", ())]
        for text in filter(None, (message["content"].strip(), *calls)):
            if text not in whole:
                raise TemplateRefusal(f"message {number} ({message['role']}): the template does not show {text[:40]!r}")


def _find_turn(
    render: Callable[[Conversation], str], messages: Conversation, place: int, whole: str
) -> tuple[int, int]:
    """First character of a turn in the whole text, and the one after its last."""
    bounds = []
    for text in STAND_INS:
        changed = render([*messages[:place], {"role": "assistant", "content": text}, *messages[place + 1 :]])
        if text not in changed:
            raise TemplateRefusal(f"message {place + 1} (assistant): the template does not show a turn there")
        bounds.append((_same(whole, changed), len(whole) - _same(whole[::-1], changed[::-1])))
    # by two: what a turn and one of them have in common by chance is no part of what stands around it
    return min(first for first, _ in bounds), max(last for _, last in bounds)


def _as_ids(
    span: tuple[int, int],
    control: ControlTokens,
    turn_end: int | None,
    whole: str,
    mark: str | None,
    ids: Sequence[int],
) -> tuple[int, int]:
    """A span of characters as one of ids, with the token that ends a turn where it comes next."""
    first, last = span
    match = control.pattern.search(whole, last)
    if match is not None and control.ids[match[0]] == turn_end and not whole[last : match.start()].strip():
        last = match.end()
    # an id that lies across the beginning belongs to the turn, one across its end does not
    found = [_same(ids, control.encode(whole[:place], mark)) for place in (first, last)]
    return found[0], found[1]


def _same(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How far two sequences begin alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
