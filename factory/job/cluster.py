"""`[cluster]`: how a job is spread over the nodes of a Ray cluster. It decides no row."""

from typing import Annotated, Literal

from pydantic import Field

from factory.job.config import Config, number_or_auto


class ClusterConfig(Config):
    """`[cluster]`: workers, each with one teacher, and what each takes of its node."""

    # "auto": as many as the nodes have room for, and more when nodes join
    workers: Annotated[int | Literal["auto"], number_or_auto(10_000)] = "auto"
    # None: as many as the teacher's engines take, and none where the cluster has none
    gpus_per_worker: Annotated[int, Field(ge=0, le=64)] | None = None
    cpus_per_worker: Annotated[int, Field(ge=1, le=1024)] = 1
    # deaths of workers in a row, without a shard between them
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 10
    # how long a worker may take without an answer of its teacher, or to start it, before it is given up
    hang_s: Annotated[float, Field(gt=0)] = 3600.0
    # how long a run waits while no node has room for a worker
    wait_s: Annotated[float, Field(gt=0)] = 600.0
