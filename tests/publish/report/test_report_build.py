"""Reports: every number adds up, rows are data and never markup, and a file holds all that it shows."""

import hashlib
import json
import re
import subprocess
import sys
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from dataset_support import flip_byte, flip_in_column, read_table
from export_support import SEVERAL, MakeJob, make_dataset
from report_support import embedded, make_record, make_rejection, unpack, write_dataset

from factory.errors import DatasetError, JobError
from factory.publish.report import charts, store, tokens
from factory.publish.report.build import BOTH_FILE, FILE, read_facts, write_report
from factory.publish.report.payload import MOST
from factory.runs.run import run

HOSTILE = (
    "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>",
    "<!--<script>",
    "\u202egnp.exe\u2066 \u200f\x1b[31m\x00\x07",
    "{{ 7 * 7 }} {% raw %} ${7*7} &lt;b&gt;",
    "\U0001f600\u0301\ufeff\u2028\u2029]]>",
    "x" * 1_000_000,
)


class Elements(HTMLParser):
    """Names and attributes of every element of a page, and the text of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script" and self.cdata_elem:
            self.scripts[-1] += data


def some_dataset(out: Path) -> Path:
    right = [make_record(n, "so {}", 0.9 - n / 100, level=("easy", "hard")[n % 2]) for n in range(12)]
    wrong = [make_rejection(20 + n, "no {}", 0.3 + n / 100, level="hard") for n in range(6)]
    return write_dataset(out, [right, wrong])


def parse(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def test_a_report_is_one_file_that_names_no_other(tmp_path: Path) -> None:
    path = write_report(some_dataset(tmp_path / "out"))
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "out" / FILE
    elements = parse(page)
    links = [at[name] for _, at in elements.found for name in ("src", "href", "action", "data", "poster") if name in at]
    assert {link for link in links if link is not None and not link.startswith("#")} == {"data:,"}
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_lets_these_very_scripts_run_and_nothing_else(tmp_path: Path) -> None:
    elements = parse(write_report(some_dataset(tmp_path / "out")).read_text(encoding="utf-8"))
    (policy,) = [at["content"] for tag, at in elements.found if tag == "meta" and "http-equiv" in at]
    assert policy is not None
    kinds = [at.get("type") for tag, at in elements.found if tag == "script"]
    run = [text for text, kind in zip(elements.scripts, kinds, strict=True) if kind is None]
    hashes = {f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in run}
    told = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert set(told["script-src"].split()) == hashes
    assert told["default-src"] == told["form-action"] == told["base-uri"] == "'none'"
    handlers = {name for _, at in elements.found for name in at if name.startswith("on")}
    assert handlers == set()


def test_hostile_texts_in_every_place_add_no_element_and_end_no_script(tmp_path: Path) -> None:
    plain = write_dataset(tmp_path / "plain", [[make_record(0), make_rejection(1)]])
    hostile = [
        make_record(
            number,
            "".join(text[:3000]) or "x",
            task=text[:60],
            level=text[:40],
            scenario=json.dumps({text[:50]: text}),
            messages=({"role": "user", "content": text},),
        )
        for number, text in enumerate(HOSTILE)
    ]
    rejected = [make_rejection(100 + n, text[:3000], task=text[:60]) for n, text in enumerate(HOSTILE)]
    out = write_dataset(tmp_path / "hostile", [[*hostile, *rejected]])
    pages = [write_report(folder).read_text(encoding="utf-8") for folder in (plain, out)]
    few, many = (parse(page) for page in pages)
    names = {tag for tag, _ in few.found}
    assert {tag for tag, _ in many.found} - names <= {"details", "summary", "bdi"}
    assert len(few.scripts) == len(many.scripts) == 5
    assert not re.search("[\u202e\u2066\u200f\x1b\x00\x07]", pages[1])
    shown = embedded(pages[1])
    assert {row["outcome"] for row in shown["rows"]} == {"accepted", "rejected"}
    assert max(map(len, shown["packed"])) <= MOST
    assert len(pages[1]) < 1_500_000 + 30_000 * len(shown["rows"])


def test_a_megabyte_of_text_is_cut_and_says_by_how_much(tmp_path: Path) -> None:
    text = "word " * 200_000
    out = write_dataset(tmp_path / "out", [[make_record(0, messages=({"role": "user", "content": text},))]])
    (packed,) = embedded(write_report(out).read_text(encoding="utf-8"))["packed"]
    ((role, shown, left, at),) = unpack(packed)["prompt"]
    assert role == "user"
    assert len(shown) + left == len(text)
    assert shown == text[:at] + text[at + left :]


def test_every_reason_has_a_shown_row_with_its_text_and_findings(tmp_path: Path) -> None:
    out = some_dataset(tmp_path / "out")
    shown = embedded(write_report(out, rows=4).read_text(encoding="utf-8"))
    reasons = {f"{row['stage']}/{row['reason']}" for row in read_table(out, "rejected")}
    assert {row["reason"] for row in shown["rows"]} >= reasons
    row = unpack(shown["packed"][[row["outcome"] for row in shown["rows"]].index("rejected")])
    assert row["text"][0] == "no {}"
    assert row["findings"] == [["wrong_total: 3", 0, 0]]
    assert row["strip"] is None


def test_the_same_files_give_the_same_report(tmp_path: Path) -> None:
    out = some_dataset(tmp_path / "out")
    first = write_report(out, target=tmp_path / "a.html").read_bytes()
    assert write_report(out, target=tmp_path / "b.html").read_bytes() == first


def test_a_run_at_work_is_reported_as_far_as_it_is_committed(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "out", [[make_record(0), make_rejection(1)]], planned=5)
    (out / "data" / "train-00001.parquet").write_bytes(b"half a file")
    facts = read_facts(out)
    assert (facts["head"]["planned"], facts["head"]["left"], facts["shards"]) == (7, 5, 1)
    assert "5 rows are still to come" in write_report(out).read_text(encoding="utf-8")


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    out = some_dataset(tmp_path / "out")
    (out / "data" / "train-00000.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DatasetError, match=r"train-00000\.parquet"):
        write_report(out)


def test_a_missing_file_is_one_line_without_the_query(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "out", [[make_record(0), make_rejection(1)], [make_record(2)]])
    path = out / "rejected" / "train-00001.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DatasetError, match=r"train-00001\.parquet") as caught:
        write_report(out)
    assert "SELECT" not in str(caught.value)
    path.unlink()
    with pytest.raises(DatasetError, match=r"out: rejected/train-00001\.parquet: missing; .*--repair` makes it again"):
        read_facts(out)


def test_texts_that_have_changed_are_not_reported(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "out", [[make_record(0), make_rejection(1)], [make_record(2)]])
    flip_byte(out / "data" / "train-00001.parquet", 200)
    told = r"out: data/train-00001\.parquet: its bytes have changed since it was committed; `factory verify "
    for write in (write_report, read_facts):
        with pytest.raises(DatasetError, match=told):
            write(out)
    assert not (out / FILE).exists()


def test_a_shown_row_of_a_file_that_is_not_sampled_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_dataset(tmp_path / "out", [[make_record(n), make_rejection(10 + n)] for n in range(3)])
    monkeypatch.setattr(store.choose_part, "__defaults__", (1,))
    monkeypatch.setattr(tokens, "MOST_SHARDS", 1)
    flip_in_column(out / "data" / "train-00002.parquet", "text")
    read_facts(out)  # of this file numbers alone are read
    with pytest.raises(DatasetError, match=r"data/train-00002\.parquet: its bytes have changed"):
        write_report(out)


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        write_report(tmp_path)


def test_two_datasets_of_one_plan_are_compared_row_by_row(tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "first", [[make_record(0), make_record(1), make_rejection(2), make_rejection(3)]])
    second = write_dataset(tmp_path / "second", [[make_record(0), make_rejection(1), make_record(2), make_record(9)]])
    both = read_facts(first, second)["both"]
    assert both["names"] == ["first", "second"]
    assert both["totals"] == {"rows": 3, "a": 2, "b": 2, "both": 1, "same": 1}
    ended = {(row["a"], row["b"]): row["rows"] for row in both["outcomes"]}
    assert ended == {("kept", "kept"): 1, ("kept", "check/wrong_total"): 1, ("check/wrong_total", "kept"): 1}
    path = write_report(first, second)
    shown = embedded(path.read_text(encoding="utf-8"))
    assert path.name == BOTH_FILE
    twins = {int(one): two for one, two in shown["twins"].items()}
    assert len(twins) == 3
    assert all(shown["rows"][a]["id"] == shown["rows"][b]["id"] for a, b in twins.items())
    assert {shown["rows"][b]["side"] for b in twins.values()} == {"second"}


def test_datasets_that_share_no_row_are_refused(tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "first", [[make_record(0)]])
    second = write_dataset(tmp_path / "second", [[make_record(1)]])
    with pytest.raises(DatasetError, match="no row is in both"):
        write_report(first, second)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(charts, "find_spec", lambda name: None if name == "duckdb" else object())
    with pytest.raises(JobError, match=r"duckdb is not installed.*\[report\]"):
        write_report(tmp_path)


def test_the_command_line_does_not_load_what_draws() -> None:
    code = (
        "import sys, factory.cli; factory.cli.build_parser(); print({'altair', 'duckdb', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_head_tells_the_licence_that_a_run_has_written(workspace: Path, make_job: MakeJob) -> None:
    """Where a real run keeps it, and not where a test may put it: as the card beside it says."""
    root = make_dataset(workspace, make_job)
    assert read_facts(root)["head"]["license"] is None
    assert "none told" in write_report(root).read_text(encoding="utf-8")
    terms = {"license": "cc-by-4.0", "output_terms": "those of the weights"}
    for said, told in (
        (terms, "cc-by-4.0"),
        (terms | {"license": "other", "license_name": "mine-1", "license_link": "https://example.org/l"}, "mine-1"),
    ):
        run(make_job(**SEVERAL, publish=said), workspace, root)
        assert read_facts(root)["head"]["license"] == told
        assert f"<dd>{told}</dd>" in write_report(root).read_text(encoding="utf-8")
        assert f"Licence of this dataset: {told}" in (root / "README.md").read_text(encoding="utf-8")
