"""Loops on the real engine: stopped by vLLM's own rule in whichever part of a row, and told in the row's rejection."""

from pathlib import Path
from typing import Any

import pytest
from integration_support import Dataset, engine_job, make_dataset
from random_teacher import random_teacher

from factory.records import Repetition
from factory.teachers.scripted import find_loop_end

pytestmark = pytest.mark.engine
RULE = {"max_pattern_size": 6, "min_pattern_size": 1, "min_count": 2}
# a random model that takes the likeliest token says one twice in a row sooner or later
GREEDY = {"temperature": 0.0, "max_tokens": 400}


def make(folder: Path, reasoning: Any, **sampling: Any) -> Dataset:
    job = engine_job(
        teacher={"model": random_teacher(), "dtype": "float32", "max_num_seqs": 8, "reasoning": reasoning},
        sampling=GREEDY | sampling,
        signals={"top_k": 5, "hidden_layers": [2]},
        validation={"gate": "schema", "constrain": False},
        tasks=[{"name": "adding", "count": 8}],
    )
    return make_dataset(folder, job)


@pytest.mark.parametrize(
    "reasoning", ["auto", pytest.param({"start": "<reason>", "end": "</reason>"}, marks=pytest.mark.sweep)]
)
def test_a_loop_is_stopped_and_its_row_says_so(tmp_path: Path, reasoning: Any) -> None:
    """In one request, and where the reasoning is a request of its own."""
    dataset = make(tmp_path, reasoning, stop_repetition=RULE)
    looped = [row for row in dataset.rows("rejected") if row["reason"] == "repetition"]
    assert len(looped) >= 4
    for row in looped:
        ids = row["completion_token_ids"]
        assert (row["stage"], row["finish_reason"]) == ("teacher", "repetition")
        assert len(ids) < GREEDY["max_tokens"]
        # read backwards, the loop stands at the beginning, and at no other place is there one before
        assert (find_loop_end(ids[::-1], Repetition(**RULE)) or 99) <= RULE["max_pattern_size"] * RULE["min_count"]
        if reasoning == "auto":  # else the ids of the parts stand one after another, and each was looked at by itself
            assert find_loop_end(ids, Repetition(**RULE)) == len(ids)
        assert row["findings"] == [
            f"stopped after {len(ids)} tokens: it repeated itself as sampling.stop_repetition says"
        ]
    assert dataset.manifest["tasks"]["adding"]["sampling"]["stop_repetition"] == RULE
    assert dataset.totals.done == 8
    assert dataset.totals.errors == 0
