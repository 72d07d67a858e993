"""Mixture: which row goes into which stage, how much of each task, and in what order.

A row's hardness decides its stage. A row without a value counts as harder than every row with one, and equal rows stand
in the order of their ids, so the same rows always give the same stages. Three stages of seven rows (? has no value):

    value        0.1   0.4   0.4   0.7   0.9    ?     ?        where more is easier the sign is turned, so that
    hardness     0.1   0.4   0.4   0.7   0.9   inf   inf       hardness always rises
    ids                 a <   b                 c <   d        ties are cut by id: no stage depends on the order of rows

    by share      1     1  |  2     2     2  |  3     3        ranks: round(i * 7 / 3)
    by bounds     1  |  2     2     2  |  3     3     3        at 0.4, 0.9: an equal value is the harder stage's

    a stage's range -> its rows by split -> train: mixture and budget, by lot -> order
                                            validation, test: every row       -> order

Nothing is drawn from a generator: each lot is a hash of seed, stage and row id. So a row added later moves no other
row's lot, and a larger budget keeps what a smaller one took.
"""

from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

from factory.curriculum.config import EASIER, CurriculumConfig, StageConfig, TabledConfig
from factory.dataset.stages import SPLITS
from factory.errors import JobError
from factory.signals import Array


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows that may enter a stage, as columns of length n."""

    # Bytes, all different.
    ids: Array
    # Index into `tasks`.
    task: Array
    # float32, as it is stored and compared; NaN where there is none.
    value: Array
    # Prompt and completion together.
    tokens: Array
    # Index into SPLITS.
    split: Array
    tasks: tuple[str, ...]
    # Whether hardness is minus the value.
    more_is_easier: bool = False

    @property
    def hardness(self) -> Array:
        """What rows are sorted by, easy to hard; infinite without a value."""
        signed = -self.value if self.more_is_easier else self.value
        return np.where(np.isnan(signed), np.float32(np.inf), signed)


@dataclass(frozen=True, slots=True)
class Cut:
    """Which rows a stage asks for, in hardness: a user's values are turned around before they come here."""

    name: str
    # All tasks where empty.
    tasks: tuple[str, ...] = ()
    # Ranks from share[0] to share[1] of the rows of its tasks; without effect where there are bounds.
    share: tuple[float, float] = (0.0, 1.0)
    # Hardness in [low, high); an infinite high takes the rows without a value too.
    bounds: tuple[float, float] | None = None
    # Weight by task: shares of the rows, or of the tokens where `tokens` is given. Empty: as they come.
    mixture: dict[str, float] = field(default_factory=dict)
    # The budget of the train split, one or the other; None: no bound.
    tokens: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: for each split the rows it has, as indices into the candidates, in order."""

    name: str
    # From 1.
    number: int
    members: dict[str, Array]
    # Training rows of its range that mixture or budget did not take.
    left_out: int


def plan_cuts(config: CurriculumConfig, most_levels: int = 0) -> list[Cut]:
    """The stages a config asks for, easy to hard. By level, and not told otherwise, each level is a stage."""
    easier = config.by in EASIER
    if isinstance(config, TabledConfig):
        return [_read_cut(stage, easier) for stage in config.stages]
    edges = config.thresholds
    if edges is None and config.by == "level" and config.stages is None:
        # levels are numbered from 0, and an equal value is the harder stage's: an edge at each but the first
        edges = [float(i) for i in range(1, most_levels)]
    if edges is not None:
        marks = [-np.inf, *sorted((-_rounded(x) if easier else _rounded(x)) for x in edges), np.inf]
        return [Cut(f"stage-{i}", bounds=pair) for i, pair in enumerate(pairwise(marks), 1)]
    count = 3 if config.stages is None else config.stages
    return [Cut(f"stage-{i}", share=((i - 1) / count, i / count)) for i in range(1, count + 1)]


def _rounded(value: float) -> float:
    """As the columns hold it: 0.7 must equal a stored 0.7."""
    return float(np.float32(value))


def _read_cut(stage: StageConfig, easier: bool) -> Cut:
    tasks = tuple(stage.tasks or (name for name, weight in stage.mixture.items() if weight > 0))
    share = (stage.from_ or 0.0, 1.0 if stage.to is None else stage.to)
    low = -np.inf if stage.min is None else _rounded(stage.min)
    high = np.inf if stage.max is None else _rounded(stage.max)
    if easier:  # [low, high) turned around is (-high, -low], which is [next after -high, next after -low)
        low, high = (float(np.nextafter(np.float32(-x), np.float32(np.inf))) for x in (high, low))
    bounds = None if stage.min is None and stage.max is None else (low, high)
    return Cut(stage.name, tasks, share, bounds, stage.mixture, stage.tokens, stage.rows)


def require_tasks(cuts: list[Cut], tasks: tuple[str, ...], where: str) -> None:
    """Raise JobError for a stage that names a task the dataset does not have."""
    for cut in cuts:
        if unknown := sorted({*cut.tasks, *cut.mixture} - set(tasks)):
            has = ", ".join(tasks)
            raise JobError(f"{where}: stage {cut.name}: no accepted row of task {', '.join(unknown)} (has: {has})")


def fill_stage(cut: Cut, number: int, rows: Candidates, config: CurriculumConfig) -> Stage:
    """Choose and order the rows of one stage. Mixture and budget bound its train split; the others keep every row."""
    # the lots are drawn before the splits are told apart, and by the stage's name: a row in two stages has two
    inside = np.flatnonzero(_within(cut, rows, config.per_task))
    draw = draw_numbers(rows.ids[inside], config.seed, cut.name)
    members, left_out = {}, 0
    for code, split in enumerate(SPLITS):
        mine = rows.split[inside] == code
        chosen, drawn = inside[mine], draw[mine]
        if split == "train":
            kept = _measure_out(cut, chosen, drawn, rows)
            left_out, chosen, drawn = len(chosen) - len(kept), chosen[kept], drawn[kept]
        members[split] = chosen[_order(config.order, chosen, drawn, rows)]
    return Stage(cut.name, number, members, left_out)


def draw_numbers(ids: Array, seed: int, name: str) -> Array:
    """A number for each id, uint64: as good as random, the same everywhere, and its own for each name."""
    key = blake2b(f"{seed}/{name}".encode(), digest_size=32).digest()
    digests = b"".join(blake2b(i, digest_size=8, key=key).digest() for i in ids.tolist())
    return np.frombuffer(digests, dtype="<u8")


def _within(cut: Cut, rows: Candidates, per_task: bool) -> Array:
    """Which rows lie in the range of a stage, bool [n]. Shares are of the rows of its tasks, or of each one's rows."""
    wanted = [code for code, name in enumerate(rows.tasks) if name in cut.tasks or not cut.tasks]
    mine: Array = np.isin(rows.task, wanted)
    hardness = rows.hardness
    if cut.bounds is not None:
        low, high = cut.bounds
        # inf < inf is false, and rows without a value belong to the last stage
        return mine & (hardness >= low) & ((hardness < high) | (high == np.inf))
    inside = np.zeros(len(mine), np.bool_)
    for group in [rows.task == code for code in wanted] if per_task else [mine]:
        members = np.flatnonzero(group)
        ranked = members[np.lexsort((rows.ids[members], hardness[members]))]
        # neighbours round the same number, so no row falls between two stages or into both
        first, last = (round(share * len(ranked)) for share in cut.share)
        inside[ranked[first:last]] = True
    return inside


def _measure_out(cut: Cut, chosen: Array, drawn: Array, rows: Candidates) -> Array:
    """Places in `chosen` that fit mixture and budget, drawn by lot: no task passes its quota, none is short by a row.

    Without a budget the scarcest task sets the size. Weights are shares of the rows, or of the tokens where these
    are what is bounded.
    """
    if not cut.mixture and cut.tokens is None and cut.rows is None:
        return np.arange(len(chosen))
    # a quota is in units of cost: tokens, or rows of cost 1
    cost = rows.tokens[chosen] if cut.tokens is not None else np.ones(len(chosen), np.int64)
    pools = [(1.0, np.arange(len(chosen)))]
    if cut.mixture:
        weights = [(cut.mixture.get(name, 0.0), code) for code, name in enumerate(rows.tasks)]
        pools = [(weight, np.flatnonzero(rows.task[chosen] == code)) for weight, code in weights if weight > 0]
        # a task without a row here would set the size to 0 for all
        pools = [(weight, pool) for weight, pool in pools if len(pool)]
    if not pools:
        return np.zeros(0, np.int64)
    # no row is repeated: the task that runs out first bounds all others
    scale = min(float(cost[pool].sum()) / weight for weight, pool in pools)
    budget = cut.tokens if cut.tokens is not None else cut.rows
    if budget is not None:
        scale = min(scale, budget / sum(weight for weight, _ in pools))
    quotas = [weight * scale for weight, _ in pools]
    # rows are whole, and rounding each quota down alone would lose up to one row a task
    if cut.tokens is None:
        quotas = _whole(quotas)
    lots = (pool[np.argsort(drawn[pool], kind="stable")] for _, pool in pools)
    return np.concatenate([_take_up_to(lot, cost, quota) for lot, quota in zip(lots, quotas, strict=True)])


def _whole(quotas: list[float]) -> list[float]:
    """Quotas as whole numbers with the same sum, less what it has over a whole number (largest remainder)."""
    # 1e-6: a quota that is whole but for float rounding is whole
    floors = [float(int(quota + 1e-6)) for quota in quotas]
    left = int(sum(quotas) - sum(floors) + 1e-6)
    for i in sorted(range(len(quotas)), key=lambda i: floors[i] - quotas[i])[:left]:
        floors[i] += 1
    return floors


def _take_up_to(pool: Array, cost: Array, quota: float) -> Array:
    """The first of `pool` whose costs together stay within the quota."""
    spent = np.cumsum(cost[pool])
    taken: Array = pool[: int(np.searchsorted(spent, quota + 1e-6, side="right"))]
    return taken


def _order(order: str, chosen: Array, drawn: Array, rows: Candidates) -> Array:
    """The order of a stage's rows, as places in `chosen`."""
    if order == "shuffled":
        shuffled: Array = np.lexsort((rows.ids[chosen], drawn))
        return shuffled
    ranked: Array = np.lexsort((rows.ids[chosen], rows.hardness[chosen]))
    if order == "easy_to_hard":
        return ranked
    # in turn, in proportion: the i-th of a task's n rows stands at (i + 1/2) / n of the way
    task, at = rows.task[chosen][ranked], np.zeros(len(ranked))
    for code in range(len(rows.tasks)):
        places = np.flatnonzero(task == code)
        at[places] = (np.arange(len(places)) + 0.5) / max(1, len(places))
    in_turn: Array = ranked[np.lexsort((task, at))]
    return in_turn


def describe_members(members: Array, rows: Candidates) -> dict[str, Any]:
    """The easiest and the hardest of some rows as [value, id]; rows without a value count only where none has one."""
    known = members[~np.isnan(rows.value[members])]
    ranked = known[np.lexsort((rows.ids[known], rows.hardness[known]))]
    ends = (
        [[float(rows.value[row]), rows.ids[row].decode()] for row in ranked[[0, -1]]] if len(ranked) else [None, None]
    )
    return dict(zip(("easiest", "hardest"), ends, strict=True))


def describe_counts(stage: Stage, rows: Candidates, task: int | None = None) -> dict[str, Any]:
    """Rows and tokens of a stage by split, and its ends; of one task where that is given."""
    by_split = {
        split: members if task is None else members[rows.task[members] == task]
        for split, members in stage.members.items()
    }
    counts = {split: len(members) for split, members in by_split.items()}
    tokens = {split: int(rows.tokens[members].sum()) for split, members in by_split.items()}
    return {"rows": counts, "tokens": tokens, **describe_members(np.concatenate(list(by_split.values())), rows)}
