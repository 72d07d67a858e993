"""Attention of the teacher: how much each token looks at itself and each one before it, by block and head.

vLLM's kernels never hold whole maps, so they are made again from the queries and keys that a block hands to its
`Attention` (vllm/model_executor/layers/attention, vLLM 0.32), after rotary embedding and norms. Each step brings those
of its own tokens; they are kept as bytes until the request is finished. A block whose weights are no plain softmax over
these products is refused with its reason.

N tokens, H query heads that share K key heads, D values a head. Blocks count from 1, as hidden layers do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from factory.teachers.engine.copies import AT_ONCE, Copies, to_device
from factory.teachers.engine.pages import Array, Pages, StepRows
from factory.teachers.engine.wrap import wrap

# by block: one step's queries [N, H * D] and keys [N, K * D]
Seen = dict[int, tuple[torch.Tensor, torch.Tensor]]
# a byte that was never written: four of them, or two, are NaN in every float type
BLANK = 255


@dataclass(frozen=True, slots=True)
class Heads:
    """What a block does with its queries and keys."""

    # H query heads; H / key_heads neighbours share a key head
    heads: int
    key_heads: int
    # D, values of a head
    size: int
    # scores are query . key * scale
    scale: float
    # of queries and keys, as they are kept
    dtype: torch.dtype
    # how many tokens are seen, the looking one among them; None for all before it
    window: int | None = None
    # of scores: cap * tanh(score / cap); 0 for none
    soft_cap: float = 0.0

    @property
    def width(self) -> int:
        """Values of a token: its queries and its keys."""
        return (self.heads + self.key_heads) * self.size


class AttentionKeeper:
    """Queries and keys of the requests inside one worker, until their maps are made."""

    def __init__(self, model: nn.Module, blocks: Sequence[int], most_tokens: int, device: Any) -> None:
        # filled by every forward, emptied by `keep`
        self.seen: Seen = {}
        self.heads = keep_queries(model, blocks, self.seen)
        self.most_tokens, self.device = most_tokens, device
        # bytes, because blocks may differ in width and type, and a row holds all of them
        self.rows = Pages(row_bytes(self.heads), np.uint8, BLANK)

    @property
    def pages(self) -> list[Pages]:
        """Where queries and keys are kept."""
        return [self.rows]

    def keep(self, step: StepRows, attends_B: Array, copies: Copies = AT_ONCE) -> None:
        """Take those of a step's tokens that belong to the requests whose attention is kept."""
        # a request that turns out too long stops costing memory where it does
        chosen = np.flatnonzero(attends_B[step.request_N] & (step.position_N < self.most_tokens))
        if len(chosen):
            rows = rows_of(self.seen, self.heads)
            rows_NW = rows[to_device(step.row_N[chosen], rows.device)]
            copies.send(rows_NW, self.rows, step.slot_N[chosen], step.position_N[chosen])
        self.seen.clear()

    def take(self, slot: int, inputs: int) -> dict[str, Array]:
        """The maps of a request of so many input tokens, if they are not too many."""
        # the bound is on prompt and completion, so it is known only now; such a row has no map, which is no fault
        if inputs > self.most_tokens:
            return {}
        return {"maps_LHNN": maps_of(self.rows.take(slot, inputs), self.heads, self.device)}

    def drop(self, slot: int) -> None:
        """Forget a request."""
        self.rows.drop(slot)


def keep_queries(model: nn.Module, blocks: Sequence[int], seen: Seen) -> dict[int, Heads]:
    """Have every forward leave queries and keys of these blocks in `seen`. Raises ValueError where that is not enough.

    `forward` itself is wrapped: models that vLLM runs through transformers call it directly, and hooks do not fire.
    """
    found = find_attention(model)
    missing = sorted(set(blocks) - found.keys())
    if missing:
        raise ValueError(
            f"blocks {missing} of {type(model).__name__} have no attention (those that have: {list(found)})"
        )
    heads = {block: read_heads(block, found[block]) for block in blocks}
    if len({one.heads for one in heads.values()}) > 1:
        raise ValueError(f"blocks {list(blocks)} differ in their number of heads; keep the attention of one kind")
    for block in blocks:
        wrap(found[block], "forward", _listener(block, seen))
    return heads


def find_attention(model: nn.Module) -> dict[int, nn.Module]:
    """The attention of each decoder block, by the block's number."""
    from vllm.model_executor.layers.attention import Attention, MLAAttention

    found = {}
    for name, module in model.named_modules():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if numbers and isinstance(module, Attention | MLAAttention):
            found[numbers[0] + 1] = module
    return dict(sorted(found.items()))


def read_heads(block: int, attention: Any) -> Heads:
    """What is needed to compute a block's maps. Raises ValueError where they cannot be computed from it."""
    reason = why_not(attention)
    if reason:
        raise ValueError(f"the attention of block {block} cannot be kept: {reason}")
    return Heads(
        heads=attention.num_heads,
        key_heads=attention.num_kv_heads,
        size=attention.head_size,
        scale=float(attention.impl.scale),
        dtype=attention.dtype,
        window=attention.sliding_window,
        soft_cap=float(attention.impl.logits_soft_cap or 0.0),
    )


def why_not(attention: Any) -> str | None:
    """Why a block's maps are not the softmax of its queries and keys; None where they are."""
    kind = type(attention).__name__
    if kind != "Attention":  # MLAAttention, ChunkedLocalAttention, CrossAttention, ...
        return f"it is {kind}, not plain causal attention"
    if getattr(attention.impl, "alibi_slopes", None) is not None:
        return "it adds ALiBi's bias to its scores"
    if attention.has_sink:
        return "its heads have attention sinks"
    if attention.kv_sharing_target_layer_name is not None:
        return f"it uses the keys of {attention.kv_sharing_target_layer_name}"
    if attention.kv_cache_torch_dtype != attention.dtype:
        return f"its cache rounds keys to {attention.kv_cache_dtype}; set teacher.engine.kv_cache_dtype to auto"
    return None


def _listener(block: int, seen: Seen) -> Callable[..., Any]:
    def listen(inner: Callable[..., Any], query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen[block] = query, key
        return inner(query, key, *args, **kwargs)

    return listen


def rows_of(seen: Seen, heads: dict[int, Heads]) -> torch.Tensor:
    """One step's queries and keys of all blocks, a row of bytes for each token in the batch's order."""
    parts = []
    for block, one in heads.items():
        query, key = (part.reshape(-1, count * one.size) for part, count in zip(seen[block], _counts(one), strict=True))
        parts += [query.to(one.dtype), key.to(one.dtype)]
    return torch.cat(parts, 1).contiguous().view(torch.uint8)


def row_bytes(heads: dict[int, Heads]) -> int:
    """How long such a row is."""
    return sum(one.width * one.dtype.itemsize for one in heads.values())


def maps_of(rows_NW: Array, heads: dict[int, Heads], device: str = "cpu") -> Array:
    """The maps of one request out of its rows of bytes: float16 [L, H, N, N], blocks in their order."""
    maps, position = [], 0
    for one in heads.values():
        end = position + one.width * one.dtype.itemsize
        values = torch.from_numpy(np.ascontiguousarray(rows_NW[:, position:end])).view(one.dtype).to(device)
        query, key = values.split([count * one.size for count in _counts(one)], 1)
        maps.append(attention_map(query.unflatten(1, (-1, one.size)), key.unflatten(1, (-1, one.size)), one))
        position = end
    result: Array = torch.stack(maps).cpu().numpy()
    return result


def _counts(heads: Heads) -> tuple[int, int]:
    return heads.heads, heads.key_heads


def attention_map(query_NHD: torch.Tensor, key_NKD: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Whom each token looks at: float16 [H, N, N], rows that add up to 1 over the tokens up to their own.

    One head at a time, so that no more than one map is ever held in float32.
    """
    tokens, shared = len(query_NHD), heads.heads // heads.key_heads
    place = torch.arange(tokens, device=query_NHD.device)
    back_NN = place[:, None] - place  # how many tokens back
    unseen_NN = back_NN < 0 if heads.window is None else (back_NN < 0) | (back_NN >= heads.window)
    maps_HNN = torch.empty((heads.heads, tokens, tokens), dtype=torch.float16, device=query_NHD.device)
    for head in range(heads.heads):
        # in float32: scores rounded to bfloat16 would be coarser than the float16 that the map is kept in
        scores = query_NHD[:, head].float() @ key_NKD[:, head // shared].float().T * heads.scale
        if heads.soft_cap:
            scores = heads.soft_cap * torch.tanh(scores / heads.soft_cap)
        maps_HNN[head] = scores.masked_fill(unseen_NN, -torch.inf).softmax(-1)
    return maps_HNN
