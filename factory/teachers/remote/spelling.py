"""Token ids by the bytes that tokens stand for, for endpoints that send strings and no ids.

A vocabulary spells each id in one of two ways: letters that stand for bytes (GPT-2's and all byte-level ones), or text
with a mark for the space and `<0x0A>` for single bytes (SentencePiece's). Either way an id has exact bytes, and bytes
that more than one id has are of none. What is spelt by no id, or by two, is not guessed.
"""

from dataclasses import dataclass
from typing import Any, Final

SPACE: Final = "▁"  # SentencePiece's mark


class Unspelt(Exception):
    """Bytes that no id of the vocabulary has, or more than one."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """The ids of a tokenizer by their bytes; `special` are those that no text spells, by their names."""

    by_bytes: dict[bytes, int]
    special: dict[str, int]
    vocab: int

    def find(self, token: str, data: bytes | None) -> int:
        """The id of a token that an endpoint names by its text and, where it sends them, its bytes. Raises Unspelt."""
        # a special token is told by its name, with bytes or without
        if token in self.special:
            return self.special[token]
        # a replacement character stands for bytes that are no text: without them nothing is known
        if data is None and "\ufffd" in token:
            raise Unspelt(f"{token!r} without its bytes")
        found = self.by_bytes.get(token.encode("utf-8", "replace") if data is None else data)
        if found is None:
            raise Unspelt(f"{token!r} is no token of teacher.tokenizer")
        return found


def open_spelling(backend: Any) -> Spelling:
    """The spelling of a `tokenizers.Tokenizer`."""
    vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}
    letters = {letter: byte for byte, letter in _byte_letters().items()}
    plain = {text: number for text, number in vocab.items() if text not in special}
    levels = _is_byte_level(plain, letters)
    found: dict[bytes, list[int]] = {}
    singles: dict[bytes, int] = {}
    for text, number in plain.items():
        data = _byte_of(text)
        if data is not None and not levels:
            singles[data] = number
        elif number in added and levels:  # written as it stands, whatever the others' letters mean
            found.setdefault(text.encode(), []).append(number)
        elif levels:
            found.setdefault(bytes(letters[letter] for letter in text), []).append(number)
        else:  # added ones too: Gemma's runs of spaces are
            found.setdefault(text.replace(SPACE, " ").encode(), []).append(number)
    by_bytes = {data: numbers[0] for data, numbers in found.items() if len(numbers) == 1}
    # a single byte is written so only where no token of text has it
    by_bytes |= {data: number for data, number in singles.items() if data not in found}
    return Spelling(by_bytes, special, max(vocab.values(), default=-1) + 1)


def _is_byte_level(vocab: dict[str, int], letters: dict[str, int]) -> bool:
    """Whether the vocabulary is written in letters that stand for bytes: all 256 are in it then."""
    return all(letter in vocab for letter in letters) and not any(SPACE in text for text in vocab)


def _byte_of(text: str) -> bytes | None:
    """The byte that SentencePiece writes as `<0x0A>`."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            return None
    return None


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it can be printed, else one from 256 on, in order."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + n) for n, byte in enumerate(others)}
