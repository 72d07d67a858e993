"""Nodes: what Ray does for a run, and the only module that imports it.

It finds the nodes and how many workers each has room for, starts workers there, carries calls and tells of deaths.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from factory.errors import FactoryError, JobError, one_line, pip_install
from factory.runs.worker import Setup, Worker

LOCAL = "local"  # in place of an address: a cluster of this machine alone, for as long as the run lasts


class WorkerLost(Exception):
    """A worker or its node is gone, or something failed in it that is no fault of the job's."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one worker takes of its node."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPUs and " if self.gpus else ""
        return f"{gpus}{self.cpus} CPUs"


class Nodes:
    """A connection to a cluster."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray

    def rooms(self, needs: Needs) -> dict[str, int]:
        """How many such workers each node that is alive holds when nothing else is there, by its id."""
        found: dict[str, int] = {}
        for node in self.ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                rooms = [has.get("CPU", 0) // needs.cpus] + ([has.get("GPU", 0) // needs.gpus] if needs.gpus else [])
                found[node["NodeID"]] = int(min(rooms))
        return found

    def totals(self) -> dict[str, float]:
        """All CPUs and GPUs of the cluster."""
        has = self.ray.cluster_resources()
        return {name: has.get(name, 0) for name in ("CPU", "GPU")}

    def start(self, setup: Setup, node: str, needs: Needs) -> Any:
        """A worker on a node. Calls to it raise WorkerLost where it could not be placed."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # one that dies is not restarted by Ray: what it had leased is ours to give away
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_restarts": 0, "max_task_retries": 0}
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        return self.ray.remote(Worker).options(scheduling_strategy=here, **options).remote(setup)

    def call(self, actor: Any, method: str, *given: Any) -> Any:
        """Begin a call; `get` has its end."""
        return getattr(actor, method).remote(*given)

    def submit(self, work: Callable[..., Any], *given: Any) -> Any:
        """Begin a piece of work on any node; `get` has its end."""
        return self.ray.remote(work).options(num_cpus=0, max_retries=5).remote(*given)

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """Those that have ended; waits until one has, but not for longer."""
        ready, _ = self.ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return list(ready or self.ray.wait(list(calls), num_returns=1, timeout=seconds)[0])

    def get(self, call: Any) -> Any:
        """What a call that has ended came to. Raises the FactoryError that it met, WorkerLost for all else."""
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FactoryError):
                raise error.cause from None
            raise WorkerLost(one_line(error.cause or error)) from None
        except self.ray.exceptions.RayError as error:
            raise WorkerLost(f"{type(error).__name__}: {one_line(error, 200)}") from None

    def kill(self, actor: Any) -> None:
        """End a worker at once, if it is there."""
        with suppress(self.ray.exceptions.RayError, ValueError):
            self.ray.kill(actor)


@contextmanager
def connect(address: str) -> Iterator[Nodes]:
    """A connection to the cluster at an address, or to one of this machine alone. Raises JobError."""
    if address.startswith("ray://"):
        raise JobError(
            f"--ray {address}: a Ray client's address; the run needs the dataset's directory, so start it on a "
            f"node of the cluster, with --ray auto"
        )
    terminate = signal.getsignal(signal.SIGTERM)
    # told in lines of our own; set before the first import, which reads it
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise JobError(f"--ray: Ray is not installed here; {pip_install('ray')}, or make parts with --part") from None
    more: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **more)
    except (ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        told = one_line(error, 200)
        raise JobError(f"--ray {address}: no cluster answers there ({told}); `ray start --head` starts one") from None
    finally:
        # Ray's own would end us without a word
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield Nodes(ray)
    finally:
        ray.shutdown()
