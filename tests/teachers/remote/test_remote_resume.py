"""Kills, parked runs and money: what was answered and spooled is never asked twice, and no bound is passed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from remote_support import remote_job, rows_of
from scripted_endpoint import ScriptedEndpoint, asked_in, serving, shares

from factory.checks.verify import verify
from factory.dataset.ledger import read_ledger
from factory.errors import TeacherError
from factory.job.job import Job
from factory.runs.run import run
from factory.teachers.remote.purse import read_account
from factory.teachers.spool import scan

ROWS = 120


def start(workspace: Path, job: Job) -> subprocess.Popen[str]:
    """The run as a user starts it, in a process of its own."""
    given = job.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    (workspace / "job.toml").write_text(tomli_w.dumps(given))
    command = [sys.executable, "-m", "factory.cli", "run", "job.toml"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=workspace, env=dict(os.environ), stdout=pipe, stderr=pipe, text=True)


def kept_ids(out: Path) -> set[str]:
    """Ids of the rows that are committed, or whose answer is on the spool."""
    spooled = {head["prompt_id"] for path in out.glob(".spool/*.gen") for _, head in scan(path)}
    committed = read_ledger(out).entries if (out / "ledger.jsonl").exists() else {}
    names = [f"train-{shard:05d}.parquet" for shard in committed]
    rows = [row for folder in ("data", "rejected") for row in rows_of(out, folder) if names]
    return spooled | {row["id"] for row in rows}


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def test_a_killed_run_asks_nothing_again_that_was_on_the_spool(workspace: Path) -> None:
    out, rng = workspace / "out", random.Random(5)
    endpoint = ScriptedEndpoint(latency_s=lambda: rng.uniform(0.01, 0.08), faults=shares(7, half_closed=0.05))
    kills: list[tuple[int, set[str]]] = []  # bodies seen until then, and the rows that are safe
    with serving(endpoint):
        for share in (0.1, 0.3, 0.5, 0.8):
            process = start(workspace, remote_job(endpoint, ROWS))
            deadline = time.monotonic() + 120
            while sum(endpoint.answered.values()) < share * ROWS and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            while endpoint.at_once:  # answers to a process that is gone
                time.sleep(0.01)
            kills.append((len(endpoint.bodies), kept_ids(out)))
        done = start(workspace, remote_job(endpoint, ROWS))
        _, told = done.communicate(timeout=240)
    assert done.returncode == 0, told
    assert list(verify(out)) == []
    rows = [*rows_of(out), *rows_of(out, "rejected")]
    assert len({row["id"] for row in rows}) == len(rows) == ROWS
    texts = {row["id"]: row["prompt"][-1]["content"] for row in rows}
    assert len(kills[-1][1]) > ROWS // 4  # there was something to keep
    for seen, safe in kills:
        left = Counter(text for row, text in texts.items() if row not in safe)
        again = Counter(map(text_of, endpoint.bodies[seen:]))
        safe_texts = Counter(texts[row] for row in safe)
        # a text may be that of several rows: those that are safe are not among what was asked later
        assert all(text in left for text in again if text in safe_texts)
    account, _ = read_account(out / "usage.jsonl")
    most = account.used + account.doubtful
    assert account.used.completion <= endpoint.billed.completion <= most.completion
    assert account.used.prompt <= endpoint.billed.prompt <= most.prompt


def test_a_run_stops_before_its_bound_and_goes_on_when_it_is_raised(workspace: Path) -> None:
    out = workspace / "out"
    with serving(ScriptedEndpoint()) as endpoint:
        spent: list[float] = []
        for bound in (0.01, 0.015, 0.03):
            with pytest.raises(TeacherError, match=rf"teacher\.max_cost {bound}: .* USD spent.*raise it and the same"):
                run(remote_job(endpoint, 100, teacher={"max_cost": bound}), workspace, out)
            account, price = read_account(out / "usage.jsonl")
            spent.append(account.most(price))
            assert bound * 0.7 < spent[-1] <= bound
            assert account.used == endpoint.billed
        assert read_ledger(out).entries  # what was answered by then made shards whole
        totals = run(remote_job(endpoint, 100, teacher={"max_cost": 10.0}), workspace, out)
    assert totals.accepted == 100
    account, price = read_account(out / "usage.jsonl")
    assert account.used == endpoint.billed
    asked = Counter(map(text_of, endpoint.bodies))
    assert sum(asked.values()) == sum(endpoint.answered.values())  # nothing but what was answered


def test_an_endpoint_that_is_gone_parks_the_run_and_loses_nothing(workspace: Path) -> None:
    out = workspace / "out"
    patience = {"endpoint": {"retries": 2, "patience_s": 1.0, "timeout_s": 5}}
    with serving(ScriptedEndpoint()) as endpoint:
        endpoint.faults = lambda number, body: "503" if number > 40 else ""
        with pytest.raises(
            TeacherError, match=r"has not answered for \d+ s \(HTTP 503: fault 503\); the run is parked"
        ):
            run(remote_job(endpoint, 100, patience), workspace, out)
        answered = Counter(endpoint.answered)
    # back again, under another address
    with serving(ScriptedEndpoint()) as second:
        assert second.port != endpoint.port
        totals = run(remote_job(second, 100, patience), workspace, out)
    assert totals.accepted == 100
    assert list(verify(out)) == []
    rows = Counter(row["prompt"][-1]["content"] for row in rows_of(out))
    both = answered + second.answered
    probes = Counter({text: count for text, count in both.items() if text not in rows})
    assert both - probes == rows  # each row was answered once, by the one or by the other


def test_what_is_under_way_when_patience_ends_is_waited_for_and_kept(workspace: Path) -> None:
    out = workspace / "out"
    patience = {"endpoint": {"retries": 0, "patience_s": 2.0}}
    with serving(ScriptedEndpoint()) as endpoint:
        rows: list[int] = []  # numbers of requests for rows: probes say something else

        def fault(number: int, body: dict[str, Any]) -> str:
            rows.extend([number] if asked_in(body).startswith("Add") else [])
            return "503" if number in rows[1:] else ""

        endpoint.faults = fault
        # the first one's answer comes when the endpoint has been waited for long enough
        endpoint.latency_s = lambda: 2.5 if [endpoint.number] == rows else 0.0
        with pytest.raises(TeacherError, match="the run is parked"):
            run(remote_job(endpoint, 30, patience), workspace, out)
        (answered,) = (text for text in endpoint.answered if text.startswith("Add"))
    with serving(ScriptedEndpoint()) as second:
        assert run(remote_job(second, 30, patience), workspace, out).accepted == 30
    assert second.answered[answered] == 0  # it was on the spool


def test_an_endpoint_that_is_gone_afterwards_puts_the_blame_on_no_row(workspace: Path) -> None:
    out = workspace / "out"
    patience = {"endpoint": {"retries": 1, "patience_s": 3.0}}
    with serving(ScriptedEndpoint()) as endpoint:
        asked: list[str] = []  # rows' words, in the order of the requests

        def fault(number: int, body: dict[str, Any]) -> str:
            asked.extend([asked_in(body)] if asked_in(body).startswith("Add") else [])
            return "503" if asked and (len(asked) == 1 or asked[-1] != asked[1]) else ""

        # the second row is answered between the two faults of the first, and nothing after them
        endpoint.latency_s = lambda: {0: 0.0, 1: 0.0, 2: 0.7}.get(len(asked), 1.0)
        endpoint.faults = fault
        with pytest.raises(TeacherError, match="the run is parked"):
            run(remote_job(endpoint, 30, patience), workspace, out)
        assert asked.count(asked[0]) >= 2
        assert endpoint.answered[asked[1]] == 1
    with serving(ScriptedEndpoint()) as second:
        totals = run(remote_job(second, 30, patience), workspace, out)
    assert (totals.accepted, totals.rejected) == (30, 0)


def test_hung_requests_are_given_up_and_asked_again(workspace: Path) -> None:
    out = workspace / "out"
    with serving(ScriptedEndpoint()) as endpoint:
        endpoint.faults = lambda number, body: "hang" if number in (8, 13, 21) else ""
        totals = run(remote_job(endpoint, 40, {"endpoint": {"timeout_s": 1.0, "retries": 3}}), workspace, out)
    assert (totals.accepted, endpoint.hung) == (40, 3)
    account, _ = read_account(out / "usage.jsonl")
    assert account.unanswered == 3  # they may have been charged: nobody knows


def test_a_request_that_fails_for_good_is_a_row_with_its_reason(workspace: Path) -> None:
    out = workspace / "out"
    poison: set[str] = set()

    def faults(number: int, body: dict[str, Any]) -> str:
        if 10 <= number < 13:
            poison.add(text_of(body))
        return "500" if text_of(body) in poison else ""

    with serving(ScriptedEndpoint(faults=faults)) as endpoint:
        job = remote_job(endpoint, 40, {"endpoint": {"retries": 1, "concurrency": 4, "timeout_s": 10}})
        totals = run(job, workspace, out)
    assert totals.accepted + totals.rejected == 40
    assert set(totals.reasons) == {"teacher/endpoint_failed"}
    for row in rows_of(out, "rejected"):
        assert row["findings"] == ["HTTP 500: fault 500 (2 tries)"]
        assert row["prompt"][-1]["content"] in poison


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("no_choices", "teacher/no_choices"),
        ("shapeless", "teacher/unreadable_answer"),
        ("filtered", "teacher/ended_by_content_filter"),
        ("400", "teacher/refused_by_endpoint"),
        ("other_model", "teacher/other_model"),
    ],
)
def test_an_answer_that_makes_no_row_is_a_row_with_its_reason(workspace: Path, fault: str, reason: str) -> None:
    out = workspace / "out"
    with serving(ScriptedEndpoint()) as endpoint:
        endpoint.faults = lambda number, body: fault if number in (10, 20) else ""
        totals = run(remote_job(endpoint, 30), workspace, out)
    assert totals.reasons == {reason: 2}
    assert totals.accepted == 28
    assert read_account(out / "usage.jsonl")[0].used == endpoint.billed


def test_ids_that_go_missing_leave_the_row_without_signals(workspace: Path) -> None:
    out = workspace / "out"
    with serving(ScriptedEndpoint()) as endpoint:
        endpoint.faults = lambda number, body: "no_ids" if number in (10, 20) else ""
        totals = run(remote_job(endpoint, 30), workspace, out)
    assert totals.accepted == 30
    bare = [row for row in rows_of(out) if row["without_ids"]]
    assert [row["without_ids"] for row in bare] == ["the endpoint sent no ids"] * 2
    assert all(row["topk_ids"] == row["entropy"] == [] and row["answer"] for row in bare)
    assert list(verify(out)) == []


def test_a_model_that_is_swapped_parks_the_run(workspace: Path) -> None:
    with serving(ScriptedEndpoint()) as endpoint:
        endpoint.faults = lambda number, body: "other_model" if number > 10 else ""
        with pytest.raises(TeacherError, match="adder-2 answered, the others are of adder-1; the run is parked"):
            run(remote_job(endpoint, 60), workspace, workspace / "out")


def test_a_key_that_is_withdrawn_parks_the_run(workspace: Path) -> None:
    with serving(ScriptedEndpoint()) as endpoint:
        endpoint.faults = lambda number, body: "401" if number > 10 else ""
        with pytest.raises(TeacherError, match=r"refuses all requests: HTTP 401.*the run is parked, nothing is lost"):
            run(remote_job(endpoint, 60), workspace, workspace / "out")


def test_refusals_for_speed_slow_the_run_down_and_end_no_row(workspace: Path) -> None:
    out = workspace / "out"
    endpoint = ScriptedEndpoint(most_at_once=5, latency_s=lambda: 0.02)
    with serving(endpoint):
        totals = run(remote_job(endpoint, 150), workspace, out)
    assert totals.accepted == 150
    assert endpoint.statuses[429] > 0
    assert endpoint.statuses[429] < 0.3 * endpoint.statuses[200]
    assert read_account(out / "usage.jsonl")[0].used == endpoint.billed


def test_a_date_to_wait_for_is_held_against_the_endpoints_own_clock(workspace: Path) -> None:
    from datetime import timedelta

    endpoint = ScriptedEndpoint(skew=timedelta(hours=-5))
    with serving(endpoint):
        endpoint.faults = lambda number, body: "429_date" if number == 10 else ""
        began = time.monotonic()
        totals = run(remote_job(endpoint, 20), workspace, workspace / "out")
    assert totals.accepted == 20
    assert time.monotonic() - began < 60  # a second or so, and not five hours


def test_a_judge_behind_an_endpoint_has_an_account_of_its_own(workspace: Path) -> None:
    (workspace / "prompts" / "adding" / "judge.j2").write_text("Is it right? {{ answer }} Answer in JSON.")
    out = workspace / "out"
    with serving(ScriptedEndpoint()) as endpoint:
        complete = endpoint.complete

        def judging(body: dict[str, Any]) -> dict[str, Any]:
            made = complete(body)
            if "Is it right?" in text_of(body):
                made["choices"][0]["message"]["content"] = '{"reasoning": "it is", "score": 5}'
            return made

        endpoint.complete = judging  # type: ignore[method-assign]
        own = remote_job(endpoint).teacher.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        job = remote_job(endpoint, 12, {}, judge={"threshold": 0.5, "teacher": own}, signals={"top_k": 0})
        totals = run(job, workspace, out)
    assert totals.accepted == 12
    assert all(row["judge_score"] == 1.0 for row in rows_of(out))
    accounts = [read_account(out / name)[0] for name in ("usage.jsonl", "usage.judge.jsonl")]
    assert accounts[0].used + accounts[1].used == endpoint.billed
    assert accounts[1].requests >= 12
    assert not (out / ".judge").exists()
