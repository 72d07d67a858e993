"""A worker: one teacher on one node, which makes the shards that are leased to it by the code of one machine.

It writes shards into a folder of its own inside the dataset's directory, and tells of each in one line; who leases puts
files in place and writes the ledger. Its spool lies there too, so that whoever takes its shards over finds what was
answered.

    .workers/a1b2/.spool engine.log     the teacher's
    .workers/a1b2/leases                a line for each shard that was leased to it
    .workers/a1b2/pulse                 grows with what it answers, however long a shard takes
    .workers/a1b2/data/train-00007...   shards that are whole and not committed yet
"""

import importlib.metadata
import os
import platform
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from factory import __version__
from factory.dataset.entries import ShardEntry
from factory.dataset.ledger import SPOOL, WORKERS
from factory.errors import JobError
from factory.job.job import Job
from factory.records import Prompt
from factory.runs.desk import JUDGE_FOLDER, Desk, open_desk
from factory.runs.finish import Finished, finish_alone
from factory.runs.goals import Goals
from factory.runs.prepare import Prepared, prepare
from factory.runs.progress import Progress, Reporter
from factory.runs.provenance import describe_job
from factory.runs.room import Room
from factory.runs.rounds import replay
from factory.runs.run import produce, store_shard
from factory.runs.watch import Watch
from factory.teachers.spool import join_spools

LEASES: Final = "leases"
PULSE: Final = "pulse"
BEAT_S: Final = 1.0  # the least time between two beats: a file on a shared disk is no place for every row
COMPARED: Final = ("vllm", "numpy", "pyarrow")  # packages that decide numbers or bytes


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told to begin with."""

    job: Job
    workspace: Path
    # where the job's own paths start from
    folder: Path
    out: Path
    name: str
    # a file of the dataset's directory and what stands in it: to find out whether the node shares it
    token: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Told:
    """One shard that a worker has made."""

    entry: ShardEntry
    tokens: int


class Beating(Progress):
    """Progress of a worker, which nobody reads but for its pulse."""

    def __init__(self, path: Path, committed: int) -> None:
        super().__init__(0, committed, 0, _quiet())
        self.path, self.beat_at = path, 0.0

    def answer(self, tokens: int) -> None:
        super().answer(tokens)
        now = time.monotonic()
        if now >= self.beat_at:
            self.beat_at = now + BEAT_S
            with self.path.open("ab") as handle:
                handle.write(b".")


class Leased:
    """Shards as they are leased: it may run dry, and goes on when more come."""

    def __init__(self) -> None:
        self.queue: deque[int] = deque()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if not self.queue:
            raise StopIteration
        return self.queue.popleft()


@dataclass
class Worker:
    """See the module's words. Methods are called one after another; each returns plain values."""

    setup: Setup
    stack: ExitStack = field(default_factory=ExitStack)
    prepared: Prepared | None = None
    desk: Desk | None = None
    leased: Leased = field(default_factory=Leased)
    # prompts of shards that are made and not committed: the spool keeps their answers
    kept: dict[int, list[Prompt]] = field(default_factory=dict)
    work: Iterator[Finished] | None = None
    watch: Watch = field(default_factory=Watch)
    progress: Progress | None = None

    @property
    def home(self) -> Path:
        return self.setup.out / WORKERS / self.setup.name

    def greet(self) -> dict[str, Any]:
        """Look around, before a teacher is started: what this node is, and what it sees of the job."""
        name, text = self.setup.token
        shared = False
        with suppress(OSError):
            shared = (self.setup.out / name).read_text(encoding="utf-8") == text
        told = {"node": platform.node(), "process": os.getpid(), "shared": shared, "versions": list_versions()}
        if not shared:
            return told
        try:
            os.chdir(self.setup.folder)
        except OSError as error:
            return told | {"fault": f"{self.setup.folder}: {error.strerror}; the job's paths start there"}
        self.prepared = prepare(self.setup.job, self.setup.workspace)
        return told | {"digest": describe_job(self.prepared)["digest"]}

    def open(
        self, turn: str, begun: Goals | None, records: list[dict[str, Any]], trusted: Iterable[str], committed: int
    ) -> dict[str, Any]:
        """Start the teacher of a turn; what it says of itself, for the manifest. So many rows are committed."""
        self.close()
        self.home.mkdir(parents=True, exist_ok=True)
        # on a processor several workers may share a node's cores, which vLLM would give to each of them
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        self.watch = Watch(trusted)
        self.desk = open_desk(self._planned(begun, records), self.home, self.stack, Reporter(), turn)
        self.progress = Beating(self.home / PULSE, committed)
        return self.desk.described

    def plan(self, begun: Goals | None, records: list[dict[str, Any]]) -> None:
        """More is planned than was."""
        assert self.desk is not None
        self.desk.prepared = self._planned(begun, records, self.desk.prepared)
        # nothing is under way between two rounds; what is begun now is of the longer plan
        self.work = None

    def _planned(
        self, begun: Goals | None, records: list[dict[str, Any]], prepared: Prepared | None = None
    ) -> Prepared:
        prepared = prepared or self.prepared
        assert prepared is not None  # it was greeted
        return replay(prepared, begun, records)

    def step(self, shards: list[int], committed: list[int]) -> list[Told]:
        """Take these shards too, forget those that are committed, and work until one more is whole.

        Nothing comes back where no row is left to ask.
        """
        assert self.desk is not None
        for shard in committed:
            for prompt in self.kept.pop(shard, ()):
                self.desk.release(prompt)
        if shards:
            with (self.home / LEASES).open("a", encoding="utf-8") as handle:
                handle.write("".join(f"{shard}\n" for shard in shards))
            self.leased.queue.extend(shards)
        for finished in self._go_on():
            return [self._store(self.desk, finished)]
        return []

    def _go_on(self) -> Iterator[Finished]:
        """Shards as they become whole. Raises DatasetError where the disk is too short for what is leased."""
        assert self.desk is not None
        assert self.progress is not None
        plan, room = self.desk.prepared.plan, Room(self.setup.out, self.desk.prepared.plan.shard_size(0))
        while True:
            if self.work is None:
                shards = produce(self.desk, room, self.leased, self.watch, self.progress)
                self.work = finish_alone(self.desk.prepared, shards)
            finished = next(self.work, None)
            if finished is not None:
                yield finished
                continue
            # all that was asked is decided: what is left was not asked, because the disk is short
            self.work = None
            room.require_none_left(sum(map(plan.shard_size, self.leased.queue)))
            return

    def _store(self, desk: Desk, finished: Finished) -> Told:
        assert self.progress is not None
        entry = store_shard(desk, self.home, Room(self.setup.out, len(finished.outcomes)), finished)
        self.kept[finished.shard] = [outcome.prompt for outcome in finished.outcomes]
        tokens, self.progress.tokens = self.progress.tokens, 0
        return Told(entry, tokens)

    def close(self) -> None:
        """Stop the teacher in order; what it has answered stays on its spool."""
        self.stack.close()
        self.stack, self.desk, self.work = ExitStack(), None, None


def _quiet() -> Reporter:
    """A reporter that nobody reads: who leases tells of the whole."""
    return Reporter(open(os.devnull, "w", encoding="utf-8"))


def list_versions() -> dict[str, str]:
    """What should be the same on every node."""
    found = {"python": platform.python_version(), "factory": __version__}
    for name in COMPARED:
        with suppress(importlib.metadata.PackageNotFoundError):
            # vLLM's build for processors has another name
            found[name] = importlib.metadata.version(name)
    return found


def adopt(out: Path, orphans: Iterable[str], heir: str) -> list[int]:
    """Give a new worker what is left of some that are gone: their spools, under another name, and the shards they had.

    Their folders are gone then: a worker that is only cut off from us can add nothing to what the new one reads.
    """
    new = out / WORKERS / heir
    new.mkdir(parents=True, exist_ok=True)
    shards: list[int] = []
    for old in (out / WORKERS / orphan for orphan in orphans):
        with suppress(OSError, ValueError):
            shards += [int(line) for line in (old / LEASES).read_text(encoding="utf-8").splitlines()]
        for name in (SPOOL, f"{JUDGE_FOLDER}/{SPOOL}"):
            with suppress(OSError):
                join_spools(old / name, new / name)
        shutil.rmtree(old, ignore_errors=True)
    return shards


def list_orphans(out: Path) -> list[str]:
    """Workers of earlier runs, by the folders they left behind."""
    folder = out / WORKERS
    return sorted(path.parent.name for path in folder.glob(f"*/{LEASES}"))


def require_same_versions(told: dict[str, str], others: dict[str, str], where: str) -> None:
    """Raise JobError where a node has another version than ours, or than another node."""
    for name, version in told.items():
        if others.get(name, version) != version:
            raise JobError(
                f"node {where}: {name} is {version}, elsewhere {others[name]}; install the same on all nodes"
            )
