"""The loop that asks: which prompt goes out when, and what becomes of each fault.

    waiting --pace, purse--> one task each --answer--> spool
       ^                        |
       |  429: the pace slows   |  a fault of the way: tried again, with jitter and as late as the endpoint says
       +------------------------+  refused for good: a failed generation, which becomes a rejected row

A request fails for good where the endpoint answers others between its first fault and its last, and others after it:
it is to blame then, and not an endpoint that has gone meanwhile. Where it answers none, all wait, and after
`patience_s` of faults alone the run is parked: nothing is lost.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from factory.errors import TeacherError, one_line
from factory.job.teacher import TeacherConfig
from factory.messages import text_of
from factory.records import Generation, Prompt
from factory.teachers.data_urls import most_image_tokens
from factory.teachers.remote.inbox import Inbox
from factory.teachers.remote.pace import NEVER, Pace, Started
from factory.teachers.remote.purse import Purse
from factory.teachers.remote.read import BadAnswer
from factory.teachers.remote.transport import Closed, Endpoint, Key, Refused, Throttled, WayFault
from factory.teachers.remote.wire import Body, Wire
from factory.usage import Usage

LONGEST_WAIT_S = 60.0
PARKED = "the run is parked, nothing is lost"
STRANGERS = 8  # answers of another model in a row, until that is no slip
LAST_WORDS_S = 5.0  # that requests under way are given before a run is parked
PROMPT_FRAME = 64  # tokens of a message that its text does not show, at most
TOO_LONG = ("context_length_exceeded", "string_above_max_length")
JITTER = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S)
Answer = tuple[Generation, Usage | None]


@dataclass(slots=True)
class Tries:
    """What one prompt has been through: its place in the account, and how much was answered when it first failed."""

    number: int | None
    answered_then: int | None = None


class NoMoney(Exception):
    """Another try might pass the bound on what may be spent."""


class Asking:
    """One endpoint being asked, inside one event loop; `put`, `flush` and `stop` may be called from other threads."""

    def __init__(
        self,
        teacher: TeacherConfig,
        wire: Wire,
        open_endpoint: Callable[[], Endpoint],
        purse: Purse,
        answers_as: str,
        finish: Callable[[Generation], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.teacher, self.wire, self.purse, self.finish, self.clock = teacher, wire, purse, finish, clock
        self.open_endpoint, self.answers_as = open_endpoint, answers_as
        config = teacher.endpoint
        self.pace = Pace(config.concurrency, config.requests_per_minute, config.tokens_per_minute)
        self.waiting: deque[Prompt] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self.answered = 0
        # failures of requests that seem to be to blame, until another answer shows it, or nothing else is left to ask
        self.accused: list[Generation] = []
        # since when there are nothing but faults; None after an answer
        self.failing_since: float | None = None
        self.last_fault = ""
        self.strangers = 0
        self.fatal: BaseException | None = None
        self.inbox = Inbox()

    # a file's answers come all at once; here each by itself
    handing_out = False

    def put(self, prompt: Prompt) -> None:
        """Ask this too."""
        self.inbox.put(prompt)

    def flush(self) -> None:
        """Nothing more is put before something comes back. Requests go out one by one here: none waits for others."""

    def stop(self) -> None:
        """End `run`; what is under way is given up."""
        self.inbox.stop()

    async def run(self) -> None:
        """Ask until stopped. Raises TeacherError where the endpoint is gone or the money is spent."""
        self.inbox.open()
        self.endpoint = self.open_endpoint()
        try:
            while not self.inbox.stopping:
                self.waiting.extend(self.inbox.take())
                pause = self._start_what_may()
                await self._require_alive()
                await self.inbox.wait(None if pause == NEVER else max(pause, 0.001))
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await self.endpoint.close()

    def _start_what_may(self) -> float:
        """Start all that pace and purse allow; seconds until the next may start."""
        while self.waiting and self.fatal is None:
            prompt, now = self.waiting[0], self.clock()
            most = bound_of(prompt)
            pause = self.pace.delay(now, sum(most))
            if pause > 0:
                # patience is looked at meanwhile
                return min(pause, 1.0) if self.failing_since is not None and pause != NEVER else pause
            if not self.purse.affords(*most):
                if self.tasks:  # what they give back may be enough
                    return NEVER
                raise TeacherError(tell_spent(self.purse))
            self.waiting.popleft()
            number = self.purse.ask(prompt.id, prompt.attempt, *most)
            task = asyncio.ensure_future(self._serve(prompt, self.pace.start(now, sum(most)), number))
            self.tasks.add(task)
            task.add_done_callback(self._ended)
        if not self.tasks:  # nobody is waited for, so nobody fails
            self.failing_since = None
            if not self.waiting:
                self._condemn()
        return NEVER

    def _condemn(self) -> None:
        accused, self.accused = self.accused, []
        for generation in accused:
            self.finish(generation)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.fatal = self.fatal or task.exception()
        self.inbox.changed.set()

    async def _require_alive(self) -> None:
        if self.fatal is not None:
            raise self.fatal
        patience = self.teacher.endpoint.patience_s
        if self._silence_s() <= patience:
            return
        # what stands in the socket already is an answer, and paid for: a slow machine may have come to a fault first
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=min(patience, LAST_WORDS_S))
        if (silence := self._silence_s()) > patience:
            raise TeacherError(
                f"teacher: the endpoint {self.endpoint.url} has not answered for {silence:.0f} s "
                f"({self.last_fault}); {PARKED}: the same command goes on, teacher.endpoint.patience_s waits longer"
            )

    def _silence_s(self) -> float:
        """How long there are nothing but faults."""
        return 0.0 if self.failing_since is None else self.clock() - self.failing_since

    async def _serve(self, prompt: Prompt, started: Started, number: int) -> None:
        """One prompt until it is answered, refused, or put back."""
        most, tries = self.teacher.endpoint.retries + 1, Tries(number)
        retrying = AsyncRetrying(
            stop=stop_after_attempt(most),
            wait=wait_as_told,
            retry=retry_if_exception_type(WayFault),
            reraise=True,
        )
        try:
            generation, usage = await self._answer(retrying, prompt, tries)
        except Throttled as told:
            self._fault(str(told))
            self.pace.refuse(self.clock(), started, told.retry_after)
            if told.final:
                raise TeacherError(f"teacher: the endpoint takes no more: {told}; {PARKED}") from None
            self.waiting.appendleft(prompt)
        except (WayFault, NoMoney) as fault:
            self.pace.fail(started)
            if isinstance(fault, WayFault) and self.answered > (tries.answered_then or 0):
                self.accused.append(failed(prompt, "endpoint_failed", f"{fault} ({most} tries)"))
            else:
                self.waiting.appendleft(prompt)
        except Closed as told:
            self.pace.fail(started)
            text = f"teacher: the endpoint refuses all requests: {told}; {PARKED}"
            raise TeacherError(f"{text}: mend it and the same command goes on") from None
        except BaseException:
            self.pace.fail(started)
            raise
        else:
            self.pace.succeed(started, None if usage is None else usage.prompt + usage.completion)
            self.finish(generation)

    async def _answer(self, retrying: AsyncRetrying, prompt: Prompt, tries: Tries) -> Answer:
        """The answer to a prompt, however many tries it takes."""
        async for attempt in retrying:
            with attempt:
                number = await self._ask_again(prompt) if tries.number is None else tries.number
                tries.number = None
                try:
                    return await self._ask_once(prompt, number)
                except WayFault:
                    tries.answered_then = self.answered if tries.answered_then is None else tries.answered_then
                    raise
        raise AssertionError("tenacity ends with an answer or an error")

    async def _ask_again(self, prompt: Prompt) -> int:
        """Another try, inside the caps of a minute and the bound on money, which both count it."""
        most = bound_of(prompt)
        while (pause := self.pace.cap_delay(self.clock(), sum(most))) > 0:
            await asyncio.sleep(pause)
        if not self.purse.affords(*most):
            raise NoMoney
        self.pace.count(self.clock(), sum(most))
        return self.purse.ask(prompt.id, prompt.attempt, *most)

    async def _ask_once(self, prompt: Prompt, number: int) -> Answer:
        """One request, and the money of it; raises what the way there or the endpoint's speed is to blame for."""
        try:
            reply = await self.endpoint.post(self.wire.path(), self.wire.body(prompt))
        except WayFault as fault:
            self.purse.doubt(number) if fault.charged else self.purse.void(number)
            self._fault(str(fault))
            raise
        except Refused as refused:
            self.purse.void(number)
            self._live()
            reason = "prompt_too_long" if _is_too_long(refused) else "refused_by_endpoint"
            return failed(prompt, reason, str(refused)), None
        except (Throttled, Closed):
            self.purse.void(number)
            raise
        except BaseException:  # given up in the midst
            self.purse.doubt(number)
            raise
        self._live()
        generation = read_reply(self.wire, self.purse, self.endpoint.key, number, prompt, reply)
        return self._require_model(prompt, reply, generation), generation.usage

    def _require_model(self, prompt: Prompt, reply: Body, generation: Generation) -> Generation:
        """The generation, or its failure where another model has answered; after a few of these the run is parked."""
        named = self.wire.model_of(reply)
        if not self.answers_as or not named or named == self.answers_as:
            self.strangers = 0
            return generation
        self.strangers += 1
        detail = f"{named} answered, the others are of {self.answers_as}"
        if self.strangers >= STRANGERS:
            raise TeacherError(f"teacher.model {self.teacher.model!r}: {detail}; {PARKED}")
        return failed(prompt, "other_model", detail)

    def _live(self) -> None:
        self.answered += 1
        self.failing_since = None
        self._condemn()

    def _fault(self, told: str) -> None:
        self.last_fault = told
        self.failing_since = self.clock() if self.failing_since is None else self.failing_since
        self.inbox.changed.set()


def failed(prompt: Prompt, reason: str, detail: str) -> Generation:
    """A prompt that was given up, as a generation."""
    return Generation.failed(prompt.id, prompt.attempt, reason, detail)


def tell_spent(purse: Purse) -> str:
    """Why nothing more is asked."""
    assert purse.price is not None
    spent, most = purse.account.cost(purse.price), purse.account.most(purse.price)
    told = f"{spent:.4f} {purse.price.currency} spent"
    told += f" ({most:.4f} at most, with requests that were cut off)" if most > spent else ""
    bound = f"teacher.max_cost {purse.max_cost:g}"
    return f"{bound}: {told}, and the next request might pass it; {PARKED}: raise it and the same command goes on"


def read_reply(wire: Wire, purse: Purse, key: Key, number: int, prompt: Prompt, reply: Body) -> Generation:
    """The generation that a reply is, with what it used, which stands in the account whatever the reply may hold."""
    usage = wire.usage(reply)
    if usage is not None:  # first: nothing that is read may keep it from being written
        purse.settle(number, usage)
    try:
        generation = wire.read(prompt, reply)
    except BadAnswer as bad:
        generation = failed(prompt, bad.reason, key.clean(str(bad)))
    except Exception as error:  # JSON of any shape may come: whatever it breaks, it is this row's alone
        generation = failed(prompt, "unreadable_answer", key.clean(f"{type(error).__name__}: {one_line(error)}"))
    if usage is None and (usage := _count(generation)) is not None:
        purse.settle(number, usage)
    elif usage is None:
        purse.doubt(number)
    return replace(generation, usage=usage)


def bound_of(prompt: Prompt) -> tuple[int, int]:
    """Prompt and completion tokens of a request, at most: no tokenizer has more tokens than a text has bytes."""
    contents = [text_of(message["content"]) for message in prompt.messages]
    texts = sum(len(text.encode("utf-8", "replace")) + PROMPT_FRAME for text in contents)
    return texts + sum(map(most_image_tokens, prompt.images)) + PROMPT_FRAME, prompt.sampling.max_tokens


def wait_as_told(state: RetryCallState) -> float:
    """Seconds before the next try: exponential with jitter, and no less than the endpoint asked for."""
    fault = state.outcome.exception() if state.outcome is not None else None
    told = getattr(fault, "retry_after", None)
    return max(JITTER(state), min(told or 0.0, 10 * LONGEST_WAIT_S))


def _is_too_long(refused: Refused) -> bool:
    return refused.code in TOO_LONG or "maximum context length" in str(refused)


def _count(generation: Generation) -> Usage | None:
    """What exact ids tell where the endpoint does not count."""
    prompt, completion = len(generation.prompt_token_ids), len(generation.completion_token_ids)
    return Usage(prompt, 0, completion, 0) if prompt and completion else None
