"""Teachers: who answers the prompts. Each backend is one module; only this package imports vllm, torch or transformers.

A teacher is fed continuously: `submit` while it has `room`, `collect` what has finished in whatever order, `release`
what is safely stored. Nothing here waits for a batch to end.

Each prompt that was submitted comes out of `collect` exactly once, with a completion or as a failure. Between `collect`
and `release` the teacher still holds what it gave out: its arrays may be views of that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from factory.errors import TeacherError, pip_install
from factory.job.job import Job
from factory.records import Generation, Prompt, TeacherInfo
from factory.signals import SignalSpec
from factory.tasks.tasks import Task, held_in


class Teacher(Protocol):
    """What `run` needs of a backend."""

    @property
    def signals(self) -> SignalSpec:
        """What is kept, with layers resolved against the model."""
        ...

    @property
    def info(self) -> TeacherInfo:
        """What gives this teacher's numbers their meaning."""
        ...

    def room(self) -> int:
        """How many more prompts may be submitted now."""
        ...

    def submit(self, prompt: Prompt) -> None:
        """Take a prompt; its generation will come out of `collect` once, even if the engine dies meanwhile."""
        ...

    def collect(self) -> list[Generation]:
        """Wait for the next finished generations; empty only when nothing is in flight."""
        ...

    def release(self, prompt_id: str, attempts: int) -> None:
        """The generations of a prompt, up to this attempt, are committed and need not be kept."""
        ...

    def spent(self) -> dict[str, Any]:
        """Requests, tokens and money so far, over all runs; empty where nobody charges."""
        ...


def require_engine() -> None:
    """Raises TeacherError where vLLM is not installed: the core install plans and reads, and starts no engine."""
    if find_spec("vllm") is None:
        raise TeacherError(
            f'teacher.backend "vllm": vLLM is not installed here; {pip_install("gpu")} for CUDA, '
            'make for CPU (README.md), or say backend = "scripted" to try the job without a model'
        )


def require_way(job: Job) -> None:
    """Raise TeacherError where the job's teacher is behind an endpoint whose address or key is missing or is none."""
    if job.teacher.remote:
        # inside the function: no client of an endpoint is imported where none is asked
        from factory.teachers.remote.opening import find_way

        find_way(job)


def require_startable(job: Job) -> None:
    """Raise TeacherError where the job's teacher cannot begin: no engine, no model folder, no address or no key."""
    if job.teacher.backend == "scripted":
        return
    require_way(job)
    if not job.teacher.remote:
        from factory.teachers.models import locate_model

        require_engine()
        locate_model(job.teacher)


def require_served(job: Job, out: Path) -> None:
    """Raise TeacherError where the job's teacher is behind an endpoint that does not answer now, or lacks its model.

    What that costs, where an endpoint has no list of its models, stands in the account in `out`.
    """
    if job.teacher.remote:
        from factory.teachers.remote.opening import require_served as look

        look(job, out)


def require_one_prompt_of_pictures(job: Job, tasks: Iterable[Task]) -> None:
    """Raise TeacherError for a task whose student is shown another prompt than the teacher, with pictures in one."""
    both = [task.name for task in tasks if task.shows_images and task.has_student]
    if both and job.teacher.backend != "scripted":
        raise TeacherError(
            f"task {both[0]!r}: shows pictures and has a student.j2, whose ids would lack their tokens; leave out one"
        )


@contextmanager
def open_teacher(
    job: Job,
    tasks: Iterable[Task],
    probes: list[Prompt],
    out: Path,
    more_schemas: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    tell: Callable[..., None] = lambda *_, **__: None,
) -> Iterator[Teacher]:
    """Start the job's teacher; it and all its processes are gone when the context ends.

    Prompts name the JSON schema of their answer: a task's, or one of `more_schemas`; those without one answer freely.

    `probes` are a few prompts of each task: where none of a task's fits the model's window, the engine is not started.
    `tell` is given an event's name, a line for people and fields for machines when an engine starts, and what it does.
    Raises TeacherError where the model or the engine cannot serve the job.
    """
    tasks = list(tasks)
    require_one_prompt_of_pictures(job, tasks)
    schemas = {task.name: task.grammar for task in tasks if task.grammar is not None} | dict(more_schemas)
    # inside the function: no backend is imported where the other one answers, nor by `factory --help`
    if job.teacher.backend == "scripted":
        from factory.teachers.scripted import ScriptedTeacher

        yield ScriptedTeacher(job, {task.name: task for task in tasks})
        return
    if job.teacher.remote:
        from factory.teachers.remote.opening import start_remote

        with start_remote(job, schemas, probes, out, tell, held_in(tasks)["images"]) as remote:
            yield remote
        return
    from factory.teachers.vllm import start_teacher

    require_engine()
    with start_teacher(job, schemas, probes, out, tell, held_in(tasks)["images"]) as teacher:
        yield teacher
