"""Several teachers in one job: each row says whose it is, they take turns, and nothing of one passes for another's."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, write_task
from dataset_support import read_ledger_lines, read_table, read_tree

from factory.checks.verify import verify
from factory.dataset.manifest import read_manifest
from factory.errors import DatasetError, JobError, TaskError
from factory.forecast.estimate import estimate
from factory.job.job import Job
from factory.load import collate, load_rows
from factory.publish.show import describe_totals
from factory.records import Prompt
from factory.runs import run as module
from factory.runs.prepare import prepare, preview_job
from factory.runs.run import run, run_prepared

MakeJob = Callable[..., Job]
VARIABLE = ("runs.jsonl", ".lock")
BIG = {"backend": "scripted", "model": "big model", "scripted": {"wrong": 0.2}}
SMALL = {"backend": "scripted", "model": "small model", "scripted": {"wrong": 0.6}, "reasoning": "prompted"}
SHARED = {"name": "adding", "count": 20, "teacher": {"big": 1, "small": 3}}


def several(make_job: MakeJob, *tasks: dict[str, Any], **changed: Any) -> Job:
    """A job with a teacher `big` that is mostly right and one `small` that is mostly wrong."""
    base = make_job(tasks=[{"name": "adding", "count": 1}]).model_dump(mode="json", exclude_unset=True)
    del base["teacher"]
    sections = {"teachers": {"big": BIG, "small": SMALL}, "tasks": list(tasks or (SHARED,))}
    return Job.model_validate(base | sections | changed)


def whose(out: Path, *names: str) -> Counter[tuple[str, ...]]:
    rows = [row for config in ("data", "rejected") for row in read_table(out, config)]
    return Counter(tuple(row[name] for name in names) for row in rows)


def test_a_task_a_level_and_a_share_of_the_prompts_have_the_teacher_they_name(
    workspace: Path, make_job: MakeJob
) -> None:
    write_task(workspace, "second")
    second = {"name": "second", "count": 10, "teacher": "big", "level_teachers": {"hard": "small"}}
    totals = run(several(make_job, SHARED, second, samples={"n": 2}), workspace, workspace / "out")
    assert whose(workspace / "out", "task", "level", "teacher") == {
        ("adding", "easy", "big"): 6,  # 10 prompts in shares of 1 to 3: 2.5 and 7.5
        ("adding", "easy", "small"): 14,
        ("adding", "hard", "big"): 6,
        ("adding", "hard", "small"): 14,
        ("second", "easy", "big"): 10,
        ("second", "hard", "small"): 10,
    }
    assert {name: sum(counts) for name, counts in totals.teachers.items()} == {"big": 22, "small": 38}
    assert list(verify(workspace / "out")) == []
    # all samples of a prompt are of one teacher, and only the one that has no reasoning is told to reason
    rows = read_table(workspace / "out", "rejected") + read_table(workspace / "out", "data")
    assert len({(row["prompt_id"], row["teacher"]) for row in rows}) == len({row["prompt_id"] for row in rows}) == 30
    assert {(row["teacher"], "step by step" in row["prompt"][0]["content"]) for row in rows} == {
        ("big", False),
        ("small", True),
    }


def test_teachers_take_turns_and_plan_says_so(
    workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_desk = module.open_desk
    monkeypatch.setattr(module, "open_desk", lambda *given: opened.append(given[-1]) or open_desk(*given))
    job = several(make_job, {"name": "adding", "accepted": 32, "at_most": 300, "teacher": {"big": 1, "small": 1}})
    told = "  teachers take turns, one engine at a time: 16 of big (big model), then 16 of small (small model)"
    assert told in estimate(job, workspace, workspace / "out")
    totals = run(job, workspace, workspace / "out")
    # big's rows, small's until it has its own, and what big still lacks: an engine is started no oftener than that
    assert opened in (["big", "small", "big"], ["big", "small"])
    assert totals.teachers["big"][0] == totals.teachers["small"][0] == 16
    shards = [{row["teacher"] for row in read_table_of(workspace / "out", shard)} for shard in range(totals.shards)]
    assert all(len(names) == 1 for names in shards)


def read_table_of(out: Path, shard: int) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    files = [out / folder / f"train-{shard:05d}.parquet" for folder in ("data", "rejected")]
    return [row for file in files for row in pq.read_table(file, columns=["teacher"]).to_pylist()]


def test_interrupted_anywhere_it_ends_in_the_same_bytes_and_grows(
    workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = module.write_shard, [0]

    def stop(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(module, "write_shard", stop)
    for count in (20, 40):
        job = several(make_job, SHARED | {"count": count})
        left[0] = 1000
        totals = run(job, workspace, workspace / "whole")
        again = None
        while again is None:
            left[0] = 1
            try:
                again = run(job, workspace, workspace / "pieces")
            except KeyboardInterrupt:
                continue
        assert again == totals
        assert read_tree(workspace / "pieces", but=VARIABLE) == read_tree(workspace / "whole", but=VARIABLE)
    assert totals.planned == 40
    assert {name: sum(counts) for name, counts in totals.teachers.items()} == {"big": 10, "small": 30}
    assert list(verify(workspace / "whole")) == []


def test_manifest_card_and_status_tell_of_each_teacher(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    totals = run(several(make_job), workspace, out)
    manifest, card = read_manifest(out), (out / "README.md").read_text()
    assert manifest["teacher.big"]["model"] == "big model"
    assert {"teacher.small", "signals.big", "signals.small"} <= manifest.keys()
    assert not {"teacher", "signals"} & manifest.keys()
    for name in ("big", "small"):
        accepted, *others = totals.teachers[name]
        assert f"| {name} | `{name} model (scripted)` | {accepted} | {accepted + sum(others)} |" in card
        assert any(line.startswith(f"  {name} ") for line in describe_totals(out, totals))
        assert f"## What the numbers of {name} mean" in card
    assert [record["teacher"] for record in read_ledger_lines(out)[0]["rounds"]] == ["big", "small"]


def test_rows_of_one_teacher_are_loaded_by_its_name(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    totals = run(several(make_job), workspace, out)
    for name in ("big", "small"):
        rows = load_rows(out, teacher=name, cache_dir=workspace / "cache")
        streamed = list(load_rows(out, teacher=name, streaming=True))
        assert [row["id"] for row in rows] == [row["id"] for row in streamed]
        assert {row["teacher"] for row in streamed} == {name}
        assert len(rows) == totals.teachers[name][0]
    with pytest.raises(DatasetError, match=r"no teacher 'bog' \(has: big, small\); did you mean"):
        load_rows(out, teacher="bog")
    inline = load_rows(out, reasoning="content", cache_dir=workspace / "cache")[0]
    assert inline["completion"][0]["content"].startswith("<think>")
    run(make_job(), workspace, workspace / "single")
    with pytest.raises(DatasetError, match="name no teacher"):
        load_rows(workspace / "single", teacher="big")


def test_ids_of_two_tokenizers_do_not_come_into_one_batch(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    run(several(make_job), workspace, out)
    rows = list(load_rows(out, streaming=True))
    by_name = {row["teacher"]: row for row in rows}
    both = [by_name["big"], by_name["small"]]
    assert collate(both, 0)["input_ids"].shape[0] == 2  # the scripted vocabulary, whatever the teacher is called
    # what an engine's teacher would say of its tokenizer
    manifest = json.loads((out / "manifest.json").read_text())
    for name in by_name:
        manifest[f"teacher.{name}"]["details"]["tokenizer_sha256"] = name * 8
    (out / "manifest.json").write_text(json.dumps(manifest))
    told = r"rows \w+ \(of (big|small)\) and \w+ \(of (big|small)\) have ids of different tokenizers"
    with pytest.raises(DatasetError, match=told):
        collate(list(load_rows(out, streaming=True)), 0)
    assert collate(list(load_rows(out, teacher="big", streaming=True)), 0)["input_ids"].shape[0] > 1


def test_a_judge_may_be_one_of_the_teachers(workspace: Path, make_job: MakeJob) -> None:
    write_task(workspace, judge_j2="Is {{ answer }} good?")
    out = workspace / "out"
    run(several(make_job, judge={"teacher": "big", "threshold": 0.1}), workspace, out)
    assert all(row["judge_score"] is not None for row in read_table(out, "data"))
    manifest = read_manifest(out)
    # in its own turn it judges beside its rows, in the other's it is a judge alone
    assert manifest["judge.big"]["model"] == manifest["judge"]["model"] == "big model"
    assert "Judged by `big model`" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tasks": [{"name": "adding", "count": 3}]}, "say whose rows they are, teacher = one of big, small"),
        ({"tasks": [SHARED | {"teacher": "bigg"}]}, "teacher 'bigg' is none of"),
        ({"tasks": [SHARED | {"teacher": {"big": 0}}]}, "greater than 0"),
        ({"teacher": {"backend": "scripted"}}, "teacher and teachers are both given"),
        ({"judge": {}}, "say which of the teachers judges: big, small"),
        ({"judge": {"teacher": "huge"}}, r"judge\.teacher: 'huge' names none of \[teachers\]: big, small"),
        ({"teachers": {}}, "teacher 'big' is none of .*none are given"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(changed: dict[str, Any], told: str, make_job: MakeJob) -> None:
    with pytest.raises(ValueError, match=told):
        several(make_job, **changed)


def test_a_level_without_a_teacher_and_one_that_is_none_are_refused(workspace: Path, make_job: MakeJob) -> None:
    for levels, told in (
        ({"easy": "big"}, "nobody answers level hard"),
        ({"easy": "big", "hrad": "big"}, "unknown level hrad .*did you mean"),
    ):
        task = {"name": "adding", "count": 3, "level_teachers": levels}
        with pytest.raises(JobError, match=told):
            prepare(several(make_job, task), workspace)
    with pytest.raises(JobError, match="--pilot: the job has several teachers"):
        estimate(several(make_job), workspace, workspace / "out", pilot=2)


def test_preview_shows_each_prompt_once_and_the_same_reasoning_as_will_be_asked(
    workspace: Path, make_job: MakeJob
) -> None:
    prompts = list(preview_job(several(make_job), workspace, None, None, 20))
    assert len({prompt.id for prompt in prompts if isinstance(prompt, Prompt)}) == len(prompts) == 20


def test_a_run_stops_where_all_of_a_later_teacher_s_first_rows_fail_for_one_reason(
    workspace: Path, make_job: MakeJob
) -> None:
    # whole while it is tried, broken when its rows are made
    broken = workspace / "broken"
    raises = f"    if __import__('os').path.exists({str(broken)!r}):\n        raise RuntimeError('no')\n    most = "
    write_task(workspace, "second", schema=SCHEMA.replace("    most = ", raises))
    tasks = [{"name": "adding", "count": 8, "teacher": "big"}, {"name": "second", "count": 60, "teacher": "small"}]
    prepared = prepare(several(make_job, *tasks), workspace)
    broken.touch()
    with pytest.raises(TaskError, match=r"the first 50 rows of task 'second' fail for one reason .*sample_raised"):
        run_prepared(prepared, workspace / "out")
    assert {row["teacher"] for row in read_table(workspace / "out", "data")} == {"big"}
