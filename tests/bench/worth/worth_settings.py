"""What `make worth` is told by worth.toml, as one value; nothing of it decides itself later."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from factory.errors import JobError
from factory.job.config import Config, describe_problems, read_toml

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


class Scale(Config):
    """`[scales.NAME]`: how much of it; `share` is of the counts in data.toml."""

    rows: Annotated[list[Annotated[int, Field(ge=8)]], Field(min_length=1)]
    seeds: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=6)]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    passes: tuple[int, ...] = ()
    arms: list[str]
    teacher: Literal["demo", "real"] = "demo"

    @model_validator(mode="after")
    def _passes_are_of_its_rows(self) -> "Scale":
        if unknown := sorted({*self.passes} - {*self.rows}):
            raise ValueError(f"passes: {unknown} are none of rows {self.rows}")
        return self


class TeacherTable(Config):
    """`[teacher]`."""

    temperature: Annotated[float, Field(ge=1)]


class StudentTable(Config):
    """`[student]`: which of the teacher's decoder blocks it begins with; 1 is the first."""

    blocks: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


class FreshTable(Config):
    """`[fresh]`: the sizes of a student that begins with nothing."""

    hidden: Annotated[int, Field(ge=32, multiple_of=32)]
    layers: Annotated[int, Field(ge=1)]


class TrainingTable(Config):
    """`[training]`."""

    rate: Annotated[float, Field(gt=0)]
    batch_rows: Annotated[int, Field(ge=1)]
    rollouts: Annotated[int, Field(ge=1)]


class Settings(Config):
    """worth.toml."""

    teacher: TeacherTable
    student: StudentTable
    fresh: FreshTable
    training: TrainingTable
    scales: dict[str, Scale]


def read_settings(path: Path = HERE / "worth.toml") -> Settings:
    """The file, checked. Raises JobError."""
    try:
        return Settings.model_validate(read_toml(path, "it is part of the repository"))
    except ValueError as error:
        raise JobError(f"{path}: {describe_problems(error, Settings)}") from None
