"""What one request may come to: an answer, a refusal for speed, a fault of the way, a refusal for good."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from scripted_endpoint import ScriptedEndpoint, serving

from factory.teachers.remote.transport import (
    Closed,
    Endpoint,
    Key,
    Refused,
    Throttled,
    WayFault,
    retry_after,
)

BODY = {"model": "adder-1", "messages": [{"role": "user", "content": "Add 1 and 2."}]}


def ask(endpoint: ScriptedEndpoint, timeout_s: float = 10, body: dict[str, Any] | None = None) -> dict[str, Any]:
    async def once() -> dict[str, Any]:
        client = Endpoint(endpoint.url, {}, Key("", ""), timeout_s)
        try:
            return await client.post("chat/completions", body or BODY)
        finally:
            await client.close()

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("fault", "kind", "charged"),
    [
        ("429", Throttled, None),
        ("500", WayFault, False),
        ("502", WayFault, False),
        ("503", WayFault, False),
        ("504", WayFault, False),
        ("408", WayFault, False),
        ("cut_json", WayFault, True),
        ("half_closed", WayFault, True),
        ("hang", WayFault, True),
        ("400", Refused, None),
        ("413", Refused, None),
        ("422", Refused, None),
        ("401", Closed, None),
        ("402", Closed, None),
        ("403", Closed, None),
        ("404", Closed, None),
    ],
)
def test_each_fault_is_of_its_kind(fault: str, kind: type[Exception], charged: bool | None) -> None:
    with serving(ScriptedEndpoint(faults=lambda number, body: fault)) as endpoint, pytest.raises(kind) as caught:
        ask(endpoint, timeout_s=1)
    assert getattr(caught.value, "charged", None) is charged


def test_an_answer_is_its_json() -> None:
    with serving(ScriptedEndpoint()) as endpoint:
        assert ask(endpoint)["model"] == "adder-1"


def test_half_a_character_is_sent_and_harms_nothing() -> None:
    body = BODY | {"messages": [{"role": "user", "content": "Add 1 and 2. \ud83d"}]}
    with serving(ScriptedEndpoint(vllm=False)) as endpoint, pytest.raises((WayFault, Refused)):
        ask(endpoint, body=body)  # this server cannot encode it; ours was sent
    assert json.dumps(endpoint.bodies[-1]) == json.dumps(body)


def test_no_server_is_a_fault_that_nobody_charges_for() -> None:
    endpoint = ScriptedEndpoint()
    endpoint.port = 9
    with pytest.raises(WayFault, match="no connection") as caught:
        ask(endpoint)
    assert caught.value.charged is False


def answer(status: int = 429, text: str = "{}", **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()}, text=text)


def test_how_long_to_wait_is_read_in_every_way_it_is_said() -> None:
    assert retry_after(answer()) is None
    assert retry_after(answer(retry_after="7")) == 7
    assert retry_after(answer(retry_after="0.25")) == 0.25
    assert retry_after(answer(retry_after_ms="1500", retry_after="9")) == 1.5
    assert retry_after(answer(retry_after="-3")) == 0
    assert retry_after(answer(retry_after="soon")) is None
    body = {"error": {"details": [{"@type": "x"}, {"retryDelay": "34s"}]}}
    assert retry_after(answer(text=json.dumps(body))) == 34
    assert retry_after(answer(text='{"error": {"details": 5}}')) is None


@pytest.mark.parametrize("skew", [-30, 0, 30])
def test_a_date_is_held_against_the_answers_own_clock(skew: int) -> None:
    now = datetime.now(UTC) + timedelta(days=skew)
    later = format_datetime(now + timedelta(seconds=20), usegmt=True)
    assert retry_after(answer(date=format_datetime(now, usegmt=True), retry_after=later)) == 20
    assert retry_after(answer(retry_after=later)) is None  # against which clock?


def test_no_money_is_no_matter_of_waiting() -> None:
    with serving(ScriptedEndpoint()) as endpoint:
        send = endpoint.send

        async def broke(writer: Any, status: int, value: dict[str, Any], extra: Any = None) -> bool:
            value = {"error": {"code": "insufficient_quota", "message": "You exceeded your quota"}}
            return await send(writer, 429, value, extra)

        endpoint.send = broke  # type: ignore[method-assign]
        with pytest.raises(Throttled, match="You exceeded") as caught:
            ask(endpoint)
    assert caught.value.final


def test_what_an_endpoint_says_is_one_short_line_without_the_key() -> None:
    key = Key("SOME_KEY", "sk-0123456789")
    told = key.clean("You sent sk-0123456789,\n  which " + "is wrong " * 100)
    assert told.startswith("You sent <SOME_KEY>, which is wrong")
    assert len(told) == 300


def test_a_client_ends_with_its_loop() -> None:
    async def both(do: Callable[[Endpoint], Awaitable[Any]], endpoint: ScriptedEndpoint) -> None:
        client = Endpoint(endpoint.url, {}, Key("", ""), 10)
        await do(client)
        await client.close()

    with serving(ScriptedEndpoint()) as endpoint:
        for _ in range(2):
            asyncio.run(both(lambda client: client.get("models"), endpoint))
