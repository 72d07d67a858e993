"""What a report counts, held against sums over the rows themselves."""

from pathlib import Path

import numpy as np
import pytest
from dataset_support import read_table
from report_support import make_record, make_rejection, write_dataset

from factory.dataset.ledger import read_ledger
from factory.publish.report import store as store_module
from factory.publish.report.counts import describe_flow
from factory.publish.report.measures import (
    describe_calibration,
    describe_cells,
    describe_difficulty,
    describe_lengths,
    wilson,
)
from factory.publish.report.store import Store, choose_part


def mixed(out: Path) -> Path:
    rng = np.random.default_rng(4)
    rows = []
    for number in range(60):
        make = make_record if rng.random() < 0.6 else make_rejection
        level = ("easy", "hard")[number % 2]
        text = "r" * (number % 7 + 2) + "{}"
        rows.append(make(number, text, confidence=round(float(rng.random()), 3), level=level))
    return write_dataset(out, [rows[:25], rows[25:50], rows[50:]])


def test_cells_and_flow_add_up_to_the_ledger(tmp_path: Path) -> None:
    ledger = read_ledger(mixed(tmp_path / "out"))
    with Store(ledger) as store:
        cells, flow = describe_cells(store), describe_flow(store)
    found = {f"{c['task']}/{c['level']}": [c["accepted"], c["rows"] - c["accepted"], 0] for c in cells}
    assert found == ledger.totals.cells
    assert sum(step["lost"] for step in flow["steps"]) == ledger.totals.rejected
    assert flow["steps"][-1]["left"] == ledger.totals.accepted
    assert [(r["stage"], r["reason"], r["rows"]) for r in flow["reasons"]] == [
        ("check", "wrong_total", ledger.totals.rejected)
    ]


def test_calibration_is_that_of_all_pairs_of_a_right_and_a_wrong_answer(tmp_path: Path) -> None:
    out = mixed(tmp_path / "out")
    right, wrong = (np.array([row["confidence"] for row in read_table(out, name)]) for name in ("data", "rejected"))
    with Store(read_ledger(out)) as store:
        found = describe_calibration(store, ["adding"])
    pairs = right[:, None] - wrong[None, :]
    assert found["ranks"] == pytest.approx((np.sum(pairs > 0) + np.sum(pairs == 0) / 2) / pairs.size)
    assert (found["rows"], found["right"]) == (60, len(right))
    assert [part["rows"] for part in found["parts"]] == [6] * 10
    ordered = sorted([(c, 1) for c in right.tolist()] + [(c, 0) for c in wrong.tolist()])
    first = ordered[:6]
    assert found["parts"][0]["confidence"] == pytest.approx(np.mean([c for c, _ in first]))
    assert found["parts"][0]["share"] == pytest.approx(np.mean([r for _, r in first]))


@pytest.mark.parametrize(("checked", "rows"), [(["adding"], 4), ([], 2)])
def test_a_row_that_a_filter_turned_down_is_right_where_its_check_had_passed(
    tmp_path: Path, checked: list[str], rows: int
) -> None:
    filtered = [make_record(n).reject("filter", "refusal", ()) for n in (5, 6)]
    measured = [
        type(row)(**{f: getattr(row, f) for f in row.__slots__} | {"measures": make_record(1).measures})
        for row in filtered
    ]
    out = write_dataset(tmp_path / "out", [[make_record(0), make_rejection(1), *measured]])
    with Store(read_ledger(out)) as store:
        found = describe_calibration(store, checked)
    assert (found["rows"], found["right"]) == (rows, rows - 1)


def test_errors_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    broken = make_rejection(1)
    error = type(broken)(**{f: getattr(broken, f) for f in broken.__slots__} | {"kind": "error"})
    out = write_dataset(tmp_path / "out", [[make_record(0), error]])
    with Store(read_ledger(out)) as store:
        found = describe_calibration(store, ["adding"])
    assert (found["rows"], found["right"], found["ranks"]) == (1, 1, None)


def test_difficulty_and_lengths_are_quantiles_of_the_rows(tmp_path: Path) -> None:
    out = mixed(tmp_path / "out")
    rows = read_table(out, "data")
    with Store(read_ledger(out)) as store:
        difficulty, lengths = describe_difficulty(store), describe_lengths(store)
    easy = [row["difficulty"] for row in rows if row["level"] == "easy"]
    assert difficulty[0]["median"] == pytest.approx(np.median(easy))
    assert difficulty[0]["rows"] == len(easy)
    assert lengths["rows"] == len(rows)
    assert lengths["longest"] == max(len(row["prompt_token_ids"]) + len(row["completion_token_ids"]) for row in rows)
    for what in ("prompt", "reasoning", "answer"):
        assert sum(b["rows"] for b in lengths["bins"] if b["what"] == what) == len(rows)
    reasoning = next(q for q in lengths["quantiles"] if q["what"] == "reasoning")
    assert reasoning["most"] == max(row["reasoning_tokens"] for row in rows)


def test_the_part_is_spread_over_the_dataset_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_dataset(tmp_path / "out", [[make_record(10 * s + n) for n in range(10)] for s in range(12)])
    ledger = read_ledger(out)
    assert choose_part(ledger) == list(range(12))
    assert choose_part(ledger, 40) == [0, 3, 6, 9]
    assert choose_part(ledger, 1) == [0]
    monkeypatch.setattr(store_module, "choose_part", lambda ledger: [0, 6])
    with Store(ledger) as store:
        assert store.one("SELECT count(*) AS n FROM accepted")["n"] == 120
        assert store.one("SELECT count(*) AS n FROM accepted_part")["n"] == 20
        assert {row["shard"] for row in store.rows("SELECT DISTINCT shard FROM accepted_part")} == {0, 6}


def test_a_dataset_whose_rejected_rows_have_no_confidence_shows_its_accepted_rows(tmp_path: Path) -> None:
    from dataclasses import replace

    from report_support import SIGNALS

    out = write_dataset(
        tmp_path / "out", [[make_record(0), make_rejection(1)]], signals=replace(SIGNALS, rejected_measures=False)
    )
    with Store(read_ledger(out)) as store:
        assert not store.has("rejected", "confidence")
        assert describe_calibration(store, ["adding"])["rows"] == 1


def test_the_range_of_a_share_holds_it() -> None:
    # Wilson's interval at 95 %, from the statistician's usual table
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
