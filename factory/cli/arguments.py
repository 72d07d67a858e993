"""What all groups of commands share: the parser, arguments that are checked, and printing."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from factory.errors import DatasetError, JobError
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
    """The path of a dataset on a disk. Raises DatasetError for an address, which would be taken for one."""
    if "://" not in text:
        return Path(text)
    if text.startswith("hf://"):
        mend = "`load_rows` reads what was pushed, and commands work on the dataset that it was made of; give its DIR"
    else:
        copied = f"first `aws s3 sync {_shown(text)} DIR`" if text.startswith("s3://") else "it"
        mend = f"copy {copied}, then give DIR"
    raise DatasetError(f"{_shown(text)}: is an address, and this command takes a directory; {mend}")


def target(text: str) -> Path:
    """A path on a disk to write to. Raises JobError for an address, which would become folders here."""
    if "://" not in text:
        return Path(text)
    copied = f" (`aws s3 cp --recursive PATH {_shown(text)}`)" if text.startswith("s3://") else ""
    raise JobError(
        f"{_shown(text)}: is an address, and this command writes to a disk; give a PATH, and copy it afterwards{copied}"
    )


def file(text: str) -> Path:
    """A path on a disk of a file to read. Raises JobError for an address."""
    if "://" not in text:
        return Path(text)
    raise JobError(f"{_shown(text)}: is an address, and this command reads a file; copy it to a disk and give its path")


def _shown(address: str) -> str:
    """An address without the user and password that may stand in it."""
    return re.sub(r"://[^/]*@", "://…@", address)


def print_lines(lines: Iterable[str]) -> None:
    """Each line, escaped for a terminal."""
    # lines may hold what a job or a model wrote, and be piped into a log that others read
    for line in lines:
        say(line)
