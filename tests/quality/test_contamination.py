"""Contamination: shared words are found in every kind of file, told with file and row, and only where they say much."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import JobError
from factory.job.gates import ContaminationConfig
from factory.quality.contamination import COMMON, Index, digest_files, open_index, words_of

LONG = "The old lift in the north wing was replaced by a quiet new one during the last warm week of spring."
SHORT = "What is the capital of France?"
OTHER = "Nobody knows why seven grey cats sat on the wall of the mill and looked at the river all night long."


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row['q']}\n" for row in rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def open_sets(*paths: Path, **config: Any) -> Index:
    return open_index(ContaminationConfig(files=[str(path) for path in paths], **config))


def fault(path: Path, **config: Any) -> str:
    with pytest.raises(JobError) as caught:
        open_sets(path, **config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["exam.jsonl", "exam.json", "exam.parquet", "exam.csv", "exam.txt"])
def test_shared_words_are_told_with_file_and_row(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"q": OTHER}, {"q": SHORT}, {"q": LONG}])
    index = open_sets(path)
    # the number that an editor shows: in a CSV file the header is line 1
    unit, first = ("row", 1) if name.endswith(".parquet") else ("line", 2 if name.endswith(".csv") else 1)
    shared = " ".join(words_of(LONG)[2:15])
    assert index.find([f"It says: {shared.upper()}!"]) == f'{path} {unit} {first + 2}: "{shared}"'
    assert (
        index.find(["what is THE capital of france"]) == f'{path} {unit} {first + 1}: "what is the capital of france"'
    )
    assert index.find(["Quite another text, with as many words in it as it takes to be looked at in runs."]) is None


def test_a_run_must_be_whole_and_in_order(tmp_path: Path) -> None:
    index = open_sets(write(tmp_path / "exam.jsonl", [{"q": LONG}]), n=8)
    words = words_of(LONG)
    assert index.find([" ".join(words[3:11])])
    assert index.find([" ".join(words[3:10])]) is None
    assert index.find([" ".join([*words[3:6], "very", *words[6:10]])]) is None
    assert index.find([" ".join(reversed(words))]) is None


def test_case_punctuation_width_and_ligatures_make_no_difference(tmp_path: Path) -> None:
    index = open_sets(
        write(tmp_path / "exam.jsonl", [{"q": "Straße «eins»: the ﬁrst \uff4f\uff46 many—many OFFICE doors"}]), n=6
    )
    assert index.find(["strasse eins, the first of many many office doors"])


def test_a_script_without_spaces_is_compared_by_characters(tmp_path: Path) -> None:
    index = open_sets(write(tmp_path / "exam.jsonl", [{"q": "会议定在星期四上午十点已经邀请了所有人参加"}]))
    assert index.find(["请注意,星期四上午十点已经邀请了所有人"])
    assert index.find(["会议定在星期五"]) is None


def test_a_short_text_counts_only_where_all_of_it_is_equal_and_says_something(tmp_path: Path) -> None:
    rows = [{"q": SHORT}, {"q": "Paris is nice"}, {"q": "2025-08-14 10:30 12 45 99"}, {"q": "yes"}, {"q": ""}]
    index = open_sets(write(tmp_path / "exam.jsonl", rows))
    assert index.find([SHORT])
    assert index.find(["something", SHORT, "else"])
    assert index.find([f"{SHORT} Paris."]) is None
    assert index.find(["Paris is nice"]) is None
    assert index.find(["2025-08-14 10:30 12 45 99"]) is None
    assert index.find([]) is None
    assert index.find(["", ""]) is None


def test_a_structured_cell_is_one_text_and_its_small_parts_are_none(tmp_path: Path) -> None:
    cell = {"who": "woman in a hat", "wishes": ["make it a bit brighter", "then crop it to a square", "save as png"]}
    for number, held in enumerate([cell, json.dumps(cell)]):
        index = open_sets(write(tmp_path / f"{number}.jsonl", [{"scenario": held}]))
        assert index.find(["woman in a hat"]) is None
        assert index.find(list(cell["wishes"])[:2]) is None
        assert index.find(["woman in a hat", *cell["wishes"]])


def test_words_that_many_texts_share_are_boilerplate_but_a_repeated_passage_is_none(tmp_path: Path) -> None:
    preamble = "Answer the following question with one word and explain each of your steps to the reader in turn."
    rows = [{"q": f"{preamble} Question {n} is about item {n}."} for n in range(COMMON + 1)]
    rows += [{"q": LONG}] * (COMMON + 5)
    index = open_sets(write(tmp_path / "exam.jsonl", rows))
    assert index.find([preamble]) is None
    assert index.find([LONG])
    fewer = open_sets(write(tmp_path / "small.jsonl", rows[:COMMON]))
    assert fewer.find([preamble])


def test_lines_that_are_wrapped_are_one_text(tmp_path: Path) -> None:
    words = LONG.split()
    (tmp_path / "exam.txt").write_text(
        "\ufeff" + "\n".join(" ".join(words[n : n + 5]) for n in range(0, len(words), 5))
    )
    assert open_sets(tmp_path / "exam.txt").find([LONG]) is not None


def test_columns_say_where_to_look(tmp_path: Path) -> None:
    path = write(tmp_path / "exam.csv", [{"q": LONG, "a": OTHER}])
    assert open_sets(path, columns=["a"]).find([LONG]) is None
    assert open_sets(path, columns=["a"]).find([OTHER])
    assert open_sets(path).find([LONG])
    assert fault(path, columns=["a", "b", "c"]) == (
        f"filters.contamination.files.0: no column b, c in {path} (has: q, a)"
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("exam.jsonl", b'{"a": 1}\n{"a"\n', "cannot be read: line 2 is not JSON"),
        ("exam.parquet", b"PAR1 not at all", "cannot be read: .*not readable as Parquet"),
        ("exam.txt", b"\xff\xfe\x00", "cannot be read: 'utf-8' codec"),
        ("exam.csv", b"a,b\n\x00\xff", "cannot be read: "),
        ("exam.csv", b"a,b\n1,2\n1,2,3\n", "cannot be read: line 3 has 3 cells, the header 2"),
        ("exam.json", b'[{"a": 1}, 2]', "cannot be read: row 2 is a JSON int"),
        ("exam.jsonl.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("exam.pdf", b"", r"not a kind of file that is known here \(has: .txt, .parquet, .jsonl, .ndjson, .json, "),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.match(
        f"filters.contamination.files.0: {re.escape(str(tmp_path / name))}:? {says}", fault(tmp_path / name)
    )


def test_the_key_of_the_file_is_told(tmp_path: Path) -> None:
    good = write(tmp_path / "exam.jsonl", [{"q": LONG}])
    with pytest.raises(JobError, match=rf"^filters.contamination.files.1: {tmp_path}/no.csv: no such file$"):
        open_sets(good, tmp_path / "no.csv")


@pytest.mark.parametrize("name", ["exam.jsonl", "exam.txt", "exam.csv"])
def test_an_empty_file_holds_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert open_sets(tmp_path / name).find([LONG]) is None


def test_a_run_takes_14_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 50_000, 112)) for _ in range(1_000)]
    index = open_sets(write(tmp_path / "exam.jsonl", [{"q": text} for text in texts]))
    assert len(index.hashes_R) == 100_000
    assert index.hashes_R.nbytes + index.file_R.nbytes + index.row_R.nbytes == 14 * 100_000
    assert [index.find([text]) is not None for text in texts[:50]] == [True] * 50
    assert str(index.find([texts[700]])).startswith(f"{tmp_path / 'exam.jsonl'} line 701: ")


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "exam.jsonl", [{"q": LONG}])
    config = ContaminationConfig(files=[str(path)])
    before = digest_files(config)
    assert list(before) == [str(path)]
    write(path, [{"q": OTHER}])
    assert digest_files(config) != before


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str | None]:
    index = open_sets(write(tmp_path_factory.mktemp("sets") / "exam.jsonl", [{"q": LONG}]))
    return lambda text: index.find([text])


@given(before=st.text(max_size=60), after=st.text(max_size=60), start=st.integers(0, 5))
def test_a_planted_run_is_found_between_any_texts(
    ask: Callable[[str], str | None], before: str, after: str, start: int
) -> None:
    run = words_of(LONG)[start : start + 13]
    assert ask(f"{before} {' '.join(run)} {after}")


@given(st.lists(st.sampled_from(sorted(set(words_of(LONG)))), max_size=60))
def test_what_is_found_is_really_shared(ask: Callable[[str], str | None], words: list[str]) -> None:
    whole = f" {' '.join(words_of(LONG))} "
    runs = [" ".join(words[n : n + 13]) for n in range(len(words) - 12)]
    assert (ask(" ".join(words)) is not None) == any(f" {run} " in whole for run in runs)


def test_folders_and_patterns_stand_for_their_files(tmp_path: Path) -> None:
    deep = tmp_path / "sets" / "deep"
    deep.mkdir(parents=True)
    first, second = write(deep / "a.jsonl", [{"q": LONG}]), write(tmp_path / "sets" / "b.csv", [{"q": OTHER}])
    (tmp_path / "sets" / ".hidden").write_text("not looked at")
    for index in (open_sets(tmp_path / "sets"), open_sets(tmp_path / "sets" / "**" / "*.*")):
        assert index.files == (str(second), str(first))
        assert set(index.digests) == {str(first), str(second)}
        assert str(index.find([LONG])).startswith(f"{first} line 1: ")
        assert str(index.find([OTHER])).startswith(f"{second} line 2: ")
    only = open_sets(tmp_path / "sets" / "*.csv")
    assert (only.find([LONG]), only.find([OTHER]) is None) == (None, False)
    # a file that two of them name counts once, or all it holds would look like twice as common
    assert open_sets(first, deep).files == (str(first),)


def test_a_folder_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    assert fault(folder) == f"filters.contamination.files.0: {folder}: no file in this folder"
    write(folder / "a.jsonl", [{"q": LONG}])
    (folder / "exam.arrow").write_bytes(b"x")
    told = fault(folder)
    assert f"{folder / 'exam.arrow'}: not a kind of file that is known here" in told
    assert told.endswith(f"name those to read by a pattern such as {folder / '*.jsonl'}")
    assert fault(folder / "*.xml") == f"filters.contamination.files.0: {folder / '*.xml'}: no such file"
