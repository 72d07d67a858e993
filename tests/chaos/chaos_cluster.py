"""Kills on a Ray cluster: workers, nodes and the driver, at random moments; then the bytes of one machine.

    python tests/chaos/chaos_cluster.py [--kills N] [--seed N]

Two nodes beside the head, one worker on each. A dataset is made again and again until so many kills are done; each must
come out as one machine makes it. Prints a row of the table in docs/operations.md.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos_parts import Figures
from cluster_support import STORE, Driver, start_cluster
from conftest import write_task
from dataset_support import read_tree, write_job

from factory.checks.verify import verify
from factory.job.job import load_job
from factory.runs.run import run

SLOW = "scripted = { wrong = 0.2, tokens_per_second = 200 }"
SECTIONS = "[filters]\nduplicates = true\n[cluster]\nmax_restarts = 1000"
VARIABLE = ("runs.jsonl", ".lock")


def kill_something(what: str, cluster: Any, nodes: list[Any], driver: Driver) -> None:
    """Kill a worker, a node (another takes its place) or the driver."""
    if what == "driver":
        driver.kill()
    elif what == "node":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE, wait=False))
    else:
        with suppress(ProcessLookupError):
            os.kill(driver.events("worker")[-1]["process"], signal.SIGKILL)


def make_one(
    folder: Path, cluster: Any, nodes: list[Any], rng: random.Random, figures: Figures, kills: int
) -> list[str]:
    """One dataset, with kills until it is complete or all are done; what was killed."""
    out = folder / "out"
    driver = Driver(folder, cluster.address)
    done: list[str] = []
    while driver.process.poll() is None and figures.tried + len(done) < kills:
        time.sleep(rng.uniform(0.1, 3.0))
        what = rng.choice(("worker", "worker", "node", "driver"))
        # a busy machine is slow to start workers: were the driver killed instead, nothing else ever would be
        while what != "driver" and not driver.events("worker") and driver.process.poll() is None:
            time.sleep(0.1)
        if driver.process.poll() is None:
            kill_something(what, cluster, nodes, driver)
            done.append(what)
        if what == "driver":
            driver = Driver(folder, cluster.address)
    driver.end()
    same = read_tree(out, but=VARIABLE) == read_tree(folder / "alone", but=VARIABLE)
    faults = list(verify(out)) or ([] if same else ["other bytes than one machine's"])
    for what in done:
        figures.count("; ".join(faults) and f"{what}: {faults[0]}")
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    out.rmdir()
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rng, figures = random.Random(options.seed), Figures("SIGKILL of a worker, a node or the driver on a Ray cluster")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_task(folder)
        write_job(folder, count=150, shard_rows=4, teacher=SLOW, sections=SECTIONS)
        run(load_job(folder / "job.toml"), folder, folder / "alone")
        with start_cluster(2) as (cluster, nodes):
            made: list[list[str]] = []
            while figures.tried < options.kills:
                made.append(make_one(folder, cluster, nodes, rng, figures, options.kills))
    kinds = ", ".join(f"{count} {what}s" for what, count in Counter(chain.from_iterable(made)).most_common())
    equal = ", each equal to one machine's byte for byte" if figures.sound else ""
    figures.remark = f"{kinds}; datasets made meanwhile: {len(made)}{equal}"
    print(figures.row())
    print("\n".join(figures.faults))
    return 0 if figures.sound else 1


if __name__ == "__main__":
    sys.exit(main())
