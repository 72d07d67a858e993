"""From chat messages to the exact token ids a teacher is given, by the model's own chat template.

The ids are those of the template's whole text, encoded at once: what the model was trained on. Text inside a message
can never forge a turn: a control token that it spells (`<|im_end|>`, `</think>`) reaches the model as characters.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from factory.messages import Message
from factory.teachers.chat_template import ChatTemplate, Manner, TemplateRefusal
from factory.teachers.control_tokens import ControlTokens
from factory.teachers.reasoning import Markers, special_ids
from factory.teachers.turns import encode_turns

__all__ = ["EncodedPrompt", "PromptEncoder", "TemplateRefusal"]

ANCHOR = "\n"  # stands before a continuation, so that no normalizer puts a space there


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the engine takes it; `reasons`: it ends inside an open reasoning, else the answer follows at once."""

    ids: list[int]
    text: str
    reasons: bool


class PromptEncoder:
    """Encodes conversations for one tokenizer; `template_kwargs` go to its chat template.

    `end_ids` are the tokens that the model's own configuration names as ends. The encoder's `end_ids` are these, the
    tokenizer's, and the one that the chat template writes after an assistant's turn: any of them stops a generation.
    Raises ValueError for a `template_kwargs.strftime_now` that is no date.
    """

    def __init__(
        self,
        tokenizer: Any,
        markers: Markers | None,
        template_kwargs: dict[str, Any],
        end_ids: Collection[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.markers = markers
        self.template = ChatTemplate(tokenizer, markers, template_kwargs)
        self.template_kwargs = template_kwargs
        self.with_tools: dict[str, ChatTemplate] = {"": self.template}
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.end_ids = frozenset([*end_ids, *own])
        self.control = ControlTokens(tokenizer, self.template.source, markers, self.end_ids)
        self.turn_end = self._find_turn_end()
        # harmony's reasoning ends in a token that ends a message too
        inside = {self.control.ids[token] for text in self._markers() for token in self.control.pattern.findall(text)}
        self.end_ids = (self.end_ids | ({self.turn_end} - {None})) - inside
        self.stop_ids = special_ids(tokenizer) | self.end_ids  # what may stand after an answer and is none of it

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template: a base model may have none, and be scored by texts and ids."""
        return bool(self.template.source)

    @cached_property
    def closing_ids(self) -> list[int]:
        """What closes a reasoning that the teacher itself has not: the end marker's own ids."""
        if self.markers is None:
            return []
        if self.markers.end_id is not None:
            return [self.markers.end_id]
        return self._continuation_ids(self.markers.closing or self.markers.end)

    def shows_opening(self, ids: Sequence[int]) -> bool:
        """Whether a prompt that ends in the start marker has its own ids there, as vLLM looks for them."""
        if self.markers is None:
            return False
        opening = self._ids(self.markers.start)
        last = len(ids) - len(opening)
        # white space may follow it, in a token or a few
        return any(list(ids[at : at + len(opening)]) == opening for at in range(max(0, last - 8), last + 1))

    def encode(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """The ids of a prompt; see `encode_prompt`."""
        return self.encode_prompt(messages, tools).ids

    def showing(self, tools: str) -> ChatTemplate:
        """The chat template with the tools of a prompt (JSON; empty: none)."""
        if tools not in self.with_tools:
            made = ChatTemplate(self.tokenizer, self.markers, self.template_kwargs, json.loads(tools))
            self.with_tools[tools] = made
        return self.with_tools[tools]

    def encode_prompt(self, messages: Sequence[Message], tools: str = "") -> EncodedPrompt:
        """A prompt that ends where the teacher's reasoning (or, where there is none, its answer) begins.

        Raises TemplateRefusal where the chat template does, or where it loses or changes something of the messages.
        """
        template = self.showing(tools)
        roles = tuple(message["role"] for message in messages)
        manner = template.study(roles)
        if any(not isinstance(message["content"], str) for message in messages):
            template.require_pictures(roles)
        messages, mark = self._mark(messages)
        text, reasons = template.begin(template.render(messages, manner.parts), manner)
        return EncodedPrompt(self.control.encode(text, mark), text.replace(mark or "\0", ""), reasons)

    def encode_transcript(
        self, messages: Sequence[Message], transcript: Mapping[str, Any]
    ) -> tuple[list[int], list[int]]:
        """Prompt and completion ids of a `Transcript`'s fields: its own ids, or those of its texts as they stand (with
        what the tokenizer puts before a text), or those the chat template gives its assistant turn.

        Raises TemplateRefusal where the template does, or where there is reasoning and no markers to put it between.
        """
        if transcript["completion_ids"]:
            return list(transcript["prompt_ids"]), list(transcript["completion_ids"])
        if transcript["completion"] is not None:
            return self._text_ids(transcript["prompt"], transcript["completion"])
        return self._turn_ids(messages, transcript["turn"])

    def encode_conversation(
        self, messages: Sequence[Message], transcript: Mapping[str, Any]
    ) -> tuple[list[int], list[int], tuple[int, ...]]:
        """The same of a transcript that may have several scored turns, tools and calls of them; and its mask.

        The mask has a 0 or 1 for each completion id, and is empty where all are scored.
        """
        turn, tools = transcript["turn"], transcript["tools"]
        calls = turn is not None and any("tool_calls" in message for message in (*messages, turn))
        if transcript["scored"] or tools or calls:
            whole, scored = [*messages, turn], (*transcript["scored"], len(messages))
            return encode_turns(self.template, self.control, self.turn_end, whole, scored, tools)
        return *self.encode_transcript(messages, transcript), tuple(transcript["mask"])

    def _text_ids(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Ids of two texts that follow each other, cut between them; nothing is put between or behind."""
        begin = self._beginning()
        prompt_ids, both = self._ids(prompt), self._ids(prompt + completion)
        first = len(prompt_ids)
        whole = both[:first] == prompt_ids  # else a token of the two together would lie on both sides
        completion_ids = both[first:] if whole else self._continuation_ids(completion)
        doubled = prompt_ids[: len(begin)] == begin  # the text has it already
        return ([] if doubled else begin) + prompt_ids, completion_ids

    def _beginning(self) -> list[int]:
        """What the tokenizer puts before a text: a beginning-of-sequence token, or nothing."""
        plain, dressed = self._ids("a"), list(self.tokenizer.encode("a", add_special_tokens=True))
        places = [at for at in range(len(dressed)) if dressed[at : at + len(plain)] == plain]
        return dressed[: places[0]] if places else []

    def _continuation_ids(self, text: str) -> list[int]:
        anchor, both = self._ids(ANCHOR), self._ids(ANCHOR + text)
        return both[len(anchor) :] if both[: len(anchor)] == anchor else self._ids(text)

    def _turn_ids(self, messages: Sequence[Message], turn: Message) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of the assistant's turn after it, to the token that ends the turn.

        A token that lies across the two belongs to the turn: the whole is what the template gives.
        """
        manner = self.template.study(tuple(message["role"] for message in messages))
        marked, mark = self._mark([*messages, turn])
        prompt, reasons = self.template.begin(self.template.render(marked[:-1], manner.parts), manner)
        if turn.get("reasoning_content") and not reasons:
            raise TemplateRefusal("the turn has a reasoning, and the prompt that the model or the job makes has none")
        whole, ended = self._whole_text(prompt, marked, manner, reasons)
        ids, alone = self.control.encode(whole, mark), self.control.encode(prompt, mark)
        first = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, alone, strict=False)))
        ending = [] if ended or self.turn_end is None else [self.turn_end]
        return ids[:first], [*ids[first:], *ending]

    def _whole_text(self, prompt: str, marked: list[Message], manner: Manner, reasons: bool) -> tuple[str, bool]:
        """Prompt and turn as one text, and whether it holds the token that ends the turn.

        The template's own text where it goes on from the prompt; else (it keeps no reasoning of earlier turns, or the
        factory opened one) the turn is put together from what the template writes around one.
        """
        turn = marked[-1]
        content, reasoning = turn["content"], turn.get("reasoning_content") or ""
        written = self.template.render(marked, manner.parts, prompts=False)
        behind = self.template.find_ending(marked[:-1], manner)[1]
        after, ended = self._cut_ending(behind)
        rest = written.removeprefix(prompt) if written.startswith(prompt) and written.endswith(behind) else ""
        rest = rest[: len(rest) - len(behind)]
        thought, closed, answer = rest.rpartition(self.markers.end) if reasons and self.markers else ("", "", rest)
        if bool(closed) == reasons and content.strip() in answer and reasoning.strip() in thought:
            return prompt + rest + after, ended
        return prompt + reasoning + (manner.closing if reasons else "") + content + after, ended

    def _cut_ending(self, after: str) -> tuple[str, bool]:
        """What follows a turn's text, to the token that ends it; all white space is kept before it, none behind."""
        match = self.control.pattern.search(after)
        if match is None or self.control.ids[match[0]] != self.turn_end:
            return "", False
        return after[: match.end()], True

    def _find_turn_end(self) -> int | None:
        """The id of the token that ends an assistant's turn: the one the template writes, else the tokenizer's own.

        Some templates write none, as the next turn's header ends a turn (GLM-4): that is one where the model says so.
        """
        words: list[Message] = [{"role": "user", "content": "Sentinelword"}]
        if self.has_template:
            try:
                manner = self.template.study(("user",))
                before, after = self.template.find_ending(words, manner)
                written = self._first_token(after)
                if written is not None and not before.rstrip().endswith(written):  # that would be a next header
                    return self.control.ids[written]
                following = self._first_token(self.template.find_next(words, manner))
                if following is not None and self.control.ids[following] in self.end_ids:
                    return self.control.ids[following]
            except TemplateRefusal:  # for the prompts themselves to say
                pass
        end: int | None = self.tokenizer.eos_token_id
        return end

    def _first_token(self, text: str) -> str | None:
        """The control token that a text begins with, white space aside."""
        match = self.control.pattern.match(text, re.search(r"\S|$", text).start())  # type: ignore[union-attr]
        return None if match is None else match[0]

    def _mark(self, messages: Sequence[Message]) -> tuple[list[Message], str | None]:
        """The messages with a mark where their texts spell control tokens, and the mark where there is any."""
        held = ("content", "reasoning_content", "tool_calls")
        texts = [text for message in messages for name in held for text in _strings(message.get(name))]
        if all(map(self.control.is_harmless, texts)):
            return list(messages), None
        mark = self.control.choose_mark([*texts, self.template.source])
        marked = [
            message | {name: self._marked(message[name], mark) for name in held if message.get(name)}
            for message in messages
        ]
        return marked, mark

    def _marked(self, value: Any, mark: str) -> Any:
        """A content, or calls, with all that a user or a teacher has written marked."""
        if isinstance(value, str):
            return self.control.mark(value, mark)
        if isinstance(value, list):
            return [self._marked(item, mark) for item in value]
        if isinstance(value, dict):
            if value.get("type") in ("text", "image") and set(value) <= {"type", "text"}:  # a part of a content
                return value if "text" not in value else value | {"text": self._marked(value["text"], mark)}
            return {key: self._marked(item, mark) for key, item in value.items()}
        return value

    def _markers(self) -> tuple[str, ...]:
        return () if self.markers is None else (self.markers.start, self.markers.end)

    def _ids(self, text: str) -> list[int]:
        return self.control.encode(text)


def _strings(value: Any) -> Iterator[str]:
    """Every text inside a content or inside calls."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
