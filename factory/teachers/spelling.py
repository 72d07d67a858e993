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
    try:
        teacher = TeacherConfig.model_validate(manifest["job"]["teacher"])
        if teacher.backend == "scripted":
            decode: Callable[[list[int]], str] = scripted.decode
        else:
            folder = folder_of(teacher.tokenizer or locate_model(teacher), teacher.revision)
            if folder is None:
                return None
            decode = partial(LocalTokenizer(folder).backend.decode, skip_special_tokens=False)

        return (lambda i: decode([i])) if decode(row["completion_token_ids"]) == row["text"] else None
    except Exception:  # of a job of another version, a folder that is gone, a file that is no tokenizer
        return None
