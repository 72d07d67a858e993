"""Two datasets over the same plan: their rows join by id, which is a hash of what was asked."""

from collections.abc import Iterator
from typing import Any, Final

from factory.errors import DatasetError
from factory.publish.report.headlines import percent
from factory.publish.report.sample import Place
from factory.publish.report.store import WHERE, Store

MEASURES: Final = ("confidence", "surprise", "entropy_mean", "difficulty", "reasoning_tokens", "pass_rate")
DIFFER: Final = 0.7  # of the shown pairs: those that ended otherwise in one than in the other
JOIN: Final = f"""
    CREATE TABLE joined AS SELECT a.id, a.task, a.level, a.shard AS shard_a, a.number AS number_a, b.shard AS shard_b,
        b.number AS number_b, a.ending AS a, b.ending AS b, a.kept AS kept_a, b.kept AS kept_b,
        a.kept AND b.kept AND a.answer = b.answer AS same,
        {", ".join(f"a.{name} AS a_{name}, b.{name} AS b_{name}" for name in MEASURES)}
    FROM one AS a JOIN two AS b ON a.id = b.id
"""


def name_both(a: str, b: str) -> tuple[str, str]:
    """What the two are called: by their folders' names, told apart where these are equal."""
    return (a, b) if a != b else (f"{a} (first)", f"{b} (second)")


def compare(one: Store, two: Store, names: tuple[str, str]) -> dict[str, Any]:
    """What became of the rows that two datasets share. Raises DatasetError where they share none."""
    for store, table in ((one, "one"), (two, "two")):
        _list_rows(one, store, table)
    one.rows(JOIN)
    shared = one.one("SELECT count(*) AS rows FROM joined")["rows"]
    if not shared:
        told = "no row is in both; rows join by id, which tasks, templates, seed and count decide"
        raise DatasetError(f"{one.ledger.out} and {two.ledger.out}: {told}: compare datasets of the same plan")
    sums = "count(*) AS rows, count(*) FILTER (kept_a) AS a, count(*) FILTER (kept_b) AS b"
    sums += ", count(*) FILTER (kept_a AND kept_b) AS both, count(*) FILTER (same) AS same"
    totals = one.one(f"SELECT {sums} FROM joined")
    cells = one.rows(f"SELECT task, level, {sums} FROM joined GROUP BY task, level ORDER BY task, level")
    outcomes = one.rows("SELECT a, b, count(*) AS rows FROM joined GROUP BY a, b ORDER BY rows DESC, a, b LIMIT 40")
    return {
        "names": list(names),
        "told": _tell(totals, names, one.ledger.totals.done, two.ledger.totals.done),
        "totals": totals,
        "cells": cells,
        "outcomes": outcomes,
        "measures": list(_compare_measures(one)),
    }


def _list_rows(one: Store, store: Store, table: str) -> None:
    """Every row's id, end, answer and measures as a table of the first store's connection."""
    parts = []
    for name, ending in (("accepted", "'kept'"), ("rejected", "stage || '/' || reason")):
        kept = name == "accepted"
        measures = [m if kept and store.has(name, m) else f"NULL::DOUBLE AS {m}" for m in MEASURES]
        columns = ["id", "task", "level", f"{ending} AS ending", f"{kept} AS kept", "hash(answer) AS answer", *measures]
        parts.append(f"SELECT {', '.join(columns)}, {WHERE} FROM {store.source(name)}")
    one.rows(f"CREATE TABLE {table} AS {' UNION ALL '.join(parts)}")


def _tell(totals: dict[str, Any], names: tuple[str, str], a: int, b: int) -> str:
    rows = totals["rows"]
    told = f"{rows:,} rows are in both (of {a:,} and {b:,}); {names[0]} keeps {totals['a'] / rows:.1%} of them"
    told += f", {names[1]} {totals['b'] / rows:.1%}"
    if totals["both"]:
        told += (
            f"; of {totals['both']:,} that both keep {percent(totals['same'] / totals['both'])}% have the same answer"
        )
    return f"{told}."


def _compare_measures(one: Store) -> Iterator[dict[str, Any]]:
    """Means over the rows that both keep."""
    names = ", ".join(f"avg(a_{name}) AS a_{name}, avg(b_{name}) AS b_{name}" for name in MEASURES)
    means = one.one(f"SELECT {names} FROM joined WHERE kept_a AND kept_b")
    for name in MEASURES:
        a, b = means[f"a_{name}"], means[f"b_{name}"]
        if a is not None or b is not None:
            yield {"measure": name.replace("_", " "), "a": a, "b": b}


def choose_pairs(one: Store, count: int) -> list[tuple[Place, Place]]:
    """Up to `count` rows of both, most of them such that ended otherwise in one than in the other."""
    found = one.rows(f"""
        SELECT *, kept_a = kept_b AS alike FROM (SELECT *, row_number() OVER (PARTITION BY task, kept_a, kept_b
            ORDER BY hash(id)) AS turn FROM joined) ORDER BY alike, turn, id LIMIT {max(1, int(count * DIFFER))}
    """)
    seen = {row["id"] for row in found}
    rest = one.rows(f"SELECT * FROM joined WHERE kept_a AND kept_b ORDER BY hash(id) LIMIT {count}")
    found += [row for row in rest if row["id"] not in seen]
    return [(_place(row, "a"), _place(row, "b")) for row in found[:count]]


def _place(row: dict[str, Any], key: str) -> Place:
    why = (
        "kept by both"
        if row["kept_a"] and row["kept_b"]
        else "kept by one"
        if row["kept_a"] or row["kept_b"]
        else "kept by none"
    )
    return Place("accepted" if row[f"kept_{key}"] else "rejected", row[f"shard_{key}"], row[f"number_{key}"], why)
