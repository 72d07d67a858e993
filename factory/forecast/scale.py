"""Scale: what a job takes on many GPUs, by its forecast and by what a cluster's driver was measured to cost.

The costs are those of docs/scale.md (tests/bench/bench_cluster.py), of one machine: a faster disk commits faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from factory.forecast.forecast import Forecast
from factory.runs.plan import Plan
from factory.runs.progress import tell_clock

DRIVER_S: Final = 0.005  # processor seconds a shard, Ray's calls included
COMMIT_S: Final = 0.04  # seconds a shard, about twice what was measured: renames, directories, the ledger's line
LINE_BYTES: Final = 700  # of a shard in the ledger
LINE_S: Final = 60e-6  # processor seconds a line to read it when a job goes on
MOST_LINES: Final = 1_000_000  # some minutes to go on from, and files of one config in one directory
DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """GPUs, and the completion tokens a second that each makes."""

    gpus: int
    tokens_per_second: float


def tell_scale(fleet: Fleet | None, plan: Plan, forecasts: Sequence[Forecast]) -> list[str]:
    """Lines about a job on a fleet; none where there is none."""
    if fleet is None:
        return []
    tokens = sum(forecast.completion_tokens for forecast in forecasts)
    size = sum(forecast.bytes for forecast in forecasts)
    seconds = max(tokens / (fleet.gpus * fleet.tokens_per_second), 1e-9)
    shards = plan.shards / seconds
    billion = 1e9 / fleet.tokens_per_second / DAY
    whole = f"{fleet.gpus * seconds / DAY:,.3g} GPU-days for {tokens / 1e9:,.3g} billion"
    rate, used, time_to_commit = size / seconds / 1e6, 100 * shards * DRIVER_S, 100 * shards * COMMIT_S
    ledger, resume = plan.shards * LINE_BYTES / 1e6, plan.shards * LINE_S
    lines = [
        f"  on {fleet.gpus:,} GPUs at {fleet.tokens_per_second:,.0f} tokens/s each: {billion:.3g} GPU-days a billion "
        f"completion tokens, {whole}, {tell_clock(seconds)} ({seconds / DAY:.3g} days) if none idles",
        f"    file system: {rate:,.3g} MB/s of shards in all, {rate / fleet.gpus:,.3g} MB/s a GPU, and spools before "
        f"compression; the driver reads none of it, or the texts where duplicates are sought",
        f"    driver: {shards:,.3g} shards/s, {used:,.3g} % of a core, {time_to_commit:,.3g} % of its time to commit; "
        f"ledger {ledger:,.3g} MB, {resume:,.3g} s to go on from",
    ]
    return lines + _warn(plan, shards)


def _warn(plan: Plan, shards: float) -> list[str]:
    """What breaks first, and what then."""
    rows = plan.shard_prompts * plan.samples
    factor = max(shards * COMMIT_S / 0.5, plan.shards / MOST_LINES)
    if factor <= 1:
        return []
    # a round number of rows: a power of two
    enough = 1 << (int(rows * factor) - 1).bit_length()
    told = f"{plan.shards:,} shards are too many for one ledger and one directory"
    return [f"    warning: {told}; shard_rows = {enough:,} or more"]
