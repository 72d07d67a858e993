"""Charts as Vega-Lite specifications: data and drawing rules, checked against Vega-Lite's own schema by Altair.

Colours are variables of the page's style sheet, so a chart follows it from light to dark without being drawn again.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

from factory.errors import JobError, pip_install

ONE, TWO, BAND, RULE = "var(--one)", "var(--two)", "var(--band)", "var(--muted)"
ORDER: Final = ["prompt", "reasoning", "answer"]
Spec = dict[str, Any]


def require_extra() -> None:
    """Raise JobError where the extra `report` is not installed."""
    missing = [name for name in ("altair", "duckdb") if find_spec(name) is None]
    if missing:
        told = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise JobError(f"factory report: {told}; {pip_install('report')} brings what it needs")
    import altair

    # rows are counted long before they come here; the limit is for those who plot raw data
    altair.data_transformers.disable_max_rows()


def draw_calibration(parts: Sequence[dict[str, Any]]) -> Spec:
    """Share of right answers in each tenth of the rows, from the least confident up, with the confidence they had."""
    import altair as alt

    base = alt.Chart(alt.Data(values=list(parts))).encode(
        x=alt.X("part:O", title="tenth of the rows, least confident first", axis=alt.Axis(labelAngle=0)),
        tooltip=[
            alt.Tooltip("part:O", title="tenth"),
            alt.Tooltip("rows:Q", title="rows"),
            alt.Tooltip("confidence:Q", title="mean confidence", format=".4f"),
            alt.Tooltip("share:Q", title="right", format=".1%"),
        ],
    )
    share = alt.Y("share:Q", title="right answers", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    bars = base.mark_bar(color=BAND, cornerRadiusEnd=2).encode(y=share)
    ranges = base.mark_rule(color=ONE, strokeWidth=2).encode(y=alt.Y("from:Q"), y2="to:Q")
    points = base.mark_point(color=ONE, filled=True, size=50, opacity=1).encode(y=share)
    line = base.mark_line(color=TWO, strokeDash=[5, 3], point={"color": TWO, "shape": "diamond", "size": 40})
    return _finish(alt.layer(bars, ranges, points, line.encode(y="confidence:Q")), 260)


def draw_difficulty(rows: Sequence[dict[str, Any]], levels: Sequence[str]) -> Spec:
    """The middle half and the middle nine tenths of `difficulty`, by task and level."""
    import altair as alt

    base = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y("level:N", sort=list(levels), title=None),
        tooltip=[
            alt.Tooltip("task:N"),
            alt.Tooltip("level:N"),
            alt.Tooltip("rows:Q"),
            *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("low", "q25", "median", "q75", "high")),
        ],
    )
    axis = alt.X("low:Q", title="difficulty", scale=alt.Scale(zero=True))
    outer = base.mark_rule(color=RULE, strokeWidth=1.5).encode(x=axis, x2="high:Q")
    inner = base.mark_bar(color=BAND, height=12, cornerRadius=2).encode(x="q25:Q", x2="q75:Q")
    middle = base.mark_tick(color=ONE, thickness=3, height=16).encode(x="median:Q")
    chart = alt.layer(outer, inner, middle).properties(height=alt.Step(24))
    return _facet(chart, "task", [str(row["task"]) for row in rows])


def draw_shares(rows: Sequence[dict[str, Any]], title: str) -> Spec:
    """A histogram of a share between 0 and 1, in tenths."""
    import altair as alt

    values = [row | {"high": round(row["low"] + 0.1, 2)} for row in rows]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar(color=ONE, cornerRadiusEnd=2)
        .encode(
            x=alt.X("low:Q", bin="binned", title=title, scale=alt.Scale(domain=[0, 1])),
            x2="high:Q",
            y=alt.Y("rows:Q", title="rows"),
            tooltip=[alt.Tooltip("low:Q", title="from"), alt.Tooltip("high:Q", title="to"), alt.Tooltip("rows:Q")],
        )
    )
    return _finish(chart, 170)


def draw_entropy(rows: Sequence[dict[str, Any]]) -> Spec:
    """Entropy over the way through a reasoning and through an answer: median, mean, and the middle eight tenths."""
    import altair as alt

    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X(
            "at:Q", title="way through the part", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5)
        ),
        tooltip=[
            alt.Tooltip("part:N"),
            alt.Tooltip("at:Q", title="at", format=".0%"),
            alt.Tooltip("tokens:Q", format=","),
            *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("low", "median", "mean", "high")),
        ],
    )
    # most tokens are near 0, the others near 1: the root shows both
    y = alt.Y("high:Q", title="entropy, nats", scale=alt.Scale(type="sqrt", nice=True), axis=alt.Axis(tickCount=5))
    band = base.mark_area(color=BAND, opacity=1).encode(y=y, y2="low:Q")
    mean = base.mark_line(color=TWO, strokeDash=[5, 3]).encode(y="mean:Q")
    median = base.mark_line(color=ONE, strokeWidth=2.5).encode(y="median:Q")
    dots = base.mark_point(color=ONE, filled=True, size=70, opacity=0).encode(y="median:Q")
    chart = alt.layer(band, mean, median, dots).properties(height=200)
    return _facet(chart, "part", [str(row["part"]) for row in rows])


def draw_tail(rows: Sequence[dict[str, Any]]) -> Spec:
    """The mass outside the first k ids, by k."""
    import altair as alt

    names = {"mean": "mean", "p90": "9 of 10 tokens have less", "p99": "99 of 100 have less"}
    values = [{"k": row["k"], "what": told, "mass": row[name]} for row in rows for name, told in names.items()]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_line(point={"size": 45})
        .encode(
            x=alt.X("k:O", title="ids kept, k", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("mass:Q", title="mass outside", axis=alt.Axis(format="%"), scale=alt.Scale(type="sqrt")),
            color=_colour("what", list(names.values())),
            tooltip=[alt.Tooltip("what:N"), alt.Tooltip("k:O"), alt.Tooltip("mass:Q", format=".4%")],
        )
    )
    return _finish(chart, 200)


def draw_lengths(rows: Sequence[dict[str, Any]]) -> Spec:
    """Histograms of the tokens of prompts, reasonings and answers, each with its own axis."""
    import altair as alt

    values = [row | {"high": row["low"] + row["width"]} for row in rows]
    chart = (
        alt.Chart()
        .mark_bar(color=ONE)
        .encode(
            x=alt.X("low:Q", bin="binned", title="tokens"),
            x2="high:Q",
            y=alt.Y("rows:Q", title="rows"),
            tooltip=[alt.Tooltip("low:Q", title="from"), alt.Tooltip("high:Q", title="to"), alt.Tooltip("rows:Q")],
        )
    )
    parts = [name for name in ORDER if any(row["what"] == name for row in rows)]
    columns = [
        chart.properties(height=150, title=name, data=alt.Data(values=[v for v in values if v["what"] == name]))
        for name in parts
    ]
    spec: Spec = alt.hconcat(*columns, spacing=28).to_dict()
    return _plain(spec)


def draw_speed(runs: Sequence[dict[str, Any]]) -> Spec:
    """Completion tokens a second of each run that told of its end."""
    import altair as alt

    values = [run | {"run": number} for number, run in enumerate(runs, start=1)]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar(color=ONE, cornerRadiusEnd=2)
        .encode(
            y=alt.Y("run:O", title="run"),
            x=alt.X("tokens_per_second:Q", title="completion tokens a second"),
            tooltip=[
                alt.Tooltip("started:N"),
                alt.Tooltip("outcome:N"),
                alt.Tooltip("seconds:Q", format=",.0f"),
                alt.Tooltip("rows:Q", format=","),
                alt.Tooltip("tokens_per_second:Q", format=",.0f"),
            ],
        )
        .properties(height=alt.Step(22))
    )
    return _plain(chart.to_dict())


def draw_both(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Spec:
    """Accepted share of two datasets over the same prompts, by task and level."""
    import altair as alt

    values = [
        {
            "cell": f"{row['task']} · {row['level']}",
            "dataset": name,
            "share": row[key] / row["rows"],
            "rows": row["rows"],
        }
        for row in rows
        for key, name in zip(("a", "b"), names, strict=True)
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("cell:N", title=None, sort=None, axis=alt.Axis(labelLimit=220))
    )
    line = base.mark_line(color=RULE).encode(x="share:Q", detail="cell:N")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=alt.X("share:Q", title="accepted", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        color=_colour("dataset", names),
        shape=alt.Shape("dataset:N", sort=list(names)),
        tooltip=[
            alt.Tooltip("cell:N"),
            alt.Tooltip("dataset:N"),
            alt.Tooltip("share:Q", format=".1%"),
            alt.Tooltip("rows:Q", title="rows in both"),
        ],
    )
    return _plain(alt.layer(line, points).properties(height=alt.Step(24)).to_dict())


def _colour(name: str, values: Sequence[str]) -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(values), range=[ONE, TWO, "var(--three)"][: len(values)])
    return alt.Color(f"{name}:N", scale=scale, sort=list(values), legend=alt.Legend(title=None, orient="top"))


def _facet(chart: Any, by: str, values: Sequence[str]) -> Spec:
    """One chart for each value, side by side or below each other, with the same axes; `by` is its column."""
    import altair as alt

    chosen = list(dict.fromkeys(values))
    data = chart.data.values
    across = len(chosen) <= 2
    parts = [
        chart.properties(title=value, data=alt.Data(values=[row for row in data if row[by] == value]))
        for value in chosen
    ]
    joined = alt.hconcat(*parts, spacing=30) if across else alt.concat(*parts, columns=2, spacing=30)
    return _plain(joined.resolve_scale(x="shared", y="shared").to_dict())


def _finish(chart: Any, height: int) -> Spec:
    return _plain(chart.properties(height=height).to_dict())


def _plain(spec: Spec) -> Spec:
    """Without Altair's own theme: the page has one."""
    return {name: value for name, value in spec.items() if name != "config"}
