"""The vLLM teacher, seen from our process: it starts, feeds and supervises the engine's process and never imports it.

The engine lives in one child (`factory.teachers.engine.process`). When it dies, it is started again with tenacity's
back-off and every unanswered prompt is asked again, those that were in the engine one at a time: a prompt that kills
the engine twice with nothing else in it becomes a failed generation, and no other prompt pays for it.

A prompt is in exactly one place from `submit` until `collect` has handed its generation out:

    submit --> waiting --> in_engine --> ready --> collect
       |                    |     ^        ^
       |              death |     | alone  |  twice dead alone: a failed generation
       |                    v     |        |
       |                   suspects -------+
       +--> ready, where an earlier run has left its generation on the spool

The engine's process owns nothing that outlives it: what it has finished is on the spool, what it has not is here.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from factory.errors import DatasetError, TeacherError
from factory.job.job import Job
from factory.records import Generation, Prompt, TeacherInfo
from factory.signals import SignalSpec
from factory.teachers.digest import digest_model
from factory.teachers.models import (
    has_cpu_engine,
    kv_cache_gb,
    locate_model,
    read_end_ids,
    read_shape,
    require_window,
    resolve_signals,
)
from factory.teachers.settings import engine_settings, wait_settings
from factory.teachers.spool import Place, Spool

Key = tuple[str, int]  # prompt id, attempt
ENGINE_ENVIRONMENT = {
    # one process that we can supervise: of two, the death of the inner one leaves the outer one waiting for ever
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # capture wraps the first one
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # vLLM has some of its sampler's functions compiled even in an eager engine
    "TORCHDYNAMO_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

OVERRULED = {"VLLM_CPU_KVCACHE_SPACE"}  # whole GiB only, and stronger than teacher.kv_cache_gb


class EngineDied(Exception):
    """The engine's process is gone."""


class EngineProcess:
    """One child: a pipe of prompts in, a pipe of events out, everything it prints in a log file.

    We own both pipes' near ends. Closing the one ends the child, and the end of the other tells that it has ended.
    """

    def __init__(self, setup: dict[str, Any], environment: dict[str, str], log_path: Path) -> None:
        events_in, events_out = os.pipe()
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "factory.teachers.engine.process", str(events_out)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[events_out],
                env=environment,
                # Ctrl-C is for us: we stop the engine in order. The session is also a group, to be killed as one
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        # as long as we held the far end open too, its end would never be seen
        os.close(events_out)
        # without a buffer of Python's: `select` knows nothing of bytes that wait in one
        self.events = os.fdopen(events_in, "rb", buffering=0)
        self.buffer = b""
        self.send(setup)

    def send(self, message: dict[str, Any]) -> None:
        """Raises EngineDied where nobody reads any more."""
        stream: IO[bytes] | None = self.process.stdin
        assert stream is not None
        try:
            stream.write(json.dumps(message).encode() + b"\n")
            stream.flush()
        except OSError as error:
            raise EngineDied(str(error)) from error

    def receive(self, timeout_s: float, told_s: float | None = None) -> list[dict[str, Any]]:
        """Wait for events; all that have come. Raises EngineDied at the end of the pipe or after the timeout.

        `told_s` is the time that the error names, where this one is what is left of it.
        """
        while b"\n" not in self.buffer:
            if not select.select([self.events], [], [], timeout_s)[0]:
                raise EngineDied(f"no sign of life for {timeout_s if told_s is None else told_s:g} s")
            data = self.events.read(1 << 16)
            if not data:
                raise EngineDied(f"exit code {self.process.wait()}")
            self.buffer += data
        # what follows the last line's end is the beginning of one that is still on its way
        lines, _, self.buffer = self.buffer.rpartition(b"\n")
        return [json.loads(line) for line in lines.splitlines()]

    def stop(self) -> None:
        """End the child and everything it started."""
        # the end of its input ends it; closing also flushes, which fails where it does not read any more
        with suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.events.close()


def _die_with_parent() -> None:
    """Ask the kernel to end the child with us, even when we are killed outright (Linux)."""
    # runs in the child between fork and exec. The end of input would end it too, but only once Python runs there
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class VllmTeacher:
    """Feeds one engine process after another until every prompt has its generation."""

    def __init__(
        self, job: Job, setup: dict[str, Any], out: Path, signals: SignalSpec, tell: Callable[..., None]
    ) -> None:
        self.job = job
        self.setup = setup
        self.out = out
        self.signals = signals
        self.tell = tell
        self.spool = Spool(out / ".spool")
        self.spooled = self.spool.recover()
        # sent to the engine that is alive now, and unanswered
        self.in_engine: dict[Key, Prompt] = {}
        # not sent yet
        self.waiting: deque[Prompt] = deque()
        # were in an engine when it died; while there are any, they are asked alone and `waiting` stands still
        self.suspects: dict[Key, Prompt] = {}
        # answered, or given up, and not collected yet
        self.ready: deque[Generation] = deque()
        # deaths with nothing else in the engine; under None those with several prompts or none, which accuse nobody
        self.died_alone: Counter[Key | None] = Counter()
        # and no answer between them, nor a prompt found guilty
        self.deaths_in_a_row = 0
        # prompts found guilty, and no answer between them: an engine that dies on each of them is broken itself
        self.killers_in_a_row = 0
        self.engine, details = self._start()
        self.details = details | {"model_sha256": digest_model(setup["teacher"]["model"])}

    @property
    def info(self) -> TeacherInfo:
        return TeacherInfo("vllm", self.job.teacher.model, self.details)

    def room(self) -> int:
        held = len(self.in_engine) + len(self.waiting) + len(self.suspects) + len(self.ready)
        return max(0, self.job.teacher.feed_depth - held)

    def submit(self, prompt: Prompt) -> None:
        # paid for by an earlier run, which ended before its shard was committed
        place = self.spooled.pop((prompt.id, prompt.attempt), None)
        if place is not None:
            self.ready.append(self.spool.read(place))
        else:
            self.waiting.append(prompt)

    def collect(self) -> list[Generation]:
        while not self.ready and (self.waiting or self.suspects or self.in_engine):
            try:
                self._feed()
                self._take(self.engine.receive(self.job.teacher.hang_timeout_s))
            except EngineDied as death:
                self._bury(death)
        generations = list(self.ready)
        self.ready.clear()
        return generations

    def release(self, prompt_id: str, attempts: int) -> None:
        self.spool.release(prompt_id, attempts)

    def close(self) -> None:
        self.engine.stop()

    def _feed(self) -> None:
        """Hand prompts to the engine: all that wait, or, while there are suspects, a single one of those."""
        if self.suspects:
            if not self.in_engine:
                key = next(iter(self.suspects))
                self._ask(key, self.suspects.pop(key))
            return
        while self.waiting:
            prompt = self.waiting.popleft()
            self._ask((prompt.id, prompt.attempt), prompt)

    def _ask(self, key: Key, prompt: Prompt) -> None:
        self.in_engine[key] = prompt
        # what the engine's process needs of a prompt; the row's scenario and history stay here
        names = ("id", "attempt", "task", "messages", "seed", "keeps")
        told = {name: getattr(prompt, name) for name in names} | {"sampling": asdict(prompt.sampling)}
        transcript = None if prompt.transcript is None else asdict(prompt.transcript)
        self.engine.send(told | {"transcript": transcript})

    def _take(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            # after `ready` only the spool's disk can be unfit
            if event["event"] == "unfit":
                raise DatasetError(f"{event['message']}; committed shards are whole, the same command resumes")
            if event["event"] != "done":
                continue
            generation = self.spool.read(Place(event["segment"], event["offset"]))
            self.in_engine.pop((generation.prompt_id, generation.attempt))
            self.ready.append(generation)
            self.deaths_in_a_row = self.killers_in_a_row = 0

    def _bury(self, death: EngineDied) -> None:
        """Start a new engine after a death, and sort out whose turn it is."""
        # a hanging engine is not dead yet
        self.engine.stop()
        self.deaths_in_a_row += 1
        alone = next(iter(self.in_engine)) if len(self.in_engine) == 1 else None
        self.died_alone[alone] += 1
        # once may be chance (memory, a neighbour on the GPU); the second time it was alone with the prompt again
        if alone is not None and self.died_alone[alone] == 2:
            detail = f"the engine died twice with nothing but this prompt in it ({death})"
            self.ready.append(Generation.failed(*alone, "engine_crash", detail))
            self.deaths_in_a_row = 0
            self.killers_in_a_row += 1
        else:
            # in front: who was just in there is asked first
            self.suspects = self.in_engine | self.suspects
        self.in_engine = {}
        if max(self.deaths_in_a_row, self.killers_in_a_row) > self.job.teacher.max_restarts:
            raise TeacherError(
                f"teacher: the engine keeps dying without an answer between ({death}); see {self.out / 'engine.log'}; "
                f"the same command resumes, teacher.max_restarts allows more"
            )
        self.tell("engine_restarted", f"engine: died ({death}), starts again", why=str(death))
        # its details were those of the first: same job, same model, same versions
        self.engine, _ = self._start()

    def _start(self) -> tuple[EngineProcess, dict[str, Any]]:
        """Start an engine, again with longer and longer pauses where it dies while starting."""
        tries = Retrying(
            stop=stop_after_attempt(self.job.teacher.max_restarts + 1),
            wait=wait_exponential(min=0.5, max=60),
            retry=retry_if_exception_type(EngineDied),
            reraise=True,
        )
        try:
            return tries(self._start_once)
        except EngineDied as death:
            log = self.out / "engine.log"
            raise TeacherError(f"teacher: the engine's process dies while it starts ({death}); see {log}") from None

    def _start_once(self) -> tuple[EngineProcess, dict[str, Any]]:
        environment = dict(ENGINE_ENVIRONMENT)
        # a job that is to be compiled needs the compiler
        if not self.setup["settings"].get("enforce_eager"):
            del environment["TORCHDYNAMO_DISABLE"]
        if Path(self.setup["teacher"]["model"]).is_dir():
            # nothing of a local model is on the hub, and asking it waits for time-outs where there is no network
            environment["HF_HUB_OFFLINE"] = "1"
        self._tell_stage("starting its process", time.monotonic())
        given = {name: value for name, value in os.environ.items() if name not in OVERRULED}
        # looked at again at each start; whoever says in the environment how threads wait is obeyed
        waits = wait_settings(self.setup["shares"])
        engine = EngineProcess(self.setup, waits | given | environment, self.out / "engine.log")
        try:
            event = self._await_ready(engine)
        except BaseException:
            # Ctrl-C among them: nobody else knows this process yet
            engine.stop()
            raise
        if event["event"] == "unfit":
            engine.stop()
            raise TeacherError(event["message"])
        return engine, event["info"]

    def _await_ready(self, engine: EngineProcess) -> dict[str, Any]:
        """The event that ends a start; those before it say what the engine is doing."""
        began, patience = time.monotonic(), self.job.teacher.start_timeout_s
        while True:
            # of the whole start, however many stages it tells of
            for event in engine.receive(max(0.0, patience - (time.monotonic() - began)), patience):
                if event["event"] != "stage":
                    return event
                self._tell_stage(event["stage"], began)

    def _tell_stage(self, stage: str, began: float) -> None:
        seconds = round(time.monotonic() - began, 1)
        text = f"engine of {self.job.teacher.model}: {stage} ({seconds:.0f} s since its start)"
        self.tell("engine", text, model=self.job.teacher.model, stage=stage, seconds=seconds)


@contextmanager
def start_teacher(
    job: Job, schemas: dict[str, dict[str, Any]], probes: list[Prompt], out: Path, tell: Callable[..., None]
) -> Iterator[VllmTeacher]:
    """Check the job against the model's config, start the engine, and stop it when the context ends."""
    setup, signals = make_setup(job, schemas, probes, out)
    teacher = VllmTeacher(job, setup, out, signals, tell)
    try:
        yield teacher
    finally:
        teacher.close()


def make_setup(
    job: Job, schemas: dict[str, dict[str, Any]], probes: list[Prompt], out: Path
) -> tuple[dict[str, Any], SignalSpec]:
    """What the engine's process is told first. Raises TeacherError where the job does not fit the model's config."""
    model = locate_model(job.teacher)
    shape = read_shape(model, job.teacher)
    signals = resolve_signals(job, shape)
    setup = {
        "teacher": job.teacher.model_dump() | {"model": model, "kv_cache_gb": kv_cache_gb(job.teacher)},
        "schemas": schemas,
        "constrain": job.validation.constrain,
        # a judge of its own is a second engine on this machine
        "shares": job.judge is not None and job.judge.teacher is not None,
        "student": job.student and job.student.max_tokens,
        "signals": asdict(signals),
        "capture": job.signals.capture if job.transcripts is None else "prefill",
        "window": require_window(job, shape),
        "vocab": shape.vocab_size,
        "routes": shape.experts > 0,
        "settings": engine_settings(job.teacher.engine, signals.any, has_cpu_engine()),
        "probes": [{"task": probe.task, "messages": probe.messages} for probe in probes],
        "scores": job.transcripts is not None,
        "end_ids": read_end_ids(model, job.teacher.revision),
        "spool": str(out / ".spool"),
    }
    return setup, signals
