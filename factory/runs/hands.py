"""Hands: what a driver knows of its workers, what each takes of its node, and which jobs are not for them."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.errors import JobError
from factory.job.job import Job
from factory.runs.nodes import Needs
from factory.runs.prepare import Prepared
from factory.runs.worker import PULSE


@dataclass(slots=True)
class Hand:
    """One worker, as the driver sees it: what it was asked last (`stage`) and the call that will answer (`call`)."""

    name: str
    node: str
    actor: Any
    stage: str = "greet"
    call: Any = None
    host: str = ""
    # what it was told last: whose turn it is, and of how many rounds
    turn: str = ""
    rounds: int = 0
    process: int = 0
    # shards that it has made and that are committed since it was last told of any
    committed: list[int] = field(default_factory=list)
    shards: int = 0
    rows: int = 0
    tokens: int = 0
    # what it had come to when it last came further, and when that was
    pulse: tuple[Any, ...] = ()
    heard: float = 0.0
    started: float = field(default_factory=time.monotonic)


def require_job(prepared: Prepared) -> None:
    """Raise JobError where a job is not for a cluster."""
    job = prepared.job
    if prepared.part is not None:
        raise JobError("--ray and --part: a cluster makes the whole plan; leave one of them out")
    teachers = {"teacher": job.teacher} | {f"teachers.{name}": teacher for name, teacher in job.teachers.items()}
    if job.judge is not None and job.judge.teacher is not None:
        teachers["judge.teacher"] = job.judge.teacher
    for key, teacher in teachers.items():
        if teacher.remote:
            raise JobError(
                f"--ray: {key}.backend {teacher.backend!r}: an endpoint is asked by one machine, which keeps its pace "
                f"and its account; leave --ray out"
            )
        if teacher.start_timeout_s >= job.cluster.hang_s:
            raise JobError(
                f"cluster.hang_s: {job.cluster.hang_s:g} s, in which an engine may be starting ({key}.start_timeout_s: "
                f"{teacher.start_timeout_s:g} s); set it higher"
            )


def come_further(hand: Hand, folder: Path, now: float) -> float:
    """How long a worker whose call is under way has come no further: no shard, and no answer of its teacher.

    Only our own clock counts: of the file that it writes meanwhile nothing but its size is looked at. One that has not
    been greeted may be waiting for its place on the node, which is no fault of its own.
    """
    size = 0
    with suppress(OSError):
        size = (folder / PULSE).stat().st_size
    pulse = (hand.stage, hand.call is None, hand.shards, size)
    if hand.call is None or hand.stage == "greet" or pulse != hand.pulse:
        hand.pulse, hand.heard = pulse, now
    return now - hand.heard


def find_needs(job: Job, totals: dict[str, float]) -> Needs:
    """What a worker takes: what the job says, else what its engines want where there are GPUs."""
    config, wanted = job.cluster, 0
    # of several, who take turns in one worker, the largest
    for teacher in (job.of_teacher(name).teacher for name in job.teacher_names):
        engines = teacher.replicas if isinstance(teacher.replicas, int) else 1
        if totals["GPU"] and teacher.backend == "vllm":
            wanted = max(wanted, engines * teacher.tensor_parallel_size)
    return Needs(config.cpus_per_worker, wanted if config.gpus_per_worker is None else config.gpus_per_worker)
