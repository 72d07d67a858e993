"""Looking at tasks without a teacher: the list, the preview, and a new task that works as it is written."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_task

from factory.errors import TaskError, pip_install
from factory.forecast.estimate import estimate
from factory.job.job import Job
from factory.records import PlannedRow, Sampling
from factory.runs.plan import make_plan
from factory.runs.run import run
from factory.tasks.catalog import list_tasks, preview, scaffold
from factory.tasks.render import TaskFault, open_renderer
from factory.tasks.tasks import builtin_root, discover

MakeJob = Callable[..., Job]


def test_the_list_shows_whole_and_broken_tasks(workspace: Path) -> None:
    write_task(workspace, "broken", schema="x = 1\n1 / 0\n")
    write_task(workspace, "faulty", user_j2="{{ nope }}")
    lines, problems = list_tasks(workspace)
    assert lines[lines.index("adding  1  levels: easy, hard  gate: check") + 1] == "    Add two numbers."
    assert f"    answer: total, words  ({workspace / 'schemas' / 'adding.py'})" in lines
    assert [line for line in lines if line.endswith("BROKEN")] == ["broken  BROKEN", "faulty  BROKEN"]
    assert [problem.split(": ", 1)[1] for problem in problems] == [
        "ZeroDivisionError: division by zero",
        "unknown variable 'nope' (has: scenario, level, answer_schema, style, few_shot)",
    ]
    assert all(f"    {problem}" in lines for problem in problems)


def test_the_built_in_tasks_are_in_the_list_and_whole(tmp_path: Path) -> None:
    lines, problems = list_tasks(tmp_path)
    assert problems == []
    folders = {path.name for path in (builtin_root() / "prompts").iterdir() if not path.name.startswith(("_", "."))}
    assert {line.split()[0] for line in lines if not line.startswith(" ")} == folders


def test_where_pillow_is_missing_a_task_that_needs_it_says_so_and_no_other_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)  # as Python itself marks what may not be imported
    lines, problems = list_tasks(tmp_path)
    assert problems == []
    assert [line for line in lines if "NOT INSTALLED" in line] == ["photo_edits_image  NOT INSTALLED"]
    told = f"pictures need Pillow: {pip_install('images')}"
    assert lines[lines.index("photo_edits_image  NOT INSTALLED") + 1].endswith(told)
    with pytest.raises(TaskError, match=r"_photo_edits_image_pictures.py:.* pictures need Pillow: pip install"):
        next(preview(tmp_path, "photo_edits_image", "easy", 0, 1))
    assert next(preview(tmp_path, "questions", "easy", 0, 1)).messages


def test_a_preview_takes_each_level_in_turn(workspace: Path) -> None:
    prompts = list(preview(workspace, "adding", None, seed=0, count=5))
    assert [prompt.level for prompt in prompts] == ["easy", "hard", "easy", "hard", "easy"]
    assert len({prompt.id for prompt in prompts}) == 5
    assert prompts == list(preview(workspace, "adding", None, seed=0, count=5))
    assert prompts != list(preview(workspace, "adding", None, seed=1, count=5))


def test_a_preview_of_one_level_is_what_a_job_of_that_level_makes(workspace: Path, make_job: MakeJob) -> None:
    tasks = discover(workspace).tasks
    job = make_job(seed=3, tasks=[{"name": "adding", "count": 4, "levels": {"hard": 1}}])
    renderer = open_renderer(tasks["adding"], Sampling())
    made = {row.number: renderer.render(row).id for row in make_plan(job, tasks).rows(0)}
    seen = [prompt.id for prompt in preview(workspace, "adding", "hard", seed=3, count=4)]
    assert seen == [made[number] for number in range(4)]


@pytest.mark.parametrize(
    ("name", "level", "says"),
    [
        ("nothing", None, r"^task 'nothing': not found in .*; `factory new nothing` starts one$"),
        ("adding", "wild", r"^task 'adding': unknown level 'wild' \(has: easy, hard\)$"),
        ("broken", None, r"broken\.py:1: ZeroDivisionError"),
        ("faulty", None, r"faulty/user\.j2: unknown variable 'nope'"),
        ("fed", None, r"^task 'fed': has no sample\(\), .*: factory preview --job JOB.toml$"),
    ],
)
def test_what_cannot_be_previewed_is_told(workspace: Path, name: str, level: str | None, says: str) -> None:
    write_task(workspace, "broken", schema="1 / 0")
    write_task(workspace, "faulty", user_j2="{{ nope }}")
    schema = (workspace / "schemas" / "adding.py").read_text().replace("def sample", "def unused")
    write_task(workspace, "fed", schema=schema)
    with pytest.raises(TaskError, match=says):
        list(preview(workspace, name, level, seed=0, count=1))


def test_a_new_task_has_all_its_files_and_its_own_name(tmp_path: Path) -> None:
    written = scaffold(tmp_path, "gifts")
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        "prompts/gifts/golden.jsonl",
        "prompts/gifts/judge.j2",
        "prompts/gifts/system.j2",
        "prompts/gifts/task.toml",
        "prompts/gifts/user.j2",
        "prompts/gifts/user_short.j2",
        "schemas/gifts.py",
    ]
    assert not [path for path in written if "_template" in path.read_text(encoding="utf-8")]
    task = discover(tmp_path).get(["gifts"])[0]
    assert task.folder == tmp_path / "prompts" / "gifts"
    assert task.warnings == ()


def test_a_new_task_is_whole_in_the_list_and_in_the_preview(tmp_path: Path) -> None:
    scaffold(tmp_path, "gifts")
    lines, problems = list_tasks(tmp_path)
    assert problems == []
    assert any(line.startswith("gifts  0.1.0  levels: easy, medium, hard") for line in lines)
    prompts = list(preview(tmp_path, "gifts", None, seed=0, count=12))
    assert all("budget" in prompt.messages[0]["content"] for prompt in prompts)
    assert len({prompt.messages[1]["content"].split()[0] == "I" for prompt in prompts}) == 2
    assert not [prompt for prompt in prompts if "{" in prompt.messages[1]["content"]]


def test_a_new_task_runs_and_all_its_rows_are_accepted(tmp_path: Path, make_job: MakeJob) -> None:
    scaffold(tmp_path, "gifts")
    totals = run(make_job(tasks=[{"name": "gifts", "count": 6}]), tmp_path, tmp_path / "out")
    assert (totals.planned, totals.accepted, totals.rejected, totals.errors) == (6, 6, 0, 0)


def test_a_new_task_says_of_a_row_of_the_user_why_it_does_not_fit(tmp_path: Path) -> None:
    scaffold(tmp_path, "gifts")
    renderer = open_renderer(discover(tmp_path, ["gifts"]).tasks["gifts"], Sampling())
    offer = {"name": "Ember", "price": 60, "stars": 4.9}
    row = PlannedRow(0, 0, "gifts", "easy", 0, 0)
    fields = {"product": "stove", "items": [offer], "budget": 60}
    assert "Ember" in renderer.render(row, fields).messages[1]["content"]
    with pytest.raises(TaskFault, match=r"^Scenario: no item fits the budget: raise `budget` or lower a price$"):
        renderer.render(row, fields | {"budget": 59})


@pytest.mark.parametrize("name", ["Gifts", "1st", "my-task", "a b", "", "_x", "../x", "x/y", "gifts\n", "täsk"])
def test_a_name_that_is_no_name_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaskError, match="use lower-case letters, digits and underscores, a letter first"):
        scaffold(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", ["prompts/gifts/user.j2", "schemas/gifts.py"])
def test_what_is_there_already_is_never_written_over(tmp_path: Path, taken: str) -> None:
    path = tmp_path / taken
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(TaskError, match="is there already; choose another name or remove it"):
        scaffold(tmp_path, "gifts")
    assert path.read_text() == "mine"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_new_task_takes_the_name_of_a_built_in_one_where_it_is_meant_and_is_told(
    tmp_path: Path, make_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TaskError, match=r"'scheduling': is a built-in task's, .* say that you mean it with --replace"):
        scaffold(tmp_path, "scheduling")
    assert list(tmp_path.iterdir()) == []
    scaffold(tmp_path, "scheduling", replace=True)
    scaffold(tmp_path, "gifts")
    assert discover(tmp_path, ["scheduling"]).tasks["scheduling"].folder == tmp_path / "prompts" / "scheduling"
    (told,) = (line for line in list_tasks(tmp_path)[0] if line.endswith("  replaces the built-in one"))
    assert told.startswith("scheduling  0.1.0  levels: easy, medium, hard")
    job = make_job(tasks=[{"name": "gifts", "count": 3}, {"name": "scheduling", "count": 3}])
    told = "scheduling is yours, which replaces the built-in one"
    assert [line for line in estimate(job, tmp_path, tmp_path / "out") if "replaces" in line] == [f"    {told}"]
    run(job, tmp_path, tmp_path / "out")
    errors = capsys.readouterr().err
    assert errors.count("replaces the built-in one") == 1
    assert "task scheduling: yours, which replaces the built-in one" in errors


def test_a_broken_task_that_hides_a_built_in_one_is_marked_too(tmp_path: Path) -> None:
    scaffold(tmp_path, "scheduling", replace=True)
    (tmp_path / "prompts" / "scheduling" / "user.j2").unlink()
    assert "scheduling  BROKEN  replaces the built-in one" in list_tasks(tmp_path)[0]
