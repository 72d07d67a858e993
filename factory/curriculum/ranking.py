"""Ranking: the numbers of every row that a curriculum is made by, read or computed.

Of texts only ids and labels are kept, so a million rows take some hundred MB.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from factory.curriculum.config import CurriculumConfig
from factory.curriculum.splits import Links
from factory.dataset.columns import list_lengths
from factory.dataset.ledger import Ledger
from factory.dataset.shards import read_batches, read_schema, shard_path
from factory.errors import DatasetError, JobError
from factory.records import Measures, SampleStats
from factory.signals import Array

MEASURES: Final = (
    "difficulty",
    "entropy_mean",
    "entropy_max",
    "surprise",
    "confidence",
    "reasoning_tokens",
    "pass_rate",
    "agreement",
    "judge_score",
    "score",
    "attempt",
)
LABELS: Final = ("id", "task", "level", "kind", "stage", "reason")
ROLES: Final = "prompt.list.element.role"  # as Parquet calls the roles of the column `prompt` alone
COUNTS: Final = ("shard", "row", "prompt_tokens", "tokens")

Columns = dict[str, Array]


def read_columns(
    ledger: Ledger, folder: str, names: tuple[str, ...], links: Links, prompt_ids: str = "prompt_token_ids"
) -> Columns:
    """Columns of all rows of a config in the dataset's order, texts as bytes, numbers as float32, and lengths.

    Every row is also taken into `links`; its prompt's length is that of the column `prompt_ids`.
    Raises DatasetError for a column that is not there.
    """
    ids = (prompt_ids, "completion_token_ids")
    wanted = [*names, *ids, "prompt_id", "scenario"]
    parts: dict[str, list[Array]] = {name: [np.zeros(0, _dtype(name))] for name in (*names, *COUNTS)}
    for shard in sorted(ledger.entries):
        path, first = ledger.out / shard_path(folder, shard), 0
        if missing := ", ".join(sorted(set(wanted) - set(read_schema(path)))):
            raise DatasetError(f"{path}: has no column {missing}; an older version made it, run its job anew")
        conversations = read_conversations(path)
        for batch in read_batches(path, wanted):
            count = batch.num_rows
            parts["shard"].append(np.full(count, shard))
            parts["row"].append(np.arange(first, first + count))
            for name in names:
                parts[name].append(_to_array(name, batch.column(name)))
            lengths = [list_lengths(batch.column(name)) for name in ids]
            parts["prompt_tokens"].append(lengths[0])
            parts["tokens"].append(lengths[0].astype(np.int64) + lengths[1])
            texts = (batch.column(name).to_pylist() for name in ("prompt_id", "scenario"))
            earlier = conversations[first : first + count] or [[] for _ in range(count)]
            for prompt_id, scenario, turns in zip(*texts, earlier, strict=True):
                links.add(prompt_id, scenario, turns)
            first += count
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def read_conversations(path: Path) -> list[list[str]]:
    """Of each row of a file the turns before its request, from the first to each of the assistant's, as one text each.

    Empty where no row has any: then no prompt is read but for its roles.
    """
    roles = (batch.column("prompt") for batch in read_batches(path, [ROLES]))
    if all(len(prompt) < 3 for column in roles for prompt in column.to_pylist()):
        return []
    rows = (row for batch in read_batches(path, ["prompt", "repaired"]) for row in batch.to_pylist())
    return [list(_earlier(row["prompt"], row["repaired"])) for row in rows]


def _earlier(messages: list[dict[str, Any]], repaired: bool) -> Iterator[str]:
    told = ""
    # the last turn is the request; behind it a repaired prompt has two turns more
    for message in messages[: -3 if repaired else -1]:
        if message["role"] == "system":
            continue
        told += f"{message['role']}: {message['content']}\n"
        if message["role"] == "assistant":
            yield told


def _dtype(name: str) -> Any:
    return np.bytes_ if name in LABELS else np.int64 if name in COUNTS else np.float32


def _to_array(name: str, column: Any) -> Array:
    if name in LABELS:
        return np.array([text.encode("utf-8", "surrogatepass") for text in column.to_pylist()], np.bytes_)
    numbers: Array = column.to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers


def value_rows(ledger: Ledger, accepted: Columns, config: CurriculumConfig, where: str) -> Array:
    """What the stages are made by, float32 with NaN where a row has none."""
    if config.formula is not None:
        values = _evaluate(config.formula, accepted, where)
    elif config.by == "level":
        values = _levels(ledger, accepted)
    else:
        values = accepted[config.by].astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _levels(ledger: Ledger, accepted: Columns) -> Array:
    """The place of each row's level in its task's own order, as the dataset keeps it in templates/."""
    places: dict[bytes, dict[bytes, int]] = {}
    for name in np.unique(accepted["task"]).tolist():
        path = ledger.out / "templates" / name.decode() / "task.toml"
        try:
            levels = tomllib.loads(path.read_text(encoding="utf-8"))["levels"]
            places[name] = {level.encode(): place for place, level in enumerate(levels)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{path}: has no order of levels ({error!r}); set another `by`") from None
    pairs = zip(accepted["task"].tolist(), accepted["level"].tolist(), strict=True)
    return np.array([places[task].get(level, np.nan) for task, level in pairs], np.float32)


def _evaluate(formula: str, accepted: Columns, where: str) -> Array:
    """A formula's value for each row; infinite or missing is NaN."""
    from factory.quality.difficulty import compile_formula, known_names, values

    present = {name for name in MEASURES if not np.isnan(accepted[name]).all()}
    known = known_names(
        2 if {"pass_rate", "agreement"} & present else 1, "entropy_mean" in present, "judge_score" in present
    )
    try:
        compute = compile_formula(formula, known)
    except JobError as error:
        raise JobError(f"{where}: {str(error).removeprefix('difficulty.')}") from None
    # x != x: NaN is the columns' None
    columns = [[None if x != x else x for x in accepted[name].tolist()] for name in MEASURES]
    result = []
    for row in zip(*columns, strict=True):
        raw = dict(zip(MEASURES, row, strict=True))
        samples = SampleStats(raw["pass_rate"], raw["agreement"])
        # MEASURES[1:6] are the fields of Measures, but for difficulty: that is what the formula gives
        measures = Measures(**{name: raw[name] for name in MEASURES[1:6]})
        result.append(compute(values(samples, raw["judge_score"], measures)))
    return np.array([np.nan if x is None else x for x in result], np.float32)
