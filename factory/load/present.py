"""Whether what a local dataset tells of is there: its committed files, by name, and a curriculum of these very rows.

Names and states only, which is cheap; whether the bytes are what was written is `factory verify`'s to say. Without a
ledger beside them, as in a copy, files are what the card finds.
"""

from pathlib import Path
from typing import Any, Final

from factory.dataset.ledger import LEDGER, Ledger, read_ledger
from factory.dataset.merging import SIGNALS
from factory.dataset.sound import tell_next, tell_repair
from factory.dataset.stages import AGAIN, FOLDER, read_summary, require_current
from factory.errors import DatasetError

# configs that no curriculum holds, whose names it may not give to a stage
APART: Final = ("default", "rejected", "preferences", "hidden_states", "experts", "attention", SIGNALS)


def find_ledger(root: Path) -> Ledger | None:
    """The ledger beside the files, None where there is none. Raises DatasetError where it is damaged."""
    if not (root / LEDGER).is_file():
        return None
    try:
        return read_ledger(root)
    except DatasetError as error:
        raise DatasetError(f"{error}; {tell_repair(root)} mends it") from None


def find_curriculum(root: Path, config: str) -> dict[str, Any] | None:
    """What curriculum.json says, None where a config is none of its own. Raises DatasetError where it is damaged."""
    # a damaged curriculum is no matter of the rows
    if config in APART or (config.startswith("aligned-") and (root / config).is_dir()):
        return None
    summary = read_summary(root)
    return summary if summary and config in stage_rows(summary) else None


def stage_rows(summary: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The rows of every config of a curriculum, by split, those without a row too."""
    parts = [*summary["stages"], summary["hand_off"] | {"name": "hand-off"}]
    return {part["name"]: part["rows"] for part in parts}


def folder_of(config: str) -> str:
    """Where the files of a config lie that no curriculum holds."""
    return "data" if config == "default" else config


def require_present(ledger: Ledger, curriculum: dict[str, Any] | None, config: str, split: str) -> None:
    """Raise DatasetError where a file is gone that rows were committed in, or a curriculum is of other rows."""
    if curriculum is None:
        begin = f"{folder_of(config)}/"
        files = [file.path for entry in ledger.entries.values() for file in entry.files if file.path.startswith(begin)]
        hint = tell_next(ledger.out)
    else:
        require_current(ledger, curriculum)
        begin, hint = f"{FOLDER}/{config}/{split}-", AGAIN
        files = [file["path"] for file in curriculum["files"] if file["path"].startswith(begin)]
    # listed once: a question for each of ten thousand files takes long on a disk far away
    folder = ledger.out / begin.rpartition("/")[0]
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if gone := sorted(path for path in files if path.rpartition("/")[2] not in there):
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise DatasetError(f"{ledger.out}: {gone[0]}{more} of {len(files)} files is gone; {hint}")
