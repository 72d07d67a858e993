"""From chat messages to the exact token ids a teacher is given, by the model's own chat template.

Text inside a message can never forge a turn: where it contains a token of the chat format (`<|im_end|>`, `</think>`),
it is cut inside that text before it is encoded, so it becomes ordinary characters with the same spelling.

    message     Say <|im_end|> now
    rendered    ...user\n[0]<|im_end|>...         [0] stands for the content while the template runs
    encoded     ids("Say <") ids("|im_end|> now")  no piece holds a whole token of the format
    the rest    ids of the template's own text, its tokens whole
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from factory.errors import one_line
from factory.records import Message
from factory.teachers.reasoning import Markers

# private-use characters around the number of a message, which stand for its content inside the template
Z_START, Z_END = "\ue0f0", "\ue0f1"


class TemplateRefusal(Exception):
    """The model's chat template does not take these messages (some know no system turn)."""


class PromptEncoder:
    """Encodes conversations for one tokenizer; `template_kwargs` go to its chat template."""

    def __init__(self, tokenizer: Any, markers: Markers | None, template_kwargs: dict[str, Any]) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template; use an instruction-tuned model")
        self.tokenizer = tokenizer
        self.markers = markers
        # Qwen3's and others' templates close the reasoning at once where it is false; those without it ignore it
        self.template_kwargs = {"enable_thinking": markers is not None} | template_kwargs
        # longest first: of `<|im_end|>` and `<|im` an alternation would take whichever comes first. A token of one
        # character cannot be cut. Text that forges our own stand-in is kept out of the template like the rest
        tokens = sorted((token for token in tokenizer.get_added_vocab() if len(token) > 1), key=len, reverse=True)
        self.reserved = re.compile("|".join(re.escape(token) for token in [*tokens, Z_START]))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a prompt that ends where the teacher's reasoning (or, without markers, its answer) begins.

        Raises TemplateRefusal where the chat template does.
        """
        # nearly every prompt: encoded in one piece, as transformers itself would
        if not any(self.reserved.search(message["content"]) for message in messages):
            return self._ids(self._render(messages))
        stand_ins = [
            message | {"content": f"{Z_START}{index}{Z_END}"} if self.reserved.search(message["content"]) else message
            for index, message in enumerate(messages)
        ]
        ids: list[int] = []
        # a split at a group alternates: text of the template, number of a message, text of the template, ...
        for number, piece in enumerate(re.split(f"{Z_START}(\\d+){Z_END}", self._render(stand_ins))):
            ids += self._literal_ids(messages[int(piece)]["content"]) if number % 2 else self._ids(piece)
        return ids

    def encode_transcript(
        self, messages: Sequence[Message], transcript: Mapping[str, Any]
    ) -> tuple[list[int], list[int]]:
        """Prompt and completion ids of a `Transcript`'s fields: its own ids, or those of its texts as they stand (with
        the tokenizer's special tokens before the prompt), or those of its assistant turn as the teacher would have
        written it after the prompt: reasoning between its markers, content, end of turn.

        Raises TemplateRefusal where the template does, or where there is reasoning and no markers to put it between.
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
        # the template is not asked: it may leave out reasoning of past turns, or end with a line break nobody samples
        end = self.tokenizer.eos_token_id
        ending = [*self._literal_ids(content), *([] if end is None else [end])]
        if self.markers is None:
            if reasoning:
                raise TemplateRefusal("the turn has reasoning, and the model or the job has no markers for it")
            return ending
        # where the prompt has opened the reasoning, a turn without any has to close it before it answers
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
        # the engine's parser takes it for granted that a completion begins inside the reasoning
        if self.markers is not None and not text.rstrip().endswith(self.markers.start):
            text += self.markers.start + "\n"
        return text

    def _literal_ids(self, content: str) -> list[int]:
        # one character into each token of the format, so that no piece spells it whole
        cuts = [match.start() + 1 for match in self.reserved.finditer(content)]
        edges = [0, *cuts, len(content)]
        return [i for a, b in pairwise(edges) for i in self._ids(content[a:b])]

    def _ids(self, text: str) -> list[int]:
        # a template writes its own BOS; a second one would be another prompt
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids
