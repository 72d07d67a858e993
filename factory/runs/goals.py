"""Goals: how much a job wants of each task, and how many prompts the next round asks to come to it.

A task wants `count` prompts asked, or `accepted` rows from `at_most` prompts. A round is a function of the goals and of
what the rounds before it came to, and of nothing else: whoever goes on with a dataset plans the same.
"""

import math
from collections.abc import Mapping
from typing import Any

from factory.errors import JobError, nearest
from factory.job.job import Job, TaskConfig
from factory.tasks.sources import NO_LEVEL, Source
from factory.tasks.tasks import Task

Cell = tuple[str, str]  # task and level
Counts = dict[str, dict[str, int]]  # by task and level
Goal = dict[str, Any]  # {"count": 64}, {"count": "all"} or {"accepted": 64, "at_most": 128}
Goals = dict[str, Goal]  # by task
GOAL_KEYS = ("count", "accepted", "at_most")


def read_goal(task: Mapping[str, Any]) -> Goal:
    """What a `[[tasks]]` table, as JSON has it, wants."""
    return {key: task[key] for key in GOAL_KEYS if task.get(key) is not None}


def read_goals(job: Job) -> Goals:
    """What a job wants of each of its tasks."""
    return {task.name: read_goal(task.model_dump(include=set(GOAL_KEYS))) for task in job.tasks}


def plan_round(
    job: Job,
    tasks: Mapping[str, Task],
    sources: Mapping[str, Source],
    goals: Goals,
    asked: Mapping[Cell, int],
    accepted: Mapping[Cell, int],
    teacher: str = "",
) -> Counts:
    """Prompts of the next round by task and level, of one teacher.

    `asked` are the prompts and `accepted` the rows of the rounds before, of this teacher too. No prompts where nothing
    is wanting, or where what may be spent on it is spent.
    """
    prompts: Counts = {}
    for config in job.tasks:
        name, goal, source = config.name, goals[config.name], sources.get(config.name)
        targets = find_targets(config, tasks[name], source, goal, teacher)
        spent = {level: asked.get((name, level), 0) for level in targets}
        rows = {level: accepted.get((name, level), 0) for level in targets}
        have, target = rows if "accepted" in goal else spent, sum(targets.values())
        # a level's share of a larger number may be less than it has: the others get less than theirs then
        wants = share_out(
            target - sum(have.values()), {level: max(0, targets[level] - have[level]) for level in targets}
        )
        if "accepted" in goal:
            wants = {level: _prompts_for(job, wanting, spent[level], rows[level]) for level, wanting in wants.items()}
        if source is not None and source.levels:
            # each teacher has its share of a level's rows
            most = find_targets(config, tasks[name], source, {"count": "all"}, teacher)
            wants = {level: min(want, most[level] - spent[level]) for level, want in wants.items()}
        left = teacher_budget(config, tasks[name], source, goal, teacher) - sum(spent.values())
        prompts[name] = share_out(left, wants)
    return prompts


def list_bounds(
    job: Job, tasks: Mapping[str, Task], sources: Mapping[str, Source], goals: Goals, teacher: str = ""
) -> dict[Cell, int]:
    """The accepted rows that goals want of a teacher by task and level, and by task (level ""); no entry where as many
    as come."""
    bounds: dict[Cell, int] = {}
    for config in job.tasks:
        name, goal = config.name, goals[config.name]
        if "accepted" in goal:
            targets = find_targets(config, tasks[name], sources.get(name), goal, teacher)
            bounds |= {(name, ""): sum(targets.values())} | {(name, level): rows for level, rows in targets.items()}
    return bounds


def budget(goal: Goal, source: Source | None) -> int:
    """Prompts that may be asked for a goal in all."""
    most = goal.get("count", goal.get("at_most"))
    if source is not None:
        return len(source) if most == "all" else min(int(most or 0), len(source))
    assert isinstance(most, int)  # "all" is of a source alone
    return most


def teacher_budget(config: TaskConfig, task: Task, source: Source | None, goal: Goal, teacher: str) -> int:
    """Prompts that one teacher may be asked for a goal in all: its share of them."""
    if not teacher:
        return budget(goal, source)
    names = dict.fromkeys(name for level in task.levels for name in teacher_shares(config, level))
    shares = {name: float(sum(find_targets(config, task, source, goal, name).values())) for name in names}
    return allot(budget(goal, source), shares).get(teacher, 0) if any(shares.values()) else 0


def find_targets(
    config: TaskConfig, task: Task, source: Source | None, goal: Goal, teacher: str = ""
) -> dict[str, int]:
    """What a goal comes to by level, of one teacher: prompts, or accepted rows."""
    targets = _level_targets(config, task, source, goal)
    if not teacher:
        return targets
    return {level: allot(rows, teacher_shares(config, level)).get(teacher, 0) for level, rows in targets.items()}


def require_teachers(job: Job, tasks: Mapping[str, Task]) -> None:
    """Raise JobError where a level has no teacher of several, or one that is no level has."""
    for config in job.tasks if job.teachers else ():
        levels = tasks[config.name].levels
        unknown = [level for level in config.level_teachers if level not in levels]
        if unknown:
            told = f"unknown level {unknown[0]} (has: {', '.join(levels)}){nearest(unknown[0], levels)}"
            raise JobError(f"tasks.{config.name}.level_teachers: {told}")
        bare = [level for level in levels if not teacher_shares(config, level)]
        if bare:
            told = f"nobody answers level {bare[0]}; name one (has: {', '.join(job.teachers)})"
            raise JobError(f"tasks.{config.name}.level_teachers: {told}, or say teacher for all others")


def teacher_shares(config: TaskConfig, level: str) -> dict[str, float]:
    """The weights of the teachers that answer a task's level."""
    return config.level_teachers.get(level) or config.teacher or {}


def _level_targets(config: TaskConfig, task: Task, source: Source | None, goal: Goal) -> dict[str, int]:
    if source is None or not source.levels:
        return allocate_levels(config, task, goal["accepted"] if "accepted" in goal else budget(goal, source))
    if "count" in goal:
        return dict(source.levels)
    # rows without a level can lead to nothing, so nothing is wanted of them
    weights = {level: float(rows) for level, rows in source.levels.items() if level != NO_LEVEL}
    return allot(goal["accepted"], weights)


def _prompts_for(job: Job, wanting: int, asked: int, accepted: int) -> int:
    """How many prompts to ask for so many rows more: as many as hardly ever give more than that.

    k prompts that give n rows each with probability p give k n p in the mean, and up to two standard deviations
    more, n sqrt(k p (1 - p)) each where all n of a prompt fall together.
    """
    if wanting <= 0:
        return 0
    n = job.samples.n if job.samples.keep == "all" else 1
    # so many cannot give more, whatever happens
    safe = max(1, wanting // n)
    if not asked:
        return safe
    p = (accepted + 1) / (asked * n + 2)
    a, b = n * p, 2 * n * math.sqrt(p * (1 - p))
    likely = int(((math.sqrt(b * b + 4 * a * wanting) - b) / (2 * a)) ** 2)
    # a share that was judged from few rows costs no more than what was spent to judge it
    return max(safe, min(likely, asked))


def share_out(total: int, wants: Mapping[str, int]) -> dict[str, int]:
    """What each gets of a total: all it wants where that is enough for all, else its share of it."""
    total = max(0, total)
    if sum(wants.values()) <= total:
        return dict(wants)
    return allot(total, {name: float(want) for name, want in wants.items()})


def allot(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Split a whole number by weights (largest remainder); a tie goes to the first."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    left = total - sum(counts.values())
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[:left]:
        counts[name] += 1
    return counts


def allocate_levels(config: TaskConfig, task: Task, rows: int) -> dict[str, int]:
    """Split a task's rows by the weights of its levels (largest remainder); all levels alike when none is named."""
    unknown = sorted(set(config.levels) - set(task.levels))
    if unknown:
        names, has = ", ".join(unknown), ", ".join(task.levels)
        raise JobError(
            f"tasks.{config.name}.levels: unknown level {names} (has: {has}){nearest(unknown[0], task.levels)}"
        )
    weights = {level: config.levels.get(level, 0.0) for level in task.levels}
    if not config.levels:
        weights = dict.fromkeys(task.levels, 1.0)
    return allot(rows, weights)
