"""A stand-in for the hub: its HTTP API as huggingface_hub and `datasets` use it, over git-like trees in memory.

Strict where the hub is: a draft is not merged, a large file is not committed before its bytes are there, a card without
valid metadata is refused, and so is whoever writes without a token. It has no Xet storage, only plain LFS, and no reply
makes a client that has hf-xet take that: HF_HUB_DISABLE_XET=1 does. `trouble` is asked before each request, and may
answer in the hub's place or cut the line.

    python tests/hub_standin.py

runs one until Ctrl-C and says what to set so that `factory push`, `huggingface_hub` and `datasets` talk to it.
"""

import argparse
import base64
import hashlib
import json
import re
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

NOW = "2026-01-01T00:00:00.000Z"
Tree = dict[str, bytes]
Trouble = Callable[[str, str], int | str | None]  # method, path -> a status, "cut", "cut after" or nothing


@dataclass
class Repository:
    refs: dict[str, Tree] = field(default_factory=lambda: {"main": {".gitattributes": b"*.parquet filter=lfs\n"}})
    requests: list[dict[str, Any]] = field(default_factory=list)
    bases: dict[int, Tree] = field(default_factory=dict)  # main as it was when a request was opened
    private: bool = False
    large: set[str] = field(default_factory=set)


class Hub(ThreadingHTTPServer):
    """Repositories, large files by SHA-256, and every request that came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        self.trouble: Trouble = lambda method, path: None
        self.lock = threading.RLock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def main(self, name: str) -> Tree:
        return self.repositories[name].refs["main"]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is cut off is what some tests want."""


def sha(tree: Tree) -> str:
    return hashlib.sha1(
        json.dumps({p: hashlib.sha1(d).hexdigest() for p, d in sorted(tree.items())}).encode()
    ).hexdigest()


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing: tests look at `seen`."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        body = self._body()
        with self.server.lock:
            self.server.seen.append((self.command, path))
            trouble = self.server.trouble(self.command, path)
            if isinstance(trouble, int):
                self._answer({"error": "slow down"}, trouble, {"Retry-After": "0"})
                return
            if trouble == "cut":
                self._cut()
                return
            if re.fullmatch(WRITES, f"{self.command} {path}") and not self._token():
                self._answer({"error": "Invalid username or password."}, 401)
                return
            for pattern, serve in ROUTES:
                if (found := re.fullmatch(pattern, f"{self.command} {path}")) is not None:
                    if trouble == "cut after":
                        self._answer = lambda *_: self._cut()  # type: ignore[method-assign]
                    serve(self, body, *found.groups())
                    return
            self._answer({"error": f"no such thing: {path}"}, 404)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer").strip()

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        ).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repository(self, name: str, revision: str = "main") -> tuple[Repository, Tree] | None:
        found = self.server.repositories.get(name)
        tree = None if found is None else found.refs.get(unquote(revision))
        if found is not None and tree is None:
            tree = next((one for one in found.refs.values() if sha(one) == revision), None)
        if found is None or tree is None:
            self._answer(
                {"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound" if found is None else "RevisionNotFound"}
            )
            return None
        return found, tree

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.server.repositories
        if not there:
            self.server.repositories[name] = Repository(
                private=asked.get("visibility") == "private" or asked.get("private", False)
            )
        self._answer({"url": f"{self.server.url}/datasets/{name}"}, 409 if there else 200)

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        try:
            told = yaml.safe_load(content.split("---\n")[1])
            wrong = [] if told.get("license") in ("apache-2.0", "cc-by-4.0", "mit") else ["license"]
            wrong += [k for k in ("license", "annotations_creators", "size_categories") if not told.get(k)]
        except (yaml.YAMLError, IndexError) as error:
            wrong = [str(error)]
        errors = [{"message": f"{key} is wrong"} for key in wrong]
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if (found := self._repository(name, revision or "main")) is not None:
            siblings = [{"rfilename": path} for path in sorted(found[1])]
            self._answer(
                {
                    "id": name,
                    "sha": sha(found[1]),
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "lastModified": NOW,
                }
            )

    def _entry(self, repository: Repository, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
        if path in repository.large:
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134, "sha256": digest}
        return entry

    def tree(self, body: bytes, name: str, revision: str, under: str | None = None) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        prefix = f"{under.strip('/')}/" if under and under.strip("/") else ""
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, Any] = {}
        for path, data in sorted(found[1].items()):
            if not path.startswith(prefix):
                continue
            steps = path[len(prefix) :].split("/")
            for depth in range(1, len(steps) if deep else min(2, len(steps))):
                folder = prefix + "/".join(steps[:depth])
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": blob_id(folder.encode())}
            if deep or len(steps) == 1:
                entries[path] = self._entry(found[0], path, data)
        if prefix and not entries:
            self._answer({"error": "no such folder"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self._answer(list(entries.values()))

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        text = body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        told = []
        for path in paths:
            if path in found[1]:
                told.append(self._entry(found[0], path, found[1][path]))
            elif any(one.startswith(f"{path}/") for one in found[1]):
                told.append({"type": "directory", "path": path, "size": 0, "oid": blob_id(path.encode())})
        self._answer(told)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        told = []
        for file in json.loads(body)["files"]:
            data, large = found[1].get(file["path"]), file["path"].endswith(".parquet")
            oid = None if data is None else hashlib.sha256(data).hexdigest() if large else blob_id(data)
            told.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._answer({"files": told})

    def lfs(self, body: bytes, name: str) -> None:
        told = []
        for wanted in json.loads(body)["objects"]:
            here = wanted["oid"] in self.server.blobs
            upload = {"upload": {"href": f"{self.server.url}/upload/{wanted['oid']}", "header": {}}}
            told.append(wanted | ({} if here else {"actions": upload}))
        self._answer({"transfer": "basic", "objects": told})

    def upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._answer({"error": "other bytes"}, 400)
            return
        self.server.blobs[oid] = body
        self._answer({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        tree = dict(found[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.server.blobs:
                        self._answer({"error": "its bytes are not there"}, 400)
                        return
                    tree[value["path"]] = self.server.blobs[value["oid"]]
                    found[0].large.add(value["path"])
                case "deletedFile":
                    if tree.pop(value["path"], None) is None:
                        self._answer({"error": "A file with this name doesn't exist"}, 404)
                        return
        found[0].refs[unquote(revision)] = tree
        self._answer({"commitUrl": f"{self.server.url}/datasets/{name}/commit/{sha(tree)}", "commitOid": sha(tree)})

    def _told(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        more = {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "events": []}
        about = {"author": {"name": "me"}, "createdAt": NOW, "repo": {"name": name, "type": "dataset"}}
        return request | more | about | {"isPullRequest": True}

    def discussions(self, body: bytes, name: str) -> None:
        if (found := self._repository(name)) is None:
            return
        repository, tree = found
        if self.command == "POST":
            number = len(repository.requests) + 1
            repository.requests.append({"title": json.loads(body)["title"], "num": number, "status": "draft"})
            repository.refs[f"refs/pr/{number}"] = repository.bases[number] = dict(tree)
            self._answer({"num": number})
            return
        told = [self._told(name, request) for request in repository.requests]
        self._answer({"discussions": told, "count": len(told), "start": 0})

    def discussion(self, body: bytes, name: str, number: str) -> None:
        self._answer(self._told(name, self.server.repositories[name].requests[int(number) - 1]))

    def status(self, body: bytes, name: str, number: str) -> None:
        request = self.server.repositories[name].requests[int(number) - 1]
        request["status"] = json.loads(body)["status"]
        self._answer({"newStatus": {"id": "0", "type": "status-change", "createdAt": NOW, "data": {"status": "open"}}})

    def merge(self, body: bytes, name: str, number: str) -> None:
        repository = self.server.repositories[name]
        request = repository.requests[int(number) - 1]
        if request["status"] != "open":
            self._answer({"error": f"a request that is {request['status']} is not merged"}, 400)
            return
        # as git does: what has changed since the request was opened, over main as it is
        base, main, branch = (
            repository.bases[int(number)],
            repository.refs["main"],
            repository.refs[f"refs/pr/{number}"],
        )
        changed = {path for path in {*base, *branch} if base.get(path) != branch.get(path)}
        if any(main.get(path) not in (base.get(path), branch.get(path)) for path in changed):
            self._answer({"error": "conflicts"}, 409)
            return
        request["status"] = "merged"
        kept = {path: data for path, data in main.items() if path not in changed}
        repository.refs["main"] = kept | {path: branch[path] for path in changed if path in branch}
        self._answer({"newStatus": {}})

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        data, commit = found[1].get(path), {"X-Repo-Commit": sha(found[1])}
        if data is None:
            self._answer({"error": "no such file"}, 404, commit | {"X-Error-Code": "EntryNotFound"})
            return
        headers = commit | {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2]) if asked[2] else len(data) - 1
            part = data[start : end + 1]
            self._answer(part, 206, headers | {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"})
            return
        self._answer(data, 200, headers)


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"(refs/pr/\d+|[^/]+)"
# of these the card's check is for everybody, and an upload's address is secret by itself
WRITES = (
    rf"POST /api/repos/create|POST /api/datasets/{NAME}/(?:preupload|commit|discussions)\b.*"
    rf"|POST /datasets/{NAME}\.git/info/lfs/.*"
)
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/datasets/{NAME}", Handler.info),
    (rf"GET /api/datasets/{NAME}/revision/{REVISION}", Handler.info),
    (rf"GET /api/datasets/{NAME}/tree/{REVISION}(/.*)?", Handler.tree),
    (rf"POST /api/datasets/{NAME}/paths-info/{REVISION}", Handler.paths_info),
    (rf"POST /api/datasets/{NAME}/preupload/{REVISION}", Handler.preupload),
    (rf"POST /datasets/{NAME}\.git/info/lfs/objects/batch", Handler.lfs),
    (r"PUT /upload/(\w+)", Handler.upload),
    (rf"POST /api/datasets/{NAME}/commit/{REVISION}", Handler.commit),
    (rf"(?:GET|POST) /api/datasets/{NAME}/discussions", Handler.discussions),
    (rf"GET /api/datasets/{NAME}/discussions/(\d+)", Handler.discussion),
    (rf"POST /api/datasets/{NAME}/discussions/(\d+)/status", Handler.status),
    (rf"POST /api/datasets/{NAME}/discussions/(\d+)/merge", Handler.merge),
    (rf"(?:GET|HEAD) /datasets/{NAME}/resolve/{REVISION}/(.+)", Handler.resolve),
]


def main() -> None:
    about = "A stand-in of the Hugging Face Hub, in memory: it runs until Ctrl-C and prints what to set to talk to it."
    argparse.ArgumentParser(description=about).parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where whoever started it has it ignored
        signal.signal(number, signal.default_int_handler)
    hub = Hub()
    print(
        f"export HF_ENDPOINT={hub.url} HF_TOKEN=anything HF_HUB_DISABLE_XET=1\n"
        "(a stand-in of the hub, in memory; Ctrl-C ends it)",
        flush=True,
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        for name, repository in hub.repositories.items():
            print(f"{name}: {len(repository.refs['main'])} files on main")


if __name__ == "__main__":
    main()
