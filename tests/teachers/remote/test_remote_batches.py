"""Batch files against an endpoint of our own: answered late, found again after a kill, never paid for twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from remote_support import demo_tokenizer, remote_job, rows_of
from scripted_batches import BatchEndpoint
from scripted_endpoint import MODEL, ScriptedEndpoint, serving

from factory.checks.verify import verify
from factory.errors import TeacherError
from factory.job.job import Job
from factory.runs.run import run
from factory.teachers.remote.batches import read_batches
from factory.teachers.remote.purse import read_account


def batch_job(
    endpoint: ScriptedEndpoint, rows: int = 40, gemini: bool = False, patience_s: float = 60, **more: Any
) -> Job:
    told = {"mode": "batch", "poll_s": 0.05, "batch_rows": 16, "timeout_s": 20, "patience_s": patience_s}
    teacher: dict[str, Any] = {"endpoint": told} | more
    if gemini:
        teacher |= {"backend": "gemini", "base_url": endpoint.gemini_url}
    signals = {"top_k": 4, "positions": "answer" if gemini else "completion"}
    return remote_job(endpoint, rows, teacher, signals=signals)


@pytest.mark.parametrize("gemini", [False, True], ids=["openai", "gemini"])
def test_rows_of_files_are_those_of_single_requests(workspace: Path, gemini: bool) -> None:
    one, many = workspace / "one", workspace / "many"
    tokenizer = demo_tokenizer() if gemini else None
    with serving(BatchEndpoint(vllm=not gemini, tokenizer=tokenizer)) as endpoint:
        job = batch_job(endpoint, gemini=gemini)
        totals = run(job, workspace, many)
        alone = job.teacher.model_copy(update={"endpoint": job.teacher.endpoint.model_copy(update={"mode": "online"})})
        run(job.model_copy(update={"teacher": alone}), workspace, one)
    assert totals.accepted == 40
    assert list(verify(many)) == []
    assert {row["id"]: row for row in rows_of(one)} == {row["id"]: row for row in rows_of(many)}
    assert len(endpoint.batches) == 3  # 40 rows in files of 16
    assert list(read_batches(many / "batches.jsonl", MODEL)) == []


@pytest.mark.parametrize("gemini", [False, True], ids=["openai", "gemini"])
def test_what_expires_is_asked_again_and_what_fails_is_a_row(workspace: Path, gemini: bool) -> None:
    out = workspace / "out"
    tokenizer = demo_tokenizer() if gemini else None
    with serving(BatchEndpoint(vllm=not gemini, tokenizer=tokenizer, left_out=5, broken=2)) as endpoint:
        totals = run(batch_job(endpoint, 16, gemini), workspace, out)
    assert (totals.accepted, totals.reasons) == (14, Counter({"teacher/refused_by_endpoint": 2}))
    assert len(endpoint.asked_in_files) == 16 + 5
    account, _ = read_account(out / "usage.jsonl")
    assert (account.used, account.unanswered) == (endpoint.billed, 0)


def test_a_run_that_is_killed_finds_its_batch_again(workspace: Path) -> None:
    """Killed while the batch is under way, and again while its answers are being taken: each row is asked once."""
    out = workspace / "out"
    with serving(BatchEndpoint(looks=10**9)) as endpoint:
        job = batch_job(endpoint, 16)
        (workspace / "job.toml").write_text(
            tomli_w.dumps(job.model_dump(mode="json", exclude_defaults=True, exclude_none=True))
        )
        command = [sys.executable, "-m", "factory.cli", "run", "job.toml"]
        for _ in range(2):
            process = subprocess.Popen(command, cwd=workspace, env=dict(os.environ), stderr=subprocess.PIPE)
            looks = sum(batch["looks"] for batch in endpoint.batches.values())
            deadline = time.monotonic() + 120
            while sum(batch["looks"] for batch in endpoint.batches.values()) < looks + 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        endpoint.looks = 0
        totals = run(job, workspace, out)
    assert totals.accepted == 16
    assert len(endpoint.batches) == 1
    assert len(endpoint.asked_in_files) == 16
    account, _ = read_account(out / "usage.jsonl")
    # the probes of the three runs are answered too
    assert (account.used, account.unanswered) == (endpoint.billed, 0)


def test_a_batch_whose_line_a_kill_took_is_found_by_its_name(workspace: Path) -> None:
    out = workspace / "out"
    with serving(BatchEndpoint(looks=10**9)) as endpoint:
        job = batch_job(endpoint, 16, patience_s=0.5)
        lines = interrupted(job, workspace, out, endpoint)
        # as if the run had been killed between the batch and the line of its id
        path = out / "batches.jsonl"
        path.write_text("".join(line for line in lines if "sent" not in line))
        endpoint.looks, endpoint.faults = 0, lambda number, body: ""
        totals = run(job, workspace, out)
    assert totals.accepted == 16
    assert len(endpoint.batches) == 1


def interrupted(job: Job, workspace: Path, out: Path, endpoint: BatchEndpoint) -> list[str]:
    """The lines of batches.jsonl when a run was stopped with its batch under way."""
    of_batches = endpoint.of_batches

    def gone(method: str, path: str, data: bytes) -> dict[str, Any]:
        if method == "GET" and "?" not in path:
            raise ConnectionError
        return of_batches(method, path, data)

    endpoint.of_batches = gone  # type: ignore[method-assign]
    with pytest.raises(TeacherError, match=r"fails: .*the run is parked, nothing is lost"):
        run(job, workspace, out)
    endpoint.of_batches = of_batches  # type: ignore[method-assign]
    lines = (out / "batches.jsonl").read_text().splitlines(keepends=True)
    assert [next(iter(json.loads(line))) for line in lines] == ["meant", "sent"]
    return lines


def test_a_bound_on_money_holds_for_files_too(workspace: Path) -> None:
    out = workspace / "out"
    with serving(BatchEndpoint()) as endpoint:
        with pytest.raises(TeacherError, match=r"teacher\.max_cost 0\.01: "):
            run(batch_job(endpoint, 60, max_cost=0.01), workspace, out)
        account, price = read_account(out / "usage.jsonl")
        assert 0 < account.most(price) <= 0.01
        totals = run(batch_job(endpoint, 60, max_cost=1.0), workspace, out)
    assert totals.accepted == 60
    assert len(endpoint.asked_in_files) == 60
    assert read_account(out / "usage.jsonl")[0].used == endpoint.billed
