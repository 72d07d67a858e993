"""How many tokens a reasoning may have, so that an answer always has room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.teachers.fit import MIN_ANSWER_TOKENS, reasoning_budget


@pytest.mark.parametrize(
    ("thinking", "total", "closing", "expected"),
    [
        (384, 1024, 1, 384),
        (1000, 1024, 4, 1000),
        (1024, 1024, 4, 1024 - 4 - MIN_ANSWER_TOKENS),
        (None, 1024, 4, 768 - 4),
        (None, 40, 4, 40 - 4 - MIN_ANSWER_TOKENS),
        (0, 1024, 1, 0),
        (100, 10, 4, 0),
    ],
)
def test_the_budget_is_the_jobs_as_far_as_there_is_room(
    thinking: int | None, total: int, closing: int, expected: int
) -> None:
    assert reasoning_budget(thinking, total, closing) == expected


@given(st.one_of(st.none(), st.integers(0, 5000)), st.integers(1, 5000), st.integers(0, 40))
def test_an_answer_has_room_wherever_there_is_any(thinking: int | None, total: int, closing: int) -> None:
    budget = reasoning_budget(thinking, total, closing)
    assert budget == 0 or budget + closing + MIN_ANSWER_TOKENS <= total
