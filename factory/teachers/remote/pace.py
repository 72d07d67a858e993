"""How fast an endpoint is asked: how many requests at once, and when the next may start.

A value that a clock drives: every method is told the time (seconds, of any clock that never goes back) and none waits,
so an hour can be tried in a moment. Requests under way grow with every success and fall at a refusal (HTTP 429):

    limit   1 ... each success +1 (doubles in a round) ... known, then +1 in 25 successes ... refused: x 0.75
    known   what the endpoint bore when it last refused; a start knows nothing and doubles until the first refusal

Refusals of requests that were started before the limit last fell say nothing new. After a refusal nothing starts for
as long as the endpoint says, or for a pause that doubles while nothing but refusals come. Requests and tokens a minute
are counted over the last 60 seconds, so no minute has more, wherever it begins.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

FALL: Final = 0.75
CAREFUL: Final = 1 / 25  # that a success adds where the limit may be near
START: Final = 4.0  # requests at once that a fresh run begins with
PAUSE_S: Final = 1.0  # after a refusal that names no time
LONGEST_PAUSE_S: Final = 60.0
WINDOW_S: Final = 60.0
NEVER: Final = math.inf


@dataclass(slots=True)
class Started:
    """A request under way: when it began, and how many tokens it counts for a minute's cap."""

    at: float
    tokens: int


@dataclass(slots=True)
class Pace:
    """The concurrency controller of one endpoint; `most` at once, and caps a minute where there are any."""

    most: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    limit: float = field(init=False)
    running: int = field(default=0, init=False)
    refusals: int = field(default=0, init=False)
    _known: float = field(default=NEVER, init=False)
    _fell_at: float = field(default=-NEVER, init=False)
    _fell_before: float = field(default=-NEVER, init=False)
    _resume_at: float = field(default=-NEVER, init=False)
    _full_at: float = field(default=-NEVER, init=False)
    _in_a_row: int = field(default=0, init=False)
    _recent: deque[Started] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self.limit = min(START, float(self.most))

    def delay(self, now: float, tokens: int) -> float:
        """Seconds until a request of so many tokens may start: 0 at once, infinity where one must end first."""
        if self.running >= max(1, int(self.limit)):
            self._full_at = now
            return NEVER
        return max(0.0, self._resume_at - now, self.cap_delay(now, tokens))

    def start(self, now: float, tokens: int) -> Started:
        """A request of about so many tokens starts."""
        self.running += 1
        return self.count(now, tokens)

    def count(self, now: float, tokens: int) -> Started:
        """A request counts for a minute's caps: a new one, or another try of one that is under way."""
        started = Started(now, tokens)
        if self.requests_per_minute or self.tokens_per_minute:
            self._recent.append(started)
        return started

    def succeed(self, started: Started, tokens: int | None = None) -> None:
        """It was answered, with so many tokens in all where the endpoint said so."""
        # room is given to a limit that was reached meanwhile, or a slow feed would raise it without any proof
        if self._full_at >= started.at:
            step = 1.0 if self.limit < self._known else CAREFUL
            self.limit = min(float(self.most), self.limit + step)
        self.running -= 1
        # one of the wave whose others were refused counts: the endpoint bears some of them. What was asked before the
        # limit fell the time before proves nothing of what it is now
        if started.at > self._fell_before:
            self._in_a_row = 0
        if tokens is not None:
            started.tokens = tokens

    def refuse(self, now: float, started: Started, retry_after: float | None = None) -> None:
        """It was refused for speed; `retry_after` is what the endpoint said."""
        self.running -= 1
        self.refusals += 1
        # it is no news that a burst was too large
        if started.at >= self._fell_at:
            # refusals without a success between them are one event, however low they bring the limit
            known = self._known if self._in_a_row else self.limit * FALL
            self.limit, self._known = max(1.0, self.limit * FALL), max(1.0, known)
            self._fell_before, self._fell_at = self._fell_at, now
            self._in_a_row += 1
        pause = min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (self._in_a_row - 1)) if self._in_a_row else PAUSE_S
        self._resume_at = max(self._resume_at, now + (pause if retry_after is None else retry_after))

    def fail(self, started: Started) -> None:
        """It ended in a fault that says nothing of speed."""
        self.running -= 1

    def cap_delay(self, now: float, tokens: int) -> float:
        """Seconds until the caps of a minute allow so many tokens."""
        while self._recent and self._recent[0].at <= now - WINDOW_S:
            self._recent.popleft()
        waits = [0.0]
        if self.requests_per_minute and len(self._recent) >= self.requests_per_minute:
            waits.append(self._recent[len(self._recent) - self.requests_per_minute].at + WINDOW_S - now)
        if self.tokens_per_minute:
            waits.append(self._token_delay(now, min(tokens, self.tokens_per_minute)))
        return max(waits)

    def _token_delay(self, now: float, tokens: int) -> float:
        """A request larger than the whole cap goes alone."""
        assert self.tokens_per_minute is not None
        over = sum(request.tokens for request in self._recent) + tokens - self.tokens_per_minute
        for request in self._recent:
            if over <= 0:
                return 0.0
            over -= request.tokens
            if over <= 0:
                return request.at + WINDOW_S - now
        return 0.0
