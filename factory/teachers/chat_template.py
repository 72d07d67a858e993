"""A model's chat template, as it behaves: what it does to a conversation is tried out on words of ours before it is
trusted with a prompt.

For every sequence of roles the template is studied once: each word must come back, twice the same, and the reasoning be
opened once or not at all. What the factory adds to a template's own text follows
from what the template did, never from the model's name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from factory.errors import one_line
from factory.messages import Message
from factory.teachers.reasoning import KNOWN_MARKERS, Markers

SWITCHES: Final = ("enable_thinking", "thinking")  # Qwen3 and most others; DeepSeek-V3.1 and Granite
CLOCK: Final = "strftime_now"
PINNED_DATE: Final = "2024-07-26"  # Llama 3's own date where a template has no clock: a prompt is the same on every day
WORD: Final = "Sentinelword{}x"
HARMONY: Final = (  # gpt-oss: the channel, and how a reasoning is opened and left for the answer
    "<|channel|>",
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)
OTHER_TEMPLATE: Final = "give another one as teacher.chat_template_kwargs.chat_template"


class TemplateRefusal(Exception):
    """The model's chat template does not take these messages (some know no system turn), or does not keep them."""


@dataclass(frozen=True, slots=True)
class Manner:
    """What a template does to conversations of certain roles.

    `parts`: it wants a content as a list of parts. `reasons`: there is a reasoning, which `opening` (after the
    generation prompt) opens and `closing` closes.
    """

    parts: bool
    reasons: bool
    opening: str
    closing: str


class ChatTemplate:
    """The chat template of a tokenizer, told whether to reason as `markers` and the job's `kwargs` say.

    `tools` are those that every conversation is shown with.
    """

    def __init__(
        self, tokenizer: Any, markers: Markers | None, kwargs: dict[str, Any], tools: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.markers = markers
        self.source = _source(kwargs.get("chat_template") or getattr(tokenizer, "chat_template", None))
        self.said = [name for name in SWITCHES if isinstance(kwargs.get(name), bool)]
        self.switched = bool(kwargs[self.said[0]]) if self.said else markers is not None
        self.kwargs = dict.fromkeys(SWITCHES, self.switched) | kwargs | {CLOCK: _clock(kwargs.get(CLOCK))}
        self.tools = list(tools)
        self.kwargs |= {"tools": self.tools} if tools else {}
        self.manners: dict[tuple[str, ...], Manner] = {}
        self.shown: set[tuple[str, ...]] = set()  # those whose pictures stand in the prompt
        self.headed: set[tuple[str, ...]] = set()  # those whose prompts end where an assistant's turn begins

    def render(self, messages: Sequence[Message], parts: bool = False, prompts: bool = True, **more: Any) -> str:
        """The conversation as the template writes it. Raises TemplateRefusal where the template does."""
        if not self.source:
            raise TemplateRefusal(
                f"the tokenizer has no chat template; use an instruction-tuned model, or {OTHER_TEMPLATE}"
            )
        given: list[dict[str, Any]] = [dict(message) for message in messages]
        if parts:
            given = [message | {"content": as_parts(message["content"])} for message in given]
        try:
            text: str = self.tokenizer.apply_chat_template(
                given, tokenize=False, add_generation_prompt=prompts, **(self.kwargs | more)
            )
        except Exception as error:  # a template is a model author's code: it may raise anything
            raise TemplateRefusal(one_line(error)) from error
        return text

    def study(self, roles: tuple[str, ...]) -> Manner:
        """How the template treats these roles. Raises TemplateRefusal where it loses something of them."""
        if roles not in self.manners:
            words = _words(roles)
            self._require_agreement()
            parts = self._find_parts(words)
            prompt = self.render(words, parts)
            if self.render(words, parts) != prompt:
                raise TemplateRefusal(
                    f"it renders one conversation in two ways: no row could be made again; {OTHER_TEMPLATE}"
                )
            self._require_tools(prompt)
            self._require_one_opening(prompt.rpartition(words[-1]["content"])[2])
            self.manners[roles] = self._find_manner(words, parts, prompt)
        return self.manners[roles]

    def _require_tools(self, prompt: str) -> None:
        """Raise TemplateRefusal where a tool or one of its arguments is not in the prompt."""
        for tool in self.tools:
            function = tool["function"]
            names = [function["name"], *function["parameters"].get("properties", {})]
            if lost := [name for name in names if name not in prompt]:
                raise TemplateRefusal(
                    f"it drops the tools: {lost[0]!r} of {function['name']!r} is not in the prompt; use a model that "
                    f"was trained with tools, or {OTHER_TEMPLATE}"
                )

    def require_pictures(self, roles: tuple[str, ...]) -> None:
        """Raise TemplateRefusal where a picture in a user's turn leaves no trace in the prompt, or spoils its text."""
        if roles in self.shown:
            return
        words, parts = _words(roles), self.study(roles).parts
        at = len(roles) - 1 - roles[::-1].index("user")
        texts = as_parts(words[at]["content"])
        bare, shown = (
            self.render([*words[:at], words[at] | {"content": content}, *words[at + 1 :]], parts)
            for content in (texts, [{"type": "image"}, *texts])
        )
        # a template for texts writes the list itself
        if bare == shown or words[at]["content"] not in shown or any(sign in shown for sign in ("'type'", '"type"')):
            raise TemplateRefusal(f"it has no place for pictures; use a model that sees, or {OTHER_TEMPLATE}")
        self.shown.add(roles)

    def begin(self, prompt: str, manner: Manner) -> tuple[str, bool]:
        """A rendered prompt, its reasoning opened where the model would open it; and whether it is open."""
        state, markers = find_state(prompt, self.markers), self.markers
        if markers is None:
            if state == "open":
                start = next(start for start, _ in KNOWN_MARKERS if prompt.rstrip().endswith(start))
                raise TemplateRefusal(
                    f"it opens a reasoning ({start}) and teacher.reasoning expects none: set it to "
                    f'"auto", or to the markers themselves where the vocabulary lacks them; or {OTHER_TEMPLATE}'
                )
            return prompt, False
        if state == "closed" and markers.asked:
            raise TemplateRefusal(
                f"it closes the reasoning ({markers.end}) that teacher.reasoning asks for; set that to "
                f'"off", or switch the reasoning on with teacher.chat_template_kwargs'
            )
        if state == "none" and manner.reasons:
            return prompt + manner.opening, True
        if state == "open" and _is_spelt(markers.opening):  # a template's last newline is lost in Jinja
            return prompt.rstrip() + markers.opening.lstrip().removeprefix(markers.start), True
        return prompt, state == "open"

    def _require_agreement(self) -> None:
        asked = self.markers is not None and self.markers.asked
        if HARMONY[0] in self.source and not asked:
            raise TemplateRefusal(
                f"it speaks in channels ({HARMONY[0]}): say with which words a reasoning begins and ends, "
                f'teacher.reasoning = {{ start = "{HARMONY[1]}", end = "{HARMONY[2]}" }}'
            )
        if (self.markers is None and self.switched) or (asked and not self.switched):
            raise TemplateRefusal(
                f"teacher.chat_template_kwargs.{self.said[0]} is {str(self.switched).lower()}, and teacher.reasoning "
                f"says the opposite; keep one of them"
            )

    def _find_parts(self, words: Sequence[Message]) -> bool:
        """Whether contents must be lists of parts. Raises TemplateRefusal where some are lost either way."""
        refusal: TemplateRefusal | None = None
        lost: list[str] = []
        for parts in (False, True):
            try:
                text = self.render(words, parts)
            except TemplateRefusal as error:
                refusal = refusal or error
                continue
            found = [word["role"] for word in words if word["content"] not in text]
            if not found:
                return parts
            lost = lost or found
        if refusal is not None and not lost:
            raise refusal
        raise TemplateRefusal(
            f"it drops the {lost[0]} turn: its text is not in the prompt; say it in a turn that the model knows, "
            f"or {OTHER_TEMPLATE}"
        )

    def require_header(self, roles: tuple[str, ...]) -> None:
        """Raise TemplateRefusal where `add_generation_prompt` changes nothing and an assistant's turn has a header.

        Not asked of every prompt: a transcript's turn brings its header along.
        """
        if roles in self.headed:
            return
        words, parts = _words(roles), self.study(roles).parts
        prompt = self.render(words, parts)
        self.headed.add(roles)
        if self.render(words, parts, prompts=False) != prompt:
            return
        before = self._around_answer(words, parts)[0]
        header = before.removeprefix(prompt) if before.startswith(prompt) else ""
        for text in self._marker_texts():
            header = header.replace(text, "")
        if header.strip():
            self.headed.discard(roles)
            raise TemplateRefusal(
                f"it ignores add_generation_prompt: {header.strip()!r} would be missing before the answer; "
                f"{OTHER_TEMPLATE}"
            )

    def _require_one_opening(self, tail: str) -> None:
        for start, end in self._pairs():
            # an end without a beginning before it closes nothing: as a word of the user's, it may stand in a header
            before, _, after = tail.partition(start)
            closed_first = start in tail and end in before
            if start in after or after.count(end) > 1 or closed_first:
                raise TemplateRefusal(f"it opens the reasoning more than once ({tail.strip()!r}); {OTHER_TEMPLATE}")

    def _find_manner(self, words: Sequence[Message], parts: bool, prompt: str) -> Manner:
        markers = self.markers
        if markers is None:
            return Manner(parts, False, "", "")
        start, end = markers.start, markers.end
        opening, closing = markers.opening or f"{start}\n", markers.closing or f"\n{end}\n\n"
        off = self._render_off(words, parts)
        quiet = re.search(rf"(\s*{re.escape(start)})(\s*){re.escape(end)}\s*$", off)
        if quiet and off.startswith(prompt) and len(prompt) <= quiet.start(1):
            inside = quiet[2]
            opening = off[len(prompt) : quiet.end(1)] + inside[: (len(inside) + 1) // 2]
        before, between, _ = self._around_answer(words, parts, reasoning=WORD.format("R"))
        if between.strip() == end:
            closing = between if not _is_spelt(markers.closing) else closing
            shown = before.removeprefix(prompt) if before.startswith(prompt) else ""
            opening = shown if shown.strip() == start else opening
        if _is_spelt(markers.opening):
            opening = markers.opening
        speaks = bool(quiet) or find_state(off, markers) == "closed" or start in self.source or end in self.source
        return Manner(parts, markers.asked or (speaks and self.switched), opening, closing)

    def _render_off(self, words: Sequence[Message], parts: bool) -> str:
        """The prompt with all reasoning switched off; empty where the template refuses that."""
        try:
            return self.render(words, parts, **dict.fromkeys(SWITCHES, False))
        except TemplateRefusal:
            return ""

    def _around_answer(self, words: Sequence[Message], parts: bool, reasoning: str = "") -> tuple[str, str, str]:
        """What stands before an assistant's turn (or its reasoning), between the two, and after the turn."""
        answer: Message = {"role": "assistant", "content": WORD.format("A")}
        if reasoning:
            answer["reasoning_content"] = reasoning
        try:
            text = self.render([*words, answer], parts, prompts=False)
        except TemplateRefusal:  # such as an assistant's turn after an assistant's turn
            return "", "", ""
        before, _, after = text.partition(answer["content"])
        if reasoning:
            before, found, between = before.partition(reasoning)
            return (before, between, after) if found else ("", "", after)
        return before, "", after

    def find_ending(self, messages: Sequence[Message], manner: Manner) -> tuple[str, str]:
        """What the template writes before and after an assistant's turn that ends the conversation."""
        before, _, after = self._around_answer(messages, manner.parts)
        return before, after

    def write_turn(self, messages: Sequence[Message], turn: Message) -> str:
        """The text that the template writes for an assistant's turn, without header, reasoning and ending.

        Raises TemplateRefusal where it does.
        """
        manner = self.study(tuple(message["role"] for message in messages))
        prompt, written = self.render(messages, manner.parts), self.render([*messages, turn], manner.parts, False)
        before, behind = self.find_ending(messages, manner)
        shared = next((text for text in (before, prompt) if text and written.startswith(text)), "")
        text = written.removeprefix(shared).removesuffix(behind)
        for _, end in self._pairs():
            text = text.rpartition(end)[2]
        return text.strip()

    def find_next(self, messages: Sequence[Message], manner: Manner) -> str:
        """What it writes between an assistant's turn and the text of a next user's turn."""
        turns: list[Message] = [{"role": role, "content": WORD.format(role)} for role in ("assistant", "user")]
        try:
            text = self.render([*messages, *turns], manner.parts, prompts=False)
        except TemplateRefusal:
            return ""
        return text.partition(turns[0]["content"])[2].partition(turns[1]["content"])[0]

    def _pairs(self) -> list[tuple[str, str]]:
        own = [(self.markers.start, self.markers.end)] if self.markers is not None else []
        return [*own, *KNOWN_MARKERS]

    def _marker_texts(self) -> list[str]:
        return [text for pair in self._pairs() for text in pair]


def as_parts(content: Any) -> list[dict[str, Any]]:
    """A content as a list of parts, which it may be already."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _words(roles: tuple[str, ...]) -> list[Message]:
    return [{"role": role, "content": WORD.format(at)} for at, role in enumerate(roles)]


def _is_spelt(marker: str) -> bool:
    """Whether the job says which white space belongs to a marker."""
    return marker != marker.strip()


def find_state(prompt: str, markers: Markers | None) -> str:
    """Whether a prompt ends in a reasoning that is "open", in one that is "closed", or in "none"."""
    text = prompt.rstrip()
    pairs = KNOWN_MARKERS if markers is None else ((markers.start, markers.end), *KNOWN_MARKERS)
    if text.endswith(tuple(start for start, _ in pairs)):
        return "open"
    return "closed" if text.endswith(tuple(end for _, end in pairs)) else "none"


def _source(template: Any) -> str:
    """The Jinja text; of several named templates the default one."""
    return str(template.get("default", "") if isinstance(template, dict) else template or "")


def _clock(date: Any) -> Callable[[str], str]:
    """What templates call to print today: a fixed day. Raises ValueError for a text that is none."""
    try:
        return datetime.fromisoformat(str(date or PINNED_DATE)).strftime
    except ValueError as error:
        told = f"teacher.chat_template_kwargs.{CLOCK}: {error}; give a day such as {PINNED_DATE}"
        raise ValueError(told) from None
