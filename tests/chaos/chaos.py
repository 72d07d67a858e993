"""Chaos: harm runs, datasets and engines in every way at hand, many times, and count what survives.

    python tests/chaos/chaos.py [--kills N] [--malformed N] [--flips N] [--rows N] [--engine-kills N]
                                 [--replica-kills N] [--seed N]

Prints a table of figures and exits with 1 if anything did not survive. A part whose number is 0 is left out.
"""

import argparse
import contextlib
import io
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bad_generations import SIGNALS, adding_gate, make_bad_generations
from chaos_engines import kill_engines, kill_replicas
from chaos_parts import Figures, started_run
from conftest import write_task
from dataset_support import FACTORY, read_tree, write_job

from factory.checks.verify import verify
from factory.dataset.ledger import read_ledger
from factory.dataset.shards import read_batches, write_shard
from factory.job.job import load_job
from factory.records import Outcome, Record
from factory.runs.desk import decide
from factory.runs.run import run

VARIABLE = ("runs.jsonl", ".lock")  # the files that may differ between two equal datasets
FAULTS = "scripted = { bad_json = 0.1, truncated = 0.1, wrong = 0.1, crash = 0.1 }"
RETRIES = "[validation]\nretries = 1"
MENDED_BY_RESUMING = "resume the job, which will write it again"
MOST_MEMORY = 1_000_000_000
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""  # from a small process: a child's peak is at least what its parent held when it was started
LONG_JOB = """
out = "out"
shard_rows = 5000
[teacher]
backend = "scripted"
[signals]
top_k = 0
[[tasks]]
name = "adding"
count = {rows}
"""


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    parts: list[tuple[int, Callable[[Path, int, random.Random], Figures]]] = [
        (options.kills, kill_runs),
        (options.malformed, feed_malformed),
        (options.flips, flip_bytes),
        (options.rows, run_long),
        (options.engine_kills, kill_engines),
        (options.replica_kills, kill_replicas),
    ]
    done = []
    print("| what | tried | survived | |\n|---|---|---|---|", flush=True)
    for number, part in parts:
        if number:
            with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
                started = time.monotonic()
                figures = part(Path(folder), number, random.Random(options.seed))
                print(f"{figures.what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
                print(figures.row(), flush=True)
                done.append(figures)
    for figures in done:
        for fault in figures.faults[:5]:
            print(f"FAILED {figures.what}: {fault}")
    return 0 if all(figures.sound for figures in done) else 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Harm runs, datasets and engines, and count what survives.")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs of a run at a random moment")
    parser.add_argument("--malformed", type=int, default=10_000, help="generations that are bad in every known way")
    parser.add_argument("--flips", type=int, default=200, help="changed bytes in a finished dataset")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of one long run")
    parser.add_argument("--engine-kills", type=int, default=5, help="SIGKILLs of the vLLM engine in one run")
    parser.add_argument("--replica-kills", type=int, default=8, help="SIGKILLs among two replicas and their run")
    parser.add_argument("--seed", type=int, default=0)
    return parser


# --- runs that are killed -------------------------------------------------------------------------------------------


def kill_runs(folder: Path, kills: int, rng: random.Random, rows: int = 1200) -> Figures:
    """SIGKILL the process group of a run at a random moment, resume it, kill it again; compare the final bytes.

    A kill is survived if no process is left, what is committed is sound, and the dataset ends as an undisturbed one.
    """
    figures = Figures(f"SIGKILL of `factory run` at a random moment ({rows:,} rows, 4 faults, retries)")
    write_task(folder)
    write_job(folder, count=rows, shard_rows=50, teacher=FAULTS, sections=RETRIES)
    started = time.monotonic()
    finish_run(folder, "whole")
    duration = time.monotonic() - started
    whole = read_tree(folder / "whole", but=VARIABLE)
    rounds = 0
    while figures.tried < kills:
        out, faults = folder / f"round{rounds}", []
        while (fault := kill_once(folder, out, rng.uniform(0, duration))) is not None:
            faults.append(fault)
            if figures.tried + len(faults) == kills:
                finish_run(folder, out.name)
                break
        same = read_tree(out, but=VARIABLE) == whole
        for fault in faults:
            figures.count(fault or ("" if same else f"{out.name} ends in other bytes"))
        if not same and not faults:
            figures.faults.append(f"{out.name} ends in other bytes, without a kill")
        shutil.rmtree(out)
        rounds += 1
    figures.remark = f"{rounds} datasets, each equal to the undisturbed one byte for byte; no process left"
    return figures


def finish_run(folder: Path, out: str) -> None:
    with started_run(folder, out) as process:
        code = process.wait()
        require(code == 0, f"a run that nobody disturbed ended with {code}")


def kill_once(folder: Path, out: Path, delay: float) -> str | None:
    """What a kill harmed, "" if nothing; None where the run was done before it came."""
    with started_run(folder, out.name) as process:
        try:
            code = process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if code != -signal.SIGKILL:
            require(code == 0, f"a run ended with {code}")
            return None
        if not ends(lambda: group_lives(process.pid), within_s=5):
            return f"a process of group {process.pid} is left"
    if not (out / "ledger.jsonl").exists():
        return ""
    faults = [fault for fault in verify(out) if not fault.endswith(MENDED_BY_RESUMING)]
    return faults[0] if faults else ""


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def ends(lives: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while lives() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not lives()


def require(condition: bool, told: str) -> None:
    if not condition:
        raise SystemExit(f"chaos: {told}")


# --- generations that are bad ---------------------------------------------------------------------------------------


def feed_malformed(folder: Path, count: int, rng: random.Random) -> Figures:
    """Decide bad generations and write them; each must end as it should and be found in Parquet once."""
    figures = Figures("malformed generations through parse, validate and Parquet")
    gate = adding_gate(folder)
    accepted = 0
    made = make_bad_generations(rng.randrange(2**31), count)
    for shard, rows in itertools.groupby(made, key=lambda row: row[0].shard):
        outcomes, faults = [], {}
        for prompt, generation, expected in rows:
            outcome = decide(gate, prompt, generation)
            outcomes.append(outcome)
            end = "accepted" if isinstance(outcome, Record) else f"{outcome.stage}/{outcome.reason}"
            faults[prompt.id] = "" if end in expected.ends else f"{expected.kind} ended as {end}"
        found = write_and_read(folder, shard, outcomes)
        accepted += sum(isinstance(outcome, Record) for outcome in outcomes)
        for name, fault in faults.items():
            figures.count(fault or ("" if found.count(name) == 1 else f"row {name} is in no file or in two"))
    figures.remark = f"{accepted:,} right ones among them accepted; each row once in Parquet; no exception"
    return figures


def write_and_read(folder: Path, shard: int, outcomes: list[Outcome]) -> list[str]:
    """Ids of the accepted and the rejected rows, every column of which could be read."""
    files = write_shard(folder, shard, outcomes, SIGNALS)
    ids: dict[str, list[str]] = {}
    for file in files:
        batches = list(read_batches(folder / file.path))
        ids[file.path.split("/")[0]] = [name for batch in batches for name in batch.column("id").to_pylist()]
        (folder / file.path).unlink()
    require(ids["hidden_states"] == ids["data"], "hidden states are not those of the accepted rows")
    return ids["data"] + ids["rejected"]


# --- bytes that change ----------------------------------------------------------------------------------------------


def flip_bytes(folder: Path, flips: int, rng: random.Random, rows: int = 400) -> Figures:
    """Change one byte anywhere in a finished dataset: verify must name its file, repair must restore every byte."""
    figures = Figures(f"one changed byte in a dataset of {rows:,} rows")
    write_task(folder)
    job = load_job(write_job(folder, count=rows, shard_rows=16, teacher=FAULTS))
    out = folder / "out"
    run(job, folder, out)
    whole = read_tree(out, but=VARIABLE)
    names = sorted(name for name in whole if name.endswith((".parquet", ".jsonl", "manifest.json")))
    for _ in range(flips):
        name = rng.choice(names)
        where = flip_random_byte(out / name, rng)
        if not any(name in fault for fault in verify(out)):
            figures.count(f"{name} {where} was not named")
            continue
        with contextlib.redirect_stderr(io.StringIO()):
            run(job, folder, out, mend=True)
        restored = read_tree(out, but=VARIABLE) == whole and not list(verify(out))
        figures.count("" if restored else f"{name} {where} was not restored")
    figures.remark = f"in {len(names)} files (Parquet, ledger, manifest): each named, each repaired byte for byte"
    return figures


def flip_random_byte(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    offset, mask = rng.randrange(len(data)), rng.randrange(1, 256)
    data[offset] ^= mask
    path.write_bytes(data)
    return f"at {offset} by {mask:#04x}"


# --- a long run -----------------------------------------------------------------------------------------------------


def run_long(folder: Path, rows: int, rng: random.Random) -> Figures:
    """One long run in little memory; then status, and verify."""
    figures = Figures(f"rows of one run within {MOST_MEMORY / 1e9:g} GB", tried=rows)
    write_task(folder)
    (folder / "job.toml").write_text(LONG_JOB.format(rows=rows), encoding="utf-8")
    ran, status, verified = (
        measure(folder, *command) for command in (("run", "job.toml"), ("status", "out"), ("verify", "out"))
    )
    for name, (code, _, memory) in {"run": ran, "status": status, "verify": verified}.items():
        if code or memory > MOST_MEMORY:
            figures.faults.append(f"{name}: exit code {code}, {memory / 1e6:.0f} MB")
    totals = read_ledger(folder / "out").totals
    figures.survived = totals.accepted + totals.rejected + totals.errors
    figures.remark = (
        f"{rows / ran[1]:,.0f} rows/s, at most {ran[2] / 1e6:.0f} MB; `factory status` {status[1]:.2f} s, "
        f"`factory verify` {verified[1]:.0f} s and {verified[2] / 1e6:.0f} MB"
    )
    return figures


def measure(folder: Path, *arguments: str) -> tuple[int, float, int]:
    """Exit code, seconds and peak of resident memory in bytes of one command."""
    started = time.monotonic()
    command = [sys.executable, "-c", MEASURE, *FACTORY, *arguments]
    code, kilobytes = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    return int(code), time.monotonic() - started, int(kilobytes) * 1024


if __name__ == "__main__":
    sys.exit(main())
