"""Merging: rows in their order, values as they were, and two files that become one again."""

import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.dataset.merging import join_batches, merge_files
from factory.dataset.shards import read_batches
from factory.errors import DatasetError


def write_shards(folder: Path, sizes: list[int], **columns: Any) -> list[Path]:
    paths, start = [], 0
    for number, size in enumerate(sizes):
        at = range(start, start + size)
        start += size
        values = {
            "id": [f"r{i}" for i in at],
            "answer": [f"answer {i}" for i in at],
            "findings": pa.array([["one"] * (i % 3) for i in at], pa.list_(pa.string())),
            "topk_ids": pa.array([list(range(i % 5)) for i in at], pa.list_(pa.int32())),
            "entropy": pa.array([[i / 7] * (i % 4) for i in at], pa.list_(pa.float16())),
        } | {name: [make(i) for i in at] for name, make in columns.items()}
        kinds = {name: getattr(value, "type", None) for name, value in values.items()}
        schema = pa.schema([(name, kind or pa.string()) for name, kind in kinds.items()])
        table = pa.table(values, schema=schema).replace_schema_metadata({"factory": '{"top_k":4}'})
        pq.write_table(table, paths_of(folder, number), row_group_size=3)
        paths.append(paths_of(folder, number))
    return paths


def paths_of(folder: Path, number: int) -> Path:
    return folder / f"train-{number:05d}.parquet"


def test_texts_and_arrays_are_parted_and_joined_again(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [7, 0, 5])
    whole = pa.concat_tables([pq.read_table(path) for path in paths])
    texts, arrays = tmp_path / "out/texts.parquet", tmp_path / "out/arrays.parquet"
    assert merge_files(paths, texts, "default", "texts") == 12
    assert merge_files(paths, arrays, "signals", "arrays") == 12
    assert pq.read_table(texts).column_names == ["id", "answer", "findings"]
    assert pq.read_table(arrays).column_names == ["id", "topk_ids", "entropy"]
    assert pq.read_schema(arrays).metadata[b"factory"] == b'{"top_k":4}'
    # cut at other places than the texts are
    cut = pq.read_table(arrays).to_batches(max_chunksize=5)
    joined = pa.Table.from_batches(list(join_batches("here", read_batches(texts), cut)))
    assert joined.equals(whole)
    assert joined.schema.metadata == whole.schema.metadata


def test_who_wrote_a_row_stands_beside_it(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [4], teacher=lambda i: "big" if i % 2 else "small")
    merge_files(paths, tmp_path / "o.parquet", "default", "texts", {"big": "org/Big@1", "small": "org/Small"})
    assert pq.read_table(tmp_path / "o.parquet")["generator"].to_pylist() == ["org/Small", "org/Big@1"] * 2


def test_shards_of_other_columns_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [4, 4])
    pq.write_table(pq.read_table(paths[1]).drop_columns(["answer"]), paths[1])
    with pytest.raises(DatasetError, match=r"other columns|not readable"):
        merge_files(paths, tmp_path / "out/o.parquet", "default", "texts")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("arrays", [[["r0", "r2"]], [["r0"]], []])
def test_ids_that_differ_are_refused(arrays: list[list[str]]) -> None:
    texts = [pa.RecordBatch.from_pydict({"id": ["r0", "r1"]})]
    beside = [pa.RecordBatch.from_pydict({"id": ids, "a": ids}) for ids in arrays]
    with pytest.raises(DatasetError, match="other ids than the rows"):
        list(join_batches("here", texts, beside))


def test_a_row_put_in_leaves_most_of_a_file_of_texts_as_it_was(tmp_path: Path) -> None:
    """What the hub's store finds again: without cuts by content every page after the change would be another."""

    def windows(name: str, inserted: int) -> set[int]:
        """Pieces of the file, cut wherever two bytes say so: as such a store sees it."""
        rng = random.Random(1)
        answers = [" ".join(str(rng.random()) for _ in range(40)) for _ in range(12000)]
        ids = [f"r{i}" for i in range(12000)]
        answers.insert(inserted, "and one more row")
        ids.insert(inserted, "new")
        path, out = tmp_path / f"{name}.parquet", tmp_path / f"{name}-out.parquet"
        pq.write_table(pa.table({"id": ids, "answer": answers}), path)
        merge_files([path], out, "default", "texts")
        data = out.read_bytes()
        cuts = [found.start() for found in re.finditer(rb"\x07[\x00-\x0f]", data)]
        return {crc32(data[start:end]) for start, end in pairwise(cuts)}

    first, second = windows("first", 12000), windows("second", 3000)
    assert len(first & second) / len(first) > 0.6
