"""What an endpoint counts of a request: the tokens that somebody charges for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that an endpoint counted for a request: `cached` of the prompt's, `reasoning` of the completion's."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        names = Usage.__slots__
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def without(self, other: "Usage") -> "Usage":
        """What is left when those tokens are taken out."""
        return Usage(**{name: getattr(self, name) - getattr(other, name) for name in Usage.__slots__})
