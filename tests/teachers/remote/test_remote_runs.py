"""Whole runs against an endpoint of our own: faults on demand, and every row ends once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_support import demo_tokenizer, remote_job, rows_of
from scripted_endpoint import ScriptedEndpoint, serving, shares

from factory.checks.verify import verify
from factory.dataset.manifest import read_manifest
from factory.errors import DatasetError
from factory.job.job import Job
from factory.load import collate, load_rows
from factory.runs.run import run
from factory.teachers.demo import demo_teacher
from factory.teachers.remote.purse import read_account

WAYS = ("429", "429_after", "500", "503", "cut_json", "half_closed")
KINDS = (*WAYS, "no_choices", "shapeless", "no_ids", "no_usage")


def test_a_vllm_server_gives_rows_with_exact_ids(workspace: Path) -> None:
    out = workspace / "out"
    with serving(ScriptedEndpoint()) as endpoint:
        totals = run(remote_job(endpoint), workspace, out)
    assert (totals.accepted, totals.rejected, totals.errors) == (20, 0, 0)
    assert list(verify(out)) == []
    for row in rows_of(out):
        ids = row["completion_token_ids"]
        assert bytes(i for i in ids[row["answer_start"] :] if i < 256).decode() == row["answer"]
        assert len(row["topk_ids"]) == 4 * len(ids)
        assert row["topk_ids"][::4] == ids  # the sampled one is the likeliest here
        assert row["without_ids"] is None
        assert bytes(row["prompt_token_ids"]).decode().endswith(row["prompt"][-1]["content"])
    details = read_manifest(out)["teacher"]["details"]
    assert details["distribution"].endswith(": before temperature, after the grammar's mask")


@pytest.mark.sweep
def test_faults_of_every_kind_end_no_row_twice_and_lose_no_money(workspace: Path) -> None:
    out = workspace / "out"
    faults = shares(3, **dict.fromkeys(KINDS, 0.04))
    with serving(ScriptedEndpoint(faults=faults)) as endpoint:
        endpoint.faults = lambda n, body: faults(n, body) if n > 5 else ""
        totals = run(remote_job(endpoint, 200), workspace, out)
        billed = endpoint.billed
    assert totals.accepted + totals.rejected + totals.errors == 200
    assert totals.errors == 0
    assert list(verify(out)) == []
    account = read_account(out / "usage.jsonl")[0]
    sure = account.used.prompt, account.used.completion
    most = sure[0] + account.doubtful.prompt, sure[1] + account.doubtful.completion
    assert sure[0] <= billed.prompt <= most[0]
    assert sure[1] <= billed.completion <= most[1]
    assert account.unanswered > 0


def as_strings(**changed: Any) -> ScriptedEndpoint:
    """An endpoint that names tokens by their text, as OpenAI's does."""
    return ScriptedEndpoint(vllm=False, tokenizer=demo_tokenizer(), reasoning_field="reasoning_content", **changed)


def test_strings_become_ids_by_their_bytes(workspace: Path) -> None:
    out, tokenizer = workspace / "out", demo_tokenizer()
    with serving(as_strings()) as endpoint:
        job = remote_job(endpoint, teacher={"tokenizer": demo_teacher()}, signals={"top_k": 4, "positions": "answer"})
        totals = run(job, workspace, out)
    assert totals.accepted == 20
    assert list(verify(out)) == []
    for row in rows_of(out):
        assert row["without_ids"] is None
        assert tokenizer.decode(row["completion_token_ids"]) == row["answer"]
        assert row["prompt_token_ids"] == []  # nobody knows how the endpoint frames a prompt
        assert row["answer_start"] == 0
        assert row["reasoning"].startswith("They make")
        assert sum(row["topk_counts"]) == len(row["topk_ids"])
        assert row["topk_ids"][0] == row["completion_token_ids"][0]
    # asked strictly, as OpenAI's dialect has it
    formats = [body["response_format"]["json_schema"] for body in endpoint.bodies if "response_format" in body]
    assert all(one["strict"] and one["schema"]["required"] == ["total", "words"] for one in formats)
    assert len(formats) >= 20


def test_a_student_is_not_taught_answers_without_their_prompts(workspace: Path) -> None:
    out = workspace / "out"
    with serving(as_strings()) as endpoint:
        job = remote_job(endpoint, teacher={"tokenizer": demo_teacher()}, signals={"top_k": 4, "positions": "answer"})
        run(job, workspace, out)
    rows = load_rows(out)
    with pytest.raises(DatasetError, match=r"2 of 2 rows have no prompt ids, such as [0-9a-f]+: .*row\['prompt'\]"):
        collate([rows[0], rows[1]], pad_token_id=0)
    whole = [replace(row, prompt_token_ids=np.array([1, 2, 3], np.int32)) for row in (rows[0], rows[1])]
    batch = collate(whole, pad_token_id=0)
    assert batch["input_ids"].shape[0] == 2
    assert batch["topk_mask"].any()


def test_without_a_tokenizer_rows_have_texts_and_say_why_no_ids(workspace: Path) -> None:
    out = workspace / "out"
    with serving(as_strings()) as endpoint:
        totals = run(remote_job(endpoint, signals={"top_k": 0}), workspace, out)
    assert totals.accepted == 20
    assert totals.completion_tokens == 0  # of ids; the endpoint's own count stands in its account
    assert read_account(out / "usage.jsonl")[0].used == endpoint.billed
    assert list(verify(out)) == []
    for row in rows_of(out):
        assert row["completion_token_ids"] == []
        assert row["without_ids"].startswith("the endpoint sends no token ids")
        assert row["completion"][0]["content"] == row["answer"]
    assert list(load_rows(out)[0]["completion_token_ids"]) == []


def test_rows_whose_bytes_do_not_fit_keep_no_ids_and_say_so(workspace: Path) -> None:
    out = workspace / "out"
    endpoint = as_strings()
    spell, complete = endpoint.spell, endpoint.complete

    def some_unfit(body: dict[str, Any]) -> dict[str, Any]:
        # the probe's answers fit; of the others those to every third prompt do not, whoever is asked meanwhile
        unfit = len(endpoint.bodies) > 8 and sum(body["messages"][-1]["content"].encode()) % 3 == 0
        endpoint.spell = (lambda token: {"token": "\ufffd", "bytes": [255, 254]}) if unfit else spell  # type: ignore[method-assign]
        return complete(body)

    with serving(endpoint):
        job = remote_job(endpoint, teacher={"tokenizer": demo_teacher()}, signals={"top_k": 4, "positions": "answer"})
        endpoint.complete = lambda body: some_unfit(body)  # type: ignore[method-assign]
        totals = run(job, workspace, out)
    rows = rows_of(out)
    assert totals.accepted == 20
    bare = [row for row in rows if row["without_ids"]]
    assert 3 <= len(bare) <= 12
    for row in bare:
        assert "is no token of teacher.tokenizer" in row["without_ids"]
        assert row["completion_token_ids"] == row["topk_ids"] == row["sampled_logprobs"] == []
        assert row["answer"]
    assert list(verify(out)) == []


def test_gemini_gives_ids_of_the_answer_and_summaries_of_thoughts(workspace: Path) -> None:
    out, tokenizer = workspace / "out", demo_tokenizer()
    with serving(ScriptedEndpoint(tokenizer=tokenizer, key="goog-key-123456789")) as endpoint:
        job = gemini_job(endpoint)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GEMINI_API_KEY", "goog-key-123456789")
            totals = run(job, workspace, out)
    assert totals.accepted == 20
    assert list(verify(out)) == []
    for row in rows_of(out):
        assert tokenizer.decode(row["completion_token_ids"]) == row["answer"]
        assert row["reasoning"].startswith("They make")
        assert len(row["topk_ids"]) == 4 * len(row["completion_token_ids"])
    asked = endpoint.bodies[-1]
    assert asked["systemInstruction"]["parts"][0]["text"].startswith("Answer with one JSON object")
    assert asked["generationConfig"]["thinkingConfig"] == {"includeThoughts": True, "thinkingBudget": 24}
    assert asked["generationConfig"]["responseJsonSchema"]["type"] == "object"
    account, _ = read_account(out / "usage.jsonl")
    assert (account.used, account.unanswered) == (endpoint.billed, 0)


def gemini_job(endpoint: ScriptedEndpoint, **changed: Any) -> Job:
    teacher = {"backend": "gemini", "base_url": endpoint.gemini_url, "api_key_env": "GEMINI_API_KEY"}
    return remote_job(endpoint, teacher=teacher, signals={"top_k": 4, "positions": "answer"} | changed)


def test_temperature_in_the_numbers_is_found_out(workspace: Path) -> None:
    out = workspace / "out"
    with serving(ScriptedEndpoint(temperature_in=True)) as endpoint:
        run(remote_job(endpoint, 4), workspace, out)
    assert "after temperature" in read_manifest(out)["teacher"]["details"]["distribution"]
    card = (out / "README.md").read_text()
    assert "lower bound" in card
    assert "after temperature" in card
