"""Load: a dataset's rows as arrays and tensors, aligned, for a student's trainer.

`datasets` reads the files; this module does what it cannot: flat signal columns become [T, k] arrays, hidden states are
joined by id and become bfloat16 tensors, and rows become padded batches. No row is given out before its lengths agree.
Compact logprobs are decoded.

A batch of `collate`, for one row of P = 3 prompt and T = 2 completion tokens, padded to S = 6:

    input_ids          p0    p1    p2    c0    c1    pad
    labels            -100  -100  -100   c0    c1   -100       not shifted, as transformers' models take them
    topk_ids, ...       .     .   [0]   [1]     .     .        entry t stands at P - 1 + t, where the student's logits
    topk_mask           -     -     x     x     -     -        predict c_t; with the prompt's, from position 0 on
    hidden_states     [0]   [1]   [2]   [3]     .     .        entry n stands at n: the last token was never an input
    hidden_mask         x     x     x     x     -     -        a dot is filler: see `collate`

docs/dataset-format.md tells how to read the same files without this package.
"""

import json
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from factory.curriculum.regroup import STAGE_LABELS, take_table
from factory.dataset.columns import TOKEN_IDS
from factory.dataset.manifest import MANIFEST
from factory.dataset.rows import (
    AGAIN,
    Row,
    Tensor,
    import_torch,
    join_attention,
    join_experts,
    join_states,
    label_rows,
    read_rows,
    record_batches,
)
from factory.dataset.shards import read_batches
from factory.errors import DatasetError
from factory.signals import Array

LOGPROB_FLOOR: Final = -1e4  # its exp() is 0 in every dtype, and 0 * (floor - x) is 0 where 0 * -inf would be NaN
BATCH_ROWS: Final = 64
STATES_BATCH_ROWS: Final = 8  # the states of one row may take tens of MB
NEEDED: Final = {"hidden_states": {"id", "states"}, "experts": {"id", "expert_ids"}, "attention": {"id", "maps"}}
JOINS: Final = {
    "labels": (label_rows, BATCH_ROWS),
    "hidden_states": (join_states, STATES_BATCH_ROWS),
    "experts": (join_experts, STATES_BATCH_ROWS),
    "attention": (join_attention, STATES_BATCH_ROWS),
}  # in this order: how a config beside the rows joins them, and how many of its rows are read at a time
POINTERS: Final = ("shard", "row", "index")  # where a row of a stage stands in the default config


class Rows:
    """The rows of a dataset, in order; unless streaming, with the length and index that a torch DataLoader needs.

    `beside` are other configs with the same rows in the same order, by their names in JOINS.
    """

    def __init__(self, source: str, dataset: Any, beside: dict[str, Any], top_k: int | None) -> None:
        self._source, self._dataset, self._beside, self._top_k = source, dataset, beside, top_k

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        place = operator.index(index)
        return next(self._read([self._dataset[place]], {name: [part[place]] for name, part in self._beside.items()}))

    def __iter__(self) -> Iterator[Row]:
        beside = {name: part.iter(JOINS[name][1]) for name, part in self._beside.items()}
        return self._read(self._dataset.iter(BATCH_ROWS), beside)

    def _read(self, tables: Iterable[Any], beside: dict[str, Iterable[Any]]) -> Iterator[Row]:
        batches = record_batches(self._source, tables)
        rows: Iterator[Row] = (row for batch in batches for row in read_rows(self._source, batch, self._top_k))
        for name, (join, _) in JOINS.items():
            if name in beside:
                rows = join(self._source, rows, record_batches(self._source, beside[name]))
        return rows


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
    join_experts: bool = False,
    join_attention: bool = False,
    cache_dir: str | Path | None = None,
) -> Rows:
    """Open a dataset: a local directory, or `owner/name` on the Hugging Face Hub at `revision`.

    `join_hidden_states` gives each accepted row its hidden states, and so does `config="hidden_states"`: they mean
    nothing without their tokens. The same with `join_experts` (routing) and `join_attention` (maps). A stage of a
    curriculum (`config="stage-1"`) gives the rows of the default config that it points at, in its order, with its own
    columns beside theirs. Streaming reads the files as they are; otherwise `datasets` first copies them, uncompressed,
    into its cache (`cache_dir`). Raises DatasetError where source, config or split is not there; reading the rows
    raises it at one whose arrays do not agree.
    """
    root = Path(source)
    if not root.is_dir() and (isinstance(source, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)):
        raise DatasetError(f"{root}: no such directory; give the directory of a dataset, or a Hub id (owner/name)")
    if root.is_dir() and not (root / "README.md").is_file():
        raise DatasetError(f"{root}: no README.md, whose `configs:` say what is here; give the directory of a dataset")
    options = {"split": split, "streaming": streaming, "revision": revision, "cache_dir": cache_dir and str(cache_dir)}
    wanted = {"hidden_states": join_hidden_states, "experts": join_experts, "attention": join_attention}
    joined = [name for name, asked in wanted.items() if asked or config == name]
    # what is asked of a config beside the rows is asked with them: without its tokens a state means nothing
    dataset = _open(source, "default" if config in wanted else config, {"id", *TOKEN_IDS}, options)
    # told by its columns, as a stage may have any name
    if {"stage", *POINTERS} <= set(dataset.column_names):
        return _open_stage(source, dataset, joined, options)
    beside = {name: _open(source, name, NEEDED[name], options) for name in joined}
    return Rows(str(source), dataset, beside, _stored_top_k(source, revision))


def _open_stage(source: str | Path, stage: Any, joined: list[str], options: dict[str, Any]) -> Rows:
    """The default config's rows in a stage's order: by number, or shard by shard where they stream."""
    root, labels = Path(source), {"labels": stage.select_columns(["id", *STAGE_LABELS])}
    top_k = _stored_top_k(source, options["revision"])
    if options["streaming"]:
        if not root.is_dir():
            raise DatasetError(f"{source}: a stage streams from a local directory only; leave out `streaming`")
        beside = {name: ShardRows(root / name, labels["labels"]) for name in joined}
        return Rows(str(source), ShardRows(root / "data", labels["labels"]), labels | beside, top_k)
    options = options | {"split": "train"}  # where the rows of every split of a stage are
    dataset = _open(source, "default", {"id", *TOKEN_IDS}, options)
    # the Arrow column itself: to go through the rows would make an object a number
    index = stage.data.column("index").to_numpy()
    if len(index) and index.max() >= len(dataset):
        raise DatasetError(f"{source}: a stage points at row {index.max()} of {len(dataset)}; {AGAIN}")
    rows = dataset.select(index, keep_in_memory=True)
    opened = {name: _open(source, name, NEEDED[name], options) for name in joined}
    chosen = {name: part.select(index, keep_in_memory=True) for name, part in opened.items()}
    return Rows(str(source), rows, labels | chosen, top_k)


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


def _stored_top_k(source: str | Path, revision: str | None) -> int | None:
    """k as the schema metadata of the first file with rows has it, or the manifest of a dataset on the hub.

    A damaged row cannot mislead it. None where neither is to be had.
    """
    root = Path(source)
    if not root.is_dir():
        return _published_top_k(str(source), revision)
    batches = (batch for path in sorted(root.glob("data/*.parquet")) for batch in read_batches(path, ["id"]))
    metadata = (batch.schema.metadata or {} for batch in batches)
    top_k = json.loads(next(metadata, {}).get(b"factory", b"{}")).get("top_k")
    return int(top_k) if top_k else None


def _published_top_k(source: str, revision: str | None) -> int | None:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(source, MANIFEST, repo_type="dataset", revision=revision)
        return int(json.loads(Path(path).read_text(encoding="utf-8"))["signals"]["top_k"]) or None
    except (OSError, ValueError, KeyError, TypeError):  # the hub's own errors are of these kinds
        return None


def collate(rows: Sequence[Row], pad_token_id: int, *, max_length: int | None = None) -> dict[str, Tensor]:
    """B rows as one batch of S positions, padded on the right; a row longer than `max_length` loses its end.

    - `input_ids` int64 [B, S] (padding: `pad_token_id`), `attention_mask` int64 [B, S], `completion_mask` bool [B, S]
    - `labels` int64 [B, S]: the input ids, not shifted; -100 on prompt and padding
    - `topk_ids` int64 and `topk_logprobs` float32 [B, S, k], `tail_logprobs` float32 [B, S], `topk_mask` bool [B, S],
      where a row has logprobs. Position s holds the teacher's distribution for the token after s: compare it with the
      student's logits at s. Where the mask is False: ids 0 to k-1, logprobs -1e4, tail 0 (all mass is outside the k),
      which keeps a KL finite; for the same reason no logprob is below -1e4.
    - `topk_kept` bool [B, S, k]: which entries hold an id, where positions have fewer than k: the others (id 0, logprob
      -1e4) are to be left out of the student's mass too. `topk_weights` float32 [B, S, k], where ids were drawn: the
      share of the draws, whose mean is the teacher's probability.
    - `hidden_states` bfloat16 [B, S, L, H] (padding: 0), `hidden_mask` bool [B, S], where a row has hidden states.
      Position s holds the state taken at token s, the one that predicts the token after s.

    Raises DatasetError where rows differ in k, layers or hidden size.
    """
    torch = import_torch()
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
                # distinct ids where there is none: a student's gather of them counts no id twice
                fill = np.arange(values.shape[1]) if name == "topk_ids" else padding.get(name, 0)
                arrays[name] = np.full((*shape, *values.shape[1:]), fill, dtype)
            end, wide = min(first + len(values), shape[1]), (values.shape[1:], arrays[name].shape[2:])
            if wide[0] != wide[1]:
                raise DatasetError(f"row {row['id']}: {name} is {wide[0]} a token, {wide[1]} in the rows before it")
            # a row that is cut off loses its end, also where its entries begin after it
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
        parts = (row,) if row.prompt is None else (row.prompt, row)
        # the prompt's entries come right before the completion's: P - 1 of them, from position 0
        first = start - 1 if row.prompt is None else 0
        ids, logprobs, tail = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("topk_ids", "topk_logprobs", "tail_logprobs")
        )
        yield "topk_ids", first, np.maximum(ids, 0)
        yield "topk_logprobs", first, np.maximum(logprobs, LOGPROB_FLOOR)
        yield "tail_logprobs", first, np.maximum(tail, LOGPROB_FLOOR)
        yield "topk_kept", first, ids >= 0
        yield "topk_mask", first, ids[:, 0] >= 0
        if row.topk_draws is not None:
            draws = np.concatenate([part.topk_draws for part in parts]).astype(np.float32)
            yield "topk_weights", first, draws / np.maximum(draws.sum(1, keepdims=True), 1)
    if row.hidden_states is not None:
        positions = np.arange(len(row.hidden_states)) if row.positions is None else row.positions
        # uint16 bits: NumPy has no bfloat16, and the batch is viewed as it at the end
        spread = np.zeros((len(tokens) - 1, *row.hidden_states.shape[1:]), np.uint16)
        spread[positions] = row.hidden_states.view(torch.uint16).numpy()
        taken = np.zeros(len(tokens) - 1, np.bool_)
        taken[positions] = True
        yield "hidden_states", 0, spread
        yield "hidden_mask", 0, taken
