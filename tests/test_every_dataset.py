"""Every command reads every kind of dataset: none ends in a traceback, and a refusal is one line that says why."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import free_text
import pytest
import tool_task
from conftest import write_task
from dataset_support import read_table

from factory.cli import main
from factory.dataset.ledger import read_ledger
from factory.errors import DatasetError
from factory.job.job import Job
from factory.load import load_rows
from factory.runs.run import run

ANSWER = [{"role": "assistant", "content": "It is 4.", "reasoning_content": "Two and two."}]
QUESTION = [{"role": "user", "content": "2 + 2?"}]
WRONG = {"backend": "scripted", "scripted": {"wrong": 0.5, "bad_json": 0.2}}
KINDS: dict[str, dict[str, Any]] = {
    "run": {},
    "wrong": {"teacher": WRONG},
    "no_signals": {"signals": {"top_k": 0}},
    "compact": {"storage": {"logprobs": "compact"}},
    "sampled": {"signals": {"top_k": 4, "keep": "sampled"}},
    "answers": {"signals": {"top_k": 4, "positions": "answer"}},
    "whole": {"signals": {"top_k": 4, "positions": "all"}},
    "nothing_uncertain": {"signals": {"top_k": 4, "min_entropy": 20.0}},
    "preferences": {"teacher": WRONG, "samples": {"n": 4, "keep": "pair"}},
    "only_rejects": {"teacher": {"backend": "scripted", "scripted": {"bad_json": 1.0}}},
    "only_errors": {"teacher": {"backend": "scripted", "scripted": {"crash": 1.0}}},
    "teachers": {
        "teacher": None,
        "teachers": {"big": {"backend": "scripted"}, "small": {"backend": "scripted"}},
        "tasks": [{"name": "adding", "count": 12, "teacher": {"big": 1, "small": 1}}],
    },
    "goals": {"teacher": WRONG, "tasks": [{"name": "adding", "accepted": 12, "at_most": 60}]},
    "student": {"tasks": [{"name": "told", "count": 12}]},
    "text": {"tasks": [{"name": "greeting", "count": 12}]},
    "tools": {"teacher": WRONG, "tasks": [{"name": "errands", "count": 12}], "samples": {"n": 2, "keep": "pair"}},
    "pictures": {"tasks": [{"name": "photo_edits_image", "count": 6}], "shard_rows": 3},
    "scored": {},
    "named_ids": {},
    "curriculum": {},
    "begun": {},
    "killed": {},
    "card_alone": {},
}
COMMANDS = (["status"], ["status", "--json"], ["show"], ["show", "-n", "3"], ["show", "-n", "999"], ["verify"])
UNFINISHED = ("begun", "killed", "card_alone")


def cut_off(out: Path, shards: int) -> None:
    """As a run leaves it that was killed after so many commits."""
    lines = (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "ledger.jsonl").write_text("".join(lines[: 1 + shards]), encoding="utf-8")
    for path in [*out.glob("*/train-*.parquet")]:
        if int(path.stem.removeprefix("train-")) > shards:  # one more is written, and not committed
            path.unlink()


def write_tasks(workspace: Path) -> None:
    """A task of each form, and one that shows its student another prompt."""
    write_task(workspace, "told", student_j2="{{ scenario.a }} plus {{ scenario.b }}?")
    greet = "Greet {{ scenario.name }}, who is {{ scenario.mood }}."
    forms = (("greeting", free_text, greet), ("errands", tool_task, tool_task.USER))
    for name, form, asked in forms:
        files = {"schema": form.SCHEMA, "task_toml": form.TASK, "system_j2": "Be kind."}
        write_task(workspace, name, **files, user_j2=asked, user_short_j2=asked)


def make_dataset(kind: str, workspace: Path, make_job: Callable[..., Job]) -> Path:
    out = workspace / "out"
    if kind in ("scored", "named_ids"):
        rows: list[dict[str, Any]] = [{"prompt": QUESTION, "completion": ANSWER}] * 3
        if kind == "named_ids":
            rows = [{"prompt_token_ids": [50], "completion_token_ids": [52, 257], "candidate_ids": [[52, 9], []]}] * 3
        (workspace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        job = make_job().model_dump(exclude_unset=True) | {"transcripts": {"path": str(workspace / "rows.jsonl")}}
        del job["tasks"]
        run(Job.model_validate(job), workspace, out)
        return out
    write_tasks(workspace)
    run(make_job(**KINDS[kind]), workspace, out)
    if kind == "curriculum":
        assert call("curriculum", out) == 0
    if kind in UNFINISHED:
        cut_off(out, 1 if kind == "killed" else 0)
    if kind == "card_alone":
        shutil.rmtree(out / "data")
    return out


def call(*arguments: object) -> int:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
    return int(ended.value.code or 0)


def check_report(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report and its numbers, or one line that says that nothing is committed yet."""
    totals = read_ledger(out).totals
    code = call("report", out, "--rows", 6)
    printed, told = capsys.readouterr()
    if not totals.done:
        assert (code, printed, told.count("\n")) == (2, "", 1)
        return
    assert (code, told) == (0, ""), told
    assert "http-equiv" in (out / "report.html").read_text(encoding="utf-8")
    assert call("report", out, "--json") == 0
    facts = json.loads(capsys.readouterr()[0])
    head = facts["head"]
    assert head["planned"] == head["accepted"] + head["rejected"] + head["errors"] + head["left"]
    assert sum(cell["rows"] for cell in facts["cells"]) == totals.done
    assert facts["flow"]["steps"][-1]["left"] == totals.accepted


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_reads_every_kind(
    kind: str,
    workspace: Path,
    make_job: Callable[..., Job],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_task(workspace)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workspace / "cache")
    datasets.disable_progress_bars()
    out = make_dataset(kind, workspace, make_job)
    accepted = read_ledger(out).totals.accepted
    capsys.readouterr()
    for command in COMMANDS:
        code = call(command[0], out, *command[1:])
        printed, told = capsys.readouterr()
        assert (code, told) == (int(command == ["verify"] and kind in UNFINISHED), ""), (command, printed)
        assert printed.strip(), command
        if command[0] == "show":
            shown = sum(line.startswith("──") for line in printed.splitlines())
            assert shown == min(accepted, int([*command, "1"][2]) if len(command) > 2 else 1)
    code = call("curriculum", out)
    printed, told = capsys.readouterr()
    assert (code, told.count("\n")) == ((0, 0) if accepted and kind not in UNFINISHED else (2, 1)), told
    check_report(out, capsys)
    for streaming in (False, True):
        if kind == "card_alone":
            with pytest.raises(DatasetError, match=r"cannot be loaded"):
                load_rows(out, streaming=streaming)
        else:
            assert sum(1 for _ in load_rows(out, streaming=streaming)) == len(read_table(out, "data"))
