"""Picking: rows of many files in any order, the same as by a slow copy."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.dataset.picking import take_rows, take_table
from factory.errors import DatasetError


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), count=st.integers(0, 200))
def test_rows_are_taken_by_number_in_any_order(seed: int, count: int, tmp_path: Path) -> None:
    rng, tables = random.Random(seed), {}
    for name, rows in (("a", 300), ("b", 50)):
        tables[name] = pa.table(
            {"x": [f"{name}{i}" for i in range(rows)], "list": [[i] * (i % 7) for i in range(rows)]}
        )
        pq.write_table(tables[name], tmp_path / name, row_group_size=rng.randrange(1, 60))
    names = [rng.choice("ab") for _ in range(count + 1)]
    places = np.array([rng.randrange(tables[name].num_rows) for name in names])
    expected = [tables[name].slice(place, 1).to_pylist()[0] for name, place in zip(names, places.tolist(), strict=True)]
    assert take_table([tmp_path / name for name in names], places).to_pylist() == expected


def test_a_row_that_is_not_there_and_a_file_that_is_none_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a")
    for row in (2, -1):
        with pytest.raises(DatasetError, match=r"a: has 2 rows, and row .* is asked for; run `factory verify`"):
            take_rows(tmp_path / "a", np.array([row]))
    (tmp_path / "b").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="b: not readable as Parquet"):
        take_rows(tmp_path / "b", np.array([0]))
