"""Whole runs against an endpoint of our own: faults on demand, and every row ends once."""

from pathlib import Path
from typing import Any

from scripted_endpoint import MODEL, ScriptedEndpoint, serving, shares

from factory.checks.verify import verify
from factory.dataset.manifest import read_manifest
from factory.dataset.shards import read_batches
from factory.job.job import Job
from factory.runs.run import run
from factory.teachers.remote.purse import read_account

WAYS = ("429", "429_after", "500", "503", "cut_json", "half_closed")
KINDS = (*WAYS, "no_choices", "shapeless", "no_ids", "no_usage")
PRICE = {"prompt": 1.0, "completion": 4.0}


def remote_job(endpoint: ScriptedEndpoint, rows: int = 20, **sections: Any) -> Job:
    teacher: dict[str, Any] = {"model": MODEL, "backend": "openai", "base_url": endpoint.url, "api_key_env": ""}
    teacher |= {"price": PRICE, "endpoint": {"retries": 8, "timeout_s": 20}} | sections.pop("teacher", {})
    job: dict[str, Any] = {
        "out": "out",
        "shard_rows": 8,
        "teacher": teacher,
        "signals": {"top_k": 4},
        "tasks": [{"name": "adding", "count": rows}],
    }
    return Job.model_validate(job | sections)


def rows_of(out: Path, folder: str = "data") -> list[dict[str, Any]]:
    batches = (batch for path in sorted(out.glob(f"{folder}/*.parquet")) for batch in read_batches(path))
    return [row for batch in batches for row in batch.to_pylist()]


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
