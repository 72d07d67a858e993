"""A dataset in an object store: the bytes of one on a disk, whatever happens on the way, and one writer at a time."""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from dataset_support import start_factory, write_job
from inline_nodes import InlineNodes, run_inline
from s3_support import KEY, Gate, bucket_of, connection, contents, new_url
from test_plan_parts import TWICE, as_job

from factory.cli import main
from factory.dataset.bucket import Bucket, Conflict, Url, connect
from factory.dataset.ledger import read_ledger
from factory.dataset.object_store import WRITER, ObjectStore
from factory.errors import DatasetError
from factory.job.job import Job
from factory.runs.prepare import prepare
from factory.runs.run import run, run_prepared

MakeJob = Callable[..., Job]
TIMES = "runs.jsonl"  # the only file that may differ


def make(job: Job, workspace: Path, url: Url, folder: str = "work", take_over: bool = False) -> None:
    run_prepared(prepare(job, workspace), workspace / folder, store=ObjectStore(url, take_over, connection()))


def made_here(job: Job, workspace: Path) -> dict[str, bytes]:
    """What one run makes on a disk."""
    run(job, workspace, workspace / "here")
    return files_of(workspace / "here")


def files_of(out: Path) -> dict[str, bytes]:
    """The files of a dataset, but for the times and what is hidden."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != TIMES and not name.startswith(".")}


def made_there(url: Url) -> dict[str, bytes]:
    return {name: data for name, data in contents(url).items() if name != TIMES}


def fail_nth(kind: str, method: str, part: str, which: Callable[[int], bool]) -> Callable[[str, str], str]:
    """A rule of a gate: this happens to those of its requests, counted from 1."""
    seen = 0

    def rule(asked: str, key: str) -> str:
        nonlocal seen
        if asked != method or part not in key:
            return ""
        seen += 1
        return kind if which(seen) else ""

    return rule


def test_it_is_the_dataset_that_one_run_makes_on_a_disk(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    job, url = make_job(), new_url()
    make(job, workspace, url)
    there = made_there(url)
    assert there == made_here(job, workspace)
    assert WRITER not in there
    # of each shard's files nothing is left in the working folder, all else is
    left = files_of(workspace / "work")
    assert left == {name: data for name, data in there.items() if not name.endswith(".parquet")}
    # the same again adds nothing and changes nothing
    make(job, workspace, url)
    assert made_there(url) == there


def test_a_reader_never_meets_half_a_dataset(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    url, seen = new_url(), 0

    def look(method: str, key: str) -> str:
        nonlocal seen
        if method != "PUT" or not key.endswith(("README.md", "ledger.jsonl", "manifest.json")):
            return ""
        gate.rule = lambda method, key: ""
        there = contents(url)
        gate.rule = look
        # a card, a ledger or a manifest names only what is there
        assert "README.md" not in there or "ledger.jsonl" in there
        assert "ledger.jsonl" not in there or "manifest.json" in there
        for line in there.get("ledger.jsonl", b"").splitlines()[1:]:
            assert {file["path"]: file["bytes"] for file in json.loads(line)["files"]}.items() <= {
                name: len(data) for name, data in there.items()
            }.items()
            seen += 1
        return ""

    gate.rule = look
    make(make_job(), workspace, url)
    assert seen == 3


def test_what_a_network_does_is_asked_again(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    job, url = make_job(), new_url()
    kinds = cycle(["busy", "", "cut", "", "lost", ""])
    gate.rule = lambda method, key: next(kinds) if method == "PUT" else ""
    make(job, workspace, url)
    assert len(gate.puts()) > len(set(gate.puts()))
    gate.rule = lambda method, key: ""
    assert made_there(url) == made_here(job, workspace)


def test_a_store_that_is_gone_ends_the_run_in_one_line_and_nothing_is_lost(
    gate: Gate, workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, url = make_job(), new_url()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    gate.rule = fail_nth("busy", "PUT", "data/", lambda number: number >= 2)
    with pytest.raises(DatasetError) as caught:
        run_prepared(prepare(job, workspace), workspace / "work", store=ObjectStore(url))
    told = str(caught.value)
    assert told.startswith(f"{url}/data/train-0000")
    assert "SlowDown" in told
    assert told.endswith("committed shards are whole, the same command goes on from them")
    assert "\n" not in told
    gate.rule = lambda method, key: ""
    make(job, workspace, url)
    assert made_there(url) == made_here(job, workspace)


@pytest.mark.parametrize(
    "last",
    [
        "data/train-00001",
        pytest.param("ledger.jsonl", marks=pytest.mark.long),
        pytest.param("README.md", marks=pytest.mark.long),
    ],
)
def test_a_kill_after_any_upload_loses_nothing(last: str, gate: Gate, workspace: Path) -> None:
    write_job(workspace)
    url = new_url()
    child: Any = None

    def kill(method: str, key: str) -> str:
        # the first ledger has no shard
        nth = 2 if last == "ledger.jsonl" else 1
        if method != "PUT" or last not in key or sum(last in name for name in gate.puts()) < nth:
            return ""
        gate.rule = lambda method, key: ""
        os.kill(child.pid, signal.SIGKILL)
        return "lost"

    gate.rule = kill
    child = start_factory("run", "job.toml", "--out", url, cwd=workspace)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    # nobody else may go on, for nobody can know that it is gone
    write_job(workspace, sections='[store]\nfolder = "elsewhere"', name="elsewhere.toml")
    other = start_factory("run", "elsewhere.toml", "--out", url, cwd=workspace)
    assert f"error: {url}: a run is at work there already (process {child.pid} on " in other.communicate()[1]
    assert other.returncode == 2
    again = start_factory("run", "job.toml", "--out", url, cwd=workspace)
    told = again.communicate()[0]
    assert again.returncode == 0
    assert told.startswith(f"{url}: complete")
    here = start_factory("run", "job.toml", cwd=workspace)
    assert here.wait() == 0
    assert made_there(url) == files_of(workspace / "out")


@pytest.mark.long
@pytest.mark.parametrize("lost", [False, True], ids=["before", "after"])
def test_the_way_to_it_ends_at_any_request(
    lost: bool, gate: Gate, workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the request is done or after it; then the same folder goes on, or another one from what is there."""
    job = make_job(filters={"duplicates": True})
    prepared, here = prepare(job, workspace), made_here(job, workspace)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    impatient, last = connect(), 0
    impatient.retries = 1  # type: ignore[attr-defined]
    for number in range(1, 200):
        url, asked = new_url(), 0

        def end(method: str, key: str, number: int = number) -> str:
            nonlocal asked
            asked += 1
            return "" if asked < number else "lost" if lost and asked == number else "busy"

        gate.rule, out = end, workspace / f"work-{number}"
        with suppress(DatasetError):
            run_prepared(prepared, out, store=ObjectStore(url, False, impatient))
            last = number
        gate.rule = lambda method, key: ""
        if not last:
            elsewhere = number % 2 == 0
            out = workspace / f"elsewhere-{number}" if elsewhere else out
            run_prepared(prepared, out, store=ObjectStore(url, elsewhere, connection()))
        assert made_there(url) == here, number
        if last:
            break
    assert last > 30


def test_another_machine_goes_on_where_one_left_off(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    # what is a duplicate depends on rows of shards that are in the store alone
    job = make_job(filters={"duplicates": True}, tasks=[{"name": "adding", "count": 60, "levels": {"easy": 1}}])
    url = new_url()
    gate.rule = fail_nth("unknown", "PUT", "data/train-00004", lambda number: True)
    with pytest.raises(DatasetError, match=r"refuses these credentials \(InvalidAccessKeyId\)"):
        make(job, workspace, url, "first")
    gate.rule = lambda method, key: ""
    committed = read_ledger(workspace / "first").entries
    assert committed
    with pytest.raises(DatasetError, match=r"a run is at work there already \(process \d+ on .*--take-over goes on"):
        make(job, workspace, url, "second")
    make(job, workspace, url, "second", take_over=True)
    there = made_there(url)
    assert there == made_here(job, workspace)
    # the first one's folder is behind now, and follows
    make(job, workspace, url, "first")
    assert made_there(url) == there
    assert "duplicate" in str(read_ledger(workspace / "first").totals.reasons)


def test_a_run_that_was_taken_over_from_writes_nothing_more(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    job, url = make_job(), new_url()

    def take_over(method: str, key: str) -> str:
        if method == "PUT" and key.endswith("data/train-00001.parquet"):
            gate.rule = lambda method, key: ""
            make(job, workspace, url, "second", take_over=True)
            gate.seen.clear()
        return ""

    gate.rule = take_over
    with pytest.raises(DatasetError, match="another run has taken over there, so this one stops"):
        make(job, workspace, url, "first")
    assert not [key for key in gate.puts() if "train" not in key]
    assert made_there(url) == made_here(job, workspace)


def test_objects_that_nobody_committed_are_replaced(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    job, url = make_job(), new_url()

    def leave(method: str, key: str) -> str:
        if key.endswith("data/train-00000.parquet"):
            gate.rule = lambda method, key: ""
            # a run before us has left these, and no ledger names them
            bucket_of(url).put("data/train-00000.parquet", b"half")
            bucket_of(url).put("rejected/train-00002.parquet", b"half")
        return ""

    gate.rule = leave
    make(job, workspace, url)
    assert made_there(url) == made_here(job, workspace)


def test_a_folder_follows_what_others_have_made_there(
    gate: Gate, workspace: Path, make_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    job, url = make_job(), new_url()
    make(job, workspace, url)
    whole, ledger = made_there(url), workspace / "work/ledger.jsonl"
    plan, first, second, third = ledger.read_bytes().splitlines(keepends=True)
    # here two shards are committed, there another and one of them
    ledger.write_bytes(plan + second + third)
    bucket_of(url).put("ledger.jsonl", plan + first + second, over=bucket_of(url).list()["ledger.jsonl"].etag)
    make(job, workspace, url)
    told = "1 shards that were made here are not there, where another run went on; made again"
    assert f"{url}: {told}\n" in capsys.readouterr().err
    assert made_there(url) == whole
    # a ledger that is damaged here is brought anew
    ledger.write_bytes(b"torn")
    make(job, workspace, url)
    assert made_there(url) == whole


def test_whatever_is_not_of_a_run_is_left_alone(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    url = new_url()
    bucket_of(url).put("thesis.tex", b"mine")
    with pytest.raises(DatasetError, match=r"not empty and not a dataset of the factory \(has thesis.tex\)"):
        make(make_job(), workspace, url)
    assert contents(url) == {"thesis.tex": b"mine"}
    whole = Url(url.bucket, "whole")
    make(make_job(), workspace, whole, "whole")
    bucket_of(whole).put("curriculum/curriculum.json", b"{}")
    with pytest.raises(
        DatasetError, match=r"has curriculum/curriculum.json, which no run makes; copy it to a directory"
    ):
        make(make_job(), workspace, whole, "whole")


def test_another_job_is_refused_and_nothing_is_touched(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    url = new_url()
    make(make_job(), workspace, url)
    before = contents(url)
    with pytest.raises(DatasetError, match="made by another job, cannot resume"):
        make(make_job(seed=8), workspace, url, "other")
    assert contents(url) == before


def test_a_shard_that_is_gone_or_changed_is_told(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    url, bucket = new_url(), None
    make(make_job(), workspace, url)
    bucket = bucket_of(url)
    bucket.put("data/train-00001.parquet", b"short", over=bucket.list()["data/train-00001.parquet"].etag)
    with pytest.raises(DatasetError, match=r"data/train-00001.parquet: 5 bytes, committed with \d+; bring it back"):
        make(make_job(tasks=[{"name": "adding", "count": 40}]), workspace, url)
    bucket.remove("data/train-00001.parquet", bucket.list()["data/train-00001.parquet"].etag)
    with pytest.raises(DatasetError, match=r"data/train-00001.parquet: missing"):
        make(make_job(), workspace, url)
    for name, seen in bucket.list().items():
        bucket.remove(name, seen.etag)
    with pytest.raises(DatasetError, match=r"is empty, and .*work has the ledger of 3 shards that were there"):
        make(make_job(), workspace, url)


def test_a_dataset_grows_there(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    url, more = new_url(), make_job(tasks=[{"name": "adding", "count": 44}])
    make(make_job(), workspace, url)
    make(more, workspace, url, "elsewhere")
    run(make_job(), workspace, workspace / "here")
    assert made_there(url) == made_here(more, workspace)


def test_a_store_that_fails_while_the_card_is_counted_fails_the_run(
    gate: Gate, workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("duckdb")
    url, more = new_url(), make_job(tasks=[{"name": "adding", "count": 44}])
    make(make_job(), workspace, url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    # earlier shards are there alone, and the card tells of their texts, too
    gate.rule = lambda method, key: "busy" if method == "GET" and "/data/" in key else ""
    with pytest.raises(DatasetError, match=r"train-00000.parquet: the store does not answer as it should \(SlowDown"):
        run_prepared(prepare(more, workspace), workspace / "work", store=ObjectStore(url))
    gate.rule = lambda method, key: ""
    make(more, workspace, url)
    run(make_job(), workspace, workspace / "here")
    assert made_there(url) == made_here(more, workspace)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "there are no credentials for it; set AWS_ACCESS"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store does not answer as it should"),
    ],
)
def test_a_store_that_cannot_be_asked_is_one_line_before_anything_is_made(
    changed: dict[str, str | None], told: str, gate: Gate, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url()
    write_job(workspace)
    for name, value in ({"AWS_MAX_ATTEMPTS": "1"} | changed).items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    done = start_factory("run", "job.toml", "--out", url, cwd=workspace)
    error = done.communicate()[1]
    assert done.returncode == 2
    assert error.startswith(f"error: {url}: {told}")
    assert error.count("\n") == 1


def test_no_bucket_and_refused_keys_are_one_line_and_no_secret_is_told(gate: Gate, workspace: Path) -> None:
    write_job(workspace)
    url = new_url()
    nowhere = Url(f"{url.bucket}-not", "rows")
    done = start_factory("run", "job.toml", "--out", nowhere, cwd=workspace)
    assert (
        done.communicate()[1]
        == f"error: {nowhere}: there is no bucket {nowhere.bucket!r}; make it, or mend the address\n"
    )
    gate.rule = lambda method, key: "unknown" if method == "PUT" else ""
    done = start_factory("run", "job.toml", "--out", url, cwd=workspace)
    error = done.communicate()[1]
    assert done.returncode == 2
    assert "the store refuses these credentials (InvalidAccessKeyId); set AWS_ACCESS_KEY_ID" in error
    assert error.count("\n") == 1
    assert KEY not in error + "".join(path.read_text() for path in workspace.rglob("*.json*"))


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DatasetError, match=r's3fs is not installed; pip install .*\[s3\]"'):
        connect()


def test_conditions_are_kept_by_what_is_tested_against(gate: Gate) -> None:
    bucket = bucket_of(new_url())
    first = bucket.put("name", b"one")
    # the same bytes again: an answer may have been lost
    assert bucket.put("name", b"one") == first
    with pytest.raises(Conflict):
        bucket.put("name", b"two")
    second = bucket.put("name", b"two", over=first)
    with pytest.raises(Conflict):
        bucket.put("name", b"three", over=first)
    with pytest.raises(Conflict):
        bucket.remove("name", first)
    bucket.remove("name", second)
    assert bucket.list() == {}


def test_a_long_file_goes_up_in_parts(gate: Gate, tmp_path: Path) -> None:
    bucket = Bucket(new_url(), connection(), part_bytes=5 * 2**20)
    path = tmp_path / "long"
    path.write_bytes(os.urandom(12 * 2**20))
    gate.rule = fail_nth("cut", "PUT", "long", lambda number: number == 2)
    bucket.put("long", path, "digest")
    bucket.fetch("long", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    seen = bucket.look("long")
    assert seen is not None
    assert seen.digest == "digest"
    # one that does not come to its end leaves nothing behind
    gate.rule = fail_nth("unknown", "PUT", "other", lambda number: number == 2)
    with pytest.raises(DatasetError):
        bucket.put("other", path, "digest")
    gate.rule = lambda method, key: ""
    assert list(bucket.list()) == ["long"]
    told = bucket.objects.call_s3("list_multipart_uploads", Bucket=bucket.url.bucket)
    assert not told.get("Uploads")


@pytest.mark.long
def test_a_cluster_s_driver_keeps_it_there(gate: Gate, workspace: Path) -> None:
    job, url = as_job(TWICE), new_url()
    store, prepared = ObjectStore(url, False, connection()), prepare(job, workspace)
    with pytest.raises(KeyboardInterrupt):
        run_inline(prepared, workspace / "work", InlineNodes({"a": 2}), stop_at=4, store=store)
    # in order: nobody holds it, and what is committed is there
    assert WRITER not in contents(url)
    store = ObjectStore(url, False, connection())
    run_inline(prepared, workspace / "elsewhere", InlineNodes({"a": 2}), store=store)
    assert made_there(url) == made_here(job, workspace)


@pytest.mark.long
def test_parts_are_made_there_and_joined_here(gate: Gate, workspace: Path, tmp_path: Path) -> None:
    write_job(workspace, sections="[filters]\nduplicates = true")
    url, made = new_url(), []
    for number in (1, 2):
        done = start_factory("run", "job.toml", "--out", f"{url}-{number}", "--part", f"{number}/2", cwd=workspace)
        assert done.wait() == 0
        made.append(workspace / f"copy-{number}")
        for name, data in contents(Url(url.bucket, f"{url.prefix}-{number}")).items():
            (made[-1] / name).parent.mkdir(parents=True, exist_ok=True)
            (made[-1] / name).write_bytes(data)
    assert start_factory("merge", "whole", *made, cwd=workspace).wait() == 0
    assert start_factory("run", "job.toml", cwd=workspace).wait() == 0
    assert files_of(workspace / "whole") == files_of(workspace / "out")


def test_status_and_plan_take_an_address(gate: Gate, workspace: Path, make_job: MakeJob) -> None:
    url = new_url()
    make(make_job(), workspace, url)
    done = start_factory("status", url, cwd=workspace)
    assert done.communicate()[0].startswith(f"{url}: complete\n  planned 20 = accepted 20")
    path = write_job(workspace)
    path.write_text(path.read_text().replace('out = "out"', f'out = "{url}"'))
    done = start_factory("plan", "job.toml", cwd=workspace)
    told = done.communicate()[0]
    assert done.returncode == 0
    assert f"kept in {url}; here, in .factory-store/{url.folder}, shards are until they are uploaded: about" in told


def test_what_takes_no_address_says_what_to_do(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    write_job(workspace)
    run = ("run", "job.toml", "--out")
    copied = "copy first `aws s3 sync s3://my-rows/a DIR`, then give DIR"
    secret = "s3://AKIA:secret@my-rows/a"
    for told, *command in (
        (f"s3://my-rows/a: is an address, and this command takes a directory; {copied}", "verify", "s3://my-rows/a"),
        (
            f"s3://my-rows/a: is an address, and this command takes a directory; {copied}",
            "push",
            "s3://my-rows/a",
            "o/n",
        ),
        (
            "gs://rows/a: is an address, and this command takes a directory; copy it, then give DIR",
            "show",
            "gs://rows/a",
        ),
        ("gs://rows/a: is an address (gs://), and what is made is written to a directory; mount", *run, "gs://rows/a"),
        ("s3://my-rows: a dataset needs a prefix of its own; give s3://BUCKET/PREFIX", *run, "s3://my-rows"),
        ("'a/../b' is no plain prefix; give s3://BUCKET/PREFIX", *run, "s3://my-rows/a/../b"),
        ("'a*' is no plain prefix", *run, "s3://my-rows/a*"),
        ("'My_Rows' is no name of a bucket", *run, "s3://My_Rows/a"),
        ("an address has no credentials in it; set AWS_ACCESS_KEY_ID", *run, secret),
        (
            "--repair: reads files of shards, which are in s3://my-rows/a and not here",
            *run,
            "s3://my-rows/a",
            "--repair",
        ),
        ("--take-over: out is a directory", "run", "job.toml", "--take-over"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(command)
        error = capsys.readouterr().err
        assert caught.value.code == 2
        assert told in error
        assert error.count("\n") == 1
        assert "secret" not in error
