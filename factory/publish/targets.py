"""Places beside a dataset that a command writes to: looked at before any work, so that a wrong one is one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.dataset.manifest import require_no_address
from factory.errors import JobError


def require_folder(out: Path, what: str) -> None:
    """Raise JobError where no folder can be; `what` is to lie in it, with its article."""
    require_no_address(out)
    if out.exists() and not out.is_dir():
        raise JobError(f"{out}: is a file, and {what} is a folder; name a new folder")
    _require_way(out.parent, f"{out}: cannot be made")


def require_file(path: Path, what: str, name: str) -> None:
    """Raise JobError where no file can be written, or it would replace a folder; `name`: what it could be called."""
    require_no_address(path)
    if path.is_dir():
        raise JobError(f"{path}: is a directory, and {what} is one file; give {path / name}")
    if not path.parent.exists():
        raise JobError(
            f"{path}: cannot be written: there is no directory {path.parent}; make it first, or name another"
        )
    _require_way(path.parent, f"{path}: cannot be written")


def _require_way(folder: Path, told: str) -> None:
    """What is there of the way to a folder must be folders that can be written to."""
    there = next(one for one in (folder, *folder.parents) if one.exists() or one == one.parent)
    if not there.is_dir():
        raise JobError(f"{told}: {there} is a file; name a place in a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise JobError(f"{told}: {there} is not yours to write to; name another place, or have its rights changed")


@contextmanager
def making(out: Path, next_step: str) -> Iterator[None]:
    """What the system says against a place, as one line about that place: a full disk, or one that takes no files."""
    try:
        yield
    except OSError as error:
        raise JobError(f"{out}: cannot be written: {error.strerror or error}; {next_step}") from error
