"""Evaluation of a demo teacher: what is counted, how sure it is, and the card that tells it."""

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.demo_teacher import card
from factory.demo_teacher.card import count_parameters, describe_cells, describe_curve, make_card, write_card
from factory.demo_teacher.corpus import EVALUATION_SEED
from factory.demo_teacher.evaluate import evaluate, evaluation_job, main, read_cells, wilson
from factory.demo_teacher.recipe import MODEL, TASKS
from factory.errors import JobError, TeacherError
from factory.runs.run import run
from factory.tasks.tasks import builtin_root

LEVELS = ("easy", "medium", "hard")


def validated(step: int, tokens: int, seconds: int, loss: float, exact: float) -> dict[str, Any]:
    cells = {f"{task}/{level}": [loss, exact] for task in TASKS for level in LEVELS}
    return {"step": step, "tokens": tokens, "seconds": seconds, "validation": cells}


LOG = [
    {"step": 10, "tokens": 90_000, "seconds": 5, "loss": 6.1},
    validated(200, 2_000_000, 60, 2.5, 0.0),
    validated(400, 4_500_000, 180, 0.5, 0.25),
]
SHARES = [
    (0, 10, 0.0, 0.2775),
    (5, 10, 0.2366, 0.7634),
    (10, 10, 0.7225, 1.0),
    (1, 1, 0.2065, 1.0),
    (45, 50, 0.7864, 0.9565),
]


@pytest.mark.parametrize(("successes", "count", "low", "high"), SHARES)
def test_the_interval_is_wilson_s(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_an_interval_holds_the_share_and_narrows_with_more_rows(share: tuple[int, int]) -> None:
    successes, count = share
    low, high = wilson(successes, count)
    assert 0 <= low <= successes / count <= high <= 1
    closer = wilson(4 * successes, 4 * count)
    assert closer[1] - closer[0] < high - low


def test_an_evaluation_is_an_ordinary_job_of_held_out_rows() -> None:
    job = evaluation_job("some/model", 50)
    assert (job.seed, job.teacher.model, job.teacher.backend) == (EVALUATION_SEED, "some/model", "vllm")
    assert (job.sampling.temperature, job.validation.gate, job.validation.constrain) == (0.7, "check", True)
    assert job.signals.top_k == 20
    assert {task.name: task.count for task in job.tasks} == dict.fromkeys(TASKS, 150)


@pytest.mark.parametrize("rows", [0, -1, 330, 10**6])
def test_more_rows_than_are_held_out_are_refused(rows: int) -> None:
    with pytest.raises(JobError, match=rf"--rows {rows}: must be 1 to 329: no more rows of a task and level are held"):
        evaluation_job("demo", rows)


def test_right_answers_are_counted_as_right(tmp_path: Path) -> None:
    result = evaluate("demo", 2, tmp_path / "out", backend="scripted")
    cells = result["cells"]
    assert [(cell["task"], cell["level"]) for cell in cells] == [(t, level) for t in TASKS for level in LEVELS]
    for cell in cells:  # the scripted teacher spells in bytes, so long answers are cut off
        assert (cell["rows"], cell["schema_valid"]) == (2, cell["check_passes"])
        if cell["level"] == "easy":
            assert (cell["check_passes_percent"], cell["check_passes_interval"]) == (100, [34.2, 100.0])
            assert cell["mean_entropy_of_right"] > 0
            assert cell["mean_completion_tokens"] > 50
    assert sum(result["rejected_for"].values()) == 6 * len(TASKS) - sum(cell["check_passes"] for cell in cells)
    assert str(tmp_path) not in json.dumps(result)


def test_wrong_and_malformed_answers_are_told_apart(tmp_path: Path) -> None:
    job = evaluation_job("demo", 8, backend="scripted")
    faults = job.teacher.scripted.model_copy(update={"bad_json": 0.3, "wrong": 0.4})
    job = job.model_copy(update={"teacher": job.teacher.model_copy(update={"scripted": faults})})
    totals = run(job, builtin_root(), tmp_path / "out")
    cells = read_cells(tmp_path / "out")
    assert sum(cell.rows for cell in cells) == totals.planned == 24 * len(TASKS)
    assert {(c.task, c.level): c.right for c in cells} == {
        tuple(name.split("/")): counts[0] for name, counts in totals.cells.items()
    }
    wrong = sum(count for reason, count in totals.reasons.items() if reason.startswith("check/"))
    malformed = sum(count for reason, count in totals.reasons.items() if not reason.startswith("check/"))
    assert wrong > 10
    assert malformed > 10
    assert sum(cell.well_formed for cell in cells) == totals.accepted + wrong == 24 * len(TASKS) - malformed


def test_a_cell_with_nothing_right_has_no_entropy(tmp_path: Path) -> None:
    job = evaluation_job("demo", 1, backend="scripted")
    faults = job.teacher.scripted.model_copy(update={"bad_json": 1.0})
    job = job.model_copy(update={"teacher": job.teacher.model_copy(update={"scripted": faults})})
    run(job, builtin_root(), tmp_path / "out")
    cells = [cell.as_json() for cell in read_cells(tmp_path / "out")]
    assert {(cell["schema_valid"], cell["mean_entropy_of_right"]) for cell in cells} == {(0, None)}
    assert {cell["schema_valid_interval"][1] for cell in cells} == {79.3}
    assert len({line.count("|") for line in describe_cells(cells)}) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All that a card is made from; the weights are a header without numbers."""
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [4096, 768], "data_offsets": [0, 0]}}
    text = json.dumps(header | {"b": {"dtype": "BF16", "shape": [], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    (tmp_path / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    return tmp_path


def test_the_command_writes_the_pass_rates_and_the_card(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(folder), "--rows", "1", "--backend", "scripted"]) == 0
    rates = json.loads((folder / "pass_rates.json").read_text())
    assert rates["settings"]["rows_of_each_task_and_level"] == 1
    assert re.fullmatch("[0-9a-f]{64}", rates["weights_sha256"])
    text = (folder / "README.md").read_text()
    table = "\n".join(describe_cells(rates["cells"]))
    assert table in text
    assert capsys.readouterr().out.endswith(table + "\n")


def test_the_card_tells_sizes_licence_limits_and_how_to_make_it_again(folder: Path) -> None:
    cell = {"task": "t", "level": "easy", "rows": 3, "mean_entropy_of_right": None, "mean_completion_tokens": 4.4}
    for name in ("schema_valid", "check_passes"):
        cell |= {f"{name}_percent": 66.7, f"{name}_interval": [20.8, 93.9]}
    settings: dict[str, Any] = {"backend": "vllm", "engine": {"vllm": "0.32.0"}, "dtype": "bfloat16"}
    settings |= {"temperature": 0.7, "grammar": True, "rows_of_each_task_and_level": 3}
    (folder / "pass_rates.json").write_text(json.dumps({"settings": settings, "cells": [cell]}))
    text = make_card(folder)
    assert text.startswith("---\nlicense: apache-2.0\nlanguage: en\n")
    assert "A Qwen3 of 3.1 million parameters" in text
    assert "9,600 examples in 400 steps, 4.5 million tokens" in text
    assert "(backend vllm, vLLM 0.32.0, bfloat16), temperature 0.7,\ngrammar on" in text
    assert "| t | easy | 3 | 66.7 (20.8 to 93.9) | 66.7 (20.8 to 93.9) |  | 4 |" in text
    assert "| 400 | 4.5 | 0.5000 | 25 | 25 | 25 |" in text
    assert "## What it cannot do" in text
    assert "`make demo-teacher`" in text
    assert "By its own log training took 3 minutes." in text
    assert "{" not in text
    assert str(folder) not in text


def test_measured_durations_take_the_place_of_the_log_s(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--model", str(folder), "--rows", "1", "--backend", "scripted"]) == 0
    monkeypatch.setattr(card, "DURATIONS", {"2 CPU cores": "about two hours", "a GPU": "about nine minutes"})
    write_card(folder)
    text = (folder / "README.md").read_text()
    assert "Training takes about two hours on 2 CPU cores, about nine minutes on a GPU." in text
    assert "By its own log" not in text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "training.jsonl", "pass_rates.json"])
def test_a_card_without_what_it_needs_is_refused_in_one_line(folder: Path, name: str) -> None:
    (folder / "pass_rates.json").write_text('{"settings": {}, "cells": []}')
    (folder / name).write_text("x" if name == "model.safetensors" else "{")
    with pytest.raises(TeacherError, match=r"no model card can be written: \w+: ") as told:
        write_card(folder)
    assert "\n" not in str(told.value)
    assert not (folder / "README.md").exists()


def test_the_curve_has_few_rows_and_ends_with_the_last_one() -> None:
    log = [LOG[1] | {"step": step} for step in range(1, 31)]
    rows = describe_curve(log)[2:]
    steps = [int(row.split("|")[1]) for row in rows]
    assert len(steps) == 8
    assert steps[-1] == 30
    assert steps == sorted(set(steps))
    assert len(describe_curve(log[:3])) == 5


def test_parameters_are_counted_from_the_header_alone(folder: Path) -> None:
    assert count_parameters(folder / "model.safetensors") == math.prod((4096, 768)) + 1


def test_the_command_refuses_too_many_rows_with_one_line_and_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(folder), "--rows", "1000"]) == 2
    assert capsys.readouterr().err == (
        "error: --rows 1000: must be 1 to 329: no more rows of a task and level are held out\n"
    )
    assert not (folder / "pass_rates.json").exists()
