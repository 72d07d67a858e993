"""Paths that a job names: links followed, and kept inside the folders it may use."""

import os
from collections.abc import Sequence
from pathlib import Path

from factory.errors import JobError


def real_path(path: Path) -> Path:
    """An absolute path with every link followed; one that only leads to itself stays as it is, and opening it fails."""
    return Path(os.path.realpath(path))


def require_inside(paths: dict[str, Path], roots: Sequence[Path]) -> None:
    """Raise JobError for the first path, links followed, that lies in none of the folders `roots`."""
    # both sides with links followed: a link inside a root may lead out of it, and a root may itself be one
    inside = [real_path(root) for root in roots]
    for key, path in paths.items():
        if not any(real_path(path).is_relative_to(root) for root in inside):
            raise JobError(
                f"{key}: {path} lies outside the workspace {inside[0]}; move it there, "
                f"or say that you mean it with --allow-outside" + (" or --out" if key == "out" else "")
            )
