"""Rows of a dataset in an object store are those of the same dataset on a disk."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from s3_support import Gate, connection, new_url

from factory.dataset.object_store import ObjectStore
from factory.errors import DatasetError
from factory.job.job import Job
from factory.load import load_rows
from factory.runs.prepare import prepare
from factory.runs.run import run, run_prepared


def test_rows_are_read_where_they_are(
    gate: Gate, workspace: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    # tests never ask the hub; where that is said, `datasets` asks nobody else for files to copy either
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    job, url = make_job(), new_url()
    run(job, workspace, workspace / "here")
    run_prepared(prepare(job, workspace), workspace / "work", store=ObjectStore(url, False, connection()))
    here = list(load_rows(workspace / "here", streaming=True, join_hidden_states=True))
    for streaming in (True, False):
        there = list(load_rows(str(url), streaming=streaming, join_hidden_states=True, cache_dir=workspace / "cache"))
        assert [row["id"] for row in there] == [row["id"] for row in here]
        assert all(np.array_equal(a["topk_ids"], b["topk_ids"]) for a, b in zip(here, there, strict=True))
        for one, other in zip(here, there, strict=True):
            assert torch.equal(one["hidden_states"].view(torch.int16), other["hidden_states"].view(torch.int16))
    plain = datasets.load_dataset("parquet", data_files=f"{url}/data/*.parquet", split="train", streaming=True)
    assert [row["id"] for row in plain] == [row["id"] for row in here]
    with pytest.raises(DatasetError, match=r"config 'stage-1', split 'train' .*\(has: default, hidden_states"):
        load_rows(str(url), "stage-1")
    with pytest.raises(DatasetError, match="an object store has no revision 'main'; leave out `revision`"):
        load_rows(str(url), revision="main")
    with pytest.raises(DatasetError, match=r"not-there: no manifest.json, so not a dataset of the factory"):
        load_rows(f"s3://{url.bucket}/not-there")
