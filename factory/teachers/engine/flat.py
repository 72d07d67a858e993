"""The engine's own logprobs: the way out where its worker lacks the places that capture is taken at.

Less than capture gives. They are taken after the grammar's mask, the tail is one minus what is kept (wrong in the last
digits where the teacher is sure), the entropy is over the k ids and all others as one, which is less than the true one.
Every number becomes a Python object on its way, so a run is slower. The manifest says so: `distribution`.
"""

from typing import Any, Final

import numpy as np

from factory.signals import Logprobs, SignalSpec
from factory.teachers.chosen import beyond_mass

TOLD: Final = "the engine's own logprobs: after the grammar's mask, entropy over the kept ids and all others as one"
LEAST_MASS: Final = 1e-9  # of a tail: float32 probabilities do not add up to 1 any closer


def require_enough(signals: SignalSpec, decoding: bool, spelt: bool, missing: list[str]) -> None:
    """Raise ValueError where a job keeps what cannot be had without the places that are missing in the worker.

    `spelt`: the end of the reasoning is no token of its own, so it is given to the teacher.
    """
    beyond = {
        "signals.hidden_layers": bool(signals.layers),
        "signals.experts": signals.experts,
        "signals.attention": bool(signals.attention),
        'signals.positions = "all"': signals.of_prompt,
        'signals.keep = "sampled"': signals.keep == "sampled",
        'signals.capture = "prefill"': not decoding,
        "teacher.reasoning with an end marker of several tokens": spelt,
    }
    asked = [name for name, wanted in beyond.items() if wanted]
    if asked:
        raise ValueError(
            f"this engine's worker has no {', '.join(missing)}, so {', '.join(asked)} cannot be had; "
            f"install the vLLM that docs/operations.md names, or keep top-k logprobs alone"
        )


def read_flat(flat: Any, signals: SignalSpec) -> Logprobs:
    """The distributions in vLLM's FlatLogprobs: at each position the sampled token's entry, then the k likeliest."""
    # vLLM lists the sampled token first, even where it is among the likeliest
    wide, tokens = signals.top_k + 1, len(flat.start_indices)
    values_TW = np.array(flat.logprobs, np.float32).reshape(tokens, wide)
    ids_TK = np.array(flat.token_ids, np.int32).reshape(tokens, wide)[:, 1:]
    # ids that the grammar rules out come with -inf, and 0 * -inf is not a number
    topk_TK = np.maximum(values_TW[:, 1:], -1e30)
    probs_TK = np.exp(topk_TK.astype(np.float64))
    if signals.keep == "top_p":
        beyond_TK = beyond_mass(probs_TK, signals.top_p)
        ids_TK = np.where(beyond_TK, -1, ids_TK)
        topk_TK = np.where(beyond_TK, -np.inf, topk_TK)
    # the entropy is over all k, whatever is kept of them
    rest_T = np.maximum(1 - probs_TK.sum(1), LEAST_MASS)
    entropy_T = -(probs_TK * np.maximum(values_TW[:, 1:], -1e30)).sum(1) - rest_T * np.log(rest_T)
    tail_T = np.log(np.maximum(1 - np.where(ids_TK < 0, 0, probs_TK).sum(1), LEAST_MASS))
    # what is beyond float16 becomes -inf there, which is what such a probability rounds to
    with np.errstate(over="ignore"):
        kept_TK = topk_TK.astype(np.float16)
    sampled_T = np.maximum(values_TW[:, 0], -1e30)
    return Logprobs(sampled_T, ids_TK, kept_TK, tail_T.astype(np.float32), np.maximum(entropy_T, 0).astype(np.float32))
