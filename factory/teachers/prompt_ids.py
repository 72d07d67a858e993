"""From chat messages to the exact token ids a teacher is given, by the model's own chat template.

Text inside a message can never forge a turn: where it contains a token of the chat format (`<|im_end|>`, `</think>`),
it is cut inside that text before it is encoded, so it becomes ordinary characters with the same spelling.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from factory.errors import one_line
from factory.records import Message
from factory.teachers.reasoning import Markers

Z_START, Z_END = "\ue0f0", "\ue0f1"  # private-use characters that stand for a message's content inside the template


class TemplateRefusal(Exception):
    """The model's chat template does not take these messages (some know no system turn)."""


class PromptEncoder:
    """Encodes conversations for one tokenizer; `template_kwargs` go to its chat template."""

    def __init__(self, tokenizer: Any, markers: Markers | None, template_kwargs: dict[str, Any]) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template; use an instruction-tuned model")
        self.tokenizer = tokenizer
        self.markers = markers
        self.template_kwargs = {"enable_thinking": markers is not None} | template_kwargs
        tokens = sorted((token for token in tokenizer.get_added_vocab() if len(token) > 1), key=len, reverse=True)
        self.reserved = re.compile("|".join(re.escape(token) for token in [*tokens, Z_START]))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a prompt that ends where the teacher's reasoning (or, without markers, its answer) begins.

        Raises TemplateRefusal where the chat template does.
        """
        if not any(self.reserved.search(message["content"]) for message in messages):
            return self._ids(self._render(messages))
        stand_ins = [
            message | {"content": f"{Z_START}{index}{Z_END}"} if self.reserved.search(message["content"]) else message
            for index, message in enumerate(messages)
        ]
        ids: list[int] = []
        for number, piece in enumerate(re.split(f"{Z_START}(\\d+){Z_END}", self._render(stand_ins))):
            ids += self._literal_ids(messages[int(piece)]["content"]) if number % 2 else self._ids(piece)
        return ids

    def encode_transcript(
        self, messages: Sequence[Message], transcript: Mapping[str, Any]
    ) -> tuple[list[int], list[int]]:
        """Prompt and completion ids of a `Transcript`'s fields: its own ids, or those of its texts as they stand (with
        the tokenizer's special tokens before the prompt), or those the chat template gives its assistant turn.

        Raises TemplateRefusal where the template does, or renders the turn otherwise than it asks for it.
        """
        if transcript["completion_ids"]:
            return list(transcript["prompt_ids"]), list(transcript["completion_ids"])
        if transcript["completion"] is not None:
            return self.tokenizer.encode(transcript["prompt"]), self._ids(transcript["completion"])
        prompt_ids = self.encode(messages)
        return prompt_ids, self._turn_ids(messages, transcript["turn"])

    def _turn_ids(self, messages: Sequence[Message], turn: Message) -> list[int]:
        """The ids of an assistant turn after the prompt that `encode` makes of the messages before it."""
        content, reasoning = turn["content"], turn.get("reasoning_content") or ""
        end = self.tokenizer.eos_token_id
        ending = [*self._literal_ids(content), *([] if end is None else [end])]
        if self.markers is None:
            if reasoning:
                raise TemplateRefusal("the turn has reasoning, and the model or the job has no markers for it")
            return ending
        opened = self._render(messages).rstrip("\n").endswith(self.markers.start)
        before = self._ids("" if opened else f"{self.markers.start}\n") if reasoning or opened else []
        closed = self._ids(f"\n{self.markers.end}\n\n") if reasoning or opened else []
        return [*before, *self._literal_ids(reasoning), *closed, *ending]

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **self.template_kwargs
            )
        except Exception as error:  # a template is a model author's code: it may raise anything
            raise TemplateRefusal(one_line(error)) from error
        if self.markers is not None and not text.rstrip().endswith(self.markers.start):
            text += self.markers.start + "\n"
        return text

    def _literal_ids(self, content: str) -> list[int]:
        cuts = [match.start() + 1 for match in self.reserved.finditer(content)]
        edges = [0, *cuts, len(content)]
        return [i for a, b in pairwise(edges) for i in self._ids(content[a:b])]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids
