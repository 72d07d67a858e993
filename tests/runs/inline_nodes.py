"""Nodes in this process: real workers, whose calls run one at a time in a random order, and any may go wrong."""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from factory.dataset.ledger import Ledger
from factory.dataset.store import DISK, Store
from factory.runs.cluster import Driver
from factory.runs.nodes import Needs, WorkerLost
from factory.runs.prepare import Prepared
from factory.runs.progress import Reporter
from factory.runs.run import run_prepared
from factory.runs.worker import Setup, Worker


class Call:
    """A call that has not run yet, or what came of it."""

    def __init__(self, actor: Any, method: str, work: Callable[[], Any]) -> None:
        self.actor, self.method, self.work = actor, method, work
        self.answer: Any = None

    def run(self) -> None:
        try:
            self.answer = self.work()
        except Exception as error:
            self.answer = error


class InlineNodes:
    """As `factory.runs.nodes.Nodes`. `before` is given each call before it runs, and may raise in its place."""

    def __init__(
        self, rooms: dict[str, int], before: Callable[[Call], None] = lambda call: None, seed: int = 0
    ) -> None:
        self.has = rooms
        self.clock: Callable[[], float] = time.monotonic
        self.before = before
        self.random = random.Random(seed)
        self.started: list[Setup] = []
        self.killed: list[Worker] = []

    def rooms(self, needs: Needs) -> dict[str, int]:
        return dict(self.has)

    def totals(self) -> dict[str, float]:
        return {"CPU": float(sum(self.has.values())), "GPU": 0.0}

    def start(self, setup: Setup, node: str, needs: Needs) -> Worker:
        self.started.append(setup)
        return Worker(setup)

    def call(self, actor: Worker, method: str, *given: Any) -> Call:
        def work() -> Any:
            self.before(made)
            return getattr(actor, method)(*given)

        made = Call(actor, method, work)
        return made

    def submit(self, work: Callable[..., Any], *given: Any) -> Call:
        return Call(None, work.__name__, lambda: work(*given))

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        if not calls or not seconds:
            done = [call for call in calls if call.answer is not None]
            return done
        call = self.random.choice(list(calls))
        call.run()
        return [call]

    def get(self, call: Call) -> Any:
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def kill(self, actor: Worker) -> None:
        self.killed.append(actor)
        actor.close()


def run_inline(
    prepared: Prepared, out: Path, nodes: InlineNodes, stop_at: int | None = None, store: Store = DISK
) -> Any:
    """Make a job's dataset by workers in this process; with `stop_at` as if killed before so many shards."""

    def make(prepared: Prepared, manifest: dict[str, Any], ledger: Ledger, reporter: Reporter) -> None:
        driver = Driver(prepared, manifest, ledger, reporter, nodes, nodes.clock)  # type: ignore[arg-type]
        if stop_at is not None:
            commit = ledger.commit

            def stop(entry: Any) -> None:
                if len(ledger.entries) >= stop_at:
                    raise KeyboardInterrupt
                commit(entry)

            ledger.commit = stop  # type: ignore[method-assign]
        driver.run()

    return run_prepared(prepared, out, make=make, store=store)


def lose(call: Call, why: str = "killed") -> None:
    raise WorkerLost(why)
