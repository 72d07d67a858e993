"""`[cluster]`: how a job is spread over the nodes of a Ray cluster. It decides no row."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, TypeAdapter, ValidationError

from factory.job.config import Config

NUMBER: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=10_000)])


def _read_workers(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return NUMBER.validate_python(value)
    except ValidationError as error:
        # told as one error of the key; of a union pydantic tells one for each branch
        raise ValueError(f'{error.errors()[0]["msg"]}, or "auto"') from None


class ClusterConfig(Config):
    """`[cluster]`: workers, each with one teacher, and what each takes of its node."""

    # "auto": as many as the nodes have room for, and more when nodes join
    workers: Annotated[int | Literal["auto"], PlainValidator(_read_workers)] = "auto"
    # None: as many as the teacher's engines take, and none where the cluster has none
    gpus_per_worker: Annotated[int, Field(ge=0, le=64)] | None = None
    cpus_per_worker: Annotated[int, Field(ge=1, le=1024)] = 1
    # deaths of workers in a row, without a shard between them
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 10
    # how long a run waits while no node has room for a worker
    wait_s: Annotated[float, Field(gt=0)] = 600.0
