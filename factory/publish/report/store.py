"""A dataset's rows as tables for SQL: what the report counts is counted by DuckDB, in bounded memory.

    accepted, rejected            every committed row, its numbers and labels alone: in memory, some 100 bytes a row
    accepted_part, rejected_part  every column of some shards' rows, spread evenly: read from the files at each query

Only shards that the ledger names are read, so a run may be at work meanwhile. Texts and token ids of a million rows
would take minutes: what needs them is counted on the part, and says so.
"""

import tempfile
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Self

from factory.dataset.ledger import Ledger
from factory.dataset.manifest import require_plain_path
from factory.dataset.shards import find_size_damage, read_schema, shard_path
from factory.dataset.sound import files_of, tell_next
from factory.errors import DatasetError, one_line

PART_ROWS: Final = 20_000
MEMORY: Final = "1GB"
FOLDERS: Final = {"accepted": "data", "rejected": "rejected"}
LABELS: Final = ("task", "level", "sample", "attempt", "repaired", "finish_reason", "pass_rate", "agreement")
MEASURES: Final = ("entropy_mean", "surprise", "confidence", "reasoning_tokens")
# a dataset of an earlier release may lack some: these are null then
COLUMNS: Final = {
    "accepted": (*LABELS, *MEASURES, "score", "judge_score", "difficulty", "answer_start"),
    "rejected": (*LABELS, *MEASURES, "judge_score", "kind", "stage", "reason"),
}
TEXTS: Final = ("task", "level", "finish_reason", "kind", "stage", "reason")
WHERE: Final = "split_part(split_part(filename, 'train-', -1), '.', 1)::INTEGER AS shard, file_row_number AS number"


class Store:
    """A connection of its own to the tables of one dataset, of which a shard at least is committed.

    Without `whole` the part's two tables alone are there: numbers of a million rows need not be read for its texts.
    """

    def __init__(self, ledger: Ledger, whole: bool = True) -> None:
        import duckdb

        require_plain_path(ledger.out)
        self.part = choose_part(ledger)  # shards, as many as the part has
        _require_files(ledger, sorted(ledger.entries) if whole else self.part)
        self.ledger = ledger
        self.spill = tempfile.TemporaryDirectory()
        options = {"memory_limit": MEMORY, "temp_directory": self.spill.name, "preserve_insertion_order": "false"}
        options |= {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        self.connection = duckdb.connect(":memory:", config=options)
        self.failure: tuple[type[Exception], ...] = (duckdb.IOException, duckdb.InvalidInputException)
        self.failure += (duckdb.ConversionException, duckdb.InternalException, duckdb.SerializationException)
        self.failure += (duckdb.OutOfMemoryException,)
        for name, folder in FOLDERS.items():
            if whole:
                self._make(name, folder)
            self.rows(f"CREATE VIEW {name}_part AS SELECT *, {WHERE} FROM {self.source(name, self.part)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.connection.close()
        self.spill.cleanup()

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """What a query finds, as plain values. Raises DatasetError where a file of the dataset cannot be read."""
        try:
            cursor = self.connection.execute(sql)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
        except self.failure as error:
            # behind its first line DuckDB shows the query
            why = one_line(DatasetError(str(error).partition("\n")[0]), 300)
            told = f"cannot be read: {why}; `factory verify {self.ledger.out}` names what is damaged"
            raise DatasetError(f"{self.ledger.out}: {told}") from None

    def one(self, sql: str) -> dict[str, Any]:
        """The only row that a query finds."""
        (row,) = self.rows(sql)
        return row

    def has(self, table: str, column: str) -> bool:
        """Whether the files behind a table have a column."""
        return column in self.known[FOLDERS[table]]

    @cached_property
    def known(self) -> dict[str, dict[str, str]]:
        """Columns of the files in `data` and `rejected`; all files of a dataset have the same."""
        shard = min(self.ledger.entries)
        return {folder: read_schema(self.ledger.out / shard_path(folder, shard)) for folder in FOLDERS.values()}

    def source(self, table: str, shards: Sequence[int] | None = None) -> str:
        """What SQL reads a table's files by: of some shards, or of all that are committed; there must be one."""
        chosen = sorted(self.ledger.entries) if shards is None else shards
        paths = [self.ledger.out / shard_path(FOLDERS[table], shard) for shard in chosen]
        return f"read_parquet([{', '.join(literal(str(p)) for p in paths)}], filename = true, file_row_number = true)"

    def _make(self, name: str, folder: str) -> None:
        known = self.known[folder]
        chosen = [
            column if column in known else f"NULL::{'VARCHAR' if column in TEXTS else 'DOUBLE'} AS {column}"
            for column in COLUMNS[name]
        ]
        self.rows(f"CREATE TABLE {name} AS SELECT {', '.join(chosen)}, {WHERE} FROM {self.source(name)}")


def _require_files(ledger: Ledger, shards: Sequence[int]) -> None:
    # of the files that are sampled `build` checks every byte
    for file in files_of(ledger, *FOLDERS.values(), shards=shards):
        if told := find_size_damage(ledger.out, file, "committed"):
            raise DatasetError(f"{ledger.out}: {told}; {tell_next(ledger.out)}")


def choose_part(ledger: Ledger, most: int = PART_ROWS) -> list[int]:
    """Shards of up to about so many rows together, one at least, spread evenly over those that are committed."""
    shards = sorted(ledger.entries)
    rows = sum(entry.planned for entry in ledger.entries.values())
    count = max(1, min(len(shards), len(shards) * most // max(rows, 1)))
    return [shards[i * len(shards) // count] for i in range(count)] if shards else []


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
