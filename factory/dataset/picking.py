"""Picking rows by number out of Parquet files, in any order: each file is opened once, each row group read once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.dataset.shards import told_as_damage
from factory.errors import DatasetError
from factory.signals import Array


def take_table(paths: Sequence[Path], rows: Array, columns: list[str] | None = None) -> Any:
    """The rows `rows[i]` of the files `paths[i]` as one table, in that order; each file is opened once."""
    places: dict[Path, list[int]] = {}
    for place, path in enumerate(paths):
        places.setdefault(path, []).append(place)
    tables = [take_rows(path, rows[mine], columns) for path, mine in places.items()]
    order = np.argsort([place for mine in places.values() for place in mine])
    return pa.concat_tables(tables).combine_chunks().take(pa.array(order))


def take_rows(path: Path, rows: Array, columns: list[str] | None = None) -> Any:
    """Rows of one file as a table, in the order of their numbers `rows`; reads only the row groups that hold them.

    Raises DatasetError where the file is not whole Parquet or has fewer rows.
    """
    with told_as_damage(path), pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        if len(rows) and not 0 <= rows.min() <= rows.max() < ends[-1]:
            raise DatasetError(f"{path}: has {ends[-1]} rows, and row {rows.max()} is asked for; run `factory verify`")
        group = np.searchsorted(ends, rows, side="right") - 1
        wanted = np.unique(group)
        # where each wanted group begins in the table of them, in place of where it begins in the file
        shift = np.concatenate([[0], np.cumsum(np.diff(ends)[wanted])])
        table = file.read_row_groups(wanted.tolist(), columns=columns)
        return table.take(pa.array(rows - ends[group] + shift[np.searchsorted(wanted, group)]))
