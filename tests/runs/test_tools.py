"""A job whose answers may call tools: every way to fail, every column, and what is made of the dataset later."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import tool_task
from conftest import write_task
from dataset_support import read_table

from factory.checks.author import examine
from factory.checks.verify import verify
from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.job.job import Job
from factory.publish.show import describe_prompt, describe_rows
from factory.quality.golden import decide_text, end_of
from factory.quality.samples import reply_f1
from factory.quality.trial import try_task
from factory.runs.run import run
from factory.tasks.calls import call_sample, dump_scenario
from factory.tasks.catalog import preview
from factory.tasks.tasks import discover
from factory.texts.calls import compose_reply

MakeJob = Callable[..., Job]
TASKS = [{"name": "errands", "count": 30, "levels": {"hard": 1}}]


@pytest.fixture
def errands(tmp_path: Path) -> Path:
    texts = {"schema": tool_task.SCHEMA, "task_toml": tool_task.TASK, "system_j2": "Use the tools."}
    write_task(tmp_path, "errands", user_j2=tool_task.USER, user_short_j2=tool_task.USER, **texts)
    write_task(tmp_path)
    return tmp_path


def test_the_task_is_whole_for_its_author(errands: Path) -> None:
    assert try_task(discover(errands, ["errands"]).tasks["errands"]) == []
    report = examine(errands, "errands", 20, "demo")
    assert [line for line in report.problems if "chat template" not in line] == []
    text = describe_prompt(next(preview(errands, "errands", "easy", 0, 1)), as_json=False)
    assert "[tools]\nset_timer(minutes, label)\nsend_message(to, text)\n" in text


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (f"{tool_task.TIMER}", "rejected at check as wrong_calls"),
        ("For how long?", "rejected at check as wrong_calls"),
        (" \n", "rejected at parse as no_answer"),
        ("<tool_call>{}</tool_call>", "rejected at parse as malformed_call"),
        (f"{tool_task.TIMER}\nDone.", "rejected at parse as malformed_call"),
        (tool_task.TIMER.replace('{"minutes": 5}', "[5]"), "rejected at parse as malformed_call"),
        (tool_task.TIMER.replace("set_timer", "timer"), "rejected at schema as unknown_tool"),
        (tool_task.TIMER.replace("5", '"5"'), "rejected at schema as int_type"),
        (tool_task.TIMER.replace("5", '5, "loud": 1'), "rejected at schema as extra_forbidden"),
        (f"<think> {tool_task.TIMER}", "rejected at parse as marker_in_answer"),
    ],
)
def test_each_way_to_fail_has_its_reason(errands: Path, text: str, ends: str) -> None:
    task = discover(errands, ["errands"]).tasks["errands"]
    scenario = dump_scenario(task, call_sample(task, 1, "easy"))
    assert end_of(decide_text(task, scenario, "easy", f"Hm.</think>{text}")) == ends


def test_every_column_holds_tools_and_calls(errands: Path, make_job: MakeJob) -> None:
    out = errands / "out"
    run(make_job(tasks=[*TASKS, {"name": "adding", "count": 8}], samples={"n": 2}), errands, out)
    assert list(verify(out)) == []
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(errands / "cache"))
    calling = [row for row in loaded if row["task"] == "errands" and json.loads(row["answer"])["tool_calls"]]
    asking = [row for row in loaded if row["task"] == "errands" and not json.loads(row["answer"])["tool_calls"]]
    assert calling
    assert asking
    for row in calling:
        scenario = json.loads(row["scenario"])
        (turn,) = row["completion"]
        assert turn["role"] == "assistant"
        assert turn["content"] == ""
        assert turn["tool_calls"] == [
            {"type": "function", "function": {"name": "set_timer", "arguments": {"minutes": scenario["minutes"]}}},
            {
                "type": "function",
                "function": {
                    "name": "send_message",
                    "arguments": {"to": scenario["name"], "text": 'Started, "really".'},
                },
            },
        ]
        assert [tool["function"]["name"] for tool in row["tools"]] == ["set_timer", "send_message"]
        assert row["agreement"] == 1
    assert {row["completion"][0]["content"] for row in asking} == {"For how long?"}
    # a task without tools beside them
    adding = [row for row in loaded if row["task"] == "adding"]
    assert {row["tools"] for row in adding} == {None}
    assert {row["completion"][0]["tool_calls"] for row in adding} == {None}
    assert "set_timer" in "\n".join(describe_rows(out, 1))
    stream = datasets.load_dataset(str(out), split="train", streaming=True)
    assert next(iter(stream))["tools"] == loaded[0]["tools"]


def test_a_dataset_without_tools_has_none_of_their_columns(errands: Path, make_job: MakeJob) -> None:
    run(make_job(), errands, errands / "out")
    (row, *_) = read_table(errands / "out", "data")
    assert "tools" not in row
    assert row["completion"][0].keys() == {"role", "content", "reasoning_content"}
    assert "tools" not in json.loads((errands / "out" / "manifest.json").read_text(encoding="utf-8"))["signals"]


def test_repairs_pairs_and_a_curriculum_keep_the_calls(errands: Path, make_job: MakeJob) -> None:
    job = make_job(
        tasks=TASKS,
        teacher={"backend": "scripted", "scripted": {"wrong": 0.4, "bad_json": 0.1}},
        samples={"n": 3, "keep": "pair"},
        validation={"retries": 1, "retry": "repair"},
        filters={"style": True, "duplicates": True, "near_duplicates": 0.9},
    )
    out = errands / "out"
    run(job, errands, out)
    assert list(verify(out)) == []
    pairs = list(datasets.load_dataset(str(out), "preferences", split="train", cache_dir=str(errands / "cache")))
    assert pairs
    assert any(pair["rejected"][0]["tool_calls"] for pair in pairs)
    assert all(len(pair["tools"]) == 2 for pair in pairs)
    repaired = [row for row in read_table(out, "data") if row["repaired"]]
    assert repaired
    turns = [row["prompt"][-2] for row in repaired]
    assert any(turn["tool_calls"] and isinstance(turn["tool_calls"][0]["function"]["arguments"], str) for turn in turns)
    make_curriculum(out, CurriculumConfig())
    for config in ("stage-1", "hand-off"):
        rows = datasets.load_dataset(str(out), config, split="train", cache_dir=str(errands / "cache"))
        assert all(len(row["tools"]) == 2 for row in rows)
    assert {len(row["prompt"]) for row in read_table(out / "curriculum", "hand-off")} == {2}


def test_what_is_said_beside_a_call_is_not_what_replies_agree_about() -> None:
    timer = ("set_timer", {"minutes": 5})
    one, other = compose_reply("Yes.", [timer]), compose_reply("", [timer])
    assert reply_f1(one, other) == 1
    assert reply_f1(one, compose_reply("Yes.", [("set_timer", {"minutes": 6})])) == 0
    assert reply_f1(one, compose_reply("Yes.", [])) == 0
    assert reply_f1(compose_reply("For how long?", []), compose_reply("how long", [])) == pytest.approx(4 / 5)


def test_a_resumed_run_reads_calls_from_what_is_there(errands: Path, make_job: MakeJob) -> None:
    job = make_job(tasks=TASKS, filters={"duplicates": True})
    run(job, errands, errands / "one")
    run(job, errands, errands / "one")
    run(job, errands, errands / "two")
    assert read_table(errands / "one", "data") == read_table(errands / "two", "data")


def style_findings(out: Path) -> set[Any]:
    return {finding for row in read_table(out, "rejected") for finding in row["findings"]}


def test_a_style_speaks_of_what_is_said_and_of_arguments(errands: Path, make_job: MakeJob) -> None:
    path = errands / "prompts" / "errands" / "task.toml"
    path.write_text(path.read_text(encoding="utf-8") + "[style]\nmin_words = 2\n", encoding="utf-8")
    run(make_job(tasks=TASKS, filters={"style": True}), errands, errands / "out")
    # the name to whom a message goes is one word, the message two, the question three; a timer has no text
    assert style_findings(errands / "out") == {
        "style_too_few_words: tool_calls.1.arguments.to has 1, at least 2",
    }
    path.write_text(path.read_text(encoding="utf-8") + 'fields = ["content"]\n', encoding="utf-8")
    run(make_job(tasks=TASKS, filters={"style": True}), errands, errands / "said")
    assert style_findings(errands / "said") == set()
