"""A Ray cluster of several nodes on this machine, for as long as a test needs it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
