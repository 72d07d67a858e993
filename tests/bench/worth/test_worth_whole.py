"""`make worth` from end to end with a few rows: every arm becomes a student, and a second start makes nothing."""

import json
from functools import partial
from pathlib import Path

import pytest
import worth
import worth_data
import worth_text
from real_teacher import is_installed
from worth_arms import ARMS
from worth_settings import Scale, read_settings

pytestmark = [pytest.mark.engine, pytest.mark.long]
TINY = Scale(rows=[8], seeds=1, steps=6, share=0.02, arms=list(ARMS))
REAL = Scale(rows=[8], seeds=1, steps=6, arms=["text", "topk_tail", "topk_renormalised", "drawn"], teacher="real")


def test_every_arm_is_trained_and_measured_and_nothing_is_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_settings().model_copy(update={"scales": {"full": TINY}})
    monkeypatch.setattr(worth, "read_settings", lambda: settings)
    few = partial(worth_data.scaled_job, share=0.02)
    monkeypatch.setattr(worth_data, "scaled_job", lambda name, work, share=0.02: few(name, work))
    monkeypatch.setattr(worth, "scaled_job", few)
    command = ["--work", str(tmp_path), "--workers", "1"]
    assert worth.main(command) == 0
    first = capsys.readouterr().out
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "full/results").glob("*.json")}
    assert set(results) == {f"{arm}-8-0" for arm in ARMS}
    assert all(0 < result["kl"] < 20 for result in results.values())
    assert len({result["kl"] for result in results.values()}) == len(ARMS)
    assert all(f"| {arm.told} | 8 | 1 |" in first for arm in ARMS.values())
    assert "The teacher itself:" in first
    assert worth.main(command) == 0
    assert capsys.readouterr().out == first[first.index("| arm |") :]


@pytest.mark.skipif(not is_installed(), reason="needs the weights of SmolLM2, which `make` installs")
def test_a_real_teacher_is_learnt_from_over_free_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_settings().model_copy(update={"scales": {"real": REAL}})
    monkeypatch.setattr(worth, "read_settings", lambda: settings)
    monkeypatch.setattr(worth_text, "HELD_OUT", 3)
    monkeypatch.setattr(
        worth_text, "topics", {name: worth_text.topics[name] for name in ("assert", "for", "with", "del")}
    )
    command = ["--real", "--work", str(tmp_path), "--workers", "1"]
    assert worth.main(command) == 0
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "real/results").glob("*.json")}
    assert set(results) == {f"{arm}-8-0" for arm in REAL.arms}
    # six steps after nothing: far from the teacher, and no two alike
    assert all(1 < result["kl"] < 20 for result in results.values())
    assert len({result["kl"] for result in results.values()}) == len(REAL.arms)
    assert {result["tokens"] for result in results.values()} == {3 * worth_text.COMPLETION}
    assert "| text | 8 | 1 |" in capsys.readouterr().out
