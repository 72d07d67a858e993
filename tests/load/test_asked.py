"""What is asked of a dataset is there, or is refused in one line: keywords, files, and curricula of these rows."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import write_task
from dataset_support import read_table

from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig, SplitsConfig
from factory.errors import DatasetError
from factory.job.job import Job
from factory.load import Row, collate, load_rows
from factory.runs.run import run

MakeJob = Callable[..., Job]
BOTH = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def job_of(count: int, **sections: Any) -> Job:
    job = {"out": "out", "shard_rows": 8, "teacher": {"backend": "scripted"}}
    job |= {"signals": {"top_k": 4, "hidden_layers": [2]}, "tasks": [{"name": "adding", "count": count}]}
    return Job.model_validate(job | sections)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows of a task with a prompt for the student, in 3 shards and two stages. Not to be written to."""
    root = tmp_path_factory.mktemp("asked")
    write_task(root, student_j2="{{ scenario.a }} plus {{ scenario.b }}?")
    run(job_of(20), root, root / "out")
    splits = SplitsConfig(validation=0.2, test=0)
    make_curriculum(root / "out", CurriculumConfig(by="tokens", stages=2, splits=splits))
    return root / "out"


def content(rows: Any) -> list[str]:
    return [row["prompt"][-1]["content"] for row in rows]


@BOTH
def test_a_stage_of_a_dataset_that_has_grown_is_refused_until_its_curriculum_is_made_anew(
    workspace: Path, streaming: bool
) -> None:
    out = workspace / "out"
    run(job_of(12), workspace, out)
    make_curriculum(out, CurriculumConfig(by="tokens", stages=1))
    run(job_of(20), workspace, out)
    for config in ("stage-1", "hand-off"):
        with pytest.raises(
            DatasetError, match=r"from an older state of the dataset; `factory curriculum` makes it anew"
        ):
            load_rows(out, config, streaming=streaming)
    assert len(list(load_rows(out, streaming=streaming))) == 20
    make_curriculum(out, CurriculumConfig(by="tokens", stages=1, splits=SplitsConfig(validation=0, test=0)))
    assert len(list(load_rows(out, "stage-1", streaming=streaming))) == 20


@BOTH
def test_a_stage_has_the_prompts_that_its_curriculum_was_made_with(out: Path, streaming: bool) -> None:
    plain = datasets.load_dataset(str(out), "stage-1", split="train")
    rows = list(load_rows(out, "stage-1", streaming=streaming))
    assert content(rows) == content(plain)
    assert [row.prompt_token_ids.tolist() for row in rows] == plain["prompt_token_ids"][:]
    assert all(" plus " in text for text in content(rows))
    teachers = content(load_rows(out, "stage-1", streaming=streaming, prompt="teacher"))
    assert all(text.startswith("Add ") or " = ?" in text for text in teachers)
    assert content(load_rows(out, streaming=streaming)) == content(read_table(out, "data"))


def test_a_curriculum_of_the_teacher_s_prompts_gives_the_teacher_s(tmp_path: Path) -> None:
    write_task(tmp_path, student_j2="{{ scenario.a }} plus {{ scenario.b }}?")
    out = tmp_path / "out"
    run(job_of(12), tmp_path, out)
    make_curriculum(out, CurriculumConfig(by="tokens", stages=1, prompt="teacher"))
    plain = datasets.load_dataset(str(out), "stage-1", split="train")
    assert content(load_rows(out, "stage-1")) == content(plain)
    assert not any(" plus " in text for text in content(plain))
    assert all(" plus " in text for text in content(load_rows(out, "stage-1", prompt="student")))
    with pytest.raises(
        DatasetError, match=r"prompts of config 'hand-off' are the teacher's, as its curriculum was made"
    ):
        load_rows(out, "hand-off", prompt="student")
    # a copy that does not say whose prompt it is
    (out / "ledger.jsonl").unlink()
    (out / "curriculum/curriculum.json").unlink()
    with pytest.raises(DatasetError, match=r"no curriculum\.json says whose prompt 'stage-1' has; give prompt="):
        load_rows(out, "stage-1")
    assert content(load_rows(out, "stage-1", prompt="teacher")) == content(plain)


@BOTH
def test_pairs_have_the_student_s_prompt_where_it_is_asked_for(tmp_path: Path, streaming: bool) -> None:
    write_task(tmp_path, student_j2="{{ scenario.a }} plus {{ scenario.b }}?")
    pairs = job_of(12, teacher={"backend": "scripted", "scripted": {"wrong": 0.5}}, samples={"n": 4, "keep": "pair"})
    run(pairs, tmp_path, tmp_path / "out")
    rows = list(load_rows(tmp_path / "out", "preferences", prompt="student", streaming=streaming))
    assert rows
    assert all(" plus " in text for text in content(rows))
    assert not {"prompt_token_ids", "completion_token_ids"} & set(rows[0].keys())
    with pytest.raises(
        DatasetError, match=r"rows are texts alone, such as \w+: pairs and hand-off labels have no token"
    ):
        collate(rows, 0)
    # of answers that were not accepted, the student's prompt is kept as a text: its ids are nowhere
    with pytest.raises(DatasetError, match=r"has no ids of the student's prompt, .* leave out prompt=\"student\""):
        list(load_rows(tmp_path / "out", "rejected", prompt="student", streaming=streaming))


def test_a_row_without_ids_has_the_student_s_text_all_the_same() -> None:
    none = np.zeros(0, np.int32)
    columns = {"id": "a", "prompt": [{"content": "told"}], "student_prompt": [{"content": "asked"}]}
    row = Row(columns, none, none + 1, student_prompt_token_ids=none).as_student()
    assert row["prompt"] == [{"content": "asked"}]
    assert row.as_student() is row


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            {"prompt": "Student"},
            r"prompt = 'Student': no such value \(has: 'teacher', 'student'\); did you mean 'student'",
        ),
        ({"reasoning": "contents"}, r"reasoning = 'contents': no such value \(has: .*\); did you mean 'content'\?"),
        ({"reasoning": True}, r"reasoning = True: no such value"),
        ({"streaming": "no"}, r"streaming = 'no': no such value \(has: True, False\)"),
        ({"join_hidden_states": "false"}, r"join_hidden_states = 'false': no such value"),
        ({"config": "stage1"}, r"no such config in its card \(has: .*\); did you mean 'stage-1'\?"),
        ({"config": "stage-1", "split": "validatoin"}, r"no such split in its card .* did you mean 'validation'\?"),
        ({"revision": "main"}, r"a directory has no revision 'main'; leave out `revision`"),
        (
            {"config": "hand-off", "prompt": "teacher"},
            r"the student's, as its curriculum was made; .* prompt = \"teacher\"",
        ),
    ],
)
def test_a_value_that_no_keyword_has_is_refused(out: Path, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(DatasetError, match=told) as error:
        load_rows(out, **asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt": "Student"}, r"prompt = 'Student': no such value"),
        ({"pad_token_id": None}, r"pad_token_id = None: not a token id"),
        ({"max_length": "8"}, r"max_length = '8': not a number of tokens"),
        ({"prompt": "teacher"}, r"rows have the student's prompt, such as \w+; load them with load_rows\(..., prompt="),
    ],
)
def test_a_batch_refuses_what_it_cannot_be_made_with(out: Path, options: dict[str, Any], told: str) -> None:
    rows = load_rows(out, "stage-1")
    with pytest.raises(DatasetError, match=told):
        collate([rows[0], rows[1]], **({"pad_token_id": 0} | options))


def test_a_batch_of_no_rows_and_one_of_empty_completions_are_told_as_they_are() -> None:
    with pytest.raises(DatasetError, match=r"^no rows to make a batch of"):
        collate([], 0)
    empty = Row({"id": "a"}, np.ones(2, np.int32), np.zeros(0, np.int32))
    with pytest.raises(DatasetError, match=r"have no completion token: a \(prompt of 2\); leave such rows out"):
        collate([empty], 0)


def test_a_row_is_chosen_by_any_number_and_never_by_a_mask(out: Path) -> None:
    rows = load_rows(out)
    for three in (3, np.int64(3), np.array(3), torch.tensor(3)):
        assert rows[three]["id"] == rows["id"][3]
    for numbers in ([3, 5], np.array([3, 5]), torch.tensor([3, 5])):
        assert rows[numbers]["id"] == [rows["id"][3], rows["id"][5]]
    for mask in ([True, False], np.array([True, False]), torch.tensor([True, False]), True, torch.tensor(True)):
        with pytest.raises(TypeError, match=r"not by a mask; give rows\[numpy\.flatnonzero\(mask\)\]"):
            rows[mask]


@BOTH
@pytest.mark.parametrize("config", ["stage-1", "hand-off"])
def test_a_split_without_a_row_is_empty(out: Path, streaming: bool, config: str) -> None:
    assert not list((out / "curriculum" / config).glob("test-*"))
    rows = load_rows(out, config, split="test", streaming=streaming, join_hidden_states=config == "stage-1")
    assert list(rows) == []
    assert {"stage-1": "position", "hand-off": "hand_off"}[config] in rows.column_names


@BOTH
def test_a_dataset_whose_answers_were_all_refused_has_no_rows_joined_or_not(workspace: Path, streaming: bool) -> None:
    run(job_of(10, teacher={"backend": "scripted", "scripted": {"wrong": 1.0}}), workspace, workspace / "out")
    for options in ({}, {"join_hidden_states": True}, {"config": "hidden_states"}):
        assert list(load_rows(workspace / "out", streaming=streaming, **options)) == []
    assert len(list(load_rows(workspace / "out", "rejected", streaming=streaming))) == 10


@BOTH
@pytest.mark.parametrize(
    ("gone", "options", "told"),
    [
        ("data/train-00002", {}, r"`factory verify .*`factory run JOB --repair` makes it again"),
        ("data/train-00001", {"config": "stage-1"}, r"`factory verify .*`factory run JOB --repair` makes it again"),
        ("hidden_states/train-00002", {"join_hidden_states": True}, r"`factory verify "),
        ("curriculum/stage-1/train-00000", {"config": "stage-1"}, r"`factory curriculum` makes it anew"),
    ],
)
def test_a_file_that_is_gone_is_named(
    out: Path, tmp_path: Path, streaming: bool, gone: str, options: dict[str, Any], told: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / f"{gone}.parquet").unlink()
    with pytest.raises(DatasetError, match=rf"{gone}\.parquet of \d files is gone; {told}"):
        load_rows(copy, streaming=streaming, **options)


@pytest.mark.parametrize(
    ("name", "told"), [("a$B", "a '$', .* the name of a variable"), ("a::b", "a '::', .* a chain")]
)
def test_a_path_that_datasets_takes_for_another_is_refused_or_streamed(
    workspace: Path, name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told.replace("$", r"\$")
    with pytest.raises(DatasetError, match=told + r".*; choose a path without any of \[ \] \* \? \{ \} \$ ::"):
        run(job_of(12), workspace, workspace / name)
    assert not (workspace / name).exists()
    run(job_of(12), workspace, workspace / "out")
    (workspace / "out").rename(workspace / name)
    monkeypatch.setenv("B", "c")
    with pytest.raises(DatasetError, match=told + r".*; give streaming=True, or move it"):
        load_rows(workspace / name)
    assert len(list(load_rows(workspace / name, streaming=True))) == 12
