"""An engine whose worker lacks the places that capture needs: its own logprobs must do, and what is lost is told.

The one installed has them all, so its process is made to say otherwise.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration_support import Dataset, engine_job, make_dataset
from random_teacher import random_teacher

from factory.checks.fidelity import check_dataset
from factory.checks.verify import verify
from factory.load import load_rows
from factory.teachers.vllm import ENGINE_ENVIRONMENT

pytestmark = pytest.mark.engine
TEACHER = {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 8, "max_model_len": 2048}


LACKING = """
import factory.teachers.engine.capture

factory.teachers.engine.capture.find_missing = lambda runner: ["_sample"]
"""


@pytest.fixture(autouse=True)
def another_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "lacking"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LACKING)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setitem(ENGINE_ENVIRONMENT, "PYTHONPATH", os.pathsep.join(paths))


def generate(folder: Path, **signals: Any) -> Dataset:
    tasks = [{"name": "adding", "count": 6}]
    return make_dataset(folder, engine_job(tasks=tasks, signals=signals, teacher=TEACHER))


def test_top_k_comes_from_the_engine_itself_and_the_loss_is_told(tmp_path: Path) -> None:
    dataset = generate(tmp_path, top_k=24)
    assert list(verify(dataset.out)) == []
    assert "after the grammar's mask" in dataset.manifest["teacher"]["details"]["distribution"]
    assert "after the grammar's mask" in (dataset.out / "README.md").read_text()
    rows = list(load_rows(dataset.out, streaming=True))
    assert len(rows) > 2
    for row in rows:
        assert row.topk_ids.shape == (len(row.completion_token_ids), 24)
        assert (row.topk_logprobs[:, 1:] <= row.topk_logprobs[:, :-1]).all()
        mass = np.exp(row.topk_logprobs.astype(np.float64)).sum(1) + np.exp(row.tail_logprobs.astype(np.float64))
        np.testing.assert_allclose(mass, 1, atol=5e-3)
        at = row.topk_ids == row.completion_token_ids[:, None]
        found = at.any(1)
        np.testing.assert_allclose(row.topk_logprobs[at], row.sampled_logprobs[found], atol=8e-3)
    assert check_dataset(dataset.out, 2)["verdict"] == "not checked"
