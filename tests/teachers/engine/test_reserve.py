"""How many requests may be in the engine at once, by the memory that what is kept of them can come to take."""

import numpy as np

from factory.signals import SignalSpec
from factory.teachers.engine.distribution import row_width
from factory.teachers.engine.reserve import Reserve, kept_bytes


def test_requests_go_in_until_the_reserve_is_spent_and_again_when_one_is_gone() -> None:
    reserve = Reserve(bytes_per_token=10, most=1000)
    taken = []
    while reserve.has_room:
        taken.append(f"r{len(taken)}")
        reserve.take(taken[-1], 40)
    assert len(taken) == 3  # 800 bytes leave room for one more, 1,200 for none
    reserve.free("r1")
    assert reserve.has_room


def test_one_request_goes_in_however_large_it_is() -> None:
    reserve = Reserve(bytes_per_token=1 << 20, most=1)
    assert reserve.has_room
    reserve.take("huge", 100_000)
    assert not reserve.has_room
    reserve.free("huge")
    assert reserve.has_room


def test_a_job_that_keeps_nothing_needs_no_memory() -> None:
    reserve = Reserve(kept_bytes(SignalSpec(top_k=0), 4096, 0), 1)
    for number in range(1000):
        reserve.take(str(number), 10_000)
    assert reserve.has_room


def test_a_token_takes_what_its_arrays_take() -> None:
    for signals in (SignalSpec(top_k=20), SignalSpec(top_k=64, keep="sampled")):
        assert kept_bytes(signals, 4096, 0) == row_width(signals) * np.dtype(np.float32).itemsize
    assert kept_bytes(SignalSpec(top_k=0, layers=(1, 2)), 4096, 0) == 2 * 2 * 4096
    assert kept_bytes(SignalSpec(top_k=0, experts=True), 4096, 8 * 40) == 4 * 8 * 40
