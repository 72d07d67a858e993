"""Chaos behind an endpoint: thousands of rows through a server that fails in every way, and an account that must agree.

    python tests/chaos/chaos_endpoint.py [--rows N] [--seed N]

Prints a row of the table that chaos.py prints, and exits with 1 if a row was lost or a token miscounted.
"""

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos_parts import Figures
from conftest import write_task
from remote_support import remote_job, rows_of
from scripted_endpoint import ScriptedEndpoint, serving, shares

from factory.checks.verify import verify
from factory.runs.run import run
from factory.teachers.remote.purse import read_account

FAULTS = {"500": 0.01, "503": 0.01, "cut_json": 0.01, "half_closed": 0.01, "no_choices": 0.01, "no_ids": 0.01}
FAULTS |= {"shapeless": 0.005, "no_usage": 0.005, "filtered": 0.005, "other_model": 0.002, "429_after": 0.001}
AT_ONCE = 48


def ask_endpoint(folder: Path, rows: int, rng: random.Random) -> Figures:
    """A whole run of so many rows; a row survives if it ended once, as what it was answered with."""
    figures = Figures(f"rows asked of an endpoint that fails in {len(FAULTS)} ways and bears {AT_ONCE} at once")
    write_task(folder)
    out = folder / "out"
    endpoint = ScriptedEndpoint(most_at_once=AT_ONCE, latency_s=lambda: rng.expovariate(40))
    drawn = shares(rng.randrange(2**31), **FAULTS)
    endpoint.faults = lambda number, body: drawn(number, body) if number > 4 else ""  # the probe is left alone
    began = time.monotonic()
    with serving(endpoint), contextlib.redirect_stderr(io.StringIO()):
        more = {"endpoint": {"retries": 10, "concurrency": 256, "timeout_s": 60}}
        totals = run(remote_job(endpoint, rows, more, shard_rows=500), folder, out)
    seconds = time.monotonic() - began
    every = [*rows_of(out), *rows_of(out, "rejected")]
    seen = Counter(row["id"] for row in every)
    for row in seen:
        figures.count("" if seen[row] == 1 else f"row {row} stands there {seen[row]} times")
    figures.faults += list(verify(out))
    if len(seen) != rows or totals.errors or totals.left:
        figures.faults.append(f"{len(seen)} of {rows} rows, {totals.errors} errors, {totals.left} left")
    figures.faults += compare_accounts(out, endpoint)
    refused = endpoint.statuses[429] / max(1, endpoint.statuses[200])
    figures.remark = f"{totals.accepted:,} accepted, {sum(totals.reasons.values()):,} rejected with a reason; "
    figures.remark += f"{endpoint.statuses[429]:,} refusals for speed ({refused:.0%}), {rows / seconds:,.0f} rows/s; "
    figures.remark += "tokens counted = tokens charged, what was cut off as a bound"
    return figures


def compare_accounts(out: Path, endpoint: ScriptedEndpoint) -> list[str]:
    """Where the run's account is not the endpoint's: what is sure is less or equal, with what is doubtful no less."""
    account, _ = read_account(out / "usage.jsonl")
    most, billed = account.used + account.doubtful, endpoint.billed
    pairs = [(account.used.prompt, billed.prompt, most.prompt)]
    pairs += [(account.used.completion, billed.completion, most.completion)]
    faults = [f"{low:,} <= {told:,} <= {high:,} does not hold" for low, told, high in pairs if not low <= told <= high]
    whole = sum(endpoint.answered.values())
    # an answer that came whole and counted is sure: those that were cut off or told no count are the doubtful ones
    if account.requests > whole or account.requests + account.unanswered < whole:
        faults.append(f"{account.requests:,} requests counted, {whole:,} answered whole")
    return faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rows through an endpoint that fails in every way.")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        figures = ask_endpoint(Path(folder), options.rows, random.Random(options.seed))
    print(figures.row(), flush=True)
    for fault in figures.faults[:5]:
        print(f"FAILED {figures.what}: {fault}")
    return 0 if figures.sound else 1


if __name__ == "__main__":
    sys.exit(main())
