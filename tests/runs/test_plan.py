"""The plan: every row once, in fixed places, the same on every machine; shard size only cuts."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import JobError
from factory.job.job import Job, TaskConfig
from factory.records import PlannedRow, Sampling
from factory.runs.goals import allocate_levels
from factory.runs.plan import Plan, make_plan, resolve_gates, resolve_sampling
from factory.tasks.tasks import Task, discover

MakeJob = Callable[..., Job]
ANY_TASK = next(iter(discover(Path("nowhere")).tasks.values()))
TWO = [
    {"name": "adding", "count": 20, "levels": {"easy": 2, "hard": 1}},
    {"name": "second", "count": 11, "levels": {"hard": 1}},
]
SHOW_PLAN = """
import sys
from pathlib import Path
from factory.job.job import load_job
from factory.runs.plan import make_plan
from factory.tasks.tasks import discover
plan = make_plan(load_job(Path(sys.argv[1]) / "job.toml"), discover(Path(sys.argv[1])).tasks)
print([row for shard in range(plan.shards) for row in plan.rows(shard)])
"""


@pytest.fixture
def tasks(workspace: Path) -> dict[str, Task]:
    write_task(workspace, "second")
    return discover(workspace).tasks


def rows_of(plan: Plan) -> list[PlannedRow]:
    return [row for shard in range(plan.shards) for row in plan.rows(shard)]


def allocate(tasks: dict[str, Task], count: int, **levels: float) -> dict[str, int]:
    return allocate_levels(TaskConfig(name="adding", count=count, levels=levels), tasks["adding"], count)


def test_counts_are_as_asked_for(tasks: dict[str, Task], make_job: MakeJob) -> None:
    plan = make_plan(make_job(tasks=TWO), tasks)
    assert plan.planned == 31
    assert plan.shards == 4
    assert [plan.shard_size(shard) for shard in range(4)] == [8, 8, 8, 7]
    assert plan.counts() == {"adding": {"easy": 13, "hard": 7}, "second": {"hard": 11}}


def test_every_row_stands_in_one_shard_once(tasks: dict[str, Task], make_job: MakeJob) -> None:
    plan = make_plan(make_job(tasks=TWO), tasks)
    rows = rows_of(plan)
    assert sorted((row.task, row.number) for row in rows) == [
        *(("adding", number) for number in range(20)),
        *(("second", number) for number in range(11)),
    ]
    assert [(row.shard, row.position) for row in rows] == [(number // 8, number % 8) for number in range(31)]
    assert len({row.seed for row in rows}) == 31
    for name, levels in plan.counts().items():
        for level, count in levels.items():
            assert len([row for row in rows if (row.task, row.level) == (name, level)]) == count


def test_the_numbers_of_a_level_follow_each_other(tasks: dict[str, Task], make_job: MakeJob) -> None:
    rows = rows_of(make_plan(make_job(tasks=TWO), tasks))
    assert sorted(row.number for row in rows if row.task == "adding" and row.level == "hard") == list(range(13, 20))


def test_shard_size_changes_only_the_cutting(tasks: dict[str, Task], make_job: MakeJob) -> None:
    def content(rows: int) -> list[tuple[Any, ...]]:
        plan = make_plan(make_job(tasks=TWO, shard_rows=rows), tasks)
        return [(row.task, row.level, row.number, row.seed) for row in rows_of(plan)]

    assert content(1) == content(8) == content(30) == content(31) == content(1000)


def test_another_seed_gives_other_rows_in_another_order(tasks: dict[str, Task], make_job: MakeJob) -> None:
    one, two = (rows_of(make_plan(make_job(tasks=TWO, seed=seed), tasks)) for seed in (1, 2))
    assert [(row.task, row.number) for row in one] != [(row.task, row.number) for row in two]
    assert not {row.seed for row in one} & {row.seed for row in two}


def test_a_row_keeps_its_seed_when_another_task_joins_the_job(tasks: dict[str, Task], make_job: MakeJob) -> None:
    alone = {row.number: row.seed for row in rows_of(make_plan(make_job(tasks=TWO[:1]), tasks))}
    joined = rows_of(make_plan(make_job(tasks=TWO), tasks))
    assert {row.number: row.seed for row in joined if row.task == "adding"} == alone


def test_every_shard_mixes_the_tasks(tasks: dict[str, Task], make_job: MakeJob) -> None:
    plan = make_plan(make_job(tasks=TWO), tasks)
    assert all({row.task for row in plan.rows(shard)} == {"adding", "second"} for shard in range(plan.shards))


def test_the_plan_does_not_depend_on_the_hash_seed(workspace: Path) -> None:
    (workspace / "job.toml").write_text(
        'out = "o"\n[[tasks]]\nname = "adding"\ncount = 50\nlevels = {hard = 1, easy = 2}\n', encoding="utf-8"
    )
    digests = set()
    for seed in ("0", "1"):
        command = [sys.executable, "-c", SHOW_PLAN, str(workspace)]
        printed = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True)
        assert printed.stdout.count(b"PlannedRow(") == 50
        digests.add(hashlib.sha256(printed.stdout).hexdigest())
    assert len(digests) == 1


def test_levels_share_alike_when_none_is_named(tasks: dict[str, Task]) -> None:
    assert allocate(tasks, 6) == {"easy": 3, "hard": 3}


def test_what_does_not_divide_goes_to_the_largest_remainder(tasks: dict[str, Task]) -> None:
    assert allocate(tasks, 7) == {"easy": 4, "hard": 3}  # a tie goes to the level named first
    assert allocate(tasks, 10, easy=2, hard=1) == {"easy": 7, "hard": 3}  # 6.67 and 3.33
    assert allocate(tasks, 10, easy=1, hard=3) == {"easy": 3, "hard": 7}  # 2.5 and 7.5
    assert allocate(tasks, 1, easy=0.1, hard=0.9) == {"easy": 0, "hard": 1}


def test_a_level_that_is_left_out_or_weighs_nothing_gets_no_rows(tasks: dict[str, Task], make_job: MakeJob) -> None:
    assert allocate(tasks, 5, hard=1) == {"easy": 0, "hard": 5}
    assert allocate(tasks, 5, easy=0, hard=0.5) == {"easy": 0, "hard": 5}
    plan = make_plan(make_job(tasks=[{"name": "adding", "count": 5, "levels": {"hard": 1}}]), tasks)
    assert plan.counts() == {"adding": {"hard": 5}}


@settings(max_examples=200)
@given(
    count=st.integers(1, 10**8),
    weights=st.lists(st.floats(0, 1e9), min_size=1, max_size=6).filter(lambda weights: sum(weights) > 0),
)
def test_any_weights_share_out_the_whole_count(count: int, weights: list[float]) -> None:
    names = [f"l{number}" for number in range(6)]
    config = TaskConfig(name="adding", count=count, levels=dict(zip(names, weights, strict=False)))
    counts = allocate_levels(config, replace(ANY_TASK, levels=tuple(names)), count)
    assert sum(counts.values()) == count
    for name, share in counts.items():
        exact = count * config.levels.get(name, 0) / sum(weights)
        assert abs(share - exact) <= 1 + 1e-6 * count
        assert share == 0 or config.levels.get(name, 0) > 0


def test_an_unknown_level_is_refused_with_those_there_are(tasks: dict[str, Task], make_job: MakeJob) -> None:
    job = make_job(tasks=[{"name": "adding", "count": 5, "levels": {"easy": 1, "wild": 1}}])
    with pytest.raises(JobError, match=r"^tasks\.adding\.levels: unknown level wild \(has: easy, hard\)$"):
        make_plan(job, tasks)


def test_sampling_comes_from_the_job_s_task_then_the_job_then_the_task_file(
    tasks: dict[str, Task], make_job: MakeJob
) -> None:
    own = {"name": "adding", "count": 1, "sampling": {"temperature": 0.0}}
    job = make_job(sampling={"temperature": 1.5, "top_p": 0.9, "max_tokens": 64}, tasks=[own, TWO[1]])
    assert resolve_sampling(job, tasks) == {
        "adding": Sampling(temperature=0.0, top_p=0.9, max_tokens=64, thinking_tokens=24),
        "second": Sampling(temperature=1.5, top_p=0.9, max_tokens=64, thinking_tokens=24),
    }


def test_the_gate_comes_from_the_job_s_task_then_the_job_then_the_task_file(
    tasks: dict[str, Task], make_job: MakeJob
) -> None:
    gated = [{"name": "adding", "count": 1, "gate": "schema"}, TWO[1]]
    assert resolve_gates(make_job(tasks=TWO), tasks) == {"adding": "check", "second": "check"}
    assert resolve_gates(make_job(tasks=gated), tasks) == {"adding": "schema", "second": "check"}
    assert resolve_gates(make_job(tasks=TWO, validation={"gate": "schema"}), tasks)["second"] == "schema"
