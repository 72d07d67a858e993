"""A real S3 server on loopback (moto's, in a process of its own), and a gate before it that does what networks do."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread
from typing import Any

from factory.dataset.bucket import Bucket, Objects, Url, connect

KEY = "verysecretkeyofatest"
NUMBERS = count()
BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
UNKNOWN = b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>No such key: %s</Message></Error>"


@dataclass
class Gate:
    """What happens to a request: `rule(method, key)` says "" (it passes), "busy" (503 SlowDown), "cut" (the connection
    ends in the middle of the body), "lost" (done, and the answer never comes) or "unknown" (403)."""

    port: int
    rule: Callable[[str, str], str] = lambda method, key: ""
    seen: list[tuple[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def puts(self) -> list[str]:
        """The keys that were put, in order."""
        return [key for method, key in self.seen if method == "PUT"]


@contextmanager
def serve_s3() -> Iterator[Gate]:
    """An S3 server behind a gate, and this process's environment leading there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(port, server)
        with _gate(port) as gate:
            yield gate
    finally:
        server.kill()
        server.wait()


def _await(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        assert server.poll() is None, "moto's server has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("moto's server does not come up")


@contextmanager
def _gate(behind: int) -> Iterator[Gate]:
    gate: Gate

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            key = self.path.partition("?")[0].lstrip("/").partition("/")[2]
            gate.seen.append((self.command, key))
            does, length = gate.rule(self.command, key), int(self.headers.get("Content-Length") or 0)
            if does == "cut":
                self.rfile.read(length // 2)
                self._end()
                return
            body = self.rfile.read(length)
            if does in ("busy", "unknown"):
                self._answer(503 if does == "busy" else 403, [], BUSY if does == "busy" else UNKNOWN % KEY.encode())
                return
            asked = http.client.HTTPConnection("127.0.0.1", behind, timeout=60)
            asked.request(self.command, self.path, body, dict(self.headers))
            answer = asked.getresponse()
            data = answer.read()
            asked.close()
            if does == "lost":
                self._end()
                return
            kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
            self._answer(answer.status, kept, data)

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name, _ in headers):
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _end(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # whoever asked has left

    with Server(("127.0.0.1", 0), Handler) as server:
        gate = Gate(server.server_address[1])
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield gate
        server.shutdown()
        thread.join()


def s3_environment(gate: Gate) -> dict[str, str]:
    """What leads the commands of a test to its server, with quick ends of what does not go."""
    return {
        "AWS_ENDPOINT_URL": gate.url,
        "AWS_ACCESS_KEY_ID": "AKIAOFATEST000000000",
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@cache
def connection() -> Objects:
    """One for all tests of a process, as its server: to make one takes longer than most of what they ask."""
    return connect()


def bucket_of(url: Url) -> Bucket:
    return Bucket(url, connection())


def new_url(name: str = "rows/demo") -> Url:
    """An address in a bucket of its own."""
    url = Url(f"bucket-{os.getpid()}-{next(NUMBERS)}", name)
    connection().call_s3("create_bucket", Bucket=url.bucket)
    return url


def contents(url: Url) -> dict[str, bytes]:
    """Everything that is at an address."""
    return {name: connection().cat_file(f"{url}/{name}") for name in bucket_of(url).list()}
