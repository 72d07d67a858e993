"""What all groups of commands share: the parser, arguments that are checked, and printing."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from factory.errors import DatasetError
from factory.terminal import printable, say


class Parser(argparse.ArgumentParser):
    """A parser whose messages, which repeat what was typed, reach the terminal as all else does."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message), file)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def positive(text: str) -> int:
    """A whole number of at least 1."""
    # int() would also take "1_000", " 7" and "+7"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def directory(text: str) -> Path:
    """A path on a disk. Raises DatasetError for an address, which would be taken for one."""
    if "://" in text:
        copied = f"first `aws s3 sync {text} DIR`" if text.startswith("s3://") else "it"
        raise DatasetError(f"{text}: is an address, and this command takes a directory; copy {copied}, then give DIR")
    return Path(text)


def print_lines(lines: Iterable[str]) -> None:
    """Each line, escaped for a terminal."""
    # lines may hold what a job or a model wrote, and be piped into a log that others read
    for line in lines:
        say(line)
