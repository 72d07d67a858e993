"""Shards: one shard's outcomes become one Parquet file for each config, each whole or not there at all.

Rows are written in groups of about 12 MB, so memory stays flat at any shard size and a reader's first row comes early.
While a group is made and written, SHA-256 and the disk work on those before it.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from factory.dataset.layouts import Layout, config_bytes, layouts
from factory.errors import DatasetError
from factory.records import Outcome, Pair, Record
from factory.signals import SignalSpec

# measured: a reader's first row comes after 67 ms instead of 789
ROW_GROUP_BYTES = 12 * 1024 * 1024
HASH_BYTES, SYNC_BYTES = 4 * 1024 * 1024, 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One written file: its path inside the dataset, and what the ledger keeps to prove it whole."""

    path: str
    rows: int
    bytes: int
    sha256: str


def shard_path(folder: str, shard: int) -> str:
    """The path of a shard's file inside its dataset; `folder` is that of its config."""
    return f"{folder}/train-{shard:05d}.parquet"


def write_shard(
    out: Path, shard: int, outcomes: Sequence[Outcome], signals: SignalSpec, pairs: Sequence[Pair] = ()
) -> list[ShardFile]:
    """Write every config's file of one shard: temporary file, fsync, rename. Empty configs get a file without rows.

    Raises DatasetError where the disk refuses; files already in place are left as they are.
    """
    written = []
    try:
        for layout in layouts(signals).values():
            rows = pairs if layout.config == "preferences" else _rows_of(layout, outcomes)
            # pairs are no outcomes of their own: they say of two rows of the shard that they belong together
            written.append(_write_file(out, shard_path(layout.folder, shard), layout, rows))
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(f"{out}: shard {shard} cannot be written: {reason}; committed shards are whole") from error
    return written


def _rows_of(layout: Layout, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if isinstance(outcome, Record) != (layout.config == "rejected")]


def _write_file(out: Path, name: str, layout: Layout, rows: Sequence[Outcome] | Sequence[Pair]) -> ShardFile:
    target, temporary = out / name, out / f".tmp-{name.replace('/', '-')}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as handle, HashedFile(handle) as hashed:
            with pq.ParquetWriter(hashed, layout.schema, **layout.writer_options()) as writer:
                for group in _row_groups(layout, rows):
                    writer.write_table(layout.table(group))
            digest = hashed.finish()
        size = temporary.stat().st_size
        temporary.replace(target)
    finally:
        # a full disk must not be filled further by what did not fit
        temporary.unlink(missing_ok=True)
    sync_directory(target.parent)
    return ShardFile(name, len(rows), size, digest)


class HashedFile:
    """A file opened for writing, as pyarrow writes one: from the first byte to the last; SHA-256 goes along.

    While more is written, a thread hashes the last HASH_BYTES, and another brings SYNC_BYTES at a time to the disk.
    """

    # pyarrow asks; it may call `close`, which does nothing, as the file is not its own
    closed = False

    def __init__(self, handle: BinaryIO) -> None:
        self.handle = handle
        self.digest = hashlib.sha256()
        self.fresh: list[bytes] = []  # not yet with the hasher
        self.fresh_bytes = self.unsynced_bytes = 0
        # one thread each, so hashing is in order; every future's result is awaited, so no error is lost in a thread
        self.hasher, self.syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.hashed: Future[None] | None = None
        self.synced: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hasher.shutdown()
        self.syncer.shutdown()

    def write(self, data: bytes) -> int:
        self.fresh.append(data)
        self.fresh_bytes += len(data)
        self.unsynced_bytes += len(data)
        if self.fresh_bytes >= HASH_BYTES:
            self._hash_behind()
        written = self.handle.write(data)
        if self.unsynced_bytes >= SYNC_BYTES:
            self._sync_behind()
        return written

    def _hash_behind(self) -> None:
        """Once the hasher is done with the last bytes, give it the next; so no more than these are held."""
        if self.hashed is not None:
            self.hashed.result()
        self.hashed = self.hasher.submit(self._hash, self.fresh)
        self.fresh, self.fresh_bytes = [], 0

    def _hash(self, parts: list[bytes]) -> None:
        for part in parts:
            self.digest.update(part)

    def _sync_behind(self) -> None:
        """Begin to bring to the disk what is written, unless the last time still goes on."""
        if self.synced is None or self.synced.done():
            self._check_sync()
            self.handle.flush()
            self.synced = self.syncer.submit(os.fdatasync, self.handle.fileno())
            self.unsynced_bytes = 0

    def _check_sync(self) -> None:
        """Raise what a sync met. The system tells of an error once: a later fsync may know nothing of it."""
        if self.synced is not None:
            self.synced.result()

    def finish(self) -> str:
        """Bring everything to the disk; the digest, hex."""
        self.handle.flush()
        self._check_sync()
        os.fsync(self.handle.fileno())
        # waits for what was submitted: the rest comes after it
        self.hasher.shutdown()
        self._hash(self.fresh)
        return self.digest.hexdigest()

    def tell(self) -> int:
        return self.handle.tell()

    def flush(self) -> None:
        self.handle.flush()

    def close(self) -> None:
        """Whoever opened the file closes it."""


def _row_groups(layout: Layout, rows: Sequence[Outcome] | Sequence[Pair]) -> Iterator[list[Outcome | Pair]]:
    group: list[Outcome | Pair] = []
    size = 0
    for row in rows:
        group.append(row)
        outcomes = row if isinstance(row, tuple) else (row,)
        size += sum(config_bytes(outcome, layout.config) for outcome in outcomes)
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def find_file_damage(out: Path, file: ShardFile, done: str) -> str | None:
    """What is wrong with one file of a dataset by its size and checksum; `done` says what was done with it, for people.

    None where its bytes are those that were written.
    """
    path = out / file.path
    if not path.is_file():
        return f"{file.path}: missing"
    if (size := path.stat().st_size) != file.bytes:
        return f"{file.path}: {size} bytes, {done} with {file.bytes}"
    if file_digest(path) != file.sha256:
        return f"{file.path}: its bytes have changed since it was {done}"
    return None


def sync_directory(folder: Path) -> None:
    """Make a rename inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def told_as_damage(path: Path) -> Iterator[None]:
    """Turn whatever reading a file meets into a DatasetError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not readable as Parquet: {' '.join(str(error).split())}") from error


def read_batches(path: Path, columns: list[str] | None = None, group: int | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of one file, or of one row group of it, a group at a time. Raises DatasetError at broken Parquet."""
    with told_as_damage(path), pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups) if group is None else (group,):
            yield from file.read_row_group(number, columns=columns).to_batches()


def count_groups(path: Path) -> int:
    """How many row groups a file has. Raises DatasetError."""
    with told_as_damage(path):
        return int(pq.read_metadata(path).num_row_groups)


def column_bytes(path: Path) -> dict[str, int]:
    """What each column of one file takes, and under "" the frame around them. Raises DatasetError."""
    sizes: dict[str, int] = {}
    with told_as_damage(path):
        metadata = pq.read_metadata(path)
        size = path.stat().st_size
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for chunk in (group.column(index) for index in range(group.num_columns)):
            name = chunk.path_in_schema.partition(".")[0]
            sizes[name] = sizes.get(name, 0) + chunk.total_compressed_size
    return sizes | {"": size - sum(sizes.values())}


def count_rows(path: Path) -> int:
    """How many rows a file has. Raises DatasetError."""
    try:
        rows: int = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not readable as Parquet: {' '.join(str(error).split())}") from error
    return rows


def read_schema(path: Path) -> dict[str, Any]:
    """Column names and types of one file, as text."""
    with told_as_damage(path):
        # Parquet calls a list's field `element`, Arrow calls it `item`
        return {field.name: str(field.type).replace("<element:", "<item:") for field in pq.read_schema(path)}
