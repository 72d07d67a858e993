"""What becomes of whole shards: which samples of a prompt are kept, which rows were there already, what is withheld.

Here alone the outcome of a row depends on other rows: on those of its prompt, and on those before it in the plan.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

from factory.dataset.ledger import Ledger
from factory.quality.difficulty import measure
from factory.quality.duplicates import Deduplication
from factory.quality.samples import choose
from factory.quality.withhold import withhold
from factory.records import Outcome, Pair, Record
from factory.runs.plan import Plan
from factory.runs.prepare import Prepared

BEYOND_GOAL = "beyond_goal"  # of an accepted row that came when as many as the job wants were there


@dataclass(slots=True)
class Draft:
    """A shard whose rows are not all decided yet."""

    outcomes: list[Outcome | None]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.outcomes)

    def put(self, outcome: Outcome) -> bool:
        """Keep a row's outcome in its place; true when it was the last one."""
        assert self.outcomes[outcome.prompt.position] is None
        self.outcomes[outcome.prompt.position] = outcome
        self.left -= 1
        return self.left == 0

    def whole(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome is not None]


def _in_order(ledger: Ledger, shards: Iterator[tuple[int, list[Outcome]]]) -> Iterator[tuple[int, list[Outcome]]]:
    """The same shards, ascending: whether a row is a duplicate depends on those before it."""
    order, whole = deque(ledger.pending()), dict[int, list[Outcome]]()
    for shard, outcomes in shards:
        whole[shard] = outcomes
        while order and order[0] in whole:
            yield order[0], whole.pop(order.popleft())


def finish_shards(
    prepared: Prepared, ledger: Ledger, shards: Iterator[tuple[int, list[Outcome]]]
) -> Iterator[tuple[int, list[Outcome], list[Pair]]]:
    """Whole shards as they are written: what is kept of each prompt's samples, nothing that was there already, and no
    more than is wanted."""
    filters = prepared.job.filters
    forms = {name: task.form for name, task in prepared.tasks.items()}
    deduplication = Deduplication(filters, ledger, forms) if filters.duplicates or filters.near_duplicates else None
    quota = Quota(prepared.plan, ledger) if any(one.wanted for one in prepared.plan.rounds) else None
    for shard, outcomes in shards if deduplication is None and quota is None else _in_order(ledger, shards):
        outcomes, pairs = choose_kept(prepared, outcomes)
        if deduplication is not None or quota is not None:
            outcomes = list(_admit(shard, outcomes, deduplication, quota))
            accepted = {outcome.prompt.id for outcome in outcomes if isinstance(outcome, Record)}
            pairs = [pair for pair in pairs if pair[0].prompt.id in accepted]
        # last: what was decided was decided of the texts as they came
        yield shard, *withhold(filters, outcomes, pairs)


def _admit(
    shard: int, outcomes: list[Outcome], deduplication: Deduplication | None, quota: "Quota | None"
) -> Iterator[Outcome]:
    for outcome in outcomes:
        # first: a row that is not wanted any more must not make a later one its duplicate
        admitted = outcome if quota is None else quota.bound(shard, outcome)
        if deduplication is not None:
            (admitted,) = deduplication.check(shard, [admitted])
        if quota is not None:
            quota.count(admitted)
        yield admitted


class Quota:
    """How many rows of each teacher, task and level are accepted, in the order of the plan, against how many are
    wanted."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self.plan = plan
        self.entries = ledger.entries
        self.earlier = deque(sorted(ledger.entries))
        self.accepted = Counter[tuple[str, str, str]]()

    def bound(self, shard: int, outcome: Outcome) -> Outcome:
        """The outcome, or its rejection where it was accepted and as many as are wanted were so before it."""
        while self.earlier and self.earlier[0] < shard:
            before = self.earlier.popleft()
            for name, counts in self.entries[before].cells.items():
                task, _, level = name.partition("/")
                self._add(self.plan.round_of(before).teacher, task, level, counts[0])
        one, task = self.plan.round_of(shard), outcome.prompt.task
        counted = {cell: self.accepted[one.teacher, *cell] for cell in ((task, outcome.prompt.level), (task, ""))}
        full = any(rows >= one.wanted.get(cell, math.inf) for cell, rows in counted.items())
        if isinstance(outcome, Record) and full:
            return outcome.reject("samples", BEYOND_GOAL, outcome.findings)
        return outcome

    def count(self, outcome: Outcome) -> None:
        """The last word on a row."""
        if isinstance(outcome, Record):
            self._add(outcome.prompt.teacher, outcome.prompt.task, outcome.prompt.level, 1)

    def _add(self, teacher: str, task: str, level: str, rows: int) -> None:
        self.accepted[teacher, task, level] += rows
        self.accepted[teacher, task, ""] += rows


def choose_kept(prepared: Prepared, outcomes: Iterable[Outcome]) -> tuple[list[Outcome], list[Pair]]:
    """Among all samples of each prompt those that are kept, each with its measures; and the preference pairs."""
    chosen: list[Outcome] = []
    pairs: list[Pair] = []
    for _, group in groupby(outcomes, key=lambda outcome: outcome.prompt.group):
        kept, pair = choose(list(group), prepared.job.samples.keep)
        chosen += [_measured(prepared, outcome) for outcome in kept]
        pairs += [] if pair is None else [pair]
    return chosen, pairs


def _measured(prepared: Prepared, outcome: Outcome) -> Outcome:
    # difficulty is of rows that are trained on; how sure the teacher was of the others tells what its sureness is worth
    return replace(outcome, measures=measure(outcome, prepared.formula if isinstance(outcome, Record) else None))
