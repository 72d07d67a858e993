"""Sound: whether a dataset's committed files are those that its ledger names, and the next step where they are not.

What makes something new of a dataset (a curriculum, an export, a report) asks `require_intact` before it writes: a byte
that has changed is a text that nobody wrote, and it would be copied in silence. What only goes on with a dataset, or
tells of it, asks for sizes, which reads no file.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from factory.dataset.ledger import Ledger
from factory.dataset.manifest import command_of
from factory.dataset.shards import ShardFile, find_file_damage, find_size_damage
from factory.errors import DatasetError


def tell_repair(out: Path) -> str:
    """What makes damaged shards again, as it is typed: of the command that has made them."""
    return f"`{command_of(out)} JOB --repair`"


def tell_next(out: Path) -> str:
    """The next step where a file of a dataset is damaged."""
    return f"`factory verify {out}` tells what else is, {tell_repair(out)} makes it again"


def find_missing(ledger: Ledger) -> Iterator[str]:
    """Each committed file that is gone or has another size than the ledger's, as a line; no file is read."""
    for file in files_of(ledger):
        if told := find_size_damage(ledger.out, file, "committed"):
            yield told


def sum_up(damage: Sequence[str]) -> str:
    """The first line of damage, and how many files more there are."""
    return damage[0] + (f", and {len(damage) - 1:,} more" if len(damage) > 1 else "")


def require_present(ledger: Ledger) -> None:
    """Raise DatasetError where a committed file is gone or has another size than the ledger's."""
    if gone := list(find_missing(ledger)):
        raise DatasetError(f"{ledger.out}: {sum_up(gone)}; {tell_next(ledger.out)}")


def require_intact(ledger: Ledger, *folders: str, shards: Iterable[int] | None = None) -> None:
    """Raise DatasetError where a committed file in these folders, of some shards or of all, is not what was written.

    Reads every byte of them.
    """
    for file in files_of(ledger, *folders, shards=shards):
        if told := find_file_damage(ledger.out, file, "committed"):
            raise DatasetError(f"{ledger.out}: {told}; {tell_next(ledger.out)}")


def files_of(ledger: Ledger, *folders: str, shards: Iterable[int] | None = None) -> Iterator[ShardFile]:
    """The committed files in these folders, or in all where none is named; of some shards, or of all."""
    for shard in sorted(ledger.entries if shards is None else shards):
        for file in ledger.entries[shard].files:
            if not folders or file.path.partition("/")[0] in folders:
                yield file
