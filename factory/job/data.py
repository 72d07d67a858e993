"""Sections of a job file that name the user's data: where its rows lie, and what of a row goes where."""

from typing import Annotated, Any, Literal

from pydantic import Field

from factory.job.config import Config

TranscriptColumn = Literal[
    "prompt_token_ids",
    "completion_token_ids",
    "completion_mask",
    "candidate_ids",
    "candidate_counts",
    "token_ids",
    "token_mask",
    "prompt",
    "completion",
    "messages",
    "tools",
    "turn_mask",
    "nodes",
]
PersonalKind = Literal["email", "phone", "card", "iban", "national_id", "ip"]


class TableConfig(Config):
    """Rows of the user's: files, a dataset of `datasets`, or one that a job has made.

    `id` is the column by which a row is called in the dataset, its number when left out. `on_bad_row`: whether a row
    that cannot be used refuses the job before it starts, or is rejected by itself.
    """

    path: Annotated[str, Field(min_length=1)]
    format: Literal["parquet", "jsonl", "json", "csv", "tsv", "datasets"] | None = None
    config: str | None = None
    split: str = "train"
    id: Annotated[str, Field(min_length=1)] | None = None
    on_bad_row: Literal["stop", "skip"] = "stop"


class SourceConfig(TableConfig):
    """Where scenarios come from when not sampled: rows of the user's data, mapped to the scenario's fields.

    `level` is the column that says which of the task's levels a row has.
    """

    fields: dict[str, str] = Field(default_factory=dict)
    level: Annotated[str, Field(min_length=1)] | None = None
    constants: dict[str, Any] = Field(default_factory=dict)
    shuffle: bool = False
    scrub: bool | list[PersonalKind] = False


class TranscriptsConfig(TableConfig):
    """`[transcripts]`: completions that exist already, for `factory score`; docs/signals.md tells the forms of a row.

    `columns` names yours where they are called otherwise (`prompt_token_ids = "input_ids"`), `keep` those whose values
    are kept in the column `scenario`, `count` how many rows to take from the start (all). `turns`: which of a row's
    assistant turns are scored, the last one or those that a mask names (all, where there is none).
    """

    turns: Literal["last", "masked"] = "last"

    columns: dict[TranscriptColumn, str] = Field(default_factory=dict)
    keep: list[str] = Field(default_factory=list)
    count: Annotated[int, Field(ge=1)] | None = None
