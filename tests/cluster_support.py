"""A Ray cluster of several nodes on this machine, for as long as a test needs it, and runs on it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataset_support import FACTORY

STORE = 80 * 1024 * 1024  # bytes of a node's object store: nothing but lines goes through it


@contextmanager
def start_cluster(nodes: int, cpus: int = 1) -> Iterator[tuple[Any, list[Any]]]:
    """A head and so many nodes beside it on this machine, each with so many CPUs by its own account."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    # the head has no CPU: it stays, whatever is killed
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster, [cluster.add_node(num_cpus=cpus, object_store_memory=STORE, wait=False) for _ in range(nodes)]
    finally:
        cluster.shutdown()


class Driver:
    """A `factory run --ray` process, and the events that it tells."""

    def __init__(self, folder: Path, address: str, *more: object) -> None:
        command = [*FACTORY, "run", "job.toml", "--ray", address, "--log-json", *map(str, more)]
        self.out, self.log = folder / "out", folder / f"events-{time.monotonic_ns()}.jsonl"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
        return [event for event in found if event["event"] == name]

    def wait_for(self, name: str, count: int) -> dict[str, Any]:
        """Wait until an event was told of so often; the last of them."""
        while len(found := self.events(name)) < count:
            assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
            time.sleep(0.02)
        return found[-1]

    def end(self, code: int = 0) -> None:
        assert self.process.wait(timeout=300) == code, self.log.read_text(encoding="utf-8")

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(timeout=60)
