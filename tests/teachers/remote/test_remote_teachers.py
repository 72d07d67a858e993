"""Teachers behind endpoints among several of one job: whose rows they are, what each has cost, what is told of each."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from remote_support import remote_job, rows_of
from scripted_batches import BatchEndpoint
from scripted_endpoint import MODEL, ScriptedEndpoint, serving

from factory.checks.verify import verify
from factory.dataset.manifest import read_manifest
from factory.errors import JobError, TeacherError
from factory.forecast.estimate import estimate
from factory.job.job import Job
from factory.load import load_rows
from factory.runs.run import run
from factory.teachers.remote.purse import read_account, read_spending

SHARED = {"name": "adding", "count": 20, "teacher": {"near": 1, "far": 1}}


TEXT = {"top_k": 0}


def job_of(teachers: dict[str, Any], **sections: Any) -> Job:
    base = {"out": "out", "shard_rows": 4, "signals": {"top_k": 4}, "tasks": [SHARED]}
    return Job.model_validate(base | {"teachers": teachers} | sections)


def behind(served: ScriptedEndpoint, **changed: Any) -> dict[str, Any]:
    return remote_job(served, teacher=changed).teacher.model_dump(mode="json", exclude_unset=True)


def test_two_with_models_of_one_name_have_accounts_of_their_own(workspace: Path) -> None:
    out = workspace / "out"
    dear = {"prompt": 9.0, "completion": 9.0}
    with serving(ScriptedEndpoint()) as here, serving(ScriptedEndpoint()) as there:
        job = job_of({"near": behind(here), "far": behind(there, price=dear, max_cost=100.0)})
        totals = run(job, workspace, out)
        billed = here.billed, there.billed
    assert {name: counts[0] for name, counts in totals.teachers.items()} == {"near": 10, "far": 10}
    assert list(verify(out)) == []
    assert Counter(row["teacher"] for row in rows_of(out)) == {"near": 10, "far": 10}
    for name, sums in zip(("near", "far"), billed, strict=True):
        account, price = read_account(out / "usage.jsonl", f"{MODEL} ({name})")
        assert (account.used.prompt, account.used.completion) == (sums.prompt, sums.completion)
        assert price is not None
        assert price.prompt == (9.0 if name == "far" else 1.0)
        assert f"teacher {MODEL} ({name})" in read_spending(out)
    # what the dear one has spent, at its own price, is all that a plan tells of it
    told = [line for line in estimate(job, workspace, out) if "of it spent" in line]
    assert len(told) == 2
    assert told[0] != told[1]


def test_what_one_has_spent_is_not_the_other_s(workspace: Path) -> None:
    """Each has a bound that its own rows fit in, and both together do not."""
    out = workspace / "out"
    with serving(ScriptedEndpoint()) as here, serving(ScriptedEndpoint()) as there:
        run(job_of({"near": behind(here), "far": behind(there)}), workspace, workspace / "first")
        cost = max(told["cost"] for told in read_spending(workspace / "first").values())
        bound = cost * 1.5 + 0.002  # a request in flight counts with the most that it may take
        teachers = {"near": behind(here, max_cost=bound), "far": behind(there, max_cost=bound)}
        totals = run(job_of(teachers), workspace, out)
    assert totals.done == 20
    assert sum(told["cost"] for told in read_spending(out).values()) > bound


def test_files_of_requests_belong_to_the_one_that_sent_them(workspace: Path) -> None:
    out = workspace / "out"
    batch = {"mode": "batch", "poll_s": 0.05, "dialect": "vllm"}
    with serving(BatchEndpoint()) as here, serving(BatchEndpoint()) as there:
        teachers = {name: behind(one, endpoint=batch) for name, one in (("near", here), ("far", there))}
        totals = run(job_of(teachers), workspace, out)
    assert {name: counts[0] for name, counts in totals.teachers.items()} == {"near": 10, "far": 10}
    lines = (out / "batches.jsonl").read_text()
    assert f"{MODEL} (near)" in lines
    assert f"{MODEL} (far)" in lines
    assert list(verify(out)) == []


@pytest.mark.parametrize("first", ["near", "far"])
def test_a_teacher_behind_an_endpoint_and_one_here_share_a_job(workspace: Path, first: str) -> None:
    """One dataset of one format; each teacher's numbers are told by themselves, whichever comes first."""
    out = workspace / "out"
    with serving(ScriptedEndpoint()) as endpoint:
        teachers = {"near": {"backend": "scripted"}, "far": behind(endpoint)}
        job = job_of(dict(sorted(teachers.items(), reverse=first == "near")))
        assert [line for line in estimate(job, workspace, out) if "signals: the endpoint's own top 4" in line]
        totals = run(job, workspace, out)
        run(job, workspace, out)
    assert (totals.done, totals.accepted) == (20, 20)
    assert list(verify(out)) == []
    rows = rows_of(out)
    assert Counter(row["teacher"] for row in rows) == {"near": 10, "far": 10}
    assert all(len(row["topk_ids"]) == 4 * len(row["completion_token_ids"]) for row in rows)
    for streaming in (False, True):
        loaded = list(load_rows(out, teacher="far", streaming=streaming))
        assert [row["teacher"] for row in loaded] == ["far"] * 10
    manifest, card = read_manifest(out), (out / "README.md").read_text()
    assert manifest["meaning"]["entropy"] == "nats; of an engine here exact, of an endpoint a lower bound"
    parts = {part.split(" ")[0]: part for part in card.split("## What the numbers of ")[1:]}
    assert {name: "answered behind an endpoint" in part for name, part in parts.items()} == {"near": False, "far": True}


def test_what_one_teacher_cannot_keep_is_refused_before_the_other_is_asked(workspace: Path) -> None:
    with serving(ScriptedEndpoint()) as endpoint:
        teachers = {"near": {"backend": "scripted"}, "far": behind(endpoint)}
        job = job_of(teachers, signals={"top_k": 4, "hidden_layers": [-1]})
        with pytest.raises(TeacherError, match=r"^signals\.hidden_layers: .*an endpoint shows nothing") as refused:
            estimate(job, workspace, workspace / "out")
        assert not endpoint.statuses
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("listed", [True, False], ids=["a list of models", "no list"])
def test_a_model_that_a_later_endpoint_lacks_is_told_before_the_first_is_asked(workspace: Path, listed: bool) -> None:
    out = workspace / "out"
    with serving(ScriptedEndpoint()) as near, serving(ScriptedEndpoint(has_list=listed)) as far:
        teachers = {"near": behind(near), "far": behind(far) | {"model": "adder-l"}}
        with pytest.raises(TeacherError, match=r"^teachers\.far: teacher\.model 'adder-l': ") as refused:
            run(job_of(teachers, signals=TEXT), workspace, out)
        assert not near.bodies
        assert "\n" not in str(refused.value)
        # mended, the same command makes all of it
        assert run(job_of(teachers | {"far": behind(far)}, signals=TEXT), workspace, out).accepted == 20


@pytest.mark.parametrize("several", [False, True], ids=["[teacher]", "[teachers.far]"])
def test_a_pilot_asks_an_endpoint_a_few_rows(workspace: Path, several: bool) -> None:
    with serving(ScriptedEndpoint()) as endpoint:
        job = job_of({"far": behind(endpoint)}, tasks=[{"name": "adding", "count": 400, "teacher": "far"}])
        job = job if several else remote_job(endpoint, 400)
        lines = estimate(job, workspace, workspace / "out", pilot=6)
        asked = [body for body in endpoint.bodies if "Add" in str(body["messages"]) or " + " in str(body["messages"])]
    assert len(asked) == 6
    assert any("predicted from: pilot" in line and "6 rows, 6 accepted" in line for line in lines), lines
    assert any(line.startswith("  cost: about ") for line in lines)
    spent = next(line for line in lines if line.startswith("  the pilot spent, beside that: teacher "))
    assert f" {endpoint.billed.prompt:,} prompt " in spent
    assert not (workspace / "out").exists()


def test_a_pilot_of_several_teachers_is_refused_and_asks_nobody(workspace: Path) -> None:
    with serving(ScriptedEndpoint()) as endpoint:
        job = job_of({"near": {"backend": "scripted"}, "far": behind(endpoint)})
        with pytest.raises(JobError, match=r"^--pilot: the job has several teachers; try each in a job of its own"):
            estimate(job, workspace, workspace / "out", pilot=6)
        assert not endpoint.statuses
