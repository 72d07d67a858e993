"""What capture knows of vLLM's model runners: the value that tells what one step was, and who listens to steps.

vLLM has two runners, and names and orders differ between them. Each has a module (`runner_v1`, `runner_v2`), the one
place that knows its private names; all else in this folder sees a `Step` and is the same for both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from factory.teachers.engine.pages import Array


@dataclass(frozen=True, slots=True)
class Step:
    """One forward: its B requests, in the order of every row that the runner computes. All arrays are [B].

    A request's tokens of the step stand side by side: request b has `counts_B[b]` rows of the step's tensors.
    """

    # the engine's own names
    names: list[str]
    # int64: how many tokens each came with: its prompt, and, where it is scored, all but its last token
    given_B: Array
    # int64: the absolute position of its first token in this step
    first_B: Array
    # int64: its tokens in this step
    counts_B: Array
    # int64: which output token its logits belong to: as many as it has already
    next_index_B: Array
    # bool: whether the token sampled for it counts: not while known tokens are left to compute after this step, be it
    # of the prompt or, after a preemption, of its own output
    samples_B: Array
    # requests that had to leave the batch before it: the key-value cache was full
    preempted: int = 0


class Listener(Protocol):
    """Who is told of every step. Rows of a step that has logits are told in both orders: logits may come first."""

    def keep_forward(
        self, step: Step, final_NH: torch.Tensor, layers_NH: Sequence[torch.Tensor] | None, known: "Known"
    ) -> None:
        """A forward is done: `final_NH` is what its logits are computed from, `layers_NH` what the model hands out."""

    def keep_logits(self, step: Step, logits_BV: torch.Tensor | None) -> None:
        """The step's logits, before anything is laid over them; None on a worker that has none."""

    def keep_sampled(self, step: Step, sampled_B: torch.Tensor) -> None:
        """The tokens drawn from them, on the device: nobody has waited for them yet."""


class Known(Protocol):
    """Token ids that are known on the host before they are inputs."""

    def ids_at(self, request_N: Array, position_N: Array) -> Array:
        """Ids of what requests came with, by the request's place in the step and the token's position."""


def lacking(needed: Mapping[Any, Sequence[str]]) -> list[str]:
    """Of the names that each owner is to have, those that it has not."""
    return [name for owner, names in needed.items() for name in names if not hasattr(owner, name)]


class Runner(Protocol):
    """One of vLLM's model runners, wrapped."""

    # "v1" or "v2", as vLLM counts them
    kind: str
    # the model's own, before anything listens to it: logits of given tokens are no step's logits
    compute_logits: Any
    device: torch.device

    @property
    def model(self) -> nn.Module:
        """The model itself, without what the runner wraps around it."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def additional_config(self) -> dict[str, Any]:
        """What the engine's settings say beside vLLM's own."""

    def listen(self, listener: Listener, samples: bool) -> None:
        """Tell of every step from now on; of its logits and sampled tokens where `samples`."""
