"""Two workers on two nodes of a Ray cluster, each with an engine of its own: the rows of one engine."""

from pathlib import Path

import pytest
from cluster_support import start_cluster
from conftest import write_task
from integration_support import Dataset, engine_job
from test_replicas_engine import TWO, rows_by_id

from factory.checks.verify import verify
from factory.dataset.history import read_history
from factory.job.cluster import ClusterConfig
from factory.runs.cluster import run_on_cluster
from factory.runs.prepare import prepare
from factory.runs.run import run

pytest.importorskip("ray")
pytestmark = [pytest.mark.engine, pytest.mark.long]


def test_two_workers_with_engines_of_their_own_make_the_rows_of_one_engine(tmp_path: Path) -> None:
    """In float32, where neighbours in a batch change no token: texts, ids and distributions are the same."""
    write_task(tmp_path)
    signals = {"top_k": 5, "hidden_layers": [2, -1]}
    job = engine_job(teacher=TWO | {"replicas": 1}, signals=signals, tasks=[{"name": "adding", "count": 20}])
    alone = Dataset(tmp_path / "alone", run(job, tmp_path, tmp_path / "alone"))
    prepared = prepare(job.model_copy(update={"shard_rows": 4, "cluster": ClusterConfig(workers=2)}), tmp_path)
    with start_cluster(2) as (cluster, _):
        made = Dataset(tmp_path / "out", run_on_cluster(prepared, tmp_path / "out", cluster.address))
    assert rows_by_id(made) == rows_by_id(alone)
    assert list(verify(made.out)) == []
    worked = [line for line in read_history(made.out) if line["event"] == "worker"]
    assert sorted(line["shards"] > 0 for line in worked) == [True, True]
