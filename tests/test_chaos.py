"""The chaos script with small numbers, so that every test run holds a part of it; `make chaos` does all of it."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from chaos import chaos, chaos_endpoint


def require_survival(figures: chaos.Figures, tried: int) -> None:
    assert figures.faults == []
    assert (figures.tried, figures.survived) == (tried, tried)
    assert figures.sound


@pytest.mark.sweep
def test_ten_kills_at_random_moments_are_survived(tmp_path: Path) -> None:
    require_survival(chaos.kill_runs(tmp_path, 10, random.Random(1), rows=200), 10)


def test_two_hundred_malformed_generations_are_rows(tmp_path: Path) -> None:
    require_survival(chaos.feed_malformed(tmp_path, 200, random.Random(1)), 200)


def test_ten_changed_bytes_are_named_and_repaired(tmp_path: Path) -> None:
    require_survival(chaos.flip_bytes(tmp_path, 10, random.Random(1), rows=100), 10)


@pytest.mark.sweep
def test_a_longer_run_stays_small(tmp_path: Path) -> None:
    require_survival(chaos.run_long(tmp_path, 2500, random.Random(1)), 2500)


@pytest.mark.sweep
def test_two_hundred_rows_behind_an_endpoint_that_fails_end_once(tmp_path: Path) -> None:
    require_survival(chaos_endpoint.ask_endpoint(tmp_path, 200, random.Random(1)), 200)


def test_what_does_not_survive_is_counted_and_told() -> None:
    figures = chaos.Figures("a test", remark="twice")
    figures.count("")
    figures.count("one went wrong")
    assert not figures.sound
    assert (figures.row(), figures.faults) == ("| a test | 2 | 1 | twice |", ["one went wrong"])


def test_the_script_prints_its_figures_and_ends_well() -> None:
    numbers = [
        "--kills",
        "0",
        "--malformed",
        "40",
        "--flips",
        "1",
        "--rows",
        "0",
        "--engine-kills",
        "0",
        "--replica-kills",
        "0",
    ]
    done = subprocess.run([sys.executable, chaos.__file__, *numbers], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| malformed generations through parse, validate and Parquet | 40 | 40 | " in done.stdout
    assert "| one changed byte in a dataset of 400 rows | 1 | 1 | " in done.stdout
