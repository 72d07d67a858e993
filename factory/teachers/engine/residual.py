"""Which of the two tensors that vLLM's blocks hand on is the hidden state: tried on the model itself, in one forward.

Most blocks return (branch, residual), whose sum is the hidden state: vLLM fuses the addition into the next norm. Others
(Cohere, StableLM, Exaone 4, GraniteMoeHybrid) return (state, their own input), and adding would count that twice. Names
of architectures do not tell, and a list of them would be of yesterday. What comes next does: where a block or the final
norm gives the same for (branch + residual, 0), the state is the sum; where it gives the same for (state, 0), it is the
first alone.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import torch
from torch import nn

from factory.teachers.engine.layers import find_blocks, find_final_norm
from factory.teachers.engine.wrap import wrap

# of the answer's norm: rounding stays far below, a residual left out or counted twice far above
NEAR: Final = 0.1
Parts = tuple[torch.Tensor, torch.Tensor | None]


class ResidualProbe:
    """Listens at the blocks of one worker's model until `finish`; any forward meanwhile is a trial.

    `hands_out`: the model hands its states out, and may be compiled; `compare` holds these against its blocks'.

    Every worker of a model that is split among several has to do the same: blocks wait for each other.
    """

    def __init__(self, model: nn.Module, layers: Collection[int], hands_out: bool = False) -> None:
        # by layer: whether its state is the sum; None where neither that nor the first alone is what counts next
        self.sums: dict[int, bool | None] = {}
        self.handed_on: dict[int, Parts] = {}
        # the same of the whole forward, for what the model hands out beside its output; None where it does not
        self.seen: dict[int, Parts] | None = {} if hands_out else None
        self.handles: list[Any] = []
        self.model = model
        if hands_out:
            wrap(model, "forward", _uncompiled)
        blocks, trunk = find_blocks(model)
        for layer in layers:
            after = blocks[layer] if layer < len(blocks) else _norm_of(trunk)
            if after is None:
                self.sums[layer] = None
            elif layer > 0:
                self.handles.append(blocks[layer - 1].register_forward_hook(self._note(layer)))
                self.handles.append(after.register_forward_pre_hook(self._try(layer), with_kwargs=True))

    def finish(self) -> dict[int, bool | None]:
        """What was found of each layer whose block hands on two tensors; the model is as it was."""
        for handle in self.handles:
            handle.remove()
        if self.seen is not None:
            del self.model.forward
        return self.sums

    def compare(self, handed_out: Mapping[int, torch.Tensor]) -> None:
        """Hold what the model handed out in a forward against what its blocks did; a layer that differs is not known.

        Layer 0 is nobody's output.
        """
        assert self.seen is not None
        for layer in handed_out.keys() - {0}:
            first, second = self.seen.get(layer, (None, None))
            if first is None:
                self.sums[layer] = None  # no block was heard: all of it ran inside a graph
            elif self.sums.get(layer, False) is not None:
                state = first + second if self.sums.get(layer) and second is not None else first
                if not _difference(handed_out[layer].flatten(0, -2), state.flatten(0, -2)) < NEAR:
                    self.sums[layer] = None

    def _note(self, layer: int) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            parts = _parts(output)
            if self.seen is not None:
                self.seen[layer] = parts[0].clone(), None if parts[1] is None else parts[1].clone()
            if parts[1] is not None:
                # what comes next may write into them
                self.handed_on[layer] = parts[0].clone(), parts[1].clone()

        return note

    def _try(self, layer: int) -> Callable[..., None]:
        def attempt(module: nn.Module, args: Any, kwargs: Any) -> None:
            handed_on = self.handed_on.pop(layer, None)
            if handed_on is not None:
                try:
                    self.sums[layer] = _is_sum(module, args, kwargs, handed_on)
                except Exception as error:  # code of any model, called in a way it may not have been made for
                    print(f"layer {layer}: what {type(module).__name__} makes of it is not known: {error}", flush=True)
                    self.sums[layer] = None

        return attempt


def _uncompiled(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A forward whose blocks can be heard, also of a model that is compiled."""
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if is_forward_context_available():
        get_forward_context().skip_compiled = True
    return inner(*args, **kwargs)


def _norm_of(trunk: nn.Module) -> nn.Module | None:
    try:
        return find_final_norm(trunk)
    except ValueError:
        return None


def _parts(output: Any) -> Parts:
    """The first two tensors of an output, the second only where it looks like a state too."""
    if not isinstance(output, tuple):
        return output, None
    second = output[1] if len(output) > 1 else None
    return output[0], second if isinstance(second, torch.Tensor) and second.shape == output[0].shape else None


def _is_sum(module: nn.Module, args: Any, kwargs: Any, handed_on: Parts) -> bool | None:
    """What `module`, called like this after `handed_on`, takes for the state."""
    first, second = handed_on
    assert second is not None
    places = [key for key, value in [*enumerate(args), *kwargs.items()] if _is_state(value, first)]
    given = [args[key] if isinstance(key, int) else kwargs[key] for key in places]

    def call(*states: torch.Tensor) -> torch.Tensor:
        put = dict(zip(places, states, strict=False))
        # past the hooks of its own call, this one among them
        output = module.forward(
            *(put.get(at, _copy(value)) for at, value in enumerate(args)),
            **{name: put.get(name, _copy(value)) for name, value in kwargs.items()},
        )
        # a branch or a state; what stands beside it may be the sum, or what was put in
        return _parts(output)[0].clone()

    if len(given) < 2:
        # it is handed one tensor: whichever the trunk has made of the two
        return _nearer(_difference(given[0], first), _difference(given[0], first + second)) if given else None
    state, residual, zero = given[0], given[1], torch.zeros_like(given[1])
    plain = call(state.clone(), residual.clone())
    alone, summed = call(state.clone(), zero.clone()), call(state + residual, zero)
    return _nearer(_difference(alone, plain), _difference(summed, plain))


def _is_state(value: Any, like: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == like.shape


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the norm of what is expected; the median of the tokens, as an expert may change with a rounding."""
    error = torch.linalg.vector_norm((got - expected).float(), dim=-1)
    return float((error / torch.linalg.vector_norm(expected.float(), dim=-1).clamp_min(1e-6)).median())


def _nearer(alone: float, summed: float) -> bool | None:
    return None if not min(alone, summed) < NEAR else summed < alone
