"""The vLLM teacher, seen from our process: it starts, feeds and supervises engines' processes and never imports them.

Each replica is one child (`factory.teachers.engine.process`) on devices of its own; all are fed from one queue. When
one dies it is started again, with tenacity's back-off where it dies while starting, and what was in it is asked again,
one at a time, by the same replica: a prompt that kills an engine twice with nothing else in it becomes a failed
generation, and no other prompt and no other replica pays for it.

A prompt is in exactly one place from `submit` until `collect` has handed its generation out:

                                replica: +-----------+
    submit --> waiting ----------------->| in_engine |---> ready ---> collect
       |                                 |  |     ^  |       ^
       |                                 | death  |alone     | twice dead alone: a failed generation
       |                                 |  v     |  |       |
       |                                 | suspects  |-------+
       |                                 +-----------+
       +--> ready, where an earlier run has left its generation on the spool

An engine's process owns nothing that outlives it: what it has finished is on the spool, what it has not is here. A
replica that cannot be kept alive is given up, and the others take its prompts; the last one's end is the run's.
"""

import select
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from factory.errors import TeacherError
from factory.job.job import Job
from factory.records import Generation, Prompt, TeacherInfo
from factory.signals import SignalSpec
from factory.teachers.devices import Place, share_out
from factory.teachers.digest import digest_model
from factory.teachers.engine_process import EngineDied
from factory.teachers.given_up import engine_settings
from factory.teachers.models import (
    has_cpu_engine,
    kv_cache_gb,
    locate_model,
    read_end_ids,
    read_shape,
    require_sight,
    require_window,
    resolve_signals,
)
from factory.teachers.replica import ENGINE_ENVIRONMENT, NEVER, Key, Replica, differing
from factory.teachers.spool import Spool

__all__ = ["ENGINE_ENVIRONMENT", "VllmTeacher", "make_setup", "start_teacher"]
SPEEDS_EVERY_S = 60.0


class VllmTeacher:
    """Feeds its replicas until every prompt has its generation."""

    def __init__(
        self,
        job: Job,
        setup: dict[str, Any],
        places: list[Place],
        out: Path,
        signals: SignalSpec,
        tell: Callable[..., None],
    ) -> None:
        self.job = job
        self.out = out
        self.signals = signals
        self.tell = tell
        self.spool = Spool(out / ".spool")
        self.spooled = self.spool.recover()
        # sent to no engine yet
        self.waiting: deque[Prompt] = deque()
        # answered, or given up, and not collected yet
        self.ready: deque[Generation] = deque()
        # deaths with nothing else in the engine
        self.died_alone: Counter[Key] = Counter()
        self.replicas = [
            Replica(number, setup, place, out / log_name(number), job.teacher, tell)
            for number, place in enumerate(places)
        ]
        self.starting = True
        try:
            while not all(replica.live for replica in self.replicas):
                self._turn(time.monotonic())
        except BaseException:
            # Ctrl-C among them: nobody else knows these processes yet
            self.close()
            raise
        self.starting = False
        self.details = self._agreed() | {"model_sha256": digest_model(setup["teacher"]["model"])}
        self.began = self.told = time.monotonic()

    @property
    def info(self) -> TeacherInfo:
        return TeacherInfo("vllm", self.job.teacher.model, self.details)

    def _agreed(self) -> dict[str, Any]:
        """What all replicas say of themselves. Raises TeacherError where they differ: their rows would not be alike."""
        first, *others = (replica.info or {} for replica in self.replicas)
        for number, other in enumerate(others, 1):
            if names := differing(first, other):
                self.close()
                told = ", ".join(names)
                raise TeacherError(
                    f"teacher.replicas: replica {number} is not as the first one in {told}; are its devices of another "
                    f"kind? name equal ones in CUDA_VISIBLE_DEVICES"
                )
        return first

    def room(self) -> int:
        held = len(self.waiting) + len(self.ready) + sum(replica.held for replica in self.replicas)
        return max(0, self.job.teacher.feed_depth * len(self.replicas) - held)

    def submit(self, prompt: Prompt) -> None:
        # paid for by an earlier run, which ended before its shard was committed
        place = self.spooled.pop((prompt.id, prompt.attempt), None)
        if place is not None:
            self.ready.append(self.spool.read(place))
        else:
            self.waiting.append(prompt)

    def collect(self) -> list[Generation]:
        since = time.monotonic()
        while not self.ready and (self.waiting or any(replica.held for replica in self.replicas)):
            self._turn(since)
        self._tell_speeds()
        generations = list(self.ready)
        self.ready.clear()
        return generations

    def release(self, prompt_id: str, attempts: int) -> None:
        self.spool.release(prompt_id, attempts)

    def spent(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        # all are told before one is waited for
        for replica in self.replicas:
            replica.hang_up()
        for replica in self.replicas:
            replica.stop()

    def _turn(self, since: float) -> None:
        """Wait until something comes or is due, and let each replica do its part.

        Nobody has listened since before `since`: until then no silence counts.
        """
        for replica in self.replicas:
            replica.tend()
        self._feed()
        engines = {replica: replica.engine for replica in self.replicas if replica.engine is not None}
        reads = [engine.events for engine in engines.values()]
        writes = [engine.input for engine in engines.values() if engine.outbox]
        due = min(replica.due(since) for replica in self.replicas)
        timeout = None if due == NEVER else max(0.0, due - time.monotonic())
        readable, writable, _ = select.select(reads, writes, [], timeout)
        for replica, engine in engines.items():
            try:
                if engine.input in writable:
                    engine.flush()
                if engine.events in readable:
                    self._take(replica)
                else:
                    replica.require_sign_of_life(since)
            except EngineDied as death:
                self._bury(replica, death)
            except TeacherError as error:
                self._give_up(replica, str(error))

    def _feed(self) -> None:
        """Hand prompts to the engines, the emptiest first; one that has suspects gets a single one of those."""
        for replica in self.replicas:
            if replica.live and replica.suspects:
                self._send(replica, replica.ask_suspect)
        while self.waiting:
            free = [replica for replica in self.replicas if replica.live and not replica.suspects]
            emptiest = min(free, key=lambda replica: len(replica.in_engine), default=None)
            if emptiest is None or len(emptiest.in_engine) >= self.job.teacher.feed_depth:
                return
            prompt = self.waiting.popleft()
            self._send(emptiest, lambda replica=emptiest, prompt=prompt: replica.ask(prompt))  # type: ignore[misc]

    def _send(self, replica: Replica, send: Callable[[], None]) -> None:
        try:
            send()
        except EngineDied as death:
            self._bury(replica, death)

    def _take(self, replica: Replica) -> None:
        for place in replica.hear():
            generation = self.spool.read(place)
            replica.answered((generation.prompt_id, generation.attempt))
            self.ready.append(generation)

    def _bury(self, replica: Replica, death: EngineDied) -> None:
        """Have a replica start again after a death, and sort out whose turn it is."""
        most, started = self.job.teacher.max_restarts, replica.live
        lost = replica.bury()
        if not started:
            if replica.failed_starts > most:
                told = f"teacher: the engine's process dies while it starts ({death}); see {replica.log}"
                self._give_up(replica, told)
            return
        replica.deaths_in_a_row += 1
        alone = next(iter(lost)) if len(lost) == 1 else None
        if alone is not None:
            self.died_alone[alone] += 1
        # once may be chance (memory, a neighbour on the GPU); the second time it was alone with the prompt again
        if alone is not None and self.died_alone[alone] == 2:
            detail = f"the engine died twice with nothing but this prompt in it ({death})"
            self.ready.append(Generation.failed(*alone, "engine_crash", detail))
            replica.deaths_in_a_row = 0
            replica.killers_in_a_row += 1
        else:
            # in front: who was just in there is asked first
            replica.suspects = lost | replica.suspects
        if max(replica.deaths_in_a_row, replica.killers_in_a_row) > most:
            self._give_up(
                replica,
                f"teacher: the engine keeps dying without an answer between ({death}); see {replica.log}; "
                f"the same command resumes, teacher.max_restarts allows more",
            )
            return
        which = f"engine {replica.number}" if len(self.replicas) > 1 else "engine"
        self.tell("engine_restarted", f"{which}: died ({death}), starts again", why=str(death), replica=replica.number)

    def _give_up(self, replica: Replica, why: str) -> None:
        """Do without a replica from now on; the one with the fewest suspects takes its prompts as such.

        Raises TeacherError where there is none, and for one that has never been ready.
        """
        if self.starting or self.replicas == [replica]:
            raise TeacherError(why)
        replica.stop()
        self.replicas.remove(replica)
        heir = min(self.replicas, key=lambda other: len(other.suspects))
        heir.suspects = replica.in_engine | replica.suspects | heir.suspects
        left = len(self.replicas)
        text = f"engine {replica.number}: given up, {left} left: {why}"
        self.tell("replica_given_up", text, why=why, replica=replica.number, left=left)

    def _tell_speeds(self) -> None:
        """Every minute, of several replicas: rows that each has answered a second since all were ready."""
        now = time.monotonic()
        if len(self.replicas) < 2 or now - self.told < SPEEDS_EVERY_S:
            return
        self.told = now
        self.tell_speeds()

    def tell_speeds(self) -> None:
        """Rows that each of several replicas has answered a second since all were ready, and how often it died."""
        if self.starting or len(self.replicas) < 2:
            return
        seconds = time.monotonic() - self.began
        rates = {replica.number: round(replica.rows / max(seconds, 1e-9), 3) for replica in self.replicas}
        text = ", ".join(f"engine {number}: {rate:.3g} rows/s" for number, rate in rates.items())
        figures = [
            {"replica": r.number, "rows": r.rows, "rows_per_second": rates[r.number], "deaths": r.deaths}
            for r in self.replicas
        ]
        self.tell("replicas", text, replicas=figures)


def log_name(number: int) -> str:
    """The log of one replica; that of the first is the one that a teacher without others has."""
    return f"engine-{number}.log" if number else "engine.log"


@contextmanager
def start_teacher(
    job: Job,
    schemas: dict[str, dict[str, Any]],
    probes: list[Prompt],
    out: Path,
    tell: Callable[..., None],
    images: bool = False,
) -> Iterator[VllmTeacher]:
    """Check the job against the model's config, start the engines, and stop them when the context ends.

    `images`: some of its tasks show pictures.
    """
    places = share_out(job.teacher, has_cpu_engine())
    setup, signals = make_setup(job, schemas, probes, out, images)
    teacher = VllmTeacher(job, setup, places, out, signals, tell)
    try:
        yield teacher
    finally:
        teacher.close()
        teacher.tell_speeds()


def make_setup(
    job: Job, schemas: dict[str, dict[str, Any]], probes: list[Prompt], out: Path, images: bool = False
) -> tuple[dict[str, Any], SignalSpec]:
    """What the engine's process is told first. Raises TeacherError where the job does not fit the model's config."""
    model = locate_model(job.teacher)
    shape = read_shape(model, job.teacher)
    if images:
        require_sight(model, job.teacher)
    signals = resolve_signals(job, shape, any(probe.tools for probe in probes), images)
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
        "layers": shape.layers,
        "routes": shape.experts > 0,
        # what the processor has made of a picture goes in with every part of its row, and must not be left to a cache
        "settings": ({"mm_processor_cache_gb": 0} if images else {}) | engine_settings(job, has_cpu_engine()),
        "probes": [{"task": p.task, "messages": p.messages, "tools": p.tools} for p in probes],
        "scores": job.transcripts is not None,
        "end_ids": read_end_ids(model, job.teacher),
        "spool": str(out / ".spool"),
    }
    return setup, signals
