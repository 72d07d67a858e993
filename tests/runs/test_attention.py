"""Attention maps of some rows, from the teacher through Parquet to arrays."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import write_task

from factory.checks.verify import verify
from factory.errors import TeacherError
from factory.forecast.forecast import make_forecast
from factory.hashing import is_drawn
from factory.job.job import Job
from factory.load import load_rows
from factory.runs.prepare import prepare
from factory.runs.run import run
from factory.teachers.models import resolve_signals, shape_of

MOST = 345  # tokens of a byte each: some of the rows are longer


def attention_job(**attention: Any) -> Job:
    job: dict[str, Any] = {"out": "out", "shard_rows": 6, "teacher": {"backend": "scripted"}}
    asked = {"layers": [1, -1], "share": 0.5, "max_tokens": MOST} | attention
    job |= {"signals": {"top_k": 3, "attention": asked}, "tasks": [{"name": "adding", "count": 24}]}
    return Job.model_validate(job)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_task(tmp_path)
    run(attention_job(), tmp_path, tmp_path / "out")
    return tmp_path / "out"


def test_the_rows_drawn_have_their_maps_and_no_other(out: Path) -> None:
    assert list(verify(out)) == []
    rows = list(load_rows(out, streaming=True, join_attention=True))
    having = [row for row in rows if row.attention is not None]
    assert 3 < len(having) < len(rows) - 3
    for row in rows:
        inputs = len(row.prompt_token_ids) + len(row.completion_token_ids) - 1
        assert (row.attention is not None) == (is_drawn(row["id"], 0.5) and inputs <= MOST)
    for row in having:
        inputs = len(row.prompt_token_ids) + len(row.completion_token_ids) - 1
        assert row.attention_layers == (1, 4)
        assert row.attention.shape == (2, 2, inputs, inputs)
        np.testing.assert_allclose(row.attention.astype(np.float32).sum(-1), 1, atol=0.02)
        assert not np.triu(row.attention, 1).any()


def test_rows_by_number_and_plain_datasets_read_the_same(out: Path, tmp_path: Path) -> None:
    rows = load_rows(out, join_attention=True, cache_dir=tmp_path / "cache")
    table = datasets.load_dataset(str(out), "attention", split="train", cache_dir=str(tmp_path / "cache"))
    for number in range(len(rows)):
        kept = table[number]
        maps = rows[number].attention
        assert (kept["maps"] is None) == (maps is None) == (kept["shape"] == [])
        if maps is not None:
            count = int(np.prod(kept["shape"]))
            assert np.array_equal(np.frombuffer(kept["maps"], "<f2", count=count).reshape(kept["shape"]), maps)


def test_a_share_is_a_share() -> None:
    drawn = [is_drawn(f"row {number}", 0.2) for number in range(5000)]
    assert 0.18 < np.mean(drawn) < 0.22
    assert all(is_drawn(f"row {number}", 1.0) for number in range(50))


def test_card_and_plan_tell_of_them(out: Path, tmp_path: Path) -> None:
    card = (out / "README.md").read_text()
    assert "config_name: attention" in card
    assert "attention maps of decoder blocks [1, 4] (1 is the first) for 0.5 of the rows" in card
    job = attention_job()
    forecast = make_forecast(prepare(job, tmp_path), tmp_path / "elsewhere")
    assert forecast.groups["attention"] > 0
    assert forecast.bytes == pytest.approx(sum(path.stat().st_size for path in out.rglob("*.parquet")), rel=0.15)


@pytest.mark.parametrize(
    ("attention", "told"),
    [
        ({"layers": [0]}, "the model has 4 blocks"),
        ({"layers": [5]}, "the model has 4 blocks"),
        ({"layers": [-5]}, "the model has 4 blocks"),
        ({"layers": [4, -1]}, "named twice"),
    ],
)
def test_blocks_that_are_not_there_are_refused(attention: dict[str, Any], told: str) -> None:
    config = {"vocab_size": 9, "num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 8}
    with pytest.raises(TeacherError, match=told):
        resolve_signals(attention_job(**attention), shape_of("m", config))
