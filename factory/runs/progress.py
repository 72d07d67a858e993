"""Progress: a tqdm bar on a terminal, a line every ten seconds elsewhere, or JSON lines for machines.

Rows, completion tokens a second, the share that is accepted, and the time left.
"""

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from factory.hashing import canonical_json
from factory.terminal import say

LINE_EVERY_S = 10.0


class Progress:
    """Counts finished rows. `done` and `accepted` begin where an earlier run left off."""

    def __init__(
        self, planned: int, done: int, accepted: int, stream: TextIO | None = None, as_json: bool = False
    ) -> None:
        self.stream = stream = stream or sys.stderr
        self.planned = planned
        # speed and time left are of this run: what an earlier one did says nothing of this machine
        self.done = self.first = done
        self.accepted = accepted
        self.tokens = 0
        self.started = self.last_line = time.monotonic()
        self.as_json = as_json
        self.bar = None
        if stream.isatty() and not as_json:
            layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} rows [{elapsed}<{remaining}{postfix}]"
            self.bar = tqdm(total=planned, initial=done, file=stream, bar_format=layout, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.as_json:
            say(self.json_line(), self.stream)

    def answer(self, tokens: int) -> None:
        """A generation came back, whether or not its row is finished by it."""
        self.tokens += tokens

    def finish_row(self, accepted: bool) -> None:
        """A row is accepted or rejected for good."""
        self.done += 1
        self.accepted += accepted
        if self.bar is not None:
            self.bar.set_postfix_str(self._figures(), refresh=False)
            self.bar.update()
        elif time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            say(self.json_line() if self.as_json else self.line(), self.stream)

    def line(self) -> str:
        """Where things stand, in one line."""
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.first) / elapsed if elapsed else 0.0
        left = f"{_clock((self.planned - self.done) / rate)} left" if rate else "time left unknown"
        return f"{self.done}/{self.planned} rows, {self._figures()}, {left}"

    def json_line(self) -> str:
        """Where things stand, as one JSON object for machines."""
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.first) / elapsed if elapsed else 0.0
        figures = {
            "event": "progress",
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": self.done,
            "planned": self.planned,
            "accepted": self.accepted,
            "tokens_per_second": round(self.tokens_per_second(), 1),
            "seconds_left": round((self.planned - self.done) / rate) if rate else None,
        }
        return json.dumps(figures)

    def log_run(self, out: Path, started: datetime) -> None:
        """One line in runs.jsonl, the only file of a dataset that holds times and speeds."""
        line = {
            "started": started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.started, 3),
            "rows": self.done - self.first,
            "completion_tokens": self.tokens,
            "tokens_per_second": round(self.tokens_per_second(), 1),
        }
        with (out / "runs.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(canonical_json(line) + "\n")

    def tokens_per_second(self) -> float:
        """Completion tokens a second since this run began."""
        return self.tokens / max(time.monotonic() - self.started, 1e-9)

    def _figures(self) -> str:
        share = self.accepted / self.done if self.done else 0.0
        return f"{self.tokens_per_second():,.0f} tok/s, {share:.0%} accepted"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
