"""Rows that come a step late: a lane whose copies end when the test says so stands for a device with streams."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from factory.teachers.engine.copies import Copies, SideStream, to_device
from factory.teachers.engine.pages import Array, Pages


@dataclass
class Late:
    """The mark of a copy that has not ended; waiting for it ends it."""

    done: bool = False
    waited: bool = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited = self.waited or not self.done
        self.done = True


@dataclass
class SlowLane:
    """A lane on which nothing ends by itself. What was lent and not given back is `lent`."""

    marks: list[Late] = field(default_factory=list)
    lent: int = 0

    def copy(self, rows: torch.Tensor) -> tuple[torch.Tensor, Late]:
        self.marks.append(Late())
        self.lent += 1
        return rows.clone(), self.marks[-1]

    def give_back(self, host: torch.Tensor) -> None:
        self.lent -= 1
        host.fill_(-1)  # the next copy's: who still looked here would see it


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def at(*places: int) -> Array:
    return np.array(places, np.int64)


def make(most_bytes: int = 1 << 20) -> tuple[Copies, SlowLane, Pages]:
    lane = SlowLane()
    return Copies(lane, most_bytes), lane, Pages(1, np.float32, np.nan)


def taken(pages: Pages, slot: int, length: int) -> list[float]:
    return [float(value) for value in pages.take(slot, length)[:, 0]]


def test_nothing_is_written_before_it_has_come_and_nobody_waits() -> None:
    copies, lane, pages = make()
    copies.send(rows(1, 2), pages, at(0, 1), at(0, 0))
    copies.send(rows(3, 4), pages, at(0, 1), at(1, 1))
    assert (pages.table < 0).all()
    lane.marks[0].done = True
    copies.send(rows(5, 6), pages, at(0, 1), at(2, 2))
    assert not any(mark.waited for mark in lane.marks)
    assert taken(pages, 1, 1) == [2]
    assert lane.lent == 2


def test_a_finished_request_waits_for_its_own_rows_and_for_no_step_that_ran_ahead() -> None:
    copies, lane, pages = make()
    for step, value in enumerate((1, 2, 3)):
        copies.send(rows(value, 10 * value), pages, at(0, 1), at(step, step))
    copies.finish(0, {pages: 2})  # two tokens; the third step was begun before its end was known
    assert [mark.waited for mark in lane.marks] == [True, True, False]
    assert taken(pages, 0, 2) == [1, 2]


def test_a_step_that_ran_ahead_is_not_written_into_the_next_request() -> None:
    copies, _, pages = make()
    copies.send(rows(1, 5), pages, at(0, 1), at(0, 0))
    copies.send(rows(2, 6), pages, at(0, 1), at(1, 1))
    copies.finish(0, {pages: 1})
    assert taken(pages, 0, 1) == [1]
    copies.forget(0)
    copies.send(rows(7), pages, at(0), at(0))  # the slot's next request
    copies.finish(0, {pages: 2})
    copies.finish(1, {pages: 2})
    kept = pages.take(0, 2)[:, 0]
    assert kept[0] == 7
    assert np.isnan(kept[1])
    assert taken(pages, 1, 2) == [5, 6]


def test_the_later_of_two_writes_to_one_place_stays() -> None:
    copies, _, pages = make()
    for value in (1, 2):  # computed again after a preemption
        copies.send(rows(value), pages, at(0), at(0))
    copies.finish(0, {pages: 1})
    assert taken(pages, 0, 1) == [2]


def test_only_the_rows_that_count_are_written() -> None:
    copies, _, pages = make()
    copies.send(rows(1, 2, 3), pages, at(0, 1, 2), at(0, 0, 0), np.array([True, False, True]))
    copies.send(rows(4), pages, at(1), at(0), np.array([False]))
    copies.finish(2, {pages: 1})
    assert taken(pages, 0, 1) == [1]
    assert taken(pages, 2, 1) == [3]
    assert taken(pages, 1, 1) == []


def test_memory_is_bounded_by_waiting_for_the_oldest() -> None:
    copies, lane, pages = make(most_bytes=100)
    for step in range(50):
        copies.send(rows(*range(10)), pages, at(*range(10)), at(*[step] * 10))
        assert copies.bytes <= 100
        assert lane.lent <= 2
    assert sum(mark.waited for mark in lane.marks) >= 47
    copies.finish(9, {pages: 50})
    assert taken(pages, 9, 50) == [9] * 50


def test_rows_of_a_device_without_streams_are_there_at_once() -> None:
    pages = Pages(1, np.uint16, 0)
    Copies(None).send(torch.tensor([[-1], [3]], dtype=torch.int16), pages, at(70, 1), at(5, 0))
    assert pages.take(1, 1).tolist() == [[3]]
    assert pages.take(70, 6)[-1:].tolist() == [[65535]]  # the same bits under the pages' own name
    assert to_device(at(3), torch.device("cpu")).tolist() == [3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")
def test_a_side_stream_brings_the_rows_of_each_step() -> None:
    device = torch.device("cuda")
    copies, pages = Copies(SideStream(device)), Pages(256, np.float32, np.nan)
    for step in range(200):
        made = torch.full((64, 256), float(step), device=device) @ torch.eye(256, device=device)
        copies.send(made, pages, np.arange(64), np.full(64, step))
        del made  # its memory may be the next step's
    for slot in range(64):
        copies.finish(slot, {pages: 200})
        assert (pages.take(slot, 200) == np.arange(200)[:, None]).all()
