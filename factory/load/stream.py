"""A stream of rows: read as the files are, shared out between ranks and workers, shuffled, and gone on with anywhere.

`datasets.IterableDataset` shares out the units and counts what was given; units and windows are ours: its own shuffle
buffer is lost when a state is loaded, and the rows in it with it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self
from zlib import crc32

import numpy as np

from factory.curriculum.regroup import STAGE_LABELS
from factory.dataset.merging import SIGNALS, join_batches
from factory.dataset.picking import take_table
from factory.dataset.rows import Row, record_batches
from factory.dataset.shards import read_batches, shard_path
from factory.errors import DatasetError
from factory.load.messages import Voices
from factory.load.rows import BATCH_ROWS, JOINS, join_rows

POINTERS: Final = ("shard", "row", "index")  # where a row of a stage stands in the default config
LABEL_COLUMNS: Final = ("id", *STAGE_LABELS)


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker reads by itself: a shard, or a row group of a stage.

    `files` leads from a config's name to its file, or from a stage's "labels" to theirs; `folders` to where the files
    are that a stage points at. A unit without files has no rows.
    """

    files: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """How a unit becomes rows."""

    source: str
    top_k: int | None
    voices: Voices = field(default_factory=Voices)

    def rows(self, unit: Unit) -> Iterator[Row]:
        """The rows of one unit, in the files' order. Raises DatasetError where they do not agree."""
        if not unit.files:
            return iter(())
        read = self._pointed_at if unit.folders else self._of_file
        names = [name for name in JOINS if name in unit.files or name in unit.folders]
        beside = {name: read(unit, name, JOINS[name][1]) for name in names}
        rows = read(unit, "default", BATCH_ROWS)
        if SIGNALS in unit.files:
            rows = join_batches(self.source, rows, read(unit, SIGNALS, BATCH_ROWS))
        return join_rows(self.source, rows, beside, self.top_k, self.voices)

    def _of_file(self, unit: Unit, name: str, size: int) -> Iterator[Any]:
        path = unit.files[name]
        if "://" not in path:
            return _cut(read_batches(Path(path)), size)
        import datasets

        part = datasets.load_dataset("parquet", data_files={"train": [path]}, split="train", streaming=True)
        return record_batches(self.source, part.with_format("arrow").iter(size))

    def _pointed_at(self, unit: Unit, name: str, size: int) -> Iterator[Any]:
        """Rows of a local config in a stage's order; under "labels" what the stage says of them."""
        labels = read_batches(Path(unit.files["labels"]), list(LABEL_COLUMNS), unit.group)
        for batch in _cut(labels, size):
            if name == "labels":
                yield batch
                continue
            shards, rows = (batch.column(column).to_numpy() for column in ("shard", "row"))
            paths = [unit.folders[name] / Path(shard_path("", shard)).name for shard in shards.tolist()]
            yield from take_table(paths, rows).to_batches()


def _cut(batches: Iterator[Any], size: int) -> Iterator[Any]:
    """Record batches of at most `size` rows: the texts of a whole row group at once would fill memory."""
    return (batch.slice(at, size) for batch in batches for at in range(0, batch.num_rows, size))


class RowStream:
    """The rows of a dataset without an index: a torch IterableDataset, which a DataLoader shares out to its workers.

    `shuffle`, `filter` and `split_by_node` give another stream. `state_dict` tells where the last row that was given
    stood; a stream made alike that loads it goes on with the next row, shuffled or not, and leaves none out. Each
    iteration gives all rows again, in the order of the epoch that `set_epoch` names.
    """

    def __init__(self, reader: Reader, units: list[Unit], column_names: list[str]) -> None:
        self.column_names = column_names
        self._reader, self._units = reader, units
        self._shuffled: tuple[int, int] | None = None
        self._node: tuple[int, int] | None = None
        self._kept: tuple[Callable[[Row], Any], ...] = ()
        self._epoch: Any = 0
        self._start: dict[str, Any] | None = None
        self._inner: Any = None
        self._join_torch()

    def _join_torch(self) -> None:
        """Be a torch IterableDataset where there is torch, and let workers that live on see the epoch."""
        try:
            import torch
            from torch.utils.data import IterableDataset
        except ModuleNotFoundError:
            return

        # registered, not inherited: the class is there where torch is not, and a DataLoader asks only `isinstance`
        IterableDataset.register(type(self))
        # in shared memory: persistent workers hold copies of this stream and would keep the epoch they began with
        self._epoch = torch.tensor(int(self._epoch)).share_memory_()

    def keys(self) -> list[str]:
        """Names of all columns."""
        return list(self.column_names)

    @property
    def num_shards(self) -> int:
        """How many workers can have something to read."""
        return len(self._units)

    def shuffle(self, seed: int, buffer_size: int = 1000) -> Self:
        """The rows in an order that seed and epoch decide: units drawn, then every `buffer_size` rows among them."""
        return self._with(_shuffled=(seed, buffer_size))

    def filter(self, keep: Callable[[Row], Any]) -> Self:
        """The rows for which `keep` is true."""
        return self._with(_kept=(*self._kept, keep))

    def split_by_node(self, rank: int, world_size: int) -> Self:
        """The part of one rank of `world_size`: whole units where these divide evenly, else every so many-th row."""
        if not 0 <= rank < world_size:
            raise DatasetError(f"{self._reader.source}: rank {rank} of {world_size}; ranks are 0 to {world_size - 1}")
        return self._with(_node=(rank, world_size))

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin this epoch."""
        if hasattr(self._epoch, "fill_"):
            self._epoch.fill_(epoch)
        else:
            self._epoch = epoch
        self._start = self._inner = None

    def state_dict(self) -> dict[str, Any]:
        """Where this stream stands, in plain values."""
        # loaded and not gone on with yet: it stands where it was told to
        if self._inner is None and self._start is not None:
            return self._start
        inner = self._inner or self._build()
        return {"epoch": int(self._epoch), "rows": inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on behind the row that `state` was told after."""
        self.set_epoch(state["epoch"])
        self._start = state

    def __iter__(self) -> Iterator[Row]:
        self._inner, start = self._build(), self._start
        if start is not None and start["epoch"] == int(self._epoch):
            self._inner.load_state_dict(start["rows"])
        self._start = None  # once: the iteration after this one is whole
        return (example["row"] for example in self._inner)

    def __getstate__(self) -> dict[str, Any]:
        # to a worker goes what a stream is made from, not where an iteration of this process stands
        return self.__dict__ | {"_inner": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._epoch, int):
            self._join_torch()

    def _with(self, **changed: Any) -> Self:
        stream = type(self)(self._reader, self._units, self.column_names)
        stream.__dict__.update({name: getattr(self, name) for name in ("_shuffled", "_node", "_kept")} | changed)
        stream.set_epoch(int(self._epoch))
        return stream

    def _build(self) -> Any:
        """The same rows as a stream of `datasets`, each an example with the key "row"."""
        from datasets import IterableDataset
        from datasets.distributed import split_dataset_by_node

        # `datasets` refuses a stream of no units; one without files has no rows
        units, epoch = self._units or [Unit()], int(self._epoch)
        if self._shuffled is not None:
            order = np.random.default_rng([self._shuffled[0], epoch]).permutation(len(units))
            units = [units[place] for place in order]
        stream = IterableDataset.from_generator(_examples, gen_kwargs={"units": units, "reader": self._reader})
        for keep in self._kept:
            stream = stream.filter(partial(_keeps, keep))
        if self._shuffled is not None:
            seed, size = self._shuffled
            # after the filters, so that windows are full; one read again is shuffled the same, so it can be resumed
            stream = stream.map(partial(_shuffle_window, (seed, epoch)), batched=True, batch_size=size)
        return stream if self._node is None else split_dataset_by_node(stream, *self._node)


def _examples(units: list[Unit], reader: Reader) -> Iterator[dict[str, Row]]:
    return ({"row": row} for row in chain.from_iterable(map(reader.rows, units)))


def _keeps(keep: Callable[[Row], Any], example: dict[str, Row]) -> bool:
    return bool(keep(example["row"]))


def _shuffle_window(seeds: tuple[int, int], examples: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Rows that were read one after another, in an order that they and the seeds decide: read again, the same."""
    rows = examples["row"]
    order = np.random.default_rng([*seeds, crc32(rows[0]["id"].encode())]).permutation(len(rows))
    return {"row": [rows[place] for place in order]}
