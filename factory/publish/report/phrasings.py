"""Which phrasing of its task a prompt was rendered from: told by the template's own words, as no column says it.

A dataset has copies of its templates. What stands in one outside of braces stands in every prompt made from it, so the
phrasing is the one most of whose words a prompt has.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LEAST: Final = 12  # characters: shorter pieces may stand in any text
TOLD: Final = 0.1  # of a template's pieces, by length: conditions leave most of them out
CLEAR: Final = 2  # times as much as of any other
PIECE: Final = re.compile(r"[^\n]+")
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Phrasings:
    """The pieces of plain text of each phrasing, those that no other one has."""

    pieces: dict[str, tuple[str, ...]]

    def name(self, prompt: str) -> str:
        """The phrasing of a prompt; "unknown" where none is told."""
        shares = {name: _share(pieces, prompt) for name, pieces in self.pieces.items()}
        first, second, *_ = sorted(shares, key=lambda name: (-shares[name], name))
        return first if shares[first] >= max(TOLD, CLEAR * shares[second]) else UNKNOWN


def read_phrasings(out: Path, task: str) -> Phrasings | None:
    """The phrasings of a task from the copies beside a dataset's rows; None where there are no two to be told apart."""
    found = {path.stem: _pieces(path) for path in sorted((out / "templates" / task).glob("user*.j2"))}
    if len(found) < 2:
        return None
    own = {}
    for name, pieces in found.items():
        others = {piece for other, said in found.items() if other != name for piece in said}
        own[name] = tuple(piece for piece in pieces if piece not in others)
    return Phrasings(own)


def _pieces(path: Path) -> list[str]:
    from jinja2 import Environment, TemplateError

    try:
        tokens = list(Environment().lex(path.read_text(encoding="utf-8")))
    except (TemplateError, OSError, UnicodeDecodeError):
        return []
    data = "\n".join(text for _, kind, text in tokens if kind == "data")
    return [piece for found in PIECE.findall(data) if len(piece := found.strip()) >= LEAST]


def _share(pieces: tuple[str, ...], prompt: str) -> float:
    whole = sum(map(len, pieces))
    return sum(len(piece) for piece in pieces if piece in prompt) / whole if whole else 0.0
