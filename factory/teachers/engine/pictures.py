"""Pictures on their way into the engine: vLLM's own processor says how many tokens each becomes, before a row is begun.

A row keeps the prompt that the model has read, each picture's tokens in it, and capture counts on its length. So the
processor runs first, once a row, and what it has made goes in with each part of the row: the same pixels, and ids that
only grow behind them.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

from factory.errors import one_line


class PictureRefusal(Exception):
    """The model's processor does not take these pictures at these places; the text says why."""


def expand(llm: Any, ids: list[int], pictures: Sequence[str]) -> dict[str, Any]:
    """What the engine is given for a prompt with pictures (PNG in base64); its `prompt_token_ids` are the whole prompt.

    Raises PictureRefusal where the processor does, or where it changes ids beside the pictures' own.
    """
    from PIL import Image

    images = [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in pictures]
    asked = {"prompt_token_ids": ids, "multi_modal_data": {"image": images}}
    try:
        (made,) = llm.llm_engine.renderer.render_cmpl([asked])
        ranges = [(place.offset, place.length) for place in made["mm_placeholders"]["image"]]
    except Exception as error:  # of many types: a processor is a model author's code
        raise PictureRefusal(one_line(error)) from error
    if len(ranges) != len(images) or not is_expansion(ids, list(made["prompt_token_ids"]), ranges):
        raise PictureRefusal("the processor changes the prompt beside its pictures; such a model is not asked")
    return dict(made)


def is_expansion(ids: Sequence[int], expanded: Sequence[int], ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether `expanded` is `ids` with one token after the other replaced by a range (offset, length) of its own."""
    at = before = 0
    for offset, length in ranges:
        piece = list(expanded[before:offset])
        if offset < before or list(ids[at : at + len(piece)]) != piece:
            return False
        at, before = at + len(piece) + 1, offset + length
    return at <= len(ids) and list(ids[at:]) == list(expanded[before:])
