"""Runs: every planned row ends once, in its place, and a run that is killed anywhere ends in the same bytes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import SCHEMA, TASK_FILE, WITH_WORDS, write_task
from dataset_support import (
    change_line,
    make_generation,
    make_prompt,
    make_record,
    make_rejection,
    read_ledger_lines,
    read_table,
    read_tree,
    start_factory,
    write_job,
)

from factory.checks.verify import verify
from factory.dataset.entries import Totals
from factory.dataset.history import read_history
from factory.dataset.signal_columns import decode_states
from factory.errors import DatasetError, JobError, TaskError, TeacherError
from factory.job.job import Job, load_job
from factory.records import Prompt, Rejection
from factory.runs.desk import decide
from factory.runs.finish import Draft
from factory.runs.prepare import prepare
from factory.runs.provenance import describe_job
from factory.runs.run import run

MakeJob = Callable[..., Job]
VARIABLE = ("runs.jsonl", ".lock")  # the files that may differ between two equal datasets
MIXED = "scripted = { bad_json = 0.1, truncated = 0.1, wrong = 0.1, crash = 0.1 }\nin_flight = 24"
RETRIES = "[validation]\nretries = 1"


def run_faulty(workspace: Path, make_job: MakeJob, retries: int = 0, **faults: Any) -> Path:
    """A dataset of 40 rows made by a teacher with these faults."""
    job = make_job(
        teacher={"backend": "scripted", "scripted": faults},
        tasks=[{"name": "adding", "count": 40}],
        validation={"retries": retries},
    )
    run(job, workspace, workspace / "out")
    return workspace / "out"


def planned_ids(job: Job, workspace: Path) -> list[str]:
    """Ids of every planned row, in the order of the plan."""
    prepared = prepare(job, workspace)
    rows = (row for shard in range(prepared.plan.shards) for row in prepared.plan.rows(shard))
    return [prompt.id for row in rows if isinstance(prompt := prepared.render(row), Prompt)]


def reasons(out: Path) -> Counter[tuple[str, str, str]]:
    return Counter((row["kind"], row["stage"], row["reason"]) for row in read_table(out, "rejected"))


def by_id(out: Path, config: str) -> dict[str, Any]:
    return {row["id"]: row for row in read_table(out, config)}


def test_every_planned_row_ends_once_and_in_the_order_of_the_plan(workspace: Path, make_job: MakeJob) -> None:
    faults = {"bad_json": 0.2, "wrong": 0.2, "crash": 0.1}
    job = make_job(teacher={"backend": "scripted", "scripted": faults}, tasks=[{"name": "adding", "count": 50}])
    totals = run(job, workspace, workspace / "out")
    accepted = [row["id"] for row in read_table(workspace / "out", "data")]
    rejected = [row["id"] for row in read_table(workspace / "out", "rejected")]
    planned = planned_ids(job, workspace)
    assert totals.accepted + totals.rejected + totals.errors == totals.planned == 50
    assert (len(accepted), len(rejected)) == (totals.accepted, totals.rejected + totals.errors)
    assert rejected
    assert sorted(accepted + rejected) == sorted(planned)
    assert accepted == [i for i in planned if i in set(accepted)]
    assert rejected == [i for i in planned if i in set(rejected)]
    assert [row["id"] for row in read_table(workspace / "out", "hidden_states")] == accepted


def test_an_accepted_row_holds_the_teachers_own_answer_aligned_to_its_tokens(
    workspace: Path, make_job: MakeJob
) -> None:
    run(make_job(), workspace, workspace / "out")
    states = by_id(workspace / "out", "hidden_states")
    for row in read_table(workspace / "out", "data"):
        scenario, answer, tokens = json.loads(row["scenario"]), json.loads(row["answer"]), row["completion_token_ids"]
        assert answer == {"total": scenario["a"] + scenario["b"], "words": "done"}
        assert bytes(i for i in tokens[row["answer_start"] :] if i < 256).decode() == row["answer"]
        assert row["reasoning"] == f"{scenario['a']} and {scenario['b']} make {answer['total']}."
        assert len(row["topk_ids"]) == 4 * len(tokens)
        shape = states[row["id"]]["shape"]
        assert shape[:2] == [len(row["prompt_token_ids"]) + len(tokens) - 1, 2]
        assert decode_states(states[row["id"]]["states"], shape).any(axis=2).all()


def test_retries_change_no_pass_rate_and_cost_no_pair(workspace: Path, make_job: MakeJob) -> None:
    rates: list[dict[str, float]] = []
    pairs: list[int] = []
    for retries in (0, 3):
        out = workspace / f"out{retries}"
        job = make_job(
            teacher={"backend": "scripted", "scripted": {"wrong": 0.4}},
            tasks=[{"name": "adding", "count": 20}],
            samples={"n": 4, "keep": "pair"},
            validation={"retries": retries},
        )
        run(job, workspace, out)
        rates.append({row["prompt_id"]: row["pass_rate"] for c in ("data", "rejected") for row in read_table(out, c)})
        pairs.append(len(read_table(out, "preferences")))
    assert rates[0] == rates[1]
    assert 0.4 < sum(rates[0].values()) / len(rates[0]) < 0.8
    assert pairs[1] >= pairs[0] > 10


def test_the_ledger_the_card_and_the_totals_agree_with_the_files(workspace: Path, make_job: MakeJob) -> None:
    out = run_faulty(workspace, make_job, wrong=0.5)
    entries = read_ledger_lines(out)[1:]
    assert [entry["shard"] for entry in entries] == [0, 1, 2, 3, 4]
    rows = read_table(out, "data") + read_table(out, "rejected")
    assert sum(entry["completion_tokens"] for entry in entries) == sum(len(r["completion_token_ids"]) for r in rows)
    assert sum(entry["prompt_tokens"] for entry in entries) == sum(len(r["prompt_token_ids"]) for r in rows)
    levels = Counter(row["level"] for row in rows)
    assert levels == {"easy": 20, "hard": 20}
    assert f"| accepted | {len(read_table(out, 'data'))} |" in (out / "README.md").read_text()
    assert not list(out.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("bad_json", ("rejected", "parse", "invalid_json")),
        ("truncated", ("rejected", "teacher", "truncated")),
        ("crash", ("rejected", "teacher", "engine_crash")),
        ("wrong", ("rejected", "check", "wrong_total")),
    ],
)
def test_each_fault_of_a_teacher_has_its_stage_and_reason(
    fault: str, told: tuple[str, str, str], workspace: Path, make_job: MakeJob
) -> None:
    out = run_faulty(workspace, make_job, retries=0, **{fault: 1.0})
    assert reasons(out) == {told: 40}
    assert read_table(out, "data") == []
    assert all(row["findings"] for row in read_table(out, "rejected"))


def test_an_answer_without_reasoning_is_kept_and_says_so(workspace: Path, make_job: MakeJob) -> None:
    rows = read_table(run_faulty(workspace, make_job, no_reasoning=1.0), "data")
    assert len(rows) == 40
    assert {(row["reasoning"], row["answer_start"]) for row in rows} == {(None, 0)}


def test_wrong_answers_are_kept_with_their_findings_where_only_the_schema_gates(
    workspace: Path, make_job: MakeJob
) -> None:
    job = make_job(
        teacher={"backend": "scripted", "scripted": {"wrong": 1.0}},
        tasks=[{"name": "adding", "count": 10, "gate": "schema"}],
    )
    run(job, workspace, workspace / "out")
    rows = read_table(workspace / "out", "data")
    assert len(rows) == 10
    assert {row["score"] for row in rows} == {0.0}
    assert all(row["findings"][0].startswith("wrong_total: got ") for row in rows)


def test_a_mix_of_faults_comes_out_in_about_its_shares(workspace: Path, make_job: MakeJob) -> None:
    job = make_job(
        teacher={"backend": "scripted", "scripted": {"bad_json": 0.25, "truncated": 0.25, "crash": 0.25}},
        tasks=[{"name": "adding", "count": 200}],
        signals={"top_k": 0},
        shard_rows=200,
    )
    totals = run(job, workspace, workspace / "out")
    assert sorted(totals.reasons) == ["parse/invalid_json", "teacher/engine_crash", "teacher/truncated"]
    assert all(30 <= count <= 70 for count in (*totals.reasons.values(), totals.accepted))


def test_a_retried_row_keeps_its_history_and_changes_its_seed(workspace: Path, make_job: MakeJob) -> None:
    first = by_id(run_faulty(workspace, make_job, bad_json=1.0), "rejected")
    shutil.rmtree(workspace / "out")
    again = by_id(run_faulty(workspace, make_job, retries=2, bad_json=1.0), "rejected")
    assert first.keys() == again.keys()
    for name, row in again.items():
        assert (row["attempt"], first[name]["attempt"]) == (2, 0)
        history = [json.loads(attempt) for attempt in row["history"]]
        assert [attempt["reason"] for attempt in history] == ["invalid_json", "invalid_json"]
        assert history[0]["seed"] == first[name]["seed"]
        assert history[0]["text"] == first[name]["text"]
        assert len({row["seed"], *(attempt["seed"] for attempt in history)}) == 3


def test_retries_save_rows_and_every_row_still_ends_once(workspace: Path, make_job: MakeJob) -> None:
    out = run_faulty(workspace, make_job, retries=5, bad_json=0.5)
    rows = read_table(out, "data")
    assert len(rows) + len(read_table(out, "rejected")) == 40
    assert len(rows) >= 35
    assert len({row["attempt"] for row in rows}) >= 3


def test_a_crash_of_the_engine_is_not_asked_for_again(workspace: Path, make_job: MakeJob) -> None:
    out = run_faulty(workspace, make_job, retries=3, crash=1.0)
    assert {row["attempt"] for row in read_table(out, "rejected")} == {0}


def test_how_many_are_in_flight_changes_nothing(workspace: Path, make_job: MakeJob) -> None:
    trees = []
    for number in (1, 5, 500):
        faults = {"bad_json": 0.3, "wrong": 0.2}
        job = make_job(
            teacher={"backend": "scripted", "scripted": faults, "in_flight": number}, validation={"retries": 2}
        )
        run(job, workspace, workspace / f"out{number}")
        tree = read_tree(workspace / f"out{number}", but=(*VARIABLE, "job.toml"))
        trees.append(tree)
    assert trees[0] == trees[1] == trees[2]


def test_other_shard_sizes_hold_the_same_rows(workspace: Path, make_job: MakeJob) -> None:
    faults = {"bad_json": 0.2, "wrong": 0.2}
    for rows in (3, 50):
        job = make_job(shard_rows=rows, teacher={"backend": "scripted", "scripted": faults}, validation={"retries": 1})
        run(job, workspace, workspace / f"out{rows}")
    assert len(list((workspace / "out3/data").iterdir())) == 7
    for config in ("data", "rejected", "hidden_states"):
        assert by_id(workspace / "out3", config) == by_id(workspace / "out50", config)


def test_the_same_job_again_does_nothing(workspace: Path, make_job: MakeJob) -> None:
    first = run(make_job(), workspace, workspace / "out")
    for path in (workspace / "out").rglob("*"):
        os.utime(path, (1, 1))
    before = read_tree(workspace / "out", but=(".lock",))
    assert run(make_job(), workspace, workspace / "out") == first
    assert read_tree(workspace / "out", but=(".lock",)) == before
    written = [path.name for path in (workspace / "out").rglob("*") if path.is_file() and path.stat().st_mtime != 1]
    assert written == [".lock"]


def test_every_run_leaves_a_line_about_its_speed(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    begun, line = read_history(workspace / "out")
    assert (begun["event"], begun["rows_before"], begun["started"]) == ("started", 0, line["started"])
    assert (line["event"], line["outcome"]) == ("ended", "complete")
    assert line["startup_seconds"] >= 0
    tokens = sum(len(row["completion_token_ids"]) for row in read_table(workspace / "out", "data"))
    assert (line["rows"], line["completion_tokens"]) == (20, tokens)
    assert line["seconds"] > 0
    assert line["started"] <= line["ended"]


def test_provenance_is_copied_as_it_was(workspace: Path, make_job: MakeJob) -> None:
    job = make_job()
    run(job, workspace, workspace / "out")
    copies = {path.name: path.read_text() for path in (workspace / "out/templates/adding").iterdir()}
    assert sorted(copies) == ["adding.py", "system.j2", "task.toml", "user.j2", "user_short.j2"]
    assert copies["adding.py"] == SCHEMA
    assert load_job(workspace / "out/job.toml") == job


def test_a_word_bank_and_a_part_are_copied_too_and_are_a_part_of_the_job(workspace: Path, make_job: MakeJob) -> None:
    part = "def text(words):\n    return words[0]\n"
    schema = "from ._parts import text\n" + WITH_WORDS.replace("BANK.done[0]", "text(BANK.done)")
    write_task(workspace, schema=schema, words='done = ["ready"]')
    (workspace / "schemas/_parts.py").write_text(part)
    run(make_job(), workspace, workspace / "out")
    copies = workspace / "out/templates/adding"
    assert (copies / "adding.words.toml").read_text() == 'done = ["ready"]'
    assert (copies / "_parts.py").read_text() == part
    assert (copies / "adding.py").read_text() == schema
    assert {json.loads(row["answer"])["words"] for row in read_table(workspace / "out", "data")} == {"ready"}
    before = read_tree(workspace / "out", but=(".lock",))
    for name, text in {"adding.words.toml": 'done = ["set"]', "_parts.py": part + "\nMORE = 1\n"}.items():
        kept = (workspace / "schemas" / name).read_text()
        (workspace / "schemas" / name).write_text(text)
        with pytest.raises(DatasetError, match=rf"tasks\.adding\.files\.schemas/{name}: has changed"):
            run(make_job(), workspace, workspace / "out")
        (workspace / "schemas" / name).write_text(kept)
    assert read_tree(workspace / "out", but=(".lock",)) == before


def test_datasets_loads_the_directory_as_it_stands(workspace: Path, make_job: MakeJob) -> None:
    out = run_faulty(workspace, make_job, wrong=0.3)
    counts = {config: len(read_table(out, config)) for config in ("data", "rejected", "hidden_states")}
    for config, folder in {None: "data", "rejected": "rejected", "hidden_states": "hidden_states"}.items():
        rows = datasets.load_dataset(str(out), config, split="train", cache_dir=str(workspace / "cache"))
        assert len(rows) == counts[folder] > 0
        assert rows["id"][:] == [row["id"] for row in read_table(out, folder)]
    assert sorted(datasets.get_dataset_config_names(str(out))) == ["default", "hidden_states", "rejected"]


# --- rows that cannot be made ---------------------------------------------------------------------------------------


def test_a_check_that_raises_is_an_error_of_its_row_and_the_job_ends(workspace: Path, make_job: MakeJob) -> None:
    broken = SCHEMA.replace(
        "    right = ", "    if scenario.a % 5 == 3:\n        raise RuntimeError('odd')\n    right = "
    )
    write_task(workspace, schema=broken)
    totals = run(make_job(validation={"retries": 3}), workspace, workspace / "out")
    rows = read_table(workspace / "out", "rejected")
    assert totals.left == 0
    assert totals.errors == len(rows) > 0
    assert reasons(workspace / "out") == {("error", "check", "check_raised"): len(rows)}
    assert {(row["findings"][0], row["attempt"]) for row in rows} == {("RuntimeError: odd (adding.py, line 24)", 0)}
    assert {json.loads(row["scenario"])["a"] % 5 for row in rows} == {3}


def test_a_sample_or_a_template_that_fails_is_an_error_of_its_row(workspace: Path, make_job: MakeJob) -> None:
    failing = SCHEMA.replace(
        "    return Scenario(", "    if 0.5 < rng.random() < 0.8:\n        raise KeyError('x')\n    return Scenario("
    )
    write_task(workspace, schema=failing, user_j2="{{ 60 // (scenario.a - 4) }}", user_short_j2="{{ scenario.b }}")
    totals = run(make_job(tasks=[{"name": "adding", "count": 60}]), workspace, workspace / "out")
    found = reasons(workspace / "out")
    assert set(found) == {("error", "prompt", "sample_raised"), ("error", "prompt", "render_failed")}
    assert totals.accepted + sum(found.values()) == 60
    rows = read_table(workspace / "out", "rejected")
    assert len({row["id"] for row in rows}) == len(rows)
    details = {row["reason"]: row["findings"][0] for row in rows}
    assert details["sample_raised"] == "KeyError: 'x' (adding.py, line 20)"
    assert details["render_failed"].startswith("user.j2: ZeroDivisionError")


def test_one_unfit_row_of_a_users_data_is_one_rejected_row(
    workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workspace / "cache")
    numbers = [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": None, "b": 5}, {"a": 6, "b": 7}]
    (workspace / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbers))
    source = {"path": str(workspace / "mine.jsonl"), "on_bad_row": "skip"}
    job = make_job(tasks=[{"name": "adding", "count": 4, "source": source}])
    totals = run(job, workspace, workspace / "out")
    assert (totals.accepted, totals.rejected, totals.errors) == (3, 1, 0)
    assert reasons(workspace / "out") == {("rejected", "prompt", "scenario_invalid"): 1}
    assert "a: missing" in read_table(workspace / "out", "rejected")[0]["findings"][0]
    answers = {json.loads(row["answer"])["total"] for row in read_table(workspace / "out", "data")}
    assert answers == {3, 7, 13}


def test_a_users_data_that_has_changed_is_refused(
    workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workspace / "cache")
    (workspace / "mine.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    job = make_job(tasks=[{"name": "adding", "count": 2, "source": {"path": str(workspace / "mine.jsonl")}}])
    run(job, workspace, workspace / "out")
    (workspace / "mine.jsonl").write_text('{"a": 1}\n{"a": 3}\n')
    with pytest.raises(DatasetError, match=r"made by another job, cannot resume; .*\n  sources\.adding: has changed"):
        run(job, workspace, workspace / "out")


def test_a_very_long_prompt_is_a_row_like_any_other(workspace: Path, make_job: MakeJob) -> None:
    write_task(workspace, user_j2="{% for _ in range(20000) %}{{ scenario.a }} and {% endfor %}", user_short_j2="short")
    totals = run(make_job(signals={"top_k": 2}), workspace, workspace / "out")
    assert totals.accepted == 20
    assert max(len(row["prompt_token_ids"]) for row in read_table(workspace / "out", "data")) > 100_000


def test_a_task_without_solve_gets_invented_answers(workspace: Path, make_job: MakeJob) -> None:
    write_task(workspace, schema=SCHEMA.partition("def solve")[0])
    totals = run(make_job(validation={"gate": "schema"}), workspace, workspace / "out")
    assert totals.accepted == 20


# --- jobs that are refused ------------------------------------------------------------------------------------------


def test_a_changed_template_is_refused_by_name_and_touches_nothing(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    before = read_tree(workspace / "out", but=(".lock",))
    write_task(workspace, user_j2="Please add {{ scenario.a }} and {{ scenario.b }}.")
    with pytest.raises(DatasetError, match=r"\n  tasks\.adding\.files\.prompts/adding/user\.j2: has changed$"):
        run(make_job(), workspace, workspace / "out")
    assert read_tree(workspace / "out", but=(".lock",)) == before


def test_what_decides_no_row_may_change_and_the_copies_stay_what_the_first_rows_were_made_with(
    workspace: Path, make_job: MakeJob
) -> None:
    out = workspace / "out"
    run(make_job(), workspace, out)
    before = read_tree(out, but=VARIABLE)
    write_task(
        workspace,
        schema="# why\n" + SCHEMA,
        task_toml="# why\n" + TASK_FILE.replace("Add two", "Sum two"),
        user_j2="{# why #}Add {{ scenario.a }} and {{ scenario.b }}.",
        judge_j2="Judge {{ answer }}.",
    )
    assert run(make_job(), workspace, out).left == 0
    assert read_tree(out, but=VARIABLE) == before
    (out / "templates/adding/adding.py").unlink()
    assert list(verify(out)) == ["templates/adding/adding.py: missing; resume the job, which will copy it again"]
    run(make_job(), workspace, out)
    assert list(verify(out)) == []
    assert (out / "templates/adding/adding.py").read_text().startswith("# why\n")
    assert (out / "templates/adding/task.toml").read_text() == TASK_FILE


def test_a_setting_counts_as_what_it_comes_to_and_not_as_where_it_was_said(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    tasks = [{"name": "adding", "count": 20, "gate": "check", "sampling": {"thinking_tokens": 24}}]
    same = make_job(tasks=tasks, sampling={"max_tokens": 120}, validation={"gate": "check"})
    assert run(same, workspace, workspace / "out").left == 0
    with pytest.raises(DatasetError, match=r":\n  tasks\.adding\.sampling\.max_tokens: was 120, is 200$"):
        run(make_job(sampling={"max_tokens": 200}), workspace, workspace / "out")


def test_a_rubric_counts_once_a_judge_reads_it(workspace: Path, make_job: MakeJob) -> None:
    write_task(workspace, judge_j2="Judge {{ answer }}.")
    job = make_job(judge={"threshold": 0.0})
    run(job, workspace, workspace / "out")
    write_task(workspace, judge_j2="Judge {{ answer }} well.")
    with pytest.raises(DatasetError, match=r"\n  tasks\.adding\.files\.prompts/adding/judge\.j2: has changed$"):
        run(job, workspace, workspace / "out")


def test_a_job_of_another_size_or_seed_is_refused(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    with pytest.raises(DatasetError, match=r"\n  job\.seed: was 0, is 1\n  job\.shard_rows: was 8, is 9$"):
        run(make_job(seed=1, shard_rows=9), workspace, workspace / "out")


def test_a_job_the_teacher_refuses_can_be_mended_in_the_same_directory(workspace: Path, make_job: MakeJob) -> None:
    with pytest.raises(TeacherError, match=r"signals\.hidden_layers \[99\]: the model has 4 layers"):
        run(make_job(signals={"hidden_layers": [99]}), workspace, workspace / "out")
    assert run(make_job(), workspace, workspace / "out").accepted == 20
    run(make_job(), workspace, workspace / "fresh")
    assert read_tree(workspace / "out", but=VARIABLE) == read_tree(workspace / "fresh", but=VARIABLE)


def test_a_task_without_sample_needs_a_source(workspace: Path, make_job: MakeJob) -> None:
    write_task(workspace, schema=SCHEMA.replace("def sample", "def draw"))
    with pytest.raises(JobError, match=r"tasks\.0: adding has no sample\(\); give it a source"):
        run(make_job(), workspace, workspace / "out")
    assert not (workspace / "out").exists()


def test_every_fault_of_every_task_is_told_before_anything_is_written(workspace: Path, make_job: MakeJob) -> None:
    write_task(workspace, user_j2="{{ scenario.a ", system_j2="{{ nonsense }}")
    write_task(workspace, "other", user_short_j2="{{ scenario.zzz }}")
    with pytest.raises(TaskError) as told:
        run(make_job(tasks=[{"name": n, "count": 1} for n in ("adding", "other")]), workspace, workspace / "out")
    assert len(str(told.value).splitlines()) == 3
    assert not (workspace / "out").exists()


def test_the_digest_follows_everything_that_decides_rows_and_nothing_else(workspace: Path, make_job: MakeJob) -> None:
    def digest(**sections: Any) -> str:
        return str(describe_job(prepare(make_job(**sections), workspace))["digest"])

    plain = digest()
    assert digest(out="elsewhere", teacher={"backend": "scripted", "in_flight": 3, "max_restarts": 9}) == plain
    others = [digest(seed=1), digest(sampling={"top_p": 0.9}), digest(signals={"top_k": 5}), digest(shard_rows=9)]
    write_task(workspace, task_toml=TASK_FILE.replace('version = "1"', 'version = "2"'))
    assert len({plain, digest(), *others}) == 6


# --- runs that are stopped ------------------------------------------------------------------------------------------


def lines_of(out: Path) -> int:
    path = out / "ledger.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    """Until the ledger has this many lines, or the process has ended."""
    deadline = time.monotonic() + 600
    while lines_of(out) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a job of 400 rows in 25 shards, and in `whole` what it makes when nothing happens."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_task(root)
    path = write_job(root, count=400, shard_rows=16, teacher=MIXED, sections=RETRIES)
    totals = run(load_job(path), root, root / "whole")
    assert (totals.left, totals.committed_shards) == (0, 25)
    return root


@pytest.mark.sweep
def test_a_run_killed_again_and_again_ends_in_the_same_bytes(undisturbed: Path) -> None:
    out, rng, kills = undisturbed / "killed", random.Random(0), 0
    for new_lines in (0, 1, 1, 2, 1, 3, 2, 1):
        process = start_factory("run", "job.toml", "--out", out, cwd=undisturbed)
        wait_for_lines(process, out, lines_of(out) + new_lines if new_lines else 1)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert lines_of(out) < 26, "it was done before it could be killed"
    assert kills == 8
    totals = run(load_job(undisturbed / "job.toml"), undisturbed, out)
    assert (totals.planned, totals.left) == (400, 0)
    assert read_tree(out, but=VARIABLE) == read_tree(undisturbed / "whole", but=VARIABLE)


def test_a_run_killed_just_after_its_last_commit_ends_in_the_same_bytes(undisturbed: Path) -> None:
    out = undisturbed / "nearly"
    shutil.copytree(undisturbed / "whole", out)
    lines = (out / "ledger.jsonl").read_text().splitlines(keepends=True)
    (out / "ledger.jsonl").write_text("".join([lines[0], *reversed(lines[1:])]))
    (out / ".tmp-ledger.jsonl").write_text("torn")
    (out / "README.md").write_text("unfinished")
    (out / ".spool").mkdir()
    (out / ".spool/000000.gen").write_bytes(b"FGEN")
    run(load_job(undisturbed / "job.toml"), undisturbed, out)
    assert read_tree(out, but=VARIABLE) == read_tree(undisturbed / "whole", but=VARIABLE)


def test_a_shard_whose_ledger_line_was_torn_is_made_again(undisturbed: Path) -> None:
    out = undisturbed / "torn"
    shutil.copytree(undisturbed / "whole", out)
    data = (out / "ledger.jsonl").read_bytes()
    (out / "ledger.jsonl").write_bytes(data[:-40])
    (out / "data/train-00024.parquet").write_bytes(b"half of it")
    run(load_job(undisturbed / "job.toml"), undisturbed, out)
    assert read_tree(out, but=VARIABLE) == read_tree(undisturbed / "whole", but=VARIABLE)


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM; committed shards are safe, the same command goes on from them\n"),
        (signal.SIGINT, 130, "stopped; committed shards are safe, the same command goes on from them\n"),
    ],
)
def test_a_signal_ends_a_run_with_its_code_and_one_line(
    number: signal.Signals, code: int, line: str, undisturbed: Path
) -> None:
    out = undisturbed / number.name
    process = start_factory("run", "job.toml", "--out", out, cwd=undisturbed)
    wait_for_lines(process, out, 3)
    process.send_signal(number)
    printed, told = process.communicate()
    assert (process.returncode, printed, told) == (code, "", line)
    assert 3 <= lines_of(out) < 26
    run(load_job(undisturbed / "job.toml"), undisturbed, out)
    assert read_tree(out, but=VARIABLE) == read_tree(undisturbed / "whole", but=VARIABLE)


def test_a_disk_that_refuses_stops_the_run_and_the_same_command_goes_on(undisturbed: Path) -> None:
    out = undisturbed / "refused"
    (out / "rejected/train-00003.parquet").mkdir(parents=True)
    shutil.copyfile(undisturbed / "whole/manifest.json", out / "manifest.json")
    job = load_job(undisturbed / "job.toml")
    with pytest.raises(DatasetError, match="shard 3 cannot be written: Is a directory; committed shards are whole"):
        run(job, undisturbed, out)
    assert 3 not in [line.get("shard") for line in read_ledger_lines(out)]
    (out / "rejected/train-00003.parquet").rmdir()
    run(job, undisturbed, out)
    assert read_tree(out, but=VARIABLE) == read_tree(undisturbed / "whole", but=VARIABLE)


# --- the pieces -----------------------------------------------------------------------------------------------------


def test_a_draft_is_whole_with_its_last_row_and_keeps_rows_in_their_places() -> None:
    draft = Draft([None] * 3)
    assert [draft.put(make_record(position)) for position in (2, 0, 1)] == [False, False, True]
    assert [outcome.prompt.id for outcome in draft.whole()] == ["id0", "id1", "id2"]


def test_a_row_is_never_decided_twice() -> None:
    draft = Draft([None] * 2)
    draft.put(make_record(1))
    with pytest.raises(AssertionError):
        draft.put(make_rejection(1))


def test_a_generation_with_damaged_signals_is_an_error(workspace: Path, make_job: MakeJob) -> None:
    gate = prepare(make_job(), workspace).gates["adding"]
    text = '{"total": 1, "words": "x"}'
    whole = make_generation(3, answer_text=text)
    assert not isinstance(decide(gate, make_prompt(0, scenario='{"a":1,"b":0}'), whole), Rejection)
    kept = whole.logprobs
    assert kept is not None
    kept.topk_TK[0, 0] = np.nan
    outcome = decide(gate, make_prompt(0, scenario='{"a":1,"b":0}'), whole)
    assert isinstance(outcome, Rejection)
    assert (outcome.kind, outcome.stage, outcome.reason) == ("error", "signals", "nonfinite")
    longer = make_generation(3, answer_text=text, completion_token_ids=np.arange(9, dtype=np.int32))
    assert getattr(decide(gate, make_prompt(0), longer), "reason", None) == "misaligned"


def test_a_damaged_ledger_stops_a_resume_before_anything_changes(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    change_line(workspace / "out", 1, lambda entry: entry.pop("files"))
    before = read_tree(workspace / "out", but=(".lock",))
    with pytest.raises(DatasetError, match=r"ledger\.jsonl:2: damaged: not a shard's entry"):
        run(make_job(), workspace, workspace / "out")
    assert read_tree(workspace / "out", but=(".lock",)) == before


def test_totals_of_a_run_are_those_of_the_whole_dataset(workspace: Path, make_job: MakeJob) -> None:
    totals = run(make_job(), workspace, workspace / "out")
    assert isinstance(totals, Totals)
    assert (totals.planned, totals.accepted, totals.left) == (20, 20, 0)
    assert totals.cells == {"adding/easy": [10, 0, 0], "adding/hard": [10, 0, 0]}


def test_a_loop_that_was_stopped_is_a_rejected_row_that_says_so_and_may_be_asked_again(
    workspace: Path, make_job: MakeJob
) -> None:
    rule = {"max_pattern_size": 40, "min_pattern_size": 1, "min_count": 5}
    sections = {
        "teacher": {"backend": "scripted", "scripted": {"loop": 0.5}},
        "sampling": {"max_tokens": 4000, "stop_repetition": rule},
        "tasks": [{"name": "adding", "count": 40}],
    }
    totals = run(make_job(**sections), workspace, workspace / "out")
    rejected = read_table(workspace / "out", "rejected")
    assert 5 < len(rejected) < 35
    assert totals.reasons == {"teacher/repetition": len(rejected)}
    for row in rejected:
        assert (row["finish_reason"], row["text"].count("once more")) == ("repetition", 5)
        told = f"stopped after {len(row['completion_token_ids'])} tokens: it repeated itself as"
        assert row["findings"] == [f"{told} sampling.stop_repetition says"]
    manifest = json.loads((workspace / "out/manifest.json").read_text())
    assert manifest["tasks"]["adding"]["sampling"]["stop_repetition"] == rule
    again = run(make_job(**sections, validation={"retries": 5}), workspace, workspace / "again")
    assert again.accepted > totals.accepted
    with pytest.raises(DatasetError, match=r"sampling\.stop_repetition"):
        run(make_job(**sections | {"sampling": {"max_tokens": 4000}}), workspace, workspace / "out")


def test_a_dataset_begun_before_loops_could_be_stopped_goes_on(workspace: Path, make_job: MakeJob) -> None:
    described = describe_job(prepare(make_job(), workspace))
    assert "stop_repetition" not in described["tasks"]["adding"]["sampling"]
    assert "replicas" not in described["job"]["teacher"]


@pytest.mark.parametrize(
    ("teacher", "installed", "told"),
    [
        ({"backend": "vllm", "model": "demo"}, False, 'teacher.backend "vllm": vLLM is not installed here; '),
        ({"backend": "vllm", "model": "./nowhere"}, True, "teacher.model './nowhere': no such model folder"),
        (
            {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9", "api_key_env": "NO_SUCH_KEY"},
            True,
            "NO_SUCH_KEY",
        ),
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(
    workspace: Path,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    teacher: dict[str, str],
    installed: bool,
    told: str,
) -> None:
    monkeypatch.setattr("factory.teachers.find_spec", lambda name: object() if installed else None)
    with pytest.raises(TeacherError, match=re.escape(told)):
        run(make_job(teacher=teacher, signals={"top_k": 0}), workspace, workspace / "out")
    assert not (workspace / "out").exists()
