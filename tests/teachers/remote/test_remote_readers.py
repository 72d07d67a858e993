"""Whoever reads a dataset reads one from an endpoint too, rows without ids among them."""

import re
import tomllib
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import SCHEMA, write_task
from remote_support import demo_tokenizer, remote_job, rows_of
from scripted_endpoint import ScriptedEndpoint, serving

from factory.checks.verify import verify
from factory.curriculum.build import make_curriculum
from factory.curriculum.config import load_config
from factory.dataset.ledger import read_ledger
from factory.job.job import Job
from factory.load import load_rows
from factory.publish.show import Choice, describe_rows, describe_totals
from factory.runs.run import run
from factory.teachers.demo import demo_teacher

TEACHERS = Path(__file__).parents[3] / "docs" / "teachers.md"


def some_without_ids(**changed: Any) -> ScriptedEndpoint:
    return ScriptedEndpoint(faults=lambda number, body: "no_ids" if number > 4 and number % 4 == 0 else "", **changed)


@pytest.mark.parametrize("storage", ["exact", "compact"])
@pytest.mark.parametrize("kept", [{}, {"keep": "top_p", "top_p": 0.9}], ids=["top_k", "top_p"])
def test_a_dataset_with_rows_without_ids_is_whole(workspace: Path, storage: str, kept: dict[str, Any]) -> None:
    out = workspace / "out"
    with serving(some_without_ids()) as endpoint:
        job = remote_job(endpoint, 24, signals={"top_k": 4} | kept, storage={"logprobs": storage})
        totals = run(job, workspace, out)
    assert totals.accepted == 24
    assert list(verify(out)) == []
    bare = {row["id"] for row in rows_of(out) if row["without_ids"]}
    assert 3 <= len(bare) <= 8
    for row in load_rows(out):
        tokens = len(row.completion_token_ids)
        assert (tokens == 0) == (row["id"] in bare)
        assert row.topk_ids is not None
        assert row.topk_ids.shape == (tokens, 4)
        assert row.entropy is not None
        assert len(row.entropy) == tokens
    assert len(datasets.load_dataset(str(out), split="train")) == 24
    told = "\n".join(describe_rows(out, 24, Choice(False, None, None, None, None)))
    assert "none: the endpoint sent no ids" in told
    assert any(line.startswith("  teacher adder-1: ") for line in describe_totals(out, read_ledger(out).totals))


def test_a_curriculum_is_made_of_rows_without_ids(workspace: Path) -> None:
    out = workspace / "out"
    with serving(some_without_ids()) as endpoint:
        formula = {"formula": "effort + 0.001 * reasoning_tokens"}
        run(remote_job(endpoint, 40, difficulty=formula), workspace, out)
    summary = make_curriculum(out, load_config(None), "curriculum")
    assert sum(sum(stage["rows"].values()) for stage in summary["stages"]) == 40
    assert list(verify(out)) == []


def test_reasoning_is_measured_by_the_endpoints_count_where_its_ids_do_not_come(workspace: Path) -> None:
    out = workspace / "out"
    with serving(ScriptedEndpoint(tokenizer=demo_tokenizer())) as endpoint:
        teacher = {"backend": "gemini", "base_url": endpoint.gemini_url, "tokenizer": demo_teacher()}
        run(remote_job(endpoint, 6, teacher, signals={"top_k": 4, "positions": "answer"}), workspace, out)
    assert [row["reasoning_tokens"] for row in rows_of(out)] == [30] * 6
    assert all(row["confidence"] > 0 for row in rows_of(out))


def test_preference_pairs_and_retries_work_behind_an_endpoint(workspace: Path) -> None:
    """The endpoint is right at first and then wrong in turn: half of the samples of each prompt."""
    out = workspace / "out"
    endpoint = ScriptedEndpoint()
    complete = endpoint.complete

    def wavering(body: dict[str, Any]) -> dict[str, Any]:
        wrong = endpoint.number > 4 and endpoint.number % 2 == 0
        asked = body | {"messages": [{"role": "user", "content": "Add 999 and 1."}]} if wrong else body
        return complete(asked)

    endpoint.complete = wavering  # type: ignore[method-assign]
    with serving(endpoint):
        more = {"samples": {"n": 4, "keep": "pair"}, "validation": {"retries": 1, "retry": "repair"}}
        totals = run(remote_job(endpoint, 6, {"endpoint": {"concurrency": 1}}, **more), workspace, out)
    assert totals.planned == 24
    assert totals.accepted == 6
    assert totals.pairs >= 1
    assert list(verify(out)) == []


def test_a_task_without_a_schema_is_asked_in_words_alone(tmp_path: Path) -> None:
    free = SCHEMA.partition("class Answer")[0] + (
        "Answer = str\n\n\n"
        "def sample(rng: random.Random, level: str) -> Scenario:\n"
        "    return Scenario(a=rng.randrange(50), b=rng.randrange(50))\n\n\n"
        "def check(scenario: Scenario, answer: str) -> list[str]:\n"
        "    return []\n"
    )
    write_task(tmp_path, schema=free, system_j2="Answer in a few words.")
    with serving(ScriptedEndpoint()) as endpoint:
        totals = run(remote_job(endpoint, 8), tmp_path, tmp_path / "out")
    assert totals.accepted == 8
    assert all("structured_outputs" not in body for body in endpoint.bodies)


def test_an_open_model_scores_answers_that_came_without_ids(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/teachers.md shows it: by their texts, since there are no prompt ids to go by."""
    out = workspace / "out"
    with serving(ScriptedEndpoint(vllm=False, tokenizer=demo_tokenizer())) as endpoint:
        run(remote_job(endpoint, 8, signals={"top_k": 0}), workspace, out)
    text = TEACHERS.read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```\n\n```toml\n(.*?)```", text, re.S)
    assert code is not None
    monkeypatch.chdir(workspace)
    exec(code[1].replace("out/gpt", str(out)))
    sections = tomllib.loads(code[2])
    job = {"out": "scored", "teacher": {"backend": "scripted"}, "signals": {"top_k": 4, "hidden_layers": [1]}}
    totals = run(Job.model_validate(job | sections), workspace, workspace / "scored")
    assert totals.accepted == 8
    scored = {row["source_row"]: row for row in rows_of(workspace / "scored")}
    for row in rows_of(out):
        one = scored[row["id"]]
        assert one["completion"][0]["content"] == row["answer"]
        assert one["completion"][0]["reasoning_content"] == row["reasoning"]
        assert len(one["entropy"]) == len(one["completion_token_ids"]) > 0
