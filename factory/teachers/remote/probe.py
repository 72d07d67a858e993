"""What an endpoint can do, asked before anything is spent: its models, then a token of what the job will ask for.

Whatever the endpoint would refuse in the midst of a run it refuses here, in one line that names the key of the job to
change. What its numbers mean is found out by asking where it can be: with two temperatures the same log-probabilities
come or others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from factory.errors import TeacherError, nearest
from factory.messages import Message
from factory.records import Generation, Prompt, Sampling
from factory.teachers.data_urls import most_image_tokens
from factory.teachers.remote.purse import Purse
from factory.teachers.remote.read import BadAnswer
from factory.teachers.remote.transport import Closed, Endpoint, Refused, Throttled, WayFault
from factory.teachers.remote.wire import Body, Wire
from factory.usage import Usage

PROBE_TOKENS: Final = 16  # some endpoints refuse fewer
THINKING_TOKENS: Final = 1024
LEAST_THOUGHT: Final = 128  # the smallest budget that every thinking Gemini takes
NEWER_LENGTH: Final = "max_completion_tokens"
TRIES: Final = 3
QUESTION: Final = "Name one colour."
# what two tokenizers divide differently: letters of many kinds, numbers, signs, spaces
SAMPLE: Final = (
    "Überraschung! 3,141,592.65 ≠ π; naïve façade — 東京タワーは高い。 Привет, мир! مرحبا\n\n"
    "    def f(x):\n\t\treturn x**2  # ok\nhttps://example.org/a?b=c&d=%20 antidisestablishmentarianism 🙂🙂 "
    '{"key": [1, 2.50, null]} ßß zZzZ 00012345678'
)
Temper = Literal["before", "after", "unknown"]


@dataclass(frozen=True, slots=True)
class Models:
    """What an endpoint says of its models; `known` is empty where it has no list."""

    known: tuple[str, ...] = ()
    vllm: bool = False
    window: int | None = None


async def read_models(endpoint: Endpoint, model: str) -> Models:
    """The endpoint's list. Raises TeacherError where it cannot be reached, refuses the key or lacks the model."""
    try:
        found = await _patiently(lambda: endpoint.get("models"))
    except Closed as told:
        if told.status in (404, 405):  # not every endpoint has a list: its first answer will tell
            return Models()
        raise TeacherError(_refused_key(endpoint, told)) from None
    except Refused:
        return Models()
    entries = [entry for entry in found.get("data") or [] if isinstance(entry, dict)]
    known = tuple(str(entry.get("id")) for entry in entries)
    if known and model not in known:
        shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        raise TeacherError(
            f"teacher.model {model!r}: not a model of {endpoint.url} (has: {shown}){nearest(model, known)}"
        )
    mine = next((entry for entry in entries if entry.get("id") == model), {})
    window = mine.get("max_model_len")
    return Models(known, mine.get("owned_by") == "vllm", window if isinstance(window, int) else None)


async def read_gemini_model(endpoint: Endpoint, model: str) -> Models:
    """What Gemini says of a model. Raises TeacherError where it cannot be reached, refuses the key or lacks it."""
    try:
        found = await _patiently(lambda: endpoint.get(f"models/{model}"))
    except Closed as told:
        if told.status == 404:
            text = f"teacher.model {model!r}: not a model of {endpoint.url}: {told}; mend the name"
            raise TeacherError(text) from None
        raise TeacherError(_refused_key(endpoint, told)) from None
    except Refused as told:  # a key that is none is a bad request here
        raise TeacherError(_refused_key(endpoint, Closed(str(told), 401))) from None
    window = found.get("inputTokenLimit")
    return Models((model,), False, window if isinstance(window, int) else None)


@dataclass(frozen=True, slots=True)
class Found:
    """What a probe's answers say: the model's own name, the whole reply and what was read of it."""

    answers_as: str
    generation: Generation


class Prober:
    """Asks single short questions with the job's own wire, and counts their money."""

    def __init__(self, endpoint: Endpoint, wire: Wire, purse: Purse, sampling: Sampling, thinks: bool) -> None:
        self.endpoint, self.wire, self.purse = endpoint, wire, purse
        # some models think whatever they are told, and have no answer before they have
        self.tokens, least = (THINKING_TOKENS, LEAST_THOUGHT) if thinks else (PROBE_TOKENS, 1)
        thinking = None if sampling.thinking_tokens is None else least
        self.sampling = replace(sampling, max_tokens=self.tokens, thinking_tokens=thinking)

    async def ask(self, task: str, text: str = QUESTION, temperature: float | None = None, keeps: bool = True) -> Body:
        """A reply to a question with the schema of a task ("": none). Raises what `transport` names."""
        sampling = self.sampling if temperature is None else replace(self.sampling, temperature=temperature)
        messages: tuple[Message, ...] = ({"role": "user", "content": text},)
        return await self._send(self._prompt(task, messages, sampling, keeps), 64 + 4 * len(text))

    async def require_pictures(self, png: bytes) -> None:
        """Raise TeacherError where the endpoint refuses a question about a picture."""
        parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        prompt = self._prompt("", ({"role": "user", "content": parts},), self.sampling, False)
        try:
            await self._send(replace(prompt, images=(png,)), 64 + 4 * len(QUESTION) + most_image_tokens(png))
        except (Refused, Closed) as told:
            raise TeacherError(
                f"teacher.model {self.wire.said.model!r}: {self.endpoint.url} refuses a picture: {told}; name a model "
                f"that sees, or leave out the tasks that show pictures"
            ) from None

    async def _send(self, prompt: Prompt, most: int) -> Body:
        """A reply; `most` tokens are in the prompt at most."""
        number = self.purse.ask("probe", 0, most, self.tokens)
        try:
            reply = await _patiently(lambda: self.endpoint.post(self.wire.path(), self.wire.body(prompt)))
        except BaseException:
            self.purse.void(number)
            raise
        self.purse.settle(number, self.wire.usage(reply) or Usage(most, 0, self.tokens, 0))
        return reply

    async def find(self, task: str) -> Found:
        """What an answer to a task's question says. Raises TeacherError where the endpoint refuses it."""
        try:
            reply = await self._ask_either_way(task)
        except Refused as told:
            raise TeacherError(self._explain(told, task)) from None
        except Closed as told:
            what = f"teacher.model {self.wire.said.model!r}: " if told.status == 404 else ""
            raise TeacherError(what + _refused_key(self.endpoint, told)) from None
        prompt = self._prompt(task, ({"role": "user", "content": QUESTION},), self.sampling, True)
        try:
            return Found(self.wire.model_of(reply), self.wire.read(prompt, reply))
        except BadAnswer as bad:
            raise TeacherError(f"teacher: the endpoint's answer to a short question makes no row: {bad}") from None

    async def _ask_either_way(self, task: str) -> Body:
        """A reply, with the newer name of the longest answer where the older one is refused."""
        try:
            return await self.ask(task)
        except Refused as told:
            if NEWER_LENGTH not in str(told) or getattr(self.wire, "length", NEWER_LENGTH) == NEWER_LENGTH:
                raise
            self.wire.length = NEWER_LENGTH  # type: ignore[attr-defined]
            return await self.ask(task)

    async def find_temper(self) -> Temper:
        """Whether log-probabilities are the distribution's before the temperature or after it: asked at two of them."""
        gaps: list[float] = []
        for temperature in (0.5, 2.0):
            try:
                reply = await self.ask("", temperature=temperature)
                read = self.wire.read(self._prompt("", (), self.sampling, True), reply)
            except (Refused, BadAnswer):
                return "unknown"
            logprobs = read.logprobs
            if logprobs is None or not len(logprobs.topk_TK) or logprobs.topk_TK.shape[1] < 2:
                return "unknown"
            first, second = (float(value) for value in logprobs.topk_TK[0, :2])
            gaps.append(first - second)
        cold, hot = gaps
        # of one distribution the gap between two logits; of two temperatures it is four times as wide in the one
        if not 0.05 < cold < 1e4:
            return "unknown"
        ratio = hot / cold
        return "before" if 0.75 < ratio < 1.34 else "after" if ratio < 0.5 else "unknown"

    async def count_sample(self) -> int | None:
        """Tokens that `SAMPLE` adds to a question, by the endpoint's own count; None where it does not count."""
        counts: list[int] = []
        for text in (f"{QUESTION}\n", f"{QUESTION}\n{SAMPLE}"):
            usage = self.wire.usage(await self.ask("", text, keeps=False))
            if usage is None:
                return None
            counts.append(usage.prompt)
        return counts[1] - counts[0]

    def _prompt(self, task: str, messages: Sequence[Message], sampling: Sampling, keeps: bool) -> Prompt:
        return Prompt("probe", 0, 0, task, "", tuple(messages), "{}", 1, sampling, keeps=keeps)

    def _explain(self, told: Refused, task: str) -> str:
        """A refusal by the key of the job that it is about."""
        text, k = str(told), self.wire.said.signals.top_k
        low = text.lower()
        if "logprob" in low:
            more = " (a vLLM server lists the sampled token among them, so it needs one more: --max-logprobs)"
            return (
                f"signals.top_k {k}: {self.endpoint.url} gives fewer log-probabilities: {text}; lower top_k, "
                f"0 keeps none{more if self._one_more() else ''}"
            )
        if "think" in low:
            return (
                f'teacher.reasoning: {self.endpoint.url} does not think as asked: {text}; say reasoning = "off", '
                f"change sampling.thinking_tokens, or start a vLLM server with --reasoning-parser"
            )
        if any(word in low for word in ("schema", "response_format", "grammar", "structured")):
            return (
                f"task {task!r}: {self.endpoint.url} does not take its schema: {text}; change the schema, or say "
                f"validation.constrain = false, which asks in words alone"
            )
        return f"teacher: {self.endpoint.url} refuses a request as this job makes them: {text}"

    def _one_more(self) -> bool:
        return bool(getattr(self.wire, "vllm", False))


def require_count(counted: int | None, mine: int, tokenizer: str) -> None:
    """Raise TeacherError where the endpoint counts the sample otherwise than `teacher.tokenizer` does.

    One token more or less may be where the texts before and behind it meet.
    """
    if counted is not None and abs(counted - mine) > 1:
        raise TeacherError(
            f"teacher.tokenizer {tokenizer!r}: does not fit the endpoint: a text of {mine} of its tokens counts "
            f"{counted} there; name the model's own tokenizer, or keep no ids (signals.top_k = 0 and no tokenizer)"
        )


async def _patiently(ask: Callable[[], Awaitable[Body]]) -> Body:
    """The answer, after a few tries; TeacherError where the endpoint cannot be reached."""
    fault: Exception | None = None
    for wait in range(TRIES):
        try:
            return await ask()
        except WayFault as error:
            fault = error
        except Throttled as error:
            if error.final:
                raise TeacherError(f"teacher: the endpoint takes no requests: {error}") from None
            fault = error
        await asyncio.sleep(0.2 * (wait + 1))
    raise TeacherError(f"teacher.base_url: the endpoint cannot be reached: {fault}; start it, or mend the address")


def _refused_key(endpoint: Endpoint, told: Closed) -> str:
    if told.status in (401, 403):
        name = endpoint.key.name or "none was sent: name its variable in teacher.api_key_env"
        return f"teacher.api_key_env: {endpoint.url} refuses the key ({name}): {told}"
    return f"teacher.base_url {endpoint.url}: {told}; mend the address or the model's name"
