"""Merging: several shards of a config become one file, or two: texts and scalars in one, arrays in the other.

    data/train-00000   id task prompt ... completion_token_ids topk_ids     -> data     id task prompt ...  generator
    data/train-00001   id task prompt ... completion_token_ids topk_ids     -> signals  id completion_token_ids topk_ids

Rows keep their order. A value is copied as it is, so what is read from the two is what was in the one. Memory holds one
row group of a shard and the group that is written, whatever the files' sizes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from factory.dataset.layouts import writer_options
from factory.dataset.shards import ROW_GROUP_BYTES, read_batches, told_as_damage
from factory.errors import DatasetError

Part = Literal["whole", "texts", "arrays"]
SIGNALS: Final = "signals"  # the config of the arrays
GENERATOR: Final = "generator"
TEXT_GROUP_BYTES: Final = 64 * 1024 * 1024


def merge_files(
    paths: Sequence[Path], target: Path, config: str, part: Part, generators: Mapping[str, str] | None = None
) -> int:
    """Write the rows of files of one config to one file; how many. Raises DatasetError.

    `generators` adds a column `generator`: who wrote a row, by its `teacher` ("" where there is only one).
    """
    with told_as_damage(paths[0]):
        schema = pq.read_schema(paths[0])
    names = [field.name for field in schema if part == "whole" or _belongs(field, part)]
    schema = pa.schema([schema.field(name) for name in names], metadata=schema.metadata)
    written = schema if generators is None else schema.append(pa.field(GENERATOR, pa.string()))
    options = writer_options(config, written)
    if part == "texts":
        # pages end where the content says so: after a change the store of the hub finds most of them again
        options |= {"use_content_defined_chunking": True}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, rows = target.with_name(f".tmp-{target.name}"), 0
    most = TEXT_GROUP_BYTES if part == "texts" else ROW_GROUP_BYTES
    try:
        with pq.ParquetWriter(temporary, written, **options) as writer:
            for table in _grouped(paths, schema, most):
                writer.write_table(table if generators is None else _with_generator(table, generators))
                rows += table.num_rows
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def join_batches(source: str, texts: Iterable[Any], arrays: Iterable[Any]) -> Iterator[Any]:
    """Batches of texts with the arrays of the same rows beside them; the two may be cut at other places.

    Raises DatasetError where their ids are not the same in the same order.
    """
    waiting = iter(arrays)
    beside: Any = None
    for batch in texts:
        while batch.num_rows:
            if beside is None or not beside.num_rows:
                beside = next(waiting, None)
            size = min(batch.num_rows, beside.num_rows if beside is not None else 0)
            if not size or not batch.column("id")[:size].equals(beside.column("id")[:size]):
                raise DatasetError(f"{source}: config {SIGNALS!r} has other ids than the rows; get both anew")
            yield _side_by_side(batch.slice(0, size), beside.slice(0, size))
            batch, beside = batch.slice(size), beside.slice(size)


def _side_by_side(texts: Any, arrays: Any) -> Any:
    names = [name for name in arrays.schema.names if name != "id"]
    columns = [*texts.columns, *(arrays.column(name) for name in names)]
    fields = [*texts.schema, *(arrays.schema.field(name) for name in names)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=texts.schema.metadata))


def _belongs(field: Any, part: Part) -> bool:
    return field.name == "id" or _is_array(field) == (part == "arrays")


def _is_array(field: Any) -> bool:
    kind = field.type
    return bool(
        pa.types.is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))
    )


def _grouped(paths: Sequence[Path], schema: Any, most: int) -> Iterator[Any]:
    """Tables of about `most` bytes each."""
    held: list[Any] = []
    size = 0
    for path in paths:
        for batch in read_batches(path, schema.names):
            if batch.schema.names != schema.names:
                raise DatasetError(f"{path}: has other columns than {paths[0].name}; run `factory verify`")
            held.append(batch)
            size += batch.nbytes
            if size >= most:
                yield pa.Table.from_batches(held, schema=schema).combine_chunks()
                held, size = [], 0
    if held:
        yield pa.Table.from_batches(held, schema=schema).combine_chunks()


def _with_generator(table: Any, generators: Mapping[str, str]) -> Any:
    several = "teacher" in table.schema.names
    names = table.column("teacher").to_pylist() if several else [""] * table.num_rows
    return table.append_column(GENERATOR, pa.array([generators.get(name or "", name) for name in names], pa.string()))
