"""Control tokens: those that could forge a turn, and how text that spells one is encoded as mere characters.

A rendered conversation is the template's own text with the messages' texts in it. Where a message spells a control
token, a mark is put inside that spelling before the template sees it. What carries no mark afterwards is the template's
own: those tokens get names that nobody can guess, the marks go, and the whole is encoded at once by a copy of the
tokenizer that knows these names only. So nothing is cut and joined, and every other token (runs of spaces, blank lines,
whatever a normalizer puts before a text) is what the model's own tokenizer makes of it.
"""

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from factory.teachers.reasoning import KNOWN_MARKERS, Markers

PRIVATE_USE = range(0xE000, 0xF900)
LOOKS_LIKE_A_TAG = re.compile(r"(?=.*\w)(?=.*[^\w\s])", re.DOTALL)  # no run of spaces, no word


class ControlTokens:
    """The control tokens of one tokenizer under one chat template.

    These are the special ones, reasoning markers, the end tokens, and what the template writes; an added token that is
    none of them is ordinary text (Gemma lists blank lines and HTML tags so, others runs of spaces).
    """

    def __init__(self, tokenizer: Any, template: str, markers: Markers | None, end_ids: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        marking = {text for pair in KNOWN_MARKERS for text in pair} | (
            {markers.start, markers.end} if markers is not None else set()
        )
        named = {*tokenizer.all_special_ids, *end_ids}
        self.ids: dict[str, int] = {
            token.content: number
            for number, token in added.items()
            if len(token.content) > 1
            and (
                token.special
                or number in named
                or token.content.strip() in marking
                or (token.content in template and LOOKS_LIKE_A_TAG.match(token.content) is not None)
            )
        }
        spelt = sorted(self.ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, spelt)) if spelt else r"(?!)")
        self.heads = tuple({text[:length] for text in spelt for length in range(1, len(text))})
        self.tails = tuple({text[-length:] for text in spelt for length in range(1, len(text))})
        # its spelling cannot be searched for, as the tokenizer looks for it in changed text
        self.disguised = any(token.normalized for token in added.values() if token.content in self.ids)

    def is_harmless(self, text: str) -> bool:
        """Whether a text neither spells a control token nor could together with what stands around it."""
        return not (
            self.disguised or self.pattern.search(text) or text.endswith(self.heads) or text.startswith(self.tails)
        )

    def choose_mark(self, texts: Sequence[str]) -> str:
        """A character that none of the texts has."""
        used = set().union(*texts)
        return next(chr(code) for code in PRIVATE_USE if chr(code) not in used)

    def mark(self, text: str, mark: str) -> str:
        """The text with a mark inside every control token that it spells, and where its ends might become one."""
        text = (mark if text.startswith(self.tails) else "") + text + (mark if text.endswith(self.heads) else "")
        while self.pattern.search(text):  # again: two spellings may overlap
            text = self.pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)
        return text

    def encode(self, rendered: str, mark: str | None = None) -> list[int]:
        """The ids of rendered text; with a mark, the spellings that carry it become characters."""
        if mark is None:
            return self._plain_ids(rendered)
        if self._literal is None:
            return [i for piece in rendered.split(mark) for i in self._plain_ids(piece)]
        backend, names = self._literal
        named = self.pattern.sub(lambda match: names[match[0]], rendered).replace(mark, "")
        ids: list[int] = backend.encode(named, add_special_tokens=False).ids
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    @cached_property
    def _literal(self) -> tuple[Any, dict[str, str]] | None:
        """A copy of the tokenizer to which control tokens have other names, and those; None where there is no copy.

        A slow tokenizer (tiktoken, sentencepiece itself) has none: its text is cut at the marks.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import Tokenizer

        nonce = secrets.token_hex(8)  # never seen in any id: it only keeps a text from naming a token
        names = {text: f"\ue0f0{nonce}{number}\ue0f1" for text, number in self.ids.items()}
        try:
            literal = Tokenizer.from_str(json.dumps(_rename(json.loads(backend.to_str()), names)))
        except Exception:  # the Rust side raises bare exceptions; a vocabulary that merges up to its control tokens
            return None
        renamed = all(literal.token_to_id(names[text]) == number for text, number in self.ids.items())
        return (literal, names) if renamed else None


def _rename(body: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A tokenizer.json with other names for some tokens, in its model too: a unigram model would find them there."""
    model, vocab = body["model"], body["model"].get("vocab", {})
    pieces = vocab.items() if isinstance(vocab, dict) else map(tuple, vocab)
    renamed = [(names.get(piece, piece), value) for piece, value in pieces]
    model["vocab"] = dict(renamed) if isinstance(vocab, dict) else renamed
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [token | {"content": names.get(token["content"], token["content"])} for token in body["added_tokens"]]
    return body | {"added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
