"""A job whose answers are free texts: every stage of the run, every column, and what is made of the dataset later."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import free_text
import numpy as np
import pytest
from conftest import write_task
from dataset_support import read_table

from factory.checks.author import examine
from factory.checks.verify import verify
from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.job.job import Job
from factory.publish.show import describe_rows
from factory.quality.trial import try_task
from factory.runs.run import run
from factory.tasks.calls import call_sample
from factory.tasks.catalog import list_tasks
from factory.tasks.tasks import discover

MakeJob = Callable[..., Job]
USER = "Greet {{ scenario.name }}, who is {{ scenario.mood }} today."
JUDGE = "Request: {{ prompt }} Answer: {{ answer }} Score it."
TASKS = [{"name": "greeting", "count": 24}]


@pytest.fixture
def greeting(tmp_path: Path) -> Path:
    """A workspace with the task, its rubric and its golden lines."""
    write_task(
        tmp_path,
        "greeting",
        schema=free_text.SCHEMA,
        task_toml=free_text.TASK,
        user_j2=USER,
        user_short_j2=f"Please: {USER}",
        system_j2="Answer in one sentence.",
        judge_j2=JUDGE,
    )
    scenario: Any = call_sample(discover(tmp_path, ["greeting"]).tasks["greeting"], 1, "easy")
    lines = [json.dumps(line) for line in free_text.golden(scenario.name, scenario.mood)]
    (tmp_path / "prompts" / "greeting" / "golden.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def rows_of(out: Path, config: str = "data") -> list[dict[str, Any]]:
    return read_table(out, config)


def test_the_task_is_whole_for_its_author(greeting: Path) -> None:
    assert try_task(discover(greeting, ["greeting"]).tasks["greeting"]) == []
    assert any("answer: free text" in line for line in list_tasks(greeting)[0])
    report = examine(greeting, "greeting", 20, "demo")
    assert report.problems == []
    assert any("7 golden lines" in line for line in report.facts)
    assert "  check takes 0 of 40 answers that fit the form and know nothing" in report.facts


def test_a_golden_line_that_ends_otherwise_is_told(greeting: Path) -> None:
    path = greeting / "prompts" / "greeting" / "golden.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"reason": "no_name"', '"reason": "no_mood"'), "utf-8")
    (problem,) = try_task(discover(greeting, ["greeting"]).tasks["greeting"])
    assert "says rejected at check as no_mood, ends rejected at check as no_name" in problem


def test_every_column_holds_the_text(greeting: Path, make_job: MakeJob) -> None:
    out = greeting / "out"
    run(
        make_job(tasks=TASKS, filters={"style": True, "refusals": True, "pii": ["email"], "language": ["en"]}),
        greeting,
        out,
    )
    rows = rows_of(out)
    assert len(rows) == 24
    for row in rows:
        scenario = json.loads(row["scenario"])
        assert row["answer"] == f"Hello {scenario['name']}, you look {scenario['mood']} today."
        turn = {"role": "assistant", "content": row["answer"], "reasoning_content": row["reasoning"]}
        assert row["completion"] == [turn]
        start = row["answer_start"]
        assert bytes(row["completion_token_ids"][start:-1]).decode() == row["answer"]
    assert list(verify(out)) == []
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(greeting / "cache"))
    assert loaded["answer"] == [row["answer"] for row in rows]
    assert "Hello" in "\n".join(describe_rows(out, 1))


def test_each_way_to_fail_has_its_reason(greeting: Path, make_job: MakeJob) -> None:
    faults = {"bad_json": 0.3, "wrong": 0.3, "refusal": 0.2}
    job = make_job(tasks=TASKS, teacher={"backend": "scripted", "scripted": faults}, filters={"refusals": True})
    run(job, greeting, greeting / "out")
    reasons = {(row["stage"], row["reason"]) for row in rows_of(greeting / "out", "rejected")}
    assert reasons == {("parse", "no_answer"), ("check", "no_name"), ("filter", "refusal")}


def test_a_style_speaks_of_the_whole_text(greeting: Path, make_job: MakeJob) -> None:
    path = greeting / "prompts" / "greeting" / "task.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("max_words = 20", "max_words = 6"), "utf-8")
    run(make_job(tasks=TASKS, filters={"style": True}), greeting, greeting / "out")
    rejected = rows_of(greeting / "out", "rejected")
    assert {row["findings"][0] for row in rejected} == {"style_too_many_words: answer has 7, at most 6"}


def test_samples_agree_by_their_words_and_repairs_show_the_text(greeting: Path, make_job: MakeJob) -> None:
    job = make_job(
        tasks=TASKS,
        teacher={"backend": "scripted", "scripted": {"wrong": 0.4}},
        samples={"n": 4, "keep": "pair"},
        validation={"retries": 1, "retry": "repair"},
        judge={},
    )
    out = greeting / "out"
    run(job, greeting, out)
    rows = [*rows_of(out), *rows_of(out, "rejected")]
    shares = [row["agreement"] for row in rows if row["answer"] is not None]
    # neither none nor all alike: a wrong sentence shares a word or two with a right one
    assert any(share == 1 for share in shares)
    assert any(0.25 < share < 0.9 and (4 * share) % 1 for share in shares)
    repaired = [row for row in rows if row["repaired"]]
    assert repaired
    assert all(not row["prompt"][-2]["content"].startswith("{") for row in repaired)
    assert {row["judge_score"] for row in rows_of(out)} <= {0.5, 0.75, 1.0}
    pairs = rows_of(out, "preferences")
    assert pairs
    assert all(pair["chosen"][0]["content"].startswith("Hello") for pair in pairs)


def test_the_same_sentence_to_the_same_prompt_is_a_duplicate(greeting: Path, make_job: MakeJob) -> None:
    same = free_text.SCHEMA.replace("{rng.choice(NAMES)} {rng.randrange(10_000)}", "Ada").replace(
        "mood=rng.choice(MOODS)", 'mood="calm"'
    )
    (greeting / "schemas" / "greeting.py").write_text(same, encoding="utf-8")
    (greeting / "prompts" / "greeting" / "golden.jsonl").unlink()
    out = greeting / "out"
    run(make_job(tasks=TASKS, filters={"duplicates": True}), greeting, out)
    # one for each phrasing
    assert len(rows_of(out)) == 2
    assert {row["reason"] for row in rows_of(out, "rejected")} == {"duplicate"}


def test_a_curriculum_is_made_of_it(greeting: Path, make_job: MakeJob) -> None:
    out = greeting / "out"
    run(make_job(tasks=TASKS, samples={"n": 2}), greeting, out)
    make_curriculum(out, CurriculumConfig())
    stage = datasets.load_dataset(str(out), "stage-1", split="train", cache_dir=str(greeting / "cache"))
    assert all(np.char.startswith(np.array(stage["answer"]), "Hello"))
