"""Rows: a dataset's rows by number, as a trainer with an index of its own takes them."""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from factory.dataset.rows import (
    ARRAYS,
    Row,
    given_names,
    join_attention,
    join_experts,
    join_states,
    label_rows,
    read_rows,
    record_batches,
)
from factory.errors import DatasetError
from factory.load.messages import Voices

BATCH_ROWS: Final = 64
STATES_BATCH_ROWS: Final = 8  # the states of one row may take tens of MB
JOINS: Final = {
    "labels": (label_rows, BATCH_ROWS),
    "hidden_states": (join_states, STATES_BATCH_ROWS),
    "experts": (join_experts, STATES_BATCH_ROWS),
    "attention": (join_attention, STATES_BATCH_ROWS),
}  # in this order: how a config beside the rows joins them, and how many of its rows are read at a time


def join_rows(
    source: str, batches: Iterable[Any], beside: Mapping[str, Iterable[Any]], top_k: int | None, voices: Voices
) -> Iterator[Row]:
    """Rows of record batches, with those of other configs beside them (by their names in JOINS).

    `voices` say whose vocabulary a row's ids are of, and whether the reasoning goes into the messages' content.
    """
    rows: Iterator[Row] = (row for batch in batches for row in read_rows(source, batch, top_k))
    for name, (join, _) in JOINS.items():
        if name in beside:
            rows = join(source, rows, beside[name])
    return map(voices.tell, rows)


class Rows:
    """The rows of a dataset, in order, with a length and an index: what a torch DataLoader calls map-style.

    `rows[3]` is a Row, `rows[3:9]` and `rows[[3, 5]]` are Rows, `rows["task"]` is a column. What is made of rows
    (`select`, `filter`, `shuffle`) points at them and copies nothing. `beside` are other configs with the same rows in
    the same order, by their names in JOINS.
    """

    def __init__(
        self,
        source: str,
        dataset: Any,
        beside: dict[str, Any],
        top_k: int | None = None,
        voices: Voices | None = None,
    ) -> None:
        self._source, self._dataset, self._beside = source, dataset, beside
        self._top_k, self._voices = top_k, voices or Voices()

    @property
    def column_names(self) -> list[str]:
        """Names of all columns, those of arrays too."""
        return list(dict.fromkeys(given_names([*self._dataset.column_names, *self._labels()])))

    def keys(self) -> list[str]:
        """The same, as a mapping tells them."""
        return self.column_names

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self._column(index)
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        # a number in an array of no dimension can be iterated over by its type alone
        if isinstance(index, Iterable) and getattr(index, "ndim", None) != 0:
            return self.select(index)
        place = _number(index)
        return next(self._read([self._dataset[place]], {name: [part[place]] for name, part in self._beside.items()}))

    def __iter__(self) -> Iterator[Row]:
        beside = {name: part.iter(JOINS[name][1]) for name, part in self._beside.items()}
        return self._read(self._dataset.iter(BATCH_ROWS), beside)

    def select(self, places: Iterable[int]) -> "Rows":
        """The rows at these places, in their order; one may come twice. Raises IndexError."""
        chosen = np.fromiter(map(_number, places), np.int64)
        if len(chosen) and not -len(self) <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"{self._source}: rows {chosen.min()} to {chosen.max()} of {len(self)}")
        chosen %= max(len(self), 1)
        pick = operator.methodcaller("select", chosen, keep_in_memory=True)
        beside = {name: pick(part) for name, part in self._beside.items()}
        return Rows(self._source, pick(self._dataset), beside, self._top_k, self._voices)

    def filter(self, keep: Callable[[Row], Any]) -> "Rows":
        """The rows for which `keep` is true; every row is read once, now."""
        return self.select(place for place, row in enumerate(self) if keep(row))

    def shuffle(self, seed: int) -> "Rows":
        """The rows in an order that the seed decides alone."""
        return self.select(np.random.default_rng(seed).permutation(len(self)))

    def _column(self, name: str) -> list[Any]:
        if name not in self.column_names:
            has = ", ".join(self.column_names)
            raise DatasetError(f"{self._source}: no column {name!r} in these rows (has: {has})")
        told = self._voices.markers is not None or (self._voices.students and name == "prompt")
        if told or name not in self._plain:
            return [row[name] for row in self]
        dataset = self._beside["labels"] if name in self._labels() else self._dataset
        tables = dataset.select_columns([name]).iter(BATCH_ROWS)
        return [value for batch in record_batches(self._source, tables) for value in batch.column(name).to_pylist()]

    @property
    def _plain(self) -> set[str]:
        """Columns that are read as they stand."""
        return {*self._dataset.column_names, *self._labels()} - {*ARRAYS}

    def _labels(self) -> list[str]:
        return list(self._beside["labels"].column_names) if "labels" in self._beside else []

    def _read(self, tables: Iterable[Any], beside: Mapping[str, Iterable[Any]]) -> Iterator[Row]:
        batches = record_batches(self._source, tables)
        parts = {name: record_batches(self._source, part) for name, part in beside.items()}
        return join_rows(self._source, batches, parts, self._top_k, self._voices)


def _number(place: Any) -> int:
    """A row's number. Raises TypeError for a truth value: a mask would be taken for rows 0 and 1."""
    if isinstance(place, bool | np.bool_) or str(getattr(place, "dtype", "")) in ("bool", "torch.bool"):
        raise TypeError("rows are chosen by their numbers, not by a mask; give rows[numpy.flatnonzero(mask)]")
    return operator.index(place)
