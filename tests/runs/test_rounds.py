"""Rounds: exactly so many accepted rows, datasets that grow, and the same bytes however often it was interrupted."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task
from dataset_support import change_line, flip_byte, read_ledger_lines, read_table, read_tree, start_factory

from factory.checks.verify import verify
from factory.dataset.entries import Totals
from factory.dataset.manifest import read_manifest
from factory.errors import DatasetError, JobError
from factory.job.job import Job
from factory.publish.show import describe_totals
from factory.runs import run as module
from factory.runs.goals import plan_round, read_goals
from factory.runs.prepare import prepare
from factory.runs.provenance import describe_job
from factory.runs.run import run

MakeJob = Callable[..., Job]
FIRST_ROWS = [
    ("adding", "easy", 9, 1464083322, 0),
    ("adding", "easy", 9, 1464083322, 1),
    ("second", "easy", 3, 841799276, 0),
    ("second", "easy", 3, 841799276, 1),
]
VARIABLE = ("runs.jsonl", ".lock")  # the files that may differ between two equal datasets
FAULTY = {"backend": "scripted", "scripted": {"wrong": 0.3, "bad_json": 0.2}}
WANTED = {"name": "adding", "accepted": 60, "at_most": 400, "levels": {"easy": 1, "hard": 2}}


def want(make_job: MakeJob, **changed: Any) -> Job:
    """A job that wants 60 accepted rows of a teacher that is right half the time; `changed` replaces sections."""
    return make_job(**({"teacher": FAULTY, "tasks": [WANTED], "signals": {"top_k": 2}} | changed))


def task(**changed: Any) -> list[dict[str, Any]]:
    return [WANTED | changed]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes a run end, as by Ctrl-C, when it has written so many shards and is about to commit the last of them."""
    write = module.write_shard

    def set_limit(shards: int) -> None:
        left = [shards]

        def stop(*arguments: Any) -> Any:
            files = write(*arguments)
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return files

        monkeypatch.setattr(module, "write_shard", stop)

    return set_limit


def run_in_pieces(job: Job, workspace: Path, out: Path, stop_after: Callable[[int], None], size: int) -> Totals:
    """Run a job that is stopped again and again, after `size` shards each time."""
    while True:
        stop_after(size)
        try:
            return run(job, workspace, out)
        except KeyboardInterrupt:
            continue


def content(out: Path) -> dict[str, str]:
    return read_tree(out, but=VARIABLE)


def test_exactly_as_many_rows_are_accepted_as_are_wanted_each_level_its_share(
    workspace: Path, make_job: MakeJob
) -> None:
    totals = run(want(make_job), workspace, workspace / "out")
    rows = read_table(workspace / "out", "data")
    assert Counter(row["level"] for row in rows) == {"easy": 20, "hard": 40}
    assert totals.accepted == len(rows) == 60
    assert totals.accepted + totals.rejected + totals.errors == totals.planned < 400
    assert totals.complete
    # the answer that was one too many, if there is any, is no loss in silence
    assert len(read_table(workspace / "out", "rejected")) == totals.rejected
    ids = [row["id"] for config in ("data", "rejected") for row in read_table(workspace / "out", config)]
    assert len(set(ids)) == totals.planned
    assert list(verify(workspace / "out")) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"filters": {"duplicates": True}, "validation": {"retries": 1}},
        pytest.param({}, marks=pytest.mark.long),
        pytest.param({"samples": {"n": 3}, "filters": {"near_duplicates": 0.9}}, marks=pytest.mark.long),
        pytest.param({"samples": {"n": 3, "keep": "pair"}}, marks=pytest.mark.long),
    ],
)
def test_interrupted_anywhere_it_ends_in_the_same_bytes(
    sections: dict[str, Any], workspace: Path, make_job: MakeJob, stop_after: Callable[[int], None]
) -> None:
    job = want(make_job, **sections)
    totals = run(job, workspace, workspace / "whole")
    assert totals.accepted == 60
    assert len(read_manifest(workspace / "whole")["rounds"]) > 2
    for size in (1, 3):
        out = workspace / f"pieces{size}"
        assert run_in_pieces(job, workspace, out, stop_after, size) == totals
        assert content(out) == content(workspace / "whole")


@pytest.mark.sweep
def test_killed_anywhere_it_ends_in_the_same_bytes(workspace: Path, make_job: MakeJob) -> None:
    teacher = "scripted = { wrong = 0.5 }"
    text = (
        f'out = "out"\nshard_rows = 4\n[teacher]\nbackend = "scripted"\n{teacher}\n[signals]\ntop_k = 2\n'
        '[[tasks]]\nname = "adding"\naccepted = 120\nat_most = 1200\n'
    )
    (workspace / "job.toml").write_text(text, encoding="utf-8")
    ledger = workspace / "out" / "ledger.jsonl"
    # at whatever it does when so many lines of the ledger are there, in a middle round among others
    for lines in (3, 14, 26):
        process = start_factory("run", "job.toml", cwd=workspace)
        while process.poll() is None and (not ledger.exists() or ledger.read_bytes().count(b"\n") < lines):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=300) == -signal.SIGKILL, "it was over before"
    assert start_factory("run", "job.toml", cwd=workspace).wait(timeout=300) == 0
    (workspace / "job2.toml").write_text(text.replace('"out"', '"again"'), encoding="utf-8")
    assert start_factory("run", "job2.toml", cwd=workspace).wait(timeout=300) == 0
    assert content(workspace / "out").keys() == content(workspace / "again").keys()
    differ = {name for name, told in content(workspace / "out").items() if content(workspace / "again")[name] != told}
    assert differ <= {"job.toml"}  # which names its directory
    assert len(read_table(workspace / "out", "data")) == 120


def test_how_many_are_in_flight_changes_nothing(workspace: Path, make_job: MakeJob) -> None:
    trees = []
    for number in (1, 300):
        run(want(make_job, teacher=FAULTY | {"in_flight": number}), workspace, workspace / f"out{number}")
        trees.append(read_tree(workspace / f"out{number}", but=(*VARIABLE, "job.toml")))
    assert trees[0] == trees[1]


def test_a_budget_that_is_spent_ends_the_job_and_says_so_and_a_larger_one_goes_on(
    workspace: Path, make_job: MakeJob
) -> None:
    out = workspace / "out"
    totals = run(want(make_job, tasks=task(at_most=70)), workspace, out)
    assert totals.planned == 70
    assert totals.accepted < 60
    assert totals.complete
    told = (
        f"  adding: {totals.accepted} of 60 wanted rows are accepted and its budget is spent; a larger at_most goes on"
    )
    assert told in describe_totals(out, totals)
    before = read_tree(out / "data")
    assert run(want(make_job, tasks=task(at_most=400)), workspace, out).accepted == 60
    assert before.items() <= read_tree(out / "data").items()
    assert list(verify(out)) == []


def test_samples_never_give_more_than_is_wanted_and_those_beyond_are_told(workspace: Path, make_job: MakeJob) -> None:
    job = want(make_job, samples={"n": 4}, tasks=task(accepted=41, at_most=100), teacher={"backend": "scripted"})
    totals = run(job, workspace, workspace / "out")
    assert totals.accepted == 41
    assert totals.reasons == {"samples/beyond_goal": 3}
    row = read_table(workspace / "out", "rejected")[0]
    assert (row["stage"], row["reason"], row["kind"]) == ("samples", "beyond_goal", "rejected")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"name": "adding", "count": 20}, {"name": "adding", "count": 45}),
        ({"name": "adding", "accepted": 20, "at_most": 90}, {"name": "adding", "accepted": 45, "at_most": 200}),
    ],
)
def test_a_finished_dataset_grows_and_what_is_committed_stays(
    first: dict[str, Any], then: dict[str, Any], workspace: Path, make_job: MakeJob, stop_after: Callable[[int], None]
) -> None:
    for out in (workspace / "whole", workspace / "pieces"):
        run(want(make_job, tasks=[first]), workspace, out)
    before = {name: read_tree(workspace / "whole" / name) for name in ("data", "rejected")}
    totals = run(want(make_job, tasks=[then]), workspace, workspace / "whole")
    assert totals.accepted == 45 if "accepted" in then else totals.planned == 45
    for name, files in before.items():
        assert files.items() <= read_tree(workspace / "whole" / name).items()
    rows = [row for config in ("data", "rejected") for row in read_table(workspace / "whole", config)]
    assert len({row["id"] for row in rows}) == len({row["scenario"] + row["prompt_id"] for row in rows}) == len(rows)
    assert list(verify(workspace / "whole")) == []
    assert run_in_pieces(want(make_job, tasks=[then]), workspace, workspace / "pieces", stop_after, 1) == totals
    assert content(workspace / "pieces") == content(workspace / "whole")
    # the same job again adds nothing, and the name of the job is still that of its first rows
    stop_after(10_000)
    assert run(want(make_job, tasks=[then]), workspace, workspace / "whole") == totals
    digest = describe_job(prepare(want(make_job, tasks=[first]), workspace))["digest"]
    assert read_manifest(workspace / "whole")["digest"] == read_ledger_lines(workspace / "whole")[0]["digest"] == digest


def test_an_unfinished_dataset_ends_as_it_was_planned_before_it_grows(
    workspace: Path, make_job: MakeJob, stop_after: Callable[[int], None]
) -> None:
    small, large = (want(make_job, tasks=[{"name": "adding", "count": count}]) for count in (20, 30))
    stop_after(1)
    with pytest.raises(KeyboardInterrupt):
        run(small, workspace, workspace / "out")
    stop_after(10_000)
    run(large, workspace, workspace / "out")
    run(small, workspace, workspace / "other")
    run(large, workspace, workspace / "other")
    assert content(workspace / "out") == content(workspace / "other")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"count": 10}, r"tasks\.0\.count: was 20, is 10: a dataset grows and never shrinks"),
        ({"count": 30, "levels": {"easy": 1}}, r"tasks\.0\.levels"),
        ({"count": None, "accepted": 5, "at_most": 50}, r"tasks\.0\.accepted: was absent, is 5"),
    ],
)
def test_what_is_no_growth_is_refused_and_nothing_is_touched(
    changed: dict[str, Any], told: str, workspace: Path, make_job: MakeJob
) -> None:
    out = workspace / "out"
    run(want(make_job, tasks=[{"name": "adding", "count": 20}]), workspace, out)
    before = read_tree(out, but=(".lock",))
    with pytest.raises(DatasetError, match=told):
        run(want(make_job, tasks=[{"name": "adding", "count": 20} | changed]), workspace, out)
    assert read_tree(out, but=(".lock",)) == before


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ([{"name": "adding"}], "count .*neither is given"),
        ([{"name": "adding", "count": 3, "accepted": 3, "at_most": 9}], "both are given"),
        ([{"name": "adding", "accepted": 3}], "belong together"),
        ([{"name": "adding", "accepted": 3, "at_most": "all"}], 'at_most = "all" takes all rows of a source'),
        ([{"name": "adding", "accepted": 30, "at_most": 9}], "raise at_most"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tasks: list[dict[str, Any]], told: str, make_job: MakeJob) -> None:
    with pytest.raises(ValueError, match=told):
        make_job(tasks=tasks)


@pytest.mark.parametrize(
    ("first", "then"),
    [({"count": 20}, {"count": 40}), ({"accepted": 10, "at_most": 90}, {"accepted": 20, "at_most": 90})],
)
def test_a_grown_dataset_is_repaired_to_the_same_bytes(
    first: dict[str, int], then: dict[str, int], workspace: Path, make_job: MakeJob
) -> None:
    out, job = workspace / "out", want(make_job, tasks=[{"name": "adding"} | then])
    run(want(make_job, tasks=[{"name": "adding"} | first]), workspace, out)
    run(job, workspace, out)
    whole = content(out)
    for damage in (
        lambda: flip_byte(out / "ledger.jsonl", 20),  # line 1, which tells of the rounds
        lambda: flip_byte(out / "manifest.json", 40),
        lambda: (out / "manifest.json").unlink(),
        lambda: flip_byte(out / "data/train-00001.parquet"),
        lambda: flip_byte(out / "data/train-00004.parquet"),
    ):
        damage()
        assert list(verify(out)) or not (out / "manifest.json").exists()
        run(job, workspace, out, mend=True)
        assert content(out) == whole


def test_a_round_that_a_kill_kept_from_the_ledger_is_found_in_the_manifest(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    run(want(make_job, tasks=[{"name": "adding", "count": 20}]), workspace, out)
    line = read_ledger_lines(out)[0]
    run(want(make_job, tasks=[{"name": "adding", "count": 40}]), workspace, out)
    whole = content(out)
    lines = (out / "ledger.jsonl").read_text().splitlines(keepends=True)
    (out / "ledger.jsonl").write_text("".join(lines[:4]))
    change_line(out, 0, lambda value: (value.clear(), value.update(line)))
    run(want(make_job, tasks=[{"name": "adding", "count": 40}]), workspace, out)
    assert content(out) == whole


def write_rows(workspace: Path, count: int) -> dict[str, Any]:
    """A source of so many rows, each with a level."""
    rows = [{"a": n, "b": 1, "level": ("easy", "hard")[n % 2]} for n in range(count)]
    (workspace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(workspace / "rows.jsonl"), "fields": {"a": "a", "b": "b"}}


def test_a_source_gives_each_of_its_rows_once_through_all_rounds(workspace: Path, make_job: MakeJob) -> None:
    source = write_rows(workspace, 60)
    job = {"name": "adding", "accepted": 30, "at_most": "all", "source": source | {"shuffle": True}}
    totals = run(want(make_job, tasks=[job]), workspace, workspace / "out")
    rows = [row for config in ("data", "rejected") for row in read_table(workspace / "out", config)]
    assert len({row["source_row"] for row in rows}) == len(rows) == totals.planned <= 60
    # levels that stand in the data: a row keeps its own, and the goal is shared out as they are
    levelled = {"name": "adding", "accepted": 20, "at_most": 50, "source": source | {"level": "level"}}
    totals = run(want(make_job, tasks=[levelled]), workspace, workspace / "levelled")
    rows = read_table(workspace / "levelled", "data")
    assert Counter(row["level"] for row in rows) == {"easy": 10, "hard": 10}
    assert all(json.loads(row["scenario"])["a"] % 2 == (row["level"] == "hard") for row in rows)
    # a source that has too few rows ends the job, whatever may be spent
    many = {"name": "adding", "accepted": 59, "at_most": 1000, "source": source}
    totals = run(want(make_job, tasks=[many]), workspace, workspace / "many")
    assert (totals.planned, totals.complete) == (60, True)


def test_rows_numbered_level_by_level_do_not_grow(workspace: Path, make_job: MakeJob) -> None:
    source = write_rows(workspace, 30) | {"level": "level"}
    run(want(make_job, tasks=[{"name": "adding", "count": 10, "source": source}]), workspace, workspace / "out")
    with pytest.raises(DatasetError, match=r"tasks\.0\.count: was 10, is 20: rows whose level stands in a column"):
        run(want(make_job, tasks=[{"name": "adding", "count": 20, "source": source}]), workspace, workspace / "out")


def test_a_round_hardly_ever_gives_more_than_is_wanting(workspace: Path, make_job: MakeJob) -> None:
    job = want(make_job, tasks=task(accepted=1000, at_most=10_000, levels={"easy": 1}))
    prepared = prepare(job, workspace)

    def ask(asked: int, accepted: int) -> int:
        cell = ("adding", "easy")
        return plan_round(job, prepared.tasks, {}, read_goals(job), {cell: asked}, {cell: accepted})["adding"]["easy"]

    assert ask(0, 0) == 1000  # nothing is known: so many cannot give more
    assert ask(1000, 1000) == 0
    assert 800 < ask(1000, 500) < 1000  # 500 wanting at about one half: below 1,000 by about two deviations
    assert ask(1000, 0) == 1000  # none so far: no more is spent than was
    assert ask(9990, 500) == 10  # what may be spent is spent
    assert ask(1000, 999) == 1


def test_plans_and_names_of_jobs_are_those_of_earlier_releases(workspace: Path, make_job: MakeJob) -> None:
    """Else no dataset that an earlier release began could be gone on with."""
    write_task(workspace, "second")
    tasks = [{"name": "adding", "count": 20, "levels": {"easy": 2, "hard": 1}}, {"name": "second", "count": 11}]
    job = make_job(seed=3, samples={"n": 2}, signals={"top_k": 4}, tasks=tasks)
    prepared = prepare(job, workspace)
    first = [(row.task, row.level, row.number, row.seed, row.sample) for row in prepared.plan.rows(0)]
    assert first[:4] == FIRST_ROWS
    assert describe_job(prepared)["digest"] == "780963b98e17ea2f36a20d1a"


def test_two_tasks_each_come_to_their_own_goal(workspace: Path, make_job: MakeJob) -> None:
    write_task(workspace, "second")
    tasks = [{"name": "adding", "count": 13}, {"name": "second", "accepted": 21, "at_most": 100}]
    totals = run(want(make_job, tasks=tasks), workspace, workspace / "out")
    assert sum(sum(counts) for cell, counts in totals.cells.items() if cell.startswith("adding/")) == 13
    assert totals.accepted_of("second") == 21


def test_all_of_a_source_needs_one(make_job: MakeJob) -> None:
    with pytest.raises((JobError, ValueError), match="takes all rows of a source"):
        make_job(tasks=[{"name": "adding", "count": "all"}])
