"""Tables: what is written comes back, by Parquet and by `datasets`, and a file is whole or not there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from factory.dataset.shards import find_file_damage
from factory.dataset.tables import Field, open_table, saved_dataset_files
from factory.hashing import content_hash

FIELDS = [
    Field("id", "text"),
    Field("ids", "int32[]"),
    Field("topk", "float32[][]"),
    Field("turns", [{"role": "text", "content": "text"}]),
    Field("info", {"index": "int64"}),
]


def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    # a row without positions, one that is empty, and text that UTF-8 cannot hold
    return [
        {
            "id": f"row {number} \ud800",
            "ids": rng.integers(0, 9, size),
            "topk": rng.standard_normal((size, 3)) if size else np.zeros((0, 3)),
            "turns": [{"role": "user", "content": "a"}],
            "info": {"index": number},
        }
        for number, size in enumerate((2, 0, 5))
    ]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_rows_come_back_and_equal_rows_are_equal_bytes(form: Any, tmp_path: Path) -> None:
    names = [f"{folder}/data.{form}" for folder in "ab"]
    for name in names:
        with open_table(tmp_path, name, FIELDS, form) as (table, done):
            for row in rows():
                table.write(row)
        assert done[0].rows == 3
        assert find_file_damage(tmp_path, done[0], "written") is None
    assert (tmp_path / names[0]).read_bytes() == (tmp_path / names[1]).read_bytes()
    if form == "parquet":
        found = pq.read_table(tmp_path / names[0]).to_pylist()
    else:
        whole = [replace(done[0], path="data.arrow")]
        for name, text in saved_dataset_files(tmp_path / "a", whole, None).items():
            (tmp_path / "a" / name).write_text(text)
        # named by its content, or caches made of it would serve other rows
        state = json.loads((tmp_path / "a/state.json").read_text())
        assert state["_fingerprint"] == content_hash([done[0].digest], 16)
        found = list(load_from_disk(tmp_path / "a"))
    for got, row in zip(found, rows(), strict=True):
        assert got["id"] == row["id"].replace("\ud800", "?")
        assert (got["ids"], got["turns"], got["info"]) == (row["ids"].tolist(), row["turns"], row["info"])
        assert np.allclose(np.array(got["topk"], np.float32).reshape(-1, 3), row["topk"].astype(np.float32))


def test_what_fails_on_its_way_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with open_table(tmp_path, "a.parquet", FIELDS, "parquet") as (table, _):
            table.write(rows()[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
