"""One step's logits reduced in a single pass over the vocabulary, on devices that Triton compiles for.

The kernel reads each logit once. Of every block of 64 it leaves the largest, the sum of the exponentials and their
product with the logits: all that the total, the entropy and the tail are made of, 3 numbers for 64. The k likeliest ids
lie inside the k blocks with the largest maxima, so only those are read again. It also leaves a copy of the logits: what
samples writes into them (grammar, temperature, penalties) before the sampled token is known.

The numbers are those of `distribution`, and so is what each means. Exact: nothing is estimated, and the tail is summed
over what is not kept rather than taken as one minus the rest.

    x        a logit, no less than -1e30     m_b  largest of block b      M  largest of the row
    s_b      sum of exp(x - m_b)             t_b  sum of exp(x - m_b) * (x - m_b)
    total    Z = sum of s_b * w_b            with w_b = exp(m_b - M)
    entropy  log Z - sum of w_b * (t_b + (m_b - M) * s_b) / Z
"""

from typing import Final

import torch
import triton
import triton.language as tl

from factory.signals import Array, SignalSpec
from factory.teachers.engine.distribution import BLOCK, Workspace, cut_to_mass, pack_rows

BLOCKS: Final = 64  # that one program reads: 4,096 logits
LOWEST: Final = -1e30  # an id the model rules out has -inf, and 0 * -inf is not a number


@triton.jit  # type: ignore[untyped-decorator]
def _reduce_blocks(  # type: ignore[no-untyped-def]
    logits,
    row_stride,
    copy,
    copy_stride,
    maxima,
    sums,
    products,
    vocab,
    blocks,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    LEAST: tl.constexpr,
):
    # rows times vocabulary may be more than 32 bits count
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * COUNT + tl.arange(0, COUNT)
    at = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    inside = at < vocab
    given = tl.load(logits + row * row_stride + at, mask=inside, other=-float("inf"))
    tl.store(copy + row * copy_stride + at, given, mask=inside)
    values = given.to(tl.float32)
    # not a maximum, which would make a number of one that is none; the gate of every row has to find it
    values = tl.where(values < LEAST, LEAST, values)
    largest = tl.max(values, axis=1)
    below = values - largest[:, None]
    weights = tl.where(inside, tl.exp(below), 0.0)
    products_here = tl.where(inside, weights * below, 0.0)
    place = row * blocks + block
    tl.store(maxima + place, largest, mask=block < blocks)
    tl.store(sums + place, tl.sum(weights, axis=1), mask=block < blocks)
    tl.store(products + place, tl.sum(products_here, axis=1), mask=block < blocks)


class FusedDistribution:
    """One step's logits reduced; as `Distribution`, of the ids with the most mass (no random draws)."""

    def __init__(self, logits_BV: torch.Tensor, signals: SignalSpec, workspace: Workspace) -> None:
        rows, vocab = logits_BV.shape
        blocks = -(-vocab // BLOCK)
        logits_BV = logits_BV if logits_BV.stride(1) == 1 else logits_BV.contiguous()
        self.logits_BV = workspace.take_copy(logits_BV)
        maxima_BN, sums_BN, products_BN = torch.empty((3, rows, blocks), dtype=torch.float32, device=logits_BV.device)
        _reduce_blocks[(rows, -(-blocks // BLOCKS))](
            *(logits_BV, logits_BV.stride(0), self.logits_BV, self.logits_BV.stride(0)),
            *(maxima_BN, sums_BN, products_BN, vocab, blocks),
            COUNT=BLOCKS,
            SIZE=BLOCK,
            LEAST=LOWEST,
        )
        self.largest_B1 = maxima_BN.amax(1, keepdim=True)
        below_BN = maxima_BN - self.largest_B1
        weights_BN = below_BN.exp()
        masses_BN = sums_BN * weights_BN
        total_B = masses_BN.sum(1)
        self.log_total_B = total_B.log()
        self.entropy_B = self.log_total_B - (weights_BN * (products_BN + below_BN * sums_BN)).sum(1) / total_B
        self._keep_likeliest(maxima_BN, masses_BN, signals)

    def _keep_likeliest(self, maxima_BN: torch.Tensor, masses_BN: torch.Tensor, signals: SignalSpec) -> None:
        vocab, k = self.logits_BV.shape[1], signals.top_k
        best_BK = maxima_BN.topk(min(k, maxima_BN.shape[1])).indices
        ids_BC = (best_BK[:, :, None] * BLOCK + torch.arange(BLOCK, device=best_BK.device)).flatten(1)
        scores_BC = self._scores(ids_BC.clamp_max(vocab - 1)).masked_fill_(ids_BC >= vocab, -torch.inf)
        top = scores_BC.topk(k)
        self.ids_BK, self.kept_BK = ids_BC.gather(1, top.indices), top.values - self.log_total_B[:, None]
        if signals.keep == "top_p":
            self.kept_BK, self.ids_BK = cut_to_mass(self.kept_BK, self.ids_BK, signals.top_p)
        # the blocks that were not looked into, and what was not kept of the others
        rest_BC = scores_BC.exp()
        left_BK = rest_BC.gather(1, top.indices).masked_fill_(self.ids_BK >= 0, 0.0)
        tail_B = masses_BN.scatter_(1, best_BK, 0.0).sum(1) + rest_BC.scatter_(1, top.indices, left_BK).sum(1)
        self.tail_B = tail_B.log() - self.log_total_B

    def _scores(self, ids_BC: torch.Tensor) -> torch.Tensor:
        """Logits of some ids less the row's largest."""
        return (self.logits_BV.gather(1, ids_BC).float() - self.largest_B1).clamp_min_(LOWEST)

    @property
    def device(self) -> torch.device:
        return self.logits_BV.device

    def at(self, row_M: torch.Tensor, ids_M: torch.Tensor) -> torch.Tensor:
        """[M] float32: the log-probability of an id at a row, of any id of the vocabulary."""
        below_M = self.logits_BV[row_M, ids_M].float() - self.largest_B1[row_M, 0]
        return below_M.clamp_min_(LOWEST) - self.log_total_B[row_M]

    def rows(self, sampled_B: torch.Tensor) -> Array:
        """What is packed, on the host."""
        packed: Array = self.pack(sampled_B).cpu().numpy()
        return packed

    def pack(self, sampled_B: torch.Tensor) -> torch.Tensor:
        """[B, W] float32, one tensor for one copy to the host; `split_rows` tells what is where."""
        sampled_B1 = self._scores(sampled_B[:, None].long()) - self.log_total_B[:, None]
        return pack_rows(sampled_B1, self.tail_B, self.entropy_B, self.kept_BK, self.ids_BK)
