"""Which of the two tensors that vLLM's blocks hand on is the hidden state: tried on the model itself, in one forward.

Most blocks return (branch, residual), whose sum is the hidden state: vLLM fuses the addition into the next norm. Others
(Cohere, StableLM, Exaone 4, GraniteMoeHybrid) return (state, their own input), and adding would count that twice. Names
of architectures do not tell, and a list of them would be of yesterday. What comes next does: where a block or the final
norm gives the same for (branch + residual, 0), the state is the sum; where it gives the same for (state, 0), it is the
first alone.
"""

from collections.abc import Callable, Collection
from typing import Any, Final

import torch
from torch import nn

from factory.teachers.engine.layers import find_blocks, find_final_norm

# of the answer's norm: rounding stays far below, a residual left out or counted twice far above
NEAR: Final = 0.1
Parts = tuple[torch.Tensor, torch.Tensor | None]


class ResidualProbe:
    """Listens at the blocks of one worker's model until `finish`; any forward meanwhile is a trial.

    Every worker of a model that is split among several has to do the same: blocks wait for each other.
    """

    def __init__(self, model: nn.Module, layers: Collection[int]) -> None:
        # by layer: whether its state is the sum; None where neither that nor the first alone is what counts next
        self.sums: dict[int, bool | None] = {}
        self.handed_on: dict[int, Parts] = {}
        self.handles: list[Any] = []
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
        return self.sums

    def _note(self, layer: int) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            parts = _parts(output)
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
