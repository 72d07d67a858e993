"""What a card tells of coverage: what `factory report` counts of the rows' texts, by the same function, in a few lines.

Texts of rows are data: a value is shown as code on one line, without anything that does not print.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from factory.dataset.ledger import Ledger, read_ledger
from factory.dataset.stages import dataset_state
from factory.dataset.store import Store as Kept
from factory.errors import DatasetError
from factory.publish.report.coverage import describe_coverage
from factory.publish.report.phrasings import UNKNOWN
from factory.publish.report.store import FOLDERS, Store, choose_part

Facts = dict[str, Any]
WHAT: Final = "Phrasings, names and places, first words and rows alike"
SHOWN: Final = 5  # of what comes most often, and of what never comes
UNEVEN: Final = 1.5  # times an even share, from which a value counts as frequent
FEW: Final = 10  # values of a place in a scenario: fewer are kinds, more are names, places and the like
LEAST: Final = 20  # values of a place, of which a share says anything
CHARACTERS: Final = 40  # of a value


def tell_coverage(ledger: Ledger) -> list[str]:
    """Lines of the card: counted once all rows are there and the extra `report` is; else why they are not."""
    if not ledger.totals.accepted:
        return []
    if not ledger.totals.complete:
        return [f"- {WHAT} are counted once all rows are there."]
    if find_spec("duckdb") is None:
        told = "the extra `report` was not installed where this card was written; `factory report` counts them"
        return [f"- {WHAT} were not counted: {told}."]
    try:
        found = _count(ledger.out, dataset_state(ledger), ledger.store)
    except (DatasetError, OSError):  # a card must not end a run whose rows are safe; `verify` says what is wrong
        return [f"- {WHAT} could not be counted: files of the rows could not be read; `factory verify` names them."]
    return write_lines(found, ledger.totals.accepted)


@lru_cache(maxsize=1)
def _count(out: Path, state: str, kept: Kept) -> Facts:
    """The report's own figures of the rows as `state` names them: a card is often written twice in a row."""
    ledger = read_ledger(out, store=kept)
    with ledger.here(choose_part(ledger), *FOLDERS.values()), Store(ledger, whole=False) as store:
        return describe_coverage(store)


def write_lines(found: Facts, accepted: int) -> list[str]:
    """The figures as lines, the most uneven first; n is how many there are of which a share is told."""
    told = [
        ("Phrasings, most and least frequent", _phrasings(found["phrasings"])),
        (f"Never among these {found['read']:,} rows", _never(found["phrasings"])),
        *(
            (f"{what.capitalize()}s begin alike", _openings(found["openings"], what))
            for what in ("reasoning", "answer")
        ),
        ("Kinds that come often", _values(found["values"], few=True)),
        ("Names, places and the like that come often", _values(found["values"], few=False)),
        ("Fewest different answers", _answers(found["answers"])),
    ]
    lines = [f"- Texts of {found['read']:,} of {accepted:,} accepted rows were read, as `factory report` reads them."]
    lines += [f"- {name}: {_join(items)}." for name, items in told if items]
    return [*lines, _alike(found)]


def _join(items: list[str]) -> str:
    more = len(items) - SHOWN
    return "; ".join(items[:SHOWN]) + (f"; and {more:,} more" if more > 0 else "")


def _phrasings(counted: list[Facts]) -> list[str]:
    """By task, the most uneven first; rows whose phrasing is not told are part of n, and said."""
    by_task: dict[str, dict[str, int]] = {}
    for row in counted:
        by_task.setdefault(row["task"], {})[row["phrasing"]] = sum(row["levels"].values())
    told = []
    for task, rows in by_task.items():
        n, unknown = sum(rows.values()), rows.pop(UNKNOWN, 0)
        most, least = (choose(rows, key=lambda name: (rows[name], name)) for choose in (max, min))
        rest = f", {unknown:,} not told" if unknown else ""
        text = f"{task} {quote(most)} {rows[most] / n:.0%}, {quote(least)} {rows[least] / n:.0%} (n = {n:,}{rest})"
        told.append((rows[least] / n - rows[most] / n, task, text))
    return [text for *_, text in sorted(told)]


def _never(counted: list[Facts]) -> list[str]:
    """Levels that a phrasing of their task has no row of, where each row of that level has told its phrasing."""
    untold = {
        (row["task"], level)
        for row in counted
        if row["phrasing"] == UNKNOWN
        for level, rows in row["levels"].items()
        if rows
    }
    return [
        f"{row['task']}/{level} as {quote(row['phrasing'])}"
        for row in counted
        for level, rows in row["levels"].items()
        if not rows and row["phrasing"] != UNKNOWN and (row["task"], level) not in untold
    ]


def _openings(counted: list[Facts], what: str) -> list[str]:
    tops = ((row["task"], row["rows"], row["top"][0]) for row in counted if row["what"] == what)
    return _ranked(
        (top["rows"] / n, f"{quote(top['opening'])} {top['rows'] / n:.0%} of {task} (n = {n:,})")
        for task, n, top in tops
        if top["rows"] > 1
    )


def _values(counted: list[Facts], few: bool) -> list[str]:
    """Of each place in a scenario with few or many values the commonest text, where it comes more often than others."""
    tops = ((row, next((top for top in row["top"] if _is_text(top["value"])), None)) for row in counted)
    return _ranked(
        (top["rows"] / row["values"], _tell_value(row, top))
        for row, top in tops
        if top and top["rows"] > 1 and row["values"] >= LEAST and (1 < row["distinct"] < FEW) == few
        if top["rows"] * row["distinct"] >= UNEVEN * row["values"]
    )


def _tell_value(row: Facts, top: Facts) -> str:
    where = f"{quote(row['place'])} of {row['task']}"
    return f"{quote(top['value'])} {top['rows'] / row['values']:.0%} in {where} (n = {row['values']:,})"


def _is_text(value: str) -> bool:
    return any(map(str.isalpha, value)) and value not in ("true", "false", "null")


def _answers(counted: list[Facts]) -> list[str]:
    return _ranked(
        (1 - row["distinct"] / row["rows"], f"{row['distinct']:,} in {row['rows']:,} rows of {row['task']}")
        for row in counted
        if row["distinct"] < row["rows"]
    )[:1]


def _ranked(told: Iterable[tuple[float, str]]) -> list[str]:
    return [text for _, text in sorted(told, key=lambda pair: (-pair[0], pair[1]))]


def _alike(found: Facts) -> str:
    same, alike = found["same"], found["alike"]
    twice = same["rows"] - same["distinct"]
    told = f"- Request and answer of another row: {twice:,} of {same['rows']:,} rows. Much like another one: "
    told += f"{alike['found']:,} of {alike['rows']:,} that were compared (similarity {alike['threshold']:g} or more)"
    for pair in alike["pairs"][:1]:
        told += f", nearest {quote(pair['a'])} and {quote(pair['b'])}, {pair['similarity']:.2f}"
    return f"{told}."


def quote(text: str) -> str:
    """A text as Markdown's code, on one line: nothing in it is markup, moves the cursor or turns the writing round."""
    plain = "".join(_printed(" ".join(text.split())))
    plain = plain if len(plain) <= CHARACTERS else f"{plain[: CHARACTERS - 1]}…"
    return f"`{plain.strip() or ' '}`"


def _printed(text: str) -> Iterator[str]:
    return ("'" if sign == "`" else sign for sign in text if sign.isprintable())
