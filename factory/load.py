"""Load: a dataset's rows as arrays and tensors, aligned, for a student's trainer.

`datasets` reads the files; this module does what it cannot: flat signal columns become [T, k] arrays, hidden states are
joined by id and become bfloat16 tensors, and rows become padded batches. No row is given out before its lengths agree.
Compact logprobs are decoded.
docs/dataset-format.md tells how to read the same files without this package.
"""

import json
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np

from factory.codec import COLUMNS as PACKED_COLUMNS
from factory.codec import find_damage, unpack
from factory.curriculum.regroup import take_table
from factory.errors import DatasetError
from factory.records import Array
from factory.shards import read_batches

Tensor = Any  # a torch.Tensor: torch is imported only where a tensor is made

LOGPROB_FLOOR: Final = -1e4  # its exp() is 0 in every dtype, and 0 * (floor - x) is 0 where 0 * -inf would be NaN
IDS: Final = ("prompt_token_ids", "completion_token_ids")
TOPK: Final = ("topk_ids", "topk_logprobs")
ARRAYS: Final = (*IDS, *TOPK, "sampled_logprobs", "tail_logprobs", "entropy")
BATCH_ROWS: Final = 64
STATES_BATCH_ROWS: Final = 8  # the states of one row may take tens of MB
POINTERS: Final = ("shard", "row", "index")  # where a row of a stage stands in the default config
STAGE_LABELS: Final = (
    "id",
    "difficulty",
    "value",
    "tokens",
    "stage",
    "position",
    "hand_off",
    "hand_off_reason",
    *POINTERS,
)
AGAIN: Final = "the curriculum was made from other rows, `factory curriculum` makes it anew"


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row. P prompt tokens, T completion tokens, k kept ids, L layers, H hidden size, N = P + T - 1.

    Entry t of a signal belongs to completion token t; entry i of `hidden_states` is taken at token i of prompt and
    completion (the last sampled token was never an input). Logprobs are natural logs. A signal that the dataset does
    not have is None. Arrays are read-only views of the batch that was read: copy them to keep a few rows of many.
    """

    columns: dict[str, Any]  # every column that is no array; `row["task"]` reads it too
    prompt_token_ids: Array  # int32 [P]
    completion_token_ids: Array  # int32 [T]
    topk_ids: Array | None = None  # int32 [T, k]
    topk_logprobs: Array | None = None  # float32 [T, k], stored as float16 or compact
    sampled_logprobs: Array | None = None  # float32 [T]
    tail_logprobs: Array | None = None  # float32 [T], log of the mass outside the k ids
    entropy: Array | None = None  # float32 [T], nats
    hidden_states: Tensor | None = None  # bfloat16 [N, L, H], the row's own memory
    layers: tuple[int, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    @property
    def predicting_states(self) -> Tensor | None:
        """The hidden states that predict the completion, [T, L, H]: entry t is taken at position P - 1 + t."""
        return None if self.hidden_states is None else self.hidden_states[len(self.prompt_token_ids) - 1 :]


class Rows:
    """The rows of a dataset, in order; unless streaming, with the length and index that a torch DataLoader needs."""

    def __init__(
        self, source: str, dataset: Any, hidden: Any | None, top_k: int | None, labels: Any | None = None
    ) -> None:
        self._source, self._dataset, self._hidden, self._top_k = source, dataset, hidden, top_k
        self._labels = labels  # what a stage says of its rows, in the same order

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        place = operator.index(index)
        hidden, labels = (None if part is None else [part[place]] for part in (self._hidden, self._labels))
        return next(self._read([self._dataset[place]], hidden, labels))

    def __iter__(self) -> Iterator[Row]:
        hidden = None if self._hidden is None else self._hidden.iter(STATES_BATCH_ROWS)
        labels = None if self._labels is None else self._labels.iter(BATCH_ROWS)
        return self._read(self._dataset.iter(BATCH_ROWS), hidden, labels)

    def _read(self, tables: Iterable[Any], hidden: Iterable[Any] | None, labels: Iterable[Any] | None) -> Iterator[Row]:
        batches = _batches(self._source, tables)
        rows: Iterator[Row] = (row for batch in batches for row in _read_rows(self._source, batch, self._top_k))
        if labels is not None:
            rows = _label(self._source, rows, _batches(self._source, labels))
        return rows if hidden is None else _join(self._source, rows, _batches(self._source, hidden))


class ShardRows:
    """The rows of a local config that a streamed stage points at, in the stage's order."""

    def __init__(self, folder: Path, stage: Any) -> None:
        self._folder, self._stage = folder, stage

    def iter(self, size: int) -> Iterator[Any]:
        """Tables of `size` rows each, the last one shorter."""
        for table in self._stage.iter(size):
            shards, rows = (table.column(name).to_numpy() for name in ("shard", "row"))
            paths = [self._folder / f"train-{shard:05d}.parquet" for shard in shards.tolist()]
            yield take_table(paths, rows)


def load_rows(
    source: str | Path,
    config: str = "default",
    *,
    split: str = "train",
    streaming: bool = False,
    revision: str | None = None,
    join_hidden_states: bool = False,
    cache_dir: str | Path | None = None,
) -> Rows:
    """Open a dataset: a local directory, or `owner/name` on the Hugging Face Hub at `revision`.

    `join_hidden_states` gives each accepted row its hidden states, and so does `config="hidden_states"`: they mean
    nothing without their tokens. A stage of a curriculum (`config="stage-1"`) gives the rows of the default config that
    it points at, in its order, with its own columns beside theirs. Streaming reads the files as they are; otherwise
    `datasets` first copies them, uncompressed, into its cache (`cache_dir`). Raises DatasetError where source, config
    or split is not there; reading the rows raises it at one whose arrays do not agree.
    """
    root = Path(source)
    if not root.is_dir() and (isinstance(source, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)):
        raise DatasetError(f"{root}: no such directory; give the directory of a dataset, or a Hub id (owner/name)")
    if root.is_dir() and not (root / "README.md").is_file():
        raise DatasetError(f"{root}: no README.md, whose `configs:` say what is here; give the directory of a dataset")
    options = {"split": split, "streaming": streaming, "revision": revision, "cache_dir": cache_dir and str(cache_dir)}
    joined = join_hidden_states or config == "hidden_states"
    dataset = _open(source, "default" if config == "hidden_states" else config, {"id", *IDS}, options)
    if {"stage", *POINTERS} <= set(dataset.column_names):
        return _open_stage(source, dataset, joined, options)
    hidden = _open(source, "hidden_states", {"id", "states"}, options) if joined else None
    return Rows(str(source), dataset, hidden, _stored_top_k(root))


def _open_stage(source: str | Path, stage: Any, joined: bool, options: dict[str, Any]) -> Rows:
    """The default config's rows in a stage's order: by number, or shard by shard where they stream."""
    root, labels = Path(source), stage.select_columns(list(STAGE_LABELS))
    if options["streaming"]:
        if not root.is_dir():
            raise DatasetError(f"{source}: a stage streams from a local directory only; leave out `streaming`")
        hidden = ShardRows(root / "hidden_states", labels) if joined else None
        return Rows(str(source), ShardRows(root / "data", labels), hidden, _stored_top_k(root), labels)
    options = options | {"split": "train"}  # where the rows of every split of a stage are
    dataset = _open(source, "default", {"id", *IDS}, options)
    index = stage.data.column("index").to_numpy()
    if len(index) and index.max() >= len(dataset):
        raise DatasetError(f"{source}: a stage points at row {index.max()} of {len(dataset)}; {AGAIN}")
    rows = dataset.select(index, keep_in_memory=True)
    hidden = _open(source, "hidden_states", {"id", "states"}, options) if joined else None
    chosen = None if hidden is None else hidden.select(index, keep_in_memory=True)
    return Rows(str(source), rows, chosen, _stored_top_k(root), labels)


def _open(source: str | Path, config: str, needed: set[str], options: dict[str, Any]) -> Any:
    import datasets

    try:
        dataset = datasets.load_dataset(str(source), config, **options)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        where, cause = f"config {config!r}, split {options['split']!r}", error.__cause__ or error
        raise DatasetError(f"{source}: {where} cannot be loaded: {' '.join(str(cause).split())}") from error
    if missing := ", ".join(sorted(needed - set(dataset.column_names or ()))):
        raise DatasetError(f"{source}: config {config!r} has no column {missing}; it was not made by the factory")
    return dataset.with_format("arrow")  # the numpy and torch formats strip trailing NUL bytes off binary values


def _import_torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise DatasetError("tensors need torch, which is not installed; `pip install torch`") from error
    return torch


def _stored_top_k(root: Path) -> int | None:
    """k as the first file with rows has it in its schema metadata; a damaged row cannot mislead it."""
    batches = (batch for path in sorted(root.glob("data/*.parquet")) for batch in read_batches(path, ["id"]))
    metadata = (batch.schema.metadata or {} for batch in batches)
    top_k = json.loads(next(metadata, {}).get(b"factory", b"{}")).get("top_k")
    return int(top_k) if top_k else None


def _batches(source: str, tables: Iterable[Any]) -> Iterator[Any]:
    """The record batches of Arrow tables, as they lie: to join them would copy."""
    try:
        for table in tables:
            yield from table.to_batches()
    except (ValueError, OSError) as error:
        raise DatasetError(f"{source}: cannot be read: {' '.join(str(error).split())}; run `factory verify`") from error


def _read_rows(source: str, batch: Any, top_k: int | None) -> Iterator[Row]:
    """The rows of one record batch; numbers are views and never touched one by one."""
    present = [name for name in (*ARRAYS, *PACKED_COLUMNS) if name in batch.schema.names]
    flat = {name: _flatten(batch.column(name)) for name in present}
    tokens = np.diff(flat["completion_token_ids"][1])
    k = top_k or _find_top_k(flat, tokens)
    columns = batch.select([name for name in batch.schema.names if name not in present]).to_pylist()
    if PACKED_COLUMNS[0] in flat:
        for bad, told in find_damage(flat, tokens, k):
            raise DatasetError(f"{source}: row {columns[bad]['id']}: {told}; damaged")
        flat = _unpack(flat, k)
    cuts = {}
    for name, (values, offsets) in flat.items():
        wide = k if name in TOPK else 1
        for bad in np.flatnonzero(np.diff(offsets) != tokens * wide)[:1].tolist() if name not in IDS else ():
            told = f"{name} has {offsets[bad + 1] - offsets[bad]} values, expected {tokens[bad] * wide}"
            raise DatasetError(f"{source}: row {columns[bad]['id']}: {told} ({tokens[bad]} tokens, k = {k}); damaged")
        cuts[name] = values.reshape(-1, k) if name in TOPK else values, (offsets // wide).tolist()
    for i, texts in enumerate(columns):
        arrays: dict[str, Any] = {name: values[ends[i] : ends[i + 1]] for name, (values, ends) in cuts.items()}
        yield Row(texts, **arrays)


def _find_top_k(flat: dict[str, tuple[Array, Array]], tokens: Array) -> int:
    """k by the first row that has a token."""
    offsets = next((flat[name][1] for name in ("topk_ids", "topk_id_places") if name in flat), None)
    filled = np.flatnonzero(tokens)[:1].tolist()
    if offsets is None or not filled:
        return 1
    return max(1, int((offsets[filled[0] + 1] - offsets[filled[0]]) // tokens[filled[0]]))


def _unpack(flat: dict[str, tuple[Array, Array]], k: int) -> dict[str, tuple[Array, Array]]:
    """The columns of a batch with compact logprobs as they would be with exact ones."""
    offsets = flat["topk_id_places"][1]
    decoded = {name: (values.reshape(-1), offsets) for name, values in zip(TOPK, unpack(flat, k), strict=True)}
    return {name: flat[name] for name in flat if name not in PACKED_COLUMNS} | decoded


def _flatten(column: Any) -> tuple[Array, Array]:
    """The values and the offsets of a list column: views, but for float16, which becomes float32."""
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy()[offsets[0] : offsets[-1]]
    return values.astype(np.float32) if values.dtype == np.float16 else values, offsets - offsets[0]


def _label(source: str, rows: Iterable[Row], batches: Iterable[Any]) -> Iterator[Row]:
    """The rows with what their stage says of them."""
    for row, label in zip(rows, (label for batch in batches for label in batch.to_pylist()), strict=True):
        if row["id"] != label["id"]:
            raise DatasetError(f"{source}: stage row {label['id']} points at {row['id']}; {AGAIN}")
        yield replace(row, columns=row.columns | label)


def _join(source: str, rows: Iterable[Row], batches: Iterable[Any]) -> Iterator[Row]:
    torch = _import_torch()
    names = ("id", "layers", "shape", "dtype", "states")
    states = (value for batch in batches for value in zip(*(batch.column(name) for name in names), strict=True))
    for row, value in zip_longest(rows, states):
        ids = row and row["id"], value and value[0].as_py()
        if row is None or ids[0] != ids[1]:
            told = f"id {ids[1]} where the other config has {ids[0]}"
            raise DatasetError(f"{source}: hidden_states has {told}; both need the same ids in the same order")
        (layers, shape, dtype), blob = (label.as_py() for label in value[1:4]), value[4].as_buffer()
        count = len(row.prompt_token_ids) + len(row.completion_token_ids) - 1
        if dtype != "bfloat16" or shape[:2] != [count, len(layers)] or len(blob) != 2 * int(np.prod(shape)) + 1:
            told = f"hidden states are {dtype} {shape} in {len(blob)} bytes"
            expected = f"bfloat16 [{count}, {len(layers)}, H] in 2 bytes a value and 1 more"
            raise DatasetError(f"{source}: row {row['id']}: {told}, expected {expected}; damaged")
        # One copy: a value may begin at an odd byte, and writing to a tensor over a read-only file map is a crash.
        flat = torch.frombuffer(bytearray(blob), dtype=torch.bfloat16, count=int(np.prod(shape)))
        yield replace(row, hidden_states=flat.reshape(shape), layers=tuple(layers))


def collate(rows: Sequence[Row], pad_token_id: int, *, max_length: int | None = None) -> dict[str, Tensor]:
    """B rows as one batch of S positions, padded on the right; a row longer than `max_length` loses its end.

    - `input_ids` int64 [B, S] (padding: `pad_token_id`), `attention_mask` int64 [B, S], `completion_mask` bool [B, S]
    - `labels` int64 [B, S]: the input ids, not shifted; -100 on prompt and padding
    - `topk_ids` int64 and `topk_logprobs` float32 [B, S, k], `tail_logprobs` float32 [B, S], `topk_mask` bool [B, S],
      where a row has logprobs. Position s holds the teacher's distribution for the token after s: compare it with the
      student's logits at s. Where the mask is False: ids 0 to k-1, logprobs -1e4, tail 0 (all mass is outside the k),
      which keeps a KL finite; for the same reason no logprob is below -1e4.
    - `hidden_states` bfloat16 [B, S, L, H] (padding: 0), `hidden_mask` bool [B, S], where a row has hidden states.
      Position s holds the state taken at token s, the one that predicts the token after s.

    Raises DatasetError where rows differ in k, layers or hidden size.
    """
    torch = _import_torch()
    layers = sorted({row.layers for row in rows if row.layers})
    if len(layers) > 1:
        raise DatasetError(f"rows with hidden layers {layers[0]} and {layers[1]} in one batch; batch one kind of job")
    longest = max((len(row.prompt_token_ids) + len(row.completion_token_ids) for row in rows), default=0)
    shape = (len(rows), longest if max_length is None else min(longest, max_length))
    padding = {"input_ids": pad_token_id, "labels": -100, "topk_logprobs": LOGPROB_FLOOR}  # all else is 0 or False
    arrays: dict[str, Array] = {}
    for i, row in enumerate(rows):
        for name, first, values in _place(row, torch):
            if name not in arrays:
                dtype = np.int64 if values.dtype == np.int32 else values.dtype
                fill = np.arange(values.shape[1]) if name == "topk_ids" else padding.get(name, 0)
                arrays[name] = np.full((*shape, *values.shape[1:]), fill, dtype)
            end, wide = min(first + len(values), shape[1]), (values.shape[1:], arrays[name].shape[2:])
            if wide[0] != wide[1]:
                raise DatasetError(f"row {row['id']}: {name} is {wide[0]} a token, {wide[1]} in the rows before it")
            arrays[name][i, first:end] = values[: max(0, end - first)]
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: value.view(torch.bfloat16) if name == "hidden_states" else value for name, value in batch.items()}


def _place(row: Row, torch: Any) -> Iterator[tuple[str, int, Array]]:
    """What a row adds to a batch: name, position of the first entry, entries. This is the alignment rule as code."""
    tokens, start = np.concatenate([row.prompt_token_ids, row.completion_token_ids]), len(row.prompt_token_ids)
    completed = np.ones(len(row.completion_token_ids), np.bool_)
    yield "input_ids", 0, tokens
    yield "attention_mask", 0, np.ones(len(tokens), np.int64)
    yield "completion_mask", start, completed
    yield "labels", start, row.completion_token_ids
    if row.topk_ids is not None and row.topk_logprobs is not None and row.tail_logprobs is not None:
        yield "topk_ids", start - 1, row.topk_ids
        yield "topk_logprobs", start - 1, np.maximum(row.topk_logprobs, LOGPROB_FLOOR)
        yield "tail_logprobs", start - 1, np.maximum(row.tail_logprobs, LOGPROB_FLOOR)
        yield "topk_mask", start - 1, completed
    if row.hidden_states is not None:
        yield "hidden_states", 0, row.hidden_states.view(torch.uint16).numpy()
        yield "hidden_mask", 0, np.ones(len(row.hidden_states), np.bool_)
