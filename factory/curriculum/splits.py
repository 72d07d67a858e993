"""Splits: rows that share a scenario, a prompt or a document stay on one side, and stay there when rows are added.

A document is any string of 200 characters or more inside a scenario, wherever it stands, compared without regard to
case, spacing and Unicode form; and so are the turns before a request, up to each of the assistant's. Which side a group
falls on depends on its own content and the seed alone.

    row 0   prompt p   scenario s   document d        rows that share any key are one group, however long the chain:
    row 1   prompt q   scenario t   document d        0 and 1 by d, 1 and 2 by q. The group's name is the smallest key
    row 2   prompt q   scenario u                     of its documents, and hash(seed, name) is its lot.

Shares are therefore about right and not exact: exact ones would move old rows whenever new ones come.
"""

import json
from array import array
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final

import numpy as np

from factory.hashing import canonical_json
from factory.signals import Array
from factory.texts.texts import leaves, normalize

DOCUMENT: Final = 200  # characters
CONVERSATION: Final = "conversation"  # what `splits.ignore` calls the turns before a request
PROMPT_KEY, SCENARIO_KEY, DOCUMENT_KEY = range(3)


class Links:
    """What ties rows together, gathered row by row: three parallel columns of (row, key, kind of key)."""

    def __init__(self, ignore: Collection[str] = ()) -> None:
        self.ignore = frozenset(ignore)
        # arrays of numbers, not lists: a million rows have some million links
        self.rows, self.keys, self.kinds = array("q"), array("Q"), array("b")
        self.count = 0
        self.document_fields: set[str] = set()
        self.ignored_fields: set[str] = set()

    def add(self, prompt_id: str, scenario: str, earlier: Sequence[str] = ()) -> None:
        """Take in the next row; `earlier` are the turns before its request, from the first to each of the assistant's.

        So a conversation and the same one some turns later stay together, and two that both begin with a greeting do
        not have to.
        """
        self._link(PROMPT_KEY, prompt_id)
        try:
            value = json.loads(scenario)
            text = canonical_json(value)
        except (ValueError, RecursionError):  # data of the user that is no JSON, or is nested too deeply
            value, text = scenario, scenario
        if value not in ({}, [], "", None):  # nothing is shared by rows that say nothing
            self._link(SCENARIO_KEY, text)
        for document in sorted(self._documents(value) | self._conversations(earlier)):
            self._link(DOCUMENT_KEY, document)
        self.count += 1

    def _documents(self, value: Any) -> set[str]:
        documents = set()
        for name, string in iterate_strings(value):
            if name in self.ignore:
                self.ignored_fields.add(name)
            elif len(string) >= DOCUMENT // 2 and len(document := normalize(string)) >= DOCUMENT:
                self.document_fields.add(name)
                documents.add(document)
        return documents

    def _conversations(self, earlier: Sequence[str]) -> set[str]:
        documents = {text for text in map(normalize, earlier) if len(text) >= DOCUMENT}
        name, ignored = CONVERSATION, CONVERSATION in self.ignore
        if documents:
            (self.ignored_fields if ignored else self.document_fields).add(name)
        return set() if ignored else documents

    def _link(self, kind: int, text: str) -> None:
        self.rows.append(self.count)
        # the kind is hashed along: a scenario that reads like a prompt's id is no link to it
        self.keys.append(hash_text(f"{kind}:{text}"))
        self.kinds.append(kind)

    def group(self) -> tuple[Array, Array]:
        """The group of each row, int64 [rows] from 0, and the name of each group, uint64 [groups].

        A group is named after its document with the smallest key, else its scenario, else its prompt: a further
        question about a document does not rename it.
        """
        rows, keys, kinds = np.array(self.rows), np.array(self.keys), np.array(self.kinds)
        group_R = unite(self.count, rows, keys)
        name_G = np.zeros(int(group_R.max()) + 1 if self.count else 0, np.uint64)
        for kind in (PROMPT_KEY, SCENARIO_KEY, DOCUMENT_KEY):
            smallest = np.full(len(name_G), np.iinfo(np.uint64).max)
            mine = kinds == kind
            np.minimum.at(smallest, group_R[rows[mine]], keys[mine])
            present = np.zeros(len(name_G), np.bool_)
            present[group_R[rows[mine]]] = True
            # later kinds win: a document before a scenario before a prompt
            name_G = np.where(present, smallest, name_G)
        return group_R, name_G

    def prompt_keys(self) -> Array:
        """The key of each row's prompt, uint64 [rows]."""
        keys: Array = np.array(self.keys)[np.array(self.kinds) == PROMPT_KEY]
        return keys


def iterate_strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every string inside a JSON value with the name of the nearest key above it."""
    for steps, leaf in leaves(value):
        if isinstance(leaf, str):
            yield next((step for step in reversed(steps) if isinstance(step, str)), ""), leaf


def hash_text(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def unite(count: int, rows: Array, keys: Array) -> Array:
    """The group of each of `count` rows, int64, where rows that share a key are together; numbered by first row."""
    by_key = np.lexsort((rows, keys))
    same = keys[by_key][1:] == keys[by_key][:-1]
    parent = list(range(count))
    for a, b in zip(rows[by_key][:-1][same].tolist(), rows[by_key][1:][same].tolist(), strict=True):
        roots = sorted((_find(parent, a), _find(parent, b)))
        # the smaller row is the root, so groups are numbered by their first row
        parent[roots[1]] = roots[0]
    roots_R = np.array([_find(parent, row) for row in range(count)], np.int64)
    groups: Array = np.unique(roots_R, return_inverse=True)[1].astype(np.int64)
    return groups


def _find(parent: list[int], row: int) -> int:
    while parent[row] != row:
        # halving the path keeps it short without a second pass
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


def assign_splits(names: Array, seed: int, validation: float, test: float) -> Array:
    """The split of each group by its name, int8: 0 train, 1 validation, 2 test."""
    # 53 bits are what a float in [0, 1) can hold
    lots = [(hash_text(f"{seed}:{name}") >> 11) / 2**53 for name in names.tolist()]
    # train comes first: to hold out a larger share moves no row into it
    ends = [1 - validation - test, 1 - test]
    return np.searchsorted(ends, np.array(lots), side="right").astype(np.int8)
