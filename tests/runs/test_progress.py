"""Progress: one line where there is no terminal, a bar where there is one, and figures that start at zero."""

import contextlib
import io
import json
import os
import pty
import re
import termios
from datetime import datetime, timedelta
from typing import Any

import pytest

from factory.runs import progress as module
from factory.runs.progress import Progress, Reporter


def run_rows(progress: Progress, rows: int, accepted: int) -> None:
    with progress:
        for row in range(rows):
            progress.answer(50)
            progress.finish_row(row < accepted)


def test_the_line_tells_rows_speed_share_and_time_left() -> None:
    progress = Progress(planned=100, done=0, accepted=0, reporter=Reporter(io.StringIO()))
    progress.started -= 10
    run_rows(progress, rows=20, accepted=15)
    assert re.fullmatch(r"20/100 rows, 100 tok/s, 75% accepted, 00:40 left", progress.line())


def test_a_resumed_run_counts_on_and_times_only_itself() -> None:
    progress = Progress(planned=100, done=60, accepted=60, reporter=Reporter(io.StringIO()))
    progress.started -= 4
    run_rows(progress, rows=20, accepted=0)
    assert re.fullmatch(r"80/100 rows, 250 tok/s, 75% accepted, 00:0[34] left", progress.line())
    assert (progress.done, progress.first) == (80, 60)


def test_nothing_done_yet_divides_nothing_by_zero() -> None:
    progress = Progress(planned=100, done=0, accepted=0, reporter=Reporter(io.StringIO()))
    assert progress.line() == "0/100 rows, 0 tok/s, 0% accepted, time left unknown"


def read_all(terminal: int) -> str:
    """All that was shown on a terminal; Linux ends it with an error."""
    shown = b""
    with os.fdopen(terminal, "rb", buffering=0) as stream, contextlib.suppress(OSError):
        while data := stream.read(1 << 16):
            shown += data
    return shown.decode()


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (61.9, "01:01"), (3600, "1:00:00"), (90061, "25:01:01")])
def test_times_are_told_as_clocks(seconds: float, text: str) -> None:
    assert module.tell_clock(seconds) == text


def test_a_line_comes_every_ten_seconds_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(planned=3, done=0, accepted=0, reporter=Reporter(stream))
    progress.finish_row(True)
    assert stream.getvalue() == ""
    progress.last_line -= module.LINE_EVERY_S
    progress.finish_row(True)
    progress.finish_row(True)
    assert re.fullmatch(r"2/3 rows, .*\n", stream.getvalue())


def test_a_terminal_gets_a_bar_that_ends_where_the_rows_do() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with os.fdopen(theirs, "w") as stream:
        progress = Progress(planned=10, done=4, accepted=4, reporter=Reporter(stream))
        run_rows(progress, rows=6, accepted=3)
    shown = read_all(ours)
    assert "4/10 rows" in shown
    assert "10/10 rows" in shown
    assert "70% accepted" in shown


def read_events(stream: io.StringIO) -> list[dict[str, Any]]:
    assert stream.getvalue().endswith("\n")
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_machines_get_the_same_figures_as_people_in_one_object() -> None:
    stream = io.StringIO()
    progress = Progress(planned=100, done=60, accepted=60, reporter=Reporter(stream, as_json=True))
    progress.started -= 4
    run_rows(progress, rows=20, accepted=15)
    (event,) = read_events(stream)
    assert datetime.fromisoformat(event.pop("time")).utcoffset() == timedelta(0)
    assert event.pop("tokens_per_second") == pytest.approx(250, rel=0.05)
    assert event == {
        "event": "progress",
        "rows": 80,
        "planned": 100,
        "committed": 60,
        "accepted": 75,
        "seconds_left": 4,
    }


def test_machines_get_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    stream = io.StringIO()
    with Progress(planned=3, done=0, accepted=0, reporter=Reporter(stream, as_json=True)) as progress:
        progress.finish_row(True)
        assert stream.getvalue() == ""
        progress.last_line -= module.LINE_EVERY_S
        progress.finish_row(False)
        assert [event["rows"] for event in read_events(stream)] == [2]
        progress.finish_row(True)
    assert [(event["rows"], event["accepted"]) for event in read_events(stream)] == [(2, 1), (3, 2)]


def test_machines_get_their_last_line_from_a_run_that_fails_too() -> None:
    stream = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(planned=3, done=0, accepted=0, reporter=Reporter(stream, as_json=True)),
    ):
        raise KeyboardInterrupt
    (event,) = read_events(stream)
    assert (event["rows"], event["seconds_left"]) == (0, None)


def test_nobody_gets_a_line_at_the_end_who_did_not_ask_for_json() -> None:
    stream = io.StringIO()
    run_rows(Progress(planned=3, done=0, accepted=0, reporter=Reporter(stream)), rows=3, accepted=3)
    assert stream.getvalue() == ""


def test_machines_get_json_on_a_terminal_too() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        run_rows(Progress(planned=2, done=0, accepted=0, reporter=Reporter(stream, as_json=True)), rows=2, accepted=1)
    (event,) = [json.loads(line) for line in read_all(ours).splitlines()]
    assert (event["rows"], event["accepted"]) == (2, 1)


def test_where_rows_are_chosen_later_only_what_is_kept_counts() -> None:
    progress = Progress(planned=40, done=8, accepted=2, reporter=Reporter(io.StringIO()), chosen=True)
    for _ in range(8):
        progress.finish_row(True)
    assert "2 kept of 8 in whole shards" in progress.line()
    progress.commit(8, 1)
    assert "3 kept of 16 in whole shards" in progress.line()
    assert (progress.figures()["rows"], progress.figures()["accepted"], progress.figures()["committed"]) == (16, 3, 16)


def test_an_event_is_a_line_for_people_where_it_has_one_and_an_object_for_machines() -> None:
    people, machines = io.StringIO(), io.StringIO()
    for reporter in (Reporter(people), Reporter(machines, as_json=True)):
        reporter.tell("engine", "engine: warming up", stage="warming up")
        reporter.tell("shard", shard=3)
    assert people.getvalue() == "engine: warming up\n"
    first, second = read_events(machines)
    assert (first["event"], first["stage"], second["event"], second["shard"]) == ("engine", "warming up", "shard", 3)
