"""Files of requests, answered within a day for less: OpenAI's batches and Gemini's.

    put ... put, flush --> batches.jsonl: "meant" --> file --> batch --> batches.jsonl: "sent" --> polled --> read

Which rows a batch has and what it is called stands in batches.jsonl beside the rows, so a run that ends while a batch
is under way, by a kill or by its user, finds it again days later and asks none of its rows twice. A run that is killed
between the batch and the line of it finds the batch by the name it was meant to have.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from factory.errors import TeacherError
from factory.job.teacher import TeacherConfig
from factory.records import Generation, Prompt
from factory.teachers.remote.inbox import Inbox
from factory.teachers.remote.loop import PARKED, STRANGERS, bound_of, failed, read_reply, tell_spent
from factory.teachers.remote.purse import Purse
from factory.teachers.remote.transport import Closed, Endpoint, Refused, Throttled, WayFault
from factory.teachers.remote.wire import Body, Wire

LONGEST_PAUSE_S: Final = 60.0


@dataclass(slots=True)
class Batch:
    """One file of requests: the numbers that its rows have in the account, by row; `id` is the endpoint's own."""

    name: str
    rows: dict[str, int]
    id: str = ""
    lines: dict[str, Body] = field(default_factory=dict)
    ended: bool = False


class Files(Protocol):
    """A dialect's batches."""

    async def send(self, endpoint: Endpoint, name: str, lines: dict[str, Body]) -> str:
        """Send a file of requests under a name; the id of the batch."""
        ...

    async def find(self, endpoint: Endpoint, name: str) -> str:
        """The id of the batch of that name; empty where there is none."""
        ...

    async def look(self, endpoint: Endpoint, batch: str) -> dict[str, Body] | None:
        """A line for each row that has an answer or an error; None while the batch is under way."""
        ...


class BatchAsking:
    """The same as `loop.Asking`, by files: a file goes out when nothing more will be put."""

    def __init__(
        self,
        teacher: TeacherConfig,
        wire: Wire,
        files: Files,
        open_endpoint: Callable[[], Endpoint],
        purse: Purse,
        answers_as: str,
        finish: Callable[[Generation], None],
        path: Path,
        account: str,
    ) -> None:
        self.teacher, self.wire, self.files, self.purse, self.finish = teacher, wire, files, purse, finish
        self.open_endpoint, self.answers_as, self.path, self.account = open_endpoint, answers_as, path, account
        self.waiting: dict[str, Prompt] = {}
        self.batches = list(read_batches(path, account))
        for batch in self.batches:
            purse.reopen(batch.rows.values())
        self.strangers = 0
        self.inbox = Inbox()
        self._flushed = False
        # while the answers of a file are given out one by one
        self.handing_out = False

    def put(self, prompt: Prompt) -> None:
        """Ask this too, with the next file."""
        # no look at the endpoint's batches for each prompt: `flush` wakes
        self.inbox.put(prompt, wake=False)

    def flush(self) -> None:
        """Nothing more is put before something comes back: what waits goes out."""
        self._flushed = True
        self.inbox.wake()

    def stop(self) -> None:
        """End `run`; batches go on at the endpoint, and a later run takes their answers."""
        self.inbox.stop()

    async def run(self) -> None:
        """Ask until stopped. Raises TeacherError where the endpoint is gone or the money is spent."""
        self.inbox.open()
        self.endpoint = self.open_endpoint()
        try:
            await self._adopt()
            while not self.inbox.stopping:
                self.waiting |= {key_of(prompt): prompt for prompt in self.inbox.take()}
                await self._look()
                if self._flushed:
                    self._flushed = False
                    await self._send()
                await self.inbox.wait(self.teacher.endpoint.poll_s if self.batches else None)
        finally:
            await self.endpoint.close()

    async def _adopt(self) -> None:
        """Batches that were meant when a run was killed: sent by then, or never."""
        for batch in [batch for batch in self.batches if not batch.id]:
            batch.id = await self._patiently(lambda name=batch.name: self.files.find(self.endpoint, name))  # type: ignore[misc]
            if batch.id:
                self._write({"sent": batch.name, "id": batch.id})
            else:
                self._end(batch, void=True)

    async def _send(self) -> None:
        """One file of all that wait and can be paid for."""
        under_way = {row for batch in self.batches for row in batch.rows}
        batch = Batch(uuid.uuid4().hex, {})
        lines: dict[str, Body] = {}
        for row, prompt in self.waiting.items():
            most = bound_of(prompt)
            if row in under_way or not self.purse.affords(*most):
                continue
            batch.rows[row] = self.purse.ask(prompt.id, prompt.attempt, *most)
            lines[row] = self.wire.body(prompt)
        if not lines:
            if self.waiting.keys() - under_way and not self.batches:
                raise TeacherError(tell_spent(self.purse))
            return
        self._write({"meant": batch.name, "model": self.account, "rows": batch.rows})
        self.batches.append(batch)
        batch.id = await self._patiently(lambda: self.files.send(self.endpoint, batch.name, lines))
        self._write({"sent": batch.name, "id": batch.id})

    async def _look(self) -> None:
        """Take what batches have answered; one whose rows are all known is ended."""
        for batch in list(self.batches):
            if not batch.ended:
                found = await self._patiently(lambda id=batch.id: self.files.look(self.endpoint, id))  # type: ignore[misc]
                if found is None:
                    continue
                batch.lines, batch.ended = found, True
            self.handing_out = True
            for row in [row for row in batch.rows if row in self.waiting]:
                self._take(row, self.waiting[row], batch.rows.pop(row), batch.lines.get(row))
            self.handing_out = False
            # rows that nobody has put are on the spool or committed, or are put later in this very run
            if not batch.rows:
                self._end(batch, void=False)

    def _take(self, row: str, prompt: Prompt, number: int, line: Body | None) -> None:
        if line is None:  # the day was over before its turn came: it goes into the next file
            self.purse.void(number)
            self._flushed = True
            return
        del self.waiting[row]
        if "error" in line:
            self.purse.void(number)
            self.finish(failed(prompt, "refused_by_endpoint", self.endpoint.key.clean(str(line["error"]))))
            return
        reply: Body = line["reply"]
        generation = read_reply(self.wire, self.purse, self.endpoint.key, number, prompt, reply)
        named = self.wire.model_of(reply)
        if self.answers_as and named and named != self.answers_as:
            self.strangers += 1
            told = f"{named} answered, the others are of {self.answers_as}"
            if self.strangers >= STRANGERS:
                raise TeacherError(f"teacher.model {self.teacher.model!r}: {told}; {PARKED}")
            generation = failed(prompt, "other_model", told)
        self.finish(generation)

    def _end(self, batch: Batch, void: bool) -> None:
        for number in batch.rows.values() if void else ():
            self.purse.void(number)
        self.batches.remove(batch)
        self._write({"done": batch.name})

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("ab") as handle:
            handle.write(json.dumps(line).encode() + b"\n")

    async def _patiently(self, ask: Callable[[], Any]) -> Any:
        """An answer, however often it must be asked for within the endpoint's patience."""
        began, pause = time.monotonic(), 1.0
        while True:
            try:
                return await ask()
            except (WayFault, Throttled) as fault:
                final = isinstance(fault, Throttled) and fault.final
                if final or time.monotonic() - began > self.teacher.endpoint.patience_s:
                    raise TeacherError(f"teacher: the endpoint {self.endpoint.url} fails: {fault}; {PARKED}") from None
                await asyncio.sleep(max(pause, fault.retry_after or 0.0))
                pause = min(2 * pause, LONGEST_PAUSE_S)
            except (Refused, Closed) as told:
                raise TeacherError(f"teacher.endpoint.mode batch: the endpoint refuses it: {told}; {PARKED}") from None


def key_of(prompt: Prompt) -> str:
    """What a row's attempt is called in a file."""
    return f"{prompt.id}:{prompt.attempt}"


def read_batches(path: Path, account: str) -> Iterator[Batch]:
    """The batches of one account that were begun and not ended."""
    found: dict[str, Batch] = {}
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:  # torn by a kill
            continue
        if "meant" in line:
            found |= {line["meant"]: Batch(line["meant"], line["rows"])} if line["model"] == account else {}
        elif "sent" in line:
            if line["sent"] in found:
                found[line["sent"]].id = line["id"]
        else:
            found.pop(line["done"], None)
    yield from found.values()


class OpenAIFiles:
    """OpenAI's Batch API."""

    async def send(self, endpoint: Endpoint, name: str, lines: dict[str, Body]) -> str:
        url = "/v1/chat/completions"
        text = [json.dumps({"custom_id": row, "method": "POST", "url": url, "body": b}) for row, b in lines.items()]
        parts = {"file": (f"{name}.jsonl", "\n".join([*text, ""]).encode(), "application/jsonl")}
        sent = await endpoint.upload("files", files=parts, data={"purpose": "batch"})
        body = {"input_file_id": sent["id"], "endpoint": url, "completion_window": "24h", "metadata": {"name": name}}
        return str((await endpoint.post("batches", body))["id"])

    async def find(self, endpoint: Endpoint, name: str) -> str:
        listed = await endpoint.get("batches?limit=100")
        mine = [one for one in listed.get("data") or [] if (one.get("metadata") or {}).get("name") == name]
        return str(mine[0]["id"]) if mine else ""

    async def look(self, endpoint: Endpoint, batch: str) -> dict[str, Body] | None:
        told = await endpoint.get(f"batches/{batch}")
        if told.get("status") in ("validating", "in_progress", "finalizing", "cancelling"):
            return None
        if told.get("status") == "failed":
            raise Refused(f"batch {batch}: {json.dumps(told.get('errors'))[:300]}", 400, "failed")
        lines: dict[str, Body] = {}
        for name in (told.get("output_file_id"), told.get("error_file_id")):
            for line in read_lines(await endpoint.download(f"files/{name}/content")) if name else ():
                response = line.get("response") or {}
                answered = response.get("status_code") == 200
                value = response.get("body") if answered else line.get("error") or response.get("body")
                lines[str(line.get("custom_id"))] = {"reply": value} if answered else {"error": value}
        return lines


class GeminiFiles:
    """Gemini's Batch API on the developer API: a file by its upload service, then a batch of it."""

    def __init__(self, model: str) -> None:
        self.model = model

    async def send(self, endpoint: Endpoint, name: str, lines: dict[str, Body]) -> str:
        data = "".join(json.dumps({"key": row, "request": body}) + "\n" for row, body in lines.items()).encode()
        host, _, version = endpoint.url.rpartition("/")
        head = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
        head |= {"X-Goog-Upload-Header-Content-Length": str(len(data))}
        head |= {"X-Goog-Upload-Header-Content-Type": "application/jsonl"}
        begun = await endpoint.headers(f"{host}/upload/{version}/files", head, {"file": {"display_name": name}})
        go = {"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"}
        sent = await endpoint.upload(begun["x-goog-upload-url"], headers=go, content=data)
        body = {"batch": {"displayName": name, "inputConfig": {"fileName": sent["file"]["name"]}}}
        return str((await endpoint.post(f"models/{self.model}:batchGenerateContent", body))["name"])

    async def find(self, endpoint: Endpoint, name: str) -> str:
        listed = await endpoint.get("batches?pageSize=100")
        named = [(one, one.get("metadata") or {}) for one in listed.get("operations") or []]
        return next((str(one["name"]) for one, told in named if told.get("displayName") == name), "")

    async def look(self, endpoint: Endpoint, batch: str) -> dict[str, Body] | None:
        told = await endpoint.get(batch)
        if not told.get("done"):
            return None
        if "error" in told:
            raise Refused(f"{batch}: {json.dumps(told['error'])[:300]}", 400, "failed")
        host, _, version = endpoint.url.rpartition("/")
        name = (told.get("response") or {}).get("responsesFile")
        found = await endpoint.download(f"{host}/download/{version}/{name}:download?alt=media") if name else b""
        return {
            str(line.get("key")): {"reply": line["response"]} if "response" in line else {"error": line.get("error")}
            for line in read_lines(found)
        }


def read_lines(data: bytes) -> Iterator[Body]:
    """The objects of a file of JSON lines; raises WayFault where one is none: the file did not come whole."""
    for text in data.splitlines():
        if text.strip():
            try:
                line = json.loads(text)
            except ValueError:
                raise WayFault("a file of answers that did not come whole", charged=False) from None
            if isinstance(line, dict):
                yield line
