"""Where the shards of a dataset are kept: on this disk, as a rule; or in an object store, with a working folder here.

A ledger tells its store of each shard: before a shard's line is written its files are put, after it all that is small
is saved. What reads rows of committed shards asks for their files first.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final, Protocol

from factory.dataset.shards import ShardFile

Tell = Callable[..., None]  # an event, the line that people read of it, and fields for machines
MARK: Final = ".store.json"  # in a working folder: which address it is of


class Store(Protocol):
    """What keeps a dataset that is made in a directory."""

    @property
    def address(self) -> str:
        """Where the dataset is found; "" where that is its directory."""

    def __hash__(self) -> int:
        """What is counted of a dataset is remembered by its store, too."""

    def hold(self, out: Path, tell: Tell) -> AbstractContextManager[None]:
        """Hold it against other machines while the context lasts, and bring what it has of the dataset into `out`."""

    def put(self, files: Sequence[ShardFile]) -> None:
        """Take over the files of a shard, before its line is written."""

    def save(self) -> None:
        """Take over all else as it now is: a shard's line is written, or manifest and ledger are."""

    def here(self, files: Iterable[ShardFile]) -> AbstractContextManager[None]:
        """Have these files of committed shards in the directory while the context lasts."""


class Disk:
    """A dataset's own directory: everything is in its place already."""

    address = ""

    def hold(self, out: Path, tell: Tell) -> AbstractContextManager[None]:
        return nullcontext()

    def put(self, files: Sequence[ShardFile]) -> None:
        """They are where they belong."""

    def save(self) -> None:
        """The same."""

    def here(self, files: Iterable[ShardFile]) -> AbstractContextManager[None]:
        return nullcontext()


DISK = Disk()
