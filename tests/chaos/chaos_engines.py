"""Engines that are killed while a run goes on: one engine, and replicas of which now one and now the whole run dies."""

import contextlib
import importlib.util
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from chaos_parts import Figures, started_run
from conftest import write_task
from random_teacher import random_teacher

from factory.checks.verify import verify
from factory.dataset.ledger import read_ledger

TWO_REPLICAS = "replicas = 2\nkv_cache_gb = 0.1\nmax_restarts = 20\n"
ENGINE_JOB = """
out = "out"
shard_rows = 8
[teacher]
model = "{model}"
max_num_seqs = 4
{teacher}[sampling]
max_tokens = 200
thinking_tokens = 150
[signals]
hidden_layers = [2, -1]
[validation]
gate = "schema"
[[tasks]]
name = "adding"
count = {rows}
"""


def kill_engines(folder: Path, kills: int, rng: random.Random) -> Figures:
    """SIGKILL vLLM's process again and again in one run; every row must end all the same."""
    figures = Figures("SIGKILL of the vLLM engine in one run")
    if importlib.util.find_spec("vllm") is None:
        figures.remark = "skipped: vllm is not installed"
        return figures
    rows = 32 + 16 * kills
    write_task(folder)
    (folder / "job.toml").write_text(ENGINE_JOB.format(rows=rows, model=random_teacher(), teacher=""), encoding="utf-8")
    dead: list[int] = []
    with started_run(folder, "out") as process:
        for engine in itertools.islice(working_engines(process, folder / "out"), kills):
            time.sleep(rng.uniform(0, 2))
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine, signal.SIGKILL)
                dead.append(engine)
        code = process.wait()
    totals = read_ledger(folder / "out").totals
    faults = [] if code == 0 else [f"the run ended with {code}"]
    faults += [f"engine {engine} is left" for engine in dead if Path(f"/proc/{engine}").exists()]
    faults += _faults_of(folder / "out", rows)
    if len(dead) < kills:
        faults.append(f"the run was done after {len(dead)} of {kills} kills")
    figures.tried, figures.survived, figures.faults = kills, 0 if faults else kills, faults
    crashed = totals.reasons["teacher/engine_crash"]
    figures.remark = (
        f"{totals.done} of {rows} rows ended, {totals.accepted} accepted, {crashed} given up as `engine_crash`"
    )
    return figures


def kill_replicas(folder: Path, kills: int, rng: random.Random) -> Figures:
    """SIGKILL one of two replicas, or the run with both, at any moment: they start, work or rest; go on each time.

    Survived are all kills together: every row has ended once, what is committed is sound, and no process is left.
    """
    figures = Figures("SIGKILL of one of two replicas, or of their run, at a random moment")
    if importlib.util.find_spec("vllm") is None or len(os.sched_getaffinity(0)) < 2:
        figures.remark = "skipped: vllm is not installed, or there is one core"
        return figures
    rows = 32 + 8 * kills
    write_task(folder)
    job = ENGINE_JOB.format(rows=rows, model=random_teacher(), teacher=TWO_REPLICAS)
    (folder / "job.toml").write_text(job, encoding="utf-8")
    dead: list[int] = []
    faults: list[str] = []
    runs, code = 0, None
    while code is None:
        runs += 1
        code = _disturb(folder, kills, rng, dead)
        faults += [] if code in (None, 0) else [f"run {runs} ended with {code}"]
        faults += [f"process {engine} is left" for engine in dead if ends_not(engine)]
    faults += _faults_of(folder / "out", rows)
    if len(dead) < kills:
        faults.append(f"all rows were done after {len(dead)} of {kills} kills")
    figures.tried, figures.survived, figures.faults = kills, 0 if faults else kills, faults
    totals = read_ledger(folder / "out").totals
    crashed = totals.reasons["teacher/engine_crash"]
    figures.remark = (
        f"{runs} runs, {totals.done} of {rows} rows ended, {totals.accepted} accepted, "
        f"{crashed} given up as `engine_crash`"
    )
    return figures


def _disturb(folder: Path, kills: int, rng: random.Random, dead: list[int]) -> int | None:
    """One run under kills, from its start on; its exit code, None where it was killed itself."""
    with started_run(folder, "out") as process:
        while len(dead) < kills:
            try:
                return process.wait(timeout=rng.uniform(1, 25))
            except subprocess.TimeoutExpired:
                pass
            engines = engines_of(process.pid)
            if not engines or rng.random() < 0.2:
                dead += [process.pid, *engines]
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return None
            victim = rng.choice(engines)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                dead.append(victim)
        return process.wait()


def ends_not(engine: int, within_s: float = 10) -> bool:
    """Whether a process is still there after a while."""
    deadline = time.monotonic() + within_s
    while Path(f"/proc/{engine}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return Path(f"/proc/{engine}").exists()


def _faults_of(out: Path, rows: int) -> list[str]:
    totals = read_ledger(out).totals
    faults = list(verify(out))
    if totals.accepted + totals.rejected != rows or totals.errors:
        faults.append(f"{totals.accepted} + {totals.rejected} of {rows} rows, {totals.errors} errors")
    return faults


def working_engines(process: "subprocess.Popen[bytes]", out: Path) -> Iterator[int]:
    """Each engine of a run in turn, once it has answered something."""
    known: set[int] = set()
    while process.poll() is None:
        alive = [engine for engine in engines_of(process.pid) if engine not in known]
        before = spooled_bytes(out)
        while alive and process.poll() is None and spooled_bytes(out) <= before:
            time.sleep(0.05)
        for engine in alive if process.poll() is None else ():
            known.add(engine)
            yield engine
        time.sleep(0.05)


def engines_of(process_id: int) -> list[int]:
    command = ["pgrep", "-P", str(process_id), "-f", "factory.teachers.engine.process"]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()]


def spooled_bytes(out: Path) -> int:
    total = 0
    for path in (out / ".spool").glob("*.gen"):
        with contextlib.suppress(FileNotFoundError):  # a segment goes when all of it is committed
            total += path.stat().st_size
    return total
