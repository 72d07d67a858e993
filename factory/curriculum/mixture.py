"""Mixture: which row goes into which stage, how much of each task, and in what order.

A row's hardness decides its stage. A row without a value counts as harder than every row with one, and equal rows stand
in the order of their ids, so the same rows always give the same stages.
"""

import tomllib
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from factory.errors import JobError
from factory.job.config import Config, describe_problems
from factory.job.job import Fraction, Weight
from factory.signals import Array

SPLITS: Final = ("train", "validation", "test")
RESERVED: Final = ("default", "hidden_states", "rejected", "preferences", "hand-off")
# where more is easier; in all others more is harder
EASIER: Final = ("pass_rate", "agreement", "judge_score", "confidence", "score")
Measure = Literal[
    "difficulty",
    "level",
    "entropy_mean",
    "entropy_max",
    "surprise",
    "confidence",
    "pass_rate",
    "agreement",
    "judge_score",
    "score",
    "reasoning_tokens",
    "attempt",
    "tokens",
]
Finite = Annotated[float, Field(allow_inf_nan=False)]
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)]


class SplitsConfig(Config):
    """`[splits]`: shares of the rows; `train` is what is left. Texts in fields of `ignore` are no documents."""

    train: Fraction | None = None
    validation: Fraction = 0.05
    test: Fraction = 0.05
    ignore: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _shares_fit(self) -> "SplitsConfig":
        held_out = self.validation + self.test
        if held_out > 1 + 1e-9 or (self.train is not None and abs(self.train + held_out - 1) > 1e-9):
            told = f"{self.train:g} + " if self.train is not None else ""
            raise ValueError(
                f"train + validation + test must be 1, got {told}{self.validation:g} + {self.test:g}; "
                "leave out train, which is the rest"
            )
        return self


class StudentLimit(Config):
    """`[student]`: the most tokens (prompt and completion) that a row may have."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None


class HandOffConfig(Config):
    """`[hand_off]`: below these a small model should pass the prompt on to a larger one."""

    min_pass_rate: Fraction = 0.5
    min_confidence: Fraction = 0.0


class StageConfig(Config):
    """`[[stages]]`: one stage. A share of the rows (`from`, `to`) or a range of values (`min` <= value < `max`)."""

    name: StageName
    tasks: Annotated[list[str], Field(max_length=256)] = Field(default_factory=list)
    from_: Fraction | None = Field(default=None, alias="from")
    to: Fraction | None = None
    min: Finite | None = None
    max: Finite | None = None
    mixture: dict[str, Weight] = Field(default_factory=dict)
    tokens: Annotated[int, Field(ge=1)] | None = None
    rows: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _keys_fit_together(self) -> "StageConfig":
        share, bounds = (self.from_, self.to), (self.min, self.max)
        if any(x is not None for x in share) and any(x is not None for x in bounds):
            raise ValueError("from/to and min/max are two ways to say the same; give one of them")
        if (self.from_ or 0) >= (1 if self.to is None else self.to):
            raise ValueError(f"from {self.from_ or 0:g} must be below to {1 if self.to is None else self.to:g}")
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise ValueError(f"min {self.min:g} must be below max {self.max:g}")
        if self.tokens is not None and self.rows is not None:
            raise ValueError("tokens and rows both bound the stage; give one of them")
        if self.mixture and not sum(self.mixture.values()) > 0:
            raise ValueError("mixture: every weight is 0; give at least one task a positive weight")
        if strangers := sorted(self.mixture.keys() - set(self.tasks)) if self.tasks else []:
            raise ValueError(f"mixture names {', '.join(strangers)}, which is not in tasks ({', '.join(self.tasks)})")
        return self


class CurriculumConfig(Config):
    """A curriculum file whose stages are cut by number or by thresholds."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    by: Measure = "difficulty"
    formula: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    per_task: bool = False
    order: Literal["easy_to_hard", "interleaved", "shuffled"] = "easy_to_hard"
    splits: SplitsConfig = SplitsConfig()
    student: StudentLimit = StudentLimit()
    hand_off: HandOffConfig = HandOffConfig()
    stages: Annotated[int, Field(ge=1, le=64)] | None = None
    thresholds: Annotated[list[Finite], Field(min_length=1, max_length=63)] | None = None

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> "CurriculumConfig":
        if self.formula is not None and self.by != "difficulty":
            raise ValueError(f"formula gives the difficulty, but by is {self.by!r}; leave out one of them")
        if self.thresholds is None:
            return self
        if self.stages is not None or self.per_task:
            other = "stages" if self.stages is not None else "per_task"
            raise ValueError(f"thresholds cut at values and {other} at shares of the rows; leave out one of them")
        if any(a >= b for a, b in pairwise(self.thresholds)):
            raise ValueError(f"thresholds must increase, got {self.thresholds}")
        return self


class TabledConfig(CurriculumConfig):
    """A curriculum file with a `[[stages]]` table for each stage."""

    stages: Annotated[list[StageConfig], Field(min_length=1, max_length=64)]  # type: ignore[assignment]
    thresholds: None = None

    @model_validator(mode="after")
    def _names_are_free(self) -> "TabledConfig":
        names = [stage.name for stage in self.stages]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"stages: two are named {', '.join(twice)}; give each a name of its own")
        if taken := sorted(set(names) & set(RESERVED)):
            raise ValueError(f"stages: {', '.join(taken)} is the name of another config (taken: {', '.join(RESERVED)})")
        return self


def load_config(path: Path | None) -> CurriculumConfig:
    """Read and check a curriculum file; without one, the defaults. Raises JobError with every problem on one line."""
    if path is None:
        return CurriculumConfig()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such curriculum file; docs/curriculum.md has one to copy") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {error}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise JobError(f"{path}: not valid TOML: {error}") from None
    model = TabledConfig if isinstance(data.get("stages"), list) else CurriculumConfig
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise JobError(f"{path}: {describe_problems(error, model)}") from None


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows that may enter a stage, as columns of length n. `value` is float32 with NaN where there is none."""

    ids: Array  # bytes, all different
    task: Array  # index into `tasks`
    value: Array
    tokens: Array
    split: Array  # index into SPLITS
    tasks: tuple[str, ...]
    more_is_easier: bool = False

    @property
    def hardness(self) -> Array:
        """What rows are sorted by, easy to hard; infinite without a value."""
        signed = -self.value if self.more_is_easier else self.value
        return np.where(np.isnan(signed), np.float32(np.inf), signed)


@dataclass(frozen=True, slots=True)
class Cut:
    """Which rows a stage asks for: ranks from `share[0]` to `share[1]`, or hardness in [`bounds[0]`, `bounds[1]`)."""

    name: str
    tasks: tuple[str, ...] = ()
    share: tuple[float, float] = (0.0, 1.0)
    bounds: tuple[float, float] | None = None
    mixture: dict[str, float] = field(default_factory=dict)
    tokens: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: for each split the rows it has, as indices into the candidates, in order."""

    name: str
    number: int
    members: dict[str, Array]
    left_out: int  # rows of its range that mixture or budget did not take


def plan_cuts(config: CurriculumConfig, most_levels: int = 0) -> list[Cut]:
    """The stages a config asks for, easy to hard. By level, and not told otherwise, each level is a stage."""
    easier = config.by in EASIER
    if isinstance(config, TabledConfig):
        return [_read_cut(stage, easier) for stage in config.stages]
    edges = config.thresholds
    if edges is None and config.by == "level" and config.stages is None:
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
        return mine & (hardness >= low) & ((hardness < high) | (high == np.inf))
    inside = np.zeros(len(mine), np.bool_)
    for group in [rows.task == code for code in wanted] if per_task else [mine]:
        members = np.flatnonzero(group)
        ranked = members[np.lexsort((rows.ids[members], hardness[members]))]
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
    cost = rows.tokens[chosen] if cut.tokens is not None else np.ones(len(chosen), np.int64)
    pools = [(1.0, np.arange(len(chosen)))]
    if cut.mixture:
        weights = [(cut.mixture.get(name, 0.0), code) for code, name in enumerate(rows.tasks)]
        pools = [(weight, np.flatnonzero(rows.task[chosen] == code)) for weight, code in weights if weight > 0]
        pools = [(weight, pool) for weight, pool in pools if len(pool)]
    if not pools:
        return np.zeros(0, np.int64)
    scale = min(float(cost[pool].sum()) / weight for weight, pool in pools)
    budget = cut.tokens if cut.tokens is not None else cut.rows
    if budget is not None:
        scale = min(scale, budget / sum(weight for weight, _ in pools))
    quotas = [weight * scale for weight, _ in pools]
    if cut.tokens is None:
        quotas = _whole(quotas)
    lots = (pool[np.argsort(drawn[pool], kind="stable")] for _, pool in pools)
    return np.concatenate([_take_up_to(lot, cost, quota) for lot, quota in zip(lots, quotas, strict=True)])


def _whole(quotas: list[float]) -> list[float]:
    """Quotas as whole numbers with the same sum, less what it has over a whole number (largest remainder)."""
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
