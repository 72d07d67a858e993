"""The texts inside a JSON value, in its order, each with the steps that lead to it; and the words of a text."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

Steps = tuple[str | int, ...]  # keys of objects and numbers of items, from the outermost in

# scripts that put no space between words: there a character stands for a word
UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
WORD: Final = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")


LONE: Final = re.compile("[\ud800-\udfff]")


def lone_surrogate(value: object) -> str | None:
    """Which text inside a value holds half of a character, as `"\\ud800"` in JSON may be; None where all are whole."""
    for steps, text in leaves(value):
        for each in (text, *steps):
            if isinstance(each, str) and (found := LONE.search(each)):
                place = ".".join(str(step) for step in steps)
                half = f"\\u{ord(found[0]):04x}"
                return f"{place}: holds {half}, half of a surrogate pair and no character; write the whole one, or none"
    return None


def leaves(value: object, steps: Steps = ()) -> Iterator[tuple[Steps, object]]:
    """Every value that holds no other one, with its steps. Any depth: a list of what is left, not recursion."""
    left = [(steps, value)]
    while left:
        steps, value = left.pop()
        if isinstance(value, dict | list | tuple):
            left.extend(reversed(list(_inside(steps, value))))
        else:
            yield steps, value


def every_text(value: object) -> Iterator[tuple[str, str]]:
    """Place (`points.2`) and text of every string in a value, keys of objects left out."""
    return ((name_place(steps), leaf) for steps, leaf in leaves(value) if isinstance(leaf, str))


def texts_at(value: object, fields: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Texts at or under each of the dotted `fields` (`*`: any item of a list or object); all where none is named.

    A field that the value does not have holds no text.
    """
    starts: list[tuple[Steps, object]] = [((), value)]
    named = list(fields)
    for start, found in _follow(value, named) if named else starts:
        yield from ((name_place(steps), leaf) for steps, leaf in leaves(found, start) if isinstance(leaf, str))


def name_place(steps: Steps) -> str:
    return ".".join(map(str, steps))


def _follow(value: object, fields: list[str]) -> Iterator[tuple[Steps, object]]:
    for field in fields:
        found: list[tuple[Steps, object]] = [((), value)]
        for step in field.split("."):
            items = [item for steps, holder in found for item in _inside(steps, holder)]
            found = [(steps, item) for steps, item in items if step in ("*", str(steps[-1]))]
        yield from found


def _inside(steps: Steps, value: object) -> Iterator[tuple[Steps, object]]:
    """The items of a list or object, each with its steps; nothing for any other value."""
    if isinstance(value, dict):
        yield from (((*steps, key), item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from (((*steps, number), item) for number, item in enumerate(value))


def words_of(text: str) -> list[str]:
    """The words of a text in the form in which texts are compared: NFKC, case folded, punctuation dropped."""
    if not text.isascii():
        # folding case can undo the normal form (U+0345), so it is made again
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return WORD.findall(text.lower())


def normalize(text: str) -> str:
    """Text without what two writings of it may differ in: Unicode form, case, spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
