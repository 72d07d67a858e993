"""Which rows a report shows and what it says they are about; and the charts it draws of the numbers."""

import json
import re
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair
import pytest
import tool_task
from conftest import write_task
from dataset_support import read_table
from report_support import embedded, make_record, make_rejection, unpack, write_dataset

from factory.dataset.ledger import read_ledger
from factory.dataset.manifest import read_manifest
from factory.job.job import Job
from factory.publish.report.build import read_facts, write_report
from factory.publish.report.coverage import describe_coverage
from factory.publish.report.facts import gather
from factory.publish.report.headlines import clock, percent, write_headlines
from factory.publish.report.page import draw_charts, order_levels, tell_size
from factory.publish.report.phrasings import UNKNOWN, read_phrasings
from factory.publish.report.sample import choose_rows, read_places
from factory.publish.report.store import Store
from factory.runs.run import run


def shown(store: Store, count: int) -> list[tuple[Any, dict[str, Any]]]:
    return list(read_places(store, choose_rows(store, count)))


def test_shown_rows_are_those_of_their_places_and_each_is_shown_once(tmp_path: Path) -> None:
    rows = [make_record(n) if n % 3 else make_rejection(n) for n in range(40)]
    out = write_dataset(tmp_path / "out", [rows[:15], rows[15:]])
    with Store(read_ledger(out)) as store:
        found = shown(store, 20)
    assert len(found) == len({row["id"] for _, row in found}) == 20
    ids = {name: {row["id"] for row in read_table(out, name)} for name in ("data", "rejected")}
    for place, row in found:
        assert row["id"] in ids["data" if place.table == "accepted" else "rejected"]
    assert Counter(place.table for place, _ in found) == {"accepted": 10, "rejected": 10}


@pytest.mark.parametrize(("count", "right", "wrong"), [(60, 27, 13), (10, 5, 5), (1, 1, 0)])
def test_half_of_the_shown_rows_are_rejected_where_there_are_as_many(
    tmp_path: Path, count: int, right: int, wrong: int
) -> None:
    out = write_dataset(tmp_path / "out", [[*map(make_record, range(27)), *map(make_rejection, range(30, 43))]])
    with Store(read_ledger(out)) as store:
        tables = Counter(place.table for place in choose_rows(store, count))
    assert tables == Counter({"accepted": right, "rejected": wrong})


def test_every_task_and_level_has_a_shown_row_and_the_ends_are_among_them(tmp_path: Path) -> None:
    rows = [make_record(n, "r" * (n + 2) + "{}", 1 - n / 50, task=f"t{n % 4}", level=f"l{n % 3}") for n in range(48)]
    out = write_dataset(tmp_path / "out", [rows])
    with Store(read_ledger(out)) as store:
        found = shown(store, 30)
    assert len({(row["task"], row["level"]) for _, row in found}) == 12
    least = min(read_table(out, "data"), key=lambda row: row["confidence"])
    assert least["id"] in {row["id"] for place, row in found if place.why == "least confident"}


def test_phrasings_are_told_by_their_templates_words(workspace: Path, make_job: Callable[..., Job]) -> None:
    out = workspace / "out"
    templates = workspace / "prompts" / "adding"
    (templates / "user.j2").write_text("Please add these two numbers: {{ scenario.a }} and {{ scenario.b }}.")
    (templates / "user_short.j2").write_text("What do they make together, {{ scenario.a }} + {{ scenario.b }}?")
    run(make_job(), workspace, out)
    phrasings = read_phrasings(out, "adding")
    assert phrasings is not None
    assert phrasings.name("something else altogether") == UNKNOWN
    with Store(read_ledger(out)) as store:
        found = describe_coverage(store)["phrasings"]
    counted = {row["phrasing"]: sum(row["levels"].values()) for row in found}
    texts = [row["prompt"][-1]["content"] for row in read_table(out, "data")]
    assert counted == Counter("user" if text.startswith("Please") else "user_short" for text in texts)


def test_values_openings_and_rows_alike_are_counted(tmp_path: Path) -> None:
    def scenario(number: int) -> str:
        words = " ".join(f"w{number}x{i}" for i in range(30))
        return json.dumps({"who": [{"name": f"n{number % 2}"}, {"name": "Ann"}], "text": words})

    rows = [make_record(n, scenario=scenario(n)) for n in range(6)]
    twin = make_record(9, scenario=scenario(0), messages=({"role": "user", "content": "question 0"},))
    out = write_dataset(tmp_path / "out", [[*rows, twin]])
    with Store(read_ledger(out)) as store:
        found = describe_coverage(store)
    names = next(value for value in found["values"] if value["place"] == "who.*.name")
    assert (names["values"], names["distinct"]) == (14, 3)
    assert names["top"][0] == {"value": "Ann", "rows": 7}
    assert found["same"] == {"rows": 7, "distinct": 6}
    (pair,) = found["alike"]["pairs"]
    assert {pair["a"], pair["b"]} == {"id0", "id9"}
    assert pair["similarity"] == 1.0
    opening = next(opening for opening in found["openings"] if opening["what"] == "reasoning")
    assert (opening["distinct"], opening["top"]) == (1, [{"opening": "ab", "rows": 7}])


def test_rows_with_tools_show_them_and_the_calls_of_earlier_turns(tmp_path: Path, make_job: Callable[..., Job]) -> None:
    texts = {"schema": tool_task.SCHEMA, "task_toml": tool_task.TASK, "system_j2": "Use the tools."}
    write_task(tmp_path, "errands", user_j2=tool_task.USER, user_short_j2=tool_task.USER, **texts)
    out = tmp_path / "out"
    job = make_job(
        tasks=[{"name": "errands", "count": 12}],
        teacher={"backend": "scripted", "scripted": {"wrong": 0.5}},
        validation={"retries": 2, "retry": "repair"},
    )
    run(job, tmp_path, out)
    page = embedded(write_report(out).read_text(encoding="utf-8"))
    rows = [unpack(packed) for packed in page["packed"]]
    assert all("set_timer" in row["tools"][0] for row in rows)
    turns = [turn for row in rows for turn in row["prompt"] if turn[0] == "assistant"]
    assert any("set_timer" in text for _, text, *_ in turns)


def test_every_chart_fits_the_schema_and_holds_the_numbers_it_draws(tmp_path: Path) -> None:
    rows = [make_record(n, confidence=n / 50, level=("easy", "hard")[n % 2]) for n in range(30)]
    out = write_dataset(tmp_path / "out", [[*rows, *map(make_rejection, range(40, 50))]])
    facts = read_facts(out)
    drawn = draw_charts(facts, None)
    assert set(drawn) == {"calibration", "difficulty", "entropy", "tail", "lengths"}
    for spec in drawn.values():
        altair.Chart.from_dict(spec)
    assert drawn["calibration"]["data"]["values"] == facts["calibration"]["parts"]
    parts = drawn["lengths"]["hconcat"]
    assert sum(row["rows"] for part in parts for row in part["data"]["values"]) == 3 * 30


def test_the_vendored_libraries_are_those_that_altair_writes_for() -> None:
    vendored = files("factory.publish.report").joinpath("page", "vega")
    script = vendored.joinpath("vega-lite.min.js").read_text(encoding="utf-8")
    found = re.search(r'"use strict";var \w+="(\d+)\.(\d+)\.\d+"', script)
    assert found
    major, minor = map(int, altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    assert int(found[1]) == major
    assert int(found[2]) >= minor
    assert {path.name for path in vendored.iterdir()} == {
        *("vega.min.js", "vega-lite.min.js", "vega-interpreter.js"),
        *("LICENSE-vega", "LICENSE-vega-lite", "LICENSE-vega-interpreter"),
    }


def test_headlines_answer_their_questions(tmp_path: Path) -> None:
    rows = [make_record(n, level=("easy", "hard")[n % 2]) for n in range(6)]
    out = write_dataset(tmp_path / "out", [[*rows, make_rejection(7, level="hard")]])
    ledger = read_ledger(out)
    with Store(ledger) as store:
        told = write_headlines(gather(store, read_manifest(out)))
    assert told["flow"] == (
        "6 of 7 rows are kept. Most are lost at the stage check (1), most often as wrong_total (1)."
    )
    assert told["teaches"] == "The most is kept of adding, easy (100%); the least of adding, hard (75%)."
    assert "the right one is the more confident in 100% of the cases" in told["calibration"]
    assert told["time"] == "No run has told of its end yet."
    assert told["stages"].startswith("There is no curriculum")


def test_levels_go_from_easy_to_hard() -> None:
    assert order_levels({"hard", "b", "easy", "a", "medium"}) == ["easy", "medium", "hard", "a", "b"]


def test_sizes_and_times_are_told_as_people_read_them() -> None:
    assert [tell_size(size) for size in (0, 999, 1_500, 2.4e6, 7.4e9)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.4 MB",
        "7.4 GB",
    ]
    assert [clock(seconds) for seconds in (3, 99, 240, 7_200)] == ["3 s", "99 s", "4 min", "2.0 h"]


@pytest.mark.parametrize(
    ("share", "told"),
    [(0, "0"), (1, "100"), (0.5, "50"), (0.004, "0.4"), (0.00001, "<0.1"), (0.995, "99.5"), (0.99999, ">99.9")],
)
def test_a_share_that_is_not_all_never_reads_100_nor_some_0(share: float, told: str) -> None:
    assert percent(share) == told


def test_headlines_say_what_the_tables_say_and_hide_no_cell(tmp_path: Path) -> None:
    kept = [make_record(n, level="easy") for n in range(4)]
    lost = [make_rejection(10 + n, level=("hard", "odd", "rare", "thin")[n % 4]) for n in range(4)]
    out = write_dataset(tmp_path / "out", [[*kept, *lost[:2]]])
    with Store(read_ledger(out)) as store:
        facts = gather(store, read_manifest(out))
    least = "the least of adding, hard and of adding, odd (0%)."
    assert write_headlines(facts)["teaches"] == f"The most is kept of adding, easy (100%); {least}"
    with Store(read_ledger(write_dataset(tmp_path / "four", [[*kept, *lost]]))) as store:
        four = gather(store, read_manifest(out))
    assert write_headlines(four)["teaches"].endswith("of adding, hard, of adding, odd and of 2 more (0%).")
    for part in facts["tokens"]["parts"]:
        part["sure"] = 0.9953
    told = write_headlines(facts)["sure"]
    assert "99.5% of the" in told
    assert "100%" not in told
