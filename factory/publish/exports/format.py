"""What a format is: which rows it reads, what it refuses, what it makes of a row, and what stands beside the data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from factory.dataset.shards import ShardFile
from factory.dataset.tables import Field, Form
from factory.publish.exports.asked import Asked
from factory.publish.exports.source import Given, Source

Values = Mapping[str, Any]  # of one exported row, by field; what begins with _ is counted and not written
Files = Iterable[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Left:
    """A row that is not exported, and why; counted and told."""

    reason: str


@dataclass(frozen=True, slots=True)
class Written:
    """A finished export, as what stands beside its data is made from."""

    out: Path
    source: Source
    asked: Asked
    files: Sequence[ShardFile]
    rows: int
    positions: int  # with a target, or tokens that are trained
    left: Mapping[str, int]
    longest: int  # tokens of a row
    counts: Mapping[str, int]  # sums of the rows' `_counts`


@dataclass(frozen=True, slots=True)
class Format:
    """One consumer: columns in, columns out."""

    name: str
    trainer: str
    kept: str | Callable[[Source, Asked], str]  # what of a row is kept, in a few words; as it was asked for
    # Raises nothing: the reason why this dataset would train wrongly, None where it would not.
    refuse: Callable[[Source, Asked], str | None]
    fields: Callable[[Source, Asked], Sequence[Field]]
    convert: Callable[[Given, Source, Asked], Values | Left]
    # The trainer's config and the like, by name. Written before the README, which comes last.
    beside: Callable[[Written], Mapping[str, str | bytes]]
    usage: Callable[[Written], str]
    # What people are told of it; None: its rows and counts.
    tell: Callable[[Written], str] | None = field(default=None, kw_only=True)
    configs: tuple[str, ...] = ("default",)
    columns: tuple[str, ...] = ()
    arrays: Literal["none", "ids", "logprobs", "states"] = "ids"
    options: tuple[str, ...] = ()
    writes_ids: bool = True
    # Whether a named student must understand what is written.
    checks_student: bool = True
    form: Form = "parquet"
    # Rows of a part put together or padded, before they are written.
    gather: Callable[[Iterator[Values], Asked], Iterator[Values]] | None = None
    # Files of one row, beside or in place of the table: its number among all rows, and its values.
    row_files: Callable[[int, Values], Files] | None = None
    # "torch" where `datasets` is to give rows as tensors.
    formatted: str | None = None
    # Why pictures cannot go with its rows, as part of a sentence; "" where they do.
    blind: str = ""
    # How whoever reads its pictures finds them, a sentence for the README.
    pictures: str = "The messages show pictures by parts without text."

    def keeps(self, source: Source, asked: Asked) -> str:
        """What of a row is kept by an export that is asked for so."""
        return self.kept if isinstance(self.kept, str) else self.kept(source, asked)

    def holds_ids(self, asked: Asked) -> bool:
        """Whether what it writes holds token ids, which a student must understand as the teacher does."""
        return self.writes_ids and asked.rows != "messages"
