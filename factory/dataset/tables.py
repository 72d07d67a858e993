"""Tables: rows of plain values and NumPy arrays as Parquet, or as the Arrow files that `datasets` saves to disk.

What is written is described without Arrow, so that whoever decides on columns need not know it: a field is a name and a
kind. A matrix column of 2 rows with S = 2 and 1 positions and K = 3 numbers each is stored as

    values   [a b c  d e f  g h i]        inner offsets  [0 3 6 9]        outer offsets  [0 2 3]

without a Python object per number. A file is whole or not there: temporary file, fsync, rename.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.dataset.columns import IMAGES, storage_of
from factory.dataset.layouts import picture_features
from factory.dataset.shards import ROW_GROUP_BYTES, ShardFile, place_file, told_as_damage
from factory.hashing import content_hash
from factory.signals import Array

Form = Literal["parquet", "arrow"]
SCALARS: Final = {
    "text": pa.string(),
    "json": pa.json_(),  # given as text; `datasets` reads it as objects
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "pictures": IMAGES,  # a row's list of them; in a column called `images`, which `datasets` is told of
}
# a name of SCALARS, one with [] (a list: arrays) or [][] (arrays [S, K]), {name: kind} or [{name: kind}]
Kind = str | dict[str, Any] | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a table."""

    name: str
    kind: Kind


class TableWriter:
    """Takes rows and writes them in groups of about ROW_GROUP_BYTES."""

    def __init__(self, writer: Any, schema: pa.Schema, fields: Sequence[Field]) -> None:
        self.writer, self.schema, self.fields = writer, schema, fields
        self.held: list[Mapping[str, Any]] = []
        self.held_bytes = self.rows = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """One row: a value for each field."""
        self.held.append(row)
        self.held_bytes += sum(_weigh(row[field.name]) for field in self.fields)
        self.rows += 1
        if self.held_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.held:
            columns = [_column([row[f.name] for row in self.held], f.kind) for f in self.fields]
            self.writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))
        self.held, self.held_bytes = [], 0


@contextmanager
def open_table(folder: Path, name: str, fields: Sequence[Field], form: Form) -> Iterator[tuple[TableWriter, list[Any]]]:
    """A writer for `folder / name`; the list holds the ShardFile once the file is in place, after the block."""
    schema = pa.schema([pa.field(field.name, _type(field.kind)) for field in fields])
    if told := picture_features(schema):
        schema = schema.with_metadata(told)
    done: list[Any] = []
    with place_file(folder, name) as file, _writer(file.sink, schema, form) as writer:
        table = TableWriter(writer, schema, fields)
        yield table, done
        table.flush()
    done.append(ShardFile(name, table.rows, file.size, file.digest))


def _writer(sink: Any, schema: pa.Schema, form: Form) -> Any:
    if form == "arrow":
        return pa.ipc.new_stream(sink, schema)
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    return pq.ParquetWriter(
        sink, schema, compression="zstd", compression_level=1, use_dictionary=texts, write_page_index=True
    )


def _type(kind: Kind) -> pa.DataType:
    if isinstance(kind, dict):
        return pa.struct([(name, _type(part)) for name, part in kind.items()])
    if isinstance(kind, list):
        return pa.list_(_type(kind[0]))
    if kind.endswith("[]"):
        return pa.list_(_type(kind.removesuffix("[]")))
    return SCALARS[kind]


def _column(values: Sequence[Any], kind: Kind) -> pa.Array:
    """One column of a row group."""
    if not isinstance(kind, str) or not kind.endswith("[]"):
        whole = _type(kind)
        return pa.array([_clean(value) for value in values], storage_of(whole)).cast(whole)
    arrays = [np.asarray(value) for value in values]
    lengths = [len(array) for array in arrays]
    inner = kind.removesuffix("[]")
    if not inner.endswith("[]"):
        return _lists(arrays, lengths, pa.array(_joined(arrays, inner), SCALARS[inner]))
    # every row of a column has the same K, so one array of lengths serves all; rows without positions tell no K
    widths = np.repeat([array.shape[1] if array.ndim == 2 else 0 for array in arrays], lengths)
    scalar = inner.removesuffix("[]")
    flat = _joined([array.reshape(-1) for array in arrays], scalar)
    return _lists(arrays, lengths, _lists(widths, widths, pa.array(flat, SCALARS[scalar])))


def _joined(arrays: Sequence[Array], scalar: str) -> Array:
    dtype = np.dtype(scalar)
    return np.concatenate([np.zeros(0, dtype), *(array.astype(dtype, copy=False) for array in arrays)])


def _lists(arrays: Any, lengths: Any, values: pa.Array) -> pa.Array:
    offsets = np.zeros(len(arrays) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _clean(value: Any) -> Any:
    """Texts that UTF-8 can hold: a lone surrogate becomes a question mark."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {name: _clean(part) for name, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list) else value


def _weigh(value: Any) -> int:
    """About how many bytes a value takes; 200 stand for whatever is small."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list):
        return sum(map(_weigh, value))
    if isinstance(value, dict):
        return sum(map(_weigh, value.values()))
    return len(value) if isinstance(value, str | bytes) else 200


def saved_dataset_files(folder: Path, files: Sequence[ShardFile], formatted: str | None) -> dict[str, str]:
    """The two JSON files that make Arrow files in `folder` a dataset for `datasets.load_from_disk`.

    `formatted` is the format that its rows come in, such as "torch".
    """
    from datasets import Features

    with told_as_damage(folder / files[0].path), pa.ipc.open_stream(folder / files[0].path) as stream:
        features = Features.from_arrow_schema(stream.schema).to_dict()
    state: dict[str, Any] = {
        "_data_files": [{"filename": file.path} for file in files],
        # names the rows by their content, so caches made of them never serve others
        "_fingerprint": content_hash([file.digest for file in files], 16),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": formatted,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    return {
        name: json.dumps(value, indent=2, sort_keys=True) + "\n"
        for name, value in (("state.json", state), ("dataset_info.json", info))
    }


def read_tables(paths: Iterable[Path], columns: Sequence[str]) -> Iterator[dict[str, tuple[Array, Array]]]:
    """List columns of Arrow files that were written here, a batch at a time: values and offsets of each."""
    for path in paths:
        with told_as_damage(path), pa.ipc.open_stream(path) as stream:
            for batch in stream:
                found = {name: batch.column(name) for name in columns}
                yield {name: (c.values.to_numpy(), c.offsets.to_numpy()) for name, c in found.items()}
