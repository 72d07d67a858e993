"""What is kept is a choice, on the real engine: drawn ids, prompt positions, chosen states; at once or afterwards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integration_support import Dataset, engine_job, make_dataset
from random_teacher import random_teacher

from factory.checks.fidelity import check_dataset
from factory.checks.verify import verify
from factory.load import Row, load_rows

pytestmark = pytest.mark.engine
DRAWS, LEAST = 16, 7.0  # nats: about the median of the random teacher
SIGNALS = {
    "top_k": DRAWS,
    "keep": "sampled",
    "positions": "all",
    "min_entropy": LEAST,
    "hidden_layers": [2, -1],
    "hidden_positions": "kept",
}
TEACHER = {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 16, "max_model_len": 2048}
TASKS = [{"name": "adding", "count": 10}, {"name": "scheduling", "count": 3}]


def generate(folder: Path, **signals: Any) -> Dataset:
    sampling = {"temperature": 1.0, "max_tokens": 200, "thinking_tokens": 50}
    return make_dataset(folder, engine_job(tasks=TASKS, sampling=sampling, signals=SIGNALS | signals, teacher=TEACHER))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return generate(tmp_path_factory.mktemp("drawn"))


def read(dataset: Dataset) -> list[Row]:
    return list(load_rows(dataset.out, streaming=True, join_hidden_states=True))


def test_every_number_is_that_of_a_plain_forward(drawn: Dataset) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(random_teacher(), dtype=torch.float32)
    assert list(verify(drawn.out)) == []
    rows, errors, variances = read(drawn), [], []
    for row in rows:
        ids = np.concatenate([row.prompt_token_ids, row.completion_token_ids]).astype(np.int64)
        with torch.inference_mode():
            output = model(torch.from_numpy(ids)[None], output_hidden_states=True)
        full = torch.log_softmax(output.logits[0, :-1].double(), -1).numpy()
        assert row.prompt is not None
        for part, logprobs, following in (
            (row.prompt, full[: len(row.prompt_token_ids) - 1], row.prompt_token_ids[1:]),
            (row, full[len(row.prompt_token_ids) - 1 :], row.completion_token_ids),
        ):
            require_right(part, logprobs, following)
            probs, held = np.exp(logprobs), part.topk_ids[:, 0] >= 0
            shares = np.zeros_like(probs)
            where, entry = np.nonzero(part.topk_ids >= 0)
            shares[where, part.topk_ids[where, entry]] = part.topk_draws[where, entry] / DRAWS
            errors.append((shares - probs)[held].sum(0))
            variances.append((probs * (1 - probs))[held].sum(0) / DRAWS)
        kept = np.concatenate([row.prompt.topk_ids[:, 0], row.topk_ids[:, 0]]) >= 0
        assert np.array_equal(row.positions, np.flatnonzero(kept))
        expected = torch.stack([output.hidden_states[layer][0, :-1] for layer in (2, -1)], 1)[torch.from_numpy(kept)]
        error = (row.hidden_states.float() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)
        assert error.max() < 0.008
    # systematic draws vary less than independent ones, whose standard deviations these are
    assert np.abs(np.sum(errors, 0) / np.sqrt(np.sum(variances, 0))).max() < 5
    assert {row["task"] for row in rows} >= {"adding"}


def require_right(part: Any, full: np.ndarray, following: np.ndarray) -> None:
    entropy = -(np.exp(full) * full).sum(1)
    np.testing.assert_allclose(part.entropy, entropy, atol=1e-4)
    np.testing.assert_allclose(part.sampled_logprobs, full[np.arange(len(full)), following], atol=1e-4)
    kept = part.topk_ids >= 0
    clear = np.abs(entropy - LEAST) > 1e-3
    assert np.array_equal(kept[clear, 0], entropy[clear] >= LEAST)
    values = np.take_along_axis(full, np.maximum(part.topk_ids, 0), 1)
    np.testing.assert_allclose(part.topk_logprobs[kept], values[kept], atol=8e-3)
    assert np.array_equal(part.topk_draws.sum(1), np.where(kept[:, 0], DRAWS, 0))
    outside = 1 - np.where(kept, np.exp(values), 0).sum(1)
    np.testing.assert_allclose(np.exp(part.tail_logprobs), outside, atol=1e-4)


def test_some_positions_are_kept_and_some_are_not(drawn: Dataset) -> None:
    kept = np.concatenate([row.topk_ids[:, 0] >= 0 for row in read(drawn)])
    assert 0.02 < kept.mean() < 0.98


def test_the_self_test_understands_the_choice(drawn: Dataset) -> None:
    section = check_dataset(drawn.out, 4)
    assert section["verdict"] == "passed", section


def test_a_prefill_afterwards_draws_the_same_ids(drawn: Dataset, tmp_path: Path) -> None:
    others = {row["id"]: row for row in read(generate(tmp_path, capture="prefill"))}
    same = []
    for row in read(drawn):
        other = others[row["id"]]
        assert np.array_equal(row.completion_token_ids, other.completion_token_ids)
        for part, counterpart in ((row, other), (row.prompt, other.prompt)):
            np.testing.assert_allclose(part.entropy, counterpart.entropy, atol=1e-4)
            same += (part.topk_ids == counterpart.topk_ids).all(1).tolist()
    assert np.mean(same) > 0.98  # a draw that falls on the edge of two ids may go either way
