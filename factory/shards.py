"""Shards: one shard's outcomes become one Parquet file for each config, each whole or not there at all.

Rows are written in groups of about 12 MB, so memory stays flat at any shard size and a reader's first row comes early.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.columns import Layout, layouts, row_bytes
from factory.errors import DatasetError
from factory.records import Outcome, Pair, Record, SignalSpec

ROW_GROUP_BYTES = 12 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One written file: its path inside the dataset, and what the ledger keeps to prove it whole."""

    path: str
    rows: int
    bytes: int
    sha256: str


def shard_path(layout: Layout, shard: int) -> str:
    return f"{layout.folder}/train-{shard:05d}.parquet"


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
            written.append(_write_file(out, shard_path(layout, shard), layout, rows))
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
        with temporary.open("wb") as handle:
            with pq.ParquetWriter(handle, layout.schema, **layout.writer_options()) as writer:
                for group in _row_groups(rows):
                    writer.write_table(layout.table(group))
            handle.flush()
            os.fsync(handle.fileno())
        size, digest = temporary.stat().st_size, file_digest(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(target.parent)
    return ShardFile(name, len(rows), size, digest)


def _row_groups(rows: Sequence[Outcome] | Sequence[Pair]) -> Iterator[list[Outcome | Pair]]:
    group: list[Outcome | Pair] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(map(row_bytes, row)) if isinstance(row, tuple) else row_bytes(row)
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_directory(folder: Path) -> None:
    """Make a rename inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of one file, a row group at a time. Raises DatasetError where it is not whole Parquet."""
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=columns).to_batches()
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not readable as Parquet: {' '.join(str(error).split())}") from error


def read_schema(path: Path) -> dict[str, Any]:
    """Column names and types of one file, as text."""
    try:
        # Parquet calls a list's field `element`, Arrow calls it `item`
        return {field.name: str(field.type).replace("<element:", "<item:") for field in pq.read_schema(path)}
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not readable as Parquet: {' '.join(str(error).split())}") from error
