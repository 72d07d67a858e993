"""Values: what a keyword may be. A value that is not known is refused: taken for the default it would be believed."""

from collections.abc import Sequence
from typing import Any, Final

from factory.errors import DatasetError, nearest

PROMPTS: Final = ("teacher", "student")
REASONINGS: Final = ("apart", "content")


def require_known(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise DatasetError where a keyword is neither left out (None) nor one of its values."""
    if value is not None and (not isinstance(value, str) or value not in known):
        # a capital letter more is far away for difflib in a word this short
        like = nearest(str(value).lower(), known)
        raise DatasetError(f"{name} = {value!r}: no such value (has: {', '.join(map(repr, known))}){like}")


def require_switches(**switches: Any) -> None:
    """Raise DatasetError where a keyword that is on or off is neither: any text but "" would be on."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise DatasetError(f"{name} = {value!r}: no such value (has: True, False)")
