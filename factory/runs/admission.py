"""Admission: which accepted rows stay, by those before them in the plan: as many as are wanted, and each but once.

Rows are decided one after another in the order of the plan, those that are committed included. What decides needs a
row's texts and its place, no array: so it may look at a record, or at what a file holds of one.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from factory.dataset.ledger import Ledger
from factory.job.gates import FiltersConfig
from factory.job.job import Job
from factory.quality.duplicates import Deduplication, StoredRow, as_stored
from factory.records import Form, Outcome, Pair, Record, Rejection, Stage
from factory.runs.plan import Plan

BEYOND_GOAL = "beyond_goal"  # of an accepted row that came when as many as the job wants were there


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an accepted row does not stay; `findings` None: those that it has."""

    stage: Stage
    reason: str
    findings: tuple[str, ...] | None = None

    def of(self, record: Record) -> Rejection:
        """The record, turned down for it."""
        return record.reject(self.stage, self.reason, record.findings if self.findings is None else self.findings)


class Admission:
    """Decides row after row of a dataset, of which a ledger holds what is committed."""

    def __init__(self, filters: FiltersConfig, plan: Plan, ledger: Ledger, forms: Mapping[str, Form]) -> None:
        self.duplicates = Deduplication(filters, ledger, forms) if seeks_duplicates(filters) else None
        self.quota = Quota(plan, ledger) if any(one.wanted for one in plan.rounds) else None

    def decide(self, shard: int, row: StoredRow) -> Refusal | None:
        """Why a row does not stay; None where it does."""
        # first: a row that is not wanted any more must not make a later one its duplicate
        if self.quota is not None and self.quota.is_full(shard, row.task, row.level):
            return Refusal("samples", BEYOND_GOAL)
        found = None if self.duplicates is None else self.duplicates.find(shard, row)
        if found is not None:
            return Refusal("filter", found[0], (found[1],))
        if self.quota is not None:
            self.quota.count(shard, row.task, row.level)
        return None

    def admit(self, shard: int, outcomes: list[Outcome], pairs: list[Pair]) -> tuple[list[Outcome], list[Pair]]:
        """The outcomes of a shard, each record that does not stay as a rejection, and the pairs of those that stay."""
        outcomes = [self._admit(shard, outcome) for outcome in outcomes]
        accepted = {outcome.prompt.id for outcome in outcomes if isinstance(outcome, Record)}
        return outcomes, [pair for pair in pairs if pair[0].prompt.id in accepted]

    def _admit(self, shard: int, outcome: Outcome) -> Outcome:
        refusal = self.decide(shard, as_stored(outcome)) if isinstance(outcome, Record) else None
        return outcome if refusal is None or isinstance(outcome, Rejection) else refusal.of(outcome)


def seeks_duplicates(filters: FiltersConfig) -> bool:
    return filters.duplicates or filters.near_duplicates is not None


def needs_all_rows(job: Job) -> bool:
    """Whether what becomes of a row depends on rows of other shards."""
    return seeks_duplicates(job.filters) or any(task.accepted is not None for task in job.tasks)


class Quota:
    """How many rows of each teacher, task and level are accepted, in the order of the plan, against how many are
    wanted."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self.plan = plan
        self.entries = ledger.entries
        self.earlier = deque(sorted(ledger.entries))
        self.accepted = Counter[tuple[str, str, str]]()

    def is_full(self, shard: int, task: str, level: str) -> bool:
        """Whether as many rows as are wanted were accepted before a row of this shard."""
        while self.earlier and self.earlier[0] < shard:
            before = self.earlier.popleft()
            for name, counts in self.entries[before].cells.items():
                own, _, its = name.partition("/")
                self._add(self.plan.round_of(before).teacher, own, its, counts[0])
        one = self.plan.round_of(shard)
        counted = {cell: self.accepted[one.teacher, *cell] for cell in ((task, level), (task, ""))}
        return any(rows >= one.wanted.get(cell, math.inf) for cell, rows in counted.items())

    def count(self, shard: int, task: str, level: str) -> None:
        """A row stays."""
        self._add(self.plan.round_of(shard).teacher, task, level, 1)

    def _add(self, teacher: str, task: str, level: str, rows: int) -> None:
        self.accepted[teacher, task, level] += rows
        self.accepted[teacher, task, ""] += rows
