"""The student's trainer as a user runs it: from a dataset on disk to a model, with stages and an on-policy round."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from factory.load import load_rows

pytestmark = [pytest.mark.engine, pytest.mark.long]
ROOT = Path(__file__).parents[2]
JOB = {
    "out": "data",
    "signals": {"top_k": 8, "hidden_layers": [-1], "hidden_positions": "completion", "verify_rows": 0},
    "tasks": [{"name": "photo_edits", "count": 12, "levels": {"easy": 1, "medium": 0, "hard": 0}}],
}


def start(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dataset_becomes_a_student_that_answers_and_is_corrected(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(tomli_w.dumps(JOB))
    start(tmp_path, "-m", "factory.cli", "run", "job.toml")
    start(tmp_path, "-m", "factory.cli", "curriculum", "data")
    train = str(ROOT / "docs/examples/train_student/train.py")
    options = ["--hidden", "--stages", "stage-1", "stage-2", "stage-3", "--steps", "30", "--rounds", "1"]
    told = start(tmp_path, train, "data", "student", *options)
    losses = [float(line.split(": ")[1]) for line in told.splitlines() if line.startswith("step ")]
    assert len(losses) == 6  # each tenth step of 30, and of the round's 30
    assert losses[2] < losses[0]
    assert (tmp_path / "student/model/model.safetensors").is_file()
    answers = [json.loads(line) for line in (tmp_path / "student/round-0.jsonl").read_text().splitlines()]
    asked = load_rows(tmp_path / "data", "stage-3")
    assert len(answers) == len(asked)
    own = load_rows(tmp_path / "student/round-0")
    for row, answer in zip(own, answers, strict=True):
        assert row.completion_token_ids.tolist() == answer["completion_token_ids"]
        assert row.topk_ids is not None
        assert row.topk_ids.shape == (len(answer["completion_token_ids"]), 20)
