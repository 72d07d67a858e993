"""Expert routing from the teacher through Parquet to arrays."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_task

from factory.checks.verify import verify
from factory.errors import DatasetError, TeacherError
from factory.forecast.estimate import estimate
from factory.forecast.forecast import make_forecast
from factory.job.job import Job
from factory.load import load_rows
from factory.runs.prepare import prepare
from factory.runs.run import run
from factory.teachers.models import resolve_signals, shape_of


def experts_job(**signals: Any) -> Job:
    job: dict[str, Any] = {"out": "out", "shard_rows": 6, "teacher": {"backend": "scripted"}}
    job |= {"signals": {"top_k": 0, "experts": True} | signals, "tasks": [{"name": "adding", "count": 14}]}
    return Job.model_validate(job)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_task(tmp_path)
    run(experts_job(), tmp_path, tmp_path / "out")
    return tmp_path / "out"


def test_every_input_token_has_its_experts_in_every_block(out: Path) -> None:
    assert list(verify(out)) == []
    rows = list(load_rows(out, streaming=True, join_experts=True))
    assert len(rows) > 8
    for row in rows:
        inputs = len(row.prompt_token_ids) + len(row.completion_token_ids) - 1
        assert row.expert_layers == (2, 3, 4)
        assert row.expert_ids.shape == row.expert_weights.shape == (inputs, 3, 2)
        assert 0 <= row.expert_ids.min() <= row.expert_ids.max() < 8
        np.testing.assert_allclose(row.expert_weights.sum(2), 1, atol=2e-3)
        assert row.topk_ids is row.hidden_states is None


def test_a_row_by_its_number_and_the_config_itself_are_the_same(out: Path, tmp_path: Path) -> None:
    rows = load_rows(out, "experts", cache_dir=tmp_path / "cache")
    for number, row in enumerate(load_rows(out, streaming=True, join_experts=True)):
        assert np.array_equal(rows[number].expert_ids, row.expert_ids)
    table = datasets.load_dataset(str(out), "experts", split="train", cache_dir=str(tmp_path / "cache"))
    first = table[0]
    assert len(first["expert_ids"]) == len(first["expert_weights"]) == int(np.prod(first["shape"]))


def test_a_row_of_another_length_is_named(out: Path) -> None:
    path = out / "experts" / "train-00000.parquet"
    table = pq.read_table(path)
    values = table.column("expert_ids").to_pylist()
    values[1] = values[1][:-1]
    place = table.column_names.index("expert_ids")
    shorter = pa.array(values, table.field(place).type)
    pq.write_table(table.set_column(place, table.field(place), shorter), path)
    with pytest.raises(DatasetError, match=r"expected .* and E; damaged"):
        list(load_rows(out, streaming=True, join_experts=True))
    assert any("experts/train-00000.parquet" in line for line in verify(out))


def test_card_and_manifest_tell_of_them(out: Path) -> None:
    card = (out / "README.md").read_text()
    assert "config_name: experts" in card
    assert "`experts` holds" in card
    assert json.loads((out / "manifest.json").read_text())["signals"]["experts"] is True


def test_a_plan_weighs_them(tmp_path: Path) -> None:
    write_task(tmp_path)
    job = experts_job()
    forecast = make_forecast(prepare(job, tmp_path), tmp_path / "out")
    assert forecast.groups["experts"] > 0
    assert any(line.split()[0] == "experts" for line in estimate(job, tmp_path, tmp_path / "out"))
    assert forecast.bytes == pytest.approx(run(job, tmp_path, tmp_path / "out").bytes, rel=0.15)


def test_a_model_without_experts_is_refused() -> None:
    config = {"vocab_size": 9, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
    with pytest.raises(TeacherError, match="names no experts; leave it out"):
        resolve_signals(experts_job(), shape_of("m", config))
    mixture = shape_of("m", config | {"num_local_experts": 8, "num_experts_per_tok": 2})
    assert resolve_signals(experts_job(), mixture).experts
    assert (mixture.experts, mixture.experts_per_token) == (8, 2)
