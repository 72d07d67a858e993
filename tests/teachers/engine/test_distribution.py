"""What is kept of one step's logits: against float64 arithmetic over the whole vocabulary, in every choice."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.signals import Array, SignalSpec
from factory.teachers.engine.distribution import (
    BLOCK,
    Distribution,
    Workspace,
    draw_ids,
    exact_topk,
    fractions,
    largest_of_blocks,
    row_width,
    split_rows,
)

PLAIN = SignalSpec(top_k=5)


def draw_logits(seed: int, rows: int, vocab: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn((rows, vocab), generator=torch.Generator().manual_seed(seed)) * spread


def exact(logits: torch.Tensor) -> Array:
    """Log-probabilities in float64."""
    return torch.log_softmax(logits.double(), -1).numpy()


def reduce(logits: torch.Tensor, signals: SignalSpec = PLAIN, fraction: Any = None) -> Distribution:
    drawn = signals.keep == "sampled"
    return Distribution(logits, signals, Workspace(), np.full(len(logits), fraction) if drawn else None)


@pytest.mark.parametrize("vocab", [70, 4096, 4096 + 7, 5 * BLOCK * 20])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_likeliest_ids_are_exact(vocab: int, k: int) -> None:
    logits = draw_logits(0, 3, vocab)
    values, ids = exact_topk(logits, k, largest_of_blocks(logits))
    expected = logits.topk(k)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize("spread", [0.0, 3.0, 60.0])
def test_every_number_is_that_of_the_whole_distribution(spread: float) -> None:
    logits = draw_logits(1, 4, 3000, spread)
    made, full = reduce(logits), exact(logits)
    sampled = torch.tensor([0, 1, 2, 2999])
    rows, ids = made.rows(sampled), made.ids_BK.numpy()
    outside = np.exp(full)
    np.put_along_axis(outside, ids, 0.0, 1)
    np.testing.assert_allclose(rows[:, 0], full[np.arange(4), sampled], rtol=1e-5, atol=1e-5)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(rows[:, 1], np.log(outside.sum(1)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(rows[:, 2], -(np.exp(full) * full).sum(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows[:, 3:8], np.take_along_axis(full, ids, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", ["top_k", "top_p", "sampled"])
def test_a_packed_row_gives_back_every_array(keep: Any) -> None:
    signals = SignalSpec(top_k=12, keep=keep, top_p=0.6)
    made = reduce(draw_logits(9, 5, 70_000), signals, 0.3)
    rows = made.rows(torch.tensor([1, 2, 3, 4, 69_999]))
    assert rows.shape == (5, row_width(signals))
    arrays = split_rows(rows, 12)
    assert np.array_equal(arrays["topk_ids_TK"], made.ids_BK.numpy())
    assert np.array_equal(arrays["topk_TK"], made.kept_BK.numpy().astype(np.float16))
    assert np.array_equal(arrays["tail_T"], made.tail_B.numpy())
    assert np.array_equal(arrays["entropy_T"], made.entropy_B.numpy())
    assert ("draws_TK" in arrays) == (keep == "sampled")
    if made.draws_BK is not None:
        assert np.array_equal(arrays["draws_TK"], made.draws_BK.numpy())


def test_ids_that_the_model_rules_out_do_not_spoil_a_row() -> None:
    logits = draw_logits(2, 2, 400)
    logits[:, 7:] = -torch.inf
    rows = reduce(logits, replace(PLAIN, top_k=9)).rows(torch.tensor([3, 399]))
    assert not np.isnan(rows).any()
    assert rows[1, 0] == pytest.approx(-1e30)
    np.testing.assert_allclose(rows[:, 2], -(np.exp(exact(logits[:, :7])) * exact(logits[:, :7])).sum(1), atol=1e-5)


def test_logits_are_left_as_they_are() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = draw_logits(3, 2, 500).to(dtype)
        before = logits.clone()
        reduce(logits)
        assert torch.equal(logits, before)


def test_memory_is_used_again_and_what_was_taken_is_gone() -> None:
    workspace = Workspace()
    first = Distribution(draw_logits(4, 8, 300), PLAIN, workspace).rows(torch.zeros(8, dtype=torch.long))
    place = workspace.take(torch.empty(3, 300))[0].data_ptr()
    second = Distribution(draw_logits(5, 3, 300), PLAIN, workspace).rows(torch.zeros(3, dtype=torch.long))
    assert workspace.take(torch.empty(8, 300))[0].data_ptr() == place
    assert not np.array_equal(first[:3], second)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_ids_that_reach_the_mass(top_p: float) -> None:
    logits, signals = draw_logits(6, 6, 2000, 2.5), SignalSpec(top_k=40, keep="top_p", top_p=top_p)
    made, probs = reduce(logits, signals), np.exp(exact(logits))
    for row, ids in enumerate(made.ids_BK.numpy()):
        likeliest = np.sort(probs[row])[::-1]
        wanted = min(40, int(np.searchsorted(np.cumsum(likeliest), top_p)) + 1)
        assert (ids >= 0).sum() == wanted
        assert (ids[wanted:] == -1).all()
        kept = ids[:wanted]
        assert np.array_equal(kept, np.argsort(-probs[row], kind="stable")[:wanted])
        assert np.isneginf(made.kept_BK[row, wanted:].numpy()).all()
        assert made.tail_B[row].exp().item() == pytest.approx(1 - probs[row][kept].sum(), abs=1e-5)


def test_one_id_is_kept_however_small_the_mass() -> None:
    made = reduce(torch.zeros(1, 50), SignalSpec(top_k=4, keep="top_p", top_p=1e-9))
    assert (made.ids_BK >= 0).sum() == 1


@pytest.mark.parametrize("draws", [1, 8, 50])
def test_the_mean_of_the_draws_is_the_distribution(draws: int) -> None:
    """Over a fine even grid of fractions the mean count of every id is draws * p: the estimator is unbiased."""
    logits = draw_logits(7, 1, 60, 2.0)
    probs, steps = np.exp(exact(logits))[0], 4000
    counts = np.zeros(60)
    for part in np.array_split((np.arange(steps) + 0.5) / steps, 8):
        ids, came = draw_ids(logits.softmax(-1).expand(len(part), -1), draws, part)
        np.add.at(counts, ids.numpy()[ids.numpy() >= 0], came.numpy()[ids.numpy() >= 0])
    np.testing.assert_allclose(counts / steps / draws, probs, atol=1.5 / steps)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 64), st.floats(0, 1, exclude_max=True))
def test_draws_are_whole_and_never_far_from_their_share(seed: int, draws: int, fraction: float) -> None:
    logits = draw_logits(seed, 2, 90, 2.0)
    made, full = reduce(logits, SignalSpec(top_k=draws, keep="sampled"), fraction), exact(logits)
    assert made.draws_BK is not None
    for row in range(2):
        ids, came = made.ids_BK[row].numpy(), made.draws_BK[row].numpy()
        kept = ids[ids >= 0]
        assert (ids[len(kept) :] == -1).all()
        assert (came[len(kept) :] == 0).all()
        assert came.sum() == draws
        assert len(set(kept.tolist())) == len(kept)
        assert (np.abs(came[: len(kept)] - draws * np.exp(full[row][kept])) < 1 + 1e-3).all()
        assert (np.diff(made.kept_BK[row].numpy()[: len(kept)]) <= 0).all()
        np.testing.assert_allclose(made.kept_BK[row].numpy()[: len(kept)], full[row][kept], atol=1e-4)
        outside = np.exp(full[row])
        outside[kept] = 0
        assert made.tail_B[row].exp().item() == pytest.approx(outside.sum(), abs=1e-5)


def test_fractions_are_even_and_belong_to_seed_and_index_alone() -> None:
    seeds, index = np.repeat(np.arange(200), 100), np.tile(np.arange(-50, 50), 200)
    made = fractions(seeds, index)
    assert made.min() >= 0
    assert made.max() < 1
    assert len(np.unique(made)) == len(made)
    assert np.histogram(made, 20)[0] == pytest.approx(np.full(20, len(made) / 20), rel=0.12)
    assert np.abs(np.corrcoef(made[:-1], made[1:])[0, 1]) < 0.03
    some = np.array([5, 19_999, 700])
    assert np.array_equal(fractions(seeds[some], index[some]), made[some])
