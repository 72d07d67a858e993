"""Which rows a report shows: some of every kind, and those at the ends; the same ones for the same files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from factory.dataset.codec import STORED
from factory.dataset.shards import read_rows, read_schema, shard_path
from factory.publish.report.store import FOLDERS, Store

# at the ends: column, order, and what such a row is called
ENDS: Final = (
    ("surprise", "DESC", "most surprising"),
    ("difficulty", "DESC", "hardest"),
    ("confidence", "ASC", "least confident"),
    ("agreement", "ASC", "least agreement"),
    ("reasoning_tokens", "DESC", "longest reasoning"),
)
OF_EACH_END: Final = 2
DRAWN: Final = "drawn"
NAMES: Final[tuple[str, ...]] = (
    *(
        "id",
        "prompt_id",
        "sample",
        "task",
        "level",
        "prompt",
        "tools",
        "scenario",
        "source_row",
        "text",
        "finish_reason",
    ),
    *("findings", "seed", "attempt", "repaired", "answer", "pass_rate", "agreement", "judge_score", "judge_reasoning"),
    *("completion", "reasoning", "score", "answer_start", "entropy_mean", "surprise", "confidence", "difficulty"),
    *("reasoning_tokens", "kind", "stage", "reason", "history", "prompt_token_ids", "completion_token_ids"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row lies, and why it was chosen."""

    table: str  # "accepted" or "rejected"
    shard: int
    number: int
    why: str


def choose_rows(store: Store, count: int) -> list[Place]:
    """Up to `count` rows, half of them rejected where there are as many: some of each kind."""
    totals = store.ledger.totals
    turned_down = totals.rejected + totals.errors
    rejected = min(turned_down, max(count // 2, count - totals.accepted))
    places = [*_choose_ends(store, (count - rejected) // 2)]
    seen = {(place.shard, place.number) for place in places}
    for place in _spread(store, "accepted", "task, level", "'drawn'", count):
        if len(places) < count - rejected and (place.shard, place.number) not in seen:
            places.append(place)
    return [*places, *_spread(store, "rejected", "stage, reason", "stage || '/' || reason", rejected)]


def _choose_ends(store: Store, most: int) -> Iterator[Place]:
    seen: set[tuple[int, int]] = set()
    for column, order, why in ENDS:
        found = store.rows(f"""
            SELECT shard, number FROM accepted WHERE {column} IS NOT NULL
            ORDER BY {column} {order}, shard, number LIMIT {OF_EACH_END}
        """)
        for row in found:
            where = (row["shard"], row["number"])
            if where not in seen and len(seen) < most:
                seen.add(where)
                yield Place("accepted", *where, why)


def _spread(store: Store, table: str, kind: str, why: str, count: int) -> list[Place]:
    """The first of each kind, then the second of each, and so on; inside a kind one task after the other."""
    found = store.rows(f"""
        SELECT shard, number, why FROM (
            SELECT *, row_number() OVER (PARTITION BY {kind} ORDER BY turn, drawn) AS rank FROM (
                SELECT *, {why} AS why, hash(shard, number) AS drawn,
                    row_number() OVER (PARTITION BY {kind}, task ORDER BY hash(shard, number)) AS turn
                FROM {table}))
        ORDER BY rank, drawn LIMIT {count}
    """)
    return [Place(table, row["shard"], row["number"], row["why"]) for row in found]


def read_places(store: Store, places: list[Place]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The rows at these places as plain values, file after file. Raises DatasetError where one cannot be read."""
    files = sorted({(place.table, place.shard) for place in places})
    for table, shard in files:
        path = store.ledger.out / shard_path(FOLDERS[table], shard)
        here = {place.number: place for place in places if (place.table, place.shard) == (table, shard)}
        columns = [name for name in (*NAMES, *STORED) if name in read_schema(path)]
        for number, batch in zip(sorted(here), read_rows(path, here, columns), strict=True):
            (row,) = batch.to_pylist()
            yield here[number], row
