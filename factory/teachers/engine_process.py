"""One engine's process, seen from ours: a pipe of prompts in, a pipe of events out, and its end."""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar


class EngineDied(Exception):
    """The engine's process is gone."""


class EngineProcess:
    """One child: a pipe of prompts in, a pipe of events out, everything it prints in a log file.

    We own both pipes' near ends. Closing the one ends the child, and the end of the other tells that it has ended.
    Nothing here waits for the child: what its pipe does not take yet stays in `outbox`, and `flush` goes on with it.
    """

    module: ClassVar[str] = "factory.teachers.engine.process"

    def __init__(self, setup: dict[str, Any], environment: dict[str, str], log_path: Path) -> None:
        events_in, events_out = os.pipe()
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, str(events_out)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                bufsize=0,
                pass_fds=[events_out],
                env=environment,
                # Ctrl-C is for us: we stop the engine in order. The session is also a group, to be killed as one
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        # as long as we held the far end open too, its end would never be seen
        os.close(events_out)
        # without a buffer of Python's: `select` knows nothing of bytes that wait in one
        self.events = os.fdopen(events_in, "rb", buffering=0)
        self.buffer = b""
        self.outbox = b""
        # one engine that does not read must not keep us from the others, nor from seeing that it hangs
        os.set_blocking(self.input.fileno(), False)
        self.send(setup)

    @property
    def input(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def send(self, message: dict[str, Any]) -> None:
        """Hand a message over. Raises EngineDied where nobody reads any more."""
        self.outbox += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send of the outbox what the pipe takes. Raises EngineDied where nobody reads any more."""
        try:
            while self.outbox:
                self.outbox = self.outbox[os.write(self.input.fileno(), self.outbox) :]
        except BlockingIOError:
            return
        except OSError as error:
            # nobody reads: its end is told by its exit code, whichever of its pipes is seen to break first
            raise EngineDied(self._describe_end(str(error))) from error

    def receive(self) -> list[dict[str, Any]]:
        """The events that have come; may be none. Raises EngineDied at the end of the pipe."""
        while select.select([self.events], [], [], 0)[0]:
            data = self.events.read(1 << 16)
            if not data:
                # what it said before its end counts: an answer that it told of is on the spool
                if b"\n" in self.buffer:
                    break
                raise EngineDied(self._describe_end("closed its pipe of events"))
            self.buffer += data
        # what follows the last line's end is the beginning of one that is still on its way
        lines, _, self.buffer = self.buffer.rpartition(b"\n")
        return [json.loads(line) for line in lines.splitlines()]

    def _describe_end(self, seen: str) -> str:
        """The exit code of a child that ends; what was `seen` of one that does not."""
        try:
            return f"exit code {self.process.wait(timeout=5)}"
        except subprocess.TimeoutExpired:
            return seen

    def hang_up(self) -> None:
        """Tell the child to end, without waiting for it."""
        # the end of its input ends it; unbuffered, so closing writes nothing and cannot fail for that
        with suppress(OSError):
            self.input.close()

    def stop(self) -> None:
        """End the child and everything it started."""
        self.hang_up()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.events.close()


def _die_with_parent() -> None:
    """Ask the kernel to end the child with us, even when we are killed outright (Linux)."""
    # runs in the child between fork and exec. The end of input would end it too, but only once Python runs there.
    # The kernel means the thread that forked: engines are started by the main thread alone
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
