"""Aligned configs: the folders `aligned-NAME` beside a dataset's rows, where they are whole and of these very rows."""

from collections.abc import Iterator
from typing import Final

from factory.dataset.ledger import Ledger
from factory.dataset.manifest import read_sealed
from factory.dataset.stages import dataset_state
from factory.errors import DatasetError
from factory.hashing import content_hash

DONE: Final = "export.json"  # written last: its existence means that the folder is whole


def rows_state(ledger: Ledger, stage_files: list[str] | None = None) -> str:
    """One name for rows that are exported: all accepted ones, or those of a stage by its files' checksums."""
    return content_hash([dataset_state(ledger), stage_files])


def aligned_configs(ledger: Ledger) -> Iterator[tuple[str, str]]:
    """The name of each and one for its content; those of an older state of the dataset are left out."""
    for path in sorted(ledger.out.glob(f"aligned-*/{DONE}")):
        try:
            done = read_sealed(path)
        except (DatasetError, FileNotFoundError):
            continue
        if done.get("plan", {}).get("state") == rows_state(ledger):
            yield path.parent.name, content_hash(done["files"])
