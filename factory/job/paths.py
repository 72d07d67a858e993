"""Paths that a job names: links followed, kept inside the folders it may use; and the files that one stands for."""

import os
from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from pathlib import Path

from factory.errors import JobError


def real_path(path: Path) -> Path:
    """An absolute path with every link followed; one that only leads to itself stays as it is, and opening it fails."""
    return Path(os.path.realpath(path))


def require_inside(paths: Iterable[tuple[str, Path]], roots: Sequence[Path]) -> None:
    """Raise JobError for the first path, links followed, that lies in none of the folders `roots`."""
    # both sides with links followed: a link inside a root may lead out of it, and a root may itself be one
    inside = [real_path(root) for root in roots]
    for key, path in paths:
        if not any(real_path(path).is_relative_to(root) for root in inside):
            raise JobError(
                f"{key}: {path} lies outside the workspace {inside[0]}; move it there, "
                f"or say that you mean it with --allow-outside" + (" or --out" if key == "out" else "")
            )


def named_files(text: str) -> dict[str, Path]:
    """The files that a path stands for: itself, all in a folder, or those that a pattern such as `mail/**/*.csv` finds.

    By their names under that folder, in the order of these names, which is the same on every machine. Hidden files
    are none of them. A file whose own name looks like a pattern is itself.
    """
    path = Path(text)
    if path.is_file():
        return {path.name: path}
    if path.is_dir():
        root, found = path, [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    elif has_magic(text):
        root, found = _plain_part(path), [Path(name) for name in glob(text, recursive=True)]
    else:
        return {}
    named = {file.relative_to(root): file for file in found if file.is_file()}
    visible = {name: file for name, file in named.items() if not any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): visible[name] for name in sorted(visible, key=Path.as_posix)}


def _plain_part(path: Path) -> Path:
    """The folder above the first part of a path that is a pattern."""
    first = next(number for number, part in enumerate(path.parts) if has_magic(part))
    return Path(*path.parts[:first])
