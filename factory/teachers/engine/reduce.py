"""Which of the two reductions a device has: the fused one where Triton compiles for it, plain tensors elsewhere."""

import functools
from typing import Protocol

import torch

from factory.signals import SignalSpec
from factory.teachers.engine.distribution import Distribution, Workspace


class Reduced(Protocol):
    """One step's logits, reduced."""

    @property
    def device(self) -> torch.device: ...

    def at(self, row_M: torch.Tensor, ids_M: torch.Tensor) -> torch.Tensor:
        """[M] float32: the log-probability of an id at a row, of any id of the vocabulary."""

    def pack(self, sampled_B: torch.Tensor) -> torch.Tensor:
        """[B, W] float32 with the log-probability of these tokens; `distribution.split_rows` tells what is where."""


def reduce_logits(logits_BV: torch.Tensor, signals: SignalSpec, workspace: Workspace) -> Reduced:
    """The k likeliest ids of each row, the mass outside them, the entropy."""
    if logits_BV.device.type == "cuda" and has_triton():
        from factory.teachers.engine.fused import FusedDistribution

        return FusedDistribution(logits_BV, signals, workspace)
    return Distribution(logits_BV, signals, workspace)


@functools.cache
def has_triton() -> bool:
    """Whether kernels can be compiled."""
    from importlib.util import find_spec

    return find_spec("triton") is not None
