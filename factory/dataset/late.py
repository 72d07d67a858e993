"""Late rows: a shard that is written before it is known which of its accepted rows those of other shards turn down.

Where several machines make one dataset, a shard is written as if all its accepted rows stayed, and beside it stands
what each of them becomes if it does not: its row of the config `rejected`.

    data/train-00007.parquet      a b   d      rejected/train-00007.parquet     c     e
    late/train-00007.parquet      a b   d      as rejected rows; its schema: where each stands, its bytes

Who knows all rows takes some away, and the files are, byte for byte, those that one machine would have written: whole
rows are copied, none is made again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from factory.dataset.entries import ShardEntry
from factory.dataset.layouts import Layout, layouts
from factory.dataset.shards import ShardFile, row_sizes, shard_path, told_as_damage, write_rows, write_table
from factory.errors import DatasetError
from factory.records import Form, Outcome, Pair, Record, Rejection
from factory.signals import SignalSpec

LATE: Final = "late"  # the folder
KEY: Final = "factory.late"  # in the file's schema
Turned = Mapping[str, tuple[str, str, tuple[str, ...] | None]]  # by id: stage, reason, findings (None: its own)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of a shard stand in it, and what each takes in its config's file."""

    accepted: list[int]
    rejected: list[int]
    sizes: dict[str, list[int]]  # by config
    late_sizes: list[int]
    forms: dict[str, Form]  # of the answers of each task


def write_late(
    out: Path,
    shard: int,
    outcomes: Sequence[Outcome],
    pairs: Sequence[Pair],
    turned: Sequence[Rejection],
    signals: SignalSpec,
) -> ShardFile:
    """Write what each accepted row of a shard becomes if it is turned down, for every reason that it may be."""
    configs = layouts(signals)
    records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
    others = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
    rows: dict[str, Any] = dict.fromkeys(configs, records) | {"rejected": others, "preferences": pairs}
    places = Places(
        accepted=[record.prompt.position for record in records],
        rejected=[other.prompt.position for other in others],
        sizes={name: row_sizes(layout, rows[name]) for name, layout in configs.items()},
        late_sizes=row_sizes(configs["rejected"], turned),
        forms={record.prompt.task: record.prompt.form for record in records},
    )
    told = {KEY: json.dumps(asdict(places))}
    return write_rows(out, shard_path(LATE, shard), configs["rejected"], turned, told)


def read_forms(source: Path, shard: int) -> dict[str, Form]:
    """The forms of the answers of a shard's tasks. Raises DatasetError."""
    return _read_places(source, shard).forms


def without_late(entry: ShardEntry) -> ShardEntry:
    """A shard's entry without its late rows: all its accepted rows stay."""
    return replace(entry, files=tuple(file for file in entry.files if not is_late(file)))


def is_late(file: ShardFile) -> bool:
    return file.path.startswith(f"{LATE}/")


def turn_down(source: Path, entry: ShardEntry, turned: Turned, signals: SignalSpec, target: Path) -> ShardEntry:
    """Write a shard's files to `target` without some accepted rows, which become rejected ones; the entry of that.

    Raises DatasetError where the shard at `source` is not whole.
    """
    configs, shard = layouts(signals), entry.shard
    places = _read_places(source, shard)
    with told_as_damage(source / shard_path(LATE, shard)):
        late = pq.read_table(source / shard_path(LATE, shard))
    data = _read(source, configs["default"], shard, len(places.accepted))
    ids = data.column("id").to_pylist()
    stays = [number for number, name in enumerate(ids) if name not in turned]
    files: list[ShardFile] = []
    for layout in configs.values():
        name, sizes = shard_path(layout.folder, shard), places.sizes[layout.config]
        if layout.config == "rejected":
            table, sizes = _join(
                source, layout, shard, late, places, turned, dict(zip(ids, places.accepted, strict=True))
            )
        elif layout.config == "preferences":
            table = _read(source, layout, shard, len(sizes))
            kept = [n for n, one in enumerate(table.column("chosen_id").to_pylist()) if one not in turned]
            table, sizes = table.take(_numbers(kept)), [sizes[n] for n in kept]
        else:
            table = data if layout.config == "default" else _read(source, layout, shard, len(sizes))
            table, sizes = table.take(_numbers(stays)), [sizes[n] for n in stays]
        files.append(write_table(target, name, layout, table, sizes))
    found = data.filter(pc.is_in(data.column("id"), pa.array(list(turned), pa.string())))
    cells = [
        f"{task}/{level}" for task, level in zip(*(found.column(n).to_pylist() for n in ("task", "level")), strict=True)
    ]
    return _count(entry, Counter(cells), Counter(f"{stage}/{reason}" for stage, reason, _ in turned.values()), files)


def _count(entry: ShardEntry, cells: Counter[str], reasons: Counter[str], files: Sequence[ShardFile]) -> ShardEntry:
    rows = cells.total()
    assert rows == reasons.total()
    return replace(
        entry,
        accepted=entry.accepted - rows,
        rejected=entry.rejected + rows,
        cells={name: [a - cells[name], r + cells[name], e] for name, (a, r, e) in entry.cells.items()},
        reasons=dict(sorted((Counter(entry.reasons) + reasons).items())),
        files=tuple(files),
    )


def _join(
    source: Path, layout: Layout, shard: int, late: Any, places: Places, turned: Turned, place_of: Mapping[str, int]
) -> tuple[Any, list[int]]:
    """The rejected rows of a shard and those that are turned down now, in their places; and what each takes."""
    rejected = _read(source, layout, shard, len(places.rejected))
    chosen = list(_choose(late, turned))
    rows = late.take(_numbers(number for number, _ in chosen))
    names = rows.column("id").to_pylist()
    told = [turned[name] for name in names]
    findings = rows.column("findings").to_pylist()
    values = {
        "stage": [stage for stage, *_ in told],
        "reason": [reason for _, reason, _ in told],
        "findings": [own if new is None else list(new) for own, (*_, new) in zip(findings, told, strict=True)],
    }
    for name, value in values.items():
        number = layout.schema.get_field_index(name)
        rows = rows.set_column(number, name, pa.array(value, layout.schema.field(number).type))
    whole = pa.concat_tables([rejected.cast(layout.schema), rows.cast(layout.schema)])
    at = [*places.rejected, *(place_of[name] for name in names)]
    sizes = [*places.sizes["rejected"], *(places.late_sizes[number] for number, _ in chosen)]
    order = sorted(range(len(at)), key=at.__getitem__)
    return whole.take(_numbers(order)), [sizes[number] for number in order]


def _numbers(rows: Iterable[int]) -> Any:
    # of none, pyarrow would not know the type
    return pa.array(rows, pa.int64())


def _choose(late: Any, turned: Turned) -> Iterator[tuple[int, str]]:
    """The late row of each row that is turned down: the one for its stage."""
    for number, (name, stage) in enumerate(zip(*(late.column(n).to_pylist() for n in ("id", "stage")), strict=True)):
        if name in turned and turned[name][0] == stage:
            yield number, name


def _read_places(source: Path, shard: int) -> Places:
    path = source / shard_path(LATE, shard)
    with told_as_damage(path):
        schema = pq.read_schema(path)
    try:
        return Places(**json.loads(schema.metadata[KEY.encode()]))
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: damaged: does not tell where its rows stand ({error})") from None


def _read(source: Path, layout: Layout, shard: int, rows: int) -> Any:
    path = source / shard_path(layout.folder, shard)
    with told_as_damage(path):
        table = pq.read_table(path, schema=layout.schema)
    if table.num_rows != rows:
        raise DatasetError(f"{path}: {table.num_rows} rows, expected {rows}; run `factory verify {source}`")
    return table
