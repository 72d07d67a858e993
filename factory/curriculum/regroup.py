"""Regroup: rows of many Parquet files copied into others, in another order, in little memory.

An order by difficulty takes its next row from anywhere. So each source file is read once, in its own order, its rows
are spilled to a file for each row group to come, and every row group is then sorted and written by itself:

    sources          shard 0: a b c   shard 1: d e f           read once each, in order
    moves            warm-up/train: e a d      hard/train: f b c
    spill files      0: a d e (places 1 2 0)   1: b c f        as they were met, each with its place in the group
    row groups       e a d                     f b c           sorted by place, with labels

Memory holds one number or two of each row, SPILL_BYTES of rows on their way and one row group.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.dataset.columns import COMPLETION, IDS, MESSAGE, Column, storage_of
from factory.dataset.layouts import Layout
from factory.dataset.shards import (
    ROW_GROUP_BYTES,
    ShardFile,
    file_digest,
    read_batches,
    sync_directory,
    told_as_damage,
)
from factory.errors import DatasetError
from factory.signals import Array, SignalSpec

FILE_BYTES: Final = 20 * ROW_GROUP_BYTES
SPILL_BYTES: Final = 32 * 1024 * 1024
Types = dict[str, pa.DataType]
# copied as they are, so that a stage trains a student by itself; the signals stay where they are, at `shard` and `row`
STAGE_COPIED: Final[Types] = {
    "id": pa.string(),
    "prompt_id": pa.string(),
    "task": pa.string(),
    "level": pa.string(),
    "prompt": pa.list_(MESSAGE),
    "completion": pa.list_(COMPLETION),
    "reasoning": pa.string(),
    "answer": pa.string(),
    "prompt_token_ids": IDS,
    "completion_token_ids": IDS,
    "answer_start": pa.int32(),
    "repaired": pa.bool_(),
    "pass_rate": pa.float32(),
    "confidence": pa.float32(),
}
STAGE_LABELS: Final[Types] = {
    "difficulty": pa.float32(),
    "value": pa.float32(),
    "tokens": pa.int32(),
    "stage": pa.int32(),
    "position": pa.int32(),
    "hand_off": pa.bool_(),
    "hand_off_reason": pa.string(),
    "shard": pa.int32(),
    "row": pa.int32(),
    "index": pa.int64(),
}
SOMETIMES: Final = ("tools", "images")  # copied where there are any
PROMPT_COPIED: Final = ("prompt_id", "task", "level", "prompt", "repaired")
PROMPT_COLUMNS: Final[Types] = {
    "id": pa.string(),
    "task": pa.string(),
    "level": pa.string(),
    "prompt": pa.list_(MESSAGE),
    "hand_off": pa.bool_(),
    "reason": pa.string(),
    "pass_rate": pa.float32(),
    "confidence": pa.float32(),
    "split": pa.string(),
}


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """The D rows of one split of one config, in order: which file and row each comes from, and what is added to it.

    In `labels_D`, a NaN of a float column is a null.
    """

    config: str
    split: str
    # Index into the list of source files, and the number of the row in that file.
    source_D: Array
    row_D: Array
    # About what each takes: row groups and files are cut by it, so it must follow from the rows alone.
    bytes_D: Array
    # By column name, [D] each.
    labels_D: dict[str, Array]

    @property
    def of_prompts(self) -> bool:
        return self.config == "hand-off"

    def layout(self, found: Types) -> Layout:
        """What is written, with the types `found` in the sources of what is copied."""
        types = PROMPT_COLUMNS if self.of_prompts else STAGE_COPIED | STAGE_LABELS
        columns = tuple(Column(name, kind, pa.array) for name, kind in (types | found).items())
        return Layout(self.config, f"curriculum/{self.config}", columns, SignalSpec())


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """A row group to write: rows `first` to `last` of a move, in the move's file number `part`."""

    move: Move
    part: int
    first: int
    last: int


def regroup(
    sources: Sequence[Path], moves: Sequence[Move], folder: Path, renamed: Mapping[str, str] = MappingProxyType({})
) -> list[ShardFile]:
    """Write the files of all moves (of one kind) under `folder`, and return them; a move without rows has none.

    `renamed` says which column of the sources a copied one is taken from, where it is called otherwise there.

    The bytes depend on rows and order alone. Raises DatasetError for a source that cannot be read, OSError for a disk
    that refuses.
    """
    moves = [move for move in moves if len(move.row_D)]
    groups = [group for move in moves for group in _cut_groups(move)]
    if not groups:
        return []
    copied = PROMPT_COPIED if moves[0].of_prompts else tuple(STAGE_COPIED)
    found = _find_types(sources[0], moves[0].of_prompts)
    spill = folder / ".spill"
    spill.mkdir(parents=True)
    _scatter(sources, {name: renamed.get(name, name) for name in dict.fromkeys([*copied, *found])}, groups, spill)
    files = [_write_file(folder, spill, numbered, found) for numbered in _by_file(groups)]
    # empty by now, or a spilled row was never written: then this raises
    spill.rmdir()
    return files


def _find_types(source: Path, of_prompts: bool) -> Types:
    """The types of messages, which follow from what a job shows and calls, and columns that only some jobs have."""
    with told_as_damage(source):
        schema = pq.read_schema(source)
    wanted = (*(("prompt",) if of_prompts else ("prompt", "completion")), *SOMETIMES)
    return {name: schema.field(name).type for name in wanted if name in schema.names}


def _cut_groups(move: Move) -> Iterator[_Group]:
    # a group begins with the first row that starts in a new stretch of ROW_GROUP_BYTES
    starts = np.cumsum(move.bytes_D) - move.bytes_D
    firsts = np.flatnonzero(np.diff(starts // ROW_GROUP_BYTES, prepend=-1))
    for first, last in zip(firsts.tolist(), [*firsts[1:].tolist(), len(starts)], strict=True):
        yield _Group(move, int(starts[first] // FILE_BYTES), first, last)


def _by_file(groups: Sequence[_Group]) -> Iterator[list[tuple[int, _Group]]]:
    """Groups with their numbers, those of one file together."""
    held: list[tuple[int, _Group]] = []
    for number, group in enumerate(groups):
        if held and (held[-1][1].move, held[-1][1].part) != (group.move, group.part):
            yield held
            held = []
        held.append((number, group))
    yield held


def _scatter(sources: Sequence[Path], columns: dict[str, str], groups: Sequence[_Group], spill: Path) -> None:
    """Read every source once and append each wanted row to the spill file of its group."""
    source = np.concatenate([g.move.source_D[g.first : g.last] for g in groups])
    row = np.concatenate([g.move.row_D[g.first : g.last] for g in groups])
    sizes = [g.last - g.first for g in groups]
    group, place = np.repeat(np.arange(len(groups)), sizes), np.concatenate([np.arange(size) for size in sizes])
    # one entry for each wanted row, in the order in which the sources hold them; a row may be wanted twice
    by_source = np.lexsort((row, source))
    ends = np.searchsorted(source[by_source], np.arange(len(sources) + 1))
    held: list[tuple[Any, Array]] = []
    size = 0
    for number, path in enumerate(sources):
        mine = by_source[ends[number] : ends[number + 1]]
        for batch, taken in _pick(path, columns, row[mine]) if len(mine) else ():
            held.append((batch, mine[taken]))
            size += batch.nbytes
            if size >= SPILL_BYTES:
                _spill(held, group, place, spill)
                held, size = [], 0
    _spill(held, group, place, spill)


def _pick(path: Path, columns: dict[str, str], rows: Array) -> Iterator[tuple[Any, slice]]:
    """The rows of a file with the numbers `rows` (sorted, some twice), batch by batch; and which of `rows` they are."""
    start = 0
    for batch in read_batches(path, list(columns.values())):
        first, last = np.searchsorted(rows, [start, start + batch.num_rows]).tolist()
        if last > first:
            taken = batch.select(list(columns.values())).take(pa.array(rows[first:last] - start))
            yield taken.rename_columns(list(columns)), slice(first, last)
        start += batch.num_rows
    if len(rows) and rows[-1] >= start:
        raise DatasetError(f"{path}: has {start} rows, not as committed; run `factory verify`")


def _spill(held: list[tuple[Any, Array]], group: Array, place: Array, spill: Path) -> None:
    if not held:
        return
    targets = np.concatenate([taken for _, taken in held])
    # so that each group's rows lie together and are one fragment, one append
    by_group = np.argsort(group[targets], kind="stable")
    # whole first: each take from a table in chunks would copy all of it
    table = pa.Table.from_batches([batch for batch, _ in held]).combine_chunks().take(pa.array(by_group))
    table = table.append_column("place", pa.array(place[targets[by_group]]))
    sorted_groups = group[targets[by_group]]
    firsts = np.flatnonzero(np.diff(sorted_groups, prepend=-1)).tolist()
    for first, last in zip(firsts, [*firsts[1:], len(by_group)], strict=True):
        fragment = table.slice(first, last - first)
        with (
            (spill / str(sorted_groups[first])).open("ab") as handle,
            pa.ipc.new_stream(handle, fragment.schema) as out,
        ):
            out.write_table(fragment)


def _write_file(folder: Path, spill: Path, numbered: Sequence[tuple[int, _Group]], found: Types) -> ShardFile:
    _, begin = numbered[0]
    layout = begin.move.layout(found)
    name = f"{layout.folder}/{begin.move.split}-{begin.part:05d}.parquet"
    path = folder / begin.move.config / Path(name).name
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as handle:
        with pq.ParquetWriter(handle, layout.schema, **layout.writer_options()) as writer:
            for number, group in numbered:
                writer.write_table(_gather(spill / str(number), group, layout))
                (spill / str(number)).unlink()
        handle.flush()
        os.fsync(handle.fileno())
    sync_directory(path.parent)
    rows = sum(group.last - group.first for _, group in numbered)
    return ShardFile(name, rows, path.stat().st_size, file_digest(path))


def _gather(path: Path, group: _Group, layout: Layout) -> Any:
    """One row group: its spilled rows in their places, with their labels."""
    table = pa.concat_tables(_read_streams(path)).combine_chunks()
    table = table.take(pa.array(np.argsort(table.column("place").to_numpy())))
    labels = {name: values[group.first : group.last] for name, values in group.move.labels_D.items()}
    arrays = {name: table.column(name) for name in table.column_names}
    arrays |= {c.name: pa.array(labels[c.name], c.type, from_pandas=True) for c in layout.columns if c.name in labels}
    # the row that holds a prompt is any of its samples; the hand-off config is of the prompt
    if group.move.of_prompts:
        arrays |= {"id": arrays["prompt_id"], "prompt": _first_requests(table)}
    return pa.Table.from_arrays([arrays[column.name] for column in layout.columns], schema=layout.schema)


def _first_requests(table: Any) -> Any:
    """The prompts as first asked: a repaired one loses the wrong answer and what was said of it."""
    prompts, repaired = table.column("prompt"), table.column("repaired").to_pylist()
    if not any(repaired):
        return prompts
    cut = [
        prompt[:-2] if again and _holds_answer(prompt) else prompt
        for prompt, again in zip(prompts.to_pylist(), repaired, strict=True)
    ]
    return pa.array(cut, storage_of(prompts.type)).cast(prompts.type)


def _holds_answer(prompt: list[dict[str, str]]) -> bool:
    # a student's own prompt never does
    return len(prompt) > 2 and prompt[-2]["role"] == "assistant"


def _read_streams(path: Path) -> Iterator[Any]:
    """The tables of all streams that were appended to a file."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        while handle.tell() < size:
            yield pa.ipc.open_stream(handle).read_all()
