"""Progress: one line where there is no terminal, a bar where there is one, and figures that start at zero."""

import contextlib
import io
import os
import pty
import re
import termios

import pytest

from factory import progress as module
from factory.progress import Progress


def run_rows(progress: Progress, rows: int, accepted: int) -> None:
    with progress:
        for row in range(rows):
            progress.answer(50)
            progress.finish_row(row < accepted)


def test_the_line_tells_rows_speed_share_and_time_left() -> None:
    progress = Progress(planned=100, done=0, accepted=0, stream=io.StringIO())
    progress.started -= 10
    run_rows(progress, rows=20, accepted=15)
    assert re.fullmatch(r"20/100 rows, 100 tok/s, 75% accepted, 00:40 left", progress.line())


def test_a_resumed_run_counts_on_and_times_only_itself() -> None:
    progress = Progress(planned=100, done=60, accepted=60, stream=io.StringIO())
    progress.started -= 4
    run_rows(progress, rows=20, accepted=0)
    assert re.fullmatch(r"80/100 rows, 250 tok/s, 75% accepted, 00:0[34] left", progress.line())
    assert (progress.done, progress.first) == (80, 60)


def test_nothing_done_yet_divides_nothing_by_zero() -> None:
    progress = Progress(planned=100, done=0, accepted=0, stream=io.StringIO())
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
    assert module._clock(seconds) == text


def test_a_line_comes_every_ten_seconds_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(planned=3, done=0, accepted=0, stream=stream)
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
        progress = Progress(planned=10, done=4, accepted=4, stream=stream)
        run_rows(progress, rows=6, accepted=3)
    shown = read_all(ours)
    assert "4/10 rows" in shown
    assert "10/10 rows" in shown
    assert "70% accepted" in shown
