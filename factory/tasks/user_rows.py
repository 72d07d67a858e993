"""Rows of the user's: a file, several of them, a dataset of `datasets` or one of ours, as one list of rows.

What `path` names is decided here, and refused where it could mean two things; the files themselves are read by
`factory.tasks.tables`.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from factory.dataset.ledger import LEDGER, read_ledger, require_no_copy
from factory.dataset.manifest import MANIFEST, PLAIN, find_wild
from factory.dataset.shards import sha256_digest
from factory.errors import JobError, nearest, one_line, root_cause
from factory.job.data import TableConfig
from factory.job.paths import named_files
from factory.tasks.tables import BadRow, Loaded, Table, kind_of, known_endings, load_dataset, open_parquet, open_table

OTHER_SPLIT = re.compile(r"(^|[^a-z])(tests?|valid|validation|val|dev|eval)([^a-z]|$)", re.IGNORECASE)


TOLD = 3  # bad rows in a message


class Rows:
    """All rows of some tables, one table after the other, each by its place, counted from 0.

    `digest` is a hash of the data. With `id_column` a row is called by the value that stands there.
    """

    def __init__(self, path: str, tables: Mapping[str, Table], digest: str, id_column: str | None = None) -> None:
        self.path, self.digest, self.id_column = path, digest, id_column
        self.names, self.tables = list(tables), list(tables.values())
        self.ends = list(accumulate(len(table) for table in self.tables))
        self.column_names = list(dict.fromkeys(name for table in self.tables for name in table.column_names))
        self.left_out: list[str] = []  # files of a folder that are of no kind that is known here

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, place: int, /) -> Mapping[str, Any]:
        """One row. Raises BadRow."""
        table, within = self._find(place)
        return self.tables[table][within]

    def _find(self, place: int) -> tuple[int, int]:
        table = bisect_right(self.ends, place)
        return table, place - (self.ends[table - 1] if table else 0)

    def where(self, place: int) -> str:
        """The file of a row and its number there, for people: `mail/march.csv line 17`."""
        table, within = self._find(place)
        path = self.path if len(self.tables) == 1 else f"{self.path}: {self.names[table]}"
        return f"{path} {self.tables[table].unit} {self.tables[table].number(within)}"

    def mark(self, place: int) -> str:
        """What a row is called in the dataset: its id, or its number, with the file's name where there are several."""
        if self.id_column is not None:
            try:
                value = pick(self[place], self.id_column)
            except BadRow:
                value = None
            if value is not None:
                return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        table, within = self._find(place)
        number = str(self.tables[table].number(within))
        return number if len(self.tables) == 1 else f"{self.names[table]}:{number}"

    def faults(self) -> tuple[int, str]:
        """How many rows cannot be read, and the first of them."""
        bad = [(name, table) for name, table in zip(self.names, self.tables, strict=True) if table.faulty]
        prefix = f"{bad[0][0]} " if bad and len(self.tables) > 1 else ""
        return sum(table.faulty for _, table in bad), f"{prefix}{bad[0][1].fault}" if bad else ""

    def describe(self) -> str:
        """How much there is, for people."""
        files = f" of {len(self.tables)} files" if len(self.tables) > 1 else ""
        left_out = f"; not read, of no kind known here: {_name_some(self.left_out)}" if self.left_out else ""
        return f"{len(self):,} rows{files} in {self.path}{left_out}"


def pick(row: Mapping[str, Any], path: str) -> Any:
    """What a row holds under a column, or under a dotted path into one: `Body.text`, `messages.0.content`.

    A text on the way that is JSON is read as such, as `answer` in a dataset of ours. None where there is nothing.
    """
    head = column_of(path, row)
    if head is None:
        return None
    value = row[head]
    for key in path[len(head) + 1 :].split(".") if head != path else ():
        if isinstance(value, str):
            value = _read_json(value)
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def column_of(path: str, columns: Iterable[str]) -> str | None:
    """The column that a path begins with; a column's own name may have dots, so the longest counts."""
    known, parts = set(columns), path.split(".")
    heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((head for head in heads if head in known), None)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def load_rows(
    config: TableConfig,
    where: str,
    fields: Sequence[str] | None = None,
    own: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> Rows:
    """The rows that a table of a job names; they stay on the disk. Raises JobError naming the job's key `where`.

    `fields` are the columns, or paths into them, that `where.fields` names: all where it is None. `own` are those that
    other keys of `where` name, `only` all that may be of use, where that is known.
    """
    needed = None if fields is None else [*fields, *own]
    try:
        rows = _load(config, where, needed if only is None else [*only, *own])
    except JobError:
        raise
    except Exception as error:  # datasets raises many types for data that is not what it should be
        told = one_line(root_cause(error), 400)
        raise JobError(f"{where}.path: {config.path} cannot be loaded: {told}") from None
    for key, paths in ((f"{where}.fields", fields or ()), (where, own)):
        missing = sorted({path for path in paths if column_of(path, rows.column_names) is None})
        if missing and len(rows):
            has, like = ", ".join(rows.column_names), nearest(missing[0], rows.column_names)
            raise JobError(f"{key}: no column {', '.join(missing)} in {config.path} (has: {has}){like}")
    _require_readable(config, where, rows)
    _require_found(where, rows, [*(fields or ()), *own])
    return rows


def require_sound(config: TableConfig, where: str, bad: Iterable[str], rows: int) -> None:
    """Raise JobError where a job stops at `bad` rows and there is one among those that it takes."""
    if config.on_bad_row == "skip":
        return
    first: list[str] = []
    count = 0
    for told in bad:
        count += 1
        first += [told] if count <= TOLD else []
    if count:
        more = f" and {count - TOLD:,} more" if count > TOLD else ""
        raise JobError(
            f"{where}: {count:,} of {rows:,} rows cannot be used: {'; '.join(first)}{more}; "
            f'mend them, or have them rejected one by one with on_bad_row = "skip"'
        )


def _require_readable(config: TableConfig, where: str, rows: Rows) -> None:
    faulty, first = rows.faults()
    if faulty and (config.on_bad_row == "stop" or faulty == len(rows)):
        more = f" ({faulty:,} of {len(rows):,} rows cannot be read)" if faulty > 1 else ""
        step = 'mend it, or pass over such rows with on_bad_row = "skip"' if faulty < len(rows) else "mend it"
        raise JobError(f"{where}.path: {config.path} cannot be loaded: {first}{more}; {step}")


def _require_found(where: str, rows: Rows, paths: Iterable[str]) -> None:
    """A path into a column is no column's name: only the rows can say whether there is anything at it."""
    for path in paths:
        if path in rows.column_names or not len(rows):
            continue
        if not any(_holds(rows, place, path) for place in range(len(rows))):
            first = next((row for row in map(lambda place: _try(rows, place), range(len(rows))) if row), {})
            head = column_of(path, rows.column_names) or ""
            inside = pick(first, head)
            inside = _read_json(inside) if isinstance(inside, str) else inside
            has = ", ".join(map(str, inside)) if isinstance(inside, Mapping) else type(inside).__name__
            raise JobError(f"{where}: no row of {rows.path} has anything at {path} ({head} holds: {has})")


def _try(rows: Rows, place: int) -> Mapping[str, Any]:
    try:
        return rows[place]
    except BadRow:
        return {}


def _holds(rows: Rows, place: int, path: str) -> bool:
    return pick(_try(rows, place), path) is not None


def _load(config: TableConfig, where: str, paths: Sequence[str] | None) -> Rows:
    path = Path(config.path)
    if config.format is None and (path / MANIFEST).is_file():
        require_no_copy(path)
    if (path / LEDGER).is_file() and (path / MANIFEST).is_file():
        return _load_own(config, where, paths)
    if config.format == "datasets" or _asks_for_datasets(config):
        return _load_dataset(config, where)
    files = named_files(config.path)
    if not files:
        raise _refuse_unknown(config, where)
    kinds = {name: config.format or kind_of(file) for name, file in files.items()}
    left_out = [name for name, kind in kinds.items() if kind is None]
    if left_out and (not path.is_dir() or len(left_out) == len(files)):
        told = f"{_name_some(left_out)}: not a kind of file that is known here (has: {known_endings()}); set format"
        raise JobError(f"{where}.path: {told if len(files) > 1 else str(path) + told.removeprefix(left_out[0])}")
    files = {name: file for name, file in files.items() if kinds[name]}
    _require_one_split(config, where, files)
    tables = {name: _open(name, file, str(kinds[name]), len(files) > 1, paths) for name, file in files.items()}
    digests = {name: sha256_digest(file) for name, file in files.items()}
    whole = next(iter(digests.values())) if len(digests) == 1 else _digest(digests)
    rows = Rows(config.path, tables, whole, config.id)
    rows.left_out = left_out
    return rows


def _open(name: str, file: Path, kind: str, is_one_of_many: bool, paths: Sequence[str] | None) -> Table:
    """One file of a source; whatever is wrong with it is told with its name, where there are others beside it."""
    try:
        return open_table(file, kind, lambda columns: _heads(columns, paths))
    except Exception as error:  # those of `datasets`, see `load_rows`
        if not is_one_of_many:
            raise
        raise ValueError(f"{name}: {one_line(root_cause(error), 400)}") from None


def _heads(columns: Sequence[str], paths: Sequence[str] | None) -> list[str]:
    """The columns of a file that paths lead into; all where it is None."""
    return list(columns) if paths is None else [name for name in columns if name in _all_heads(paths, columns)]


def _all_heads(paths: Sequence[str], columns: Sequence[str]) -> set[str | None]:
    return {column_of(path, columns) for path in paths}


def _name_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _digest(parts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _asks_for_datasets(config: TableConfig) -> bool:
    """A split or a config that is named is for `datasets`, where the path is no file."""
    named = "split" in config.model_fields_set or config.config is not None
    return config.format is None and named and not Path(config.path).is_file()


def _refuse_unknown(config: TableConfig, where: str) -> JobError:
    """Why there is no file of that name. A dataset of the hub is asked for by its format: a slip of the pen is none."""
    path = Path(config.path)
    if path.is_dir():
        return JobError(f"{where}.path: {path}: holds no file (known here: {known_endings()})")
    if any(character in config.path for character in "*?["):
        return JobError(f"{where}.path: {path}: no file is called so")
    if config.format is not None or kind_of(path) is not None:
        return JobError(f"{where}.path: {path}: no such file")
    beside = [str(path.parent / each.name) for each in path.parent.iterdir()] if path.parent.is_dir() else []
    like = nearest(str(path), beside)
    return JobError(f'{where}.path: {path}: no such file or folder{like}; of the hub it needs format = "datasets"')


def _load_dataset(config: TableConfig, where: str) -> Rows:
    path = Path(config.path)
    if path.is_file():
        raise JobError(
            f'{where}.format: {path} is a file, and "datasets" takes folders and names (files: {known_endings()})'
        )
    if path.is_dir() and (wild := find_wild(str(path.resolve()))):
        told = f"{path.resolve()} has {wild[0]}, which `datasets` takes for {wild[1]}"
        raise JobError(f"{where}.path: {told}; {PLAIN}")
    # the cached copy of a local directory would be kept when its files change
    mode = "force_redownload" if path.is_dir() else None
    rows = load_dataset(config.path, config.config, split=config.split, download_mode=mode)
    # `datasets` gives one name to a directory, whatever becomes of its files
    parts = named_files(config.path) if path.is_dir() else {}
    digest = _digest({name: sha256_digest(file) for name, file in parts.items()})
    whole = digest if parts else str(getattr(rows, "_fingerprint", ""))
    return Rows(config.path, {path.name: Loaded(rows, list(rows.column_names))}, whole, config.id)


def _require_one_split(config: TableConfig, where: str, files: Iterable[str]) -> None:
    """A folder with a test split in it must not become training data because all of its files were read."""
    if not Path(config.path).is_dir():
        return
    splits = [name for name in files if OTHER_SPLIT.search(name.rsplit(".", 1)[0])]
    if splits:
        raise JobError(
            f"{where}.path: {config.path} has files that look like another split: {_name_some(splits)}; say which you "
            f'mean: split = "train", or a pattern such as {config.path}/train*'
        )


def _load_own(config: TableConfig, where: str, paths: Sequence[str] | None) -> Rows:
    """The accepted rows of a dataset of ours, whole and as its ledger says they are."""
    folder = Path(config.path)
    if config.config is not None or "split" in config.model_fields_set or config.format is not None:
        raise JobError(
            f"{where}: {folder} is a dataset of the factory, its accepted rows are read; no config, split or format"
        )
    ledger = read_ledger(folder)
    if not ledger.totals.complete:
        raise JobError(f"{where}.path: {folder} is {ledger.totals.describe_rest()}; finish it first")
    if not ledger.totals.accepted:
        raise JobError(f"{where}.path: {folder} has 0 rows: none was accepted (`factory status {folder}` says why)")
    if paths is None:
        raise JobError(
            f'{where}.fields: {folder} is a dataset of the factory; say what is taken: {{ text = "answer.text" }}'
        )
    id_column = config.id or "id"
    files = [
        file for _, entry in sorted(ledger.entries.items()) for file in entry.files if file.path.startswith("data/")
    ]
    for file in files:
        if not (folder / file.path).is_file() or not file.matches(folder / file.path):
            raise JobError(f"{where}.path: {folder / file.path} is not what was written; `factory verify {folder}`")
    # in shards of their own, for `datasets` makes one table of files only where it converts all of their columns
    tables = {
        file.path: open_parquet(folder / file.path, lambda columns: _heads(columns, [*paths, id_column]))
        for file in files
    }
    return Rows(config.path, tables, _digest({file.path: file.digest for file in files}), id_column)
