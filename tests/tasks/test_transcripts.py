"""Transcripts: the forms a row may have, what is no transcript, and a scored dataset as a whole."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_support import read_table, read_tree, start_factory

from factory.checks.verify import verify
from factory.dataset.ledger import read_ledger
from factory.dataset.manifest import read_manifest
from factory.errors import JobError
from factory.job.data import TranscriptsConfig
from factory.job.job import Job
from factory.records import PlannedRow, Prompt, Rejection
from factory.runs import run as module
from factory.runs.run import run
from factory.tasks.tables import Loaded
from factory.tasks.transcripts import Transcripts, open_transcripts
from factory.tasks.user_rows import Rows

USER = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4", "reasoning_content": "Two and two."}
IDS = {"prompt_token_ids": [50, 43, 50], "completion_token_ids": [84, 256, 52, 257]}


def read(row: dict[str, Any], **config: Any) -> Prompt | Rejection:
    rows = Rows("rows.jsonl", {"rows.jsonl": Loaded([row], list(row))}, digest="")
    transcripts = Transcripts(TranscriptsConfig(path="rows.jsonl", **config), rows)
    return transcripts.prompt(PlannedRow(0, 0, "transcripts", "given", 0, seed=1))


def score_job(path: Path, **sections: Any) -> Job:
    job: dict[str, Any] = {"out": "out", "shard_rows": 4, "teacher": {"backend": "scripted"}}
    job |= {"signals": {"top_k": 5, "hidden_layers": [-1]}, "transcripts": {"path": str(path), "on_bad_row": "skip"}}
    return Job.model_validate(job | sections)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_of_another_form_than_the_data_says_what_it_lacks() -> None:
    rows = [{"prompt": "2 + 2 =", "completion": " 4"}, {"messages": [USER, ANSWER]}]
    table = Rows("rows.jsonl", {"rows.jsonl": Loaded(rows, ["prompt", "completion", "messages"])}, digest="")
    (told,) = Transcripts(TranscriptsConfig(path="rows.jsonl"), table).bad_rows()
    assert told.startswith(
        "rows.jsonl row 2: has no prompt and no completion; rows of this data have prompt and completion"
    )


@pytest.mark.parametrize(
    ("row", "messages", "parts"),
    [
        (IDS, (), {"prompt_ids": (50, 43, 50), "completion_ids": (84, 256, 52, 257)}),
        (IDS | {"prompt": [USER], "completion": [ANSWER]}, (USER,), {"completion_ids": (84, 256, 52, 257)}),
        ({"prompt": "2 + 2 =", "completion": " 4"}, None, {"prompt": "2 + 2 =", "completion": " 4", "turn": None}),
        ({"prompt": [USER], "completion": [ANSWER]}, (USER,), {"turn": ANSWER, "completion": None}),
        ({"messages": [USER, ANSWER]}, (USER,), {"turn": ANSWER}),
        ({"messages": [USER, ANSWER | {"tool_calls": None}]}, (USER,), {"turn": ANSWER}),
        ({"messages": [USER, ANSWER | {"tool_calls": []}]}, (USER,), {"turn": ANSWER}),
        ({"messages": [USER, ANSWER | {"content": " 4\n"}]}, (USER,), {"turn": ANSWER | {"content": " 4\n"}}),
    ],
)
def test_forms_of_a_row(row: dict[str, Any], messages: Any, parts: dict[str, Any]) -> None:
    prompt = read(row)
    assert isinstance(prompt, Prompt)
    assert messages is None or prompt.messages == messages
    assert {name: getattr(prompt.transcript, name) for name in parts} == parts


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [USER]}, "one assistant turn"),
        ({"messages": [ANSWER]}, "nothing stands before the assistant's turn"),
        ({"messages": [USER, ANSWER | {"content": " \n"}]}, "the turn is empty"),
        ({"messages": [{"role": "robot", "content": "Hm?"}, ANSWER]}, "0.role: Input should be 'system'"),
        ({"messages": [USER, ANSWER | {"tool_calls": [{"name": "add"}]}]}, "1.tool_calls"),
        ({"prompt": "2 + 2 =", "completion": ""}, "the completion is empty"),
        (IDS | {"completion_token_ids": [84, 2**40]}, "less than 2147483648"),
        (IDS | {"completion_token_ids": [84, -1]}, "greater than or equal to 0"),
        (IDS | {"completion_token_ids": [84, True]}, "valid integer"),
        (IDS | {"completion_token_ids": [84, "5"]}, "valid integer"),
        ({"messages": []}, "one assistant turn"),
        ({"messages": [USER, {"role": "assistant"}]}, "1.content: Field required"),
        ({"messages": "hello"}, "should be a valid list"),
        ({"prompt": [USER], "completion": [ANSWER, ANSWER]}, "one assistant turn"),
        ({"prompt": "2 + 2", "completion": None}, "has no completion; rows of this data have prompt and completion"),
        (IDS | {"completion_token_ids": []}, "3 prompt ids and 0 completion ids"),
        (IDS | {"prompt_token_ids": ["a"]}, "valid integer"),
        (IDS | {"prompt_token_ids": None}, "has no prompt_token_ids"),
    ],
)
def test_what_is_no_transcript_is_a_rejected_row(row: dict[str, Any], told: str) -> None:
    rejection = read(row)
    assert isinstance(rejection, Rejection)
    assert (rejection.stage, rejection.reason, rejection.kind) == ("prompt", "bad_transcript", "rejected")
    assert rejection.findings[0].startswith("rows.jsonl row 1: ")
    assert told in rejection.findings[0]


def test_columns_may_have_other_names_and_some_are_kept() -> None:
    row = {"input": [1, 2], "output": [3], "who": "student-7", "when": {"day": 3}}
    names = {"prompt_token_ids": "input", "completion_token_ids": "output"}
    prompt = read(row, columns=names, keep=["who", "when"])
    assert isinstance(prompt, Prompt)
    assert prompt.transcript is not None
    assert prompt.transcript.completion_ids == (3,)
    assert json.loads(prompt.scenario) == {"row": "1", "who": "student-7", "when": {"day": 3}}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "has none of prompt_token_ids and completion_token_ids; prompt and completion; messages (has: text)"),
        ({"keep": ["id"]}, "no column id in"),
        ({"columns": {"messages": "turns"}}, "no column turns in"),
    ],
)
def test_a_table_that_holds_no_transcripts_is_one_line(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "hello"}])
    with pytest.raises(JobError) as error:
        open_transcripts(score_job(path, transcripts={"path": str(path), **config}))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("section", ["tasks", "validation", "judge", "samples", "sampling"])
def test_nothing_is_asked_where_transcripts_are_scored(section: str) -> None:
    values = {"tasks": [{"name": "adding", "count": 1}], "samples": {"n": 2}}
    with pytest.raises(ValueError, match=f"{section}: nothing is asked"):
        score_job(Path("rows.jsonl"), **{section: values.get(section, {})})


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    """Ten rows by token ids, as Parquet; two of them are broken."""
    ids = [[84 + number, 256, 52, 257] for number in range(10)]
    ids[3] = []
    ids[7] = [84, 100_000]
    table = {"prompt_token_ids": [[50, 43, 50 + n] for n in range(10)], "completion_token_ids": ids}
    path = tmp_path / "rollouts.parquet"
    pq.write_table(pa.table(table), path)
    return path


def test_a_scored_dataset_is_like_any_other(rollouts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    totals = run(score_job(rollouts), tmp_path, out)
    assert (totals.planned, totals.accepted, totals.rejected, totals.errors) == (10, 8, 2, 0)
    assert list(verify(out)) == []
    rows = read_table(out, "data")
    assert [row["completion_token_ids"][0] for row in rows] == [84, 85, 86, 88, 89, 90, 92, 93]
    assert all(len(row["topk_ids"]) == 4 * 5 for row in rows)
    assert {row["reasoning"] for row in rows} >= {"T", "U"}
    assert {row["answer"] for row in rows} == {"4"}
    assert sorted(read_ledger(out).totals.reasons) == ["prompt/bad_token_id", "prompt/bad_transcript"]
    assert read_manifest(out)["sources"]["transcripts"]


def test_a_run_that_is_cut_off_goes_on_to_the_same_bytes(
    rollouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(score_job(rollouts), tmp_path, tmp_path / "whole")
    write = module.write_shard

    def stop(out: Path, shard: int, *more: Any) -> Any:
        if shard == 1:
            raise KeyboardInterrupt
        return write(out, shard, *more)

    monkeypatch.setattr(module, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        run(score_job(rollouts), tmp_path, tmp_path / "cut")
    assert read_ledger(tmp_path / "cut").totals.committed_shards == 1
    monkeypatch.undo()
    run(score_job(rollouts), tmp_path, tmp_path / "cut")
    but = (".lock", "runs.jsonl")
    assert read_tree(tmp_path / "cut", but) == read_tree(tmp_path / "whole", but)


def test_other_data_is_another_job(rollouts: Path, tmp_path: Path) -> None:
    run(score_job(rollouts), tmp_path, tmp_path / "out")
    pq.write_table(pq.read_table(rollouts).slice(1), rollouts)
    with pytest.raises(Exception, match="transcripts"):
        run(score_job(rollouts), tmp_path, tmp_path / "out")


def test_each_command_names_the_other_for_the_other_kind_of_job(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER]}])
    head = 'out = "out"\n[teacher]\nbackend = "scripted"\n'
    (tmp_path / "score.toml").write_text(head + '[transcripts]\npath = "rows.jsonl"\n')
    (tmp_path / "run.toml").write_text(head + '[[tasks]]\nname = "scheduling"\ncount = 1\n')
    for command, other in (("run", "score"), ("score", "run")):
        process = start_factory(command, f"{other}.toml", cwd=tmp_path)
        _, told = process.communicate(timeout=600)
        assert process.returncode == 2
        assert f"use factory {other}" in told
    assert start_factory("score", "score.toml", cwd=tmp_path).wait(timeout=600) == 0
