"""The text of a token, for people: nothing is decided by it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from factory.job.teacher import TeacherConfig
from factory.teachers import scripted
from factory.teachers.models import locate_model
from factory.teachers.tokens import LocalTokenizer, folder_of


def open_speller(manifest: dict[str, Any], row: dict[str, Any]) -> Callable[[int], str] | None:
    """The text of one token id of a dataset, None where its teacher's tokenizer is not at hand.

    It is tried on the row first: a tokenizer that spells its ids otherwise than its text is another one.
    """
    decode = open_decoder(manifest)
    return None if decode is None or not spells(decode, row) else lambda i: decode([i])


def open_decoder(manifest: dict[str, Any]) -> Callable[[list[int]], str] | None:
    """The text of some token ids of a dataset, None where the tokenizer that its teacher names is not at hand."""
    try:
        teacher = TeacherConfig.model_validate(manifest["job"]["teacher"])
        if teacher.backend == "scripted":
            return scripted.decode
        folder = folder_of(teacher.tokenizer or locate_model(teacher), teacher.revision)
        return None if folder is None else partial(LocalTokenizer(folder).backend.decode, skip_special_tokens=False)
    except Exception:  # of a job of another version, a folder that is gone, a file that is no tokenizer
        return None


def spells(decode: Callable[[list[int]], str], row: dict[str, Any]) -> bool:
    """Whether a decoder makes of a row's completion ids the text that is stored beside them."""
    try:
        return decode(row["completion_token_ids"]) == row["text"]
    except Exception:  # an id that the tokenizer does not have
        return False
