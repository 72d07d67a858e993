"""Figures of `make worth`: means and intervals over seeds, what a row with signals replaces, the table, the curves."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from factory.demo_teacher.evaluate import wilson

# quantiles of Student's t distribution for 95 % intervals, by degrees of freedom from 1
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
BASE = "text"
COLUMNS = ("arm", "rows", "students", "KL, nats a token", "below text's", "calibration error", "too sure by", "right")
HEAD = f"| {' | '.join(COLUMNS)} |\n|---{'|---:' * (len(COLUMNS) - 1)}|"


class Span(NamedTuple):
    """A mean and half the width of its 95 % interval; None where one value tells none."""

    middle: float
    half: float | None

    def text(self, scale: float = 1.0, digits: int = 3) -> str:
        around = "" if self.half is None else f" ± {scale * self.half:.{digits}f}"
        return f"{scale * self.middle:.{digits}f}{around}"


def span(values: Sequence[float]) -> Span:
    """Of values of several seeds."""
    if len(values) < 2:
        return Span(values[0], None)
    quantile = T_95[min(len(values) - 1, len(T_95)) - 1]
    return Span(mean(values), quantile * stdev(values) / math.sqrt(len(values)))


Results = Mapping[tuple[str, int], Sequence[dict[str, Any]]]


def read_results(work: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The results of each arm and number of rows, by seed, with the answers that were checked where they were."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for path in sorted((work / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        passes = work / "passes" / path.name
        if passes.is_file():
            result["passes"] = json.loads(passes.read_text(encoding="utf-8"))
        found.setdefault((result["arm"], result["rows"]), []).append(result)
    return {key: sorted(found[key], key=lambda result: result["seed"]) for key in sorted(found)}


def gain(results: Results, arm: str, rows: int) -> Span | None:
    """By how much less KL than text of as many rows, as a share, in pairs of one seed; None without a pair."""
    text = {result["seed"]: result["kl"] for result in results.get((BASE, rows), ())}
    pairs = [(result["kl"], text[result["seed"]]) for result in results[arm, rows] if result["seed"] in text]
    return span([1 - one / other for one, other in pairs]) if pairs and arm != BASE else None


def passes(results: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Right answers and answers of all these students."""
    counts = [count for result in results for count in result.get("passes", {}).values()]
    return sum(right for right, _ in counts), sum(asked for _, asked in counts)


def tell_passes(right: int, asked: int) -> str:
    """A share with its 95 % Wilson interval, in percent."""
    if not asked:
        return ""
    low, high = wilson(right, asked)
    return f"{100 * right / asked:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def text_rows(curve: Mapping[int, float], kl: float) -> float:
    """How many rows of text reach this KL, between those that were tried: linear in KL over the logarithm of rows.

    Beyond them there is no guess: infinity where no number that was tried reaches it, 0 where the least is better.
    """
    points = sorted(curve.items())
    if kl > points[0][1]:
        return 0.0
    for (few, above), (many, below) in pairwise(points):
        if above >= kl >= below:
            share = 0.0 if above == below else (above - kl) / (above - below)
            return math.exp(math.log(few) + share * math.log(many / few))
    return points[0][0] if kl == points[0][1] else math.inf


def replaced(results: Results, arm: str, rows: int) -> tuple[float, bool] | None:
    """How many text-only rows one row of an arm replaces, and whether it is that or more than that.

    Of the seeds that have text of all numbers of rows, so that both sides are means over the same ones; None without.
    """
    text = {count: _by_seed(found) for (name, count), found in results.items() if name == BASE}
    asked = _by_seed(results.get((arm, rows), ()))
    seeds = set(asked).intersection(*text.values())
    if not text or not seeds:
        return None
    curve = {count: mean(kls[seed] for seed in seeds) for count, kls in text.items()}
    found = text_rows(curve, mean(asked[seed] for seed in seeds))
    return (max(curve) / rows, True) if math.isinf(found) else (found / rows, False)


def _by_seed(found: Iterable[dict[str, Any]]) -> dict[int, float]:
    return {result["seed"]: result["kl"] for result in found}


def table(results: Results, told: Mapping[str, str]) -> str:
    """All arms in the order of `told`, fewest rows first."""
    lines = [HEAD]
    for arm in told:
        for rows in sorted(rows for name, rows in results if name == arm):
            lines.append(_line(results, arm, rows, told[arm]))
    return "\n".join(lines)


def _line(results: Results, arm: str, rows: int, told: str) -> str:
    found = results[arm, rows]
    less = gain(results, arm, rows)
    cells = [
        told,
        f"{rows:,}",
        str(len(found)),
        span([result["kl"] for result in found]).text(),
        "" if less is None else f"{less.text(100, 0)} %",
        span([result["calibration"] for result in found]).text(),
        span([result["confidence"] - result["right"] for result in found]).text(),
        tell_passes(*passes(found)),
    ]
    return f"| {' | '.join(cells)} |"


def headline(results: Results, told: Mapping[str, str]) -> list[str]:
    """One line for each arm and number of rows: what a row of it replaces."""
    lines = []
    for arm, rows in sorted(results, key=lambda key: (list(told).index(key[0]), key[1])):
        found = replaced(results, arm, rows)
        if arm != BASE and found is not None:
            lines.append(f"- {told[arm]}, {rows:,} rows: {_tell_replaced(*found)}")
    return lines


def _tell_replaced(ratio: float, more: bool) -> str:
    if not ratio:
        return "worth less than the fewest rows of text that were tried"
    if more and ratio <= 1:
        return "better than as many rows of text; more of them were not tried"
    return f"each worth {'more than ' * more}{ratio:.1f} rows of text alone"


def curves(results: Results, told: Mapping[str, str], path: Path) -> None:
    """KL over rows, a line for each arm, with its 95 % intervals, as SVG."""
    import altair

    values = []
    for (arm, rows), found in results.items():
        middle, half = span([result["kl"] for result in found])
        around = half or 0.0
        values.append({"arm": told[arm], "rows": rows, "kl": middle, "low": middle - around, "high": middle + around})
    order = [told[arm] for arm in told if any(name == arm for name, _ in results)]
    legend = altair.Legend(orient="bottom", columns=1, labelLimit=420)
    base = altair.Chart(altair.Data(values=values)).encode(
        x=altair.X("rows:Q", scale=altair.Scale(type="log", nice=False), title="rows to learn from"),
        color=altair.Color("arm:N", sort=order, title=None, legend=legend),
    )
    height = altair.Y("kl:Q", scale=altair.Scale(zero=False), title="KL to the teacher, nats a token")
    lines = base.mark_line(point=True).encode(y=height)
    bars = base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")
    (lines + bars).properties(width=420, height=260, background="white").save(path)
