"""A plan against the real engine: what a pilot, the reference solutions and committed shards predict is written."""

import shutil
from pathlib import Path

import pytest

from factory.forecast.forecast import forecast_from_pilot, make_forecast
from factory.job.job import Job
from factory.runs.prepare import prepare
from factory.runs.run import run

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
JOB = {
    "out": "out",
    "seed": 7,
    "shard_rows": 12,
    "teacher": {"model": "demo", "max_num_seqs": 24},
    "signals": {"top_k": 20, "hidden_layers": [2, -1], "verify_rows": 0},
    "validation": {"gate": "schema"},
    "tasks": [{"name": "photo_edits", "count": 24}],
}


def keep_first_shard(out: Path) -> None:
    """What a pilot of the first shard's rows leaves behind."""
    lines = (out / "ledger.jsonl").read_text().splitlines(keepends=True)
    (out / "ledger.jsonl").write_text("".join(lines[:2]))
    for path in out.rglob("train-00001.parquet"):
        path.unlink()


def test_every_basis_predicts_what_the_run_writes_within_15_percent(tmp_path: Path) -> None:
    prepared, out = prepare(Job.model_validate(JOB), ROOT), tmp_path / "out"
    reference = make_forecast(prepared, out)
    written = run(prepared.job, ROOT, out).bytes
    committed = make_forecast(prepared, out)
    keep_first_shard(out)
    pilot, half = forecast_from_pilot(prepared, prepared, out), make_forecast(prepared, out)
    assert [set(f.bases.values()) for f in (reference, pilot, half)] == [
        {"reference solutions"},
        {"pilot"},
        {"committed shards"},
    ]
    deviations = [round(f.bytes / written - 1, 3) for f in (reference, pilot, half, committed)]
    print("reference, pilot, half committed, all committed:", deviations)
    assert max(map(abs, deviations)) < 0.15, deviations
    shutil.rmtree(out)
