"""Attention maps out of queries and keys, on plain tensors: the arithmetic, the bytes between, and what is refused."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from factory.teachers.engine.attention import BLANK, Heads, attention_map, maps_of, read_heads, row_bytes, rows_of

HEADS = Heads(heads=6, key_heads=2, size=8, scale=0.3, dtype=torch.float32)
TOKENS = 17


def draw(heads: Heads, tokens: int = TOKENS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [N, H * D] and keys [N, K * D]."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (heads.heads * heads.size, heads.key_heads * heads.size)
    query, key = (torch.randn(tokens, size, generator=generator).to(heads.dtype) for size in sizes)
    return query, key


def whole(heads: Heads, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return attention_map(query.unflatten(1, (-1, heads.size)), key.unflatten(1, (-1, heads.size)), heads).float()


def by_torch(heads: Heads, query: torch.Tensor, key: torch.Tensor, mask_NN: torch.Tensor) -> torch.Tensor:
    """torch's own attention over values that are the identity: what comes out are its weights."""
    query_HND, key_KND = (part.unflatten(1, (-1, heads.size)).transpose(0, 1)[None] for part in (query, key))
    value = torch.eye(len(query)).expand(1, heads.key_heads, -1, -1)
    return scaled_dot_product_attention(
        query_HND, key_KND, value, attn_mask=mask_NN, scale=heads.scale, enable_gqa=True
    )[0]


def test_a_map_is_what_torchs_attention_gives_with_shared_keys() -> None:
    query, key = draw(HEADS)
    expected = by_torch(HEADS, query, key, torch.ones(TOKENS, TOKENS).tril().bool())
    torch.testing.assert_close(whole(HEADS, query, key), expected, atol=5e-4, rtol=0)


def test_a_window_shows_that_many_tokens() -> None:
    heads = Heads(heads=6, key_heads=2, size=8, scale=0.3, dtype=torch.float32, window=4)
    query, key = draw(heads)
    mask_NN = torch.ones(TOKENS, TOKENS).tril().triu(-3).bool()
    maps_HNN = whole(heads, query, key)
    torch.testing.assert_close(maps_HNN, by_torch(heads, query, key, mask_NN), atol=5e-4, rtol=0)
    assert ((maps_HNN[:, -1] > 0).sum(-1) == 4).all()


def test_rows_add_up_to_one_and_no_token_looks_ahead() -> None:
    maps_HNN = whole(HEADS, *draw(HEADS))
    torch.testing.assert_close(maps_HNN.sum(-1), torch.ones(6, TOKENS), atol=2e-3, rtol=0)
    assert (maps_HNN.triu(1) == 0).all()
    assert (maps_HNN[:, 0, 0] == 1).all()


def test_a_soft_cap_bounds_the_scores() -> None:
    """With a cap c no score is beyond c, so no weight beyond exp(2 c) times another."""
    heads = Heads(heads=6, key_heads=2, size=8, scale=100.0, dtype=torch.float32, soft_cap=0.5)
    last_HN = whole(heads, *draw(heads))[:, -1]
    assert (last_HN.amax(-1) / last_HN.amin(-1)).max() < np.e * 1.01
    assert (last_HN.amax(-1) / last_HN.amin(-1)).max() > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_of_two_blocks_become_their_maps(dtype: torch.dtype) -> None:
    """Rows of bytes in any steps, blocks in the order asked for; no rounding on the way."""
    one = Heads(heads=6, key_heads=2, size=8, scale=0.3, dtype=dtype)
    other = Heads(heads=6, key_heads=3, size=4, scale=0.5, dtype=dtype)
    heads = {5: one, 2: other}
    given = {5: draw(one, seed=1), 2: draw(other, seed=2)}
    steps = [slice(0, 9), slice(9, 10), slice(10, TOKENS)]
    rows = [rows_of({block: (q[step], k[step]) for block, (q, k) in given.items()}, heads) for step in steps]
    rows_NW = torch.cat(rows).numpy()
    assert rows_NW.shape == (TOKENS, row_bytes(heads))
    expected = torch.stack([whole(one, *given[5]), whole(other, *given[2])])
    assert np.array_equal(maps_of(rows_NW, heads), expected.numpy().astype(np.float16))


def test_queries_by_head_are_the_same_rows() -> None:
    query, key = draw(HEADS)
    by_head = (query.unflatten(1, (-1, 8)), key.unflatten(1, (-1, 8)))
    assert torch.equal(rows_of({1: by_head}, {1: HEADS}), rows_of({1: (query, key)}, {1: HEADS}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_position_that_was_never_written_is_not_a_number(dtype: torch.dtype) -> None:
    heads = {1: Heads(heads=6, key_heads=2, size=8, scale=0.3, dtype=dtype)}
    rows_NW = rows_of({1: draw(heads[1])}, heads).numpy()
    rows_NW[7] = BLANK
    maps_LHNN = maps_of(rows_NW, heads)
    assert np.isfinite(maps_LHNN[:, :, :7]).all()
    assert np.isnan(maps_LHNN[:, :, 7:]).any(-1).all()


class Attention:
    """What is read of vLLM's module of this name."""

    def __init__(self, **replaced: Any) -> None:
        self.num_heads, self.num_kv_heads, self.head_size = 6, 2, 8
        self.sliding_window: int | None = None
        self.has_sink, self.kv_sharing_target_layer_name = False, None
        self.dtype = self.kv_cache_torch_dtype = torch.bfloat16
        self.kv_cache_dtype = "auto"
        self.impl = SimpleNamespace(scale=0.3, logits_soft_cap=None, alibi_slopes=None)
        self.__dict__ |= replaced


class MLAAttention(Attention):
    pass


def test_plain_attention_is_read() -> None:
    impl = SimpleNamespace(scale=0.3, logits_soft_cap=50, alibi_slopes=None)
    assert read_heads(1, Attention()) == Heads(6, 2, 8, 0.3, torch.bfloat16)
    assert read_heads(1, Attention(sliding_window=9, impl=impl)) == Heads(6, 2, 8, 0.3, torch.bfloat16, 9, 50.0)


REFUSED: dict[str, Callable[[], Any]] = {
    "it is MLAAttention, not plain causal attention": MLAAttention,
    "adds ALiBi's bias": lambda: Attention(impl=SimpleNamespace(scale=1, logits_soft_cap=0, alibi_slopes=[1.0])),
    "its heads have attention sinks": lambda: Attention(has_sink=True),
    r"uses the keys of model\.layers\.0": lambda: Attention(kv_sharing_target_layer_name="model.layers.0"),
    "its cache rounds keys to fp8": lambda: Attention(kv_cache_torch_dtype=torch.uint8, kv_cache_dtype="fp8"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_attention_that_is_more_than_a_softmax_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=rf"the attention of block 3 cannot be kept: .*{reason}"):
        read_heads(3, REFUSED[reason]())
