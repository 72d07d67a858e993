"""Tables: one file of rows in any of the kinds that are known here, each row read when it is asked for.

Values are those that stand in the file: no text becomes a date, no number loses digits. Rows have the number that an
editor shows: the line they begin at, or in files without lines their place counted from 1. A row that cannot be read
is still a row: the file is opened, the row's own reading fails.
"""

import csv
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from factory.dataset.shards import count_rows, read_batches, read_schema
from factory.tasks.keys import Keys, read_json

KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
PACKED = ".gz"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
Choose = Callable[[list[str]], list[str]]
SPACE = " \t\n\r"  # what JSON takes for space


class BadRow(ValueError):
    """One row cannot be read; the text says why."""


class Table(Protocol):
    """The rows of one file. `unit` names what their numbers count, `fault` is the first row that cannot be read."""

    unit: Literal["line", "row"]
    column_names: list[str]
    faulty: int
    fault: str

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Mapping[str, Any]: ...
    def number(self, place: int) -> int: ...


def kind_of(path: Path) -> str | None:
    """Which kind of table a file is, by its ending; None for one that is not known here."""
    packed = path.suffix == PACKED
    kind = KINDS.get(path.with_suffix("").suffix if packed else path.suffix)
    return None if packed and kind == "parquet" else kind


def known_endings() -> str:
    """Endings of the files that are known here, for people."""
    return f"{', '.join(KINDS)}; all but .parquet also with {PACKED}"


def open_table(path: Path, kind: str, choose: Choose = list) -> Table:
    """The rows of one file; `choose` says which of its columns are needed, and of Parquet no others are read.

    Raises ValueError, OSError or what `datasets` raises where the file as a whole cannot be read.
    """
    if kind == "parquet":
        return open_parquet(path, choose)
    data = _Bytes(path)
    if kind in ("csv", "tsv"):
        return Csv(data, "\t" if kind == "tsv" else ",")
    return JsonArray(data) if kind == "json" and data.begins_with("[") else JsonLines(data)


def scan_table(path: Path, kind: str) -> tuple[str, Iterator[tuple[int, Mapping[str, Any]]]]:
    """What the numbers of a file's rows count, and each row with its number, from the first to the last.

    Raises ValueError where one cannot be read, or what `open_table` raises.
    """
    if kind == "parquet":
        rows = (row for batch in read_batches(path) for row in batch.to_pylist())
        return "row", enumerate(rows, 1)
    table = open_table(path, kind)
    return table.unit, ((table.number(place), _read_row(table, place)) for place in range(len(table)))


def _read_row(table: Table, place: int) -> Mapping[str, Any]:
    try:
        return table[place]
    except BadRow as error:
        raise ValueError(f"{table.unit} {table.number(place)} {error}") from None


class _Bytes:
    """A file's bytes, unpacked where it is packed. It is opened for each read, so that thousands hold no handles."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unpacked = UNPACKED.add(path) if path.suffix == PACKED else None

    @contextmanager
    def open(self, start: int = 0) -> Iterator[BinaryIO]:
        if self.unpacked is not None:
            first, end = self.unpacked
            yield UNPACKED.open(first + start, end)
            return
        with self.path.open("rb") as handle:
            handle.seek(start)
            yield handle

    def begins_with(self, character: str) -> bool:
        """Whether the first character that is no space is this one."""
        with self.open() as handle:
            for line in handle:
                text = line.removeprefix(BYTE_ORDER_MARK).lstrip()
                if text:
                    return text.startswith(character.encode())
        return False


class _Unpacked:
    """The bytes of all packed files of this process, one after the other in one nameless file on the disk.

    A gzip file cannot be read from its middle, and a file of its own for each would hold a handle for each.
    """

    def __init__(self) -> None:
        self.file: BinaryIO | None = None

    def add(self, path: Path) -> tuple[int, int]:
        """Unpack a file; where its bytes begin and end."""
        if self.file is None:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        first = self.file.seek(0, os.SEEK_END)
        with gzip.open(path, "rb") as packed:
            shutil.copyfileobj(packed, self.file, 1 << 20)
        self.file.flush()
        return first, self.file.tell()

    def open(self, first: int, end: int) -> BinaryIO:
        """What lies between two places, to be read."""
        assert self.file is not None
        return io.BufferedReader(_Part(self.file.fileno(), first, end))


class _Part(io.RawIOBase):
    """Part of an open file, with a place of its own in it."""

    def __init__(self, handle: int, at: int, end: int) -> None:
        self.handle, self.at, self.end = handle, at, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self.handle, min(len(buffer), self.end - self.at), self.at)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


UNPACKED = _Unpacked()


class _Indexed:
    """Where each row of a file begins, in bytes, and its number."""

    unit: Literal["line", "row"] = "line"

    def __init__(self) -> None:
        self.starts, self.numbers = array("Q"), array("Q")
        self.column_names: list[str] = []
        self.faulty, self.fault = 0, ""

    def __len__(self) -> int:
        return len(self.starts)

    def number(self, place: int) -> int:
        return self.numbers[place]

    def _add(self, start: int, number: int, fault: BadRow | None) -> None:
        self.starts.append(start)
        self.numbers.append(number)
        if fault is not None:
            self.faulty += 1
            self.fault = self.fault or f"{self.unit} {number} {fault}"


class JsonLines(_Indexed):
    """The objects of a JSON Lines file, one a line.

    (The JSON loader of `datasets` makes timestamps of texts that look like dates and floats of long integers.)
    """

    def __init__(self, data: _Bytes) -> None:
        super().__init__()
        self.data = data
        columns: dict[str, None] = {}
        start = 0
        with data.open() as handle:
            for number, line in enumerate(handle, 1):
                if line.removeprefix(BYTE_ORDER_MARK).strip():
                    self._add(start, number, _note_columns(line, columns))
                start += len(line)
        self.column_names = list(columns)

    def __getitem__(self, place: int, /) -> Mapping[str, Any]:
        with self.data.open(self.starts[place]) as handle:
            return _read_object(handle.readline())


def _note_columns(line: bytes, columns: dict[str, None]) -> BadRow | None:
    try:
        columns |= dict.fromkeys(_read_object(line))
    except BadRow as error:
        return error
    return None


def _read_object(line: bytes) -> dict[str, Any]:
    try:
        value, doubled = read_json(line)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRow(f"is a JSON {type(value).__name__}; write one object a line")
    if doubled is not None:
        raise BadRow(doubled)
    return value


class JsonArray(_Indexed):
    """The objects of a file that is one JSON array; its text is held in memory, the objects are not."""

    unit: Literal["line", "row"] = "row"

    def __init__(self, data: _Bytes) -> None:
        super().__init__()
        with data.open() as handle:
            self.text = handle.read().decode("utf-8-sig")
        columns: dict[str, None] = {}
        for number, (start, value, keys) in enumerate(self._walk(), 1):
            try:
                columns |= dict.fromkeys(self._object(value, keys))
            except BadRow as error:
                self._add(start, number, error)
            else:
                self._add(start, number, None)
        self.column_names = list(columns)

    def __getitem__(self, place: int, /) -> Mapping[str, Any]:
        value, _, keys = self._decode(self.starts[place])
        return self._object(value, keys)

    def _object(self, value: Any, keys: Keys) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BadRow(f"is a JSON {type(value).__name__}; the array must hold objects")
        if told := keys.fault():
            raise BadRow(told)
        return value

    def _walk(self) -> Iterator[tuple[int, Any, Keys]]:
        """Each item with where it begins. Raises ValueError where the array breaks off: nothing behind is known."""
        at = self._skip(self._skip(0) + 1)
        while not self.text.startswith("]", at):
            value, end, keys = self._decode(at)
            yield at, value, keys
            at = self._skip(end)
            if not self.text.startswith("]", at):
                if not self.text.startswith(",", at):
                    raise ValueError(f"the array is not JSON: neither , nor ] at character {at + 1}")
                at = self._skip(at + 1)
                if self.text.startswith("]", at):
                    raise ValueError(f"the array is not JSON: a , before the ] at character {at + 1}")
        if self._skip(at + 1) != len(self.text):
            raise ValueError(f"more follows the array at character {at + 2}; write one array, or one object a line")

    def _decode(self, at: int) -> tuple[Any, int, Keys]:
        keys = Keys()
        try:
            return *json.JSONDecoder(object_pairs_hook=keys).raw_decode(self.text, at), keys
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the array is not JSON: {error}") from None

    def _skip(self, at: int) -> int:
        while at < len(self.text) and self.text[at] in SPACE:
            at += 1
        return at


class Csv(_Indexed):
    """The records of a CSV file under a header: every value is text, and an empty cell is none."""

    def __init__(self, data: _Bytes, delimiter: str) -> None:
        super().__init__()
        csv.field_size_limit(sys.maxsize)  # documents are longer than the 131,072 characters that it stops at
        self.data, self.delimiter = data, delimiter
        with data.open() as handle:
            lines = _CountedLines(handle)
            reader = self._reader(lines)
            self.column_names = _read_header(reader)
            while True:
                start, number, fault = lines.bytes, lines.count + 1, None
                try:
                    cells = next(reader, None)
                    if cells:
                        self._record(cells)
                except (csv.Error, ValueError) as error:
                    if "unexpected end of data" in str(error):
                        raise ValueError(f"line {number}: a quote is opened that nothing closes") from None
                    cells, fault = [""], BadRow(f"is not CSV: {error}" if isinstance(error, csv.Error) else str(error))
                if cells is None:
                    return
                if cells:  # an empty line is no record
                    self._add(start, number, fault)

    def _reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self.delimiter, strict=True)

    def _record(self, cells: list[str]) -> dict[str, Any]:
        if len(cells) != len(self.column_names):
            raise BadRow(f"has {len(cells)} cells, the header {len(self.column_names)}")
        return {name: cell or None for name, cell in zip(self.column_names, cells, strict=True)}

    def __getitem__(self, place: int, /) -> Mapping[str, Any]:
        with self.data.open(self.starts[place]) as handle:
            try:
                return self._record(next(self._reader(_CountedLines(handle))))
            except csv.Error as error:
                raise BadRow(f"is not CSV: {error}") from None


class _CountedLines:
    """Lines of a file as text, for csv, which takes as many as a record has; `bytes` and `count` of those taken."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.bytes, self.count = handle, 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.handle)
        self.bytes += len(line)
        self.count += 1
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRow(f"is not UTF-8: {error.reason}; save the file as UTF-8") from None


def _read_header(reader: Iterator[list[str]]) -> list[str]:
    header = next(reader, [])
    if header:
        header[0] = header[0].removeprefix("\ufeff")
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise ValueError(f"line 1: the header has {', '.join(map(repr, twice))} twice; give each column a name")
    return header


class Loaded:
    """A table of `datasets`, memory-mapped."""

    unit: Literal["line", "row"] = "row"
    faulty, fault = 0, ""

    def __init__(self, rows: Any, column_names: list[str]) -> None:
        self.rows = rows
        self.column_names = column_names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int, /) -> Mapping[str, Any]:
        row: Mapping[str, Any] = self.rows[place]
        return row

    def number(self, place: int) -> int:
        return place + 1


def open_parquet(path: Path, choose: Choose = list) -> Table:
    """The rows of one Parquet file, of the columns that `choose` takes of those there are. Raises DatasetError."""
    names = list(read_schema(path))
    if not count_rows(path):  # `datasets` cannot load it
        return Loaded([], names)
    chosen, file = choose(names), escape(str(path))
    return Loaded(load_dataset("parquet", data_files=file, split="train", columns=chosen or names), names)


def load_dataset(*arguments: Any, **options: Any) -> Any:
    """`datasets.load_dataset`, silent."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is told once, by us
    return datasets.load_dataset(*arguments, **options)
