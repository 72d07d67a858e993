"""The token strip of one row: every completion token with what the teacher thought of it, in few bytes.

Numbers are whole: surprise and entropy in hundredths of a nat, probabilities in ten-thousandths. `candidates` of a
token are (place in `texts`, ten-thousandths) pairs, likeliest first; what is not among them stands in `tail`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from factory.dataset.codec import STORED, find_damage, read_topk
from factory.signals import Array

IDS: Final = dict.fromkeys(("topk_ids", "topk_id_table", "topk_id_places", "topk_first"), np.int32)
TYPES: Final = IDS | dict.fromkeys(("topk_counts", "topk_draws", "topk_steps"), np.uint16)
NEVER: Final = 9999  # hundredths of a nat that stand for a probability of 0
UNLIKELY: Final = math.log(1000)  # nats below the likeliest id: hardly drawn, so set by a grammar or a budget
Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Strip:
    """One row's tokens; `candidates` and `tail` are empty where no distribution is kept. See the module's docstring."""

    # Distinct texts; `tokens` and `candidates` point into it.
    texts: list[str]
    tokens: list[int]
    ids: list[int]
    surprise: list[int]
    entropy: list[int]
    candidates: list[list[int]]
    tail: list[int]
    # Where the sampled id stands among the kept ones, from 1; 0 where it is not among them.
    ranks: list[int]
    # Tokens that the teacher alone would hardly have written.
    forced: list[int]
    answer_start: int
    # How many tokens there are in all: a long row is cut.
    whole: int
    # Whether `texts` are texts; else they are ids.
    spelt: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a row is shown: ids less likely than `least` go into the tail."""

    tokens: int = 20_000
    characters: int = 40_000
    least: float = 0.0


def make_strip(row: dict[str, Any], top_k: int, decode: Decode | None, limits: Limits) -> Strip | None:
    """None where the row has no logprobs, or some that do not fit its tokens."""
    ids = row["completion_token_ids"]
    flat = {name: np.array(row[name], TYPES.get(name, np.float32)) for name in STORED if row.get(name) is not None}
    batch = {name: (values, np.array([0, len(values)])) for name, values in flat.items()}
    if "entropy" not in flat or not ids or next(find_damage(batch, np.array([len(ids)]), top_k), None) is not None:
        return None
    topk = read_topk(batch, top_k)
    most = min(len(ids), limits.tokens)
    kept_ids, logprobs = topk["topk_ids"][:most], topk["topk_logprobs"][:most].astype(np.float64)
    sampled, tail = flat["sampled_logprobs"][:most], flat["tail_logprobs"][:most].astype(np.float64)
    speller = Speller(decode)
    candidates, shown = _list_candidates(kept_ids, logprobs, limits.least, speller)
    held = kept_ids[:, 0] >= 0
    return Strip(
        tokens=[speller.place(token) for token in ids[:most]],
        ids=list(ids[:most]),
        surprise=_hundredths(0 - sampled),
        entropy=_hundredths(flat["entropy"][:most]),
        candidates=candidates,
        tail=np.rint(1e4 * np.where(held, np.exp(tail) + shown, 1.0)).astype(int).tolist(),
        ranks=_find_ranks(ids[:most], kept_ids),
        forced=_find_forced(sampled, logprobs, held),
        answer_start=row["answer_start"],
        whole=len(ids),
        texts=speller.texts,
        spelt=decode is not None,
    )


class Speller:
    """Distinct texts of token ids, in the order in which they were first asked for."""

    def __init__(self, decode: Decode | None) -> None:
        self.decode = decode
        self.places: dict[int, int] = {}
        self.texts: list[str] = []

    def place(self, token: int) -> int:
        if token not in self.places:
            self.places[token] = len(self.texts)
            self.texts.append(self._spell(token))
        return self.places[token]

    def _spell(self, token: int) -> str:
        return str(token) if self.decode is None else self.decode([token])


def _list_candidates(
    ids_TK: Array, logprobs_TK: Array, least: float, speller: Speller
) -> tuple[list[list[int]], Array]:
    """Candidates of each token, and the mass of the kept ids that are not among them."""
    probs_TK = np.exp(logprobs_TK)
    # the first stands whatever its probability: a token without any bar says nothing
    shown_TK = (ids_TK >= 0) & (probs_TK >= least)
    shown_TK[:, 0] = ids_TK[:, 0] >= 0
    left = np.where(shown_TK | (ids_TK < 0), 0.0, probs_TK).sum(1)
    candidates = []
    for ids, probs, shown in zip(ids_TK.tolist(), np.rint(probs_TK * 1e4).astype(int).tolist(), shown_TK, strict=True):
        at = np.flatnonzero(shown).tolist()
        candidates.append([value for i in at for value in (speller.place(ids[i]), probs[i])])
    return candidates, left


def _find_ranks(sampled: Sequence[int], ids_TK: Array) -> list[int]:
    same_TK = ids_TK == np.array(sampled)[:, None]
    ranks: list[int] = np.where(same_TK.any(1), same_TK.argmax(1) + 1, 0).tolist()
    return ranks


def _find_forced(sampled: Array, logprobs_TK: Array, held: Array) -> list[int]:
    forced: list[int] = np.flatnonzero(held & (logprobs_TK[:, 0] - sampled > UNLIKELY)).tolist()
    return forced


def _hundredths(values: Array) -> list[int]:
    whole: list[int] = np.clip(np.rint(values.astype(np.float64) * 100), 0, NEVER).astype(int).tolist()
    return whole
