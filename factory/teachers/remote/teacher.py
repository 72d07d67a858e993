"""The remote teacher, seen from our process: it hands prompts to a loop in a thread of its own and takes generations.

    submit --> asked of the loop --> on the spool --> collect
       |
       +--> ready, where an earlier run has left its generation on the spool

Spool, shards and resume are those of the local engine: what was answered stands on the spool before anybody is told,
so it is never asked twice. The thread ends with the teacher; an error in it is raised by `collect`.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from factory.errors import DatasetError, FactoryError
from factory.job.job import Job
from factory.records import Generation, Prompt, TeacherInfo
from factory.signals import SignalSpec
from factory.teachers.remote.batches import BatchAsking
from factory.teachers.remote.loop import Asking
from factory.teachers.remote.purse import Purse
from factory.teachers.spool import Place, Spool, SpoolWriter

LOOK_S = 0.5  # how often `collect` looks whether the thread lives
SHORT_S = 0.01
STOP_S = 10.0  # what the thread has to end its requests in


class RemoteTeacher:
    """Asks an endpoint until every prompt has its generation."""

    def __init__(
        self,
        job: Job,
        signals: SignalSpec,
        info: TeacherInfo,
        out: Path,
        purse: Purse,
        make: Callable[..., Asking | BatchAsking],
    ) -> None:
        self.job, self.signals, self.info, self.purse = job, signals, info, purse
        self.spool = Spool(out / ".spool")
        self.spooled = self.spool.recover()
        self.writer = SpoolWriter(out / ".spool")
        self.ready: deque[Generation] = deque()
        self.in_flight = 0
        # what has ended the thread
        self.failure: BaseException | None = None
        self.finished: queue.SimpleQueue[Place | BaseException] = queue.SimpleQueue()
        self.asking = make(self._spool_and_tell)
        self.thread = threading.Thread(target=self._run, name="remote-teacher", daemon=True)
        self.thread.start()

    def room(self) -> int:
        return max(0, self.job.teacher.feed_depth - self.in_flight - len(self.ready))

    def submit(self, prompt: Prompt) -> None:
        # paid for by an earlier run, which ended before its shard was committed
        place = self.spooled.pop((prompt.id, prompt.attempt), None)
        if place is not None:
            self.ready.append(self.spool.read(place))
            return
        self.in_flight += 1
        self.asking.put(prompt)

    def collect(self) -> list[Generation]:
        if not self.ready and self.in_flight:
            self._require_well()
            self.asking.flush()
            self._take(self._wait())
        # what else has come goes with it; of a file all, or what follows on its first rows would be a file by itself
        while (self.asking.handing_out and self.thread.is_alive()) or not self.finished.empty():
            with suppress(queue.Empty):
                self._take(self.finished.get(timeout=SHORT_S))
        # what was answered before the end is given out first: it may make a shard whole
        if not self.ready:
            self._require_well()
        generations = list(self.ready)
        self.ready.clear()
        return generations

    def release(self, prompt_id: str, attempts: int) -> None:
        self.spool.release(prompt_id, attempts)

    def spent(self) -> dict[str, Any]:
        return self.purse.account.figures(self.purse.price)

    def close(self) -> None:
        self.asking.stop()
        self.thread.join(STOP_S)
        if not self.thread.is_alive():
            self.purse.close()

    def _wait(self) -> Place | BaseException:
        while True:
            try:
                return self.finished.get(timeout=LOOK_S)
            except queue.Empty:
                if not self.thread.is_alive() and self.finished.empty():
                    raise RuntimeError("the thread that asks the endpoint has ended without a word") from None

    def _require_well(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if isinstance(self.failure, FactoryError):
            raise self.failure
        if self.failure is not None:
            raise RuntimeError("the thread that asks the endpoint has failed") from self.failure

    def _take(self, told: Place | BaseException) -> None:
        if isinstance(told, BaseException):
            self.failure = told
            return
        self.in_flight -= 1
        self.ready.append(self.spool.read(told))

    def _spool_and_tell(self, generation: Generation) -> None:
        """In the loop's thread: the generation is on the spool, and only then anybody knows of it."""
        try:
            place = self.writer.append(generation)
        except OSError as error:
            told = f"{self.spool.folder}: cannot be written: {error.strerror or error}"
            raise DatasetError(f"{told}; committed shards are whole, the same command resumes") from None
        self.finished.put(place)

    def _run(self) -> None:
        try:
            asyncio.run(self.asking.run())
        except BaseException as error:
            self.finished.put(error)
