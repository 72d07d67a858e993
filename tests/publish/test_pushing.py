"""Pushing: main is whole at every moment, whatever cuts it; what comes back is what was there."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import hub_standin
import pyarrow.parquet as pq
import pytest
from conftest import write_task
from dataset_support import FACTORY, flip_byte, read_tree
from export_support import PAIRS, MakeJob, make_dataset
from hub_standin import Hub, Tree
from huggingface_hub import DatasetCard, HfApi

from factory.checks.verify import verify
from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.errors import DatasetError, JobError
from factory.job.job import Job
from factory.load import load_rows
from factory.load.card import read_card
from factory.publish import hub as hub_module
from factory.publish.aligning import align
from factory.publish.hub import Repo
from factory.publish.pushing import Wish, write_copy
from factory.publish.report.build import write_report
from factory.publish.show import read_totals
from factory.runs.run import run as run_job

TERMS = {"license": "apache-2.0", "output_terms": "those of the model's own weights", "language": ["en"]}
REPO = "me/sums"
LONG = pytest.mark.long
SWEEP = pytest.mark.sweep
Push = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def push(hub: Hub, tmp_path: Path) -> Push:
    """`factory push` in a process of its own, whose hub is the stand-in."""

    def run(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
        command = [*FACTORY, "push", str(root), REPO, *more]
        return subprocess.run(command, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=120)

    return run


def environment(hub: Hub, home: Path) -> dict[str, str]:
    # without xet the client speaks plain LFS, which the stand-in understands
    told = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "t" * 20}
    more = {"HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return os.environ | told | more


def read_hub(hub: Hub, home: Path, code: str) -> Any:
    """What a Python program prints as JSON that reads from the stand-in."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(hub, home), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(tree: Tree, folder: str) -> list[dict[str, Any]]:
    files = sorted(path for path in tree if path.startswith(f"{folder}/"))
    return [row for path in files for row in pq.read_table(io.BytesIO(tree[path])).to_pylist()]


def local_rows(root: Path, folder: str, files: str = "*.parquet") -> list[dict[str, Any]]:
    return [row for path in sorted((root / folder).glob(files)) for row in pq.read_table(path).to_pylist()]


def test_a_dataset_is_there_with_its_arrays_apart(workspace: Path, make_job: MakeJob, hub: Hub, push: Push) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS, signals={"top_k": 4, "hidden_layers": [1]}, **PAIRS)
    done = push(root)
    assert done.returncode == 0, done.stderr
    assert "(refs/pr/1, merged)" in done.stdout
    tree = hub.main(REPO)
    texts, arrays, before = rows_of(tree, "data"), rows_of(tree, "signals"), local_rows(root, "data")
    assert len(list((root / "data").iterdir())) > 1
    assert sum(path.startswith("data/") for path in tree) == 1
    assert {row.pop("generator") for row in texts} == {"scripted"}
    assert [a | b for a, b in zip(texts, arrays, strict=True)] == before
    assert "topk_ids" not in texts[0]
    assert set(arrays[0]) > {"id", "completion_token_ids", "topk_ids", "topk_logprobs", "entropy"}
    for folder in ("rejected", "preferences", "hidden_states"):
        assert rows_of(tree, folder) == local_rows(root, folder)
    assert {path.rpartition("/")[2] for path in tree if path.startswith("data/")} == {
        path.rpartition("/")[2] for path in tree if path.startswith("hidden_states/")
    }
    card = DatasetCard(tree["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert not {"ledger.jsonl", "runs.jsonl", "job.toml", "report.html"} & set(tree)
    assert not (root / ".push").exists()


def test_files_can_be_read_by_page(workspace: Path, make_job: MakeJob, hub: Hub, push: Push, tmp_path: Path) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)
    assert push(root).returncode == 0
    for folder in ("data", "signals"):
        path = next(path for path in hub.main(REPO) if path.startswith(f"{folder}/"))
        copy = tmp_path / "copy.parquet"
        copy.write_bytes(hub.main(REPO)[path])
        group = pq.read_metadata(copy).row_group(0)
        assert all(group.column(number).has_offset_index for number in range(group.num_columns))


def test_the_same_push_again_sends_nothing(workspace: Path, make_job: MakeJob, hub: Hub, push: Push) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)
    assert push(root).returncode == 0
    before, hub.seen[:] = dict(hub.main(REPO)), []
    done = push(root)
    assert done.returncode == 0, done.stderr
    assert "complete already" in done.stdout
    assert hub.main(REPO) == before
    assert not [path for method, path in hub.seen if "/commit/" in path or method == "PUT"]
    assert len(hub.repositories[REPO].requests) == 1


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("PUT /upload", marks=LONG),
        pytest.param("POST .*/commit/", marks=SWEEP),
        "POST .*/merge",
        pytest.param("POST .*/discussions$", marks=LONG),
    ],
)
def test_it_goes_on_after_a_cut_and_main_is_never_half(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push, step: str
) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)
    mains: list[frozenset[str]] = []

    def refuse(method: str, path: str) -> int | None:
        if REPO in hub.repositories:
            mains.append(frozenset(hub.main(REPO)))
        return 403 if re.match(step, f"{method} {path}") else None

    hub.trouble = refuse
    cut = push(root)
    assert cut.returncode == 2
    assert cut.stderr.count("\n") == 1
    assert "the same command goes on" in cut.stderr
    assert set(hub.main(REPO)) == {".gitattributes"}
    sent = len(hub.blobs)
    hub.trouble = lambda method, path: mains.append(frozenset(hub.main(REPO))) or None
    hub.seen.clear()
    assert push(root).returncode == 0
    whole = frozenset(hub.main(REPO))
    assert set(mains) <= {frozenset({".gitattributes"}), whole}
    assert len(hub.repositories[REPO].requests) == 1  # the same pull request
    if step == "POST .*/merge":
        assert sent == len(hub.blobs)
        assert not [path for method, path in hub.seen if method == "PUT"]


@pytest.mark.parametrize(
    ("by", "code"), [(signal.SIGKILL, -signal.SIGKILL), pytest.param(signal.SIGTERM, 143, marks=SWEEP)]
)
def test_it_goes_on_after_it_was_killed(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push, tmp_path: Path, by: signal.Signals, code: int
) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)
    killed: list[int] = []

    def kill(method: str, path: str) -> str | None:
        if method == "PUT" and hub.blobs and not killed:  # one file is there
            os.kill(process.pid, by)
            killed.append(1)
            return "cut"
        return None

    hub.trouble = kill
    command = [*FACTORY, "push", str(root), REPO]
    process = subprocess.Popen(command, env=environment(hub, tmp_path), stderr=subprocess.PIPE, text=True)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == code
    whole = "stopped by SIGTERM; what readers see is whole, as it was or as it will be; the same command goes on from "
    # the hub's client may tell of its own retries
    assert (f"{whole}what was sent\n" in told) == (by == signal.SIGTERM)
    assert "shards" not in told
    assert killed
    assert set(hub.main(REPO)) == {".gitattributes"}
    hub.trouble = lambda method, path: None
    assert push(root).returncode == 0
    assert rows_of(hub.main(REPO), "rejected") == local_rows(root, "rejected")
    assert not (root / ".push").exists()


@pytest.mark.parametrize(
    "trouble", [*(pytest.param(how, marks=LONG) for how in (429, 503, "cut")), pytest.param("cut after", marks=SWEEP)]
)
def test_a_hub_in_trouble_is_asked_again(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push, trouble: int | str
) -> None:
    """Every kind of request fails once: also where the hub has done it and its answer is lost."""
    root = make_dataset(workspace, make_job, publish=TERMS)
    met: set[str] = set()

    def fail_once(method: str, path: str) -> int | str | None:
        kind = f"{method} {path.split(REPO)[-1][:12]}"
        new = kind not in met
        met.add(kind)
        return trouble if new else None

    hub.trouble = fail_once
    done = push(root)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(hub.main(REPO), "data")) == len(local_rows(root, "data"))
    assert len(hub.repositories[REPO].requests) == 1
    assert len(met) > 6


def test_a_dataset_that_has_grown_replaces_what_was_there(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push
) -> None:
    first = make_dataset(workspace, make_job, "first", publish=TERMS)
    second = make_dataset(workspace, make_job, "second", publish=TERMS, tasks=[{"name": "adding", "count": 22}])
    assert push(first).returncode == 0
    hub.main(REPO)["notes.txt"] = b"the owner's own"
    assert push(second).returncode == 0
    tree = hub.main(REPO)
    assert [row["id"] for row in rows_of(tree, "data")] == [row["id"] for row in local_rows(second, "data")]
    assert tree["notes.txt"] == b"the owner's own"


def test_what_was_begun_over_an_older_main_is_begun_anew(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push
) -> None:
    """Else rows of two pushes would stand side by side on main, and the card would take both."""
    first = make_dataset(workspace, make_job, "first", publish=TERMS)
    second = make_dataset(workspace, make_job, "second", publish=TERMS, tasks=[{"name": "adding", "count": 22}])
    hub.trouble = lambda method, path: 403 if path.endswith("/merge") else None
    assert push(first).returncode == 2
    hub.trouble = lambda method, path: None
    assert push(second).returncode == 0
    assert [request["status"] for request in hub.repositories[REPO].requests] == ["closed", "merged"]
    assert push(first).returncode == 0
    assert [row["id"] for row in rows_of(hub.main(REPO), "data")] == [row["id"] for row in local_rows(first, "data")]


def test_a_main_that_moves_meanwhile_is_not_merged_over(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push
) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)

    def move(method: str, path: str) -> None:
        if method == "PUT":
            hub.main(REPO)["data/train-00009-of-another.parquet"] = b"x"

    hub.trouble = move
    done = push(root)
    assert done.returncode == 2
    assert "main has changed meanwhile" in done.stderr
    hub.trouble = lambda method, path: None
    assert push(root).returncode == 0
    assert [row["id"] for row in rows_of(hub.main(REPO), "data")] == [row["id"] for row in local_rows(root, "data")]


def test_a_card_that_the_hub_refuses_is_told_before_a_row_is_sent(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push
) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS | {"license": "my-own"})
    done = push(root)
    assert done.returncode == 2
    assert "license is wrong" in done.stderr
    assert hub.repositories == {}


def test_datasets_loads_it_and_load_rows_joins_it(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push, tmp_path: Path
) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)
    assert push(root).returncode == 0
    code = f"""
import json
from datasets import load_dataset
rows, arrays = (load_dataset("{REPO}", name, split="train") for name in ("default", "signals"))
print(json.dumps([rows["answer"][:], arrays["topk_ids"][:], rows["id"][:] == arrays["id"][:]]))
"""
    answers, ids, same = read_hub(hub, tmp_path, code)
    local = local_rows(root, "data")
    assert answers == [row["answer"] for row in local]
    assert ids == [row["topk_ids"] for row in local]
    assert same
    for streaming in (False, True):
        code = f"""
import json
from factory.load import load_rows
rows = load_rows("{REPO}", streaming={streaming})
print(json.dumps([[row["answer"], row.topk_ids.reshape(-1).tolist()] for row in rows]))
"""
        assert read_hub(hub, tmp_path, code) == [[row["answer"], row["topk_ids"]] for row in local]


def blocks_of(text: str) -> str:
    """The Python of a page."""
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def test_what_page_and_card_show_works(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push, tmp_path: Path
) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)
    assert push(root).returncode == 0
    page = (Path(__file__).parents[2] / "docs/publishing.md").read_text().replace("OWNER/NAME", REPO)
    card = hub.main(REPO)["README.md"].decode()
    told = 'print(__import__("json").dumps([whole["id"], sorted(whole.column_names)], default=list))'
    first, second = (read_hub(hub, tmp_path, f"{blocks_of(text)}\n{told}") for text in (page, card))
    assert first == second
    assert first == [
        [row["id"] for row in local_rows(root, "data")],
        sorted([*local_rows(root, "data")[0], "generator"]),
    ]


def save_tree(tree: Tree, root: Path) -> Path:
    """A copy as `snapshot_download` leaves it."""
    for name, data in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def told_of(rows: Any) -> list[Any]:
    return [
        (row["id"], row["answer"], row.topk_ids.tolist(), row.topk_logprobs.tolist(), row.completion_token_ids.tolist())
        for row in rows
    ]


def test_a_copy_on_the_disk_gives_the_same_rows(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push, tmp_path: Path
) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS, signals={"top_k": 4, "hidden_layers": [1]})
    make_curriculum(root, CurriculumConfig())
    assert push(root).returncode == 0
    copy = save_tree(hub.main(REPO), tmp_path / "copy")
    stage = next(name for name in read_card(copy) if name not in ("default", "signals", "hidden_states", "rejected"))
    for config, streams in (("default", (False, True)), (stage, (False,))):
        for streaming in streams:
            both = [
                load_rows(place, config, streaming=streaming, join_hidden_states=True, cache_dir=tmp_path / "cache")
                for place in (copy, root)
            ]
            assert told_of(both[0]) == told_of(both[1])
            assert set(both[0].column_names) == {*both[1].column_names, "generator"}
            for first, second in zip(*both, strict=True):
                assert (first.hidden_states == second.hidden_states).all()
    with pytest.raises(DatasetError, match="does not stream"):
        load_rows(copy, stage, streaming=True)


@pytest.mark.parametrize("whose", [None, pytest.param("teacher", marks=LONG)])
def test_a_stage_of_a_copy_has_the_prompts_of_its_curriculum(
    whose: Literal["teacher"] | None, workspace: Path, make_job: MakeJob, hub: Hub, push: Push, tmp_path: Path
) -> None:
    write_task(workspace, student_j2="{{ scenario.a }} plus {{ scenario.b }}?")
    root = make_dataset(workspace, make_job, publish=TERMS)
    make_curriculum(root, CurriculumConfig(by="tokens", stages=1, prompt=whose))
    assert push(root).returncode == 0
    expected = [row["prompt"] for row in local_rows(root, "curriculum/stage-1", "train-*")]
    copy = save_tree(hub.main(REPO), tmp_path / "copy")
    assert load_rows(copy, "stage-1", cache_dir=tmp_path / "cache")["prompt"] == expected
    code = (
        f'import json\nfrom factory.load import load_rows\nprint(json.dumps(load_rows("{REPO}", "stage-1")["prompt"]))'
    )
    assert read_hub(hub, tmp_path, code) == expected


def test_a_local_copy_is_what_would_be_sent(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push, tmp_path: Path
) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS, signals={"top_k": 4, "hidden_layers": [1]}, **PAIRS)
    make_curriculum(root, CurriculumConfig())
    assert push(root).returncode == 0
    copy = tmp_path / "copy"
    write_copy(root, copy, Wish())
    sent = hub.main(REPO)
    written = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    # the hub adds a file of its own
    assert written.keys() == sent.keys() - {".gitattributes"}
    card = written.pop("README.md").decode()
    assert card.replace(str(copy), REPO) == sent["README.md"].decode()
    assert all(sent[name] == data for name, data in written.items())
    assert told_of(load_rows(copy)) == told_of(load_rows(root))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".copy")) == []
    with pytest.raises(JobError, match=r"copy: is there already; name a new folder"):
        write_copy(root, copy, Wish())


def test_arrays_of_other_rows_are_not_joined(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push, tmp_path: Path
) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)
    assert push(root).returncode == 0
    copy = save_tree(hub.main(REPO), tmp_path / "copy")
    path = next((copy / "signals").iterdir())
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(table.num_rows))[::-1]), path)
    with pytest.raises(DatasetError, match="other ids than the rows"):
        load_rows(copy, cache_dir=tmp_path / "cache")
    with pytest.raises(DatasetError, match="other ids than the rows"):
        list(load_rows(copy, streaming=True))


@pytest.mark.parametrize(
    ("sections", "more", "told"),
    [
        ({}, [], "has no licence"),
        ({"publish": TERMS}, ["--without", "rejectd"], "no such config to leave out"),
        ({"publish": TERMS}, ["--without", "default"], "no such config to leave out"),
        ({"publish": TERMS}, ["--report"], "has no report.html"),
        ({"publish": TERMS | {"output_terms": "ask hf_" + "a1" * 17}}, [], "secrets in huggingface_token 1"),
        (
            {"publish": TERMS | {"output_terms": "ask jo@example.org"}},
            [],
            "personal data: email 1 (first: manifest.json)",
        ),
    ],
)
def test_what_is_not_for_everybody_is_refused_before_anything_is_sent(
    workspace: Path, make_job: MakeJob, hub: Hub, push: Push, sections: Any, more: list[str], told: str
) -> None:
    root = make_dataset(workspace, make_job, **sections)
    done = push(root, *more)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert hub.seen == []


def test_personal_data_is_pushed_where_it_is_wished(workspace: Path, make_job: MakeJob, hub: Hub, push: Push) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS | {"output_terms": "ask jo@example.org"})
    assert push(root, "--allow-personal", "--without", "rejected").returncode == 0
    assert not rows_of(hub.main(REPO), "rejected")


def test_a_damaged_file_is_not_sent(workspace: Path, make_job: MakeJob, hub: Hub, push: Push) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)
    path = sorted((root / "data").glob("*.parquet"))[1]
    flip_byte(path, path.stat().st_size // 2)
    done = push(root)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not any(path.startswith("data/") for path in hub.main(REPO)) if REPO in hub.repositories else True


def test_an_unfinished_dataset_is_not_sent(workspace: Path, make_job: MakeJob, hub: Hub, push: Push) -> None:
    root = make_dataset(workspace, make_job, publish=TERMS)
    lines = (root / "ledger.jsonl").read_text().splitlines(keepends=True)
    (root / "ledger.jsonl").write_text("".join(lines[:-1]))
    done = push(root)
    assert done.returncode == 2
    assert "so it is not pushed" in done.stderr
    assert hub.seen == []


def test_a_report_of_other_rows_is_not_sent(workspace: Path, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(tasks=[{"name": "adding", "count": 6}], publish=TERMS)
    run_job(job, workspace, workspace / "data")
    root = workspace / "data"
    write_report(root)
    write_copy(root, tmp_path / "fresh", Wish(report=True))
    assert (tmp_path / "fresh" / "report.html").read_bytes() == (root / "report.html").read_bytes()
    run_job(make_job(tasks=[{"name": "adding", "count": 12}], publish=TERMS), workspace, root)
    again = r"report\.html is of other rows .*; `factory report .*data` writes it anew"
    with pytest.raises(JobError, match=again):
        write_copy(root, tmp_path / "copy", Wish(report=True))
    # neither is a comparison of two, nor a page of an earlier release
    write_report(root, root, root / "report.html")
    with pytest.raises(JobError, match=again):
        write_copy(root, tmp_path / "copy", Wish(report=True))
    assert not (tmp_path / "copy").exists()
    write_report(root)
    write_copy(root, tmp_path / "copy", Wish(report=True))


def test_what_is_stale_is_left_out_and_told(workspace: Path, make_job: MakeJob, tmp_path: Path) -> None:
    root = workspace / "data"
    run_job(make_job(tasks=[{"name": "adding", "count": 6}], publish=TERMS), workspace, root)
    make_curriculum(root, CurriculumConfig())
    (root / "aligned-begun").mkdir()
    assert not [line for line in write_copy(root, tmp_path / "a", Wish()) if "curriculum" in line]
    run_job(make_job(tasks=[{"name": "adding", "count": 12}], publish=TERMS), workspace, root)
    told = [line for line in write_copy(root, tmp_path / "b", Wish()) if "left out" in line]
    assert [line.split(":")[0].split()[-1] for line in told] == ["curriculum", "aligned-begun"]
    assert "`factory curriculum` makes it anew" in told[0]
    assert not (tmp_path / "b" / "curriculum").exists()


def test_what_was_scored_is_told_to_be_scored_again(workspace: Path, make_job: MakeJob, tmp_path: Path) -> None:
    rows = workspace / "rows.jsonl"
    rows.write_text('{"prompt_token_ids": [65, 66], "completion_token_ids": [67, 257]}\n', encoding="utf-8")
    job = make_job().model_dump(exclude_unset=True) | {"transcripts": {"path": str(rows)}}
    del job["tasks"]
    run_job(Job.model_validate(job), workspace, workspace / "data")
    with pytest.raises(JobError, match="and give `factory score` again"):
        write_copy(workspace / "data", tmp_path / "copy", Wish())
    run_job(Job.model_validate(job | {"publish": TERMS}), workspace, workspace / "data")
    write_copy(workspace / "data", tmp_path / "copy", Wish())


def test_a_copy_says_that_it_is_one(workspace: Path, make_job: MakeJob, tmp_path: Path) -> None:
    root, copy = make_dataset(workspace, make_job, publish=TERMS), tmp_path / "copy"
    write_copy(root, copy, Wish())
    before = read_tree(copy)
    calls: list[Callable[[], object]] = [
        lambda: read_totals(copy),
        lambda: list(verify(copy)),
        lambda: write_report(copy),
        lambda: make_curriculum(copy, CurriculumConfig()),
        lambda: write_copy(copy, tmp_path / "again", Wish()),
        lambda: run_job(make_job(publish=TERMS), workspace, copy),
    ]
    for call in calls:
        with pytest.raises(DatasetError, match=r"is a pushed copy .*load_rows reads its rows, and commands work on"):
            call()
    assert read_tree(copy) == before
    # a dataset whose ledger is gone is none
    (root / "ledger.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"ledger\.jsonl: No such file.*; bring it back from a copy"):
        read_totals(root)


def test_what_is_no_dataset_is_not_made_one(tmp_path: Path) -> None:
    for call in (
        lambda: write_copy(tmp_path / "no", tmp_path / "copy", Wish()),
        lambda: align(tmp_path / "no", "demo", None),
    ):
        with pytest.raises(DatasetError, match="not a dataset of the factory"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_whoever_has_no_hub_starts_the_stand_in(workspace: Path, make_job: MakeJob, tmp_path: Path) -> None:
    """What README says: one command, whose first line is all that the other terminal needs, hf-xet installed or not."""
    pytest.importorskip("hf_xet")  # asks for a Xet token; without it the line could lack a word and work here
    root = make_dataset(workspace, make_job, publish=TERMS)
    command = [sys.executable, hub_standin.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ending(process):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.fullmatch(r"export HF_ENDPOINT=http://127\.0\.0\.1:\d+ HF_TOKEN=\w+ HF_HUB_DISABLE_XET=1\n", line)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        told = dict(word.split("=", 1) for word in line.split()[1:])
        pushed = subprocess.run(
            [*FACTORY, "push", str(root), REPO],
            env=plain | told | {"HF_HOME": str(tmp_path / "hf")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert pushed.returncode == 0, pushed.stderr
        process.terminate()
        found = re.search(r"me/sums: (\d+) files on main", process.stdout.read())
        assert found
        assert int(found[1]) > 4


def test_the_stand_in_tells_of_itself_and_ends() -> None:
    command = [sys.executable, hub_standin.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert "stand-in of the Hugging Face Hub" in done.stdout


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}], ids=["none", "empty"])
def test_nobody_writes_to_the_stand_in_without_a_token(hub: Hub, headers: dict[str, str]) -> None:
    asked = json.dumps({"name": "sums", "organization": "me", "type": "dataset"}).encode()
    create = f"{hub.url}/api/repos/create"
    urlopen(Request(create, asked, {"Authorization": "Bearer x"})).close()
    writes = ["preupload/main", "commit/main", "discussions", "discussions/1/status", "discussions/1/merge"]
    writes = [f"{hub.url}/api/datasets/{REPO}/{write}" for write in writes]
    for url in (create, *writes, f"{hub.url}/datasets/{REPO}.git/info/lfs/objects/batch"):
        with pytest.raises(HTTPError) as told:
            urlopen(Request(url, b"{}", headers))
        assert told.value.code == 401, url
    urlopen(Request(f"{hub.url}/api/datasets/{REPO}/tree/main", headers=headers)).close()  # reading is for everybody
    assert list(hub.main(REPO)) == [".gitattributes"]


def test_a_hub_that_cannot_be_reached_is_named_with_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_module, "TRIES", 2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.socket() as closed:  # bound and not listening: nobody else gets the port meanwhile
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        repo = Repo(REPO)
        repo.api = HfApi(endpoint=f"http://me:secret@{address}", token="t")
        with pytest.raises(DatasetError, match=rf"me/sums: http://…@{address} cannot be reached to tell what ") as told:
            repo.head()
    assert "look at the network, and at HF_ENDPOINT, which says where the hub is; nobody sees" in str(told.value)
    waiting = capsys.readouterr().err
    assert waiting.count("\n") == 1
    assert f"me/sums: http://…@{address} cannot be reached" in waiting
    assert waiting.endswith("; asked again in 1 s (try 2 of 2)\n")
    assert "secret" not in waiting + str(told.value)


def test_who_may_not_write_is_told_to_log_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    repo = Repo(REPO)
    repo.api = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(DatasetError, match=r"could not create it: .*401.* log in with a token .*`hf auth login`"):
        repo.create(private=False)
    assert [method for method, _ in hub.seen].count("POST") == 1  # asked again it would say the same


@contextmanager
def ending(process: "subprocess.Popen[str]") -> Iterator[None]:
    """A process that is waited for afterwards, whatever happens."""
    try:
        yield
    finally:
        process.kill()
