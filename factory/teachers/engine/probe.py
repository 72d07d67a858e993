"""The start-up probe: a short text through plain transformers and through the engine, before a single row is asked for.

What the self-test would find when everything has been paid for is found here: states of a block that hands on something
else than most, and logits of a model that vLLM and transformers do not compute alike. Its forward is the self-test's
own (`factory.teachers.plain_forward`), in the engine's process, which needs torch and transformers anyway. It runs
before vLLM is imported, which changes classes of transformers to run them itself, and its memory is free again before
the engine takes all there is.

Where no plain forward can be had (weights that are too large, quantised ones, an architecture that transformers lacks),
what a layer hands on is still tried (`factory.teachers.engine.residual`), and one where that tells nothing is refused.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from factory.signals import Array, Logprobs, SignalSpec
from factory.teachers.agreement import (
    BOUNDS,
    LEAST,
    Figures,
    compare_candidates,
    compare_logprobs,
    compare_states,
    divergence,
    exceeded,
)
from factory.teachers.engine.build import Unfit, first_line
from factory.teachers.plain_forward import NotChecked, PlainModel, load_config, reduce_logits
from factory.teachers.spool import as_logprobs

TOKENS: Final = 64
# of weights: a plain forward of more would keep a run waiting, on a processor above all
MOST_GIB: Final = 16.0
TEXT: Final = "The quick brown fox jumps over the lazy dog, and 12 times 7 is 84. "

TellWorker = Callable[..., list[Any]]
Named = tuple[list[int], list[int]]  # candidates, flat, and how many each token has


@dataclass(frozen=True, slots=True)
class Expected:
    """What plain transformers says of a short text of S ids; `reason` where it says nothing, with all else empty."""

    ids: list[int]
    dtype: str
    # float32, of the positions that predict all ids but the first
    logits_NV: torch.Tensor | None = None
    # float32 [N, L, H]
    states_NLH: Array | None = None
    reason: str = ""
    # whether a token goes to some of several experts
    routes: bool = False


def choose_ids(tokenizer: Any, encode: Callable[[], list[int]], vocab: int, window: int | None) -> list[int]:
    """What is sent through both: the beginning of a prompt or, where none can be had, of a plain text; else any ids."""
    most = min(TOKENS, (window or TOKENS + 1) - 1)
    for make in (encode, lambda: tokenizer.encode(TEXT * 4)):
        try:
            ids = [int(number) for number in make() if 0 <= number < vocab][:most]
        except Exception:  # of a tokenizer or template: the prompts it refuses have their own checks
            continue
        if len(ids) >= min(8, most):
            return ids
    return [number * 97 % vocab for number in range(1, most + 1)]


def expect(teacher: dict[str, Any], signals: SignalSpec, ids: list[int], routes: bool = False) -> Expected:
    """Run the plain forward; the model is gone afterwards."""
    dtype = teacher["dtype"]
    names = {name: teacher[name] for name in ("revision", "trust_remote_code")}
    overrides = teacher["engine"].get("hf_overrides") or {}
    try:
        if teacher["quantization"] is not None:
            raise NotChecked(f"the engine quantises the model ({teacher['quantization']})")
        if dtype == "auto":
            dtype = _own_dtype(load_config(teacher["model"], names, overrides))
        request = names | {"model": teacher["model"], "overrides": overrides, "most_gib": MOST_GIB, "dtype": dtype}
        request |= {"layers": list(signals.layers), "final_norm": signals.final_norm, "longest": len(ids)}
        with torch.inference_mode():
            return Expected(ids, dtype, *PlainModel(request).recompute_logits(np.array(ids)), routes=routes)
    except NotChecked as reason:
        return Expected(ids, dtype, reason=str(reason))
    except (torch.OutOfMemoryError, MemoryError):
        return Expected(ids, dtype, reason="the memory is not enough for a plain forward")
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _own_dtype(config: Any) -> str:
    """What the engine will make of "auto": the weights' own type, but for float32, which it does not run by itself."""
    own = str(getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or "bfloat16")
    own = own.removeprefix("torch.")
    return "bfloat16" if own == "float32" else own


def probe_engine(llm: Any, tell_worker: TellWorker, signals: SignalSpec, name: str, expected: Expected) -> None:
    """Raise Unfit where the engine fails, or what the job keeps would not be the model's own."""
    try:
        unsure = _learn(llm, tell_worker, signals, expected.ids)
        arrays = score(llm, tell_worker, "probe", expected.ids, _name_some(signals, expected.ids))
    except Exception as error:  # of many types; the first forward of all fails again in every new process
        told = f"the engine fails on a text of {len(expected.ids)} tokens: {first_line(error)}"
        raise Unfit(f"teacher.model {name!r}: {told}; see engine.log") from error
    if expected.reason:
        # no fault of the model, so only told
        print(f"the start-up probe is not compared with transformers: {expected.reason}", flush=True)
        if unsure:
            raise Unfit(
                f"teacher.model {name!r}: what the block of layer {unsure[0]} hands on is not known to be its hidden "
                f"state, and there is no transformers to compare it with ({expected.reason}); leave {unsure} out of "
                f"signals.hidden_layers"
            )
        return
    dtype = str(llm.llm_engine.model_config.dtype).removeprefix("torch.")
    # two types of 16 bits, or one of 32 against one of 16, agree within the wider bounds
    bounds = dtype if dtype == expected.dtype else "bfloat16"
    if bounds in BOUNDS:
        # rounded to 16 bits, two right engines may route a token to different experts
        half = expected.routes and bounds != "float32"
        require_agreement(name, *compare(expected, signals, arrays, half), bounds)


def _learn(llm: Any, tell_worker: TellWorker, signals: SignalSpec, ids: list[int]) -> list[int]:
    """Have the worker find out what its layers hand on; those of which it could not tell."""
    if not signals.layers:
        return []
    tell_worker("factory_learn", True)
    # of the states of this one nothing is known yet
    score(llm, tell_worker, "probe.learn", ids)
    unsure: list[int] = next(filter(None, tell_worker("factory_learn", False)), [])
    return unsure


def _name_some(signals: SignalSpec, ids: list[int]) -> Named | None:
    """Candidates for each id but the first, where a job keeps any: itself and up to two that come next."""
    if not signals.candidates:
        return None
    rest = ids[1:]
    lists = [list(dict.fromkeys((rest + rest)[at : at + 1 + at % 3])) for at in range(len(rest))]
    return [one for few in lists for one in few], list(map(len, lists))


def score(llm: Any, tell_worker: TellWorker, name: str, ids: list[int], named: Named | None = None) -> dict[str, Array]:
    """The arrays of one scored request: all but the first of the ids are its completion; `named` are its candidates."""
    from vllm import SamplingParams

    # of a cached prefix nothing would be computed
    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, skip_reading_prefix_cache=True)
    inner = llm.llm_engine.add_request(name, {"prompt_token_ids": ids[:-1]}, params)
    tell_worker("factory_begin", inner, 1, 0, ids[-1], False, True, named)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    answers = tell_worker("factory_take", inner, len(ids) - 1, len(ids) - 1)
    return next((answer for answer in answers if answer), {})


def compare(
    expected: Expected, signals: SignalSpec, arrays: dict[str, Array], half: bool = False
) -> tuple[Figures, dict[str, Figures]]:
    """Figures of the distributions, and of each kept layer; none of what is not kept.

    With `half` of the tokens that agree best: what is wrong with a model is wrong with all of them.
    """
    stored, logprobs, layers = as_logprobs(arrays), Figures(), dict[str, Figures]()
    if stored is not None and expected.logits_NV is not None:
        topk = torch.tensor(stored.topk_ids_TK.astype(np.int64))
        sampled, kept, tail, entropy = reduce_logits(expected.logits_NV, torch.tensor(expected.ids[1:]), topk)
        again = (sampled.numpy(), stored.topk_ids_TK, kept.numpy(), tail.numpy(), entropy.numpy())
        chosen = _best(divergence(stored, Logprobs(*again)), half)
        logprobs = compare_logprobs(stored.part(chosen), Logprobs(*again).part(chosen))
    named = _name_some(signals, expected.ids)
    if named is not None and "candidates_M" in arrays and expected.logits_NV is not None:
        row_M, ids_M = np.repeat(np.arange(len(named[1])), named[1]), named[0]
        again_M = torch.log_softmax(expected.logits_NV, -1)[row_M, ids_M].numpy()
        chosen = _best(np.abs(arrays["candidates_M"] - again_M), half)
        logprobs |= compare_candidates(arrays["candidates_M"][chosen], again_M[chosen])
    if "bits_NLH" in arrays and expected.states_NLH is not None:
        # the upper 16 bits of a float32 are a bfloat16
        stored_NLH = (arrays["bits_NLH"].astype(np.uint32) << 16).view(np.float32)
        for at, layer in enumerate(signals.layers):
            stored_NH, again_NH = stored_NLH[:, at], expected.states_NLH[:, at]
            chosen = _best(np.linalg.norm(stored_NH - again_NH, axis=1), half)
            layers[str(layer)] = compare_states(stored_NH[chosen], again_NH[chosen])
    return logprobs, layers


def _best(error_N: Array, half: bool) -> Array:
    order: Array = np.sort(np.argsort(error_N, kind="stable")[: len(error_N) // (2 if half else 1)])
    return order


def require_agreement(name: str, logprobs: Figures, layers: dict[str, Figures], dtype: str) -> None:
    """Raise Unfit for figures past the bounds of the self-test: of layers only where the logits are right."""
    if exceeded(logprobs, dtype):
        raise Unfit(
            f"teacher.model {name!r}: its logits in vLLM are not those of transformers ({_tell(logprobs, dtype)}), so "
            f"one of the two computes another model; no row was asked for; try teacher.engine.model_impl = "
            f'"transformers" or "vllm", or other versions'
        )
    wrong = {int(layer): figures for layer, figures in layers.items() if exceeded(figures, dtype)}
    if wrong:
        layer = min(wrong)
        raise Unfit(
            f"teacher.model {name!r}: the hidden states of layer {layer} are not those of transformers "
            f"({_tell(wrong[layer], dtype)}); no row was asked for; leave {sorted(wrong)} out of signals.hidden_layers"
        )


def _tell(figures: Figures, dtype: str) -> str:
    figure = exceeded(figures, dtype)[0]
    allowed = f"{'at least' if figure in LEAST else 'at most'} {BOUNDS[dtype][figure]:g}"
    return f"{figure} {figures[figure]:.3g}, allowed {allowed}"
