"""Paged storage for per-token values of many requests at once: a whole batch is written with one array assignment.

Requests of unknown length share one growing pool of pages, so memory follows the tokens that are alive, and nothing
per token becomes a Python object. A position that was never written stays blank and shows up when it is taken.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PAGE = 32  # positions a page holds


@dataclass(frozen=True, slots=True)
class StepRows:
    """N tokens of one step that belong to requests that are kept: where each stands in the step, and where it is kept.

    Entry i of all four is one token. Tokens of requests that are not kept are left out, so `row_N` may have gaps.
    """

    # int64, ascending: row in the step's tensors
    row_N: Array
    # int64: place of its request in the batch
    request_N: Array
    # int64: slot of its request, the same in every step
    slot_N: Array
    # int64: absolute position, from 0 at the first prompt token
    position_N: Array


class Pages:
    """Rows of `width` values of `dtype`, addressed by (slot, position); a slot is one request.

        table [slot, position // PAGE] -> page of the pool, -1 for none
        data  [page, position % PAGE, width]

    A page in no slot's table is in `free`, and all blank.
    """

    def __init__(self, width: int, dtype: Any, blank: float) -> None:
        self.width = width
        self.blank = blank
        self.data = np.full((64, PAGE, width), blank, dtype=dtype)
        self.free = list(range(len(self.data)))
        self.table = np.full((16, 8), -1, dtype=np.int64)  # [slot, page of the request] -> page of the pool

    def write(self, slots_B: Array, positions_B: Array, values_BW: Array) -> None:
        """Store one row for each (slot, position); a position written again is replaced."""
        page_B, offset_B = positions_B // PAGE, positions_B % PAGE
        self._grow_table(int(slots_B.max()) + 1, int(page_B.max()) + 1)
        place_B = self.table[slots_B, page_B]
        new_B = place_B < 0
        if new_B.any():
            # several positions of this very write may lie in one new page, which is made once; a new page for one in
            # PAGE positions at most, so a loop in Python is not felt
            for cell in np.unique(slots_B[new_B] * self.table.shape[1] + page_B[new_B]).tolist():
                self.table.reshape(-1)[cell] = self._allocate()
            place_B = self.table[slots_B, page_B]
        self.data.reshape(-1, self.width)[place_B * PAGE + offset_B] = values_BW

    def take(self, slot: int, length: int) -> Array:
        """A copy of the first `length` rows of a slot, [length, width]; the slot is empty afterwards."""
        used = min(-(-length // PAGE), self.table.shape[1]) if slot < len(self.table) else 0
        pages = self.table[slot, :used] if used else np.zeros(0, np.int64)
        # a page that no position was written to is left out: the rows are then too few, which shows as misaligned
        pages = pages[pages >= 0]
        rows = self.data[pages].reshape(-1, self.width)[:length].copy()
        self.drop(slot)
        return rows

    def drop(self, slot: int) -> None:
        """Give the pages of a slot back."""
        if slot >= len(self.table):
            return
        pages = self.table[slot][self.table[slot] >= 0]
        # so that what the next request leaves unwritten is blank, not this one's
        self.data[pages] = self.blank
        self.free.extend(pages.tolist())
        self.table[slot] = -1

    def _allocate(self) -> int:
        if not self.free:
            # doubled, so that rows are moved about once each in the mean, however many there come to be
            count = len(self.data)
            more = np.full(self.data.shape, self.blank, dtype=self.data.dtype)
            self.data = np.concatenate([self.data, more])
            self.free = list(range(count, 2 * count))
        return self.free.pop()

    def _grow_table(self, slots: int, pages: int) -> None:
        rows, columns = self.table.shape
        if slots > rows or pages > columns:
            table = np.full((max(slots, rows * 2 if slots > rows else rows), max(pages, columns)), -1, dtype=np.int64)
            table[:rows, :columns] = self.table
            self.table = table
