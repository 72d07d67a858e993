"""An endpoint of our own: a real HTTP server that answers `adding`'s prompts and fails on demand.

It speaks OpenAI's chat completions as a vLLM server does (ids of the scripted teacher's vocabulary: the 256 bytes, an
end of reasoning, a stop), or as OpenAI does (strings with bytes, of a tokenizer's own tokens), and Gemini's REST. It
keeps an account of what it has answered, which a run's own must equal.
"""

import asyncio
import base64
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from factory.teachers.scripted import STOP, THINK_END
from factory.usage import Usage

MODEL = "adder-1"
Fault = Callable[[int, dict[str, Any]], str]
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many", 500: "Broken"}


def no_fault(number: int, body: dict[str, Any]) -> str:
    return ""


def parts_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of OpenAI's messages; a text is none."""
    contents = [message["content"] for message in body.get("messages", ())]
    return [part for content in contents if isinstance(content, list) for part in content]


def gemini_parts(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of Gemini's contents."""
    return [part for turn in body.get("contents", ()) for part in turn["parts"]]


def told_in(turn: dict[str, Any]) -> str:
    """The text of one turn, of either API."""
    content = turn.get("content", turn.get("parts"))
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if "text" in part)


def asked_in(body: dict[str, Any]) -> str:
    """The user's last words."""
    return told_in((body.get("messages") or body["contents"])[-1])


def shares(seed: int = 0, **each: float) -> Fault:
    """Faults drawn at random, each with its share of the requests."""
    rng = random.Random(seed)

    def draw(number: int, body: dict[str, Any]) -> str:
        point = rng.random()
        for name, share in each.items():
            if point < share:
                return name
            point -= share
        return ""

    return draw


@dataclass
class ScriptedEndpoint:
    """What it is to be, and what it has seen; `faults` is asked for each request that wants an answer."""

    vllm: bool = True
    tokenizer: Any = None  # of `tokenizers`, for strings and their bytes
    key: str = ""
    faults: Fault = no_fault
    latency_s: Callable[[], float] = lambda: 0.0
    most_at_once: int = 10_000
    most_logprobs: int = 20
    skew: timedelta = timedelta(0)
    reasoning_field: str = "reasoning"
    temperature_in: bool = False
    thinks: bool = True
    sees: bool = True
    has_list: bool = True  # of its models
    # what has happened
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)  # by the user's words: answers that were sent whole
    pictures: dict[str, list[bytes]] = field(default_factory=dict)  # by the user's words, in their order
    billed: Usage = field(default_factory=Usage)  # all answers that were made, sent whole or not
    statuses: Counter[int] = field(default_factory=Counter)
    at_once: int = 0
    peak: int = 0
    number: int = 0
    hung: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def gemini_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1beta"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = lines[0].split(" ")
                if not await self.reply(method, path, headers, data, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # it left, or we end
            pass
        finally:
            writer.close()

    async def reply(self, method: str, path: str, headers: dict[str, str], data: bytes, writer: Any) -> bool:
        """Answer one request; whether the connection stays open."""
        given = headers.get("x-goog-api-key", headers.get("authorization", "").removeprefix("bearer "))
        if self.key and given != self.key.lower():
            return await self.send(writer, 401, error(f"Incorrect API key provided: {given}", "invalid_api_key"))
        if path.startswith("/v1beta/"):
            return await self.reply_as_gemini(method, path, data, writer)
        if method == "GET" and path == "/v1/models" and self.has_list:
            owner = "vllm" if self.vllm else "somebody"
            entry = {"id": MODEL, "owned_by": owner} | ({"max_model_len": 4096} if self.vllm else {})
            return await self.send(writer, 200, {"data": [entry]})
        if path != "/v1/chat/completions":
            return await self.send(writer, 404, error(f"no such path {path}", "not_found"))
        body = json.loads(data)
        self.bodies.append(body)
        if body.get("model") != MODEL:
            return await self.send(writer, 404, error(f"no model {body.get('model')}", "model_not_found"))
        if body.get("top_logprobs", 0) > self.most_logprobs:
            told = f"Requested sample logprobs of {body['top_logprobs']}, which is greater than max allowed"
            return await self.send(writer, 400, error(told, "400"))
        return await self.reply_to(body, writer)

    async def reply_as_gemini(self, method: str, path: str, data: bytes, writer: Any) -> bool:
        name = path.removeprefix("/v1beta/models/").partition(":")[0]
        if name != MODEL:
            return await self.send(writer, 404, error(f"models/{name} is not found", "NOT_FOUND"))
        if method == "GET":
            return await self.send(writer, 200, {"name": f"models/{MODEL}", "inputTokenLimit": 4096})
        body = json.loads(data)
        self.bodies.append(body)
        if "thinkingConfig" in body["generationConfig"] and not self.thinks:
            return await self.send(writer, 400, error("Thinking is not enabled for this model", "INVALID_ARGUMENT"))
        if "responseLogprobs" in body["generationConfig"] and not self.most_logprobs:
            told = f"Logprobs is not enabled for models/{MODEL}"
            return await self.send(writer, 400, error(told, "INVALID_ARGUMENT"))
        return await self.reply_to(body, writer)

    async def reply_to(self, body: dict[str, Any], writer: Any) -> bool:
        self.number += 1
        fault = self.faults(self.number, body)
        self.at_once += 1
        self.peak = max(self.peak, self.at_once)
        try:
            if self.at_once > self.most_at_once:
                return await self.send(writer, 429, error("too fast", "rate_limit"))
            await asyncio.sleep(self.latency_s())
            return await self.answer(fault, body, writer)
        finally:
            self.at_once -= 1

    async def answer(self, fault: str, body: dict[str, Any], writer: Any) -> bool:
        if fault.startswith("429"):
            date = datetime.now(UTC) + self.skew
            later = format_datetime(date + timedelta(seconds=1), usegmt=True)
            extra = {"429": {}, "429_after": {"Retry-After": "0.05"}, "429_date": {"Retry-After": later}}[fault]
            return await self.send(writer, 429, error("too fast", "rate_limit"), extra)
        if fault.isdecimal():
            return await self.send(writer, int(fault), error(f"fault {fault}", fault))
        if fault == "hang":
            self.hung += 1
            await asyncio.sleep(3600)
        shown = [part["inlineData"]["data"] for part in gemini_parts(body) if "inlineData" in part]
        shown += [part["image_url"]["url"].partition("base64,")[2] for part in parts_of(body) if "image_url" in part]
        if shown and not self.sees:
            return await self.send(writer, 400, error(f"{MODEL} is not a multimodal model", "BadRequestError"))
        self.pictures[asked_in(body)] = [base64.b64decode(data, validate=True) for data in shown]
        if "contents" in body:
            return await self.send(writer, 200, self.complete_as_gemini(body))
        made = self.complete(body)
        usage = made["usage"]
        if fault == "no_choices":
            made["choices"] = []
        if fault == "shapeless":
            made["choices"] = [{"message": 5, "finish_reason": ["stop"]}]
        if fault == "other_model":
            made["model"] = "adder-2"
        if fault == "no_ids":
            made["choices"][0].pop("token_ids", None)
            made["choices"][0].pop("logprobs", None)
        if fault == "no_usage":
            del made["usage"]
        if fault == "filtered":
            made["choices"][0]["finish_reason"] = "content_filter"
        self.billed += Usage(usage["prompt_tokens"], 0, usage["completion_tokens"], 0)
        if fault in ("cut_json", "half_closed"):
            text = json.dumps(made).encode()
            await self.send_bytes(writer, 200, text[: len(text) // 2], None if fault == "cut_json" else len(text))
            return False
        self.answered[asked_in(body)] += 1
        return await self.send(writer, 200, made)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer: the sum of the numbers in the last message."""
        asked = asked_in(body)
        total = sum(map(int, re.findall(r"\d+", asked)))
        reasoning, answer = f"They make {total}.", json.dumps({"total": total, "words": "done"})
        content: list[dict[str, Any]] = []
        ids: list[int] = []
        most = body.get("max_tokens", body.get("max_completion_tokens", 1000))
        if self.vllm:
            ids = [*reasoning.encode(), THINK_END, *answer.encode(), STOP][:most]
            content = [self.entry_of_id(i, body) for i in ids]
        elif self.tokenizer is not None:
            tokens = self.tokenizer.encode(answer, add_special_tokens=False).ids[:most]
            content = [self.entry_of_token(i, body) for i in tokens]
        prompt = [byte for message in body["messages"] for byte in told_in(message).encode()]
        count = len(prompt)
        if self.tokenizer is not None:
            texts = map(told_in, body["messages"])
            count = 8 + sum(len(self.tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        closed = not self.vllm or THINK_END in ids
        message = {"role": "assistant", "content": answer if closed else None, self.reasoning_field: reasoning}
        choice: dict[str, Any] = {"index": 0, "message": message}
        choice["finish_reason"] = "length" if self.vllm and (not ids or ids[-1] != STOP) else "stop"
        choice |= {"logprobs": {"content": content}} if body.get("logprobs") else {}
        choice |= {"token_ids": ids} if body.get("return_token_ids") else {}
        length = len(ids) if self.vllm else max(len(content), 5)
        usage = {"prompt_tokens": count, "completion_tokens": length, "total_tokens": count + length}
        made = {"id": "x", "model": MODEL, "choices": [choice], "usage": usage}
        return made | ({"prompt_token_ids": prompt} if body.get("return_token_ids") else {})

    def complete_as_gemini(self, body: dict[str, Any]) -> dict[str, Any]:
        """The same answer in Gemini's words: a thought's summary, and the answer's tokens with their ids."""
        config, asked = body["generationConfig"], asked_in(body)
        total = sum(map(int, re.findall(r"\d+", asked)))
        answer = json.dumps({"total": total, "words": "done"})
        tokens = self.tokenizer.encode(answer, add_special_tokens=False).ids
        like = {"temperature": config["temperature"], "top_logprobs": config.get("logprobs", 0)}
        entries = [self.entry_of_token(token, like) for token in tokens]
        candidate: dict[str, Any] = {"content": {"parts": [{"text": answer}]}, "finishReason": "STOP"}
        if "thinkingConfig" in config:
            candidate["content"]["parts"].insert(0, {"text": f"They make {total}.", "thought": True})
        if config.get("responseLogprobs"):
            places = [{"candidates": [as_gemini(one) for one in entry["top_logprobs"]]} for entry in entries]
            chosen = [as_gemini(entry) for entry in entries]
            candidate["logprobsResult"] = {"chosenCandidates": chosen, "topCandidates": places}
        texts = [part.get("text", "") for part in gemini_parts(body)]
        prompt = 8 + sum(len(self.tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        usage = {"promptTokenCount": prompt, "candidatesTokenCount": len(tokens), "thoughtsTokenCount": 30}
        self.billed += Usage(prompt, 0, len(tokens) + 30, 30)
        self.answered[asked] += 1
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": MODEL}

    def logprobs(self, body: dict[str, Any]) -> list[float]:
        """Of the sampled token and those after it: a distribution that is the same everywhere."""
        logits = [0.0, *(-2.0 - 0.25 * n for n in range(body.get("top_logprobs", 0)))]
        scale = body.get("temperature", 1.0) if self.temperature_in else 1.0
        return [value / max(scale, 0.1) - 0.5 for value in logits]

    def entry_of_id(self, token: int, body: dict[str, Any]) -> dict[str, Any]:
        values = self.logprobs(body)
        named = [f"token_id:{(token + n) % 260}" for n in range(len(values))]
        top = [{"token": name, "logprob": value} for name, value in zip(named, values, strict=True)]
        data = b"</think>" if token == THINK_END else b"<|end|>" if token == STOP else bytes([token])
        wanted = body.get("top_logprobs", 0)
        return {"token": named[0], "bytes": list(data), "logprob": values[0], "top_logprobs": top[:wanted]}

    def entry_of_token(self, token: int, body: dict[str, Any]) -> dict[str, Any]:
        values, size = self.logprobs(body), self.tokenizer.get_vocab_size()
        top = [self.spell((token + 7 * n) % size) | {"logprob": value} for n, value in enumerate(values)]
        return top[0] | {"top_logprobs": top[: body.get("top_logprobs", 0)]}

    def spell(self, token: int) -> dict[str, Any]:
        data = bytes_of(self.tokenizer, token)
        return {"id": token, "token": data.decode("utf-8", "replace"), "bytes": list(data)}

    async def send(self, writer: Any, status: int, value: dict[str, Any], extra: dict[str, str] | None = None) -> bool:
        await self.send_bytes(writer, status, json.dumps(value).encode(), None, extra)
        return True

    async def send_bytes(
        self, writer: Any, status: int, data: bytes, length: int | None, extra: dict[str, str] | None = None
    ) -> None:
        """`length` is what the head says, where that is not what comes."""
        self.statuses[status] += 1
        date = format_datetime(datetime.now(UTC) + self.skew, usegmt=True)
        headers = {"Content-Type": "application/json", "Date": date, "Content-Length": str(length or len(data))}
        told = [f"{name}: {value}" for name, value in (headers | (extra or {})).items()]
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Other')}", *told]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        await writer.drain()


def error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "code": code}}


def as_gemini(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "tokenId": entry["id"], "logProbability": entry["logprob"]}


def bytes_of(tokenizer: Any, token: int) -> bytes:
    """The bytes that a byte-level token stands for, or a special token's name."""
    text = tokenizer.id_to_token(token)
    letters = {letter: byte for byte, letter in byte_letters().items()}
    return bytes(letters[c] for c in text) if all(c in letters for c in text) else text.encode()


def byte_letters() -> dict[int, str]:
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@contextmanager
def serving(endpoint: ScriptedEndpoint, port: int = 0) -> Iterator[ScriptedEndpoint]:
    """The endpoint, listening on a port of its own in a thread of its own."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(endpoint.serve, "127.0.0.1", port)
        endpoint.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield endpoint
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
