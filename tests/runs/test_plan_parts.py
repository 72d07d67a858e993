"""Parts of a plan, each made by itself, become the dataset that one run makes: byte for byte, or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task
from dataset_support import flip_byte, read_ledger_lines, read_table, read_tree, start_factory, write_job

from factory.checks.verify import verify
from factory.dataset.history import count_runs
from factory.dataset.ledger import read_ledger
from factory.errors import DatasetError, JobError
from factory.job.job import Job
from factory.publish.show import describe_totals
from factory.runs import merge as module
from factory.runs.merge import merge
from factory.runs.parts import Part, part_path, read_part, take_part
from factory.runs.prepare import prepare
from factory.runs.run import run, run_prepared

MakeJob = Callable[..., Job]
VARIABLE = ("runs.jsonl", ".lock")  # the files that may differ between two equal datasets
FAULTY = {"wrong": 0.2, "bad_json": 0.1, "pii": 0.1}
PLAIN: dict[str, Any] = {"teacher": {"backend": "scripted", "scripted": FAULTY}}
TWICE = PLAIN | {"filters": {"duplicates": True}, "tasks": [{"name": "adding", "count": 90}]}
# scenarios of `adding` draw from 10 x 10 numbers at the level easy: many rows are there twice
JOBS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "duplicates": TWICE,
    "near": TWICE | {"filters": {"duplicates": True, "near_duplicates": 0.5}},
    "pairs": TWICE
    | {
        "samples": {"n": 4, "keep": "pair"},
        "filters": {"duplicates": True, "pii": True, "rejected_pii": "redacted"},
        "tasks": [{"name": "adding", "count": 60}],
        "shard_rows": 24,
    },
    "all that is kept": TWICE
    | {
        "signals": {
            "top_k": 4,
            "hidden_layers": [2],
            "experts": True,
            "attention": {"layers": [-1], "share": 0.5, "max_tokens": 4096},
            "positions": "all",
        },
        "storage": {"logprobs": "compact"},
        "filters": {"duplicates": True, "pii": True, "rejected_pii": "dropped"},
        "validation": {"retries": 1, "retry": "repair"},
    },
    "two teachers": {
        "teachers": {"big": PLAIN["teacher"], "small": {"backend": "scripted", "model": "other"}},
        "tasks": [{"name": "adding", "count": 60, "teacher": {"big": 1, "small": 2}}],
        "filters": {"duplicates": True},
    },
}


def make(make_job: MakeJob, sections: dict[str, Any]) -> Job:
    job = make_job(**sections)
    return job.model_copy(update={"teacher": Job.model_fields["teacher"].default}) if "teachers" in sections else job


def run_parts(job: Job, workspace: Path, of: int) -> list[Path]:
    prepared = prepare(job, workspace)
    found = []
    for number in range(1, of + 1):
        part = Part(number, of)
        found.append(part_path(workspace / "parts", part))
        run_prepared(take_part(prepared, part), found[-1])
    return found


def as_job(sections: dict[str, Any]) -> Job:
    whole = {"out": "out", "shard_rows": 8, "signals": {"top_k": 4, "hidden_layers": [2, -1]}} | sections
    return Job.model_validate({"tasks": [{"name": "adding", "count": 40}]} | whole)


@pytest.mark.parametrize(("name", "of"), [*((name, 3) for name in JOBS), ("duplicates", 1)])
def test_merged_parts_are_byte_for_byte_what_one_run_makes(workspace: Path, name: str, of: int) -> None:
    job = as_job(JOBS[name])
    whole = run(job, workspace, workspace / "whole")
    parts = run_parts(job, workspace, of)
    # something is decided late, else this shows little
    assert whole.reasons["filter/duplicate"] >= 3 or name == "plain"
    assert merge(workspace / "merged", parts[::-1]) == whole
    assert read_tree(workspace / "merged", but=VARIABLE) == read_tree(workspace / "whole", but=VARIABLE)
    assert list(verify(workspace / "merged")) == []
    assert count_runs(workspace / "merged").ended == of


def test_a_row_is_like_one_that_stays_and_never_like_one_that_another_part_turns_down(workspace: Path) -> None:
    """Near duplicates chain: b is like a, c is like b and not like a. Without b, c stays."""
    job = as_job(TWICE | {"filters": {"near_duplicates": 0.35}, "shard_rows": 4})
    whole = run(job, workspace, workspace / "whole")
    merge(workspace / "merged", run_parts(job, workspace, 4))
    like = {
        row["id"]: row["findings"][0].split()[-1]
        for row in read_table(workspace / "merged", "rejected")
        if row["stage"] == "filter"
    }
    stays = {row["id"] for row in read_table(workspace / "merged", "data")}
    assert len(like) > 5
    assert set(like.values()) <= stays
    assert read_tree(workspace / "merged", but=VARIABLE) == read_tree(workspace / "whole", but=VARIABLE)
    assert whole.accepted == len(stays)


def test_each_part_is_sound_by_itself_and_says_that_it_is_one(workspace: Path) -> None:
    job = as_job(TWICE)
    parts = run_parts(job, workspace, 3)
    rows = 0
    for number, part in enumerate(parts, start=1):
        assert list(verify(part)) == []
        totals = read_ledger(part).totals
        assert (totals.part, totals.left, totals.complete) == (f"{number}/3", 0, False)
        assert [line["shard"] % 3 for line in read_ledger_lines(part)[1:]] == [number - 1] * totals.committed_shards
        assert describe_totals(part, totals)[0] == f"{part}: part {number}/3: complete; `factory merge` joins the parts"
        rows += totals.planned
    assert rows == 90
    assert "only part 2/3 of a plan" in (parts[1] / "README.md").read_text(encoding="utf-8")


def test_a_part_that_was_killed_goes_on_and_one_that_is_damaged_is_mended(workspace: Path) -> None:
    job = as_job(TWICE)
    run(job, workspace, workspace / "whole")
    parts = run_parts(job, workspace, 2)
    # as a kill leaves it: a line less, a torn one behind it
    lines = (parts[0] / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (parts[0] / "ledger.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    with pytest.raises(DatasetError, match=r"unfinished: 32 of 48 rows of part 1/2 .* --part 1/2` goes on"):
        merge(workspace / "merged", parts)
    run_prepared(take_part(prepare(job, workspace), Part(1, 2)), parts[0])
    flip_byte(parts[1] / "late/train-00003.parquet")
    with pytest.raises(DatasetError, match=r"late/train-00003.*--part 2/2 --repair"):
        merge(workspace / "merged", parts)
    run_prepared(take_part(prepare(job, workspace), Part(2, 2)), parts[1], mend=True)
    merge(workspace / "merged", parts)
    assert read_tree(workspace / "merged", but=VARIABLE) == read_tree(workspace / "whole", but=VARIABLE)


def test_a_merge_that_was_killed_leaves_nothing_by_that_name_and_begins_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = as_job(TWICE)
    parts = run_parts(job, workspace, 2)
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_ledger", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merge(workspace / "merged", parts)
    assert not (workspace / "merged").exists()
    before = [read_tree(part) for part in parts]
    merge(workspace / "merged", parts)
    assert not (workspace / "merged.merging").exists()
    assert [read_tree(part) for part in parts] == before
    with pytest.raises(DatasetError, match="is there already"):
        merge(workspace / "merged", parts)


def test_files_that_stay_as_they_are_are_links_unless_copies_are_wanted(workspace: Path) -> None:
    parts = run_parts(as_job(PLAIN), workspace, 2)
    merge(workspace / "linked", parts)
    merge(workspace / "copied", parts, copy=True)
    name = "hidden_states/train-00001.parquet"
    assert os.path.samefile(workspace / "linked" / name, parts[1] / name)
    assert not os.path.samefile(workspace / "copied" / name, parts[1] / name)
    assert read_tree(workspace / "linked", but=VARIABLE) == read_tree(workspace / "copied", but=VARIABLE)


def test_a_merged_dataset_goes_on_and_grows_as_any_other(workspace: Path) -> None:
    job = as_job(TWICE)
    run(job, workspace, workspace / "whole")
    merge(workspace / "merged", run_parts(job, workspace, 3))
    more = as_job(TWICE | {"tasks": [{"name": "adding", "count": 120}]})
    for name in ("whole", "merged"):
        run(more, workspace, workspace / name)
    assert read_tree(workspace / "merged", but=VARIABLE) == read_tree(workspace / "whole", but=VARIABLE)


def test_what_does_not_belong_together_is_refused_before_anything_is_written(workspace: Path) -> None:
    job = as_job(PLAIN)
    parts = run_parts(job, workspace, 3)
    write_task(workspace / "elsewhere")
    (workspace / "elsewhere/prompts/adding/user.j2").write_text("Add up {{ scenario.a }} and {{ scenario.b }}.")
    other = run_parts(job, workspace / "elsewhere", 3)
    finer = run_parts(job, workspace / "elsewhere", 4)[1]
    run(job, workspace, workspace / "whole")
    shutil.copytree(parts[1], workspace / "again")
    cases = {
        (parts[0], parts[2]): "part 2 of 3 is missing; make it with `factory run JOB --part 2/3`",
        (*parts, workspace / "again"): "is part 2/3, as",
        (parts[0], other[1], parts[2]): r"belongs to another plan than .*tasks\.adding\.files",
        (other[0], finer): "belongs to another plan",
        (*parts[:2], workspace / "whole"): "is a dataset of its own and no part of a plan",
        (*parts[:2], workspace / "nothing"): r"nothing: no manifest\.json, so not a dataset of the factory",
    }
    for given, told in cases.items():
        with pytest.raises(DatasetError, match=told) as caught:
            merge(workspace / "merged", list(given))
        assert "\n" not in str(caught.value)
    assert not (workspace / "merged").exists()
    assert not (workspace / "merged.merging").exists()


def test_a_directory_holds_one_part_and_no_other(workspace: Path) -> None:
    job = as_job(PLAIN)
    prepared = prepare(job, workspace)
    run_prepared(take_part(prepared, Part(1, 2)), workspace / "one")
    run(job, workspace, workspace / "whole")
    before = read_tree(workspace / "one")
    grown = prepare(as_job(PLAIN | {"tasks": [{"name": "adding", "count": 50}]}), workspace)
    cases = [
        (take_part(prepared, Part(2, 2)), "one", "holds part 1/2 of a plan, asked for is part 2/2.*--part 1/2"),
        (prepared, "one", "holds part 1/2 of a plan, asked for is the whole plan"),
        (
            take_part(prepared, Part(1, 2)),
            "whole",
            "holds the whole plan, asked for is part 1/2 of a plan",
        ),
        (take_part(grown, Part(1, 2)), "one", "a part does not grow"),
    ]
    for given, name, told in cases:
        with pytest.raises(DatasetError, match=told):
            run_prepared(given, workspace / name)
    assert read_tree(workspace / "one") == before


@pytest.mark.parametrize(
    ("sections", "part", "told"),
    [
        (PLAIN, Part(1, 6), "the plan has 5 shards, so some parts would have none; make at most 5"),
        (
            {"tasks": [{"name": "adding", "accepted": 5, "at_most": 20}]},
            Part(1, 2),
            r"tasks\.adding\.accepted: how many prompts",
        ),
        (
            {"teacher": {"backend": "openai", "model": "m", "price": {"prompt": 1, "completion": 1}, "max_cost": 3}},
            Part(1, 2),
            r"--part: teacher\.max_cost bounds what all rows cost",
        ),
    ],
    ids=["too many parts", "a goal", "a purse"],
)
def test_what_cannot_be_made_in_parts_is_refused(
    workspace: Path, sections: dict[str, Any], part: Part, told: str
) -> None:
    with pytest.raises(JobError, match=told):
        take_part(prepare(as_job(sections), workspace), part)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/", "-1/2", "1/2/3", "¹/2"])
def test_a_part_is_named_by_two_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="need i/n"):
        read_part(text)


def test_requests_of_all_accounts_are_numbered_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lines = [{"asked": 0, "id": name}, {"asked": 1, "id": name}, {"used": 1}, {"price": None}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name).write_text(text + '{"asked": 9', encoding="utf-8")
    found = [
        json.loads(line) for line in module._join_accounts(iter([tmp_path / "a", tmp_path / "none", tmp_path / "b"]))
    ]
    assert [line.get("asked", line.get("used")) for line in found] == [0, 1, 1, None, 2, 3, 3, None]


def test_the_commands_do_it(workspace: Path) -> None:
    write_job(workspace, count=30, sections="[filters]\nduplicates = true")

    def factory(*arguments: str) -> tuple[int, str, str]:
        process = start_factory(*arguments, cwd=workspace)
        told, errors = process.communicate(timeout=120)
        return process.returncode, told, errors

    for number in (1, 2):
        code, told, errors = factory("run", "job.toml", "--part", f"{number}/2")
        assert (code, "part " in told) == (0, True), errors
    code, told, errors = factory("merge", "all", "out-part-00001-of-00002", "out-part-00002-of-00002")
    assert (code, told.splitlines()[0]) == (0, "all: complete"), errors
    code, _, errors = factory("run", "job.toml", "--part", "3/2")
    assert (code, errors) == (2, "error: --part: need i/n with i from 1 to n, such as 2/8, got '3/2'\n")
