"""What every part of the chaos script has: its figures, and a run that never outlives it."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dataset_support import FACTORY


@dataclass
class Figures:
    """What was tried, how often, how often it was survived; and what went wrong where it was not."""

    what: str
    tried: int = 0
    survived: int = 0
    remark: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return self.survived == self.tried and not self.faults

    def row(self) -> str:
        """One row of the table."""
        return f"| {self.what} | {self.tried:,} | {self.survived:,} | {self.remark} |"

    def count(self, fault: str) -> None:
        """One more try; `fault` is empty where it was survived."""
        self.tried += 1
        if fault:
            self.faults.append(fault)
        else:
            self.survived += 1


@contextlib.contextmanager
def started_run(folder: Path, out: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`factory run` as the head of a process group, none of which outlives the context."""
    command = [*FACTORY, "run", "job.toml", "--out", out]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
