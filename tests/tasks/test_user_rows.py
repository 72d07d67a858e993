"""Rows of the user's: several files as one list, paths into columns, names of rows, and what could mean two things."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from dataset_support import read_table

from factory.checks.verify import verify
from factory.errors import JobError
from factory.job.data import TableConfig
from factory.job.job import Job
from factory.runs.run import run
from factory.tasks.user_rows import Rows, load_rows, pick


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepares stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(path: Path | str, fields: list[str] | None = None, **config: Any) -> Rows:
    return load_rows(TableConfig(path=str(path), **config), "tasks.0.source", fields)


def fault(path: Path | str, fields: list[str] | None = None, **config: Any) -> str:
    with pytest.raises(JobError) as caught:
        load(path, fields, **config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    """A folder of mail in three kinds of files, in two folders."""
    folder = tmp_path / "mail"
    (folder / "old").mkdir(parents=True)
    (folder / "b.csv").write_text("text\nthree\nfour\n")
    (folder / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (folder / "old" / "c.json").write_text('[{"text": "five"}]')
    (folder / ".hidden.csv").write_text("text\nnever\n")
    return folder


def test_a_folder_is_all_its_files_in_the_order_of_their_names(mail: Path) -> None:
    rows = load(mail)
    assert [rows[place]["text"] for place in range(len(rows))] == ["one", "two", "three", "four", "five"]
    assert [rows.mark(place) for place in range(5)] == ["a.jsonl:1", "a.jsonl:3", "b.csv:2", "b.csv:3", "old/c.json:1"]
    assert rows.where(1) == f"{mail}: a.jsonl line 3"
    assert rows.describe() == f"5 rows of 3 files in {mail}"


def test_a_pattern_is_the_files_that_it_finds(mail: Path) -> None:
    assert len(load(f"{mail}/*.csv")) == 2
    assert len(load(f"{mail}/**/*.js*")) == 3
    assert fault(f"{mail}/*.tsv") == f"tasks.0.source.path: {mail}/*.tsv: no file is called so"


def test_a_file_of_no_known_kind_is_left_out_of_a_folder_and_told_but_not_of_a_pattern(mail: Path) -> None:
    (mail / "README.md").write_text("hello")
    assert load(mail).describe().endswith("; not read, of no kind known here: README.md")
    assert "README.md: not a kind of file that is known here" in fault(f"{mail}/*")


def test_other_bytes_or_names_are_another_digest(mail: Path) -> None:
    before = load(mail).digest
    (mail / "b.csv").rename(mail / "d.csv")
    renamed = load(mail).digest
    (mail / "d.csv").write_text("text\nthree\nfore\n")
    assert len({before, renamed, load(mail).digest}) == 3


def test_a_folder_with_a_test_split_must_say_what_is_meant(mail: Path) -> None:
    (mail / "test.jsonl").write_text('{"text": "exam"}\n')
    assert "files that look like another split: test.jsonl; say which you mean" in fault(mail)
    (mail / "test.jsonl").rename(mail / "latest.jsonl")
    assert len(load(mail)) == 6


@pytest.mark.parametrize(
    ("row", "path", "value"),
    [
        ({"Body": {"text": "hi"}}, "Body.text", "hi"),
        ({"Body.text": "own", "Body": {"text": "hi"}}, "Body.text", "own"),
        ({"messages": [{"content": "a"}, {"content": "b"}]}, "messages.1.content", "b"),
        ({"answer": '{"title": "Lunch"}'}, "answer.title", "Lunch"),
        ({"answer": "no JSON"}, "answer.title", None),
        ({"Body": {"text": "hi"}}, "Body.html", None),
        ({"Body": None}, "Body.text", None),
        ({}, "Body.text", None),
    ],
)
def test_a_path_leads_into_a_column(row: dict[str, Any], path: str, value: Any) -> None:
    assert pick(row, path) == value


def test_a_path_at_which_no_row_has_anything_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"Body": {"text": "hi"}}\n')
    assert fault(path, ["Body.txt"]) == (
        f"tasks.0.source: no row of {path} has anything at Body.txt (Body holds: text)"
    )
    assert "no column Bdy.text" in fault(path, ["Bdy.text"])


def test_a_row_is_called_by_its_id_where_a_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": {"id": "x7"}}\n{"n": {"id": 8}}\n{"n": {}}\n')
    rows = load(path, id="n.id")
    assert [rows.mark(place) for place in range(3)] == ["x7", "8", "3"]


def test_unreadable_rows_stop_a_job_or_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nx\n[2]\n')
    assert "line 2 is not JSON" in fault(path)
    assert "(2 of 3 rows cannot be read)" in fault(path)
    assert len(load(path, on_bad_row="skip")) == 3
    path.write_text("x\ny\n")
    assert fault(path, on_bad_row="skip").endswith("(2 of 2 rows cannot be read); mend it")


def sourced(path: Path, name: str = "adding", **source: Any) -> dict[str, Any]:
    return {"name": name, "count": "all", "source": {"path": str(path), **source}}


def test_a_dataset_of_ours_is_the_source_of_the_next_task(
    workspace: Path, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    first = tmp_path / "first"
    run(make_job(tasks=[{"name": "adding", "count": 9}]), workspace, first)
    rows = read_table(first, "data")
    fields = {"a": "answer.total", "b": "scenario.b"}
    totals = run(make_job(tasks=[sourced(first, fields=fields)]), workspace, tmp_path / "second")
    assert totals.planned == len(rows) > 0
    assert list(verify(tmp_path / "second")) == []
    made = [*read_table(tmp_path / "second", "data"), *read_table(tmp_path / "second", "rejected")]
    scenarios = {row["source_row"]: json.loads(row["scenario"]) for row in made}
    assert scenarios == {
        row["id"]: {"a": json.loads(row["answer"])["total"], "b": json.loads(row["scenario"])["b"]} for row in rows
    }


def test_a_dataset_of_ours_must_be_whole_and_say_what_is_taken(
    workspace: Path, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    first = tmp_path / "first"
    run(make_job(tasks=[{"name": "adding", "count": 9}]), workspace, first)
    assert "is a dataset of the factory; say what is taken" in fault(first)
    assert "no config, split or format" in fault(first, ["answer"], split="train")
    shard = next(iter(sorted(first.glob("data/*.parquet"))))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert "is not what was written" in fault(first, ["answer"])
    ledger = (first / "ledger.jsonl").read_text().splitlines()
    (first / "ledger.jsonl").write_text("\n".join(ledger[:-1]) + "\n")
    assert "is unfinished" in fault(first, ["answer"])


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("bad.json", b'[{"text": "six"},]', "bad.json: the array is not JSON: a , before the ]"),
        ("bad.csv", b"text,text\nsix,six\n", "bad.csv: line 1: the header has 'text' twice"),
        ("bad.csv.gz", b"no gzip", "bad.csv.gz: Not a gzipped file"),
        ("bad.parquet", b"no parquet", "bad.parquet: "),
    ],
)
def test_a_bad_file_of_a_folder_is_named(mail: Path, name: str, data: bytes, told: str) -> None:
    (mail / "old" / name).write_bytes(data)
    assert f"{mail} cannot be loaded: old/{told}" in fault(mail)


def test_a_pushed_copy_is_no_folder_of_rows(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-8f3a61c09d27.parquet").write_bytes(b"PAR1")
    (tmp_path / "manifest.json").write_text("{}")
    assert f"tasks.0.source.path: {tmp_path} cannot be loaded: {tmp_path}: is a pushed copy of a dataset" in fault(
        tmp_path
    )
