"""Candidates: ids that a row names for each of its own, in lists or flat, and what is refused of them."""

from typing import Any

import pytest
from pydantic import ValidationError

from factory.tasks.candidates import MOST, read_candidates

LISTS = [[1, 2], [], [3, 4, 5]]


@pytest.mark.parametrize(
    ("value", "counts"),
    [(LISTS, None), (LISTS, [2, 0, 3]), ([1, 2, 3, 4, 5], [2, 0, 3])],
    ids=["lists", "lists and counts", "flat"],
)
def test_lists_and_flat_ids_with_counts_are_the_same(value: Any, counts: Any) -> None:
    assert read_candidates(value, counts, 3, range(3), ()) == ((1, 2, 3, 4, 5), (2, 0, 3))


def test_flat_ids_without_counts_are_equally_many_each() -> None:
    assert read_candidates([1, 2, 3, 4], None, 2, range(2), ()) == ((1, 2, 3, 4), (2, 2))


def test_of_what_is_not_scored_nothing_is_named() -> None:
    lists = [[9], [1], [2], [3], [9]]
    assert read_candidates(lists, None, 5, range(1, 4), (1, 0, 1)) == ((1, 3), (1, 0, 1))


@pytest.mark.parametrize(
    ("value", "counts", "told"),
    [
        ([[1], [2]], None, "2 lists for 3 ids; need one for each"),
        ([], None, "0 lists for 3 ids"),
        ([1, 2, 3, 4], None, "4 ids in one list for 3 ids, so not equally many"),
        ([1, 2, 3, 4], [1, 2], "2 counts of 3 ids for 3 ids and 4 candidates"),
        ([1, 2, 3, 4], [1, 1, 1], "3 counts of 3 ids for 3 ids and 4 candidates"),
        (LISTS, [2, 1, 3], "candidate_counts are not the lengths"),
        ([[1], [7, 8, 7], [2]], None, "entry 2 names id 7 twice"),
        ([list(range(MOST + 1)), [1], [2]], None, "entry 1 names 1,025 ids"),
        ([[], [], []], None, "no id is named of any id that is scored"),
    ],
)
def test_what_does_not_fit_is_told(value: Any, counts: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_candidates(value, counts, 3, range(3), ())


@pytest.mark.parametrize("value", [[[1], [True], [2]], [[1], ["5"], [2]], [[1], [-1], [2]], [[2**31], [1], [2]], "123"])
def test_what_is_no_id_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        read_candidates(value, None, 3, range(3), ())
