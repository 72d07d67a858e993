"""Rounds of a dataset that is there: it goes on as it was planned, and plans on when all of that is committed.

A dataset's `manifest.json` keeps the job it was begun with; its `rounds`, there and in line 1 of the ledger, tell what
was planned since, and for which goals. A job may ask for more than that, and for nothing else.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from factory.dataset.ledger import LEDGER, Ledger, is_unspent, planned_shards, scan_ledger
from factory.dataset.manifest import read_manifest, replace_section, section
from factory.errors import DatasetError
from factory.runs.goals import Cell, Goals, budget, read_goal, read_goals
from factory.runs.plan import Plan, Planner
from factory.runs.prepare import Prepared
from factory.runs.provenance import ROUNDS, describe_job, describe_plan, save_job


def resume(prepared: Prepared, out: Path) -> Prepared:
    """The job as the dataset in `out` was planned, where there is one of it; else as it stands.

    Raises DatasetError where the job asks for less than the dataset was planned for.
    """
    begun, records = _read_rounds(out)
    if prepared.transcripts is not None or begun is None or begun.keys() != prepared.tasks.keys():
        return prepared
    last, now = records[-1]["goals"] if records else begun, read_goals(prepared.job)
    if any(last[name].keys() != now[name].keys() for name in now):
        return prepared  # told with all else that differs
    _require_growth(prepared, out, last)
    if not records:
        planner = Planner(prepared.job, prepared.tasks, prepared.sources)
        return replace(prepared, plan=planner.first(begun), begun=begun)
    return replay(prepared, begun, records)


def replay(prepared: Prepared, begun: Goals | None, records: list[dict[str, Any]]) -> Prepared:
    """The job with the plan that was told so: what a dataset was begun for, and its rounds."""
    if prepared.transcripts is not None:
        return prepared
    planner = Planner(prepared.job, prepared.tasks, prepared.sources)
    plan = Plan(prepared.job.seed, prepared.job.shard_rows, prepared.job.samples.n, ())
    for record in records:
        plan = planner.add(plan, record["prompts"], record["goals"], record.get("teacher", ""))
    return replace(prepared, plan=plan, begun=begun)


def plan_on(prepared: Prepared, ledger: Ledger) -> Prepared:
    """The job with a round more, where all that is planned is committed and more is wanted; manifest and ledger have
    it too."""
    if prepared.transcripts is not None or ledger.totals.left:
        return prepared
    planner = Planner(prepared.job, prepared.tasks, prepared.sources)
    plan = planner.next(prepared.plan, partial(count_accepted, prepared.plan, ledger))
    if plan is None:
        return prepared
    grown = replace(prepared, plan=plan, begun=prepared.begun or read_goals(prepared.job))
    if plan.rounds[-1].goals != prepared.plan.rounds[-1].goals:
        save_job(grown, ledger.out)
    # manifest first: a kill between the two leaves a round that no row was asked of yet, and `resume` reads it there
    replace_section(ledger.out, ROUNDS, plan.records())
    ledger.replan(describe_plan(grown, describe_job(grown)))
    return grown


def pending_of(prepared: Prepared, ledger: Ledger, turn: str) -> Iterator[int]:
    """The shards that are next, in order, for as long as they are one teacher's."""
    return takewhile(lambda shard: prepared.plan.round_of(shard).teacher == turn, ledger.pending())


def next_turn(prepared: Prepared, ledger: Ledger) -> str | None:
    """Whose rows are next, "" where there is one teacher only; None where no row is left, and all told who they are.

    A manifest that was lost and made anew does not name them: they are opened although no row is left.
    """
    shard = next(ledger.pending(), None)
    if shard is not None:
        return prepared.plan.round_of(shard).teacher
    manifest = read_manifest(ledger.out)
    # a part may hold no shard of some
    own = map(prepared.plan.round_of, planned_shards(ledger.plan)) if prepared.part else prepared.plan.rounds
    names = dict.fromkeys(one.teacher for one in own)
    return next((name for name in names if section("teacher", name) not in manifest), None)


def later_turns(prepared: Prepared, ledger: Ledger) -> list[str]:
    """The teachers with planned rows left, but for the one whose turn it is; in the order of their turns."""
    names = dict.fromkeys(prepared.plan.round_of(shard).teacher for shard in ledger.pending())
    return list(names)[1:]


def catch_up(prepared: Prepared, ledger: Ledger) -> None:
    """Let line 1 of the ledger tell of a round that a kill kept from it, and a new manifest of all of them."""
    plan, records = describe_plan(prepared, describe_job(prepared)), prepared.plan.records()
    if len(records) > 1 and ROUNDS not in read_manifest(ledger.out):
        replace_section(ledger.out, ROUNDS, records)
    if plan["shards"] > ledger.plan["shards"]:
        ledger.replan(plan)


def count_accepted(plan: Plan, ledger: Ledger, teacher: str) -> dict[Cell, int]:
    """A teacher's accepted rows by task and level."""
    accepted = Counter[Cell]()
    for shard, entry in ledger.entries.items():
        if plan.round_of(shard).teacher == teacher:
            for cell, counts in entry.cells.items():
                task, _, level = cell.partition("/")
                accepted[task, level] += counts[0]
    return accepted


def _read_rounds(out: Path) -> tuple[Goals | None, list[dict[str, Any]]]:
    """The goals that a dataset was begun with, None where no row of one is made, and its rounds where it tells them.

    One of manifest and ledger is enough: the other may be damaged, which is for others to tell.
    """
    manifest: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    with suppress(DatasetError):
        if is_unspent(out):
            return None, []
    with suppress(DatasetError):
        manifest = read_manifest(out)
    if (out / LEDGER).exists():
        plan = scan_ledger(out)[0] or {}
    records: list[dict[str, Any]] = manifest.get(ROUNDS) or plan.get(ROUNDS) or []
    if "tasks" in manifest.get("job", {}):
        return {task["name"]: read_goal(task) for task in manifest["job"]["tasks"]}, records
    return (records[0]["goals"] if records else None), records


def _require_growth(prepared: Prepared, out: Path, last: Goals) -> None:
    """Raise DatasetError where a task asks for less than before, or for more than can be planned."""
    now, sources = read_goals(prepared.job), prepared.sources
    for number, (name, goal) in enumerate(now.items()):
        source = sources.get(name)
        for key, value in goal.items():
            before, after = (_resolve(goals[name], key, source) for goals in (last, now))
            told = f"{out}: made by another job, cannot resume: tasks.{number}.{key}: was {last[name][key]}, is {value}"
            if after < before:
                raise DatasetError(f"{told}: a dataset grows and never shrinks; undo this, or choose another `out`")
            if key == "count" and after > before and source is not None and source.levels:
                raise DatasetError(
                    f"{told}: rows whose level stands in a column (source.level) are numbered level by level, so their "
                    f"count cannot grow; undo this, or choose another `out`"
                )


def _resolve(goal: Mapping[str, Any], key: str, source: Any) -> int:
    return int(goal[key]) if goal[key] != "all" else budget({"count": "all"}, source)
