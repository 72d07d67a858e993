"""How sure the teacher is, token by token: from the arrays of some rows, read shard after shard.

The rows are whole row groups, the first of shards that are spread evenly; a report of a million rows reads as many as
one of a thousand. Every sum below is over tokens, not over rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from factory.dataset.codec import STORED, find_damage, read_topk
from factory.dataset.columns import list_lengths, read_list
from factory.dataset.ledger import Ledger
from factory.dataset.shards import column_bytes, read_batches, shard_path
from factory.signals import Array, SignalSpec

MOST_ROWS: Final = 1_500
MOST_SHARDS: Final = 24
BINS: Final = 20  # of the way through a reasoning or an answer
SURE: Final = 0.1  # nats
THRESHOLDS: Final = (0.01, 0.05, 0.1, 0.5)  # nats, of `min_entropy`
OF_IDS: Final = ("topk_ids", "topk_logprobs", "topk_draws", "topk_counts", "topk_id_table", "topk_id_places")
OF_IDS_COMPACT: Final = ("topk_first", "topk_steps")
PERCENTILES: Final = (10, 50, 90)


@dataclass(slots=True)
class Seen:
    """What was read of some rows; one entry a token, in lists of arrays."""

    rows: int = 0
    entropy: list[Array] = field(default_factory=list)
    # Bool: whether the token belongs to the answer.
    answer: list[Array] = field(default_factory=list)
    # How far through its part the token stands, from 0 to below 1.
    place: list[Array] = field(default_factory=list)
    # Bool: whether the distribution's ids are kept.
    kept: list[Array] = field(default_factory=list)
    # Bool, of kept tokens: whether the sampled id is the likeliest.
    first: list[Array] = field(default_factory=list)
    # Of kept tokens: mass outside the first 1, 2, 4, ... ids, [tokens, sizes].
    outside: list[Array] = field(default_factory=list)


def describe_tokens(ledger: Ledger, signals: SignalSpec) -> dict[str, Any] | None:
    """Entropy over the relative position, mass outside the first k, shares of sure tokens, and what could be left out.

    None where no distribution is kept, or no row is accepted.
    """
    if not signals.top_k or not ledger.totals.accepted:
        return None
    # draws are in the order of their ids' probability, but what lies outside them is no tail of a sorted list
    sizes = [] if signals.keep == "sampled" else list_sizes(signals.top_k)
    seen, shards = Seen(), choose_shards(ledger)
    for shard in shards:
        for batch in _first_group(ledger, shard):
            _take(seen, batch, signals, sizes, MOST_ROWS // len(shards) + 1)
    if not seen.rows:
        return None
    entropy, answer, place = (np.concatenate(part) for part in (seen.entropy, seen.answer, seen.place))
    kept, first = np.concatenate(seen.kept), np.concatenate(seen.first)
    sure = entropy < SURE
    return {
        "rows": seen.rows,
        "tokens": len(entropy),
        "positions": list(_over_place(entropy, answer, place)),
        "sure_below": SURE,
        "parts": [_describe_part(name, entropy[of], sure[of], len(entropy)) for name, of in _parts(answer)],
        "first": float(first.mean()) if first.size else None,
        "tail": _describe_tail(np.concatenate(seen.outside), sizes) if sizes and first.size else [],
        "savings": list(_describe_savings(ledger, shards, signals, entropy, answer, kept)),
    }


def choose_shards(ledger: Ledger) -> list[int]:
    """Shards with an accepted row, spread evenly."""
    shards = [shard for shard, entry in sorted(ledger.entries.items()) if entry.accepted]
    count = min(len(shards), MOST_SHARDS)
    return [shards[i * len(shards) // count] for i in range(count)]


def list_sizes(top_k: int) -> list[int]:
    """1, 2, 4, ... and k itself."""
    return sorted({size for power in range(16) if (size := 1 << power) < top_k} | {top_k})


def _first_group(ledger: Ledger, shard: int) -> Iterator[Any]:
    path = ledger.out / shard_path("data", shard)
    wanted = ["completion_token_ids", "answer_start", *(name for name in STORED if name in column_bytes(path))]
    yield from read_batches(path, wanted, group=0)


def _take(seen: Seen, batch: Any, signals: SignalSpec, sizes: list[int], most: int) -> None:
    """Add a batch's rows, `most` at most. Rows whose columns do not fit their tokens are left to `verify`."""
    batch = batch.slice(0, most)
    tokens_B = list_lengths(batch.column("completion_token_ids"))
    flat = {name: read_list(batch.column(name)) for name in STORED if name in batch.schema.names}
    if not batch.num_rows or next(find_damage(flat, tokens_B, signals.top_k), None) is not None:
        return
    starts_B = np.clip(batch.column("answer_start").to_numpy(), 0, tokens_B)
    topk = read_topk(flat, signals.top_k)
    ids, logprobs = topk["topk_ids"], topk["topk_logprobs"].astype(np.float64)
    kept = ids[:, 0] >= 0
    begins = np.repeat(np.cumsum(tokens_B) - tokens_B, tokens_B)
    at, start = np.arange(len(begins)) - begins, np.repeat(starts_B, tokens_B)
    answer, length = at >= start, np.repeat(tokens_B, tokens_B)
    seen.rows += batch.num_rows
    seen.entropy.append(flat["entropy"][0].astype(np.float64))
    seen.answer.append(answer)
    seen.place.append(np.where(answer, (at - start) / np.maximum(length - start, 1), at / np.maximum(start, 1)))
    seen.kept.append(kept)
    sampled = read_list(batch.column("completion_token_ids"))[0]
    seen.first.append(ids[kept, 0] == sampled[kept])
    if sizes:
        mass = np.cumsum(np.exp(logprobs[kept]), axis=1)
        seen.outside.append(np.clip(1 - mass[:, [size - 1 for size in sizes]], 0, 1))


def _parts(answer: Array) -> Iterator[tuple[str, Array]]:
    """Which tokens are of the reasoning and which of the answer; a part without any is left out."""
    for name, of in (("reasoning", ~answer), ("answer", answer)):
        if of.any():
            yield name, of


def _over_place(entropy: Array, answer: Array, place: Array) -> Iterator[dict[str, Any]]:
    for name, of in _parts(answer):
        bins = np.minimum((place[of] * BINS).astype(int), BINS - 1)
        for number in range(BINS):
            values = entropy[of][bins == number]
            if values.size:
                low, median, high = np.percentile(values, PERCENTILES).tolist()
                where = {"part": name, "at": (number + 0.5) / BINS, "tokens": int(values.size)}
                yield where | {"low": low, "median": median, "high": high, "mean": float(values.mean())}


def _describe_part(name: str, entropy: Array, sure: Array, tokens: int) -> dict[str, Any]:
    return {
        "part": name,
        "tokens": int(entropy.size),
        "share": entropy.size / tokens,
        "sure": float(sure.mean()),
        "entropy": float(entropy.mean()),
    }


def _describe_tail(outside: Array, sizes: list[int]) -> list[dict[str, Any]]:
    quantiles = np.percentile(outside, (50, 90, 99), axis=0).T.tolist()
    means = outside.mean(0).tolist()
    return [
        {"k": size, "mean": mean, **dict(zip(("p50", "p90", "p99"), at, strict=True))}
        for size, mean, at in zip(sizes, means, quantiles, strict=True)
    ]


def _describe_savings(
    ledger: Ledger, shards: list[int], signals: SignalSpec, entropy: Array, answer: Array, kept: Array
) -> Iterator[dict[str, Any]]:
    """Bytes of the default config as it is, and what of it other choices would leave: in proportion to kept tokens."""
    paths = [ledger.out / shard_path("data", shard) for shard in shards]
    sizes = [column_bytes(path) for path in paths]
    held = sum(size for one in sizes for name, size in one.items() if name in (*OF_IDS, *OF_IDS_COMPACT))
    share = held / max(sum(sum(one.values()) for one in sizes), 1)
    whole = sum(
        file.bytes for entry in ledger.entries.values() for file in entry.files if file.path.startswith("data/")
    )
    ids = int(whole * share)
    yield {"choice": "as it is", "kept": float(kept.mean()), "bytes": whole, "saved": 0}
    if not ids:
        return
    choices = [(f"min_entropy = {least}", entropy >= least) for least in THRESHOLDS if least > signals.min_entropy]
    choices += [('positions = "answer"', answer)] if signals.positions != "answer" else []
    for name, stays in choices:
        left = (stays & kept).sum() / max(kept.sum(), 1)
        saved = int(ids * (1 - left))
        yield {"choice": name, "kept": float((stays & kept).mean()), "bytes": whole - saved, "saved": saved}
