"""Sources: scenarios that come from the user, one row of a file or dataset each, mapped to the scenario's fields."""

import hashlib
import json
import random
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from glob import escape
from pathlib import Path
from typing import Any, Protocol

from pydantic import AliasChoices, AliasPath, BaseModel

from factory.errors import JobError, nearest
from factory.job.job import SourceConfig, TableConfig
from factory.texts.personal import resolve_kinds, scrub_row

LOADERS = {".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl"}


class Rows(Protocol):
    """What a source needs of a table."""

    column_names: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Mapping[str, Any]: ...


class Source:
    """Rows of a user's data, by number, each as the fields of a scenario."""

    def __init__(self, config: SourceConfig, rows: Rows, order: list[int] | None) -> None:
        self.config = config
        self.rows = rows
        self.order = order
        self._digest: str | None = None
        self._last: tuple[int, dict[str, Any], Counter[str]] | None = None
        self._counts: dict[int, Counter[str]] = {}  # of rows that were read and are not told by `replaced` yet

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, number: int) -> int:
        """Which row of the data, counted from 0, the `number`-th planned row is made from."""
        return self.order[number] if self.order else number

    def digest(self) -> str:
        """A hash of the data, as it was when it was first asked for."""
        if self._digest is None:
            self._digest = digest_rows(self.config, self.rows)
        return self._digest

    def scenario(self, number: int) -> Mapping[str, Any]:
        """Fields of the scenario for the `number`-th planned row: the mapped columns, then the constants.

        Without `fields` every column goes to the field of its own name. A null counts as absent. With `scrub`, what is
        personal in the columns' strings is replaced, nested ones too; the constants stay, they are the job's own.
        """
        mapped, counts = self._read(number)
        if self.config.scrub:
            self._counts[number] = counts
        return {**self.config.constants, **mapped}

    def replaced(self, number: int) -> Counter[str]:
        """How often each kind of personal data was replaced in the row that `scenario` gives for `number`."""
        known = self._counts.pop(number, None)
        return self._read(number)[1] if known is None else known

    def _read(self, number: int) -> tuple[dict[str, Any], Counter[str]]:
        # the samples of a prompt ask for one row in turn, and to scrub costs more than all the rest of a prompt
        if self._last is None or self._last[0] != number:
            self._last = (number, *self._scrub(number))
        return self._last[1], self._last[2]

    def _scrub(self, number: int) -> tuple[dict[str, Any], Counter[str]]:
        row = self.rows[self.place(number)]
        columns = self.config.fields or {name: name for name in row}
        mapped = {field: row[column] for field, column in columns.items() if row.get(column) is not None}
        kinds = resolve_kinds(self.config.scrub)
        return scrub_row(mapped, kinds) if kinds else (mapped, Counter())


class JsonLines:
    """The objects of a JSON Lines file, one a line, each read when it is asked for, with the values that stand there.

    (The JSON loader of `datasets` makes timestamps of texts that look like dates and floats of long integers.)
    Raises ValueError naming the first line that is not an object.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.starts = array("Q")
        columns: dict[str, None] = {}
        start = 0
        for number, line in enumerate(self.file, 1):
            if line.strip():
                columns |= dict.fromkeys(self._read(line, number))
                self.starts.append(start)
            start += len(line)
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int, /) -> Mapping[str, Any]:
        self.file.seek(self.starts[number])
        return self._read(self.file.readline(), number)

    @staticmethod
    def _read(line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"line {number} is a JSON {type(value).__name__}; write one object a line")
        return value


def open_source(config: SourceConfig, where: str, seed: int, needed: int, scenario: type[BaseModel]) -> Source:
    """Open a source and check that it can give `needed` rows; the rows stay on disk.

    Raises JobError naming the job's key `where` for a missing file, column or row, and for every name that the task's
    Scenario does not have: pydantic would drop it, and each row would be made without that data.
    """
    rows = load_rows(config, where)
    missing = sorted(set(config.fields.values()) - set(rows.column_names))
    if missing:
        has, like = ", ".join(rows.column_names), nearest(missing[0], rows.column_names)
        raise JobError(f"{where}.fields: no column {', '.join(missing)} in {config.path} (has: {has}){like}")
    problems = list(find_unknown(config, where, rows.column_names, scenario))
    if problems:
        raise JobError("\n".join(problems))
    if len(rows) < needed:
        raise JobError(f"{where}: {config.path} has {len(rows)} rows, the task's count is {needed}; lower the count")
    order = None
    if config.shuffle:
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
    return Source(config, rows, order)


def find_unknown(config: SourceConfig, where: str, columns: Iterable[str], scenario: type[BaseModel]) -> Iterator[str]:
    """A line for each name that would be dropped in silence, and for each field that no row could fill."""
    if any(one.info.mode != "after" for one in scenario.__pydantic_decorators__.model_validators.values()):
        return  # it reads rows of a form of its own
    takes = field_names(scenario)
    known = [name for names in takes.values() for name in names]
    mapped = set(config.fields or columns) | set(config.constants)
    lacking = {field: names for field, names in takes.items() if not mapped & set(names)}
    if scenario.model_config.get("extra") != "allow":
        for key, given in (("fields", list(config.fields)), ("constants", list(config.constants))):
            for name in given:
                if name not in known:
                    yield f"{where}.{key}: Scenario has no field {name!r} (has: {', '.join(known)}){_hint(name, known)}"
        if not config.fields:
            yield from _find_dropped(config, where, columns, scenario, lacking)
    for field, names in lacking.items():
        if scenario.model_fields[field].is_required():
            has = ", ".join(columns)
            yield f"{where}: nothing fills Scenario.{names[0]} ({config.path} has: {has}); add it to `fields`"


def _find_dropped(
    config: SourceConfig, where: str, columns: Iterable[str], scenario: type[BaseModel], lacking: dict[str, list[str]]
) -> Iterator[str]:
    """Columns that go to no field of their own name, where that is an error or looks like a slip of the pen."""
    known = {name for names in field_names(scenario).values() for name in names}
    free = [names[0] for field, names in lacking.items() if not scenario.model_fields[field].is_required()]
    for name in columns:
        like = nearest(name, free)
        if name not in known and (like or scenario.model_config.get("extra") == "forbid"):
            told = f"{where}: Scenario has no field for the column {name!r} of {config.path}{like}"
            yield f"{told}; name the columns to take in `fields`"


def _hint(name: str, known: list[str]) -> str:
    if name == "level":
        return "; a row's level is drawn by the weights in `levels`, not taken from the data"
    return nearest(name, known)


def field_names(model: type[BaseModel]) -> dict[str, list[str]]:
    """By field the names under which its value may come: its alias, and its own where the model takes that too."""
    config, found = model.model_config, dict[str, list[str]]()
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    for name, field in model.model_fields.items():
        alias = field.validation_alias or field.alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        firsts = [str(one.path[0]) if isinstance(one, AliasPath) else one for one in choices if one is not None]
        found[name] = list(dict.fromkeys([*firsts, *([name] if by_name or not firsts else [])]))
    return found


def digest_rows(config: TableConfig, rows: Rows) -> str:
    """A hash of a table: of a file's bytes, or the fingerprint that `datasets` gives a dataset of the hub."""
    path = Path(config.path)
    if path.is_dir():  # `datasets` gives one name to a directory, whatever becomes of its files
        parts = sorted(part for part in path.rglob("*") if part.is_file())
        return hashlib.sha256(b"".join(part.name.encode() + _digest_file(part) for part in parts)).hexdigest()
    if not path.is_file():
        return str(getattr(rows, "_fingerprint", ""))
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _digest_file(path: Path) -> bytes:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def load_rows(config: TableConfig, where: str) -> Rows:
    """A table of the user's; its rows stay on disk. Raises JobError naming the job's key `where`."""
    path = Path(config.path)
    kind = config.format or LOADERS.get(path.suffix, "datasets")
    if kind != "datasets" and not path.is_file():
        raise JobError(f"{where}.path: {path}: no such file")
    if kind == "datasets" and path.is_file():
        raise JobError(f"{where}.path: {path}: not a kind of file that is known here (has: parquet, jsonl); set format")
    if kind == "datasets" and path.is_dir() and (wild := re.search(r"[\[\]*?{}]", str(path.resolve()))):
        told = f"{path.resolve()} has a {wild[0]!r}, which `datasets` takes for a wildcard"
        raise JobError(f"{where}.path: {told}; choose a path without any of [ ] * ? {{ }}")
    try:
        return JsonLines(path) if kind == "jsonl" else _load_dataset(config, kind)
    except Exception as error:  # datasets raises many types for data that is not what it should be
        while isinstance(error.__cause__, Exception):
            error = error.__cause__
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise JobError(f"{where}.path: {config.path} cannot be loaded: {reason}") from None


def _load_dataset(config: TableConfig, kind: str) -> Any:
    """A table of `datasets`, memory-mapped."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is told once, by us
    if kind == "datasets":
        # the cached copy of a local directory would be kept when its files change
        mode = "force_redownload" if Path(config.path).is_dir() else None
        return datasets.load_dataset(config.path, config.config, split=config.split, download_mode=mode)
    return datasets.load_dataset(kind, data_files=escape(config.path), split="train")
