"""The concurrency controller, driven by a simulated clock: an endpoint that refuses whatever is over its capacity."""

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from factory.teachers.remote.pace import NEVER, WINDOW_S, Pace, Started


@dataclass
class Simulation:
    """Work without end against an endpoint that answers after `latency` and refuses what is over `capacity`."""

    pace: Pace
    capacity: Callable[[float], int]
    latency: Callable[[], float]
    retry_after: float | None = None
    tokens: int = 100
    now: float = 0.0
    starts: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    at_once: list[tuple[float, int]] = field(default_factory=list)
    refused: int = 0

    def run(self, until: float) -> None:
        ends: list[tuple[float, int, bool, Started]] = []
        number = inside = 0
        while self.now < until:
            delay = self.pace.delay(self.now, self.tokens)
            if delay == 0:
                number += 1
                self.starts.append(self.now)
                started = self.pace.start(self.now, self.tokens)
                accepted = inside < self.capacity(self.now)
                inside += accepted
                wait = self.latency() if accepted else 0.05
                heapq.heappush(ends, (self.now + wait, number, accepted, started))
                self.at_once.append((self.now, inside))
                continue
            upcoming = ends[0][0] if ends else NEVER
            self.now = min(upcoming, self.now + delay, until)
            while ends and ends[0][0] <= self.now:
                _, _, accepted, started = heapq.heappop(ends)
                if accepted:
                    inside -= 1
                    self.answers.append(self.now)
                    self.pace.succeed(started, self.tokens)
                else:
                    self.refused += 1
                    self.pace.refuse(self.now, started, self.retry_after)

    def mean_at_once(self, begin: float, end: float) -> float:
        """Requests that the endpoint was answering, weighed by time."""
        points = [(at, n) for at, n in self.at_once if begin <= at < end]
        spans = itertools.pairwise(points)
        return sum(n * (after - at) for (at, n), (after, _) in spans) / (points[-1][0] - points[0][0])


@pytest.mark.parametrize("retry_after", [None, 0.5, 3.0])
@pytest.mark.parametrize(("allowed", "latency"), [(10, 0.5), (64, 1.0), (200, 2.0)])
def test_concurrency_recovers_within_a_minute_of_an_outage(
    allowed: int, latency: float, retry_after: float | None
) -> None:
    rng = random.Random(1)
    # nothing at all is allowed between 100 s and 130 s: every request is refused
    simulation = Simulation(
        Pace(512),
        lambda now: 0 if 100 <= now < 130 else allowed,
        lambda: rng.uniform(0.5, 1.5) * latency,
        retry_after,
    )
    simulation.run(300)
    reached = [at for at, n in simulation.at_once if at >= 130 and n >= 0.9 * allowed]
    assert reached[0] - 130 <= 60
    # and stays there: what the endpoint bears is used, with few refusals
    assert simulation.mean_at_once(200, 300) >= 0.75 * allowed
    assert simulation.refused < 0.1 * len(simulation.answers)


def test_a_start_ramps_up_and_does_not_begin_with_a_burst() -> None:
    simulation = Simulation(Pace(512), lambda now: 512, lambda: 1.0)
    simulation.run(20)
    assert sum(1 for at in simulation.starts if at < 1) == 4
    assert max(n for _, n in simulation.at_once) == 512
    assert simulation.refused == 0


def test_a_slow_feed_does_not_raise_the_limit() -> None:
    pace = Pace(512)
    for second in range(1000):
        pace.succeed(pace.start(float(second), 1))
    assert pace.limit == 4


def test_refusals_of_one_burst_count_once() -> None:
    pace = Pace(64)
    pace.limit = 32.0
    burst = [pace.start(0.0, 1) for _ in range(32)]
    for started in burst:
        pace.refuse(1.0, started)
    assert pace.limit == 24.0
    assert pace.running == 0


def test_nothing_starts_before_the_endpoint_said() -> None:
    pace = Pace(64)
    pace.refuse(10.0, pace.start(10.0, 1), retry_after=7.5)
    assert pace.delay(10.0, 1) == 7.5
    assert pace.delay(17.5, 1) == 0


def test_pauses_double_while_nothing_but_refusals_come() -> None:
    pace, now, pauses = Pace(64), 0.0, []
    for _ in range(8):
        pace.refuse(now, pace.start(now, 1))
        pauses.append(pace.delay(now, 1))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("seed", range(5))
def test_no_minute_has_more_requests_or_tokens_than_its_caps(seed: int) -> None:
    rng = random.Random(seed)
    requests, tokens = rng.randint(5, 200), rng.randint(500, 5000)
    simulation = Simulation(Pace(512, requests, tokens), lambda now: 512, lambda: rng.uniform(0.1, 3), tokens=100)
    simulation.run(400)
    starts = simulation.starts
    for first, at in enumerate(starts):
        within = sum(1 for other in starts[first:] if other < at + WINDOW_S)
        assert within <= requests
        assert within * 100 <= tokens
    # and the caps are used: what is allowed in six minutes is asked, but for the last one
    assert len(starts) >= 6 * min(requests, tokens // 100)


def test_a_request_larger_than_a_minutes_tokens_goes_alone() -> None:
    pace = Pace(64, tokens_per_minute=100)
    pace.succeed(pace.start(0.0, 60), 60)
    assert pace.delay(1.0, 500) == 59.0
    assert pace.delay(60.0, 500) == 0


def test_what_a_request_used_takes_the_place_of_what_it_might_have() -> None:
    pace = Pace(64, tokens_per_minute=1000)
    started = pace.start(0.0, 900)
    assert pace.delay(1.0, 500) == 59.0
    pace.succeed(started, 100)
    assert pace.delay(1.0, 500) == 0


def test_a_full_limit_waits_for_an_end() -> None:
    pace = Pace(2)
    pace.start(0.0, 1)
    pace.start(0.0, 1)
    assert pace.delay(0.0, 1) == math.inf
