"""A job on a Ray cluster of several nodes: the bytes of one machine, whatever dies meanwhile."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from cluster_support import STORE, Driver, start_cluster
from conftest import write_task
from dataset_support import FACTORY, read_ledger_lines, read_tree, write_job

from factory.checks.verify import verify
from factory.dataset.history import read_history
from factory.job.job import load_job
from factory.runs.run import run

pytest.importorskip("ray")
VARIABLE = ("runs.jsonl", ".lock")  # the files that may differ between two equal datasets
# so slow that there is something to kill
SLOW = "scripted = { wrong = 0.2, tokens_per_second = 120 }"


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param("[samples]\nn = 2", marks=pytest.mark.sweep),
        pytest.param("[samples]\nn = 2\n[filters]\nduplicates = true", marks=pytest.mark.long),
    ],
    ids=["each by itself", "duplicates"],
)
def test_a_worker_a_node_and_the_driver_die_and_the_bytes_are_those_of_one_machine(
    tmp_path: Path, sections: str
) -> None:
    write_task(tmp_path)
    write_job(tmp_path, count=36, shard_rows=4, teacher=SLOW, sections=sections)
    with start_cluster(2) as (cluster, nodes):
        first = Driver(tmp_path, cluster.address)
        # not for the second, which may come when the first has made all
        worker = first.wait_for("worker", 1)
        first.wait_for("shard", 1)
        os.kill(worker["process"], signal.SIGKILL)
        assert first.wait_for("worker_lost", 1)["worker"] == worker["worker"]
        cluster.remove_node(nodes[0], allow_graceful=False)
        first.wait_for("worker_lost", 2)
        first.wait_for("shard", 3)
        first.kill()
        assert len(read_ledger_lines(first.out)) < 1 + 18
        second = Driver(tmp_path, cluster.address)
        second.end()
        assert second.events("started")[0]["committed"] >= 3 * 4
    run(load_job(tmp_path / "job.toml"), tmp_path, tmp_path / "alone")
    assert read_tree(tmp_path / "out", but=VARIABLE) == read_tree(tmp_path / "alone", but=VARIABLE)
    assert list(verify(tmp_path / "out")) == []
    history = read_history(tmp_path / "out")
    assert [line["event"] for line in history if line["event"] != "worker"] == ["started", "started", "ended"]
    # a node may be taken for alive a moment longer, and get a worker more
    assert sum(line.get("outcome") == "lost" for line in history) >= 2


@pytest.mark.long
def test_sigterm_parks_in_order_and_the_same_command_goes_on_with_other_workers(tmp_path: Path) -> None:
    write_task(tmp_path)
    write_job(tmp_path, count=90, shard_rows=4, teacher=SLOW, sections="[samples]\nn = 2")
    with start_cluster(2) as (cluster, _):
        first = Driver(tmp_path, cluster.address)
        first.wait_for("shard", 3)
        first.process.send_signal(signal.SIGTERM)
        first.end(143)
        assert "stopped by SIGTERM" in first.log.read_text(encoding="utf-8")
        second = Driver(tmp_path, cluster.address)
        beside = Driver(tmp_path, cluster.address)
        second.wait_for("worker", 1)
        beside.end(2)
        assert f"a run is at work here already (process {second.process.pid})" in beside.log.read_text(encoding="utf-8")
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        second.wait_for("worker", 3)
        second.end()
    run(load_job(tmp_path / "job.toml"), tmp_path, tmp_path / "alone")
    assert read_tree(tmp_path / "out", but=VARIABLE) == read_tree(tmp_path / "alone", but=VARIABLE)
    outcomes = [line["outcome"] for line in read_history(tmp_path / "out") if line["event"] in ("worker", "ended")]
    assert outcomes == ["stopped", "parked", "parked", "parked", "complete"] or sorted(outcomes) == sorted(
        ["parked", "parked", "stopped", "parked", "parked", "parked", "complete"]
    )


@pytest.mark.long
def test_a_worker_that_stands_still_is_ended_and_others_go_on(tmp_path: Path) -> None:
    write_task(tmp_path)
    patient = SLOW + "\nstart_timeout_s = 1.0\n[cluster]\nhang_s = 25.0"
    write_job(tmp_path, count=60, shard_rows=4, teacher=patient)
    with start_cluster(2) as (cluster, _):
        driver = Driver(tmp_path, cluster.address)
        worker = driver.wait_for("worker", 2)
        driver.wait_for("shard", 2)
        os.kill(worker["process"], signal.SIGSTOP)
        lost = driver.wait_for("worker_lost", 1)
        assert lost["worker"] == worker["worker"]
        assert lost["why"] == "it has come no further for 25 s (cluster.hang_s)"
        driver.end()
    run(load_job(tmp_path / "job.toml"), tmp_path, tmp_path / "alone")
    assert read_tree(tmp_path / "out", but=VARIABLE) == read_tree(tmp_path / "alone", but=VARIABLE)
    assert not Path(f"/proc/{worker['process']}").exists()


@pytest.mark.long
def test_a_cluster_of_this_machine_alone_tells_prometheus_and_status(tmp_path: Path) -> None:
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_task(tmp_path)
    write_job(tmp_path, count=60, shard_rows=4, teacher=SLOW)
    driver = Driver(tmp_path, "local", "--metrics", port)
    driver.wait_for("shard", 2)
    told = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    assert "factory_rows_planned 60.0" in told
    assert float(told.split("\nfactory_rows_committed_total ")[1].split()[0]) >= 8
    status = subprocess.run([*FACTORY, "status", "out"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "  cluster at " in status.stdout
    status = subprocess.run([*FACTORY, "status", "out", "--json"], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(status.stdout)["cluster"]["workers"] >= 1
    driver.end()
    assert not (tmp_path / "out/.workers").exists()
