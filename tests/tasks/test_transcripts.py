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
from factory.hashing import canonical_json, content_hash
from factory.job.data import TranscriptsConfig
from factory.job.job import Job
from factory.load import collate, load_rows
from factory.records import PlannedRow, Prompt, Rejection
from factory.runs import run as module
from factory.runs.prepare import prepare
from factory.runs.provenance import describe_job
from factory.runs.run import run
from factory.tasks.tables import Loaded
from factory.tasks.transcripts import Transcripts, open_transcripts
from factory.tasks.user_rows import Rows

USER = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4", "reasoning_content": "Two and two."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": "{}"}}],
}
TOOL = {"role": "tool", "content": "4", "tool_call_id": "c1", "name": "add"}
MASKED = {"token_ids": [50, 43, 84, 257, 51, 52, 257], "token_mask": [0, 0, 1, 1, 0, 1, 1]}
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
        ({"messages": [USER, ANSWER | {"tool_calls": [{"id": "1"}]}]}, "1.tool_calls.0.function.name: Field required"),
        ({"messages": [USER | {"tool_calls": [{"name": "add"}]}, ANSWER]}, "a user turn calls tools"),
        (MASKED | {"token_mask": [0, 1]}, "a mask of 2 entries for 7 ids"),
        (MASKED | {"token_mask": [0] * 7}, "no id is scored"),
        (MASKED | {"token_mask": [1] * 7}, "the first id is scored, and nothing predicts it"),
        (MASKED | {"token_mask": [0, 1, 2, 0, 0, 0, 0]}, "Input should be 0 or 1"),
        (MASKED, 'it has several spans that are scored; say transcripts.turns = "masked"'),
        (IDS | {"completion_mask": [1, 0, 0, 1]}, "it has several spans that are scored"),
        ({"nodes": [{"token_ids": [1], "mask": []}]}, "a mask of 0 entries for 1 token_ids"),
        ({"nodes": [{"token_ids": [1], "mask": [False]}]}, "no token of its nodes is sampled"),
        ({"nodes": [{"parent": 0, "token_ids": [1], "mask": [True]}]}, "nodes.0.parent: 0 does not stand before it"),
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
        (
            {},
            "has none of prompt_token_ids and completion_token_ids; token_ids and token_mask; nodes; prompt and",
        ),
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


SEVERAL = {"turns": "masked"}
TURNS = [USER, CALL, TOOL, ANSWER, {"role": "user", "content": "Sure?"}, ANSWER | {"content": "Yes."}]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (MASKED, {"prompt_ids": (50, 43), "completion_ids": (84, 257, 51, 52, 257), "mask": (1, 1, 0, 1, 1)}),
        (
            MASKED | {"token_mask": [0, 1, 1, 0, 0, 0, 0]},
            {"prompt_ids": (50,), "completion_ids": (43, 84), "mask": ()},
        ),
        (IDS | {"completion_mask": [1, 0, 1, 0]}, {"completion_ids": (84, 256, 52), "mask": (1, 0, 1)}),
        (IDS | {"completion_mask": [0, 0, 1, 1]}, {"prompt_ids": (50, 43, 50, 84, 256), "mask": ()}),
        ({"messages": TURNS}, {"scored": (1, 3), "mask": ()}),
        ({"messages": TURNS, "turn_mask": [1, 0, 1]}, {"scored": (1,)}),
        ({"messages": TURNS, "turn_mask": [0, 0, 0, 1, 0, 0]}, {"scored": ()}),
        ({"messages": TURNS, "turn_mask": [True, True, False]}, {"scored": (1,)}),
    ],
)
def test_several_spans_of_a_row_are_scored_where_the_job_says_so(row: dict[str, Any], parts: dict[str, Any]) -> None:
    prompt = read(row, **SEVERAL)
    assert isinstance(prompt, Prompt)
    assert {name: getattr(prompt.transcript, name) for name in parts} == parts


def test_a_row_ends_with_its_last_scored_turn_and_calls_are_kept_with_it() -> None:
    prompt = read({"messages": TURNS, "turn_mask": [1, 1, 0], "tools": '[{"name": "add"}]'}, **SEVERAL)
    assert isinstance(prompt, Prompt)
    assert prompt.transcript is not None
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "tool"]
    assert prompt.transcript.turn == ANSWER
    assert json.loads(prompt.transcript.tools or "") == [{"name": "add"}]
    kept = json.loads(prompt.scenario)
    function = {"name": "add", "arguments": {}}
    assert kept["messages"][1]["tool_calls"] == [{"type": "function", "function": function, "id": "c1"}]
    assert kept["messages"][2] == TOOL
    assert kept["tools"] == [{"name": "add"}]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": TURNS, "turn_mask": [1, 0]}, "a mask of 2 entries for 6 messages, 3 of them the assistant's"),
        (
            {"messages": TURNS, "turn_mask": [1, 0, 0, 0, 0, 0]},
            "message 1 is scored, and is empty or not",
        ),
        ({"messages": TURNS, "turn_mask": [0, 0, 0]}, "no turn is scored"),
        ({"messages": [ANSWER, USER, ANSWER]}, "nothing stands before the first turn that is scored"),
        ({"messages": TURNS, "tools": "{}"[:1]}, "Expecting property name"),
        ({"messages": TURNS, "tools": ["add"]}, "tools: need a list of objects, or the JSON of one"),
    ],
)
def test_masks_and_tools_that_do_not_fit_are_rejected_rows(row: dict[str, Any], told: str) -> None:
    rejection = read(row, **SEVERAL)
    assert isinstance(rejection, Rejection)
    assert told in rejection.findings[0]


def trace() -> dict[str, Any]:
    """A question, two answers to it, and a second turn after the first of these."""
    nodes = [
        {"parent": None, "token_ids": [50, 43], "mask": [False, False], "message": {"role": "user", "content": "2+2"}},
        {"parent": 0, "token_ids": [7, 84, 257], "mask": [False, True, True], "sampled": True},
        {"parent": 1, "token_ids": [51], "mask": [False]},
        {"parent": 2, "token_ids": [52, 257], "mask": [True, True], "sampled": True},
        {"parent": 0, "token_ids": [7, 85, 257], "mask": [False, True, True], "sampled": True},
    ]
    return {"id": "t1", "nodes": nodes}


def test_each_branch_of_a_trace_is_a_row() -> None:
    rows = Rows("traces.jsonl", {"traces.jsonl": Loaded([trace()], ["id", "nodes"])}, digest="")
    transcripts = Transcripts(TranscriptsConfig(path="traces.jsonl", turns="masked"), rows)
    prompts = [transcripts.prompt(PlannedRow(0, n, "transcripts", "given", n, seed=1)) for n in range(len(transcripts))]
    found = [p.transcript for p in prompts if isinstance(p, Prompt) and p.transcript is not None]
    assert [(t.prompt_ids, t.completion_ids, t.mask) for t in found] == [
        ((50, 43, 7), (84, 257, 51, 52, 257), (1, 1, 0, 1, 1)),
        ((50, 43, 7), (85, 257), ()),
    ]
    assert [json.loads(p.scenario)["branch"] for p in prompts if isinstance(p, Prompt)] == [3, 4]


def test_a_scored_dataset_has_its_masks_and_learns_nothing_between_turns(workspace: Path) -> None:
    rows = [MASKED, MASKED | {"token_mask": [0, 0, 1, 1, 0, 0, 0]}, {"token_ids": [1, 2], "token_mask": [0, 0]}]
    path = write_lines(workspace / "rows.jsonl", rows)
    job = score_job(path, transcripts={"path": str(path), "on_bad_row": "skip", "turns": "masked"})
    totals = run(job, workspace, workspace / "out")
    assert (totals.accepted, totals.rejected) == (2, 1)
    assert list(verify(workspace / "out")) == []
    first, second = load_rows(workspace / "out", streaming=True)
    assert first.completion_mask is not None
    assert second.completion_mask is not None
    assert (first.completion_mask.tolist(), second.completion_mask.tolist()) == ([1, 1, 0, 1, 1], [1, 1])
    assert first.topk_ids is not None
    assert (first.topk_ids[:, 0] >= 0).tolist() == [True, True, False, True, True]
    assert first["answer_start"] == 3
    batch = collate([first, second], pad_token_id=0)
    assert batch["labels"].tolist() == [[-100, -100, 84, 257, -100, 52, 257], [-100, -100, 84, 257, -100, -100, -100]]
    assert batch["completion_mask"][0].tolist() == [False, False, True, True, False, True, True]
    assert batch["topk_mask"][0].tolist() == [False, True, True, False, True, True, False]
    again = read_tree(workspace / "out", but=("runs.jsonl", ".lock"))
    run(job, workspace, workspace / "out")
    assert read_tree(workspace / "out", but=("runs.jsonl", ".lock")) == again


def test_rows_of_one_turn_have_the_ids_and_the_job_the_digest_that_they_always_had(tmp_path: Path) -> None:
    prompt = read({"messages": [USER, ANSWER]})
    assert isinstance(prompt, Prompt)
    scenario = canonical_json({"row": "1"})
    parts = [(), (), None, None, ANSWER]
    assert prompt.id == content_hash([0, (USER,), scenario, parts])
    job = score_job(write_lines(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER]}]))
    assert "turns" not in describe_job(prepare(job, tmp_path))["job"]["transcripts"]


def test_a_plan_of_several_turns_counts_all_from_the_first_scored_one(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"messages": TURNS}] * 3)
    (tmp_path / "job.toml").write_text(
        f'out = "out"\n[teacher]\nbackend = "scripted"\n[signals]\ntop_k = 3\n[transcripts]\npath = "{path}"\n'
    )
    lines = {}
    for turns in ("last", "masked"):
        job = (tmp_path / "job.toml").read_text() + f'turns = "{turns}"\n'
        (tmp_path / f"{turns}.toml").write_text(job)
        told, errors = start_factory("plan", f"{turns}.toml", cwd=tmp_path).communicate()
        assert errors == ""
        lines[turns] = told
    assert lines["last"] != lines["masked"]


def test_an_export_of_several_scored_turns_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [MASKED])
    job = score_job(path, transcripts={"path": str(path), "turns": "masked"})
    run(job, tmp_path, tmp_path / "out")
    told = start_factory("export", "out", "--to", "trl-sft", "there", cwd=tmp_path).communicate()[1]
    assert "have several scored turns (completion_mask), which no export keeps apart yet" in told
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"prompt": "2 + 2 =", "completion": "\ud800"}, "completion"),
        ({"messages": [USER, ANSWER | {"content": "four \udc00"}]}, "messages.1.content"),
    ],
)
def test_half_a_character_is_never_scored_as_another(row: dict[str, Any], place: str) -> None:
    table = Rows("rows.jsonl", {"rows.jsonl": Loaded([row], list(row))}, digest="")
    (told,) = Transcripts(TranscriptsConfig(path="rows.jsonl"), table).bad_rows()
    assert f"{place}: holds \\ud" in told
