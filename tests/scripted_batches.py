"""The endpoint of our own with a batch service: files come in, are answered when they have been looked at often enough.

`left_out` is how many rows of the first batch expire unanswered, `broken` how many have an error in place of an answer.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from scripted_endpoint import ScriptedEndpoint, error


@dataclass
class BatchEndpoint(ScriptedEndpoint):
    """As `ScriptedEndpoint`, with OpenAI's Batch API and Gemini's."""

    looks: int = 2
    left_out: int = 0
    broken: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked_in_files: list[str] = field(default_factory=list)

    async def reply(self, method: str, path: str, headers: dict[str, str], data: bytes, writer: Any) -> bool:
        path = path.removeprefix(f"http://127.0.0.1:{self.port}")
        if path.endswith("/content") or path.startswith("/download/"):
            name = path.split("/files/")[1].removesuffix("/content").partition(":")[0]
            await self.send_bytes(writer, 200, self.files[name], None)
            return True
        if path == "/v1/files":
            return await self.send(writer, 200, {"id": self.keep(data)})
        if path.startswith("/upload/v1beta/"):
            url = f"http://127.0.0.1:{self.port}/put"
            await self.send_bytes(writer, 200, b"{}", None, {"X-Goog-Upload-Url": url})
            return True
        if path == "/put":
            return await self.send(writer, 200, {"file": {"name": f"files/{self.keep(data)}"}})
        if "/batches" in path or path.endswith(":batchGenerateContent"):
            return await self.send(writer, 200, self.of_batches(method, path, data))
        return await super().reply(method, path, headers, data, writer)

    def keep(self, data: bytes) -> str:
        """The lines of a file, in whatever form it was sent."""
        lines = [line for line in data.splitlines() if line.startswith((b'{"custom_id"', b'{"key"'))]
        name = f"file-{len(self.files)}"
        self.files[name] = b"\n".join(lines)
        return name

    def of_batches(self, method: str, path: str, data: bytes) -> dict[str, Any]:
        gemini = path.startswith("/v1beta")
        if method == "POST":
            body = json.loads(data)
            if gemini:
                told = body["batch"]
                return self.begin(f"batches/{len(self.batches)}", told["displayName"], told["inputConfig"]["fileName"])
            return self.begin(f"batch_{len(self.batches)}", body["metadata"]["name"], body["input_file_id"])
        if "?" in path:
            return {"operations" if gemini else "data": list(self.batches.values())}
        batch = self.batches[path.removeprefix("/v1beta/" if gemini else "/v1/batches/")]
        batch["looks"] += 1
        if batch["looks"] >= self.looks and "answers" not in batch:
            self.finish(batch)
        return batch

    def begin(self, name: str, title: str, file: str) -> dict[str, Any]:
        self.batches[name] = {
            "id": name,
            "name": name,
            "status": "in_progress",
            "looks": 0,
            "file": file.removeprefix("files/"),
            "metadata": {"name": title, "displayName": title},
        }
        return self.batches[name]

    def finish(self, batch: dict[str, Any]) -> None:
        """Answer all rows but those that expire."""
        good, bad = [], []
        lines = [json.loads(line) for line in self.files[batch["file"]].splitlines()]
        first = len([one for one in self.batches.values() if "answers" in one]) == 0
        for number, line in enumerate(lines):
            body = line.get("body") or line["request"]
            turn = body["messages"][-1]["content"] if "messages" in body else body["contents"][-1]["parts"][0]["text"]
            self.asked_in_files.append(turn)
            if first and number < self.left_out:
                continue
            broken = first and number < self.left_out + self.broken
            bad += [self.as_error(line)] if broken else []
            good += [] if broken else [self.as_answer(line, body)]
        names = [f"answers-{batch['id'].replace('/', '-')}-{kind}" for kind in ("good", "bad")]
        for name, found in zip(names, (good, bad), strict=True):
            self.files[name] = "\n".join(map(json.dumps, found)).encode()
        if "request" in lines[0]:
            self.files[names[0]] += b"\n" + self.files[names[1]]
            batch |= {"done": True, "response": {"responsesFile": f"files/{names[0]}"}}
        batch |= {"answers": True, "status": "expired" if first and self.left_out else "completed"}
        batch |= {"output_file_id": names[0], "error_file_id": names[1]}

    def as_answer(self, line: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        if "request" in line:
            return {"key": line["key"], "response": self.complete_as_gemini(body)}
        made = self.complete(body)
        usage = made["usage"]
        self.billed += type(self.billed)(usage["prompt_tokens"], 0, usage["completion_tokens"], 0)
        return {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": made}}

    def as_error(self, line: dict[str, Any]) -> dict[str, Any]:
        if "request" in line:
            return {"key": line["key"], "error": {"code": 3, "message": "blocked"}}
        told = {"status_code": 400, "body": error("blocked", "content_policy")}
        return {"custom_id": line["custom_id"], "response": told}
