"""One step's logits reduced to what is kept of them: plain tensor arithmetic, a few passes over the vocabulary.

On GPUs `fused` does the same in one pass.

B rows of a step, V ids of the vocabulary, K kept at each position. Nothing here knows of an engine.
"""

import numpy as np
import torch

from factory.signals import Array, SignalSpec
from factory.teachers.engine.copies import to_device

BLOCK = 64  # vocabulary entries in one block of the two-stage top-k
FLOOR = -1e30  # instead of the logarithm of 0


def largest_of_blocks(values_BV: torch.Tensor) -> torch.Tensor:
    """The largest value of each whole block, and behind these the largest of what is left over, if there is any."""
    rows, vocab = values_BV.shape
    blocks = vocab // BLOCK
    largest = values_BV[:, : blocks * BLOCK].view(rows, blocks, BLOCK).amax(-1)
    rest = values_BV[:, blocks * BLOCK :]
    return torch.cat([largest, rest.amax(-1, keepdim=True)], 1) if rest.shape[1] else largest


def exact_topk(values_BV: torch.Tensor, k: int, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest values and their indices, descending. Exact, at about half the cost of a plain topk.

    The k largest values lie inside the k blocks with the largest maxima, so only those blocks are searched. `largest`
    are the `largest_of_blocks` of these values, or of others in the same order.
    """
    blocks = values_BV.shape[1] // BLOCK
    # with so few blocks most of them would be searched all the same
    if blocks < 4 * k:
        return values_BV.topk(k)
    best_BK = largest[:, :blocks].topk(k).indices
    values = _take_blocks(values_BV[:, : blocks * BLOCK], best_BK)
    # what is left behind the last whole block is always searched
    rest = values_BV[:, blocks * BLOCK :]
    top = (torch.cat([values, rest], 1) if rest.shape[1] else values).topk(k)
    inside_BK = best_BK.gather(1, (top.indices // BLOCK).clamp_max(k - 1)) * BLOCK + top.indices % BLOCK
    return top.values, torch.where(top.indices < k * BLOCK, inside_BK, top.indices + (blocks - k) * BLOCK)


def _take_blocks(values_BV: torch.Tensor, blocks_BK: torch.Tensor) -> torch.Tensor:
    """The values of these blocks of each row, side by side; rows are whole blocks."""
    rows, blocks = len(values_BV), values_BV.shape[1] // BLOCK
    if values_BV.is_contiguous():
        # a block is one copy then, which takes half as long as to look up each of its values
        first_B1 = torch.arange(rows, device=values_BV.device)[:, None] * blocks
        taken = values_BV.view(rows * blocks, BLOCK).index_select(0, (blocks_BK + first_B1).reshape(-1))
    else:
        taken = values_BV.view(rows, blocks, BLOCK).gather(1, blocks_BK[:, :, None].expand(-1, -1, BLOCK))
    return taken.reshape(rows, -1)


class Workspace:
    """Memory for whole distributions, used again at every step: fresh pages cost more than all arithmetic on them."""

    def __init__(self) -> None:
        self.data: torch.Tensor | None = None

    def take_copy(self, like_BV: torch.Tensor) -> torch.Tensor:
        """One buffer [B, V] of the same type."""
        if self.data is None or self.data.shape[0] < len(like_BV) or self.data.dtype != like_BV.dtype:
            self.data = torch.empty(like_BV.shape, dtype=like_BV.dtype, device=like_BV.device)
        return self.data[: len(like_BV)]

    def take(self, like_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three float32 buffers [B, V]; what was taken before is gone."""
        rows, vocab = like_BV.shape
        if self.data is None or self.data.shape[1] < rows:
            self.data = torch.empty((3, rows, vocab), dtype=torch.float32, device=like_BV.device)
        first, second, third = self.data[:, :rows]
        return first, second, third


class Distribution:
    """One step's logits reduced: the ids that are kept, the mass outside them, the entropy (nats).

    `fractions_B` in [0, 1) places the random draws of each row, where ids are drawn. Valid until the workspace is taken
    again.
    """

    def __init__(
        self, logits_BV: torch.Tensor, signals: SignalSpec, workspace: Workspace, fractions_B: Array | None = None
    ) -> None:
        # scores: logits less the row's largest, so at most 0; weights: their softmax, used up for the tail at the end
        self.scores_BV, weights_BV, product_BV = workspace.take(logits_BV)
        self.scores_BV.copy_(logits_BV)
        largest = largest_of_blocks(self.scores_BV)
        self.scores_BV.sub_(largest.amax(-1, keepdim=True))
        # a device is not waited for to be looked at, so there the floor comes unasked
        if self.device.type != "cpu":
            self.scores_BV.clamp_min_(FLOOR)
        # faster than exp, but its sum is only nearly 1
        torch.softmax(self.scores_BV, -1, out=weights_BV)
        total_B = weights_BV.sum(-1)
        log_weight_B = total_B.log()
        mean_B = torch.mul(weights_BV, self.scores_BV, out=product_BV).sum(-1)
        # an id the model rules out has -inf, and 0 * -inf is not a number: a finite floor keeps the entropy exact
        if self.device.type == "cpu" and bool(mean_B.isnan().any()):
            self.scores_BV.clamp_min_(FLOOR)
            mean_B = torch.mul(weights_BV, self.scores_BV, out=product_BV).sum(-1)
        top = exact_topk(self.scores_BV, signals.top_k, largest) if fractions_B is None else None
        largest_B = weights_BV.amax(-1) if top is None else weights_BV.gather(1, top[1][:, :1])[:, 0]
        # of exp(scores): the largest weight is that of score 0, so dividing by it undoes the softmax's own total
        self.log_total_B = log_weight_B - largest_B.log()
        self.entropy_B = self.log_total_B - mean_B / total_B
        self.draws_BK: torch.Tensor | None = None
        if top is not None:
            self.kept_BK, self.ids_BK = top[0] - self.log_total_B[:, None], top[1]
            if signals.keep == "top_p":
                self.kept_BK, self.ids_BK = cut_to_mass(self.kept_BK, self.ids_BK, signals.top_p)
        else:
            assert fractions_B is not None
            self._draw(weights_BV, signals.top_k, fractions_B)
        # summed without the kept ids rather than as 1 - kept, which would cancel for a peaked distribution
        held_BK = self.ids_BK
        # some rows have fewer ids; there the first one, taken out twice, stands for none
        if signals.keep != "top_k":
            held_BK = torch.where(held_BK < 0, held_BK[:, :1], held_BK)
        self.tail_B = weights_BV.scatter_(1, held_BK, 0.0).sum(-1).log() - log_weight_B

    def _draw(self, weights_BV: torch.Tensor, draws: int, fractions_B: Array) -> None:
        """Keep the ids that so many draws give, likeliest first."""
        ids_BK, draws_BK = draw_ids(weights_BV, draws, fractions_B)
        kept_BK = self.scores_BV.gather(1, ids_BK.clamp_min(0)) - self.log_total_B[:, None]
        kept_BK.masked_fill_(ids_BK < 0, -torch.inf)
        self.kept_BK, order_BK = kept_BK.sort(dim=1, descending=True, stable=True)
        self.ids_BK, self.draws_BK = ids_BK.gather(1, order_BK), draws_BK.gather(1, order_BK)

    @property
    def device(self) -> torch.device:
        return self.scores_BV.device

    def at(self, row_M: torch.Tensor, ids_M: torch.Tensor) -> torch.Tensor:
        """[M] float32: the log-probability of an id at a row, of any id of the vocabulary."""
        return self.scores_BV[row_M, ids_M] - self.log_total_B[row_M]

    def rows(self, sampled_B: torch.Tensor) -> Array:
        """What is packed, on the host."""
        packed: Array = self.pack(sampled_B).cpu().numpy()
        return packed

    def pack(self, sampled_B: torch.Tensor) -> torch.Tensor:
        """[B, W] float32, one tensor for one copy to the host; `split_rows` tells what is where."""
        sampled_B1 = self.scores_BV.gather(1, sampled_B[:, None].long()) - self.log_total_B[:, None]
        return pack_rows(sampled_B1, self.tail_B, self.entropy_B, self.kept_BK, self.ids_BK, self.draws_BK)


def pack_rows(
    sampled_B1: torch.Tensor,
    tail_B: torch.Tensor,
    entropy_B: torch.Tensor,
    kept_BK: torch.Tensor,
    ids_BK: torch.Tensor,
    draws_BK: torch.Tensor | None = None,
) -> torch.Tensor:
    """One step's numbers side by side, [B, W] float32."""
    columns = [sampled_B1, tail_B[:, None], entropy_B[:, None], kept_BK]
    # the same bits under another name: nothing may calculate with these columns on the way
    columns += [ids_BK.to(torch.int32).view(torch.float32)]
    columns += [] if draws_BK is None else [draws_BK.to(torch.float32)]
    return torch.cat(columns, 1)


def cut_to_mass(kept_BK: torch.Tensor, ids_BK: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the k likeliest ids and their log-probabilities as many as reach the mass `top_p`, one at least; -1 after."""
    probs_BK = kept_BK.exp()
    beyond_BK = probs_BK.cumsum(1) - probs_BK >= top_p
    beyond_BK[:, 0] = False
    return kept_BK.masked_fill(beyond_BK, -torch.inf), ids_BK.masked_fill(beyond_BK, -1)


# A packed row of float32, W = 3 + 2K values, 3 + 3K where ids are drawn:
#
#     0        1     2        3 .. 3+K-1   3+K .. 3+2K-1        3+2K ..
#     sampled  tail  entropy  kept         ids, as int32 bits   draws
#
# A row that was never written is NaN throughout, which the gate of every row finds.


def row_width(signals: SignalSpec) -> int:
    """W, the values of a packed row."""
    return 3 + (3 if signals.keep == "sampled" else 2) * signals.top_k


def split_rows(rows_TW: Array, k: int) -> dict[str, Array]:
    """The arrays of a `Logprobs`, by name, that T packed rows hold."""
    arrays: dict[str, Array] = {
        "sampled_T": rows_TW[:, 0].copy(),
        "tail_T": rows_TW[:, 1].copy(),
        "entropy_T": rows_TW[:, 2].copy(),
        "topk_TK": rows_TW[:, 3 : 3 + k].astype(np.float16),
        "topk_ids_TK": rows_TW[:, 3 + k : 3 + 2 * k].view(np.int32).copy(),
    }
    if rows_TW.shape[1] > 3 + 2 * k:
        arrays["draws_TK"] = np.nan_to_num(rows_TW[:, 3 + 2 * k :], nan=-1).astype(np.int16)
    return arrays


def draw_ids(weights_BV: torch.Tensor, draws: int, fractions_B: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw so often from each row, in proportion to its weights: the distinct ids, -1 after them, and their counts.

    Systematic sampling: draw i falls at (i + fraction) / draws of the cumulative distribution. So an id of probability
    p comes draws * p times in the mean over fractions, exactly, and never a whole time more or less than that.
    """
    # in float64: with 150,000 ids a float32 sum loses the small ones
    cumulative_BV = weights_BV.double().cumsum_(1)
    at_BK = torch.arange(draws, device=weights_BV.device) + to_device(fractions_B, weights_BV.device)[:, None]
    drawn_BK = torch.searchsorted(cumulative_BV, at_BK / draws * cumulative_BV[:, -1:], right=True)
    # a draw at the very end may be rounded past the last id
    drawn_BK = drawn_BK.clamp_max_(weights_BV.shape[1] - 1)
    # draws ascend, so those of one id are neighbours: each run becomes one id with its length
    new_BK = torch.ones_like(drawn_BK)
    new_BK[:, 1:] = drawn_BK[:, 1:] != drawn_BK[:, :-1]
    run_BK = new_BK.cumsum(1) - 1
    ids_BK = torch.full_like(drawn_BK, -1).scatter_(1, run_BK, drawn_BK)
    return ids_BK, torch.zeros_like(drawn_BK).scatter_add_(1, run_BK, torch.ones_like(run_BK))


def fractions(seeds_B: Array, index_B: Array) -> Array:
    """A number in [0, 1) for each (seed, index), the same whatever else is in the batch: SplitMix64 of both."""
    with np.errstate(over="ignore"):
        mixed_B = seeds_B.astype(np.uint64) << np.uint64(32) ^ index_B.astype(np.int64).view(np.uint64)
        mixed_B = mixed_B * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed_B = (mixed_B ^ mixed_B >> np.uint64(shift)) * np.uint64(factor)
    parts: Array = (mixed_B ^ mixed_B >> np.uint64(31)) >> np.uint64(11)
    return parts * 2.0**-53
