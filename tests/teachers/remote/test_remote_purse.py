"""The account: every token that was used, what may have been, and what it costs; across kills."""

import json
from pathlib import Path

import pytest

from factory.job.endpoint import PriceConfig
from factory.teachers.remote.purse import (
    Account,
    Purse,
    cost_of,
    dearest,
    describe_spending,
    read_account,
    read_spending,
    usage_path,
)
from factory.usage import Usage

PRICE = PriceConfig(prompt=1.0, completion=10.0, cached=0.25, reasoning=20.0)


def test_each_kind_of_token_has_its_price() -> None:
    usage = Usage(prompt=1_000_000, cached=400_000, completion=500_000, reasoning=100_000)
    assert cost_of(usage, PRICE) == pytest.approx(0.6 * 1 + 0.4 * 0.25 + 0.4 * 10 + 0.1 * 20)
    plain = PriceConfig(prompt=1.0, completion=10.0)
    assert cost_of(usage, plain) == pytest.approx(1 + 5)
    assert cost_of(usage, None) == 0


def test_the_dearest_use_is_never_cheaper_than_any_other() -> None:
    for price in (PRICE, PriceConfig(prompt=1, completion=2, cached=3, reasoning=1)):
        most = cost_of(dearest(1000, 500, price), price)
        uses = [Usage(1000, cached, 500, reasoning) for cached in (0, 500, 1000) for reasoning in (0, 250, 500)]
        assert all(cost_of(use, price) <= most + 1e-12 for use in uses)


def test_the_account_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    purse = Purse(tmp_path / "usage.jsonl", "m", PRICE)
    purse.settle(purse.ask("a", 0, 100, 200), Usage(90, 10, 150, 50))
    purse.void(purse.ask("b", 0, 100, 200))
    purse.doubt(purse.ask("c", 0, 100, 200))
    purse.ask("d", 1, 10, 20)
    purse.close()
    account, price = read_account(tmp_path / "usage.jsonl")
    assert price == PRICE
    assert (account.requests, account.unanswered) == (1, 2)
    assert account.used == Usage(90, 10, 150, 50)
    assert account.doubtful == Usage(110, 0, 220, 220)  # reasoning is the dearest here
    assert account == purse.account


def test_a_killed_runs_requests_may_have_been_charged(tmp_path: Path) -> None:
    first = Purse(tmp_path / "usage.jsonl", "m", PRICE)
    first.ask("a", 0, 100, 200)  # killed here: no close, no line of its end
    again = Purse(tmp_path / "usage.jsonl", "m", PRICE)
    assert again.account.unanswered == 1
    number = again.ask("a", 0, 100, 200)
    again.settle(number, Usage(100, 0, 50, 0))
    assert number == 1  # numbers go on, so that no line ends another's request
    account, _ = read_account(tmp_path / "usage.jsonl")
    assert (account.requests, account.unanswered) == (1, 1)


def test_a_line_that_a_kill_has_torn_is_no_line_and_harms_no_other(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    purse = Purse(path)
    purse.settle(purse.ask("a", 0, 100, 200), Usage(100, 0, 50, 0))
    number = purse.ask("b", 0, 100, 200)
    with path.open("ab") as handle:
        handle.write(b'{"used": 1, "prom')
    again = Purse(path)
    assert again.account.unanswered == 1
    again.settle(again.ask("c", 0, 1, 1), Usage(1, 0, 1, 0))
    account, _ = read_account(path)
    assert (number, account.requests, account.used) == (1, 2, Usage(101, 0, 51, 0))


def test_nothing_is_afforded_that_might_pass_the_bound(tmp_path: Path) -> None:
    price = PriceConfig(prompt=1.0, completion=1.0)
    purse = Purse(tmp_path / "usage.jsonl", "m", price, max_cost=0.001)  # a thousand tokens
    first = purse.ask("a", 0, 300, 300)
    assert purse.affords(200, 200)
    assert not purse.affords(200, 201)
    purse.settle(first, Usage(300, 0, 10, 0))
    assert purse.affords(345, 345)
    purse.doubt(purse.ask("b", 0, 345, 345))
    assert not purse.affords(1, 0)


def test_a_price_may_be_corrected_and_holds_for_all(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    purse = Purse(path, "m", PriceConfig(prompt=100.0, completion=100.0), max_cost=1.0)
    purse.settle(purse.ask("a", 0, 5000, 4000), Usage(5000, 0, 4000, 0))
    assert not purse.affords(1000, 1000)
    again = Purse(path, "m", PriceConfig(prompt=1.0, completion=1.0), max_cost=1.0)
    assert again.affords(1000, 1000)
    assert read_account(path)[1] == PriceConfig(prompt=1.0, completion=1.0)


def test_a_judges_account_stays_beside_the_rows(tmp_path: Path) -> None:
    assert usage_path(tmp_path) == tmp_path / "usage.jsonl"
    assert usage_path(tmp_path / ".judge") == tmp_path / "usage.judge.jsonl"
    for path in (usage_path(tmp_path), usage_path(tmp_path / ".judge")):
        purse = Purse(path, "m", PRICE)
        purse.settle(purse.ask("a", 0, 100, 200), Usage(100, 0, 50, 0))
        purse.close()
    lines = describe_spending(tmp_path)
    assert [line.split(":")[0].strip() for line in lines] == ["teacher m", "judge m"]
    assert all(line.endswith("; 0.0006 USD") for line in lines)
    assert json.dumps(read_spending(tmp_path))
    assert read_spending(tmp_path)["judge m"]["cost"] == 0.0006


def test_no_account_is_an_account_of_nothing(tmp_path: Path) -> None:
    assert read_account(tmp_path / "usage.jsonl") == (Account(), None)
    assert describe_spending(tmp_path) == []


def test_teachers_that_take_turns_have_accounts_of_their_own_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    for model, price in (("small", PriceConfig(prompt=1, completion=1)), ("big", PriceConfig(prompt=9, completion=9))):
        purse = Purse(path, model, price)
        purse.settle(purse.ask("a", 0, 10, 10), Usage(10, 0, 5, 0))
        purse.ask("b", 0, 10, 10)
        purse.close()
    again = Purse(path, "small", PriceConfig(prompt=1, completion=1))
    assert (again.account.requests, again.account.unanswered) == (1, 1)
    assert again.ask("c", 0, 1, 1) == 4
    again.close()
    assert {who: told["cost"] for who, told in read_spending(tmp_path).items()} == {
        "teacher small": 0.000015,
        "teacher big": 0.000135,
    }
