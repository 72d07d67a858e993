"""From facts to one HTML file that holds all it shows.

What rows say is data and never markup: in the template it is escaped, in the scripts' data no `<` is left, and the
page's own script puts it in as text. Should any of that fail, the page's policy runs no script but these very ones, by
their hashes, and lets nothing be fetched or sent.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from factory.publish.report import charts
from factory.publish.report.headlines import clock, count, percent, write_headlines
from factory.terminal import printable

Facts = dict[str, Any]
# Vega's interpreter needs no `eval`, which the policy forbids; it comes as a module of two lines more than this
IMPORT: Final = "import { ascending, isString, DisallowedObjectProperties } from 'vega-util';"
EXPORT: Final = "export { expression as expressionInterpreter };"
IMPORTED: Final = "const { ascending, isString, DisallowedObjectProperties } = vega;"
EXPORTED: Final = "vega.expressionInterpreter = expression;"
BLOCKS: Final[tuple[tuple[str, str], ...]] = (
    ("flow", "Flow"),
    ("teaches", "Teaches"),
    ("sure", "Sureness"),
    ("lengths", "Lengths"),
    ("coverage", "Coverage"),
    ("time", "Time"),
    ("stages", "Curriculum"),
    ("rows", "Rows"),
)
LEVELS: Final = ("trivial", "easy", "medium", "hard", "expert")  # where a task has such names, in this order
STATE: Final = re.compile(r'<meta name="dataset-state" content="(\w+)">')
UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Shown:
    """The rows of a page: what the list needs of each, each packed, and which has a twin in the other dataset."""

    rows: list[dict[str, Any]]
    packed: list[str]
    twins: dict[int, int] = field(default_factory=dict)


def write_page(facts: Facts, shown: Shown, version: str, both: Facts | None = None) -> str:
    """The whole text of report.html; `both` is what a comparison found."""
    levels = order_levels({cell["level"] for cell in facts["cells"]})
    facts = facts | {"cells": sort_cells(facts["cells"], levels), "difficulty": sort_cells(facts["difficulty"], levels)}
    both = both and both | {"cells": sort_cells(both["cells"], levels)}
    drawn = draw_charts(facts, both)
    scripts = [*_read_vega(), _read("report.js")]
    head, blocks = facts["head"], [block for block in BLOCKS if block[0] != "stages" or facts["stages"]]
    blocks = [("both", "Both"), *blocks] if both else blocks
    title = f"{both['names'][0]} and {both['names'][1]}" if both else head["name"]
    data = {"charts": drawn, "rows": shown.rows, "packed": shown.packed, "twins": shown.twins}
    data["reasons"] = [[reason["task"], f"{reason['stage']}/{reason['reason']}"] for reason in facts["flow"]["reasons"]]
    page: str = _template().render(
        facts=facts,
        both=both,
        title=title,
        blocks=blocks,
        headlines=write_headlines(facts),
        charts=drawn,
        levels=levels,
        cells=_grid(facts["cells"], levels),
        values=_group(facts["coverage"].get("values", [])),
        rows_told=_tell_rows(facts, shown),
        css=_read("report.css"),
        data=embed(data),
        scripts=scripts,
        policy=write_policy(scripts),
        version=version,
        shards=count(facts["shards"], "committed shard"),
    )
    return page


def read_state(path: Path) -> str | None:
    """Of which rows a report is, as `dataset_state` names them; None for any other page."""
    # it stands before anything that a row says, and what rows say is escaped
    found = STATE.search(path.read_text(encoding="utf-8", errors="replace").partition("<title>")[0])
    return found[1] if found else None


def draw_charts(facts: Facts, both: Facts | None) -> dict[str, charts.Spec]:
    """The specifications of the charts that have something to show, by name."""
    levels = order_levels({cell["level"] for cell in facts["cells"]})
    drawn: dict[str, charts.Spec] = {}
    if facts["calibration"]["rows"]:
        drawn["calibration"] = charts.draw_calibration(facts["calibration"]["parts"])
    if facts["difficulty"]:
        drawn["difficulty"] = charts.draw_difficulty(facts["difficulty"], levels)
    for name, title in (("pass_rate", "pass rate"), ("agreement", "agreement")):
        if facts["samples"][name]:
            drawn[name] = charts.draw_shares(facts["samples"][name], title)
    tokens = facts["tokens"]
    if tokens:
        drawn["entropy"] = charts.draw_entropy(tokens["positions"])
    if tokens and tokens["tail"]:
        drawn["tail"] = charts.draw_tail(tokens["tail"])
    if facts["lengths"]["rows"]:
        drawn["lengths"] = charts.draw_lengths(facts["lengths"]["bins"])
    if facts["runs"]["ended"]:
        drawn["speed"] = charts.draw_speed(facts["runs"]["ended"][-40:])
    if both:
        drawn["both"] = charts.draw_both(both["cells"], both["names"])
    return drawn


def embed(value: Any) -> str:
    """JSON as it may stand inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy: these scripts, the page's own styles, and nothing from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "visible": _visible,
        "size": tell_size,
        "short": _short,
        "hours": _tell_hours,
        "plain": _plain,
        "percent": percent,
    }
    return environment.from_string(_read("report.html.j2"))


def _visible(text: Any) -> str:
    """Text whose control characters and marks of direction are seen, and do nothing."""
    return printable(str(text))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(name: str) -> str:
    return files("factory.publish.report").joinpath("page", *name.split("/")).read_text(encoding="utf-8")


def _read_vega() -> list[str]:
    interpreter = _read("vega/vega-interpreter.js")
    assert interpreter.count(IMPORT) == interpreter.count(EXPORT) == 1
    body = interpreter.replace(IMPORT, IMPORTED).replace(EXPORT, EXPORTED)
    return [_read("vega/vega.min.js"), _read("vega/vega-lite.min.js"), f"(() => {{\n{body}\n}})();"]


def order_levels(levels: set[str]) -> list[str]:
    """Levels from easy to hard where they have the usual names, the others by name behind them."""
    return sorted(levels, key=lambda level: (LEVELS.index(level) if level in LEVELS else len(LEVELS), level))


def sort_cells(cells: Sequence[Facts], levels: Sequence[str]) -> list[Facts]:
    """What is told by task and level, levels in their order."""
    return sorted(cells, key=lambda cell: (cell["task"], levels.index(cell["level"])))


def _grid(cells: Sequence[Facts], levels: Sequence[str]) -> list[Facts]:
    found = {(cell["task"], cell["level"]): cell for cell in cells}
    tasks = sorted({cell["task"] for cell in cells})
    return [{"name": task, "cells": [found.get((task, level)) for level in levels]} for task in tasks]


def _group(values: Sequence[Facts]) -> list[Facts]:
    tasks = sorted({row["task"] for row in values})
    return [{"name": task, "places": [row for row in values if row["task"] == task]} for task in tasks]


def _tell_rows(facts: Facts, shown: Shown) -> str:
    head = facts["head"]
    done = head["planned"] - head["left"]
    told = f"{count(len(shown.twins) or len(shown.rows), 'row')} of {done:,}"
    told += (
        ", most of them such as ended otherwise in the other"
        if shown.twins
        else (": some of every task, level and reason, and those at the ends")
    )
    return f"{told}. factory show --id opens any other."


def tell_size(size: float) -> str:
    """Bytes as people read them."""
    step = 0
    while size >= 1000 and step < len(UNITS) - 1:
        size, step = size / 1000, step + 1
    return f"{size:.0f} {UNITS[step]}" if step == 0 or size >= 100 else f"{size:.1f} {UNITS[step]}"


def _tell_hours(hours: float) -> str:
    return clock(3600 * hours)


def _short(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.4g}"
