"""What a plan says of many GPUs: the arithmetic, held against a public campaign's figures."""

from array import array
from pathlib import Path

import pytest
from dataset_support import start_factory, write_job

from factory.forecast.forecast import Forecast
from factory.forecast.scale import Fleet, tell_scale
from factory.runs.plan import Plan, Round

# 1.35 billion rows and 486 billion tokens on 100 GPUs at 9,200 tokens/s each
ROWS, TOKENS, FLEET = 1_350_000_000, 486e9, Fleet(100, 9200)


class Order(array):  # type: ignore[type-arg]
    """An order of so many prompts that is not there: only its length is asked for."""

    def __len__(self) -> int:
        return ROWS


def tell(shard_rows: int) -> str:
    plan = Plan(0, shard_rows, 1, (Round((("t", "easy", 0, ROWS),), Order("Q")),))
    forecast = Forecast(ROWS, ROWS, 1e9, TOKENS, {"data": 24e12}, {"t": "pilot"})
    return "\n".join(tell_scale(FLEET, plan, [forecast]))


def test_a_public_campaign_comes_to_its_own_figures() -> None:
    told = tell(4096)
    assert "1.26 GPU-days a billion completion tokens, 611 GPU-days for 486 billion, 146:44:20 (6.11 days)" in told
    assert "45.4 MB/s of shards in all, 0.454 MB/s a GPU" in told
    assert "0.624 shards/s" in told
    assert "warning" not in told


def test_too_many_shards_are_told_of_with_what_would_do() -> None:
    told = tell(256)
    assert "9.98 shards/s" in told
    assert "warning: 5,273,438 shards are too many" in told
    (rows,) = [int(word.replace(",", "")) for word in told.split("shard_rows = ")[1].split()[:1]]
    assert rows == 2048
    assert "warning" not in tell(rows)


def test_without_a_fleet_nothing_is_said() -> None:
    assert tell_scale(None, Plan(0, 1, 1, ()), []) == []


@pytest.mark.parametrize("given", [("--gpus", "2"), ("--tps", "9")])
def test_the_two_options_belong_together(workspace: Path, given: tuple[str, str]) -> None:
    write_job(workspace)
    process = start_factory("plan", "job.toml", *given, cwd=workspace)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.count("\n")) == (2, 1)
    assert "--gpus and --tps belong together" in errors


def test_the_command_says_it(workspace: Path) -> None:
    write_job(workspace)
    process = start_factory("plan", "job.toml", "--gpus", "100", "--tps", "9200", cwd=workspace)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "on 100 GPUs at 9,200 tokens/s each: 1.26 GPU-days a billion completion tokens" in told
