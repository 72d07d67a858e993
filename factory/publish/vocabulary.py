"""Vocabularies: what bytes each token id stands for, of a teacher and of a student with another tokenizer.

Two tokens of two vocabularies are the same outcome where they stand for the same bytes. A token that ends a turn stands
for no text: it corresponds to the other's own end, whatever either spells it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from factory.errors import JobError, TeacherError, one_line
from factory.job.teacher import TeacherConfig
from factory.teachers import scripted
from factory.teachers.models import locate_model
from factory.teachers.tokens import LocalTokenizer, folder_of

BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE: Final = "▁"  # stands for a space in SentencePiece vocabularies


def _byte_alphabet() -> dict[str, int]:
    """The letters that byte-level vocabularies (since GPT-2) write bytes with: printable ones stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


ALPHABET: Final = _byte_alphabet()


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of each id, and which ids are control tokens; b"" where an id stands for nothing."""

    pieces: Sequence[bytes]
    control: frozenset[int]
    end_ids: tuple[int, ...]
    tokenizer: LocalTokenizer | None = None
    name: str = ""

    def text(self, number: int) -> str:
        return self.pieces[number].decode("utf-8", "replace")

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The id of each piece that is text; the lowest where several stand for the same bytes."""
        ids = range(len(self.pieces) - 1, -1, -1)
        return {self.pieces[i]: i for i in ids if self.pieces[i] and i not in self.control}

    @cached_property
    def control_by_text(self) -> dict[bytes, int]:
        return {self.pieces[i]: i for i in sorted(self.control, reverse=True) if self.pieces[i]}


def teacher_vocabulary(manifest: dict[str, Any]) -> Vocabulary | None:
    """That of a dataset's teacher; None where its tokenizer is not on this machine."""
    try:
        teacher = TeacherConfig.model_validate((manifest.get("job") or {}).get("teacher") or {})
    except ValueError:  # of a job of another release
        return None
    if teacher.backend == "scripted":
        pieces = [bytes([i]) for i in range(256)]
        pieces += [scripted.SPECIAL_TEXT.get(i, "").encode() for i in range(256, scripted.VOCAB)]
        control = frozenset(range(256, scripted.VOCAB))
        return Vocabulary(pieces, control, (scripted.STOP,), name="the scripted teacher")
    try:
        folder = folder_of(teacher.tokenizer or locate_model(teacher), teacher.revision)
    except TeacherError:
        return None
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    return read_vocabulary(folder, teacher.model)


def student_vocabulary(name: str) -> Vocabulary:
    """That of a named tokenizer: a folder, a hub id whose files are here, or "demo". Raises JobError."""
    from factory.teachers.demo import FOLDER

    folder = FOLDER if name == "demo" else folder_of(name, None)
    if folder is None or not (Path(folder) / "tokenizer.json").is_file():
        told = "no tokenizer.json of it on this machine; give a folder that holds one, or download it first"
        raise JobError(f"--student {name}: {told}")
    try:
        return read_vocabulary(Path(folder), name)
    except Exception as error:  # of the tokenizers library, whose errors have no common type
        raise JobError(f"--student {name}: its tokenizer cannot be used: {one_line(error, 200)}") from error


def read_vocabulary(folder: Path, name: str) -> Vocabulary:
    """The vocabulary of a tokenizer.json."""
    tokenizer = LocalTokenizer(folder)
    definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    byte_level = "ByteLevel" in json.dumps([definition.get("decoder"), definition.get("pre_tokenizer")])
    vocab = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    pieces = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, number in vocab.items():
        pieces[number] = token.encode() if number in added else _bytes_of(token, byte_level)
    control = frozenset(number for number, token in added.items() if token.special or _is_tag(token.content))
    ends = (tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else ()
    return Vocabulary(pieces, control, ends, tokenizer, name)


def _is_tag(text: str) -> bool:
    """Whether an added token is a marker, such as </think>, and no run of spaces or word."""
    return bool(re.search(r"\w", text)) and bool(re.search(r"[<\[|]", text))


def _bytes_of(token: str, byte_level: bool) -> bytes:
    if byte_level:
        try:
            return bytes(ALPHABET[letter] for letter in token)
        except KeyError:
            return token.encode()
    if found := BYTE_TOKEN.fullmatch(token):
        return bytes([int(found[1], 16)])
    return token.replace(SPACE, " ").encode()
