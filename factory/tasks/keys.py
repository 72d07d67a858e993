"""JSON that people wrote, where a key that stands twice in one object is a slip: the reader would take either."""

import json
from collections import Counter
from typing import Any


class Keys:
    """Makes the objects of a JSON text, as a decoder's `object_pairs_hook`, and notes a key that one has twice."""

    def __init__(self) -> None:
        self.twice: str | None = None

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs) and self.twice is None:
            self.twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return value

    def fault(self) -> str | None:
        """What is wrong with the text, None where each key of an object stands once."""
        if self.twice is None:
            return None
        return f"has the key {self.twice!r} twice in one object; keep the one that is meant"


def read_json(text: str | bytes) -> tuple[Any, str | None]:
    """A JSON text, and what its keys have against them. Raises ValueError or RecursionError."""
    keys = Keys()
    return json.loads(text, object_pairs_hook=keys), keys.fault()
