"""Exports of tasks with tools and of free texts: nothing that a row says is lost on the way to a trainer."""

import json
from pathlib import Path
from typing import Any

import free_text
import pytest
import tool_task
from conftest import write_task
from dataset_support import read_table
from export_support import PAIRS, WRONG, MakeJob, export_to, make_dataset, read_export, rewards

from factory.errors import JobError
from factory.job.job import Job
from factory.publish.aligning import align
from factory.publish.exports.source import open_source
from factory.publish.vocabulary import student_vocabulary
from factory.runs.run import run
from factory.tasks.tasks import builtin_root
from factory.teachers.demo import FOLDER

ERRANDS: dict[str, Any] = {"tasks": [{"name": "errands", "count": 12}]}


@pytest.fixture
def tools_root(workspace: Path) -> Path:
    files = {"schema": tool_task.SCHEMA, "task_toml": tool_task.TASK}
    write_task(workspace, "errands", **files, user_j2=tool_task.USER, user_short_j2=tool_task.USER)
    return workspace


def student_with(folder: Path, template: str) -> str:
    """The demo teacher's tokenizer with another chat template."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def spelt(row: dict[str, Any]) -> str:
    """What a row's teacher wrote behind its reasoning."""
    return str(row["text"].partition("</think>")[2].removesuffix("<|end|>"))


@pytest.mark.parametrize("to", ["messages", "trl-sft"])
def test_calls_stand_inside_the_content_or_beside_it(to: str, tools_root: Path, make_job: MakeJob) -> None:
    root = make_dataset(tools_root, make_job, **ERRANDS)
    more: dict[str, Any] = {"rows": "messages"} if to == "trl-sft" else {}
    export_to(root, tools_root / "in", to, reasoning="content", **more)
    export_to(root, tools_root / "by", to, reasoning="apart", **more)
    rows = read_table(root, "data")
    assert any(row["completion"][0]["tool_calls"] for row in rows)
    name = "messages" if to == "messages" else "completion"
    for row, inside, beside in zip(rows, read_export(tools_root / "in"), read_export(tools_root / "by"), strict=True):
        said = inside[name][-1]
        assert set(said) == {"role", "content"}
        assert said["content"] == f"<think>{row['text'].removesuffix('<|end|>')}"
        assert beside[name][-1] == row["completion"][0]
        assert json.loads(inside["tools"]) == json.loads(beside["tools"]) == json.loads(row["tools"])
    if to == "messages":
        entry = json.loads((tools_root / "in/dataset_info.json").read_text())["distilled"]
        assert entry["columns"] == {"messages": "messages", "tools": "tools"}


def test_datasets_gives_tools_and_calls_as_objects(tools_root: Path, make_job: MakeJob) -> None:
    import datasets

    root = make_dataset(tools_root, make_job, **ERRANDS)
    export_to(root, tools_root / "x", "trl-sft", rows="messages")
    files, cache = str(tools_root / "x/data/*.parquet"), str(tools_root / "cache")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    for row, kept in zip(rows, read_table(root, "data"), strict=True):
        assert row["tools"] == json.loads(kept["tools"])
        calls = row["completion"][0]["tool_calls"] or []
        answer = json.loads(kept["answer"])
        assert [call["function"] for call in calls] == answer["tool_calls"]


def test_both_answers_of_a_pair_keep_their_calls(tools_root: Path, make_job: MakeJob) -> None:
    root = make_dataset(tools_root, make_job, **ERRANDS | PAIRS)
    export_to(root, tools_root / "x", "dpo")
    pairs = read_table(root, "preferences")
    assert pairs
    for pair, row in zip(pairs, read_export(tools_root / "x"), strict=True):
        assert [row[side] for side in ("chosen", "rejected")] == [pair[side] for side in ("chosen", "rejected")]
        assert row["tools"] == pair["tools"]


def test_right_and_wrong_answers_of_kto_are_both_as_they_were_written(tools_root: Path, make_job: MakeJob) -> None:
    root = make_dataset(tools_root, make_job, **ERRANDS, teacher=WRONG)
    export_to(root, tools_root / "x", "kto")
    told = {(row["completion"][0]["content"], row["label"]) for row in read_export(tools_root / "x")}
    for folder, label in (("data", True), ("rejected", False)):
        assert {(spelt(row), label) for row in read_table(root, folder)} <= told
    assert all(row["tools"] for row in read_export(tools_root / "x"))


def test_a_students_template_without_tools_or_calls_is_told(tools_root: Path, make_job: MakeJob) -> None:
    root = make_dataset(tools_root, make_job, **ERRANDS)
    base = "{% for m in messages %}{{ m.content }}{{ m.reasoning_content }}{% endfor %}"
    blind = student_with(tools_root / "blind", base)
    with pytest.raises(JobError, match=r"shows no tools, so it would learn to call what it never saw"):
        export_to(root, tools_root / "a", "messages", student=blind)
    deaf = student_with(tools_root / "deaf", base + "{{ tools | tojson }}")
    with pytest.raises(JobError, match=r"drops tool_calls.*--reasoning content"):
        export_to(root, tools_root / "a", "messages", student=deaf, reasoning="apart")
    export_to(root, tools_root / "a", "messages", student=deaf, reasoning="content")
    export_to(root, tools_root / "b", "trl-sft", rows="messages", student="demo")


def test_an_aligned_students_prompt_has_the_tools(tools_root: Path, make_job: MakeJob) -> None:
    root = make_dataset(tools_root, make_job, **ERRANDS)
    align(root, "demo", "demo")
    vocabulary = student_vocabulary("demo")
    for row, kept in zip(read_export(root / "aligned-demo"), read_table(root, "data"), strict=True):
        prompt = b"".join(vocabulary.pieces[i] for i in row["student_prompt_token_ids"]).decode()
        told = [json.loads(line) for line in prompt.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()]
        assert told == json.loads(kept["tools"])


def test_prompts_that_verl_would_show_without_their_tools_are_refused(tools_root: Path, make_job: MakeJob) -> None:
    root = make_dataset(tools_root, make_job, **ERRANDS)
    with pytest.raises(JobError, match=r"--to verl-rl: verl renders prompts without our tools"):
        export_to(root, tools_root / "x", "verl-rl")


def test_the_reward_of_a_free_text_checks_the_text(workspace: Path, make_job: MakeJob) -> None:
    write_task(workspace, "greeting", schema=free_text.SCHEMA, task_toml=free_text.TASK)
    for name in ("user.j2", "user_short.j2"):
        (workspace / "prompts/greeting" / name).write_text("Greet {{ scenario.name }}, who is {{ scenario.mood }}.")
    (workspace / "prompts/greeting/system.j2").write_text("Greet people.")
    root = make_dataset(workspace, make_job, tasks=[{"name": "greeting", "count": 3}])
    export_to(root, workspace / "x", "verl-rl")
    (row, *_) = read_export(workspace / "x")
    scenario = json.loads(row["reward_model"]["ground_truth"])
    right = f"Hello {scenario['name']}, you look {scenario['mood']} today."
    texts = [f"Hm.</think>\n\n{right}\n", right, "Hello you.", "Hi", right + "x" * 500, f"{right} <think>"]
    assert rewards(workspace / "x", row, texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["scheduling", "questions", "stories", "emotional_support"])
def test_the_reward_of_a_built_in_task_runs_with_its_parts(name: str, tmp_path: Path) -> None:
    job = {"out": "out", "teacher": {"backend": "scripted"}, "tasks": [{"name": name, "count": 3}]}
    run(Job.model_validate(job), builtin_root(), tmp_path / "out")
    export_to(tmp_path / "out", tmp_path / "x", "verl-rl")
    asked = {row["extra_info"]["index"]: row for row in read_export(tmp_path / "x")}
    for kept in read_table(tmp_path / "out", "data"):
        assert rewards(tmp_path / "x", asked[kept["prompt_id"]], [kept["text"], "No."]) == [1.0, 0.0]


REPAIRED: dict[str, Any] = {"teacher": WRONG, "validation": {"retries": 2, "retry": "repair"}}


def test_a_repaired_answers_request_is_the_students_own(tmp_path: Path, make_job: MakeJob) -> None:
    write_task(tmp_path, student_j2="{{ scenario.a }} plus {{ scenario.b }}?")
    write_task(tmp_path, "second")
    tasks = [{"name": "adding", "count": 12}, {"name": "second", "count": 12}]
    root = make_dataset(tmp_path, make_job, **{**REPAIRED, "tasks": tasks})
    rows = [row for name in ("data", "rejected") for row in read_table(root, name)]
    assert {row["task"] for row in rows if row["repaired"]} == {"adding", "second"}
    export_to(root, tmp_path / "x", "verl-rl")
    for row in read_export(tmp_path / "x"):
        roles = [turn["role"] for turn in row["prompt"]]
        assert roles == (["user"] if row["data_source"] == "adding" else ["system", "user"])


@pytest.mark.parametrize("sections", [{}, PAIRS | {"teacher": WRONG}])
def test_a_student_is_trained_on_its_own_prompt(sections: dict[str, Any], tmp_path: Path, make_job: MakeJob) -> None:
    """The teacher was told the answer, or shown an example; a student that is told it too learns to copy."""
    hint = "Add {{ scenario.a }} and {{ scenario.b }}. It is {{ scenario.a + scenario.b }}."
    write_task(tmp_path, user_j2=hint, user_short_j2=hint, student_j2="{{ scenario.a }} plus {{ scenario.b }}?")
    write_task(tmp_path, "second")
    tasks = [{"name": "adding", "count": 9}, {"name": "second", "count": 4}]
    root = make_dataset(tmp_path, make_job, **{**sections, "tasks": tasks})
    kept = {name: read_table(root, name) for name in ("data", "rejected", "preferences") if (root / name).exists()}
    ids = [(row["student_prompt_token_ids"], row["completion_token_ids"]) for row in kept["data"]]
    export_to(root, tmp_path / "ids", "trl-sft")
    assert [row["input_ids"] for row in read_export(tmp_path / "ids")] == [[*asked, *said] for asked, said in ids]
    export_to(root, tmp_path / "kd", "axolotl-kd")
    assert [row["input_ids"] for row in read_export(tmp_path / "kd")] == [[*asked, *said] for asked, said in ids]
    export_to(root, tmp_path / "messages", "messages")
    told = [row["messages"][:-1] for row in read_export(tmp_path / "messages")]
    assert told == [row["student_prompt"] for row in kept["data"]]
    export_to(root, tmp_path / "teacher", "messages", prompt="teacher")
    told = [row["messages"][:-1] for row in read_export(tmp_path / "teacher")]
    assert told == [row["prompt"] for row in kept["data"]]
    if sections:
        export_to(root, tmp_path / "dpo", "dpo")
        told = [row["prompt"] for row in read_export(tmp_path / "dpo")]
        assert told == [row["student_prompt"] for row in kept["preferences"]]
        for to in ("kto", "verl-rl"):
            export_to(root, tmp_path / to, to)
            assert not any("It is" in str(row["prompt"]) for row in read_export(tmp_path / to))


def test_whose_prompt_is_asked_where_there_is_but_one_is_refused(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    with pytest.raises(JobError, match=r"--prompt student: no task of .* has a student\.j2: all are asked alike"):
        export_to(root, workspace / "x", "messages", prompt="student")


def test_reasoning_of_several_teachers_is_exported_and_one_teachers_alone(workspace: Path, make_job: MakeJob) -> None:
    teachers = {"big": {"backend": "scripted"}, "small": {"backend": "scripted"}}
    tasks = [{"name": "adding", "count": 12, "teacher": {"big": 1, "small": 1}}]
    root = make_dataset(workspace, make_job, teacher=None, teachers=teachers, tasks=tasks)
    rows = read_table(root, "data")
    for teacher in (None, "small"):
        export_to(root, workspace / f"x{teacher}", "messages", teacher=teacher)
        told = [row["messages"][-1]["content"] for row in read_export(workspace / f"x{teacher}")]
        of_it = [row for row in rows if teacher in (None, row["teacher"])]
        assert told == [f"<think>{row['text'].removesuffix('<|end|>')}" for row in of_it]
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["teacher.small"]["details"]["reasoning_markers"] == ["<think>", "</think>"]
    source = open_source(root, None, "train", teacher="small")
    assert source.markers == ("<think>", "</think>")
