"""Splits: whatever ties rows together, no two splits share it, and rows that come later move nothing."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.curriculum.splits import Links, assign_splits, iterate_strings, unite

LONG = "The quick brown fox jumps over the lazy dog. " * 6


def link(scenarios: Iterable[tuple[str, Any]], ignore: Sequence[str] = ()) -> Links:
    links = Links(ignore)
    for prompt_id, scenario in scenarios:
        links.add(prompt_id, scenario if isinstance(scenario, str) else json.dumps(scenario))
    return links


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=80))
def test_groups_are_the_connected_parts(pairs: list[tuple[int, int]]) -> None:
    rows, keys = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    group = unite(31, rows, keys.astype(np.uint64))
    reached: dict[int, set[int]] = {row: {row} for row in range(31)}
    for _ in range(31):  # slow and plain: spread until nothing changes
        by_key: dict[int, set[int]] = defaultdict(set)
        for row, key in pairs:
            by_key[key] |= reached[row]
        for row, key in pairs:
            reached[row] |= by_key[key]
    for a, b in itertools.combinations(range(31), 2):
        assert (group[a] == group[b]) == (b in reached[a])


documents = st.integers(0, 6).map(lambda n: f"Document {n}. " + LONG)
scenarios = st.fixed_dictionaries({"question": st.integers(0, 5)}, optional={"texts": st.lists(documents, max_size=2)})


@given(st.lists(st.tuples(st.integers(0, 40).map(str), scenarios), min_size=1, max_size=50), st.integers(0, 9))
def test_no_two_splits_share_a_prompt_a_scenario_or_a_document(rows: list[tuple[str, Any]], seed: int) -> None:
    group, names = link(rows).group()
    split = assign_splits(names, seed, 0.3, 0.3)[group]
    for texts in (
        [[prompt] for prompt, _ in rows],
        [[json.dumps(scenario, sort_keys=True)] for _, scenario in rows],
        [scenario.get("texts", []) for _, scenario in rows],
    ):
        sides: dict[str, set[int]] = defaultdict(set)
        for mine, side in zip(texts, split.tolist(), strict=True):
            for text in mine:
                sides[text].add(side)
        assert all(len(found) == 1 for found in sides.values())


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.lists(st.integers(0, 30), max_size=40))
def test_further_questions_about_documents_move_nothing(old: list[int], new: list[int]) -> None:
    def rows(numbers: list[int], first: int) -> list[tuple[str, Any]]:
        texts = ((f"p{first + i}", {"question": first + i, "text": f"{n} {LONG}"}) for i, n in enumerate(numbers))
        return list(texts)

    def split(all_rows: list[tuple[str, Any]]) -> list[int]:
        group, names = link(all_rows).group()
        return [int(side) for side in assign_splits(names, 3, 0.25, 0.25)[group]]

    assert split([*rows(old, 0), *rows(new, 1000)])[: len(old)] == split(rows(old, 0))


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ({"text": LONG, "q": 1}, {"text": LONG.upper().replace(" ", "\n\t"), "q": 2}, True),
        ({"text": LONG, "q": 1}, {"deep": [{"er": [LONG + " "]}], "q": 2}, True),
        ({"text": "ﬁne Å " + LONG}, {"body": "fine Å " + LONG}, True),  # ligature, Angstrom sign
        ({"text": LONG + "a"}, {"text": LONG + "b"}, False),
        ({"text": "short", "q": 1}, {"text": "short", "q": 2}, False),
        ({"b": 1, "a": 2}, '{ "a": 2, "b": 1 }', True),
        ({}, {}, False),
        ("", "", False),
        ("not JSON", "not JSON", True),
        ("[" * 100_000, "[" * 100_000, True),
        ({"q": 1, "text": "\ud800" + LONG}, {"q": 2, "text": "\ud800" + LONG}, True),
    ],
)
def test_what_counts_as_one_document(one: Any, other: Any, together: bool) -> None:
    group, _ = link([("p", one), ("q", other)]).group()
    assert (group[0] == group[1]) == together


def test_all_samples_of_a_prompt_are_together() -> None:
    group, _ = link([("p", {}), ("q", {}), ("p", {})]).group()
    assert group.tolist() == [0, 1, 0]


def test_texts_of_ignored_fields_tie_nothing() -> None:
    rows = [(str(n), {"policy": LONG, "inside": {"policy": [LONG]}, "document": f"{n} {LONG}"}) for n in range(5)]
    assert len(link(rows).group()[1]) == 1
    links = link(rows, ignore=["policy"])
    assert len(links.group()[1]) == 5
    assert (links.document_fields, links.ignored_fields) == ({"document"}, {"policy"})


def test_shares_are_kept_about_and_a_share_of_nothing_is_nothing() -> None:
    names = np.arange(20_000, dtype=np.uint64)
    counts = np.bincount(assign_splits(names, 0, 0.05, 0.1), minlength=3) / 20_000
    assert counts.tolist() == pytest.approx([0.85, 0.05, 0.1], abs=0.01)
    assert set(assign_splits(names, 0, 0.0, 0.0).tolist()) == {0}
    assert set(assign_splits(names, 0, 0.5, 0.5).tolist()) == {1, 2}
    assert (assign_splits(names, 0, 0.3, 0.3) != assign_splits(names, 1, 0.3, 0.3)).any()


nested = st.recursive(
    st.text(max_size=5) | st.integers() | st.none(),
    lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    max_leaves=12,
)


@given(nested)
def test_every_string_of_a_scenario_is_found(value: Any) -> None:
    def walk(item: Any) -> list[str]:
        if isinstance(item, str):
            return [item]
        parts = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        return [text for part in parts for text in walk(part)]

    assert sorted(text for _, text in iterate_strings(value)) == sorted(walk(value))


def test_rows_that_go_on_from_one_conversation_stay_together() -> None:
    greeting = "user: Hi\nassistant: Hello, how are you today?\n"
    first, second = f"{greeting}user: {LONG}\nassistant: Noted.\n", f"{greeting}user: Other {LONG}\nassistant: Noted.\n"
    rows = [
        [greeting, first],
        [greeting, first, f"{first}user: And now?\nassistant: Still noted.\n"],
        [greeting, second],
        [greeting],
        [],
    ]
    links = Links()
    for number, earlier in enumerate(rows):
        links.add(str(number), json.dumps({"number": number}), earlier)
    # a greeting alone ties nothing together
    assert links.group()[0].tolist() == [0, 0, 1, 2, 3]
    assert links.document_fields == {"conversation"}
    ignoring = Links(["conversation"])
    for number, earlier in enumerate(rows):
        ignoring.add(str(number), json.dumps({"number": number}), earlier)
    assert ignoring.group()[0].tolist() == [0, 1, 2, 3, 4]
    assert ignoring.ignored_fields == {"conversation"}
