"""runs.jsonl: when each run was at work and how fast, the only file of a dataset that holds times.

A run writes a line when it begins, before it spends anything, and one when it ends. A run that was killed outright has
only the first: a second line that is missing is the trace of it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from factory.hashing import canonical_json

HISTORY = "runs.jsonl"
STATE = ".workers/state.json"  # of a run on a cluster, while it lasts


@dataclass(frozen=True, slots=True)
class Runs:
    """How many runs of a dataset have begun, and how many of them have told of their end."""

    begun: int = 0
    ended: int = 0


def begin_run(out: Path, done: int) -> dict[str, Any]:
    """Write that a run begins with so many rows committed; what `end_run` is to be given."""
    began = {"event": "started", "started": _now(), "process": os.getpid(), "rows_before": done}
    _append(out, began)
    return began


def end_run(out: Path, began: dict[str, Any], outcome: str, figures: dict[str, Any]) -> None:
    """Write how a run ended: `complete`, `stopped` (by a signal) or `failed`; and what it did."""
    ended = {"event": "ended", "started": began["started"], "process": began["process"], "ended": _now()}
    try:
        _append(out, ended | {"outcome": outcome} | figures)
    except OSError:
        # on a full disk the run has an error of its own by now, which says more than this one would
        if outcome == "complete":
            raise


def note_worker(out: Path, figures: dict[str, Any]) -> None:
    """Write what one worker of a cluster has done, when it is no longer one."""
    _append(out, {"event": "worker", "told": _now()} | figures)


def write_state(out: Path, figures: dict[str, Any]) -> None:
    """Say where a run on a cluster stands, for whoever looks meanwhile."""
    path = out / STATE
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(".tmp-state")
    # not synced: it is of this moment
    temporary.write_text(canonical_json({"told": _now()} | figures), encoding="utf-8")
    temporary.replace(path)


def read_state(out: Path) -> dict[str, Any] | None:
    """Where a run on a cluster stood when it last told; None where there is none."""
    return next(_read_lines(out / STATE), None)


def read_history(out: Path) -> list[dict[str, Any]]:
    """The lines of a dataset's runs.jsonl; one that a kill has torn is left out."""
    return list(_read_lines(out / HISTORY))


def count_runs(out: Path) -> Runs:
    """Lines without `event` are of runs that told of their end alone."""
    events = [line.get("event", "ended") for line in read_history(out)]
    alone = sum("event" not in line for line in read_history(out))
    return Runs(events.count("started") + alone, events.count("ended"))


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _append(out: Path, line: dict[str, Any]) -> None:
    with (out / HISTORY).open("a+b") as handle:
        handle.seek(0, os.SEEK_END)
        # the line of a run that was killed while it wrote must not swallow this one
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            torn = handle.read(1) != b"\n"
            handle.write(b"\n" if torn else b"")
        handle.write(canonical_json(line).encode() + b"\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
