"""Exports of a large scripted dataset: rows and positions a second and the most memory, one process each.

    python tests/bench/exports.py [FOLDER] [SHARDS]      prints the table of docs/benchmarks.md#exports

A shard of 1,000 rows is made by the scripted teacher and committed SHARDS times: an export reads as much as it would of
so many different ones. Hidden states weigh most, so of those a tenth as many.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

JOB = """
out = "{out}"
shard_rows = 1000
[teacher]
backend = "scripted"
scripted = {{ wrong = 0.1 }}
[signals]
top_k = 20
{signals}
[[tasks]]
name = "adding"
count = 1000
"""
STATES = "hidden_layers = [1, 2, 3, -1]\nfinal_norm = false"
FORMATS = {
    "trl-sft": [],
    "trl-gkd": [],
    "kto": [],
    "messages": [],
    "verl-rl": [],
    "parquet-text": [],
    "axolotl-kd": [],
    "tinker": [],
    "distillkit": ["--length", "4096", "--pack"],
    "speculators": [],
    "modelopt": [],
}


def make_dataset(folder: Path, name: str, signals: str, shards: int) -> Path:
    """A dataset of so many shards of 1,000 rows."""
    from factory.dataset.ledger import read_ledger, write_ledger

    data = folder / name
    (folder / f"{name}.toml").write_text(JOB.format(out=data, signals=signals))
    command = [sys.executable, "-m", "factory.cli", "--workspace", str(folder), "run", str(folder / f"{name}.toml")]
    subprocess.run([*command, "--out", str(data)], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    ledger = read_ledger(data)
    entries = {}
    for shard in range(shards):
        files = []
        for file in ledger.entries[0].files:
            path = file.path.replace("00000", f"{shard:05d}")
            if shard:
                shutil.copyfile(data / file.path, data / path)
            files.append(replace(file, path=path))
        entries[shard] = replace(ledger.entries[0], shard=shard, files=tuple(files))
    write_ledger(data, ledger.plan | {"planned": 1000 * shards, "shards": shards}, entries)
    return data


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and the most memory, in GB, of a process."""
    start = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, command
    return time.perf_counter() - start, used.ru_maxrss / 1e6


def main() -> None:
    folder, shards = Path([*sys.argv, "out/bench-exports"][1]).resolve(), int([*sys.argv, "0", "0"][2]) or 110
    from conftest import write_task

    write_task(folder)
    many = make_dataset(folder, "many", "", shards)
    states = make_dataset(folder, "states", STATES, max(1, shards // 10))
    print("| format | rows | positions | rows/s | positions/s | most memory | written |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, options in FORMATS.items():
        data, out = states if name in ("speculators", "modelopt") else many, folder / "out"
        command = [sys.executable, "-m", "factory.cli", "export", str(data), str(out), "--to", name, *options]
        seconds, memory = measure(command)
        done = json.loads((out / "export.json").read_text())
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e9
        positions = done["positions"] if done["positions"] > done["rows"] else 0
        rates = [f"{done['rows'] / seconds:,.0f}", f"{positions / seconds:,.0f}" if positions else ""]
        cells = [name, f"{done['rows']:,}", f"{positions:,}" if positions else "", *rates]
        print("| " + " | ".join([*cells, f"{memory:.2f} GB", f"{size:.2f} GB"]) + " |", flush=True)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
