"""The same job makes the same plan, prompts and bytes under every hash seed, time zone, locale and depth of feed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dataset_support import read_table, read_tree

TASKS = (
    *("assistant_actions", "conversation_memory", "emotional_support", "photo_edits", "proactive", "questions"),
    *("scheduling", "stories", "summarization", "travel_booking"),
)
JOB = """
out = "out"
seed = 11
shard_rows = {shard_rows}
[teacher]
backend = "scripted"
in_flight = {in_flight}
[teacher.scripted]
bad_json = 0.1
truncated = 0.1
wrong = 0.1
[validation]
retries = 1
[signals]
top_k = 4
hidden_layers = [-1]
"""
SCRIPT = """
import json
from dataclasses import asdict
from pathlib import Path
from factory.job.job import load_job
from factory.runs.prepare import prepare
from factory.runs.run import run

job = load_job(Path("job.toml"))
prepared = prepare(job, Path())
rows = [row for shard in range(prepared.plan.shards) for row in prepared.plan.rows(shard)]
planned = [[row.task, row.level, row.number, row.seed] for row in rows]
prompts = [asdict(prepared.render(row)) for row in rows]
for prompt in prompts:
    del prompt["shard"], prompt["position"]
Path("told.json").write_bytes(json.dumps({"planned": planned, "prompts": prompts}).encode())
run(job, Path(), Path("out"))
"""
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TURKISH = {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "LANGUAGE": "tr", "PYTHONUTF8": "0"}
# name: shard_rows, in_flight, environment
VARIANTS: dict[str, tuple[int, int, dict[str, str]]] = {
    "plain": (10, 8, {"PYTHONHASHSEED": "0", "TZ": "UTC"}),
    "ascii": (10, 1, {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu"} | ASCII),
    "turkish": (7, 64, {"PYTHONHASHSEED": "4294967295", "TZ": "America/St_Johns"} | TURKISH),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each variant, where the same job over all built-in tasks was told and run; all at once."""
    folders = {name: tmp_path_factory.mktemp(name) for name in VARIANTS}
    processes = [start(folders[name], *variant) for name, variant in VARIANTS.items()]
    for process in processes:
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told
    return folders


def start(folder: Path, shard_rows: int, in_flight: int, environment: dict[str, str]) -> "subprocess.Popen[str]":
    tasks = "".join(f'[[tasks]]\nname = "{name}"\ncount = 6\n' for name in TASKS)
    text = JOB.format(shard_rows=shard_rows, in_flight=in_flight) + tasks
    (folder / "job.toml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.Popen(command, cwd=folder, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


def told(folder: Path) -> Any:
    return json.loads((folder / "told.json").read_text(encoding="utf-8"))


def test_the_plan_and_every_prompt_are_the_same_everywhere(runs: dict[str, Path]) -> None:
    plain = told(runs["plain"])
    assert len(plain["prompts"]) == len({prompt["id"] for prompt in plain["prompts"]}) == 6 * len(TASKS)
    assert {task for task, *_ in plain["planned"]} == set(TASKS)
    for name in VARIANTS:
        assert told(runs[name]) == plain, name


def test_a_run_leaves_the_same_bytes_under_another_locale_and_depth_of_feed(runs: dict[str, Path]) -> None:
    but = ("runs.jsonl", ".lock", "job.toml")  # times, a process, and `in_flight` as the user wrote it
    plain = read_tree(runs["plain"] / "out", but)
    assert {"data/train-00002.parquet", "hidden_states/train-00000.parquet", "README.md"} <= plain.keys()
    assert read_tree(runs["ascii"] / "out", but) == plain


@pytest.mark.parametrize("config", ["data", "rejected", "hidden_states"])
def test_other_shards_hold_the_same_rows_in_the_same_order(runs: dict[str, Path], config: str) -> None:
    rows = read_table(runs["plain"] / "out", config)
    assert rows
    assert read_table(runs["turkish"] / "out", config) == rows
