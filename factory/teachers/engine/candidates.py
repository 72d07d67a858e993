"""Candidates: log-probabilities of ids that a scored row names, read off the step's logits beside what else is kept.

A row's candidates are numbered through, token after token, and entry m is kept at (slot, m). The ids wait here from the
request's beginning; the numbers are those of the reduction, which has the row's total already: one look-up each.

    named of       c0          c1    c2                 counts 3 1 2
    ids            7  9  4     8     7  5               ends   0 3 4 6
    entry m        0  1  2     3     4  5
"""

from collections.abc import Sequence

import numpy as np

from factory.signals import Array
from factory.teachers.engine.batch import Named
from factory.teachers.engine.copies import Copies, to_device
from factory.teachers.engine.pages import Pages
from factory.teachers.engine.reduce import Reduced


class CandidateKeeper:
    """What is kept of candidates, of all requests inside a worker."""

    def __init__(self) -> None:
        self.pages = Pages(1, np.float32, np.nan)

    def keep(
        self,
        reduced: Reduced,
        named: Sequence[Named | None],
        request_N: Array,
        slot_N: Array,
        index_N: Array,
        copies: Copies,
    ) -> None:
        """Keep those of some tokens: row n of `reduced` predicts completion token `index_N[n]` (below 0: one of the
        prompt) of request `request_N[n]`, whose candidates are `named[request_N[n]]`."""
        rows, ids, places = [], [], []
        for request in np.unique(request_N).tolist():
            of = named[request]
            if of is None:
                continue
            own_N = np.flatnonzero((request_N == request) & (index_N >= 0))
            first_N, end_N = of.ends_T[index_N[own_N]], of.ends_T[index_N[own_N] + 1]
            counts_N = end_N - first_N
            # an entry's number: its token's first, and how far it is into that token's own
            within = np.arange(counts_N.sum()) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
            place = np.repeat(first_N, counts_N) + within
            rows.append(np.repeat(own_N, counts_N))
            places.append(place)
            ids.append(of.ids_M[place])
        if not rows:
            return
        row_M = np.concatenate(rows)
        values_M = reduced.at(to_device(row_M, reduced.device), to_device(np.concatenate(ids), reduced.device))
        copies.send(values_M[:, None], self.pages, slot_N[row_M], np.concatenate(places))

    def take(self, slot: int, named: Named) -> dict[str, Array]:
        """The log-probabilities of a finished request's candidates, float32 [M]."""
        return {"candidates_M": self.pages.take(slot, len(named.ids_M))[:, 0]}

    def drop(self, slot: int) -> None:
        self.pages.drop(slot)


def as_float16(values: Array) -> Array:
    """As they are stored; what is too small for it becomes -inf, as the floor that stands for the log of 0 does."""
    with np.errstate(over="ignore"):
        rounded: Array = values.astype(np.float16)
    return rounded
