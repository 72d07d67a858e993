"""The curriculum file: what may stand in it, and what fits together. What it means is in docs/curriculum.md."""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError, model_validator

from factory.errors import JobError
from factory.job.config import Config, Fraction, Weight, describe_problems

RESERVED: Final = (
    *("default", "hidden_states", "experts", "attention", "rejected", "preferences", "signals", "hand-off"),
)
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
    # which prompt a row has in a stage: left out, the student's where the dataset has one, else the teacher's
    prompt: Literal["teacher", "student"] | None = None
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
