"""Rows on their way from the device to the pages: copied beside the engine's own work, written when they have come.

On a device with streams a copy goes to pinned memory on a stream of its own, with an event behind it. Nobody waits for
the event: a later step finds that it has passed and writes the rows. Waited for is what a finished request needs, and
the oldest copy where all that are under way hold more than `MOST_BYTES`, so the memory is bounded. Elsewhere (a
processor) rows are written at once.

Copies end in the order they were begun in. So of two writes to one place the later one stays, as without any delay.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch

from factory.teachers.engine.pages import Array, Pages

MOST_BYTES: Final = 256 << 20


class Mark(Protocol):
    """An event behind a copy."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Lane(Protocol):
    """Where copies run beside the engine's work."""

    def copy(self, rows: torch.Tensor) -> tuple[torch.Tensor, Mark]:
        """Begin a copy to the host: where it will be, and the mark that tells when."""

    def give_back(self, host: torch.Tensor) -> None:
        """The host's memory may be used again."""


class SideStream:
    """A lane of a CUDA device (ROCm's are called so too): a stream and pinned memory, which is used again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        # by size in bytes, a power of two: pinning memory costs more than all copies into it
        self.free: dict[int, list[torch.Tensor]] = {}

    def copy(self, rows: torch.Tensor) -> tuple[torch.Tensor, Mark]:
        size = rows.numel() * rows.element_size()
        whole = 1 << max(size - 1, 1).bit_length()
        free = self.free.setdefault(whole, [])
        memory = free.pop() if free else torch.empty(whole, dtype=torch.uint8, pin_memory=True)
        host = memory[:size].view(rows.dtype).view(rows.shape)
        # after what makes the rows, beside what comes after it
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            host.copy_(rows, non_blocking=True)
            mark = torch.cuda.Event()
            mark.record(self.stream)
        # its memory is not to be used again while it is read here
        rows.record_stream(self.stream)
        return host, mark

    def give_back(self, host: torch.Tensor) -> None:
        memory = torch.empty(0, dtype=torch.uint8)
        memory.set_(host.untyped_storage())
        self.free[len(memory)].append(memory)


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy under way, of M rows."""

    host: torch.Tensor
    mark: Mark
    pages: Pages
    slots_M: Array
    positions_M: Array
    # which use of its slot each row belongs to
    uses_M: Array
    # of the rows on the host those that count
    chosen_M: Array | None


class Copies:
    """All rows under way inside one worker. `lane` is None where they are written at once."""

    def __init__(self, lane: Lane | None, most_bytes: int = MOST_BYTES) -> None:
        self.lane = lane
        self.most_bytes = most_bytes
        self.under_way: deque[Copy] = deque()
        self.bytes = 0
        # how often each slot was given up: rows of a request that is gone are not written into the next one's
        self.uses = np.zeros(64, np.int64)

    def send(
        self, rows: torch.Tensor, pages: Pages, slots: Array, positions: Array, chosen: Array | None = None
    ) -> None:
        """Bring rows [M, W] to (slot, position) [M] each; of the rows only the `chosen` [M], where some are not."""
        if chosen is not None:
            slots, positions = slots[chosen], positions[chosen]
        if not len(slots):
            return
        if self.lane is None:
            write(pages, slots, positions, rows, chosen)
            return
        if slots.max() >= len(self.uses):
            self.uses = np.concatenate([self.uses, np.zeros(int(slots.max()) + 1, np.int64)])
        host, mark = self.lane.copy(rows)
        self.under_way.append(Copy(host, mark, pages, slots, positions, self.uses[slots], chosen))
        self.bytes += host.numel() * host.element_size()
        self._collect()

    def _collect(self) -> None:
        """Write what has come, and wait for the oldest where too much has not."""
        while self.under_way and (self.bytes > self.most_bytes or self.under_way[0].mark.query()):
            self._end_oldest()

    def finish(self, slot: int, lengths: Mapping[Pages, int]) -> None:
        """Wait for the first `lengths[pages]` rows of a slot, and for no step that came after them."""
        wanted = 0
        for number, copy in enumerate(self.under_way, 1):
            length = lengths.get(copy.pages, 0)
            if ((copy.slots_M == slot) & (copy.positions_M < length)).any():
                wanted = number
        for _ in range(wanted):
            self._end_oldest()

    def forget(self, slot: int) -> None:
        """What is under way of a slot is nobody's: a step that ran ahead of its request's end."""
        if slot < len(self.uses):
            self.uses[slot] += 1

    def _end_oldest(self) -> None:
        copy = self.under_way.popleft()
        copy.mark.synchronize()
        alive_M = copy.uses_M == self.uses[copy.slots_M]
        if alive_M.any():
            chosen = np.arange(len(copy.host)) if copy.chosen_M is None else np.flatnonzero(copy.chosen_M)
            write(copy.pages, copy.slots_M[alive_M], copy.positions_M[alive_M], copy.host, chosen[alive_M])
        self.bytes -= copy.host.numel() * copy.host.element_size()
        assert self.lane is not None
        self.lane.give_back(copy.host)


def write(pages: Pages, slots: Array, positions: Array, rows: torch.Tensor, chosen: Array | None) -> None:
    # numpy lacks some of the device's types: the same bits under the pages' own name
    values = rows.cpu().numpy().view(pages.data.dtype)
    pages.write(slots, positions, values if chosen is None else values[chosen])


AT_ONCE: Final = Copies(None)


def open_copies(device: torch.device) -> Copies:
    """The copies of a worker on this device."""
    return Copies(SideStream(device) if device.type == "cuda" else None)


def to_device(values: Array, device: torch.device) -> torch.Tensor:
    """Numbers of the host on the device, without waiting for what it is at."""
    tensor = torch.from_numpy(values)
    # a copy out of memory that is not pinned waits until the device has nothing else to do
    return tensor.to(device) if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
