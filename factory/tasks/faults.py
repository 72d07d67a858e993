"""Faults of a task's own code: whatever it raises, and however long it takes, ends as one `TaskFault` on one line.

A task's Python is its author's and may do anything. Every call of it, at import as at each row, runs inside `blamed`:
the caller turns the fault into a line for people or into the error row of the one scenario that met it.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.errors import Terminated, redact
from factory.tasks.sandbox import time_limit

MAX_SECONDS, MAX_WAIT_SECONDS = 60.0, 600.0  # of one call: a check takes milliseconds, so this one never ends


class TaskFault(Exception):
    """A task's code or template failed; `reason` is machine-readable. The row is an error, the run goes on."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(redact(" ".join(detail.split())))
        self.reason = reason


@contextmanager
def blamed(reason: str, path: Path | None = None) -> Iterator[None]:
    """Raise TaskFault for whatever the body raises; the line of the file `path` that it came from is told.

    An author may call `sys.exit`: that ends the call, not the factory. What stops the factory itself goes through.
    """
    try:
        with time_limit(MAX_SECONDS, MAX_WAIT_SECONDS):
            yield
    except (TaskFault, Terminated):
        raise
    except (Exception, SystemExit) as error:
        raise TaskFault(reason, name_error(error) + _place(error, path)) from error


def name_error(error: BaseException) -> str:
    """Type and message of an error on one line."""
    try:
        told = " ".join(str(error).split())
    except Exception:  # an author's error may fail to say what it is
        told = ""
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def line_of(error: BaseException, path: Path) -> int | None:
    """The last line of a file that an error came from."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


def _place(error: BaseException, path: Path | None) -> str:
    line = line_of(error, path) if path is not None else None
    return f" ({path.name}, line {line})" if path is not None and line else ""
