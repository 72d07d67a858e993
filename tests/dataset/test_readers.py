"""Other readers: DuckDB and Polars read every column of every config, and find pages by their index."""

import random
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.curriculum.regroup import PROMPT_COLUMNS, STAGE_COPIED, STAGE_LABELS
from factory.dataset.columns import Column
from factory.dataset.layouts import Layout, layouts
from factory.signals import SignalSpec

EVERYTHING = SignalSpec(
    top_k=3, layers=(1, 2), experts=True, attention=(1,), pairs=True, keep="sampled", positions="all", min_entropy=0.5
)
COMPACT = SignalSpec(top_k=3, compact=True, positions="answer")


def made_of(name: str, types: dict[str, Any]) -> Layout:
    return Layout(name, name, tuple(Column(key, kind, pa.array) for key, kind in types.items()), SignalSpec())


LAYOUTS = {f"everything/{name}": layout for name, layout in layouts(EVERYTHING).items()}
LAYOUTS |= {f"compact/{name}": layout for name, layout in layouts(COMPACT).items()}
LAYOUTS |= {"stage": made_of("stage", STAGE_COPIED | STAGE_LABELS), "hand-off": made_of("hand-off", PROMPT_COLUMNS)}


def draw(kind: pa.DataType, rng: random.Random) -> Any:
    if pa.types.is_list(kind):
        return [draw(kind.value_type, rng) for _ in range(rng.randrange(40))]
    if pa.types.is_struct(kind):
        return {field.name: draw(field.type, rng) for field in kind}
    if pa.types.is_large_binary(kind):
        return rng.randbytes(30) + b"\x00\x01"
    if pa.types.is_string(kind):
        return rng.choice(["", "a", "naïve", "x" * 30])
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    return rng.randrange(-512, 512) / 64 if pa.types.is_floating(kind) else rng.randrange(30_000)


def write(layout: Layout, path: Path) -> pa.Table:
    rng = random.Random(layout.config)
    rows = [{field.name: draw(field.type, rng) for field in layout.schema} for _ in range(50)]
    table = pa.Table.from_pylist(rows, schema=layout.schema)
    with pq.ParquetWriter(path, layout.schema, **layout.writer_options()) as writer:
        for start in (0, 25):
            writer.write_table(table.slice(start, 25))
    return table


@pytest.mark.parametrize("name", LAYOUTS)
def test_duckdb_and_polars_read_every_column(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = write(LAYOUTS[name], path)
    with duckdb.connect() as connection:
        relation = connection.read_parquet(str(path))
        for column in table.column_names:
            expected = table.column(column).to_pylist()
            quoted = '"' + column + '"'
            assert [row[0] for row in relation.select(quoted).fetchall()] == expected, column
            assert polars.read_parquet(path, columns=[column])[column].to_list() == expected, column


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_column_tells_where_its_pages_are(name: str, tmp_path: Path) -> None:
    write(LAYOUTS[name], tmp_path / "a.parquet")
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    chunks = [metadata.row_group(g).column(c) for g in range(2) for c in range(metadata.num_columns)]
    assert all(chunk.has_offset_index for chunk in chunks)
    assert all(chunk.has_column_index for chunk in chunks if chunk.statistics is not None)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_no_signal_has_only_encodings_that_every_reader_knows(name: str, tmp_path: Path) -> None:
    """Byte planes are for lists of signals, and for none of float16."""
    write(LAYOUTS[name], tmp_path / "a.parquet")
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    for chunk in (metadata.row_group(0).column(c) for c in range(metadata.num_columns)):
        column = chunk.path_in_schema.partition(".")[0]
        if "BYTE_STREAM_SPLIT" in chunk.encodings:
            assert column.removeprefix("prompt_").startswith(
                ("topk_", "sampled_", "tail_", "entropy", "expert_", "positions")
            )
            assert chunk.physical_type in ("INT32", "FLOAT")
        else:
            assert set(chunk.encodings) <= {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY"}
