"""What a card tells of coverage: the report's own numbers, counted again here by hand; and data that stays data."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, TASK_FILE, write_task
from dataset_support import read_table
from export_support import MakeJob, make_dataset
from huggingface_hub import DatasetCard, DatasetCardData

from factory.dataset.entries import Totals
from factory.dataset.ledger import read_ledger
from factory.dataset.stages import current_summary
from factory.publish import covered
from factory.publish.card import save_card
from factory.publish.covered import quote, tell_coverage, write_lines
from factory.publish.report.build import read_facts
from factory.publish.report.phrasings import UNKNOWN

# names of whom most are one, a kind that is mostly one, and a level whose rows are all too long for the student
NAMES = SCHEMA.replace("    b: int = 1\n", "    b: int = 1\n    name: str = ''\n    kind: str = ''\n").replace(
    "    return Scenario(a=rng.randrange(most), b=rng.randrange(most))",
    """    name = "Ada" if rng.random() < 0.4 else f"N{rng.choice('abcdefghijkl')}{rng.randrange(9)}"
    kind = "walk" if rng.random() < 0.8 else "run"
    return Scenario(a=rng.randrange(most) + (500 if level == "hard" else 0), b=1, name=name, kind=kind)""",
)
STUDENT = {"max_tokens": 2000}
LEVELS = 'levels = ["easy", "medium", "hard"]'
LONG = "{% if scenario.a >= 500 %}{% for n in range(400) %} {{ n }} and{% endfor %}{% endif %}"
PROMPTS = {
    "user_j2": "Please add these two numbers for {{ scenario.name }}: {{ scenario.a }} and {{ scenario.b }}." + LONG,
    "user_short_j2": "What do they make together, {{ scenario.a }} + {{ scenario.b }}?" + LONG,
}


@pytest.fixture
def counted(tmp_path: Path, make_job: MakeJob) -> Path:
    """A dataset with a bias of each kind."""
    task = TASK_FILE.replace('levels = ["easy", "hard"]', LEVELS)
    write_task(tmp_path, schema=NAMES, task_toml=task, **PROMPTS)
    return make_dataset(tmp_path, make_job, tasks=[{"name": "adding", "count": 90}], shard_rows=30, student=STUDENT)


def coverage_of(out: Path) -> list[str]:
    """The lines of a card's section."""
    text = (out / "README.md").read_text(encoding="utf-8")
    return text.partition("## Coverage, biases and limits\n\n")[2].partition("\n\n")[0].splitlines()


def test_card_and_report_tell_the_same_numbers(counted: Path) -> None:
    facts, lines = read_facts(counted), coverage_of(counted)
    found, accepted = facts["coverage"], facts["head"]["accepted"]
    assert write_lines(found, accepted) == [line for line in lines if line in write_lines(found, accepted)]
    assert 6 <= len(lines) <= 15
    # the table of tasks is of the ledger, the report counts the rows: they must not differ either
    text = (counted / "README.md").read_text()
    for cell in facts["cells"]:
        share = cell["accepted"] / cell["rows"]
        assert f"| adding | {cell['level']} | {cell['accepted']:,} | {cell['rows']:,} | {share:.0%} |" in text


def test_the_shares_are_those_of_the_rows(counted: Path) -> None:
    rows, told = read_table(counted, "data"), "\n".join(coverage_of(counted))
    n = len(rows)
    assert f"Texts of {n} of {n} accepted rows were read" in told
    kinds = Counter(json.loads(row["scenario"])["kind"] for row in rows)
    names = Counter(json.loads(row["scenario"])["name"] for row in rows)
    assert f"- Kinds that come often: `walk` {kinds['walk'] / n:.0%} in `kind` of adding (n = {n})." in told
    assert f"`Ada` {names['Ada'] / n:.0%} in `name` of adding (n = {n})" in told
    first = Counter(" ".join(row["reasoning"].split()[:3]) for row in rows).most_common(1)[0]
    assert first[1] == 1 or f"`{first[0]}` {first[1] / n:.0%} of adding (n = {n})" in told
    begun = sum(row["prompt"][-1]["content"].startswith("Please") for row in rows)
    assert f"`user` {begun / n:.0%}" in told
    answers = len({row["answer"] for row in rows})
    assert answers < n
    assert f"- Fewest different answers: {answers} in {n} rows of adding." in told


def test_what_was_asked_for_and_never_comes_is_told(counted: Path) -> None:
    told = "\n".join(coverage_of(counted))
    assert "- Asked for and without an accepted row: adding/hard." in told
    never = next(line for line in told.splitlines() if line.startswith("- Never among these"))
    assert "adding/hard as `user`; adding/hard as `user_short`" in never


def test_a_phrasing_is_not_called_missing_where_rows_have_not_told_theirs() -> None:
    rows = [
        {"task": "t", "phrasing": UNKNOWN, "levels": {"easy": 4, "hard": 0}},
        {"task": "t", "phrasing": "user", "levels": {"easy": 6, "hard": 0}},
        {"task": "t", "phrasing": "user_chat", "levels": {"easy": 0, "hard": 5}},
    ]
    alike = {"rows": 0, "threshold": 0.6, "found": 0, "pairs": []}
    found: dict[str, Any] = {"read": 15, "rows": 15, "phrasings": rows, "openings": [], "values": [], "answers": []}
    lines = write_lines(found | {"same": {"rows": 15, "distinct": 14}, "alike": alike}, 15)
    assert "- Never among these 15 rows: t/hard as `user`." in lines
    assert "- Phrasings, most and least frequent: t `user` 40%, `user_chat` 33% (n = 15, 4 not told)." in lines
    assert any(line.startswith("- Request and answer of another row: 1 of 15 rows.") for line in lines)


def test_only_the_most_uneven_are_listed() -> None:
    values = [
        {"task": "t", "place": f"p{i}", "values": 100, "distinct": 40, "top": [{"value": f"v{i}", "rows": 10 + i}]}
        for i in range(9)
    ]
    found: dict[str, Any] = {"read": 9, "phrasings": [], "openings": [], "values": values, "answers": []}
    alike = {"rows": 9, "threshold": 0.6, "found": 1, "pairs": [{"a": "x", "b": "y", "similarity": 0.917}]}
    lines = write_lines(found | {"same": {"rows": 9, "distinct": 9}, "alike": alike}, 9)
    (line,) = (line for line in lines if "Names, places" in line)
    assert line.index("`v8` 18% in `p8` of t (n = 100)") < line.index("`v4` 14%")
    assert line.endswith("; and 4 more.")
    assert "`v3`" not in line
    assert lines[-1].endswith("1 of 9 that were compared (similarity 0.6 or more), nearest `x` and `y`, 0.92.")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\nb\t c", "`a b c`"),
        ("`<script>alert(1)</script>`", "`'<script>alert(1)</script>'`"),
        ("\u202egnp.exe\x1b[31m", "`gnp.exe[31m`"),
        ("x" * 99, f"`{'x' * 39}…`"),
        ("", "` `"),
    ],
)
def test_a_value_is_no_markup(text: str, told: str) -> None:
    assert quote(text) == told


def test_the_hub_s_own_reader_takes_a_card_whose_rows_hold_anything(tmp_path: Path, make_job: MakeJob) -> None:
    hostile = "---\\n`|<b>\\u202e\\n## Load"
    write_task(tmp_path, schema=NAMES.replace('"Ada"', f'"{hostile}"'), **PROMPTS)
    out = make_dataset(tmp_path, make_job, tasks=[{"name": "adding", "count": 60}])
    card = DatasetCard.load(out / "README.md")
    assert isinstance(card.data, DatasetCardData)
    assert card.data.to_dict()["configs"][0]["config_name"] == "default"
    assert card.text.count("\n## Load\n") == 1
    assert "\u202e" not in card.content
    assert "`--- '|<b> ## Load`" in card.text


def test_where_the_extra_is_missing_the_card_says_so(counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    ledger = read_ledger(counted)
    save_card(ledger, current_summary(ledger))
    told = "\n".join(coverage_of(counted))
    assert "were not counted: the extra `report` was not installed where this card was written" in told
    assert "Names, places and the like" not in told
    assert "- Asked for and without an accepted row: adding/hard." in told  # the ledger says it


def test_rows_are_counted_once_all_are_there(counted: Path) -> None:
    ledger = read_ledger(counted)
    ledger.totals = Totals(planned=ledger.totals.planned + 1, accepted=3)
    assert tell_coverage(ledger) == [f"- {covered.WHAT} are counted once all rows are there."]
    ledger.totals = Totals()
    assert tell_coverage(ledger) == []


def test_a_file_that_is_gone_ends_no_run_and_is_told(counted: Path) -> None:
    covered._count.cache_clear()
    (counted / "data/train-00001.parquet").unlink()
    (line,) = tell_coverage(read_ledger(counted))
    assert "could not be counted" in line
    assert "`factory verify` names them" in line
    assert str(counted) not in line
