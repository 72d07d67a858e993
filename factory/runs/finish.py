"""What becomes of whole shards: which samples of a prompt are kept, which rows were there already, what is withheld.

Here alone the outcome of a row depends on other rows: on those of its prompt, and on those before it in the plan.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

from factory.dataset.ledger import Ledger
from factory.job.job import Job
from factory.quality.difficulty import measure
from factory.quality.samples import choose
from factory.quality.withhold import DUPLICATE, withhold
from factory.records import Outcome, Pair, Record, Rejection
from factory.runs.admission import BEYOND_GOAL, Admission, Refusal, needs_all_rows, seeks_duplicates
from factory.runs.prepare import Prepared


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


@dataclass(frozen=True, slots=True)
class Finished:
    """A shard as it is written. `late`: what accepted rows become if those of shards elsewhere turn them down."""

    shard: int
    outcomes: list[Outcome]
    pairs: list[Pair]
    late: list[Rejection] | None = None


def _in_order(ledger: Ledger, shards: Iterator[tuple[int, list[Outcome]]]) -> Iterator[tuple[int, list[Outcome]]]:
    """The same shards, ascending: whether a row is a duplicate depends on those before it."""
    order, whole = deque(ledger.pending()), dict[int, list[Outcome]]()
    for shard, outcomes in shards:
        whole[shard] = outcomes
        while order and order[0] in whole:
            yield order[0], whole.pop(order.popleft())


def finish_shards(
    prepared: Prepared, ledger: Ledger, shards: Iterator[tuple[int, list[Outcome]]]
) -> Iterator[Finished]:
    """Whole shards as they are written: what is kept of each prompt's samples, nothing that was there already, and no
    more than is wanted."""
    job = prepared.job
    if not needs_all_rows(job):
        yield from finish_alone(prepared, shards)
        return
    forms = {name: task.form for name, task in prepared.tasks.items()}
    admission = Admission(job.filters, prepared.plan, ledger, forms)
    for shard, outcomes in _in_order(ledger, shards):
        outcomes, pairs = admission.admit(shard, *choose_kept(prepared, outcomes))
        # last: what was decided was decided of the texts as they came
        yield Finished(shard, *withhold(job.filters, outcomes, pairs))


def finish_alone(prepared: Prepared, shards: Iterator[tuple[int, list[Outcome]]]) -> Iterator[Finished]:
    """Whole shards as they are written where rows of others are not looked at: those may be on other machines."""
    filters = prepared.job.filters
    for shard, outcomes in shards:
        chosen, pairs = choose_kept(prepared, outcomes)
        late = list(_late_rows(prepared.job, chosen)) if needs_all_rows(prepared.job) else None
        yield Finished(shard, *withhold(filters, chosen, pairs), late)


def _late_rows(job: Job, outcomes: list[Outcome]) -> Iterator[Rejection]:
    """Each record turned down, for every reason that may come to light, as it is written then."""
    reasons = [Refusal("samples", BEYOND_GOAL)] if any(task.accepted is not None for task in job.tasks) else []
    # which row it is like is told when it is known
    reasons += [Refusal("filter", DUPLICATE, ())] if seeks_duplicates(job.filters) else []
    turned = [reason.of(outcome) for outcome in outcomes if isinstance(outcome, Record) for reason in reasons]
    covered, _ = withhold(job.filters, turned, ())
    return (outcome for outcome in covered if isinstance(outcome, Rejection))


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
