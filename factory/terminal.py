"""The terminal: the one way out for text that people read, without secrets and without control characters of its own.

Data may hold anything: escape sequences that rewrite what stands above, marks that turn the order of letters about, a
carriage return that hides half a line. All of it is shown as JSON escapes it, so a line of JSON keeps its meaning. A
newline stays: it is layout.
"""

import os
import re
import sys
from typing import Final, TextIO

from factory.errors import FactoryError, redact

# C0 but tab and newline, DEL, C1; marks of direction; line and paragraph separators; halves of surrogate pairs
UNSAFE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# the labels of `show`, in a column of their own
LABEL: Final = re.compile(r"(?:system|user|assistant|reasoning|answer|findings|signals|text|rejected|error) {2,}")


def printable(text: str) -> str:
    """A text as it may reach a terminal."""
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", redact(text))


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a text for people, by default on standard output; coloured where that is a terminal."""
    safe, out = printable(text), stream or sys.stdout
    print("\n".join(map(paint, safe.split("\n"))) if has_colours(out) else safe, file=out, flush=stream is not None)


def has_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours and nobody has asked for none (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def paint(line: str) -> str:
    """A safe line in colours: rules bold, labels cyan, errors red, what was rejected yellow."""
    if line.startswith("──"):
        return f"\033[1m{line}\033[0m"
    if line.startswith("error: "):
        return f"\033[31m{line}\033[0m"
    if line.startswith("  rejected "):
        return f"\033[33m{line}\033[0m"
    label = LABEL.match(line)
    return f"\033[36m{label[0]}\033[0m{line[label.end() :]}" if label else line


def report(error: FactoryError) -> int:
    """Tell people of an error, a line for each problem in it, and return the exit code of the command."""
    for line in str(error).split("\n"):
        say(f"error: {line}", sys.stderr)
    return error.exit_code
