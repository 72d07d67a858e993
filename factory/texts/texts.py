"""The texts inside a JSON value, each with the place where it stands (`points.2`), in the order of the value."""

import unicodedata
from collections.abc import Iterable, Iterator

Place = tuple[str, object]


def every_text(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Place and text of every string in a value, keys of objects left out. Any depth."""
    left: list[Place] = [(place, value)]
    while left:
        place, value = left.pop()
        if isinstance(value, str):
            yield place, value
        else:
            left.extend(reversed(list(_inside(place, value))))


def texts_at(value: object, fields: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Texts at or under each of the dotted `fields` (`*`: any item of a list or object); all where none is named.

    A field that the value does not have holds no text.
    """
    named = list(fields)
    if not named:
        yield from every_text(value)
    for field in named:
        for place, found in _follow(value, field.split(".")):
            yield from every_text(found, place)


def _follow(value: object, steps: list[str]) -> list[Place]:
    found: list[Place] = [("", value)]
    for step in steps:
        items = [item for place, holder in found for item in _inside(place, holder)]
        found = [(place, item) for place, item in items if step in ("*", place.rpartition(".")[2])]
    return found


def _inside(place: str, value: object) -> Iterator[Place]:
    """The items of a list or object, each with its place; nothing for any other value."""
    prefix = f"{place}." if place else ""
    if isinstance(value, dict):
        yield from ((f"{prefix}{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{prefix}{number}", item) for number, item in enumerate(value))


def normalize(text: str) -> str:
    """Text without what two writings of it may differ in: Unicode form, case, spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
