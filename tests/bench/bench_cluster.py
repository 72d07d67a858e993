"""What a cluster's driver costs: its own code over workers that do nothing, so that a thousand fit into one process.

    python tests/bench/bench_cluster.py [--shards N] [--lines N] [--ray W ... [--tps N] [--rows N]]

The driver, the leases, the delivery and the ledger are the real ones; a worker answers at once with the entry of a
shard whose files are empty. Processor time is the driver's alone: what the stand-ins take is not counted, and Ray's
calls are not there. A ledger of many lines is made as one of so many shards would be.

With `--ray` a real cluster of this machine instead: so many workers, whose teacher sleeps as long as its tokens would
take; rows a second from when all are at work until the last shards. For docs/scale.md.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from cluster_support import start_cluster
from conftest import write_task

from factory.dataset.entries import ShardEntry
from factory.dataset.ledger import Ledger, read_ledger, write_ledger
from factory.dataset.shards import shard_path
from factory.dataset.stages import current_summary
from factory.job.job import Job
from factory.publish.card import save_card
from factory.runs.cluster import Driver
from factory.runs.nodes import Needs
from factory.runs.prepare import Prepared, prepare
from factory.runs.progress import Reporter
from factory.runs.run import run_prepared
from factory.runs.worker import Setup, Told, Worker

ROWS = 256  # of a shard


class Idle:
    """A worker that has made a shard as soon as it is asked."""

    def __init__(self, setup: Setup, entry: ShardEntry) -> None:
        self.home = setup.out / ".workers" / setup.name
        self.entry = entry
        self.queue: list[int] = []

    def step(self, shards: list[int], committed: list[int]) -> list[Told]:
        self.queue += shards
        if not self.queue:
            return []
        number = self.queue.pop(0)
        files = []
        for file in self.entry.files:
            name = shard_path(file.path.split("/")[0], number)
            (self.home / name).parent.mkdir(parents=True, exist_ok=True)
            (self.home / name).touch()
            files.append(replace(file, path=name))
        return [Told(replace(self.entry, shard=number, files=tuple(files)), 100_000)]


class Stand:
    """Nodes with so many workers; `spent` is the processor time of the stand-ins, to be taken off."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.spent = 0.0
        self.calls = 0
        self.first: tuple[dict[str, Any], dict[str, Any], ShardEntry] | None = None

    def rooms(self, needs: Needs) -> dict[str, int]:
        return {str(number): 8 for number in range(max(1, self.workers // 8))}

    def totals(self) -> dict[str, float]:
        return {"CPU": float(self.workers), "GPU": 0.0}

    def start(self, setup: Setup, node: str, needs: Needs) -> Any:
        began = time.process_time()
        if self.first is None:
            # a real one says what workers say, and makes one shard
            worker = Worker(setup)
            greeting = worker.greet()
            assert worker.prepared is not None
            plan = worker.prepared.plan.records()
            described = worker.open("", None, plan, [], 0)
            entry = worker.step([0], [])[0].entry
            worker.close()
            self.first = greeting, described, entry
        made = Idle(setup, self.first[2])
        self.spent += time.process_time() - began
        return made

    def call(self, actor: Idle, method: str, *given: Any) -> "Answer":
        assert self.first is not None
        self.calls += 1
        began = time.process_time()
        answers: dict[str, Callable[[], Any]] = {
            "greet": lambda: self.first and self.first[0],
            "open": lambda: self.first and self.first[1],
            "step": lambda: actor.step(*given),
        }
        answer = Answer(answers[method]())
        self.spent += time.process_time() - began
        return answer

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        return list(calls)

    def get(self, call: Any) -> Any:
        return call.answer

    def kill(self, actor: Idle) -> None:
        pass


class Answer:
    """What a call came to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer


def prepare_job(workspace: Path, shards: int) -> Prepared:
    job = {
        "out": "out",
        "shard_rows": ROWS,
        "teacher": {"backend": "scripted"},
        "signals": {"top_k": 4, "hidden_layers": [-1]},
        "tasks": [{"name": "questions", "count": shards * ROWS}],
    }
    return prepare(Job.model_validate(job), workspace)


def drive(out: Path, workers: int, shards: int) -> dict[str, float]:
    """Processor and wall seconds of a driver over so many shards."""
    nodes, taken = Stand(workers), {}

    def make(prepared: Prepared, manifest: dict[str, Any], ledger: Ledger, reporter: Reporter) -> None:
        began, wall = time.process_time(), time.monotonic()
        Driver(prepared, manifest, ledger, reporter, nodes).run()  # type: ignore[arg-type]
        taken.update(cpu=time.process_time() - began - nodes.spent, wall=time.monotonic() - wall)

    run_prepared(prepare_job(out.parent, shards), out, make=make)
    each = {f"{name}_ms": 1e3 * seconds / shards for name, seconds in taken.items()}
    return {"workers": workers, "shards": shards} | each


def weigh_ledger(out: Path, lines: int) -> dict[str, float]:
    """What a ledger of so many lines takes: bytes, and seconds to read, to write and to name in the card."""
    ledger = read_ledger(out)
    entry = ledger.entries[0]
    entries = {number: replace(entry, shard=number) for number in range(lines)}
    plan = ledger.plan | {"shards": lines, "planned": lines * entry.planned}
    took: dict[str, float] = {"lines": lines}

    def clock(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        done = work()
        took[name] = time.process_time() - began
        return done

    clock("write_s", lambda: write_ledger(out, plan, entries))
    took["bytes_a_line"] = (out / "ledger.jsonl").stat().st_size / lines
    whole = clock("read_s", lambda: read_ledger(out))
    clock("card_s", lambda: save_card(whole, current_summary(whole)))
    return took


SLOW = """
out = "out"
shard_rows = 8
[teacher]
backend = "scripted"
in_flight = 8
scripted = {{ tokens_per_second = {tps} }}
[cluster]
workers = {workers}
[signals]
top_k = 4
[[tasks]]
name = "adding"
count = {rows}
"""


def race(folder: Path, workers: int, rows: int, tps: int) -> dict[str, float]:
    """Rows a second of so many workers on a real cluster."""
    write_task(folder)
    (folder / "job.toml").write_text(SLOW.format(workers=workers, rows=rows, tps=tps), encoding="utf-8")
    times: list[float] = []
    with start_cluster(1, cpus=workers) as (cluster, _):
        command = [sys.executable, "-m", "factory.cli", "run", "job.toml", "--ray", cluster.address, "--log-json"]
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
        assert process.stderr is not None
        ready = 0
        for line in process.stderr:
            ready += '"event": "worker"' in line
            if '"event": "shard"' in line and ready == workers:
                times.append(time.monotonic())
        process.wait()
    # the last shards are shared out: not all workers have one
    steady = times[: len(times) - 4 * workers]
    rate = 8 * (len(steady) - 1) / (steady[-1] - steady[0])
    return {"workers": workers, "rows": rate, "shards": float(len(steady))}


def race_all(numbers: Sequence[int], rows: int, tps: int) -> None:
    print("| workers | rows/s | of linear |\n|---:|---:|---:|")
    first = 0.0
    for workers in numbers:
        with tempfile.TemporaryDirectory() as folder:
            told = race(Path(folder), workers, workers * rows, tps)
        each = told["rows"] / workers
        first = first or each
        print(f"| {workers} | {told['rows']:.2f} | {each / first:.3f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--ray", type=int, nargs="*", default=[], metavar="W", help="workers of a real cluster")
    parser.add_argument("--tps", type=int, default=400, help="tokens a second of each of them")
    parser.add_argument("--rows", type=int, default=400, help="rows for each of them")
    options = parser.parse_args(arguments)
    if options.ray:
        race_all(options.ray, options.rows, options.tps)
        return
    print("| workers | shards | driver, processor ms a shard | wall ms a shard |\n|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for workers in (8, 100, 1000):
            out = Path(folder) / f"of-{workers}" / "out"
            out.parent.mkdir()
            told = drive(out, workers, options.shards)
            print("| {workers:,} | {shards:,} | {cpu_ms:.2f} | {wall_ms:.2f} |".format(**told), flush=True)
        told = weigh_ledger(out, options.lines)
        print(
            "\n{lines:,} lines: {bytes_a_line:,.0f} bytes each; processor time to read {read_s:.1f} s, to write "
            "{write_s:.1f} s, for the card {card_s:.1f} s".format(**told)
        )


if __name__ == "__main__":
    main()
