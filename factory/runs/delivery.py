"""Delivery: shards that workers have made, on their way into the dataset.

    taken       out of the worker's folder, so that nobody who is cut off from us can change it
    decided     where rows of other shards decide too: in the plan's order, by the texts of its accepted rows
    rewritten   if it loses rows: on some node, whole rows copied
    committed   files into place, then the line in the ledger

Where no row depends on another shard's, a shard is committed as it comes.
"""

import shutil
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.dataset.entries import ShardEntry
from factory.dataset.late import Turned, is_late, read_forms, turn_down, without_late
from factory.dataset.ledger import WORKERS, Ledger
from factory.dataset.manifest import of_teacher, read_manifest, read_signals
from factory.dataset.shards import sync_directory
from factory.errors import DatasetError
from factory.quality.duplicates import stored_rows
from factory.runs.admission import Admission, needs_all_rows
from factory.runs.nodes import Nodes, WorkerLost
from factory.runs.prepare import Prepared

WHOLE, FINAL = "whole", "final"  # folders beside the workers': taken, and rewritten


@dataclass(slots=True)
class Shard:
    """A shard on its way: its files in `folder`, or a call that rewrites them."""

    entry: ShardEntry
    folder: Path
    maker: str
    call: Any = None


class Delivery:
    """The shards of one round. `committed` is told of each, and of who made it."""

    def __init__(
        self,
        prepared: Prepared,
        ledger: Ledger,
        nodes: Nodes,
        order: Iterable[int],
        committed: Callable[[int, str], None],
    ) -> None:
        self.prepared, self.ledger, self.nodes, self.committed = prepared, ledger, nodes, committed
        self.folder = ledger.out.absolute() / WORKERS
        self.order = deque(order)
        self.whole: dict[int, Shard] = {}
        self.decided: deque[Shard] = deque()
        job, forms = prepared.job, {name: task.form for name, task in prepared.tasks.items()}
        late = needs_all_rows(job)
        self.admission = Admission(job.filters, prepared.plan, ledger, forms) if late else None
        for name in (WHOLE, FINAL):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    @property
    def waiting(self) -> int:
        """Shards that were taken and are not committed."""
        return len(self.whole) + len(self.decided)

    def calls(self) -> list[Any]:
        """What is rewritten now."""
        return [shard.call for shard in self.decided if shard.call is not None]

    def take(self, folder: Path, entry: ShardEntry, maker: str) -> None:
        """A worker has made a shard, whose files lie in its folder."""
        if self.admission is None:
            self._commit(Shard(entry, folder, maker))
            return
        _move(folder, self.folder / WHOLE, entry, durable=False)
        self.whole[entry.shard] = Shard(entry, self.folder / WHOLE, maker)
        while self.order and self.order[0] in self.whole:
            self.decided.append(self._decide(self.whole.pop(self.order.popleft())))

    def _decide(self, shard: Shard) -> Shard:
        assert self.admission is not None
        number = shard.entry.shard
        turned: Turned = {}
        for row in stored_rows(shard.folder, number, read_forms(shard.folder, number)):
            refusal = self.admission.decide(number, row)
            if refusal is not None:
                turned = {**turned, row.id: (refusal.stage, refusal.reason, refusal.findings)}
        if turned:
            manifest = read_manifest(self.ledger.out)
            signals = read_signals(of_teacher(manifest, self.prepared.plan.round_of(number).teacher))
            given = (shard.folder, shard.entry, turned, signals, self.folder / FINAL)
            shard.call, shard.folder = self.nodes.submit(turn_down, *given), self.folder / FINAL
        return shard

    def commit_ready(self) -> None:
        """Commit what is decided, in order, as far as it is rewritten."""
        # in order: a run that goes on after a kill decides about the next row as this one would have
        while self.decided:
            shard = self.decided[0]
            if shard.call is not None:
                if not self.nodes.wait([shard.call], 0):
                    return
                try:
                    shard.entry = self.nodes.get(shard.call)
                except WorkerLost as lost:
                    told = f"{self.ledger.out}: shard {shard.entry.shard} cannot be finished: {lost}"
                    step = "committed shards are whole, the same command goes on from them"
                    raise DatasetError(f"{told}; {step}") from None
            self._commit(self.decided.popleft())

    def _commit(self, shard: Shard) -> None:
        # files first, then the line in the ledger: what the ledger names is whole on the disk
        entry = without_late(shard.entry)
        _move(shard.folder, self.ledger.out, entry, durable=True)
        for file in shard.entry.files:
            if is_late(file):
                (shard.folder / file.path).unlink(missing_ok=True)
        self.ledger.commit(entry)
        self.committed(entry.shard, shard.maker)


def _move(source: Path, target: Path, entry: ShardEntry, durable: bool) -> None:
    for file in entry.files:
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        (source / file.path).replace(place)
    for folder in {(target / file.path).parent for file in entry.files} if durable else ():
        sync_directory(folder)
