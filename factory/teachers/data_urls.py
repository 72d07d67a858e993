"""Messages as endpoints take them: pictures stand inside them, as data URLs or as Gemini's parts.

How many tokens a picture takes is the endpoint's own affair. `most_image_tokens` is the largest count that is published
(gpt-4o-mini: 2,833, and 5,667 for each of up to eight tiles of 512 x 512), so that no known endpoint bills more.
"""

import base64
import struct
from collections.abc import Iterator
from typing import Any, Final

from factory.records import Prompt

TILE: Final = 512  # pixels a side
TILE_TOKENS: Final = 5_667
FRAME_TOKENS: Final = 2_833
MOST_TILES: Final = 8


def with_data_urls(prompt: Prompt) -> list[dict[str, Any]]:
    """A prompt's messages in the form of OpenAI's chat API, each picture in its place as a PNG in a data URL."""
    pictures = iter(prompt.images)
    told = []
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [_as_url(next(pictures)) if part["type"] == "image" else part for part in content]
        told.append(message | {"content": content})
    return told


def as_gemini_parts(content: str | list[dict[str, Any]], pictures: Iterator[bytes]) -> list[dict[str, Any]]:
    """A content as Gemini's parts, each picture taken from `pictures` in turn."""
    if isinstance(content, str):
        return [{"text": content}]
    return [_as_inline(next(pictures)) if part["type"] == "image" else {"text": part["text"]} for part in content]


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG, in pixels."""
    width, height = struct.unpack(">II", png[16:24])  # of the header chunk, which is its first
    return width, height


def most_image_tokens(png: bytes) -> int:
    """Tokens that a picture takes, at most, by its size in pixels."""
    width, height = size_of(png)
    tiles = -(-width // TILE) * -(-height // TILE)
    return FRAME_TOKENS + TILE_TOKENS * int(min(tiles, MOST_TILES))


def _as_inline(png: bytes) -> dict[str, Any]:
    return {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(png).decode("ascii")}}


def _as_url(png: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}
