"""Bounds on code that is not ours while it runs for a moment: what a template reaches, and its time, memory and text.

Jinja's sandbox keeps templates from files and underscore attributes. It knows nothing of pydantic, whose models can
read files and unpickle, and lets a loop stand in a loop and a string be doubled forty times. The environment and the
bounds here do, so a hostile or broken template ends as an error of its row or task.
"""

import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel

# of this thread's own work: how busy the machine is must not decide which rows a dataset has
MAX_SECONDS = 5.0
# by the clock on the wall, for code that sleeps or waits and so never works that long
MAX_WAIT_SECONDS = 120.0
# then once more, and again: a bare `except` in what runs may have swallowed the first
AGAIN_SECONDS = 0.1
# of memory, beyond what the process holds already
MAX_BYTES = 1 << 30
# of rendered text: about a million tokens, more than any model's window
MAX_CHARACTERS = 4_000_000
MAX_EXPONENT = 1000
# of a product or power: a larger one is a single step that no clock interrupts, as signals wait for Python's next step
MAX_BITS = 1 << 17
# what a template may use of the things that pydantic gives every model; `parse_file` and `parse_raw` are among the rest
OF_EVERY_MODEL = frozenset(
    {"model_dump", "model_dump_json", "model_copy", "model_extra", "model_fields_set", "dict", "json", "copy"}
)


class OutOfBounds(Exception):
    """Too long or too large."""


class Stalled(OutOfBounds):
    """Not done by the clock on the wall, having hardly worked: no fault of the data."""


class LoudUndefined(StrictUndefined):
    """StrictUndefined that is also loud inside a list, where Jinja would write `Undefined` into the prompt."""

    __slots__ = ()
    __repr__ = StrictUndefined.__str__


class TaskEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox without pydantic's and the disk's doors, and with numbers kept small."""

    intercepted_binops = frozenset(["*", "**"])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not _leads_out(obj, attr)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int) and right > MAX_EXPONENT:
            raise OutOfBounds(f"exponent {right} (at most {MAX_EXPONENT})")
        if isinstance(left, int) and isinstance(right, int):
            size = left.bit_length()
            bits = size * right if operator == "**" else size + right.bit_length()
            if bits > MAX_BITS:
                raise OutOfBounds(f"a number of {bits} bits (at most {MAX_BITS})")
        return super().call_binop(context, operator, left, right)


def _leads_out(obj: Any, attr: str) -> bool:
    """Whether an attribute is a model's machinery or a path's way to the disk, not the author's own."""
    # a scenario may hold a class as well as an object
    kind = obj if isinstance(obj, type) else type(obj)
    # parts, name and suffix are text; read_text, iterdir and open are methods
    if issubclass(kind, PurePath):
        return callable(getattr(kind, attr, None))
    if not issubclass(kind, BaseModel) or attr in kind.model_fields or attr in OF_EVERY_MODEL:
        return False
    # what an author overrides is the author's, whatever its name
    owner = next((parent for parent in kind.__mro__ if attr in vars(parent)), None)
    return owner is BaseModel


@contextmanager
def bounds(seconds: float | None = None, more_bytes: int | None = None) -> Iterator[None]:
    """Let the body work for so long, with so much more memory. Raises OutOfBounds, or MemoryError from inside.

    `seconds` are of processor time. Time is kept with SIGPROF and SIGALRM, so only in the main thread; memory with
    RLIMIT_AS, so only on Linux. All are as they were afterwards; bounds inside bounds hold together.
    """
    seconds = MAX_SECONDS if seconds is None else seconds
    with (
        _memory_limit(MAX_BYTES if more_bytes is None else more_bytes),
        time_limit(seconds, max(MAX_WAIT_SECONDS, seconds)),
    ):
        yield


@contextmanager
def time_limit(work_seconds: float, wait_seconds: float) -> Iterator[None]:
    """Let the body work and wait for so long. Raises OutOfBounds or Stalled from inside; see `bounds`."""
    with _work_limit(work_seconds), _wait_limit(wait_seconds):
        yield


@contextmanager
def _work_limit(seconds: float) -> Iterator[None]:
    started = time.thread_time()

    def ring(number: int, frame: FrameType | None) -> None:
        # the timer counts the work of all threads, and so rings early where another one works too
        if time.thread_time() - started >= seconds:
            raise OutOfBounds(f"still not done after {seconds:g} s; is there a loop in a loop?")

    with _timer(signal.ITIMER_PROF, signal.SIGPROF, seconds, ring, time.process_time):
        yield


@contextmanager
def _wait_limit(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Stalled(f"not done after {seconds:g} s on the clock, most of them without work; does it sleep or wait?")

    with _timer(signal.ITIMER_REAL, signal.SIGALRM, seconds, ring, time.monotonic):
        yield


@contextmanager
def _timer(
    which: int,
    number: signal.Signals,
    seconds: float,
    ring: Callable[[int, FrameType | None], None],
    clock: Callable[[], float],
) -> Iterator[None]:
    """Ring after so many seconds of `clock` and again until the body is done; a timer around us goes on afterwards."""
    # Python runs signal handlers in the main thread alone
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, started = signal.signal(number, ring), clock()
    left, interval = signal.setitimer(which, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        try:
            signal.setitimer(which, 0)
        finally:  # the last ring may have come just before
            signal.setitimer(which, 0)
            signal.signal(number, before)
            if left:  # a timer of someone around us, whose time went on
                signal.setitimer(which, max(left - (clock() - started), 1e-6), interval)


@contextmanager
def _memory_limit(more_bytes: int) -> Iterator[None]:
    # what the process holds already is told by /proc
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + more_bytes
    # a limit that somebody else has set is not raised
    known = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
