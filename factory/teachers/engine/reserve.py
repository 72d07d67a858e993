"""How much memory of the host what is kept of the requests in the engine may come to take, and when that is enough.

Kept arrays stand in the host's memory until their request is finished. Each request is counted with all that it can
come to: prompt and completion at their longest. While that is more than the reserve no further prompt goes into the
engine; it stays unanswered, so whoever feeds the engine finds no room and asks no more.
"""

from typing import Any, Final

from factory.signals import SignalSpec

SHARE: Final = 0.5  # of the memory that is free when an engine is ready; the rest is the engine's and the spool's
REPLICAS: Final = 8  # of a teacher that has as many as there are GPUs: an engine sees its own alone


class Reserve:
    """Bytes that the requests in the engine can come to keep, and how many of them there may be."""

    def __init__(self, bytes_per_token: int, most: float) -> None:
        self.bytes_per_token = bytes_per_token
        self.most = most
        self.tokens: dict[str, int] = {}
        self.held = 0

    @property
    def has_room(self) -> bool:
        """Whether another request may go in: one at least, however large it is."""
        return not self.tokens or self.held * self.bytes_per_token < self.most

    def take(self, name: str, tokens: int) -> None:
        """A request goes in that can come to so many tokens."""
        self.tokens[name] = tokens
        self.held += tokens

    def free(self, name: str) -> None:
        """A request is gone."""
        self.held -= self.tokens.pop(name)


def kept_bytes(signals: SignalSpec, hidden_size: int, chosen_experts: int) -> int:
    """Bytes that one token's kept numbers take in a worker: a packed row of float32, states in 16 bits, routes."""
    row = 4 * (3 + (3 if signals.keep == "sampled" else 2) * signals.top_k) if signals.top_k else 0
    return row + 2 * len(signals.layers) * hidden_size + (4 * chosen_experts if signals.experts else 0)


def open_reserve(signals: SignalSpec, config: Any, replicas: int | str) -> Reserve:
    """The reserve of an engine whose model has this configuration, by the memory that is free now.

    It is one of so many `replicas` on this machine, or "auto".
    """
    import psutil

    text = config.hf_text_config
    names = ("num_experts_per_tok", "top_k_experts", "moe_topk")
    experts = next((int(getattr(text, name)) for name in names if getattr(text, name, None)), 0)
    most = psutil.virtual_memory().available * SHARE / (replicas if isinstance(replicas, int) else REPLICAS)
    per_token = kept_bytes(signals, int(config.get_hidden_size()), experts * int(getattr(text, "num_hidden_layers", 0)))
    return Reserve(per_token, most)
