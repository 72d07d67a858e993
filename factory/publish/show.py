"""Showing people what is in a dataset: its counts, and one accepted row with its signals, token by token."""

import json
import textwrap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from factory.dataset.codec import STORED, read_topk
from factory.dataset.ledger import Totals, read_ledger
from factory.dataset.manifest import read_manifest
from factory.dataset.shards import read_batches, shard_path
from factory.hashing import canonical_json
from factory.records import Prompt
from factory.signals import Array
from factory.teachers.prompt_ids import EncodedPrompt
from factory.terminal import printable

WIDTH = 110
IDS = dict.fromkeys(("topk_ids", "topk_id_table", "topk_id_places", "topk_first"), np.int32)
TYPES = IDS | dict.fromkeys(("topk_counts", "topk_draws", "topk_steps"), np.uint16)


def describe_totals(out: Path, totals: Totals) -> list[str]:
    """Counts of a dataset: planned, accepted, rejected by reason, errors, left; and by task and level."""
    share = f" ({totals.accepted / totals.done:.0%})" if totals.done else ""
    state = "complete" if totals.left == 0 else f"{totals.left:,} rows left; the same `factory run` goes on"
    lines = [
        f"{out}: {state}",
        f"  planned {totals.planned:,} = accepted {totals.accepted:,}{share} + rejected {totals.rejected:,}"
        f" + errors {totals.errors:,} + left {totals.left:,}",
        f"  shards {totals.committed_shards:,} of {totals.shards:,}, {totals.completion_tokens:,} completion tokens, "
        f"{totals.bytes / 1e6:,.1f} MB",
    ]
    width = max((len(cell) for cell in totals.cells), default=0)
    for cell, (accepted, rejected, errors) in sorted(totals.cells.items()):
        lines.append(f"  {cell:<{width}}  {accepted:>7,} accepted of {accepted + rejected + errors:,}")
    for reason, count in totals.ranked_reasons():
        lines.append(f"  rejected  {count:>7,}  {reason}")
    return lines


def read_totals(out: Path) -> Totals:
    """Totals of a dataset, from its ledger alone."""
    return read_ledger(out).totals


def accepted_rows(out: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Accepted rows of a dataset in order, as plain values."""
    for shard in sorted(read_ledger(out).entries):
        for batch in read_batches(out / shard_path("data", shard), columns):
            yield from batch.to_pylist()


def describe_rows(out: Path, count: int) -> list[str]:
    """The first accepted rows of a dataset, readable; a line that says so where there are none."""
    manifest = read_manifest(out)
    rows = list(islice(accepted_rows(out), count))
    if not rows:
        return [f"{out}: no accepted row yet; `factory status {out}` tells why rows were rejected"]
    return [line for row in rows for line in _describe_row(row, manifest)]


def _describe_row(row: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    lines = [f"── {row['task']} · {row['level']} · row {row['id']} ".ljust(WIDTH, "─")]
    for message in row["prompt"]:
        lines += _block(message["role"], message["content"], most=14 if message["role"] == "user" else 5)
    if row["reasoning"] is not None:
        lines += _block("reasoning", row["reasoning"])
    lines += _block("answer", _lay_out(row["answer"]))
    if row["findings"]:
        lines += _block("findings", "\n".join(row["findings"]), most=4)
    return [*lines, *_describe_signals(row, manifest)]


def _lay_out(answer: str) -> str:
    """JSON over lines of its own; the answer of a transcript that was scored may be any text."""
    try:
        return json.dumps(json.loads(answer), ensure_ascii=False, indent=1)
    except (ValueError, RecursionError):
        return answer


def _block(name: str, text: str, most: int = 14) -> list[str]:
    lines = printable(text).removesuffix("\n").split("\n")  # escaped before it is wrapped, which drops some controls
    wrapped = [piece for line in lines for piece in textwrap.wrap(line, WIDTH - 12) or [""]]
    if len(wrapped) > most:
        wrapped = [*wrapped[: most - 1], f"… {len(wrapped) - most + 1} lines more"]
    return [f"{name if index == 0 else '':<11} {line}".rstrip() for index, line in enumerate(wrapped)]


def _describe_signals(row: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    signals, tokens = manifest["signals"], len(row["completion_token_ids"])
    told = (
        f"{len(row['prompt_token_ids'])} prompt + {tokens} completion tokens, answer from token {row['answer_start']}"
    )
    if "entropy" in row:
        told += f"; mean entropy {np.mean(row['entropy']):.2f} nats"
    if signals["layers"]:
        told += f"; hidden states of layers {signals['layers']} beside it"
    lines = _block("signals", told)
    k, first = signals["top_k"], row["answer_start"]
    if not k:
        return lines
    topk_ids_TK, topk_TK = _read_topk(row, k)
    counts = (topk_ids_TK >= 0).sum(1).tolist()
    for t in range(first, min(first + 4, tokens)):
        ids, values = (array[t, :3].tolist() for array in (topk_ids_TK, topk_TK))
        best = "  ".join(f"{i}:{value:.2f}" for i, value in zip(ids, values, strict=True) if i >= 0)
        head = f"token {t}: id {row['completion_token_ids'][t]}"
        lines.append(f"{'':<11} {head:<24} logprob {row['sampled_logprobs'][t]:7.2f}   {_name_kept(best, counts[t])}")
    return lines


def _name_kept(best: str, count: int) -> str:
    return f"top {best} … of {count}" if count else "not kept"


def _read_topk(row: dict[str, Any], k: int) -> tuple[Array, Array]:
    """Ids and logprobs of a row, [T, k] each, in whichever profile it is stored."""
    flat = {name: np.array(row[name], TYPES.get(name, np.float32)) for name in STORED if name in row}
    topk = read_topk({name: (values, np.array([0, len(values)])) for name, values in flat.items()}, k)
    return topk["topk_ids"], topk["topk_logprobs"]


def describe_prompt(prompt: Prompt, as_json: bool, encoded: EncodedPrompt | None = None) -> str:
    """A rendered prompt for people, or as one JSON line; `encoded` is what a model would be given of it."""
    if as_json:
        fields = ("id", "task", "level", "messages", "scenario")
        given = {} if encoded is None else {"prompt_text": encoded.text, "prompt_tokens": len(encoded.ids)}
        return canonical_json({name: getattr(prompt, name) for name in fields} | given)
    head = f"── {prompt.task} · {prompt.level} · {prompt.id} ".ljust(WIDTH, "─")
    if encoded is not None:
        ends = "its reasoning follows" if encoded.reasons else "its answer follows"
        told = f"── what the model is given: {len(encoded.ids):,} ids, {ends} ".ljust(WIDTH, "─")
        return "\n".join([head, encoded.text, told])
    return "\n".join([head, *(f"[{m['role']}]\n{m['content']}\n" for m in prompt.messages)])
