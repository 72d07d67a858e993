"""Outcomes made by hand, whole datasets made by the scripted teacher, and ways to look at and damage a directory."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.dataset.ledger import Ledger, hold, open_ledger
from factory.dataset.manifest import seal
from factory.hashing import canonical_json
from factory.messages import Message
from factory.records import Generation, Outcome, Prompt, Record, Rejection, Sampling
from factory.signals import HiddenStates, Logprobs, SignalSpec


@contextmanager
def held_ledger(out: Path, plan: dict[str, Any], manifest: dict[str, Any]) -> Iterator[Ledger]:
    """The ledger of a directory that is held meanwhile, as `run` has it."""
    with hold(out):
        yield open_ledger(out, plan, manifest)


SIGNALS = SignalSpec(top_k=3, layers=(1, 4))
MADE_AGAIN = "; `factory run JOB --repair` makes it again"  # behind what `verify` tells of a damaged file
FACTORY = [sys.executable, "-m", "factory.cli"]
JOB = """
out = "out"
shard_rows = {shard_rows}
[teacher]
backend = "scripted"
{teacher}
[signals]
top_k = 4
hidden_layers = [2, -1]
{sections}
[[tasks]]
name = "adding"
count = {count}
"""


def make_prompt(number: int, **changed: Any) -> Prompt:
    messages: tuple[Message, ...] = ({"role": "user", "content": f"question {number}"},)
    values: dict[str, Any] = {
        "id": f"id{number}",
        "shard": 0,
        "position": number,
        "task": "adding",
        "level": "easy",
        "messages": messages,
        "scenario": '{"a":1}',
        "seed": 100 + number,
        "sampling": Sampling(),
    }
    return Prompt(**(values | changed))


def make_generation(number: int, signals: SignalSpec = SIGNALS, hidden: int = 8, **changed: Any) -> Generation:
    """2 prompt tokens and `number % 4 + 1` completion tokens, with the signals asked for."""
    rng, tokens = np.random.default_rng(number), number % 4 + 1
    bits_NLH = rng.integers(1, 2**14, (tokens + 1, len(signals.layers), hidden)).astype(np.uint16)
    logprobs = Logprobs(
        sampled_T=-rng.random(tokens, np.float32),
        topk_ids_TK=rng.integers(0, 99, (tokens, signals.top_k)).astype(np.int32),
        topk_TK=-rng.random((tokens, signals.top_k)).astype(np.float16),
        tail_T=-rng.random(tokens, np.float32),
        entropy_T=rng.random(tokens, np.float32),
    )
    values: dict[str, Any] = {
        "prompt_id": f"id{number}",
        "attempt": 0,
        "text": "why</think>{}",
        "reasoning": "why",
        "answer_text": "{}",
        "prompt_token_ids": np.array([7, number], np.int32),
        "completion_token_ids": np.arange(tokens, dtype=np.int32),
        "answer_start": 0,
        "finish_reason": "stop",
        "logprobs": logprobs if signals.top_k else None,
        "hidden_states": HiddenStates(signals.layers, bits_NLH) if signals.layers else None,
    }
    return Generation(**(values | changed))


def make_record(number: int, signals: SignalSpec = SIGNALS, **changed: Any) -> Record:
    return Record(make_prompt(number), make_generation(number, signals, **changed), '{"total":1}', 1.0)


def make_rejection(number: int, signals: SignalSpec = SIGNALS, kind: Any = "rejected") -> Rejection:
    generation = make_generation(number, signals)
    return Rejection(make_prompt(number), generation, "check", "wrong_total", ("wrong_total: 3",), kind)


def some_outcomes(first: int = 0) -> list[Outcome]:
    """Three accepted rows, a rejected one and an error."""
    records = [make_record(first + i) for i in range(3)]
    return [*records, make_rejection(first + 3), make_rejection(first + 4, kind="error")]


def write_job(
    folder: Path, count: int = 20, shard_rows: int = 8, teacher: str = "", sections: str = "", name: str = "job.toml"
) -> Path:
    """A job file over the task `adding` and the scripted teacher."""
    path = folder / name
    text = JOB.format(count=count, shard_rows=shard_rows, teacher=teacher, sections=sections)
    path.write_text(text, encoding="utf-8")
    return path


def start_factory(*arguments: object, cwd: Path, stderr: Any = subprocess.PIPE) -> "subprocess.Popen[str]":
    """A real `factory` process."""
    command = [*FACTORY, *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ.copy())


def read_tree(folder: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of every file under a folder, by relative path; folders stand with an empty digest."""
    tree = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name not in but:
            tree[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return tree


def read_table(out: Path, config: str) -> list[dict[str, Any]]:
    """All rows of one config, in the order of their files."""
    return [row for path in sorted((out / config).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def read_ledger_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]


def change_line(out: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite one line of a ledger (0 is the plan) after `change` has altered its value, with the right checksum."""
    lines = read_ledger_lines(out)
    change(lines[number])
    text = "".join(canonical_json(seal(line)) + "\n" for line in lines)
    (out / "ledger.jsonl").write_text(text, encoding="utf-8")


def forge_text(path: Path, column: str = "text") -> None:
    """Change one letter of the first row's text: the file is read as before, and is not what was written."""
    table = pq.read_table(path)
    first, *others = table.column(column).to_pylist()
    forged = pa.array([first[:-1] + ("~" if first[-1] != "~" else "^"), *others], table.schema.field(column).type)
    pq.write_table(table.set_column(table.column_names.index(column), table.schema.field(column), forged), path)


def flip_in_column(path: Path, column: str) -> None:
    """Flip a bit in the middle of what a column takes in the first row group."""
    group = pq.read_metadata(path).row_group(0)
    chunk = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == column)
    flip_byte(path, (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size // 2)


def flip_byte(path: Path, offset: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def outcomes_by_folder(out: Path) -> Iterator[tuple[str, int]]:
    """Rows in each config's folder."""
    for folder in ("data", "rejected", "hidden_states"):
        yield folder, len(read_table(out, folder))
