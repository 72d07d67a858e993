"""Tensor parallelism as far as two processes on one processor show it: two workers, whole signals."""

import os
from typing import Any

import numpy as np
import pytest
from integration_support import engine_job, make_dataset
from random_teacher import random_teacher

from factory.checks.fidelity import check_dataset
from factory.checks.verify import verify
from factory.load import load_rows

pytestmark = pytest.mark.engine


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core for each worker")
def test_signals_of_two_workers_are_those_of_a_plain_forward(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt positions too: every worker has a part in their logits, whether it keeps them or not."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    teacher: dict[str, Any] = {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 4, "max_model_len": 1024}
    teacher |= {"tensor_parallel_size": 2, "kv_cache_gb": 0.1}
    signals = {"top_k": 5, "positions": "all", "hidden_layers": [0, 2, -1]}
    dataset = make_dataset(
        tmp_path, engine_job(teacher=teacher, signals=signals, tasks=[{"name": "adding", "count": 6}])
    )
    assert dataset.manifest["teacher"]["details"]["settings"]["tensor_parallel_size"] == 2
    assert list(verify(dataset.out)) == []
    rows = list(load_rows(dataset.out, streaming=True))
    assert len(rows) > 3
    assert all(row.prompt is not None and np.isfinite(row.prompt.entropy).all() for row in rows)
    section = check_dataset(dataset.out, 4)
    assert section["verdict"] == "passed", section
