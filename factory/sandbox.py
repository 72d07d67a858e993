"""Bounds on code that is not ours while it runs for a moment: a template gets so much time, memory and text.

Jinja's sandbox keeps templates from files and attributes; it does not keep them from a loop in a loop or from doubling
a string forty times. These bounds do, so a hostile or broken template ends as an error of its row or task.
"""

import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MAX_SECONDS = 5.0
MAX_BYTES = 1 << 30  # of memory, beyond what the process holds already
MAX_CHARACTERS = 4_000_000  # of rendered text: about a million tokens, more than any model's window


class OutOfBounds(Exception):
    """Too long or too large."""


@contextmanager
def bounds(seconds: float = MAX_SECONDS, more_bytes: int = MAX_BYTES) -> Iterator[None]:
    """Let the body run for so long, with so much more memory. Raises OutOfBounds, or MemoryError from inside.

    The time is kept with SIGALRM, so only in the main thread; the memory with RLIMIT_AS, so only on Linux.
    """
    with _time_limit(seconds), _memory_limit(more_bytes):
        yield


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfBounds(f"still not done after {seconds:g} s; is there a loop in a loop?")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory_limit(more_bytes: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + more_bytes
    known = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
