"""Shards: one shard's outcomes become one Parquet file for each config, each whole or not there at all.

Rows are written in groups of about 12 MB, so memory stays flat at any shard size and a reader's first row comes early.
While a group is written, threads make the next one, and hash and bring to the disk those before it.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from factory.dataset.layouts import Layout, config_bytes, layouts
from factory.errors import DatasetError
from factory.records import Outcome, Pair, Record
from factory.signals import SignalSpec

LEDGER: Final = "ledger.jsonl"  # names every committed file, with what proves it whole
# measured: a reader's first row comes after 67 ms instead of 789
ROW_GROUP_BYTES = 12 * 1024 * 1024
PART_BYTES, SYNC_BYTES, READ_BYTES = 4 * 1024 * 1024, 32 * 1024 * 1024, 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One written file: its path inside the dataset, and what the ledger keeps to prove it whole."""

    path: str
    rows: int
    bytes: int
    # hex, of the whole file; exactly one of the two. Releases before BLAKE3 took SHA-256, and their datasets stay sound
    blake3: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if bool(self.blake3) == bool(self.sha256):
            raise ValueError(f"{self.path}: needs blake3 or sha256, one of them")

    @property
    def digest(self) -> str:
        """The file's digest, whichever hash it is of."""
        return self.blake3 or self.sha256

    def told(self) -> dict[str, Any]:
        """What is written of it: the digest under the name of its hash, the other one not at all."""
        both = asdict(self)
        del both["sha256" if self.blake3 else "blake3"]
        return both

    def matches(self, path: Path) -> bool:
        """Whether the bytes at `path` are the file's; reads all of them."""
        found = file_digest(path) if self.blake3 else sha256_digest(path)
        return found == self.digest


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
            written.append(write_rows(out, shard_path(layout.folder, shard), layout, rows))
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(f"{out}: shard {shard} cannot be written: {reason}; committed shards are whole") from error
    return written


def _rows_of(layout: Layout, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if isinstance(outcome, Record) != (layout.config == "rejected")]


def write_rows(
    out: Path,
    name: str,
    layout: Layout,
    rows: Sequence[Outcome] | Sequence[Pair],
    told: Mapping[str, str] = MappingProxyType({}),
) -> ShardFile:
    """Write rows of one config to a file; `told` goes into its schema beside what that says itself."""
    options, schema = layout.writer_options(), layout.schema
    schema = schema.with_metadata({**schema.metadata, **{name.encode(): text for name, text in told.items()}})
    groups = cut_groups(row_sizes(layout, rows))
    with place_file(out, name) as file, pq.ParquetWriter(file.sink, schema, **options) as writer:
        for table in made_ahead(lambda group: layout.table(rows[group]), groups):
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            file.follow()
    return ShardFile(name, len(rows), file.size, file.digest)


def write_table(out: Path, name: str, layout: Layout, table: pa.Table, sizes: Sequence[int]) -> ShardFile:
    """The same of rows that come as a table, with their `row_sizes`: the same rows become the same bytes."""
    table, options = table.cast(layout.schema), layout.writer_options()
    with place_file(out, name) as file, pq.ParquetWriter(file.sink, layout.schema, **options) as writer:
        for group in cut_groups(sizes):
            writer.write_table(table.slice(group.start, group.stop - group.start).combine_chunks())
            file.follow()
    return ShardFile(name, table.num_rows, file.size, file.digest)


@contextmanager
def place_file(folder: Path, name: str) -> Iterator["FollowedFile"]:
    """Write `folder / name` under another name, and put it in its place, whole and on the disk, after the block."""
    target, temporary = folder / name, folder / f".tmp-{name.replace('/', '-')}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FollowedFile(temporary) as file:
            yield file
            file.finish()
        temporary.replace(target)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # Arrow tells the reason among other things, and not of which file
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error
    finally:
        # a full disk must not be filled further by what did not fit
        temporary.unlink(missing_ok=True)
    sync_directory(target.parent)


class FollowedFile:
    """A file that pyarrow writes to `sink`; what stands in it is hashed and brought to the disk behind the writer.

    Arrow's own files write without Python. Read back while the system still holds it, a byte costs less than a copy
    of it would on its way through Python. One thread hashes, another brings SYNC_BYTES at a time to the disk; the
    writer waits for neither before `finish`. Its `size` and `digest` (hex) are known afterwards.
    """

    def __init__(self, path: Path) -> None:
        self.sink = pa.OSFile(str(path), "wb")
        self.handle = path.open("rb", buffering=0)
        # one thread, and not the library's pool: what is at work beside us needs the other cores more
        self.hash, self.buffer = blake3(), memoryview(bytearray(PART_BYTES))
        self.hasher, self.syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.digest = ""
        self.hashed: Future[None] | None = None
        self.synced: Future[None] | None = None
        self.hashed_bytes = self.synced_bytes = self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hasher.shutdown()
        self.syncer.shutdown()
        self.handle.close()
        self.sink.close()

    def follow(self) -> None:
        """Begin to hash and to bring to the disk what is written, unless the last time still goes on."""
        end = self.sink.tell()
        if self.hashed is None or self.hashed.done():
            _raise_of(self.hashed)
            self.hashed = self.hasher.submit(self._hash, end)
        if end - self.synced_bytes >= SYNC_BYTES and (self.synced is None or self.synced.done()):
            _raise_of(self.synced)
            self.synced, self.synced_bytes = self.syncer.submit(os.fdatasync, self.handle.fileno()), end

    def _hash(self, end: int) -> None:
        while self.hashed_bytes < end:
            part = self.buffer[: end - self.hashed_bytes]
            size = os.preadv(self.handle.fileno(), [part], self.hashed_bytes)
            if not size:
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.handle.name)
            self.hash.update(part[:size])
            self.hashed_bytes += size

    def finish(self) -> None:
        """Bring everything to the disk. Raises what the threads have met."""
        self.size = self.sink.tell()
        self.sink.close()
        rest = self.hasher.submit(self._hash, self.size)
        # the system tells of an error once: a later fsync may know nothing of what an earlier one has met
        _raise_of(self.synced)
        os.fsync(self.handle.fileno())
        _raise_of(self.hashed)
        rest.result()
        self.digest = self.hash.hexdigest()


def _raise_of(work: "Future[None] | None") -> None:
    if work is not None:
        work.result()


def made_ahead(make: Callable[[slice], pa.Table], groups: Iterable[slice]) -> Iterator[pa.Table]:
    """A table of each group, the next one made while the last one is written."""
    with ThreadPoolExecutor(1) as thread:
        ahead: Future[pa.Table] | None = None
        for group in groups:
            before, ahead = ahead, thread.submit(make, group)
            if before is not None:
                yield before.result()
        if ahead is not None:
            yield ahead.result()


def row_sizes(layout: Layout, rows: Sequence[Outcome] | Sequence[Pair]) -> list[int]:
    """About how many bytes each row takes in a config; of a pair both its sides."""
    sides = (row if isinstance(row, tuple) else (row,) for row in rows)
    return [sum(config_bytes(outcome, layout.config) for outcome in outcomes) for outcomes in sides]


def cut_groups(sizes: Iterable[int]) -> Iterator[slice]:
    """Which rows stand in one row group, by what each takes."""
    first, size, number = 0, 0, -1
    for number, own in enumerate(sizes):
        size += own
        if size >= ROW_GROUP_BYTES:
            yield slice(first, number + 1)
            first, size = number + 1, 0
    if number >= first:
        yield slice(first, number + 1)


def file_digest(path: Path) -> str:
    """BLAKE3 of a file, hex: what a committed file is proved by."""
    digest, buffer = blake3(max_threads=blake3.AUTO), bytearray(READ_BYTES)
    # read, not mapped: a file that is cut short while it is mapped ends the process
    with path.open("rb", buffering=0) as handle:
        while size := handle.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()


def sha256_digest(path: Path) -> str:
    """SHA-256 of a file, hex: what names a file of the user's, and proves those of datasets before BLAKE3."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def find_file_damage(out: Path, file: ShardFile, done: str) -> str | None:
    """What is wrong with one file of a dataset by its size and checksum; `done` says what was done with it, for people.

    None where its bytes are those that were written.
    """
    if told := find_size_damage(out, file, done):
        return told
    if not file.matches(out / file.path):
        return f"{file.path}: its bytes have changed since it was {done}"
    return None


def find_size_damage(out: Path, file: ShardFile, done: str) -> str | None:
    """The same by its size alone, which reads nothing."""
    path = out / file.path
    if not path.is_file():
        return f"{file.path}: missing"
    size = path.stat().st_size
    return None if size == file.bytes else f"{file.path}: {size} bytes, {done} with {file.bytes}"


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
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: missing{_next_step(path)}") from error
    except (pa.ArrowException, OSError) as error:
        told = " ".join(str(error).split())
        raise DatasetError(f"{path}: not readable as Parquet: {told}{_next_step(path)}") from error


def _next_step(path: Path) -> str:
    """What to do about a file that cannot be read: of a dataset's, what verifies it; of another, nothing is known."""
    # a shard lies one folder deep, a stage's file two
    root = next((folder for folder in list(path.parents)[:3] if (folder / LEDGER).is_file()), None)
    return "" if root is None else f"; `factory verify {root}` tells what else is damaged, and what makes it whole"


def read_batches(path: Path, columns: list[str] | None = None, group: int | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of one file, or of one row group of it, a group at a time. Raises DatasetError at broken Parquet."""
    with told_as_damage(path), pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups) if group is None else (group,):
            yield from file.read_row_group(number, columns=columns).to_batches()


def read_rows(path: Path, numbers: Iterable[int], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Rows of one file by their numbers from 0, ascending, each a batch of one row; groups without any are not read.

    Raises DatasetError at broken Parquet.
    """
    wanted = sorted(set(numbers))
    with told_as_damage(path), pq.ParquetFile(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            here = [number - first for number in wanted if first <= number < first + size]
            first += size
            # one batch of the whole group: a row that is cut out of it keeps its own bytes alone
            if not here:
                continue
            table = file.read_row_group(group, columns=columns)
            for number in here:
                yield table.slice(number, 1).combine_chunks().to_batches()[0]


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
    with told_as_damage(path):
        return int(pq.read_metadata(path).num_rows)


def read_schema(path: Path) -> dict[str, Any]:
    """Column names and types of one file, as text."""
    with told_as_damage(path):
        # Parquet calls a list's field `element`, Arrow calls it `item`
        return {field.name: str(field.type).replace("<element:", "<item:") for field in pq.read_schema(path)}
