"""What the rows are about, and what comes again and again in them: scenarios, phrasings, first words, rows alike.

Texts are read of some of the part's accepted rows: those whose ids' hashes come first, so the same at every report. A
value is a leaf of the scenario's JSON; the numbers of list items are left out of its place, so `attendees.*.name` holds
the names of all who attend.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

from factory.publish.report.phrasings import read_phrasings
from factory.publish.report.store import Store
from factory.quality.duplicates import NearIndex, StoredRow
from factory.texts.texts import leaves

TEXTS: Final = 4_000  # rows whose texts are read
CHARACTERS: Final = 20_000  # of each text
ALIKE: Final = 2_000  # rows that are compared with each other
THRESHOLD: Final = 0.6
PLACES: Final = 16  # of a task, those with most values
VALUES: Final = 5
OPENINGS: Final = 5
WORDS: Final = 3
SHOWN: Final = 60  # characters of a value
# a turn that calls a tool may have no text
SAID: Final = "coalesce(m.content, '')"
# of a dataset with pictures, whose contents are lists of parts
PARTS: Final = "array_to_string([coalesce(p.text, '[image]') FOR p IN m.content], chr(10))"
COLUMNS: Final = f"""id, prompt_id, task, level, left(reasoning, 200) AS reasoning,
    left(answer, {CHARACTERS}) AS answer, left(scenario, {CHARACTERS}) AS scenario"""


def _columns(store: Store) -> str:
    parts = "content: list" in store.known["data"]["prompt"]
    return f"{COLUMNS}, [left({PARTS if parts else SAID}, {CHARACTERS}) FOR m IN prompt] AS prompt"


def describe_coverage(store: Store) -> dict[str, Any]:
    """Rows by phrasing and level, scenario values, first words, duplicates; of the part's accepted rows."""
    if not store.part or not store.ledger.totals.accepted:
        return {"rows": 0, "read": 0}
    rows = store.rows(f"SELECT {_columns(store)} FROM accepted_part ORDER BY hash(id) LIMIT {TEXTS}")
    same = store.one(
        "SELECT count(*) AS rows, count(DISTINCT hash(task, prompt[-1].content, answer)) AS distinct FROM accepted_part"
    )
    answers = store.rows(
        "SELECT task, count(*) AS rows, count(DISTINCT hash(answer)) AS distinct FROM accepted_part"
        " GROUP BY task ORDER BY task"
    )
    return {
        "rows": same["rows"],
        "read": len(rows),
        "phrasings": list(_count_phrasings(store, rows)),
        "openings": list(_count_openings(rows)),
        "values": list(_count_values(rows)),
        "same": same,
        "answers": answers,
        "alike": describe_alike(rows[:ALIKE]),
    }


def _count_phrasings(store: Store, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How many rows each phrasing of a task has at each level; those whose template is not told, as `unknown`.

    Levels that were asked for and phrasings without any row are among them, with 0.
    """
    for task, of_task in _by_task(rows):
        phrasings = read_phrasings(store.ledger.out, task)
        if not phrasings:
            continue
        found = Counter((phrasings.name("\n".join(row["prompt"])), row["level"]) for row in of_task)
        levels = sorted({level for _, level in found} | _asked_levels(store, task))
        for name in sorted({name for name, _ in found} | set(phrasings.pieces)):
            yield {"task": task, "phrasing": name, "levels": {level: found[name, level] for level in levels}}


def _asked_levels(store: Store, task: str) -> set[str]:
    """The levels of all its rows, accepted or not."""
    begin = f"{task}/"
    return {cell.removeprefix(begin) for cell in store.ledger.totals.cells if cell.startswith(begin)}


def _count_openings(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How reasonings and answers begin: the commonest first words of each, by task."""
    for what, first in (("reasoning", _first_words), ("answer", _first_text)):
        for task, of_task in _by_task(rows):
            found = Counter(first(row[what]) for row in of_task if row[what] is not None)
            top = [{"opening": cut(opening), "rows": count} for opening, count in found.most_common(OPENINGS)]
            if top:
                yield {"task": task, "what": what, "rows": found.total(), "distinct": len(found), "top": top}


def _first_words(text: str) -> str:
    return " ".join(text.split(maxsplit=WORDS)[:WORDS])


def _first_text(answer: str) -> str:
    """The first words of the first text in an answer: keys and brackets are the schema's."""
    values = (leaf for _, leaf in _leaves_of(answer))
    return _first_words(next(values, answer))


def _by_task(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for task in sorted({row["task"] for row in rows}):
        yield task, [row for row in rows if row["task"] == task]


def _count_values(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """By task and place in the scenario: how many values there are, and the commonest."""
    for task, of_task in _by_task(rows):
        counts: dict[str, Counter[str]] = {}
        for row in of_task:
            for place, value in _leaves_of(row["scenario"]):
                counts.setdefault(place, Counter())[value] += 1
        for place, found in sorted(counts.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:PLACES]:
            yield {
                "task": task,
                "place": cut(place),
                "values": found.total(),
                "distinct": len(found),
                "top": [{"value": value, "rows": count} for value, count in found.most_common(VALUES)],
            }


def _leaves_of(text: str | None) -> Iterator[tuple[str, str]]:
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return
    for steps, leaf in leaves(value):
        place = ".".join("*" if isinstance(step, int) else step for step in steps)
        yield place, cut(leaf if isinstance(leaf, str) else json.dumps(leaf))


def cut(text: str, most: int = SHOWN) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def describe_alike(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The pairs of rows that are most alike in scenario and answer, of other prompts; each row with its nearest."""
    pairs = sorted(_nearest(rows), key=lambda pair: (-pair["similarity"], pair["a"], pair["b"]))
    return {"rows": len(rows), "threshold": THRESHOLD, "found": len(pairs), "pairs": pairs[:VALUES]}


def _nearest(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    indexes: dict[str, NearIndex] = {}
    for row in rows:
        index = indexes.setdefault(row["task"], NearIndex(THRESHOLD))
        stored = StoredRow(row["id"], row["prompt_id"], row["task"], (), row["scenario"] or "", row["answer"] or "")
        sketch = index.sketch(stored)
        if near := index.find(stored, sketch):
            yield {"task": row["task"], "similarity": round(near[0], 3), "a": near[1], "b": row["id"]}
        index.add(stored, sketch)
