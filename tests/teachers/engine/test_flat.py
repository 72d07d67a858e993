"""The engine's own logprobs as distributions, and what cannot be had from them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from factory.signals import SignalSpec
from factory.teachers.engine.flat import read_flat, require_enough

PROBS = np.array([[0.6, 0.25, 0.1], [0.9, 0.05, 0.05]])


def flat(probs: np.ndarray = PROBS, sampled: float = 0.1) -> Any:
    """As vLLM lays it out: at each position the sampled token, then the likeliest."""
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.concatenate([np.full((len(probs), 1), sampled), probs], 1)).reshape(-1).tolist()
    ids = [number for _ in probs for number in (7, 3, 5, 7)]
    return SimpleNamespace(start_indices=[4 * t for t in range(len(probs))], token_ids=ids, logprobs=logprobs)


def test_entries_become_a_rectangle_a_tail_and_an_entropy() -> None:
    made = read_flat(flat(), SignalSpec(top_k=3))
    assert made.topk_ids_TK.tolist() == [[3, 5, 7], [3, 5, 7]]
    np.testing.assert_allclose(np.exp(made.topk_TK.astype(np.float64)), PROBS, rtol=2e-3)
    np.testing.assert_allclose(np.exp(made.sampled_T), 0.1, rtol=1e-5)
    assert np.exp(made.tail_T[0]) == pytest.approx(0.05, abs=1e-6)
    assert np.exp(made.tail_T[1]) < 1e-8
    whole = np.array([0.6, 0.25, 0.1, 0.05])
    assert made.entropy_T[0] == pytest.approx(-(whole * np.log(whole)).sum(), abs=1e-5)


def test_what_the_grammar_ruled_out_has_no_mass() -> None:
    made = read_flat(flat(np.array([[1.0, 0.0, 0.0]]), sampled=1.0), SignalSpec(top_k=3))
    assert np.isneginf(made.topk_TK[0, 1:]).all()
    assert made.entropy_T[0] == pytest.approx(0, abs=1e-6)


def test_top_p_cuts_what_came() -> None:
    made = read_flat(flat(), SignalSpec(top_k=3, keep="top_p", top_p=0.8))
    assert made.topk_ids_TK.tolist() == [[3, 5, -1], [3, -1, -1]]
    np.testing.assert_allclose(np.exp(made.tail_T), [0.15, 0.1], atol=1e-6)


@pytest.mark.parametrize(
    ("signals", "decoding", "told"),
    [
        (SignalSpec(top_k=3, layers=(1,)), True, "signals.hidden_layers"),
        (SignalSpec(top_k=3, experts=True), True, "signals.experts"),
        (SignalSpec(top_k=3, attention=(1,)), True, "signals.attention"),
        (SignalSpec(top_k=3, positions="all"), True, 'signals.positions = "all"'),
        (SignalSpec(top_k=3, keep="sampled"), True, 'signals.keep = "sampled"'),
        (SignalSpec(top_k=3), False, 'signals.capture = "prefill"'),
    ],
)
def test_what_only_capture_can_give_is_refused(signals: SignalSpec, decoding: bool, told: str) -> None:
    with pytest.raises(ValueError, match=r"worker has no _sample, so .* cannot be had") as error:
        require_enough(signals, decoding, False, ["_sample"])
    assert told in str(error.value)


def test_plain_top_k_needs_no_more() -> None:
    require_enough(
        SignalSpec(top_k=3, positions="answer", min_entropy=1.0, keep="top_p", top_p=0.5), True, False, ["_sample"]
    )
