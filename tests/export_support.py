"""Datasets by the scripted teacher to export, and readers that follow what each trainer's own reader does."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from factory.job.job import Job
from factory.publish.exporting import export
from factory.publish.exports.asked import Asked
from factory.runs.run import run

MakeJob = Callable[..., Job]
SEVERAL = {"tasks": [{"name": "adding", "count": 12}], "shard_rows": 5}
WRONG = {"backend": "scripted", "scripted": {"wrong": 0.4, "bad_json": 0.2}}
PAIRS = {"teacher": WRONG, "samples": {"n": 4, "keep": "pair"}}
STATES = {"signals": {"top_k": 4, "hidden_layers": [1, 2, 3, -1], "final_norm": False}}


def make_dataset(workspace: Path, make_job: MakeJob, name: str = "data", **sections: Any) -> Path:
    """A whole dataset of the task `adding`."""
    out = workspace / name
    run(make_job(**{**SEVERAL, **sections}), workspace, out)
    return out


def export_to(root: Path, out: Path, to: str, **options: Any) -> list[str]:
    return export(root, out, Asked(to=to, **options))


def read_export(out: Path) -> list[dict[str, Any]]:
    """The rows of an export, in order."""
    if files := sorted(out.glob("data/train-*.parquet")):
        return [row for path in files for row in pq.read_table(path).to_pylist()]
    from datasets import load_from_disk

    return list(load_from_disk(out).with_format(None))


def rewards(folder: Path, row: dict[str, Any], texts: Sequence[str]) -> list[float]:
    """What the reward in an export for verl gives for each text, in a process of its own as verl's is."""
    script = (
        "import json, sys; from reward import compute_score as score; row = json.loads(sys.argv[1])\n"
        "print([score(row['data_source'], text, row['reward_model']['ground_truth']) for text in sys.argv[2:]])"
    )
    command = [sys.executable, "-c", script, json.dumps(row), *texts]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def softmax_student(seed: int, tokens: int, vocab: int) -> np.ndarray[Any, Any]:
    """Log-probabilities of some model at every position, float64 [tokens, vocab]."""
    logits = np.random.default_rng(seed).standard_normal((tokens, vocab)) * 2
    logprobs: np.ndarray[Any, Any] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return logprobs


def kl_renormalised(row: dict[str, Any], student_SV: np.ndarray[Any, Any], shift: int = 0) -> float:
    """axolotl's forward KL: at each index the target there with the student there, both renormalised over the k ids.

    Its normaliser runs over all k ids, masked or not; its sum over those whose mask is 1. `shift` moves the targets.
    """
    ids, logprobs, mask = (np.array(row[f"target_{name}"]) for name in ("token_ids", "logprobs", "mask"))
    ids, logprobs, mask = (np.roll(values, shift, 0) for values in (ids, logprobs, mask))
    student = np.take_along_axis(student_SV, ids, 1)
    student = student - np.log(np.exp(student).sum(1, keepdims=True))
    kept = mask.astype(bool)
    return float((np.exp(logprobs[kept]) * (logprobs[kept] - student[kept])).sum() / kept.sum())


def kl_zero(row: dict[str, Any], student_SV: np.ndarray[Any, Any]) -> float:
    """DistillKit's sparse KL with `zero`: the teacher renormalised over the k ids, the student as it is."""
    ids, values, labels = (np.array(row[name]) for name in ("token_ids", "top_values", "labels"))
    valid = labels >= 0
    teacher = values - np.log(np.exp(values).sum(1, keepdims=True))
    inner = (np.exp(teacher) * (teacher - np.take_along_axis(student_SV, ids, 1))).sum(1)
    # multiplied, as theirs: a masked infinity would be NaN
    return float((inner * valid).sum() / valid.sum())
