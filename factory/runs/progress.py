"""Progress: a tqdm bar on a terminal, a line every ten seconds elsewhere, or JSON lines for machines.

Rows, completion tokens a second, the share that is kept, and the time left. What happens beside rows (an engine
starts, a shard is committed) is an event: one line for people where they wait for it, one object for machines always.
"""

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from factory.job.job import Job
from factory.terminal import say

LINE_EVERY_S = 10.0


def chooses_later(job: Job) -> bool:
    """Whether an accepted row may still be turned down when its shard is whole."""
    filters, wants = job.filters, any(task.accepted is not None for task in job.tasks)
    return job.samples.keep != "all" or filters.duplicates or filters.near_duplicates is not None or wants


class Reporter:
    """Where a run tells what happens: one line each. With `as_json` every event, else those that people wait for."""

    def __init__(self, stream: TextIO | None = None, as_json: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.as_json = as_json

    def tell(self, event: str, text: str | None = None, **fields: Any) -> None:
        """An event; `text` is what people read of it, None where they need not."""
        if self.as_json:
            head = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds")}
            say(json.dumps(head | fields), self.stream)
        elif text is not None:
            # a line in the midst of a bar would be torn by it
            with tqdm.external_write_mode(file=self.stream):
                say(text, self.stream)


class Progress:
    """Counts rows. `done` and `accepted` begin where an earlier run left off, with what is committed.

    `chosen`: which rows are kept is decided when their shard is whole (a choice among samples, duplicates), so
    `accepted` counts rows of committed shards alone; else a row is kept as soon as it is accepted. `wanted`: how many
    accepted rows the job wants, 0 where as many as come; `planned` may grow then. `spent` is what a teacher that
    charges says of its account, `crew` tells of the workers of a cluster.
    """

    def __init__(
        self,
        planned: int,
        done: int,
        accepted: int,
        reporter: Reporter | None = None,
        chosen: bool = False,
        wanted: int = 0,
        spent: Callable[[], dict[str, Any]] = dict,
        crew: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.spent = spent
        self.crew = crew
        self.reporter = reporter or Reporter()
        self.stream = self.reporter.stream
        self.planned = planned
        # speed and time left are of this run: what an earlier one did says nothing of this machine
        self.done = self.committed = self.first = done
        self.accepted = accepted
        self.chosen = chosen
        self.wanted = wanted
        self.tokens = 0
        self.started = self.last_line = time.monotonic()
        self.bar = None
        if self.stream.isatty() and not self.reporter.as_json:
            layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} rows [{elapsed}<{remaining}{postfix}]"
            self.bar = tqdm(total=planned, initial=done, file=self.stream, bar_format=layout, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.reporter.as_json:
            self.reporter.tell("progress", **self.figures())

    def wait(self, seconds: float) -> None:
        """Another teacher was waited for, so long: these seconds are of no row."""
        self.started += seconds

    def plan(self, planned: int) -> None:
        """More rows are planned than were: so many in all."""
        self.planned = planned
        if self.bar is not None:
            self.bar.total = planned

    def answer(self, tokens: int) -> None:
        """A generation came back, whether or not its row is finished by it."""
        self.tokens += tokens

    def finish_row(self, accepted: bool) -> None:
        """A row is decided; where nothing is chosen later, for good."""
        self.done += 1
        if not self.chosen:
            self.accepted += accepted
        self._show(1)

    def commit(self, rows: int, kept: int) -> None:
        """A shard is in the ledger, with so many of its rows kept."""
        self.committed += rows
        if self.chosen:
            self.accepted += kept
            self._show(0)

    def add_shard(self, rows: int, kept: int) -> None:
        """A shard that was made elsewhere is in the ledger."""
        self.done += rows
        self.committed += rows
        self.accepted += kept
        self._show(rows)

    def tick(self) -> None:
        """Nothing new: time has passed."""
        self._show(0)

    def _show(self, rows: int) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(self._tell_speed(), refresh=False)
            self.bar.update(rows)
        elif time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            self.reporter.tell("progress", self.line(), **self.figures())

    def line(self) -> str:
        """Where things stand, in one line."""
        rate = self.rows_per_second()
        left = f"{tell_clock((self.planned - self.done) / rate)} left" if rate else "time left unknown"
        return f"{self.done}/{self.planned} rows, {self._tell_speed()}, {left}"

    def figures(self) -> dict[str, Any]:
        """Where things stand, for machines."""
        rate = self.rows_per_second()
        return {
            "rows": self.done,
            "planned": self.planned,
            "committed": self.committed,
            "accepted": self.accepted,
            "tokens_per_second": round(self.tokens_per_second(), 1),
            "seconds_left": round((self.planned - self.done) / rate) if rate else None,
            **({"spent": spent} if (spent := self.spent()) else {}),
            **self.crew(),
        }

    def summary(self) -> dict[str, Any]:
        """What this run has done, for runs.jsonl."""
        return {
            "seconds": round(time.monotonic() - self.started, 3),
            "rows": self.done - self.first,
            "completion_tokens": self.tokens,
            "tokens_per_second": round(self.tokens_per_second(), 1),
            **({"spent": spent} if (spent := self.spent()) else {}),
        }

    def rows_per_second(self) -> float:
        """Rows decided a second since this run's teacher was ready."""
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    def tokens_per_second(self) -> float:
        """Completion tokens a second since this run's teacher was ready."""
        return self.tokens / max(time.monotonic() - self.started, 1e-9)

    def _tell_speed(self) -> str:
        if self.wanted:
            kept = f"{self.accepted:,} of {self.wanted:,} wanted rows in whole shards"
        elif self.chosen:
            kept = f"{self.accepted:,} kept of {self.committed:,} in whole shards"
        else:
            kept = f"{self.accepted / self.done if self.done else 0.0:.0%} accepted"
        spent = self.spent()
        cost = f", {spent['cost']:,.2f} {spent['currency']}" if "cost" in spent else ""
        crew = self.crew()
        told = "{workers} workers, {restarts} restarts, {rows_per_second:g} rows/s, ".format(**crew) if crew else ""
        return f"{told}{self.tokens_per_second():,.0f} tok/s, {kept}{cost}"


def tell_clock(seconds: float) -> str:
    """Seconds as people read them: 01:05, or 1:02:05 with hours."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
