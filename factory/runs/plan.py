"""The plan: which rows a job will make, in which shard and place, decided before anything is spent on them.

A plan is arithmetic over the job and the number of its sources' rows. The same job gives the same plan on every
machine, so a resumed run knows what is left without having stored a list of rows.

    round 0                        round 1            ...    each an order of its own, over shards of its own
    shard 0   shard 1   shard 2    shard 3   shard 4
    [r r r r] [r r r r] [r r]      [r r r r] [r]             a round's last shard may be short

Most jobs have one round. Another is planned when all rows of those before it are committed: because rows are wanting to
a task's `accepted`, or because the job asks for more than it did. What is planned never changes by it.
"""

import random
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from factory.hashing import derive_seed
from factory.job.job import Job
from factory.records import PlannedRow, Sampling
from factory.runs.goals import Cell, Counts, Goals, list_bounds, plan_round, read_goals
from factory.tasks.sources import NO_LEVEL, Source
from factory.tasks.tasks import Task
from factory.tasks.transcripts import LEVEL, TASK


@dataclass(frozen=True, slots=True)
class Round:
    """Prompts that were planned together. `order` permutes them; `first` is the number of the first of its shards.

    All are of one teacher; where a job has several, they take turns. `goals` are those it was planned for. `wanted`
    bounds the accepted rows of that teacher, by task and level, when the round is over, those of rounds before it too.
    """

    blocks: tuple[tuple[str, str, int, int], ...]  # task, level, first number, count of prompts
    order: "array[int]"
    first: int = 0
    goals: Goals = field(default_factory=dict)
    wanted: dict[Cell, int] = field(default_factory=dict)
    teacher: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """All rows of a job in a fixed mixed order, so that every shard holds every task in about its share.

    Each prompt has `samples` rows, which stand side by side in one shard.
    """

    seed: int
    shard_rows: int
    samples: int
    rounds: tuple[Round, ...]

    @property
    def planned(self) -> int:
        return self.prompts_planned * self.samples

    @property
    def prompts_planned(self) -> int:
        return sum(len(one.order) for one in self.rounds)

    @property
    def blocks(self) -> tuple[tuple[str, str, int, int], ...]:
        return tuple(block for one in self.rounds for block in one.blocks)

    @property
    def shard_prompts(self) -> int:
        """Prompts in a full shard: a shard holds all samples of a prompt, so at least one prompt."""
        return max(1, self.shard_rows // self.samples)

    @property
    def shards(self) -> int:
        last = self.rounds[-1]
        return last.first + self._shards_of(len(last.order))

    def _shards_of(self, prompts: int) -> int:
        return -(-prompts // self.shard_prompts)

    def round_of(self, shard: int) -> Round:
        """The round that a shard is of."""
        return self.rounds[bisect_right([one.first for one in self.rounds], shard) - 1]

    def shard_size(self, shard: int) -> int:
        """Rows of a shard."""
        one = self.round_of(shard)
        return min(self.shard_prompts, len(one.order) - (shard - one.first) * self.shard_prompts) * self.samples

    def counts(self) -> Counts:
        """Planned rows by task and level."""
        counts: Counts = {}
        for task, level, _, count in self.blocks:
            levels = counts.setdefault(task, {})
            levels[level] = levels.get(level, 0) + count * self.samples
        return counts

    def rows_of_tasks(self) -> dict[str, int]:
        """Planned rows by task."""
        return {task: sum(levels.values()) for task, levels in self.counts().items()}

    def prompts(self) -> dict[str, int]:
        """Planned prompts by task."""
        prompts: dict[str, int] = {}
        for task, _, _, count in self.blocks:
            prompts[task] = prompts.get(task, 0) + count
        return prompts

    def rows(self, shard: int) -> Iterator[PlannedRow]:
        """The rows of one shard, in their places."""
        one = self.round_of(shard)
        ends = list(accumulate(count for *_, count in one.blocks))
        first = (shard - one.first) * self.shard_prompts
        for position in range(self.shard_size(shard)):
            index = one.order[first + position // self.samples]
            block = bisect_right(ends, index)
            task, level, start, count = one.blocks[block]
            # numbers go on through the levels of a task, so that a source gives each of its rows once
            number = start + index - (ends[block] - count)
            # of the row's own name, not of its place: another order or shard size gives the same scenarios
            seed = derive_seed(self.seed, task, level, number)
            yield PlannedRow(shard, position, task, level, number, seed, position % self.samples, one.teacher)

    def records(self) -> list[dict[str, Any]]:
        """The rounds as JSON has them: prompts by task and level, and the goals they were planned for."""
        return [
            {"prompts": _prompts_of(one), "goals": one.goals}
            | ({"teacher": one.teacher, "first_shard": one.first} if one.teacher else {})
            for one in self.rounds
        ]

    def of_teacher(self, teacher: str) -> "Plan":
        """The rounds of one teacher alone, as if there were no others."""
        rounds: list[Round] = []
        for one in (one for one in self.rounds if one.teacher == teacher):
            last = rounds[-1] if rounds else None
            first = 0 if last is None else last.first + self._shards_of(len(last.order))
            rounds.append(replace(one, first=first))
        return replace(self, rounds=tuple(rounds))


class Rows:
    """The planned rows of shards, one after another. It may run dry, and goes on when there are shards again."""

    def __init__(self, plan: Plan, shards: Iterator[int]) -> None:
        self.plan = plan
        self.shards = shards
        self.current: Iterator[PlannedRow] = iter(())

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> PlannedRow:
        while True:
            row = next(self.current, None)
            if row is not None:
                return row
            self.current = self.plan.rows(next(self.shards))


@dataclass(frozen=True, slots=True)
class Planner:
    """What a plan is made from: the job, its tasks and its sources."""

    job: Job
    tasks: Mapping[str, Task]
    sources: Mapping[str, Source]

    def first(self, goals: Goals | None = None) -> Plan:
        """The first round, of each teacher one, by the job's own goals where no others are named."""
        goals = read_goals(self.job) if goals is None else goals
        plan = Plan(self.job.seed, self.job.shard_rows, self.job.samples.n, ())
        for teacher in self.job.teacher_names:
            prompts = plan_round(self.job, self.tasks, self.sources, goals, {}, {}, teacher)
            if any(map(_total, prompts.values())) or not teacher:
                plan = self.add(plan, prompts, goals, teacher)
        return plan

    def next(self, plan: Plan, accepted: Callable[[str], Mapping[Cell, int]]) -> Plan | None:
        """The plan and the round that the job's goals want behind it, once all its rows are committed.

        `accepted` gives the rows of a teacher so far. None where nothing is wanting, or all that may be spent on it is
        spent.
        """
        goals, names = read_goals(self.job), self.job.teacher_names
        # whose turn it is goes on first: to start an engine takes longer than to ask it a few rows more
        turn = plan.rounds[-1].teacher
        for teacher in sorted(names, key=lambda name: name != turn):
            asked = {
                (task, level): rows // plan.samples
                for task, levels in plan.of_teacher(teacher).counts().items()
                for level, rows in levels.items()
            }
            prompts = plan_round(self.job, self.tasks, self.sources, goals, asked, accepted(teacher), teacher)
            if any(map(_total, prompts.values())):
                return self.add(plan, prompts, goals, teacher)
        return None

    def add(self, plan: Plan, prompts: Counts, goals: Goals, teacher: str = "") -> Plan:
        """The plan and a round behind it. Numbers go on behind those of the rounds before."""
        blocks: list[tuple[str, str, int, int]] = []
        asked = plan.counts()
        for name, task in self.tasks.items():
            source, levels = self.sources.get(name), asked.get(name, {})
            start = _total(levels) // plan.samples
            # rows whose data says their level lie level by level: each goes on in its own part of the source
            parts = source.levels if source is not None else {}
            places = dict(zip(parts, accumulate(parts.values(), initial=0), strict=False))
            # in the order of the levels, whichever way the numbers came
            for level in (*task.levels, NO_LEVEL):
                count = prompts.get(name, {}).get(level, 0)
                if count:
                    first = places[level] + levels.get(level, 0) // plan.samples if places else start
                    blocks.append((name, level, first, count))
                    start += count
        # 8 bytes a prompt, whatever the job: ten million rows are planned in 80 MB
        order = array("Q", range(sum(count for *_, count in blocks)))
        number = len(plan.rounds)
        random.Random(derive_seed(plan.seed, "round", number) if number else plan.seed).shuffle(order)
        bounds = list_bounds(self.job, self.tasks, self.sources, goals, teacher)
        one = Round(tuple(blocks), order, plan.shards if number else 0, goals, bounds, teacher)
        return Plan(plan.seed, plan.shard_rows, plan.samples, (*plan.rounds, one))


def _total(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _prompts_of(one: Round) -> Counts:
    prompts: Counts = {}
    for task, level, _, count in one.blocks:
        prompts.setdefault(task, {})[level] = count
    return prompts


def make_plan(job: Job, tasks: Mapping[str, Task], sources: Mapping[str, Source] = MappingProxyType({})) -> Plan:
    """The first round of a job: every task's count, or its wanted rows, allocated to its levels, the whole shuffled.

    A source says how many rows it gives, and of which level each is where its data does.
    """
    return Planner(job, tasks, sources).first()


def plan_transcripts(job: Job, count: int) -> Plan:
    """Every row once, in the order of the data."""
    return Plan(job.seed, job.shard_rows, 1, (Round(((TASK, LEVEL, 0, count),), array("Q", range(count))),))


def resolve_sampling(job: Job, tasks: dict[str, Task]) -> dict[str, Sampling]:
    """The sampling of each task: defaults, then task.toml, then the job's [sampling], then the job's task."""
    return {c.name: c.sampling.over(job.sampling.over(tasks[c.name].sampling)) for c in job.tasks}


def resolve_gates(job: Job, tasks: dict[str, Task]) -> dict[str, str]:
    """What gates each task's rows: the job's task, then the job's [validation], then task.toml."""
    return {c.name: c.gate or job.validation.gate or tasks[c.name].gate for c in job.tasks}
