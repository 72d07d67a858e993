"""Where a teacher's replicas work: each on devices of its own, or, on a processor, on cores of its own.

A teacher of one replica is told nothing: vLLM takes what it finds, as it does anywhere else.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from factory.errors import TeacherError
from factory.job.teacher import TeacherConfig

DEVICES: Final = "CUDA_VISIBLE_DEVICES"
ASK_S: Final = 30.0  # for the driver's answer; on a machine with many sleeping GPUs it takes some seconds


@dataclass(frozen=True, slots=True)
class Place:
    """Where one replica works: what its environment says of devices, and its cores (none named: all there are)."""

    environment: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()


def share_out(teacher: TeacherConfig, on_cpu: bool) -> list[Place]:
    """A place for each replica of a teacher. Raises TeacherError where the machine has fewer than it asks for."""
    if teacher.replicas == 1:
        return [Place()]
    return _share_cores(teacher) if on_cpu else _share_devices(teacher)


def count_replicas(teacher: TeacherConfig, on_cpu: bool) -> int:
    """How many engines a teacher will have: as many as it says, wherever that is asked; "auto" as many as fit here."""
    if teacher.backend != "vllm":
        return 1
    return len(share_out(teacher, on_cpu)) if teacher.replicas == "auto" else teacher.replicas


def _share_cores(teacher: TeacherConfig) -> list[Place]:
    if teacher.replicas == "auto":
        return [Place()]  # one engine uses all cores, and its weights are there once
    if teacher.tensor_parallel_size > 1:
        raise TeacherError(
            f"teacher.replicas {teacher.replicas}: on a processor a replica has cores of its own, and "
            f"teacher.tensor_parallel_size {teacher.tensor_parallel_size} shares them out too; set one of the two to 1"
        )
    cores = sorted(os.sched_getaffinity(0), key=_topology)
    if teacher.replicas > len(cores):
        raise TeacherError(
            f"teacher.replicas {teacher.replicas}: there are {len(cores)} cores here, and each replica needs one; "
            f"lower it"
        )
    return [Place(cores=tuple(sorted(part))) for part in _parts(cores, teacher.replicas)]


def _topology(core: int) -> tuple[int, int, int]:
    """Orders cores so that two threads of one physical core stand side by side: shared, they would slow each other."""
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        package, physical = (int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):  # not told in some containers
        package = physical = 0
    return package, physical, core


def _parts(items: Sequence[int], count: int) -> list[Sequence[int]]:
    """Items in their order, in so many parts as even as can be."""
    ends = [number * len(items) // count for number in range(count + 1)]
    return [items[first:last] for first, last in pairwise(ends)]


def _share_devices(teacher: TeacherConfig) -> list[Place]:
    # of vLLM's ways to use several devices for one engine those that a job can ask for
    size = teacher.tensor_parallel_size * int(teacher.engine.get("pipeline_parallel_size") or 1)
    devices = visible_devices()
    most = len(devices) // size
    replicas = max(1, most) if teacher.replicas == "auto" else teacher.replicas
    if replicas > max(1, most):
        told = f", {size} each" if size > 1 else ""
        raise TeacherError(
            f"teacher.replicas {replicas}: needs {replicas * size} GPUs{told}, and {len(devices)} are seen here; "
            f'lower it, or say "auto" for as many as fit'
        )
    if replicas == 1:
        return [Place()]
    groups = [devices[number * size : (number + 1) * size] for number in range(replicas)]
    return [Place({DEVICES: ",".join(group)}) for group in groups]


def visible_devices() -> list[str]:
    """The GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no driver."""
    told = os.environ.get(DEVICES)
    if told is not None:
        # numbers, or UUIDs of GPUs or of parts of one; CUDA itself stops at the first that is none
        names = [name.strip() for name in told.split(",")]
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    # asked, and not torch: the process that supervises imports no torch, and would hold a context on each GPU
    command = [program, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise TeacherError(
            f"teacher.replicas: nvidia-smi does not say which GPUs there are ({error}); name them in {DEVICES}"
        ) from None
    return answer.stdout.split()
