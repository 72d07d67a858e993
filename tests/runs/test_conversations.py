"""A job whose prompts are conversations: splits, duplicates, judge, repair and every column hold earlier turns."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from conftest import SCHEMA, write_task
from dataset_support import read_table

from factory.checks.author import examine
from factory.checks.verify import verify
from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.job.job import Job
from factory.publish.show import describe_prompt, describe_rows
from factory.runs.run import run
from factory.tasks.catalog import preview

MakeJob = Callable[..., Job]
TALK = """
{% turn "user" %}Hello. {% if long %}{{ "I told you so much already. " * 20 }}{% endif %}My number is {{ scenario.a }}.
{% endturn %}
{% turn "assistant" %}Noted: {{ scenario.a }}.{% endturn %}
Now add {{ scenario.b }} to my number.
"""
JUDGE = "{{ turns | length }} turns: {{ prompt }} Answer: {{ answer }}"
TASKS = [{"name": "adding", "count": 24, "levels": {"hard": 1}}]


@pytest.fixture
def talking(tmp_path: Path) -> Path:
    long = TALK.replace("{% if long %}", "{% if true %}")
    short = TALK.replace("{% if long %}", "{% if false %}")
    write_task(tmp_path, user_j2=short, user_short_j2=long, judge_j2=JUDGE)
    return tmp_path


def test_a_row_holds_the_turns_before_its_request(talking: Path, make_job: MakeJob) -> None:
    out = talking / "out"
    run(make_job(tasks=TASKS, judge={}), talking, out)
    rows = read_table(out, "data")
    assert len(rows) == 24
    for row in rows:
        scenario = json.loads(row["scenario"])
        assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant", "user"]
        assert row["prompt"][2]["content"] == f"Noted: {scenario['a']}."
        assert row["prompt"][3]["content"] == f"Now add {scenario['b']} to my number."
        assert json.loads(row["answer"])["total"] == scenario["a"] + scenario["b"]
    assert list(verify(out)) == []
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(talking / "cache"))
    assert loaded["prompt"] == [row["prompt"] for row in rows]
    shown = "\n".join(describe_rows(out, 1))
    assert "assistant   Noted: " in shown


def test_a_preview_shows_the_turns(talking: Path) -> None:
    prompt = next(preview(talking, "adding", "hard", 0, 1))
    text = describe_prompt(prompt, as_json=False)
    assert text.index("[user]\nHello.") < text.index("[assistant]\nNoted: ") < text.index("[user]\nNow add ")
    assert [message["role"] for message in json.loads(describe_prompt(prompt, as_json=True))["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_its_author_is_told_of_fields_that_no_turn_shows(talking: Path) -> None:
    report = examine(talking, "adding", 10, "demo")
    assert report.problems == []
    assert not any("Scenario.a " in line for line in report.lines())
    schema = SCHEMA.replace("    b: int = 1", "    b: int = 1\n    c: int = 1").replace(
        "b=rng", "c=rng.random(), b=rng"
    )
    write_task(
        talking, schema=schema.replace("c=rng.random()", "c=rng.randrange(999)"), user_j2=TALK.replace("long", "false")
    )
    assert any("Scenario.c changes no prompt" in line for line in examine(talking, "adding", 10, "demo").lines())


def test_a_repair_keeps_the_conversation_and_counts_once(talking: Path, make_job: MakeJob) -> None:
    job = make_job(
        tasks=TASKS,
        teacher={"backend": "scripted", "scripted": {"wrong": 0.5}},
        validation={"retries": 3, "retry": "repair"},
        filters={"duplicates": True},
        judge={},
    )
    out = talking / "out"
    run(job, talking, out)
    rows = read_table(out, "data")
    roles = {tuple(m["role"] for m in row["prompt"]) for row in rows if row["repaired"]}
    assert roles == {("system", "user", "assistant", "user", "assistant", "user")}
    plain = {tuple(m["role"] for m in row["prompt"]) for row in rows if not row["repaired"]}
    assert plain == {("system", "user", "assistant", "user")}
    make_curriculum(out, CurriculumConfig())
    hand_off = read_table(out / "curriculum", "hand-off")
    assert {len(row["prompt"]) for row in hand_off} == {4}


def test_conversations_share_a_split_with_their_like(talking: Path, make_job: MakeJob) -> None:
    """Only the long phrasing is a document; what follows the same long talk is on one side, whatever is asked."""
    schema = SCHEMA.replace("a=rng.randrange(most)", "a=rng.randrange(2)")
    long = TALK.replace("{% if long %}", "{% if true %}")
    write_task(talking, schema=schema, user_j2=long, user_short_j2=long, judge_j2=JUDGE)
    out = talking / "out"
    run(make_job(tasks=[{"name": "adding", "count": 80, "levels": {"hard": 1}}]), talking, out)
    summary = make_curriculum(out, CurriculumConfig())
    assert summary["groups"] == 2
    assert any("long texts: conversation" in line for line in summary["warnings"])
    ignoring = CurriculumConfig.model_validate({"splits": {"ignore": ["conversation"]}})
    assert make_curriculum(out, ignoring)["groups"] > 40
