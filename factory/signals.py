"""Signals: the arrays that are kept beside a row's texts, and what a job asks to keep of them.

All are immutable. Arrays carry their shape in their name: T completion tokens, k kept ids, N input tokens (prompt and
completion but for the last sampled token, which was never an input), L layers, H hidden size.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from factory.hashing import is_drawn

Array = npt.NDArray[Any]
Keep = Literal["top_k", "top_p", "sampled"]
Positions = Literal["all", "completion", "answer"]
HiddenPositions = Literal["all", "completion", "kept"]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The teacher's own distribution (natural log, before temperature and grammar mask) at each of T tokens.

    Where fewer than k ids are kept, the others are -1 and their log-probabilities -inf; a position that is not kept has
    none at all, and its tail is 0: all mass is outside. `draws_TK` is how often each id was drawn, where ids are drawn.
    """

    sampled_T: Array
    topk_ids_TK: Array
    topk_TK: Array
    tail_T: Array
    entropy_T: Array
    draws_TK: Array | None = None

    @property
    def kept_TK(self) -> Array:
        """Which entries hold an id, bool [T, k]."""
        kept: Array = self.topk_ids_TK >= 0
        return kept

    def part(self, rows: slice | Array) -> "Logprobs":
        """The same of some of the tokens."""
        return Logprobs(**{name: array[rows] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, Array]:
        """Every array that is there, by name."""
        named = {name: getattr(self, name) for name in LOGPROB_ARRAYS}
        return {name: array for name, array in named.items() if array is not None}


LOGPROB_ARRAYS = Logprobs.__slots__


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Hidden states as raw little-endian bfloat16 bits, uint16 [N, L, H]; `layers` as in docs/signals.md.

    `positions_N` are the tokens they were taken at, where only some are kept.
    """

    layers: tuple[int, ...]
    bits_NLH: Array
    positions_N: Array | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """Which E experts each of N input tokens went to in each of L blocks, int16 [N, L, E], and their weights, float16.

    `blocks` are the decoder blocks that have experts, counted from 1 as hidden layers are.
    """

    blocks: tuple[int, ...]
    ids_NLE: Array
    weights_NLE: Array


@dataclass(frozen=True, slots=True)
class Attention:
    """How much each of N input tokens looks at those up to itself: float16 [L, H, N, N], L blocks, H query heads."""

    blocks: tuple[int, ...]
    maps_LHNN: Array


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """What a dataset keeps beside its texts. `layers` are resolved (no negative index); `pairs`: preference pairs.

    `compact`: logprobs are stored in fewer bytes, within the bounds of `factory.dataset.codec`. What `keep`, `top_p`,
    `positions`, `min_entropy` and `hidden_positions` mean is told in docs/signals.md.
    """

    top_k: int = 0
    layers: tuple[int, ...] = ()
    final_norm: bool = True
    pairs: bool = False
    compact: bool = False
    keep: Keep = "top_k"
    top_p: float = 1.0
    positions: Positions = "completion"
    min_entropy: float = 0.0
    hidden_positions: HiddenPositions = "all"
    experts: bool = False
    attention: tuple[int, ...] = ()
    attention_share: float = 0.0
    attention_tokens: int = 0

    @property
    def any(self) -> bool:
        """Whether anything is kept beside the texts."""
        return bool(self.top_k or self.layers or self.experts or self.attention)

    @property
    def ragged(self) -> bool:
        """Whether positions may have fewer than k ids."""
        return self.keep != "top_k" or self.positions == "answer" or self.min_entropy > 0

    def keeps_attention(self, row_id: str, inputs: int) -> bool:
        """Whether a row of so many input tokens has attention maps."""
        return bool(self.attention) and inputs <= self.attention_tokens and is_drawn(row_id, self.attention_share)

    @property
    def of_prompt(self) -> bool:
        """Whether there are distributions at the prompt's tokens too."""
        return self.top_k > 0 and self.positions == "all"
