"""`[signals]` and `[storage]`: what is kept of a teacher's numbers, and how it is written."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from factory.job.config import Config
from factory.signals import HiddenPositions, Keep, Positions


class AttentionConfig(Config):
    """`[signals.attention]`: whole attention maps of these decoder blocks (1 is the first, -1 the last).

    Of a `share` of the rows, drawn by their ids, and of these the ones of at most `max_tokens` input tokens: a map has
    as many numbers as tokens squared.
    """

    layers: Annotated[list[int], Field(min_length=1, max_length=256)]
    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    max_tokens: Annotated[int, Field(ge=2, le=8192)] = 512


class SignalsConfig(Config):
    """`[signals]`: what is kept of the teacher's distribution and of its inside.

    `keep`: the `top_k` likeliest ids at each position; of these as many as reach the mass `top_p`; or the ids that
    `top_k` random draws from the distribution give. `positions` and `min_entropy` (nats) say where, `hidden_positions`
    the same of hidden states ("kept": those that predict a token whose distribution is kept). `experts`: the routing
    of a mixture-of-experts teacher.
    `verify_rows`: how many rows are run again through transformers at the end (0: none; left out: 4 with vLLM).
    `capture`: taken while the teacher generates, or by a prefill over the finished ids afterwards.
    """

    top_k: Annotated[int, Field(ge=0, le=1024)] = 20
    keep: Keep = "top_k"
    top_p: Annotated[float, Field(gt=0, lt=1)] | None = None
    positions: Positions = "completion"
    min_entropy: Annotated[float, Field(ge=0, le=20)] = 0.0
    hidden_positions: HiddenPositions = "all"
    experts: bool = False
    attention: AttentionConfig | None = None
    hidden_layers: Annotated[list[int], Field(max_length=256)] = Field(default_factory=list)
    final_norm: bool = True
    capture: Literal["decode", "prefill"] = "decode"
    verify_rows: Annotated[int, Field(ge=0, le=1024)] | None = None

    @model_validator(mode="after")
    def _choices_fit(self) -> "SignalsConfig":
        if (self.keep == "top_p") != (self.top_p is not None):
            raise ValueError('keep = "top_p" and top_p (a mass, such as 0.98) belong together; give both or neither')
        fields = type(self).model_fields
        asked = [name for name in ("keep", "positions", "min_entropy") if getattr(self, name) != fields[name].default]
        if not self.top_k and asked:
            raise ValueError(f"{', '.join(asked)}: top_k is 0, so no logprobs are kept; set top_k or leave it out")
        if not self.top_k and self.hidden_positions == "kept":
            raise ValueError('hidden_positions = "kept" follows the kept logprobs, and top_k is 0; say "completion"')
        if not self.hidden_layers and self.hidden_positions != "all":
            raise ValueError("hidden_positions: no hidden_layers are kept; name some or leave it out")
        return self


class StorageConfig(Config):
    """`[storage]`: how the kept signals are written.

    `logprobs`: `exact` keeps every number as it came, `compact` the ids exactly and the others within stated bounds.
    """

    logprobs: Literal["exact", "compact"] = "exact"
