"""The terminal: the one way out for text that people read, without secrets and without control characters of its own.

Data may hold anything: escape sequences that rewrite what stands above, marks that turn the order of letters about, a
carriage return that hides half a line. All of it is shown as JSON escapes it, so a line of JSON keeps its meaning. A
newline stays: it is layout.
"""

import re
import sys
from typing import Final, TextIO

from factory.errors import FactoryError, redact

# C0 but tab and newline, DEL, C1; marks of direction; line and paragraph separators; halves of surrogate pairs
UNSAFE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text as it may reach a terminal."""
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", redact(text))


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a text for people, by default on standard output."""
    print(printable(text), file=stream or sys.stdout, flush=stream is not None)


def report(error: FactoryError) -> int:
    """Tell people of an error, a line for each problem in it, and return the exit code of the command."""
    for line in str(error).split("\n"):
        say(f"error: {line}", sys.stderr)
    return error.exit_code
