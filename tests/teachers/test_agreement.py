"""The comparison's arithmetic against sums written out by hand over whole distributions."""

import math

import numpy as np
import pytest

from factory.signals import Array, Logprobs
from factory.teachers.agreement import (
    BOUNDS,
    LEAST,
    NOT_A_NUMBER,
    compare_logprobs,
    compare_states,
    divergence,
    exceeded,
    worst_of,
)

K, VOCAB, TOKENS = 3, 12, 5


def distribution(seed: int) -> Array:
    """[T, V] probabilities."""
    weights = np.exp(np.random.default_rng(seed).normal(0, 2, (TOKENS, VOCAB)))
    return weights / weights.sum(1, keepdims=True)


def keep(probs_TV: Array, ids_TK: Array, sampled_T: Array) -> Logprobs:
    """What a dataset keeps of a distribution at these ids."""
    mask = np.ones_like(probs_TV, bool)
    np.put_along_axis(mask, ids_TK, False, 1)
    rows = np.arange(TOKENS)
    return Logprobs(
        np.log(probs_TV[rows, sampled_T]).astype(np.float32),
        ids_TK,
        np.log(np.take_along_axis(probs_TV, ids_TK, 1)).astype(np.float16),
        np.log((probs_TV * mask).sum(1)).astype(np.float32),
        -(probs_TV * np.log(probs_TV)).sum(1),
    )


@pytest.fixture
def pair() -> tuple[Logprobs, Logprobs, Array, Array, Array]:
    p, q = distribution(1), distribution(2)
    ids = np.argsort(-p, 1)[:, :K].astype(np.int32)
    sampled = np.array([0, 3, 5, 11, 2])
    return keep(p, ids, sampled), keep(q, ids, sampled), p, q, ids


def test_kl_is_that_of_the_kept_ids_and_one_outcome_for_the_rest(
    pair: tuple[Logprobs, Logprobs, Array, Array, Array],
) -> None:
    stored, again, p, q, ids = pair
    for t, got in enumerate(divergence(stored, again)):
        rest_p, rest_q = 1.0, 1.0
        expected = 0.0
        for i in ids[t]:
            expected += p[t, i] * math.log(p[t, i] / q[t, i])
            rest_p, rest_q = rest_p - p[t, i], rest_q - q[t, i]
        expected += rest_p * math.log(rest_p / rest_q)
        assert got == pytest.approx(expected, rel=0.01, abs=1e-4)  # float16
        assert expected > 0.05


def test_kl_with_itself_is_nothing_but_rounding(pair: tuple[Logprobs, Logprobs, Array, Array, Array]) -> None:
    stored, _, p, _, ids = pair
    exact = keep(p, ids, np.zeros(TOKENS, int))
    exact = Logprobs(
        exact.sampled_T, ids, np.log(np.take_along_axis(p, ids, 1)), exact.tail_T.astype(float), exact.entropy_T
    )
    assert (divergence(stored, exact) >= 0).all()
    assert divergence(stored, exact).max() < 1e-5


def test_an_empty_tail_and_an_impossible_token_stay_finite() -> None:
    certain = Logprobs(np.array([-1e30]), np.array([[1]]), np.array([[0.0]]), np.array([-np.inf]), np.array([0.0]))
    unlike = Logprobs(np.array([-3.0]), np.array([[1]]), np.array([[-1e30]]), np.array([0.0]), np.array([0.0]))
    assert compare_logprobs(certain, certain) == dict.fromkeys(("kl_mean", "kl_max", "logprob_max", "entropy_max"), 0.0)
    figures = compare_logprobs(certain, unlike)
    assert figures["kl_max"] == pytest.approx(100)
    assert figures["logprob_max"] == 97


def test_logprob_and_entropy_figures_are_the_largest_differences(
    pair: tuple[Logprobs, Logprobs, Array, Array, Array],
) -> None:
    stored, again, p, q, _ = pair
    figures = compare_logprobs(stored, again)
    sampled = [0, 3, 5, 11, 2]
    gaps = [abs(math.log(p[t, i] / q[t, i])) for t, i in enumerate(sampled)]
    assert figures["logprob_max"] == pytest.approx(max(gaps), rel=1e-5)
    entropies = [[-sum(x * math.log(x) for x in one[t]) for one in (p, q)] for t in range(TOKENS)]
    assert figures["entropy_max"] == pytest.approx(max(abs(a - b) for a, b in entropies), rel=1e-5)


def test_cosine_and_relative_error_of_states() -> None:
    stored, again = np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[3.0, 4.0], [1.0, 0.0]])
    figures = compare_states(stored, again)
    assert figures == {
        "state_error_mean": pytest.approx(math.sqrt(2) / 2),
        "state_error_max": pytest.approx(math.sqrt(2)),
        "state_cosine_mean": pytest.approx(0.5),
        "state_cosine_min": pytest.approx(0.0),
    }
    zeros = compare_states(np.zeros((1, 2)), np.zeros((1, 2)))  # a padding token's embedding
    assert (zeros["state_cosine_min"], zeros["state_error_max"]) == (1.0, 0.0)
    assert compare_states(np.zeros((1, 2)), again[:1])["state_cosine_min"] == 0.0


def test_what_is_no_number_is_the_worst() -> None:
    figures = compare_states(np.array([[np.nan, 1.0]]), np.ones((1, 2)))
    assert figures["state_error_max"] == NOT_A_NUMBER
    assert figures["state_cosine_min"] == -NOT_A_NUMBER
    assert set(exceeded(figures, "bfloat16")) == set(figures)


def test_the_worst_of_a_cosine_is_the_least() -> None:
    worst = worst_of([{"kl_max": 1.0, "state_cosine_min": 0.5}, {"kl_max": 2.0, "state_cosine_min": 0.9}])
    assert worst == {"kl_max": 2.0, "state_cosine_min": 0.5}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", BOUNDS["float32"])
def test_a_figure_at_its_bound_passes_and_one_past_it_does_not(dtype: str, name: str) -> None:
    bounds = BOUNDS[dtype]
    assert exceeded(bounds, dtype) == []
    past = bounds | {name: bounds[name] - 1e-6 if name in LEAST else bounds[name] + 1e-6}
    assert exceeded(past, dtype) == [name]
