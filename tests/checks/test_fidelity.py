"""The self-test without an engine: which rows it takes, what it reads of them, and where it does not take place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_task
from dataset_support import read_table, read_tree, start_factory, write_job

from factory.checks import fidelity
from factory.checks.fidelity import (
    check,
    check_dataset,
    choose_rows,
    describe,
    read_row,
    require_passed,
    rows_to_verify,
    summarize,
)
from factory.dataset.ledger import read_ledger
from factory.dataset.manifest import read_manifest, read_signals, replace_section
from factory.errors import FidelityError
from factory.job.job import Job
from factory.runs.run import run

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two tasks in five shards; tests that change it take `out`."""
    folder = tmp_path_factory.mktemp("fidelity")
    for name in ("adding", "counting"):
        write_task(folder, name)
    tasks = [{"name": name, "count": 20} for name in ("adding", "counting")]
    job = {"out": "out", "shard_rows": 8, "teacher": {"backend": "scripted"}, "tasks": tasks}
    run(Job.model_validate(job | {"signals": {"top_k": 4, "hidden_layers": [2, -1]}}), folder, folder / "out")
    return folder / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def test_rows_are_spread_over_shards_tasks_and_lengths(out: Path) -> None:
    chosen = choose_rows(read_ledger(out), 6)
    rows = {row["id"]: row for row in read_table(out, "data")}
    assert len(set(chosen)) == 6
    assert {shard for shard, _ in chosen} == set(range(5))
    assert sorted(rows[name]["task"] for _, name in chosen) == ["adding"] * 3 + ["counting"] * 3
    assert len({len(rows[name]["prompt_token_ids"] + rows[name]["completion_token_ids"]) for _, name in chosen}) > 2
    assert choose_rows(read_ledger(out), 6) == chosen


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (2, 2), (40, 40), (1000, 40)])
def test_no_row_is_taken_twice_and_none_invented(out: Path, asked: int, got: int) -> None:
    assert len(set(choose_rows(read_ledger(out), asked))) == got


def test_a_row_is_read_as_its_files_hold_it(out: Path) -> None:
    signals = read_signals(read_manifest(out))
    assert signals is not None
    rows = {row["id"]: row for row in read_table(out, "data")}
    states = {row["id"]: row for row in read_table(out, "hidden_states")}
    for choice in choose_rows(read_ledger(out), 5):
        got, row, state = read_row(out, choice, signals), rows[choice[1]], states[choice[1]]
        assert got.prompt_ids.tolist() + got.completion_ids.tolist() == (
            row["prompt_token_ids"] + row["completion_token_ids"]
        )
        assert got.logprobs is not None
        assert got.bits_NLH is not None
        assert got.logprobs.topk_ids_TK.reshape(-1).tolist() == row["topk_ids"]
        assert got.logprobs.tail_T.tolist() == row["tail_logprobs"]
        assert got.logprobs.topk_TK.shape == (len(row["completion_token_ids"]), signals.top_k)
        assert got.bits_NLH.astype("<u2").tobytes() == state["states"][:-1]
        assert list(got.bits_NLH.shape) == state["shape"]


@pytest.mark.parametrize(
    ("asked", "backend", "rows"),
    [(None, "scripted", 0), (None, "vllm", fidelity.DEFAULT_ROWS), (0, "vllm", 0), (8, "scripted", 8)],
)
def test_how_many_rows_a_job_checks(make_job: MakeJob, asked: int | None, backend: str, rows: int) -> None:
    assert rows_to_verify(make_job(teacher={"backend": backend}, signals={"verify_rows": asked})) == rows


def test_a_scripted_run_that_asks_is_told_that_there_is_no_model(workspace: Path) -> None:
    write_job(workspace, sections="[filters]\n")
    text = (workspace / "job.toml").read_text(encoding="utf-8")
    (workspace / "job.toml").write_text(text.replace("top_k = 4", "top_k = 4\nverify_rows = 3"), encoding="utf-8")
    trees = []
    for name in ("a", "b"):
        process = start_factory("run", "job.toml", "--out", name, cwd=workspace)
        told = process.communicate(timeout=600)[1]
        assert process.returncode == 0
        assert "fidelity: not checked: the scripted teacher has no model" in told
        trees.append(read_tree(workspace / name, ("runs.jsonl", ".lock")))
    assert trees[0] == trees[1]
    assert "fidelity: not checked: the scripted" in (workspace / "a/README.md").read_text(encoding="utf-8")
    section = read_manifest(workspace / "a")["fidelity"]
    assert (section["asked"], section["verdict"]) == (3, "not checked")


def test_a_scripted_run_says_nothing_of_it_by_itself(out: Path) -> None:
    assert "fidelity" not in read_manifest(out)
    assert "Self-test" not in (out / "README.md").read_text(encoding="utf-8")


def test_another_number_of_rows_is_no_other_job(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    run(make_job(), workspace, out)
    signals = {"top_k": 4, "hidden_layers": [2, -1], "verify_rows": 5}
    run(make_job(signals=signals), workspace, out)
    assert read_manifest(out)["fidelity"]["asked"] == 5


def vllm_manifest(out: Path, **details: Any) -> dict[str, Any]:
    """The manifest of a dataset as if vLLM had made it."""
    manifest = read_manifest(out)
    teacher = {"backend": "vllm", "model": "demo", "details": {"dtype": "bfloat16", "model_sha256": "other"} | details}
    return manifest | {"teacher": teacher}


@pytest.mark.parametrize(
    ("details", "model", "more", "reason"),
    [
        ({}, "demo", {}, "is not the one that made the rows"),
        ({}, "/nowhere/model", {}, "no such model folder"),
        ({}, "demo", {"quantization": "fp8"}, "the engine quantised the model (fp8)"),
        ({}, "demo", {"new_key": 1}, "another version of the factory"),
        ({"dtype": "float8"}, "demo", {}, "no bounds are known for dtype float8"),
    ],
)
def test_where_there_is_no_reference_it_says_why(
    out: Path, details: dict[str, Any], model: str, more: dict[str, Any], reason: str
) -> None:
    manifest = vllm_manifest(out, **details)
    manifest["job"]["teacher"] |= {"model": model} | more
    section = check(read_ledger(out), manifest, 2)
    assert section["verdict"] == "not checked"
    assert reason in describe(section)
    assert "\n" not in describe(section)


def test_verify_checks_on_request_and_changes_nothing(out: Path) -> None:
    before = read_tree(out)
    process = start_factory("verify", out, "--fidelity", "2", cwd=out.parent)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert printed.splitlines()[-1] == "fidelity: not checked: the scripted teacher has no model"
    assert read_tree(out) == before
    assert check_dataset(out, 2)["verdict"] == "not checked"


def figures_of(kl: float) -> dict[str, Any]:
    """What the child would say of a row."""
    logprobs = {"kl_mean": kl, "kl_max": 1e-5, "logprob_max": 0.001, "entropy_max": 0.001}
    state = {"state_error_mean": 0.002, "state_error_max": 0.003, "state_cosine_mean": 1.0, "state_cosine_min": 1.0}
    return {"logprobs": logprobs, "layers": {"2": state}}


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", "0.0001"), ("bfloat16", "0.02")])
def test_one_bad_row_fails_the_dataset_and_one_line_says_all(out: Path, dtype: str, allowed: str) -> None:
    signals = read_signals(read_manifest(out))
    assert signals is not None
    rows = [read_row(out, choice, signals) for choice in choose_rows(read_ledger(out), 2)]
    answer = {"device": "cpu", "versions": {"transformers": "5.0", "torch": "2.0"}}
    replace_section(out, "fidelity", summarize(rows, answer | {"rows": [figures_of(1e-6), figures_of(3.25)]}, dtype))
    with pytest.raises(
        FidelityError, match=rf"1 of 2 rows do not agree .*kl_mean 3.2, allowed at most {allowed}; "
    ) as failed:
        require_passed(out)
    assert "\n" not in str(failed.value)
    assert failed.value.exit_code == 1
    section = read_manifest(out)["fidelity"]
    assert [bool(row["exceeded"]) for row in section["rows"]] == [False, True]
    json.dumps(section, allow_nan=False)
    replace_section(out, "fidelity", summarize(rows, answer | {"rows": [figures_of(1e-6)] * 2}, dtype))
    require_passed(out)
    assert "passed: 2 rows agree" in describe(read_manifest(out)["fidelity"])


def test_states_that_do_not_fit_their_tokens_are_damage_and_not_a_crash(out: Path) -> None:
    signals = read_signals(read_manifest(out))
    assert signals is not None
    choice = choose_rows(read_ledger(out), 1)[0]
    path = out / f"hidden_states/train-{choice[0]:05d}.parquet"
    table = pq.read_table(path)
    shapes = [[shape[0] + 1, *shape[1:]] for shape in table.column("shape").to_pylist()]
    at = table.schema.get_field_index("shape")
    field = table.schema.field(at)
    pq.write_table(table.set_column(at, field, pa.array(shapes, field.type)), path)
    with pytest.raises(fidelity.DatasetError, match="do not fit its tokens"):
        read_row(out, choice, signals)
