"""Leases: which shard is whose, while several workers make them. Pure bookkeeping, in one process.

    waiting --take--> leased to one worker --deliver--> delivered, to be committed
       ^                     |
       +-------lose----------+       a worker that is gone has no leases, and what it delivers later is not taken

A shard is delivered once, by the worker that holds its lease at that moment.
"""

from bisect import insort
from collections.abc import Iterable


class Leases:
    """The shards of a plan that are not made yet."""

    def __init__(self, shards: Iterable[int]) -> None:
        # from the last to the first: the next one is taken from the end
        self.waiting = sorted(shards, reverse=True)
        self.held: dict[str, list[int]] = {}
        # what a worker left behind, for who reads its spool
        self.heirs: dict[str, list[int]] = {}

    @property
    def left(self) -> int:
        """Shards that are not delivered."""
        return len(self.waiting) + sum(map(len, self.held.values()))

    def take(self, worker: str, most: int) -> list[int]:
        """Lease the next shards to a worker, so that it holds up to `most`; what it has inherited goes first."""
        own = self.held.setdefault(worker, [])
        taken: list[int] = []
        inherited = self.heirs.get(worker, [])
        while inherited and len(own) + len(taken) < most:
            shard = inherited.pop(0)
            # somebody else may have made it meanwhile
            if shard in self.waiting:
                self.waiting.remove(shard)
                taken.append(shard)
        others = {shard for name, shards in self.heirs.items() if name != worker for shard in shards}
        while self.waiting and len(own) + len(taken) < most:
            # what another has answers for goes last
            places = range(len(self.waiting) - 1, -1, -1)
            taken.append(self.waiting.pop(next((at for at in places if self.waiting[at] not in others), -1)))
        own += taken
        return taken

    def deliver(self, worker: str, shard: int) -> bool:
        """Whether a shard that a worker has made is taken: only if it holds its lease."""
        if shard not in self.held.get(worker, ()):
            return False
        self.held[worker].remove(shard)
        return True

    def lose(self, worker: str) -> list[int]:
        """A worker is gone: its shards wait again, in their places."""
        lost = self.held.pop(worker, [])
        self.heirs.pop(worker, None)
        for shard in lost:
            insort(self.waiting, shard, key=lambda number: -number)
        return lost

    def inherit(self, worker: str, shards: Iterable[int]) -> None:
        """Let a worker begin with these, if they still wait when it takes some."""
        self.heirs[worker] = sorted(shards)
