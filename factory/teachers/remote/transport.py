"""HTTP to an endpoint: one request, and what may become of it.

    an answer                        200 with a JSON object
    Throttled                        429: asked too fast, or no money left
    WayFault                         the way there: no connection, 5xx, a time-out, an answer that is cut off
    Refused                          this request is not answered, whenever it is asked (400, 413, 422)
    Closed                           no request is: wrong key, wrong path, unknown model (401, 403, 404)

Nothing that is told here or raised holds the key: it is taken out of every text that the endpoint sends back.
"""

import asyncio
import json
import os
import re
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from factory.errors import TeacherError, redact

MOST_TOLD: Final = 300  # characters of what an endpoint says
DELAY: Final = re.compile(r"^(\d+(?:\.\d+)?)s$")  # as Gemini writes it
# said with a 429 although no waiting helps
OUT_OF_MONEY: Final = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


class Throttled(Exception):
    """Asked too fast. `retry_after` in seconds where the endpoint said; `final` where no waiting helps."""

    def __init__(self, told: str, retry_after: float | None, final: bool) -> None:
        super().__init__(told)
        self.retry_after, self.final = retry_after, final


class WayFault(Exception):
    """The way to the endpoint failed. `charged`: the request may have been answered and paid for all the same."""

    def __init__(self, told: str, charged: bool, retry_after: float | None = None) -> None:
        super().__init__(told)
        self.charged, self.retry_after = charged, retry_after


class Refused(Exception):
    """The endpoint does not answer this request; `code` is its own word for why, where it has one."""

    def __init__(self, told: str, status: int, code: str) -> None:
        super().__init__(told)
        self.status, self.code = status, code


class Closed(Exception):
    """The endpoint answers no request like this: key, address or model are wrong."""

    def __init__(self, told: str, status: int) -> None:
        super().__init__(told)
        self.status = status


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the variable it came from; printing either shows the name alone."""

    name: str
    value: str

    def __repr__(self) -> str:
        return f"Key({self.name})"

    def clean(self, text: str) -> str:
        """A text on one line, without the key and without other secrets of the environment."""
        text = text.replace(self.value, f"<{self.name}>") if self.value else text
        return " ".join(redact(text).split())[:MOST_TOLD]


def read_key(name: str) -> Key:
    """The key that a variable of the environment holds; none for an endpoint that asks for none (`name` is empty).

    Raises TeacherError where the variable is not set, or holds what cannot be sent.
    """
    if not name:
        return Key("", "")
    value = os.environ.get(name, "").strip()
    if not value:
        raise TeacherError(
            f'teacher.api_key_env {name!r}: not set in the environment; export {name}=..., or say api_key_env = "" '
            f"for an endpoint that asks for no key"
        )
    # a header's fault would be told with its value
    if not value.isascii() or not value.isprintable() or " " in value:
        raise TeacherError(f"teacher.api_key_env {name!r}: its value has characters that no key has; set it again")
    return Key(name, value)


def require_url(url: str) -> str:
    """An endpoint's address without the slash at its end. Raises TeacherError where it is none, or holds a secret."""
    parts = urlsplit(url)
    # never repeated: what stands before the @ may be a password
    if "@" in parts.netloc or parts.query:
        raise TeacherError("teacher.base_url: holds a user, a password or a query; name the key in api_key_env alone")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TeacherError(
            f"teacher.base_url {url!r}: not an address (allowed: http://host:port/v1 or https://...); mend it"
        )
    return url.rstrip("/")


class Endpoint:
    """One client of one endpoint, for one event loop."""

    def __init__(self, url: str, headers: dict[str, str], key: Key, timeout_s: float, most: int = 64) -> None:
        self.url, self.key, self.timeout_s = url, key, timeout_s
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
        timeout = httpx.Timeout(timeout_s, connect=min(30.0, timeout_s))
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """A JSON object; raises what the module names."""
        return self._read(await self._send(path, "GET"))

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that a request is answered with; raises what the module names."""
        # our own JSON: httpx's fails at half a character, which a row of anybody's data may hold
        head = {"content-type": "application/json"}
        return self._read(await self._send(path, "POST", content=json.dumps(body).encode(), headers=head))

    async def upload(self, path: str, **parts: Any) -> dict[str, Any]:
        """The answer to a file that is sent; `parts` as httpx takes them."""
        return self._read(await self._send(path, "POST", **parts))

    async def headers(self, path: str, head: dict[str, str], body: dict[str, Any]) -> dict[str, str]:
        """The head of an answer, by lower-case names: some services answer there."""
        response = await self._send(path, "POST", headers=head, json=body)
        self._require_answer(response)
        return {name.lower(): value for name, value in response.headers.items()}

    async def download(self, path: str) -> bytes:
        """A file's bytes."""
        response = await self._send(path, "GET")
        self._require_answer(response)
        return response.content

    async def _send(self, path: str, method: str, **parts: Any) -> httpx.Response:
        url = path if path.startswith("http") else f"{self.url}/{path}"
        try:
            # of the whole answer: httpx's own time-outs begin anew with every byte
            async with asyncio.timeout(self.timeout_s):
                return await self._client.request(method, url, **parts)
        except TimeoutError:
            raise WayFault(f"no answer within {self.timeout_s:g} s", charged=True) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise WayFault(self.key.clean(f"no connection: {error or type(error).__name__}"), charged=False) from None
        except httpx.HTTPError as error:
            told = f"the answer did not come whole: {error or type(error).__name__}"
            raise WayFault(self.key.clean(told), charged=True) from None
        except httpx.InvalidURL as error:
            raise TeacherError(f"teacher.base_url: not an address: {self.key.clean(str(error))}; mend it") from None

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        self._require_answer(response)
        try:
            found = json.loads(response.content)
        except ValueError:
            raise WayFault(f"an answer that is no JSON ({len(response.content)} bytes)", charged=True) from None
        if not isinstance(found, dict):
            raise WayFault("an answer that is no JSON object", charged=True)
        return found

    def _require_answer(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        code, message = _read_error(response)
        told = self.key.clean(f"HTTP {status}: {message}")
        if status == 429:
            raise Throttled(told, retry_after(response), code in OUT_OF_MONEY)
        if status in (408, 409, 425) or status >= 500:
            raise WayFault(told, charged=False, retry_after=retry_after(response))
        if status in (401, 402, 403, 404, 405):
            raise Closed(told, status)
        raise Refused(told, status, code)


def _read_error(response: httpx.Response) -> tuple[str, str]:
    """The endpoint's own code and words, out of whatever it sent."""
    try:
        found = json.loads(response.content)
        error = found.get("error", found) if isinstance(found, dict) else found
        if isinstance(error, dict):
            return str(error.get("code") or error.get("status") or ""), str(error.get("message") or error)
    except (ValueError, AttributeError):
        pass
    return "", response.text[:MOST_TOLD] or response.reason_phrase


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that an endpoint asks to wait, in any of the ways that are in use; None where it does not say.

    A date is held against the answer's own date: our clock may be wrong.
    """
    headers = response.headers
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / scale)
        except (KeyError, ValueError):
            continue
    until, now = _date(headers.get("retry-after")), _date(headers.get("date"))
    if until is not None and now is not None:
        return max(0.0, (until - now).total_seconds())
    return _body_delay(response)


def _body_delay(response: httpx.Response) -> float | None:
    """What Gemini says in the body: `retryDelay: "34s"`."""
    try:
        details = json.loads(response.content)["error"]["details"]
        found = [DELAY.match(str(detail.get("retryDelay"))) for detail in details]
        return next((float(match[1]) for match in found if match), None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _date(text: str | None) -> datetime | None:
    try:
        return None if text is None else parsedate_to_datetime(text)
    except ValueError:
        return None
