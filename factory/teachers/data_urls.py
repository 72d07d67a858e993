"""Messages as endpoints take them: pictures stand inside them, as data URLs."""

import base64
from typing import Any

from factory.records import Prompt


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


def _as_url(png: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}
