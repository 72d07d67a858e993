"""Scored traces: a user's traces.jsonl again, with the teacher's logprobs of what was sampled (`reference_logprobs`).

One number for each True in a node's `mask`, in its order: the log-probability that the teacher gives that token after
all that stands before it on the branch. Null where no branch through the node came to be a row.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from factory.dataset.columns import list_lengths, read_list
from factory.dataset.ledger import read_ledger
from factory.dataset.shards import read_batches, shard_path
from factory.dataset.sound import require_intact
from factory.errors import DatasetError
from factory.tasks.traces import places_to, read_nodes

SAMPLED = "sampled_logprobs"
LOG_OF_NOTHING = -1e30  # as in the columns; JSON has no infinity


def write_traces(out: Path, source: Path, target: Path, places: Mapping[str, tuple[int, int]]) -> int:
    """Write the traces of a scored dataset; how many nodes have logprobs. `places`: trace and leaf of each row, by id.

    Raises DatasetError where the dataset keeps no logprobs, or the file cannot be written.
    """
    found: dict[int, dict[int, list[float]]] = {}
    wanted = {trace for trace, _ in places.values()}
    for row_id, first, logprobs in _rows(out):
        trace, leaf = places[row_id]
        found.setdefault(trace, {})[leaf] = [first, *logprobs]
    temporary = target.with_name(f".tmp-{target.name}")
    written = 0
    try:
        with source.open(encoding="utf-8") as lines, temporary.open("w", encoding="utf-8") as told:
            for number, line in enumerate(line for line in lines if line.strip()):
                trace = json.loads(line)
                written += _fill(trace, found.get(number, {})) if number in wanted else 0
                told.write(json.dumps(trace, ensure_ascii=False) + "\n")
            told.flush()
            os.fsync(told.fileno())
        temporary.replace(target)
    except OSError as error:
        raise DatasetError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _rows(out: Path) -> Iterator[tuple[str, int, list[float]]]:
    """Id, number of prompt tokens and logprobs [T] of each accepted row."""
    ledger = read_ledger(out)
    require_intact(ledger, "data")
    for shard in sorted(ledger.entries):
        for batch in read_batches(out / shard_path("data", shard), ["id", "prompt_token_ids", SAMPLED]):
            values, offsets = read_list(batch.column(SAMPLED))
            prompts = list_lengths(batch.column("prompt_token_ids")).tolist()
            for row, (name, prompt) in enumerate(zip(batch.column("id").to_pylist(), prompts, strict=True)):
                yield name, prompt, values[offsets[row] : offsets[row + 1]].astype("float64").tolist()


def _fill(trace: dict[str, Any], branches: Mapping[int, list[float]]) -> int:
    """Give the nodes of a trace their logprobs; how many have some."""
    nodes = read_nodes(trace["nodes"])
    for told, node in zip(trace["nodes"], nodes, strict=True):
        told["reference_logprobs"] = None if any(node.mask) else []
    for leaf, (first, *logprobs) in branches.items():
        at = -int(first)  # the place of a token among the completion's
        for place in places_to(nodes, leaf):
            node, told = nodes[place], trace["nodes"][place]
            scored = [at + offset for offset, one in enumerate(node.mask) if one]
            # what two branches share has the same tokens before it, so the same logprobs
            if scored and told["reference_logprobs"] is None:
                told["reference_logprobs"] = [_plain(logprobs[t]) for t in scored]
            at += len(node.token_ids)
    return sum(bool(told["reference_logprobs"]) for told in trace["nodes"])


def _plain(value: float) -> float:
    return value if math.isfinite(value) else LOG_OF_NOTHING
