"""Jobs for the real engine on CPU, and their finished datasets as plain values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_task
from random_teacher import random_teacher

from factory.dataset.entries import Totals
from factory.dataset.ledger import read_ledger
from factory.dataset.manifest import read_manifest
from factory.dataset.shards import read_batches
from factory.dataset.signal_columns import decode_states
from factory.job.job import Job
from factory.runs.run import run


def engine_job(**sections: Any) -> Job:
    """A job over `adding` with a random teacher in float32, so that numbers can be compared closely."""
    job: dict[str, Any] = {
        "out": "out",
        "shard_rows": 8,
        "teacher": {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 16},
        "sampling": {"temperature": 1.0},
        "signals": {"top_k": 20, "hidden_layers": [0, 2, -1]},
        "validation": {"gate": "schema"},
        "tasks": [{"name": "adding", "count": 24}],
    }
    job |= sections
    job["signals"] = {"verify_rows": 0} | job["signals"]  # tests compare every row themselves
    return Job.model_validate(job)


@dataclass(frozen=True)
class Dataset:
    """A finished run, its rows as plain values."""

    out: Path
    totals: Totals

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.out)

    def rows(self, folder: str = "data") -> list[dict[str, Any]]:
        shards = sorted(read_ledger(self.out).entries)
        paths = [self.out / folder / f"train-{shard:05d}.parquet" for shard in shards]
        return [row for path in paths for batch in read_batches(path) for row in batch.to_pylist()]

    def states(self) -> dict[str, np.ndarray]:
        """Hidden states as float32 [N, L, H], by row id."""
        bits = {row["id"]: decode_states(row["states"], row["shape"]) for row in self.rows("hidden_states")}
        return {name: (value.astype(np.uint32) << 16).view(np.float32) for name, value in bits.items()}


def make_dataset(folder: Path, job: Job) -> Dataset:
    write_task(folder)
    out = folder / "dataset"
    return Dataset(out, run(job, folder, out))
