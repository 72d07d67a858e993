"""Samples, judges and pairs on the real engine: the verdicts are the grammar's, the columns are whole."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import write_task
from integration_support import Dataset, engine_job
from random_teacher import random_teacher

from factory.checks.verify import verify
from factory.records import Generation
from factory.runs.run import run
from factory.teachers.spool import Place, Spool

pytestmark = pytest.mark.engine
RUBRIC = "Grade {{ answer }} to {{ prompt }}. JSON with reasoning and score."


def judged_dataset(folder: Path, judge: dict[str, object], **signals: object) -> Dataset:
    write_task(folder, judge_j2=RUBRIC)
    job = engine_job(
        samples={"n": 3, "keep": "best"},
        judge={"temperature": 1.0, "max_tokens": 600} | judge,
        tasks=[{"name": "adding", "count": 6}],
        signals={"top_k": 5, "hidden_layers": [1], "verify_rows": 4} | signals,
    )
    return Dataset(folder / "dataset", run(job, folder, folder / "dataset"))


@pytest.mark.parametrize("own", [False, True], ids=["the teacher judges", "a judge of its own"])
def test_every_sample_is_judged_and_the_best_is_kept(tmp_path: Path, own: bool) -> None:
    teacher = {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 8, "reasoning": "off"}
    made = judged_dataset(tmp_path, {"teacher": teacher} if own else {})
    rows, rejected = made.rows(), made.rows("rejected")
    assert made.totals.planned == len(rows) + len(rejected) == 18
    assert max(Counter(row["prompt_id"] for row in rows).values()) == 1
    assert {row["sample"] for row in rows + rejected} == {0, 1, 2}
    judged = rows + [row for row in rejected if row["stage"] == "samples"]
    scores = [row["judge_score"] for row in judged if row["judge_score"] is not None]
    assert scores
    assert set(scores) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    for row in rows:
        others = [o["judge_score"] or 0.0 for o in rejected if o["prompt_id"] == row["prompt_id"]]
        assert (row["judge_score"] or 0.0) >= max(others, default=0.0)
        assert row["agreement"] is not None
        assert row["difficulty"] is not None
    assert made.manifest["judge"]["details"]["vocab_size"] > 0
    assert made.manifest["fidelity"]["verdict"] == "passed"
    assert not list(verify(made.out))


@pytest.mark.parametrize("capture", ["decode", pytest.param("prefill", marks=pytest.mark.long)])
def test_nothing_is_kept_of_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capture: str) -> None:
    read: list[Generation] = []
    inner = Spool.read

    def listen(spool: Spool, place: Place) -> Generation:
        read.append(inner(spool, place))
        return read[-1]

    monkeypatch.setattr(Spool, "read", listen)
    made = judged_dataset(tmp_path, {}, capture=capture)
    answers = {row["id"] for row in made.rows() + made.rows("rejected")}
    kept = [one for one in read if one.prompt_id in answers and not one.failure]
    verdicts = [one for one in read if one.prompt_id not in answers]
    assert kept
    assert verdicts
    assert all(one.logprobs is not None and one.hidden_states is not None for one in kept)
    assert not any(one.logprobs or one.hidden_states for one in verdicts)
