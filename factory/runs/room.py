"""Room on the disk while a job runs: nothing more is asked when it is short, and the run stops before a write fails."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.dataset.layouts import row_bytes
from factory.errors import DatasetError
from factory.records import Outcome, Record

FILE_BYTES = 64 * 1024  # frames of one shard's files, its line in the ledger and what else is written beside it


@dataclass(slots=True)
class Room:
    """What is free where a dataset is written, against what its next shard needs, judged by the rows so far."""

    out: Path
    shard_rows: int
    rows: int = 0
    bytes: int = 0

    def saw(self, outcome: Outcome) -> None:
        """A row is decided: the next ones are taken to be like those so far."""
        self.rows += 1
        self.bytes += stored_bytes(outcome)

    def need(self, in_flight: int = 0) -> float:
        """Bytes of a whole shard and of the answers that are on their way to the spool, before compression."""
        row = self.bytes / self.rows if self.rows else 0.0
        return row * (self.shard_rows + in_flight) + FILE_BYTES

    def short(self, in_flight: int) -> bool:
        """Whether nothing more may be asked: what has been asked already must still find its place."""
        # before the first row nothing is known: `plan` has judged by then whether the job fits at all
        return self.rows > 0 and self.free() < self.need(in_flight)

    def require(self, shard: int, outcomes: Sequence[Outcome]) -> None:
        """Raise DatasetError where the files of this shard do not fit."""
        need = sum(map(stored_bytes, outcomes)) + FILE_BYTES
        if self.free() < need:
            raise self.stopped(f"shard {shard} needs up to {need:,}")

    def require_none_left(self, left: int) -> None:
        """Raise DatasetError where rows are left that were not asked because the disk is short."""
        if left:
            raise self.stopped(f"{left:,} rows are left and the next shard needs up to {self.need():,.0f}")

    def stopped(self, why: str) -> DatasetError:
        return DatasetError(
            f"{self.out}: stopped before the disk is full: {self.free():,} bytes free, {why}; "
            f"committed shards are whole, free some and the same command goes on from them"
        )

    def free(self) -> int:
        return shutil.disk_usage(self.out).free


def stored_bytes(outcome: Outcome) -> int:
    """Bytes that a row needs at most: a rejected one keeps its texts and ids, and no signals."""
    generation = outcome.generation
    if isinstance(outcome, Record) or generation is None:
        return row_bytes(outcome)
    ids = generation.prompt_token_ids.nbytes + generation.completion_token_ids.nbytes
    return 4 * len(generation.text) + 2000 + ids
