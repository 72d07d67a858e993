"""Pages: whatever order batches come in, a request gets its own rows back, and memory is used again."""

import numpy as np
import pytest

from factory.teachers.engine.pages import PAGE, Pages


def write_one(pages: Pages, slot: int, positions: list[int], first: float = 0) -> None:
    values = np.array([[first + p, -p] for p in positions], np.float32)
    pages.write(np.full(len(positions), slot), np.array(positions), values)


def test_rows_come_back_in_the_order_of_their_positions() -> None:
    pages = Pages(2, np.float32, np.nan)
    order = np.random.default_rng(0).permutation(100).tolist()
    write_one(pages, 3, order)
    assert np.array_equal(pages.take(3, 100), [[p, -p] for p in range(100)])


def test_many_requests_in_one_batch_do_not_meet() -> None:
    pages, rng = Pages(3, np.int32, -1), np.random.default_rng(1)
    truth: dict[tuple[int, int], np.ndarray] = {}
    lengths = rng.integers(1, 200, 50)
    for position in range(int(lengths.max())):
        slots_B = np.flatnonzero(lengths > position)
        values_BW = rng.integers(0, 10**6, (len(slots_B), 3), dtype=np.int32)
        pages.write(slots_B, np.full(len(slots_B), position), values_BW)
        truth |= {(slot, position): value for slot, value in zip(slots_B.tolist(), values_BW, strict=True)}
    for slot, length in enumerate(lengths.tolist()):
        assert np.array_equal(pages.take(slot, length), [truth[slot, position] for position in range(length)])


def test_a_position_written_again_is_replaced() -> None:
    pages = Pages(2, np.float32, np.nan)
    write_one(pages, 0, [0, 1, 2])
    write_one(pages, 0, [1], first=100)
    assert pages.take(0, 3)[:, 0].tolist() == [0, 101, 2]


def test_a_position_never_written_is_blank() -> None:
    pages = Pages(2, np.float32, np.nan)
    write_one(pages, 0, [0, 2])
    assert np.isnan(pages.take(0, 3)).tolist() == [[False, False], [True, True], [False, False]]


def test_a_page_never_written_leaves_too_few_rows() -> None:
    pages = Pages(2, np.float32, np.nan)
    write_one(pages, 0, [PAGE + 1])
    assert len(pages.take(0, PAGE + 2)) < PAGE + 2
    write_one(pages, 0, [1])
    assert len(pages.take(0, PAGE + 2)) < PAGE + 2


def test_a_slot_is_empty_after_it_is_taken_and_its_rows_are_a_copy() -> None:
    pages = Pages(2, np.float32, np.nan)
    write_one(pages, 0, [0, 1])
    rows = pages.take(0, 2)
    write_one(pages, 0, [0], first=50)
    assert rows[:, 0].tolist() == [0, 1]
    assert np.isnan(pages.take(0, 2)[1]).all(), "a page used again does not show what was in it"


@pytest.mark.parametrize("slot", [0, 5, 1000])
def test_a_slot_that_was_never_written_has_no_rows(slot: int) -> None:
    pages = Pages(2, np.float32, np.nan)
    assert pages.take(slot, 4).shape == (0, 2)
    pages.drop(slot)


def test_nothing_is_taken_of_a_request_of_no_tokens() -> None:
    pages = Pages(2, np.float32, np.nan)
    write_one(pages, 0, [0])
    assert pages.take(0, 0).shape == (0, 2)


def test_memory_follows_what_is_alive() -> None:
    pages = Pages(2, np.float32, np.nan)
    size = len(pages.data)
    for number in range(200):
        write_one(pages, number % 7, list(range(PAGE * 5)))
        if number % 2:
            pages.take(number % 7, PAGE * 5)
        else:
            pages.drop(number % 7)
    assert len(pages.data) == size
    assert len(pages.free) == size


def test_the_pool_grows_and_keeps_what_it_holds() -> None:
    pages = Pages(2, np.float32, np.nan)
    size = len(pages.data)
    for slot in range(3):
        write_one(pages, slot, list(range(PAGE * size)), first=slot)
    assert len(pages.data) >= 3 * size
    for slot in range(3):
        assert pages.take(slot, PAGE * size)[:, 0].tolist() == [slot + p for p in range(PAGE * size)]
    assert sorted(pages.free) == list(range(len(pages.data)))
