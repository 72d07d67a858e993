"""What a dataset teaches and how long its rows are: shares and quantiles of numbers that every row has."""

import math
from typing import Any, Final

from factory.publish.report.store import Store

BINS: Final = 10
LENGTH_BINS: Final = 30
QUANTILES: Final = "[0.05, 0.25, 0.5, 0.75, 0.95]"
# a task whose gate is its check: a row that a later stage turned down had been found right before
RIGHT: Final = """
    SELECT confidence, task, agreement, CASE WHEN score = 1 THEN 1 ELSE 0 END AS "right" FROM accepted
    UNION ALL
    SELECT confidence, task, agreement, CASE
        WHEN kind = 'rejected' AND stage IN ('parse', 'schema', 'check') THEN 0
        WHEN kind = 'rejected' AND stage IN ('filter', 'judge', 'samples') AND task IN ({checked}) THEN 1 END
    FROM rejected
"""


def describe_cells(store: Store) -> list[dict[str, Any]]:
    """By task and level: rows, accepted ones, and the means of the measures that there are."""
    return store.rows("""
        SELECT task, level, count(*) AS rows, count(*) FILTER (ok) AS accepted,
            greatest(count(*) FILTER (coalesce(sample, 0) = 0), 1) AS prompts, avg(pass_rate) AS pass_rate,
            avg(agreement) AS agreement, avg(confidence) FILTER (ok) AS confidence, avg(difficulty) AS difficulty,
            avg(judge_score) AS judge_score
        FROM (SELECT task, level, sample, true AS ok, pass_rate, agreement, confidence, difficulty, judge_score
            FROM accepted UNION ALL
            SELECT task, level, sample, false, pass_rate, agreement, confidence, NULL, judge_score FROM rejected)
        GROUP BY task, level ORDER BY task, level
    """)


def describe_difficulty(store: Store) -> list[dict[str, Any]]:
    """Quantiles of `difficulty` of accepted rows by task and level; those that have one."""
    found = store.rows(f"""
        SELECT task, level, count(*) AS rows, quantile_cont(difficulty, {QUANTILES}) AS at FROM accepted
        WHERE difficulty IS NOT NULL GROUP BY task, level ORDER BY task, level
    """)
    names = ("low", "q25", "median", "q75", "high")
    return [
        {"task": row["task"], "level": row["level"], "rows": row["rows"], **dict(zip(names, row["at"], strict=True))}
        for row in found
    ]


def describe_samples(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Histograms of `pass_rate` (of prompts: one row of each counts) and `agreement` (of all rows that have one)."""
    # every sample of a prompt has the prompt's pass rate, so the first of them stands for it
    both = "(SELECT * FROM (SELECT {0}, sample FROM accepted UNION ALL SELECT {0}, sample FROM rejected) WHERE {1})"
    queries = {
        "pass_rate": both.format("pass_rate", "sample = 0 AND pass_rate IS NOT NULL"),
        "agreement": both.format("agreement", "agreement IS NOT NULL"),
    }
    return {
        name: store.rows(
            f"SELECT round(least(floor({name} * {BINS}), {BINS - 1}) / {BINS}, 2) AS low, count(*) AS rows"
            f" FROM {source} GROUP BY low ORDER BY low"
        )
        for name, source in queries.items()
    }


def describe_calibration(store: Store, checked: list[str]) -> dict[str, Any]:
    """Confidence against right answers, in ten parts of equal size from the least confident up.

    `rows` have both. `gap` is the mean distance of a part's confidence from its share of right answers (expected
    calibration error), `ranks` the chance that a right answer is more confident than a wrong one (AUROC); None where
    there are no right or no wrong answers among them.
    """
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in checked) or "NULL"
    source = f'(SELECT * FROM ({RIGHT.format(checked=names)}) WHERE confidence IS NOT NULL AND "right" IS NOT NULL)'
    parts = store.rows(f"""
        SELECT part, count(*) AS rows, avg(confidence) AS confidence, min(confidence) AS low, max(confidence) AS high,
            sum("right") AS "right"
        FROM (SELECT *, ntile({BINS}) OVER (ORDER BY confidence) AS part FROM {source}) GROUP BY part ORDER BY part
    """)
    for part in parts:
        part["share"] = part["right"] / part["rows"]
        part["from"], part["to"] = wilson(part["right"], part["rows"])
    rows, right = sum(part["rows"] for part in parts), sum(part["right"] for part in parts)
    gap = sum(part["rows"] * abs(part["confidence"] - part["share"]) for part in parts) / rows if rows else None
    ranks = None
    if 0 < right < rows:
        # Mann-Whitney: ties share their mean rank
        ranked = "rank() OVER (ORDER BY confidence) AS first, count(*) OVER (PARTITION BY confidence) AS tied"
        summed = f'SELECT sum(first + (tied - 1) / 2) AS ranks FROM (SELECT "right", {ranked} FROM {source})'
        total = store.one(f'{summed} WHERE "right" = 1')["ranks"]
        ranks = (float(total) - right * (right + 1) / 2) / (right * (rows - right))
    return {"parts": parts, "rows": rows, "right": right, "gap": gap, "ranks": ranks}


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """The range that holds a share with 95 % confidence (Wilson 1927)."""
    z, share = 1.96, hits / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def describe_lengths(store: Store) -> dict[str, Any]:
    """Tokens of prompts, reasonings and answers of the part's accepted rows; truncated rows of all."""
    if not store.part:
        return {"rows": 0, "quantiles": [], "bins": [], "longest": 0, "truncated": []}
    lengths = """(SELECT task, len(prompt_token_ids) AS prompt, coalesce(reasoning_tokens, 0) AS reasoning,
        len(completion_token_ids) - coalesce(reasoning_tokens, 0) AS answer FROM accepted_part)"""
    quantiles, bins = [], []
    for name in ("prompt", "reasoning", "answer"):
        quantiles += store.rows(f"""
            SELECT task, '{name}' AS what, count(*) AS rows, quantile_disc({name}, {QUANTILES}) AS at,
                max({name}) AS most FROM {lengths} GROUP BY task ORDER BY task
        """)
        top = store.one(f"SELECT coalesce(max({name}), 0) AS top FROM {lengths}")["top"]
        width = max(1, math.ceil((top + 1) / LENGTH_BINS))
        bins += store.rows(f"""
            SELECT '{name}' AS what, ({name} // {width})::BIGINT * {width} AS low, {width} AS width, count(*) AS rows
            FROM {lengths} GROUP BY low ORDER BY low
        """)
    top = store.one(f"SELECT count(*) AS rows, coalesce(max(prompt + reasoning + answer), 0) AS longest FROM {lengths}")
    truncated = store.rows("""
        SELECT task, count(*) AS rows, count(*) FILTER (finish_reason = 'length') AS cut FROM
            (SELECT task, finish_reason FROM accepted UNION ALL SELECT task, finish_reason FROM rejected)
        GROUP BY task ORDER BY task
    """)
    return top | {"quantiles": quantiles, "bins": bins, "truncated": truncated}


def count_over(store: Store, tokens: int) -> int:
    """How many accepted rows of the part have more tokens, prompt included, than a student may be shown."""
    if not store.part:
        return 0
    over = f"len(prompt_token_ids) + len(completion_token_ids) > {int(tokens)}"
    return int(store.one(f"SELECT count(*) AS rows FROM accepted_part WHERE {over}")["rows"])
