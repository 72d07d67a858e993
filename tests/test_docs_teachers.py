"""The jobs that docs/teachers.md shows are run: against an endpoint of our own in the place of each provider."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from remote_support import demo_tokenizer, rows_of
from scripted_endpoint import MODEL, ScriptedEndpoint, serving

from factory.job.job import Job
from factory.runs.run import run
from factory.teachers.demo import demo_teacher

TEXT = (Path(__file__).parents[1] / "docs" / "teachers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", TEXT, re.S)
JOBS = [tomllib.loads(block) for block in BLOCKS if block.startswith("# job.toml")]
SERVERS = {
    "out/qwen3-32b": lambda: ScriptedEndpoint(most_logprobs=33),
    "out/gpt": lambda: ScriptedEndpoint(vllm=False, tokenizer=demo_tokenizer()),
    "out/gemini": lambda: ScriptedEndpoint(tokenizer=demo_tokenizer()),
}


def test_every_job_that_is_shown_has_a_server_here() -> None:
    assert [job["out"] for job in JOBS] == list(SERVERS)


@pytest.mark.parametrize("shown", JOBS, ids=lambda job: job["out"])
def test_a_job_that_is_shown_runs_as_it_stands(
    workspace: Path, shown: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but where the server is, what its model is called, which task, and a tokenizer's place."""
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(name, "sk-0123456789")
    with serving(SERVERS[shown["out"]]()) as endpoint:
        teacher = shown["teacher"]
        there = endpoint.gemini_url if teacher["backend"] == "gemini" else endpoint.url
        own = {"model": MODEL, "base_url": there}
        own |= {"tokenizer": demo_teacher()} if "tokenizer" in teacher else {}
        changed = shown | {"teacher": teacher | own, "tasks": [{"name": "adding", "count": 12}]}
        totals = run(Job.model_validate(changed), workspace, workspace / "out")
    assert totals.accepted == 12
    rows = rows_of(workspace / "out")
    kept = shown["signals"]["top_k"]
    assert all(bool(row["without_ids"]) == (kept == 0) for row in rows)
    assert all(len(row.get("topk_ids", ())) == kept * len(row["completion_token_ids"]) for row in rows)


def test_the_section_that_shows_every_key_is_one() -> None:
    block = next(block for block in BLOCKS if "patience_s" in block)
    shown = {"out": "o", "tasks": [{"name": "adding", "count": 1}]} | tomllib.loads(block)
    shown["teacher"] |= {"backend": "openai", "model": "x"}
    job = Job.model_validate(shown)
    assert job.teacher.endpoint.model_fields_set == set(type(job.teacher.endpoint).model_fields)
