"""Tables: every kind of file gives the values that stand in it, row by row, numbered as an editor numbers them."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.tasks.tables import BadRow, Table, kind_of, open_table, scan_table

ROWS = [{"a": "1", "b": 'ü, "quoted"'}, {"a": "2\nlines", "b": "x\ty"}, {"a": "3", "b": "日本"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepares stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def as_text(rows: list[dict[str, Any]], kind: str) -> str:
    if kind in ("csv", "tsv"):
        handle = io.StringIO()
        writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        return handle.getvalue()
    return json.dumps(rows, indent=1) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    kind = str(kind_of(path))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    data = as_text(rows, kind).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path) -> Table:
    return open_table(path, str(kind_of(path)))


def all_of(table: Table) -> list[dict[str, Any]]:
    return [dict(table[place]) for place in range(len(table))]


@pytest.mark.parametrize(
    ("name", "unit", "numbers"),
    [
        ("rows.csv", "line", [2, 3, 5]),
        ("rows.tsv", "line", [2, 3, 5]),
        ("rows.csv.gz", "line", [2, 3, 5]),
        ("rows.jsonl", "line", [1, 2, 3]),
        ("rows.ndjson", "line", [1, 2, 3]),
        ("rows.jsonl.gz", "line", [1, 2, 3]),
        ("rows.json", "row", [1, 2, 3]),
        ("rows.json.gz", "row", [1, 2, 3]),
        ("rows.parquet", "row", [1, 2, 3]),
    ],
)
def test_every_kind_gives_its_rows_by_place_and_tells_their_numbers(
    tmp_path: Path, name: str, unit: str, numbers: list[int]
) -> None:
    table = read(write(tmp_path / name, ROWS))
    assert all_of(table) == ROWS
    assert dict(table[1]) == ROWS[1]
    assert (table.unit, [table.number(place) for place in range(3)]) == (unit, numbers)
    assert (table.column_names, table.faulty) == (["a", "b"], 0)
    counted, rows = scan_table(tmp_path / name, str(kind_of(tmp_path / name)))
    assert (counted, list(rows)) == (unit, list(zip(numbers, ROWS, strict=True)))


@pytest.mark.parametrize(("name", "kind"), [("a.txt", None), ("a.parquet.gz", None), ("a.gz", None), ("a", None)])
def test_other_endings_are_of_no_kind(name: str, kind: str | None) -> None:
    assert kind_of(Path(name)) is kind


def test_json_keeps_long_numbers_and_texts_that_look_like_dates(tmp_path: Path) -> None:
    rows = [{"big": 12345678901234567890123, "day": "2025-06-17", "deep": {"x": [1, None, {"y": True}]}}]
    for name in ("rows.json", "rows.jsonl"):
        assert all_of(read(write(tmp_path / name, rows))) == rows


def test_a_csv_cell_is_text_and_an_empty_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfzip,n\r\n00501,\r\n\r\n1e3, x \r\n")
    table = read(path)
    assert all_of(table) == [{"zip": "00501", "n": None}, {"zip": "1e3", "n": " x "}]
    assert [table.number(place) for place in range(2)] == [2, 4]


def test_a_document_may_be_longer_than_csv_s_own_limit(tmp_path: Path) -> None:
    long = "word " * 50_000
    assert all_of(read(write(tmp_path / "rows.csv", [{"a": long}]))) == [{"a": long}]


@pytest.mark.parametrize(
    ("name", "text", "number", "says"),
    [
        ("rows.csv", "a,b\n1,2\n1,2,3\n4,5\n", 3, "has 3 cells, the header 2"),
        ("rows.csv", 'a,b\n1,2\nx"y,"z"w\n4,5\n', 3, "is not CSV: "),
        ("rows.jsonl", '{"a": 1}\n{"a"\n{"a": 2}\n', 2, "is not JSON: "),
        ("rows.jsonl", '{"a": 1}\n7\n{"a": 2}\n', 2, "is a JSON int; write one object a line"),
        ("rows.json", '[{"a": 1}, "x", {"a": 2}]', 2, "is a JSON str; the array must hold objects"),
    ],
)
def test_a_row_that_cannot_be_read_is_still_a_row(tmp_path: Path, name: str, text: str, number: int, says: str) -> None:
    (tmp_path / name).write_text(text)
    table = read(tmp_path / name)
    assert (len(table), table.faulty) == (3, 1)
    assert table.fault.startswith(f"{table.unit} {number} {says}")
    with pytest.raises(BadRow, match=says.replace("(", r"\(")):
        table[1]
    assert len({json.dumps(table[place]) for place in (0, 2)}) == 2


def test_bytes_that_are_no_utf8_make_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,b\n1,2\n\xff,3\n4,5\n")
    table = read(tmp_path / "rows.csv")
    assert (len(table), table.faulty, table.fault) == (
        3,
        1,
        "line 3 is not UTF-8: invalid start byte; save the file as UTF-8",
    )


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rows.csv", 'a,b\n1,"never closed\n2,3\n', "line 2: a quote is opened that nothing closes"),
        ("rows.csv", "a,b,a\n1,2,3\n", "line 1: the header has 'a' twice"),
        ("rows.json", '[{"a": 1}, {"a": ', "the array is not JSON: "),
        ("rows.json", '[{"a": 1} {"a": 2}]', "neither , nor ]"),
        ("rows.json", '[{"a": 1}]\n[{"a": 2}]', "more follows the array"),
        ("rows.json", '[{"a": 1}, ]', "a , before the ] at character 12"),
        ("rows.json", "[,]", "the array is not JSON: "),
        ("rows.jsonl.gz", "no gzip", "Not a gzipped file"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, OSError), match=says):
        read(tmp_path / name)


def test_a_gzip_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl.gz", [{"a": str(number)} for number in range(1000)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EOFError):
        read(path)


def test_packed_files_hold_no_handle_each_and_are_read_from_any_place(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.jsonl.gz", [{"a": number}, {"a": -number}]) for number in range(40)]
    read(paths[0])  # the one handle
    before = len(list(Path("/proc/self/fd").iterdir()))
    tables = [read(path) for path in paths]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    found = [[table[place]["a"] for place in (1, 0)] for table in reversed(tables)]
    assert found == [[-number, number] for number in reversed(range(40))]


@given(
    st.lists(
        st.fixed_dictionaries(
            {"a": st.text(st.characters(codec="utf-8", exclude_characters="\x00")), "b": st.just("end")}
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_text_comes_back_from_csv_as_it_was(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "rows.csv"
    path.write_bytes(as_text(rows, "csv").encode())
    assert all_of(read(path)) == [{"a": row["a"] or None, "b": "end"} for row in rows]


TWICE = '{"product": "a", "product": "b", "budget": 1}'


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("rows.jsonl", '{"product": "a"}\n\n' + TWICE + "\n", "line 3 has the key 'product' twice in one object"),
        ("rows.jsonl", '{"product": "a"}\n{"in": [' + TWICE + "]}\n", "line 2 has the key 'product' twice"),
        ("rows.json", '[{"product": "a"}, ' + TWICE + "]", "row 2 has the key 'product' twice in one object"),
        ("rows.json", '[{"product": "a"}, {"in": ' + TWICE + "}]", "row 2 has the key 'product' twice"),
    ],
)
def test_a_key_that_stands_twice_makes_a_bad_row(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    table = read(tmp_path / name)
    assert (len(table), table.faulty) == (2, 1)
    assert table.fault.startswith(told)
    assert dict(table[0]) == {"product": "a"}
    with pytest.raises(BadRow, match="has the key 'product' twice in one object; keep the one that is meant"):
        table[1]
    with pytest.raises(ValueError, match=told):
        list(scan_table(tmp_path / name, str(kind_of(tmp_path / name)))[1])


def test_a_key_may_stand_in_several_objects_of_a_row(tmp_path: Path) -> None:
    row = {"a": {"a": 1}, "b": [{"a": 2}, {"a": 3}]}
    assert all_of(read(write(tmp_path / "rows.jsonl", [row]))) == [row]
    assert all_of(read(write(tmp_path / "rows.json", [row]))) == [row]
