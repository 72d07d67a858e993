"""The ledger: a shard counts when its line is there, a job cannot become another one, and no two runs meet."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dataset_support import SIGNALS, change_line, held_ledger, make_record, read_ledger_lines, read_tree, some_outcomes

from factory.dataset.entries import ShardEntry, Totals, summarize_shard
from factory.dataset.ledger import Ledger, read_ledger, scan_ledger
from factory.dataset.manifest import (
    MANIFEST_VERSION,
    find_changes,
    list_changes,
    read_manifest,
    read_signals,
    reconcile_manifest,
    seal,
    write_atomically,
)
from factory.dataset.shards import ShardFile
from factory.errors import DatasetError
from factory.hashing import canonical_json
from factory.signals import SignalSpec

PLAN = {"planned": 20, "shards": 4, "shard_rows": 5, "counts": {"adding": {"easy": 20}}}
MANIFEST: dict[str, Any] = {"job": {"seed": 0, "teacher": {"model": "a", "dtype": "auto"}, "layers": [1, 2]}}
HOLD = """
import sys, time
from pathlib import Path
from factory.dataset.ledger import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def sealed(value: dict[str, Any]) -> str:
    """A line with its right checksum, whatever it says."""
    return canonical_json(seal(value))


def make_entry(shard: int) -> ShardEntry:
    files = [ShardFile(f"data/train-{shard:05d}.parquet", 3, 1000, blake3="0" * 64)]
    return summarize_shard(shard, some_outcomes(), files)


@contextmanager
def opened(out: Path, **changed: Any) -> Iterator[Ledger]:
    with held_ledger(out, PLAN, MANIFEST | changed) as ledger:
        yield ledger


def begin(out: Path, *shards: int) -> None:
    """A dataset in which these shards are committed."""
    with opened(out) as ledger:
        for shard in shards:
            ledger.commit(make_entry(shard))


def test_a_summary_counts_every_outcome_once() -> None:
    entry = make_entry(0)
    assert (entry.planned, entry.accepted, entry.rejected, entry.errors) == (5, 3, 1, 1)
    assert entry.reasons == {"check/wrong_total": 2}
    assert entry.cells == {"adding/easy": [3, 1, 1]}
    assert (entry.prompt_tokens, entry.completion_tokens) == (10, 1 + 2 + 3 + 4 + 1)


def test_committed_shards_are_found_again_and_are_no_longer_pending(tmp_path: Path) -> None:
    begin(tmp_path, 2, 0)
    with opened(tmp_path) as ledger:
        assert list(ledger.pending()) == [1, 3]
        assert ledger.entries == {0: make_entry(0), 2: make_entry(2)}
        assert (ledger.totals.done, ledger.totals.left, ledger.totals.bytes) == (10, 10, 2000)
        ledger.commit(make_entry(1))
    assert list(read_ledger(tmp_path).pending()) == [3]


def test_totals_are_the_sums_over_shards(tmp_path: Path) -> None:
    begin(tmp_path, 0, 1, 3)
    totals = read_ledger(tmp_path).totals
    assert (totals.planned, totals.shards, totals.committed_shards) == (20, 4, 3)
    assert (totals.accepted, totals.rejected, totals.errors) == (9, 3, 3)
    assert totals.reasons == {"check/wrong_total": 6}
    assert totals.cells == {"adding/easy": [9, 3, 3]}


def test_a_shard_whose_rows_do_not_add_up_is_not_committed(tmp_path: Path) -> None:
    wrong = ShardEntry(0, 5, 3, 1, 0, {}, {}, 0, 0, {}, ())
    with opened(tmp_path) as ledger:
        with pytest.raises(AssertionError):
            ledger.commit(wrong)
        assert list(ledger.pending()) == [0, 1, 2, 3]
    assert len(read_ledger_lines(tmp_path)) == 1


def test_a_shard_is_committed_once(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.commit(make_entry(0))
        with pytest.raises(AssertionError):
            ledger.commit(make_entry(0))
    assert len(read_ledger_lines(tmp_path)) == 2


@pytest.mark.parametrize("torn", [b"{", b'{"shard":1,"planned":5', b"\x00\x00\x00", b"{}"])
def test_a_line_torn_by_a_crash_counts_as_absent_and_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    begin(tmp_path, 0)
    whole = (tmp_path / "ledger.jsonl").read_bytes()
    (tmp_path / "ledger.jsonl").write_bytes(whole + torn)
    assert list(read_ledger(tmp_path).pending()) == [1, 2, 3]
    assert (tmp_path / "ledger.jsonl").read_bytes() == whole + torn, "looking changes nothing"
    with opened(tmp_path) as ledger:
        ledger.commit(make_entry(1))
    assert sorted(read_ledger(tmp_path).entries) == [0, 1]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("garbage", "damaged: Expecting value"),
        ("[1]", "damaged: not a JSON object"),
        ('{"shard": 1}', "damaged: changed since it was written"),
        (sealed({"shard": 1}), "damaged: not a shard's entry"),
        (sealed({"shard": 1}).replace("1", "2", 1), "damaged: changed since it was written"),
        (sealed({"shard": 1}).replace(":", ": "), "damaged: changed since it was written"),
        ('{"a":NaN,"sum":"x"}', "damaged: changed since it was written"),
        ("\udc80", "damaged: 'utf-8' codec"),
        ("", "damaged: Expecting value"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named_and_nothing_goes_on(tmp_path: Path, line: str, complaint: str) -> None:
    begin(tmp_path, 0, 1, 2)
    lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines()
    lines[2] = line.encode("utf-8", "surrogateescape")
    (tmp_path / "ledger.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    before = read_tree(tmp_path)
    with pytest.raises(DatasetError, match=rf"ledger\.jsonl:3: {complaint}") as told:
        read_ledger(tmp_path)
    assert "\n" not in str(told.value)
    with pytest.raises(DatasetError, match=r"ledger\.jsonl:3"), opened(tmp_path):
        pass
    assert read_tree(tmp_path, but=(".lock",)) == {name: d for name, d in before.items() if name != ".lock"}


@pytest.mark.parametrize(
    "change",
    [
        {"accepted": "3"},
        {"cells": {"adding/easy": [1]}},
        {"cells": [1]},
        {"files": [{"path": "x"}]},
        {"files": 3},
        {"shard": 4},
        {"shard": "1"},
        {"shard": 0},
    ],
)
def test_an_entry_that_nobody_wrote_is_damage_and_not_a_crash(tmp_path: Path, change: dict[str, Any]) -> None:
    begin(tmp_path, 0, 1)
    change_line(tmp_path, 2, lambda entry: entry.update(change))
    with pytest.raises(DatasetError, match=r"ledger\.jsonl:3: damaged: \w"):
        read_ledger(tmp_path)


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("", "empty; it should begin with the plan"),
        ("torn", "empty; it should begin with the plan"),
        ("{}\n", "damaged: changed since it was written"),
        ('{"planned": 20, "shards": 4}\n', "damaged: changed since it was written"),
        (sealed({}) + "\n", "damaged: not a plan"),
        (sealed({"planned": "20", "shards": 4}) + "\n", "damaged: not a plan"),
        (sealed({"planned": 20, "shards": True}) + "\n", "damaged: not a plan"),
        (sealed({"planned": 20}) + "\n", "damaged: not a plan"),
    ],
)
def test_a_ledger_without_its_plan_is_told(tmp_path: Path, first: str, told: str) -> None:
    (tmp_path / "ledger.jsonl").write_text(first)
    with pytest.raises(DatasetError, match=rf"ledger\.jsonl(:1)?: {told}"):
        read_ledger(tmp_path)


def test_a_seal_is_the_same_however_often_it_is_put_on_and_another_for_other_content() -> None:
    assert seal(seal({"a": 1})) == seal({"a": 1}) == seal({"a": 1, "sum": "old"})
    assert len({seal({"a": value})["sum"] for value in (1, 2, "1", None, 1.0)}) == 5


def test_a_scan_names_every_damaged_line_and_keeps_what_is_intact(tmp_path: Path) -> None:
    begin(tmp_path, 0, 1, 2, 3)
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('"accepted":3', '"accepted":4')
    lines[4] = lines[3]
    (tmp_path / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    plan, entries, complaints = scan_ledger(tmp_path)
    assert plan == PLAN
    assert entries == {0: make_entry(0), 2: make_entry(2)}
    assert [complaint.partition("ledger.jsonl")[2] for complaint in complaints] == [
        ":3: damaged: changed since it was written",
        ":5: damaged: shard 2 is there twice or was never planned",
    ]


def test_entries_outlive_their_damaged_plan(tmp_path: Path) -> None:
    begin(tmp_path, 0, 1)
    change = (tmp_path / "ledger.jsonl").read_text().replace('"planned":20', '"planned":21', 1)
    (tmp_path / "ledger.jsonl").write_text(change)
    plan, entries, complaints = scan_ledger(tmp_path)
    assert (plan, sorted(entries), len(complaints)) == (None, [0, 1], 1)


def test_no_ledger_and_no_manifest_are_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no manifest\.json, so not a dataset of the factory"):
        read_ledger(tmp_path)
    with pytest.raises(DatasetError, match=r"no manifest\.json, so not a dataset of the factory"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff", "{}", '{"sum": "x"}', sealed({"job": 1})])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=r"manifest\.json: damaged"):
        read_manifest(tmp_path)


def test_a_manifest_sealed_as_it_is_written_is_whole(tmp_path: Path) -> None:
    text = json.dumps(seal({"job": 1}), indent=2, sort_keys=True) + "\n"
    (tmp_path / "manifest.json").write_text(text)
    assert read_manifest(tmp_path) == {"job": 1}
    for changed in (text.replace("1", "2", 1), text + "\n", text[:-1], text.replace("  ", " ")):
        (tmp_path / "manifest.json").write_text(changed)
        with pytest.raises(DatasetError, match=r"manifest\.json: damaged: changed since it was written"):
            read_manifest(tmp_path)


def test_a_changed_job_is_refused_with_every_change_and_touches_nothing(tmp_path: Path) -> None:
    begin(tmp_path, 0)
    before = read_tree(tmp_path, but=(".lock",))
    other = {"seed": 1, "teacher": {"model": "b", "dtype": "auto"}, "layers": [1, 3], "extra": True}
    with pytest.raises(DatasetError) as told, opened(tmp_path, job=other):
        pass
    assert str(told.value) == (
        f"{tmp_path}: made by another job, cannot resume; undo this, or choose another `out`:\n"
        "  job.extra: was absent, is true\n  job.layers.1: was 2, is 3\n  job.seed: was 0, is 1\n"
        '  job.teacher.model: was "a", is "b"'
    )
    assert read_tree(tmp_path, but=(".lock",)) == before


def test_many_changes_are_counted_rather_than_listed(tmp_path: Path) -> None:
    begin(tmp_path, 0)
    with (
        pytest.raises(DatasetError, match=r"\n  and 3 more$"),
        opened(tmp_path, job=dict.fromkeys("abcdefghijklmnopqrst", 1)),
    ):
        pass


def test_a_job_that_was_refused_before_its_first_row_can_be_mended(tmp_path: Path) -> None:
    begin(tmp_path)
    mended = {"seed": 5}
    with held_ledger(tmp_path, PLAN | {"planned": 7, "shards": 2}, {"job": mended}) as ledger:
        assert ledger.totals.planned == 7
    assert read_manifest(tmp_path)["job"] == mended
    assert [line["planned"] for line in read_ledger_lines(tmp_path)] == [7]


def test_work_that_waits_in_the_spool_belongs_to_its_job(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / ".spool").mkdir()
    (tmp_path / ".spool/000000.gen").write_bytes(b"FGEN")
    with pytest.raises(DatasetError, match="made by another job"), opened(tmp_path, job={}):
        pass
    with opened(tmp_path) as ledger:
        assert ledger.totals.left == 20


def test_sections_may_be_added_to_a_manifest_later_and_hold_from_then_on(tmp_path: Path) -> None:
    begin(tmp_path, 0)
    reconcile_manifest(tmp_path, {"teacher": {"model": "a"}})
    assert read_manifest(tmp_path) == MANIFEST | {"teacher": {"model": "a"}}
    with pytest.raises(DatasetError, match=r'teacher\.model: was "a", is "b"'):
        reconcile_manifest(tmp_path, {"teacher": {"model": "b"}})


def test_changes_are_named_by_their_path() -> None:
    assert list(find_changes({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]})) == ["a.1.b: was 2, is 3"]
    assert list(find_changes([1], [1, 2], "x")) == ["x: was [1], is [1, 2]"]
    assert list(find_changes({"a": {}}, {"a": {}})) == []
    assert list(find_changes({"a": None}, {})) == ["a: was null, is absent"]
    assert list(find_changes([1], [1.0], "x")) == ["x.0: was 1, is 1.0"]
    assert list(find_changes({"f": "0" * 32}, {"f": "1" * 32})) == ["f: has changed"]
    assert list(find_changes({}, {"f": "1" * 32})) == ["f: was absent, is there"]
    (long,) = find_changes({"t": "short"}, {"t": "x" * 500})
    assert len(long) < 120


def test_a_manifest_of_another_scheme_is_told_as_such_and_not_by_its_digests(tmp_path: Path) -> None:
    old = {"job": {"seed": 1}, "tasks": {}, "digest": "0" * 32, "versions": {"format": 1, "factory": "0.1.0"}}
    new = old | {"digest": "1" * 32, "versions": old["versions"] | {"manifest": MANIFEST_VERSION}}
    (line,) = list_changes(old, new)
    assert line.startswith(f"versions.manifest: was 1, is {MANIFEST_VERSION}: ")
    assert "can be read, verified and published" in line


def test_a_digest_that_alone_differs_is_told(tmp_path: Path) -> None:
    assert list_changes({"job": 1, "digest": "0" * 32}, {"job": 1, "digest": "1" * 32}) == ["digest: has changed"]
    assert list_changes({"job": 1, "digest": "0" * 32}, {"job": 2, "digest": "1" * 32}) == ["job: was 1, is 2"]


def test_two_runs_cannot_hold_one_dataset(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DatasetError) as told, opened(tmp_path):
            pass
        assert str(told.value) == (f"{tmp_path}: a run is at work here already (process {holder.pid}); wait or stop it")
        holder.kill()
    with held_ledger(tmp_path, {"planned": 20, "shards": 4}, {"job": 1}) as ledger:
        assert ledger.totals.left == 20, "the lock ends with its process"


def test_a_directory_with_other_things_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    before = read_tree(tmp_path)
    with pytest.raises(DatasetError, match=r"not empty and not a dataset of the factory \(has thesis\.tex\)"):
        begin(tmp_path)
    assert read_tree(tmp_path) == before


def test_an_out_that_cannot_be_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(DatasetError, match=r"cannot be written: (File exists|Not a directory); choose another"):
            begin(out)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_finished_ledger_is_in_shard_order_whatever_the_order_of_commits(tmp_path: Path) -> None:
    orders = {"up": (0, 1, 2, 3), "mixed": (2, 0, 3, 1)}
    for name, order in orders.items():
        begin(tmp_path / name, *order)
        with opened(tmp_path / name) as ledger:
            ledger.finish()
    assert read_tree(tmp_path / "up", but=(".lock",)) == read_tree(tmp_path / "mixed", but=(".lock",))
    assert [line.get("shard") for line in read_ledger_lines(tmp_path / "mixed")] == [None, 0, 1, 2, 3]


def test_only_a_complete_ledger_is_finished(tmp_path: Path) -> None:
    begin(tmp_path, 0)
    with opened(tmp_path) as ledger, pytest.raises(AssertionError):
        ledger.finish()


def test_a_file_is_replaced_in_one_step_and_left_alone_when_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"one")
    os.utime(path, (1, 1))
    write_atomically(path, b"one")
    assert path.stat().st_mtime == 1
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert sorted(read_tree(tmp_path)) == ["file"]


def test_signals_come_back_from_the_manifest_as_they_went_in() -> None:
    assert read_signals({}) is None
    kept = json.loads('{"signals": {"top_k": 3, "layers": [1, 4], "final_norm": true, "pairs": false}}')
    assert read_signals(kept) == SIGNALS == SignalSpec(3, (1, 4), True)
    damaged: tuple[Any, ...] = ({}, [], {"top_k": "many", "layers": [], "final_norm": True})
    for damage in damaged:
        with pytest.raises(DatasetError, match=r"manifest\.json: damaged: signals"):
            read_signals({"signals": damage})


def test_totals_of_nothing_are_nothing() -> None:
    assert (Totals().done, Totals().left) == (0, 0)
    assert summarize_shard(0, [make_record(0)], []).rejected == 0


def test_totals_are_what_json_has_words_for() -> None:
    totals = Totals(planned=3, reasons=Counter({"check/wrong": 2}), scrubbed=Counter({"email": 4}))
    figures = json.loads(json.dumps(totals.figures()))
    assert (figures["reasons"], figures["scrubbed"], figures["left"]) == ({"check/wrong": 2}, {"email": 4}, 3)


def test_a_file_that_cannot_be_replaced_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    for place in ("a folder", "no/file"):
        with pytest.raises(OSError, match=place) as told:
            write_atomically(tmp_path / place, b"rows")
        assert told.value.filename == str(tmp_path / place)
    assert [path.name for path in tmp_path.rglob("*")] == ["a folder"]
