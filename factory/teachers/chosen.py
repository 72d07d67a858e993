"""What is chosen of a row's signals: taken everywhere, they leave the teacher only from where the job keeps them."""

from dataclasses import replace

import numpy as np

from factory.records import Generation
from factory.signals import Array, HiddenStates, Logprobs, SignalSpec


def keep_chosen(generation: Generation, signals: SignalSpec) -> Generation:
    """The generation with the distributions and hidden states of the positions that `signals` names.

    Sampled token, entropy and the like stay at every position: they cost little, and entropy says what was left out.
    """
    completion, prompt = generation.logprobs, generation.prompt_logprobs
    kept_T = _chosen_of_completion(generation, signals)
    if completion is not None and not kept_T.all():
        completion = _blank(completion, ~kept_T)
    # entry i belongs to prompt token i + 1: nothing predicts the first
    kept_P = np.zeros(max(len(generation.prompt_token_ids) - 1, 0), np.bool_)
    if prompt is not None:
        kept_P = prompt.entropy_T >= signals.min_entropy
        prompt = prompt if kept_P.all() else _blank(prompt, ~kept_P)
    states = generation.hidden_states
    if states is not None and signals.hidden_positions != "all":
        if signals.hidden_positions == "completion":
            kept_T, kept_P = np.ones_like(kept_T), np.zeros_like(kept_P)
        # position i predicts token i + 1, so the two together are one entry for each of the N states
        states = _cut(states, np.concatenate([kept_P, kept_T]))
    return replace(generation, logprobs=completion, prompt_logprobs=prompt, hidden_states=states)


def choose_ids(probs_TV: Array, signals: SignalSpec, rng: np.random.Generator) -> tuple[Array, Array | None]:
    """What is kept of distributions that no engine computed: ids [T, k], likeliest first and -1 for none, and draws."""
    k = signals.top_k
    ids_TK, draws_TK = np.argsort(-probs_TV, axis=1, kind="stable")[:, :k], None
    if signals.keep == "top_p":
        ids_TK = np.where(beyond_mass(np.take_along_axis(probs_TV, ids_TK, 1), signals.top_p), -1, ids_TK)
    if signals.keep == "sampled":
        # multinomial refuses rows that add up to more than 1 in float64
        exact_TV = probs_TV.astype(np.float64)
        drawn_TV = rng.multinomial(k, exact_TV / exact_TV.sum(1, keepdims=True))
        ids_TK = np.argsort(-np.where(drawn_TV > 0, probs_TV, -1.0), axis=1, kind="stable")[:, :k]
        draws_TK = np.take_along_axis(drawn_TV, ids_TK, 1).astype(np.int16)
        ids_TK = np.where(draws_TK > 0, ids_TK, -1)
    return ids_TK.astype(np.int32), draws_TK


def beyond_mass(probs_TK: Array, top_p: float) -> Array:
    """Which of the likeliest ids, in that order, are not needed to reach the mass `top_p`; never the first."""
    beyond_TK: Array = np.cumsum(probs_TK, 1) - probs_TK >= top_p
    beyond_TK[:, :1] = False
    return beyond_TK


def _chosen_of_completion(generation: Generation, signals: SignalSpec) -> Array:
    """Which completion tokens keep their distribution, bool [T]."""
    tokens = len(generation.completion_token_ids)
    first = generation.answer_start if signals.positions == "answer" else 0
    kept_T: Array = np.arange(tokens) >= first
    if generation.completion_mask is not None and len(generation.completion_mask) == tokens:
        kept_T &= generation.completion_mask > 0
    if generation.logprobs is not None and signals.min_entropy:
        kept_T &= generation.logprobs.entropy_T >= signals.min_entropy
    return kept_T


def _blank(logprobs: Logprobs, without_T: Array) -> Logprobs:
    """The same without any id at these positions: all mass is outside, its logarithm 0."""
    blank = {"topk_ids_TK": -1, "topk_TK": -np.inf, "tail_T": 0.0, "draws_TK": 0}
    arrays = logprobs.arrays()
    for name in blank.keys() & arrays.keys():
        arrays[name] = arrays[name].copy()
        arrays[name][without_T] = blank[name]
    return Logprobs(**arrays)


def _cut(states: HiddenStates, kept_N: Array) -> HiddenStates:
    """The states of some positions. Position i is where the token after i is predicted."""
    if len(kept_N) != len(states.bits_NLH):  # damaged: for the gate to say, not for us
        return states
    positions_N = np.flatnonzero(kept_N).astype(np.int32)
    return HiddenStates(states.layers, states.bits_NLH[positions_N], positions_N)
