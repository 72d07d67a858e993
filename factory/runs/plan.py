"""The plan: which rows a job will make, in which shard and place, decided before anything is spent.

A plan is arithmetic over the job and the number of its sources' rows. The same job gives the same plan on every
machine, so a resumed run knows what is left without having stored a list of rows.
"""

import random
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType

from factory.errors import JobError, nearest
from factory.hashing import derive_seed
from factory.job.job import Job, TaskConfig
from factory.records import PlannedRow, Sampling
from factory.tasks.sources import Source
from factory.tasks.tasks import Task
from factory.tasks.transcripts import LEVEL, TASK


@dataclass(frozen=True, slots=True)
class Plan:
    """All rows of a job in a fixed mixed order, so that every shard holds every task in about its share.

    `order` permutes the prompts; each has `samples` rows, which stand side by side in one shard.
    """

    seed: int
    shard_rows: int
    samples: int
    blocks: tuple[tuple[str, str, int, int], ...]  # task, level, first number, count of prompts
    order: "array[int]"

    @property
    def planned(self) -> int:
        return len(self.order) * self.samples

    @property
    def shard_prompts(self) -> int:
        """Prompts in a full shard: a shard holds all samples of a prompt, so at least one prompt."""
        return max(1, self.shard_rows // self.samples)

    @property
    def shards(self) -> int:
        return -(-len(self.order) // self.shard_prompts)

    def shard_size(self, shard: int) -> int:
        """Rows of a shard."""
        return min(self.shard_prompts, len(self.order) - shard * self.shard_prompts) * self.samples

    def counts(self) -> dict[str, dict[str, int]]:
        """Planned rows by task and level."""
        counts: dict[str, dict[str, int]] = {}
        for task, level, _, count in self.blocks:
            counts.setdefault(task, {})[level] = count * self.samples
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
        ends = list(accumulate(count for *_, count in self.blocks))
        first = shard * self.shard_prompts
        for position in range(self.shard_size(shard)):
            index = self.order[first + position // self.samples]
            block = bisect_right(ends, index)
            task, level, start, count = self.blocks[block]
            # numbers go on through the levels of a task, so that a source gives each of its rows once
            number = start + index - (ends[block] - count)
            # of the row's own name, not of its place: another order or shard size gives the same scenarios
            seed = derive_seed(self.seed, task, level, number)
            yield PlannedRow(shard, position, task, level, number, seed, sample=position % self.samples)


def make_plan(job: Job, tasks: dict[str, Task], sources: Mapping[str, Source] = MappingProxyType({})) -> Plan:
    """Allocate every task's count to its levels and shuffle the whole with the job's seed.

    A source says how many rows it gives, and of which level each is where its data does.
    """
    blocks: list[tuple[str, str, int, int]] = []
    for config in job.tasks:
        start, source = 0, sources.get(config.name)
        rows = config.count if source is None else len(source)
        assert isinstance(rows, int)  # "all" is of a source alone
        counts = source.levels if source is not None else {}
        for level, count in (counts or allocate_levels(config, tasks[config.name], rows)).items():
            if count:
                blocks.append((config.name, level, start, count))
            start += count
    # 8 bytes a prompt, whatever the job: ten million rows are planned in 80 MB
    order = array("Q", range(sum(count for *_, count in blocks)))
    random.Random(job.seed).shuffle(order)
    return Plan(job.seed, job.shard_rows, job.samples.n, tuple(blocks), order)


def plan_transcripts(job: Job, count: int) -> Plan:
    """Every row once, in the order of the data."""
    return Plan(job.seed, job.shard_rows, 1, ((TASK, LEVEL, 0, count),), array("Q", range(count)))


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
    total = sum(weights.values())
    exact = {level: rows * weight / total for level, weight in weights.items()}
    counts = {level: int(share) for level, share in exact.items()}
    left = rows - sum(counts.values())
    for level in sorted(exact, key=lambda level: counts[level] - exact[level])[:left]:
        counts[level] += 1
    return counts


def resolve_sampling(job: Job, tasks: dict[str, Task]) -> dict[str, Sampling]:
    """The sampling of each task: defaults, then task.toml, then the job's [sampling], then the job's task."""
    return {c.name: c.sampling.over(job.sampling.over(tasks[c.name].sampling)) for c in job.tasks}


def resolve_gates(job: Job, tasks: dict[str, Task]) -> dict[str, str]:
    """What gates each task's rows: the job's task, then the job's [validation], then task.toml."""
    return {c.name: c.gate or job.validation.gate or tasks[c.name].gate for c in job.tasks}
