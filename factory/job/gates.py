"""What makes an answer a row: `[validation]`, `[samples]`, `[judge]`, `[filters]`, `[student]`, `[style]`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from factory.job.config import Config, Fraction
from factory.job.data import PersonalKind
from factory.job.teacher import TeacherConfig


class StyleConfig(Config):
    """`[style]` of a task.toml: how the texts that a user reads must sound.

    `fields` are the answer's keys that hold such texts (dotted, `*` for each item of a list); all its strings when none
    is named. Bounds are words of one text. `tone` is for templates and judges, the rest is checked by code.
    """

    tone: Annotated[str, Field(max_length=400)] = ""
    fields: Annotated[list[Annotated[str, Field(pattern=r"^[\w*]+(\.[\w*]+)*$")]], Field(max_length=64)] = Field(
        default_factory=list
    )
    min_words: Annotated[int, Field(ge=0)] = 0
    max_words: Annotated[int, Field(ge=1)] | None = None
    markdown: bool = False
    emoji: bool = False
    phone: bool = True


class ValidationConfig(Config):
    """`[validation]`: what gates a row, and how often and how an invalid answer is asked for again.

    `resample` asks the same prompt with another seed; `repair` shows the teacher its answer and what is wrong with it.
    """

    gate: Literal["schema", "check"] | None = None
    retries: Annotated[int, Field(ge=0, le=20)] = 0
    retry: Literal["resample", "repair"] = "resample"
    constrain: bool = True


class SamplesConfig(Config):
    """`[samples]`: rejection sampling. `n` answers to each prompt, and which of the accepted ones are kept."""

    n: Annotated[int, Field(ge=1, le=256)] = 1
    keep: Literal["all", "best", "shortest", "pair"] = "all"


class JudgeConfig(Config):
    """`[judge]`: a model reads every accepted answer of a task that has a rubric (`judge.j2`) and scores it.

    Without `teacher` the job's own teacher judges. Answers scored below `threshold` (0 to 1) are rejected.
    """

    threshold: Fraction = 0.0
    teacher: TeacherConfig | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 512


class LengthConfig(Config):
    """Bounds on the tokens of a completion, reasoning included."""

    min_tokens: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class ContaminationConfig(Config):
    """Rows that share `n` words in a row with a text of these files (your evaluation sets) are rejected."""

    files: Annotated[list[str], Field(min_length=1, max_length=256)]
    columns: list[str] = Field(default_factory=list)
    n: Annotated[int, Field(ge=3, le=64)] = 13


class FiltersConfig(Config):
    """`[filters]`: what else an accepted answer must pass; each is off until it is named."""

    duplicates: bool = False
    near_duplicates: Annotated[float, Field(gt=0.3, lt=1)] | None = None
    language: Annotated[list[Annotated[str, Field(pattern="^[a-z]{2}$")]], Field(max_length=64)] = Field(
        default_factory=list
    )
    length: LengthConfig | None = None
    repetition: bool = False
    refusals: bool = False
    pii: bool | list[PersonalKind] = False
    # personal data in what is not accepted: as it came, with placeholders, or such texts not at all
    rejected_pii: Literal["kept", "redacted", "dropped"] = "kept"
    style: bool = False
    contamination: ContaminationConfig | None = None

    @model_validator(mode="after")
    def _something_is_looked_for(self) -> "FiltersConfig":
        if self.rejected_pii != "kept" and not self.pii:
            raise ValueError(f"rejected_pii = {self.rejected_pii!r} covers what pii looks for, and pii is off; set it")
        return self


class StudentConfig(Config):
    """`[student]`: tokens a row may have in all (prompt and completion, by the teacher's tokenizer).

    A longer row is dropped, or asked again with half the thinking tokens for as long as retries are left.
    """

    max_tokens: Annotated[int, Field(ge=16)]
    over: Literal["drop", "shorten"] = "drop"


class DifficultyConfig(Config):
    """`[difficulty]`: the expression that makes one number of a row's measures; docs/curriculum.md names them."""

    formula: Annotated[str, Field(min_length=1, max_length=1000)] = (
        "mean(uncertainty, surprisal, effort, failure, disagreement, doubt)"
    )
