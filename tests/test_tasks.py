"""Task discovery: whole tasks are found where they lie, broken ones stay in sight with every reason and its line."""

from pathlib import Path

import pytest
from conftest import SCHEMA, TASK_FILE, write_task

from factory.errors import TaskError
from factory.records import Sampling
from factory.tasks import builtin_root, discover, load_task


def problems(root: Path, name: str = "adding", **texts: str) -> list[str]:
    """What is said of a task with some of its files replaced, each problem without the root of its path."""
    write_task(root, name, **texts)
    task, said = load_task(root, name)
    assert task is None
    return [problem.removeprefix(f"{root}/") for problem in said]


def test_a_folder_and_a_file_are_a_task(workspace: Path) -> None:
    task = discover(workspace).tasks["adding"]
    assert (task.version, task.levels, task.gate) == ("1", ("easy", "hard"), "check")
    assert task.phrasings == ["user.j2", "user_short.j2"]
    assert task.sampling == Sampling(max_tokens=120, thinking_tokens=24)
    assert sorted(task.digests) == [
        "prompts/adding/system.j2",
        "prompts/adding/task.toml",
        "prompts/adding/user.j2",
        "prompts/adding/user_short.j2",
        "schemas/adding.py",
    ]
    assert task.warnings == ()


def test_a_digest_changes_with_its_file_and_no_other(workspace: Path) -> None:
    before = discover(workspace).tasks["adding"].digests
    (workspace / "prompts/adding/user.j2").write_text("{{ scenario.a }} and {{ scenario.b }}?")
    after = discover(workspace).tasks["adding"].digests
    assert {path for path in before if before[path] != after[path]} == {"prompts/adding/user.j2"}


def test_built_in_tasks_are_found_from_an_empty_folder(tmp_path: Path) -> None:
    found = discover(tmp_path)
    folders = {path.name for path in (builtin_root() / "prompts").iterdir() if path.is_dir()}
    assert {*found.tasks, *found.problems} == {name for name in folders if not name.startswith(("_", "."))}
    assert "scheduling" in found.tasks


def test_a_task_of_the_workspace_shadows_the_built_in_of_its_name(tmp_path: Path) -> None:
    write_task(tmp_path, "scheduling")
    assert discover(tmp_path).tasks["scheduling"].folder == tmp_path / "prompts" / "scheduling"


def test_a_broken_task_of_the_workspace_does_not_fall_back_to_the_built_in(tmp_path: Path) -> None:
    write_task(tmp_path, "scheduling", schema="x = 1 +")
    found = discover(tmp_path)
    assert "scheduling" not in found.tasks
    assert len(found.problems["scheduling"]) == 1


def test_folders_that_begin_with_a_dot_or_an_underscore_are_no_tasks(workspace: Path) -> None:
    for name in ("_draft", ".hidden"):
        (workspace / "prompts" / name).mkdir()
    found = discover(workspace)
    assert not {"_draft", ".hidden"} & {*found.tasks, *found.problems}


def test_an_empty_folder_is_a_broken_task_with_all_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "prompts" / "hollow").mkdir(parents=True)
    assert [problem.removeprefix(f"{tmp_path}/") for problem in discover(tmp_path).problems["hollow"]] == [
        "prompts/hollow/task.toml: missing; a task needs one with name, version, description and levels",
        "prompts/hollow/user.j2: missing; it is the user's turn",
        "schemas/hollow.py: missing; it must define Scenario, Answer, check and sample",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "not valid TOML: "),
        ("a = " + "[" * 5000 + "]" * 5000, "not valid TOML: nested too deeply"),
        ("", "name: missing; add it; version: missing; add it; description: missing; add it; levels: missing; add it"),
        (TASK_FILE.replace('"adding"', '"other"'), "name is 'other' but the folder is 'adding'; make them the same"),
        (TASK_FILE.replace('["easy", "hard"]', "[]"), "levels: List should have at least 1 item"),
        (TASK_FILE.replace('"easy"', '"Easy!"'), "levels.0: String should match pattern"),
        (
            "nmae = 1\n" + TASK_FILE,
            "nmae: unknown key (known here: description, gate, levels, name, sampling, version)",
        ),
        (TASK_FILE.replace("120", "0"), "sampling.max_tokens: Input should be greater than or equal to 1, got 0"),
    ],
)
def test_a_bad_task_file_is_named_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    (problem,) = problems(tmp_path, task_toml=text)
    assert problem.startswith(f"prompts/adding/task.toml: {says}")


def test_a_folder_in_place_of_a_file_is_told(workspace: Path) -> None:
    (workspace / "prompts/adding/extra.j2").mkdir()
    (problem,) = discover(workspace).problems["adding"]
    assert "extra.j2: cannot be read" in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\ny = 1 / 0\n", "schemas/adding.py:2: ZeroDivisionError: division by zero"),
        ("def f():\n    raise KeyError('k')\n\nf()\n", "schemas/adding.py:2: KeyError: 'k'"),
        ("x = 1\nif x\n    pass\n", "schemas/adding.py:2: SyntaxError: expected ':'"),
        ("\nimport no_such_module_at_all\n", "schemas/adding.py:2: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit(3)\n", "schemas/adding.py:2: SystemExit: 3"),
        ("x = 1\0", "schemas/adding.py: SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_schema_that_raises_on_import_is_named_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    (problem,) = problems(tmp_path, schema=text)
    assert problem.startswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Scenario is missing (needs Scenario, Answer, check; has none of them); define it"),
        (
            SCHEMA + "\ndel Answer",
            "Answer is missing (needs Scenario, Answer, check; has Scenario, check, sample, solve); define it",
        ),
        (SCHEMA + "\nAnswer = None", "Answer is missing (needs Scenario, Answer, check; has Scenario, check, sample,"),
        (SCHEMA + "\nAnswer = dict", "Answer must be a pydantic BaseModel, got <class 'dict'>"),
        (SCHEMA + "\nScenario = Scenario(a=1)", "Scenario must be a pydantic BaseModel, got Scenario(a=1, b=1)"),
        (SCHEMA + "\ncheck = 3", "check must be a function, got 3"),
        (SCHEMA + "\nsample = 'x'", "sample must be a function, got 'x'"),
        (SCHEMA + "\nclass Answer(BaseModel):\n    f: type\n", "Answer has no JSON schema: Cannot generate"),
        (SCHEMA + "\nclass Answer(BaseModel):\n    f: 'Nope'\n", "Answer has no JSON schema: `Answer` is not fully"),
    ],
)
def test_a_schema_that_breaks_the_contract_is_told_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    assert problems(tmp_path, schema=text)[0].startswith(f"schemas/adding.py: {says}")


def test_every_problem_of_a_task_is_told_at_once(tmp_path: Path) -> None:
    said = problems(tmp_path, task_toml="name = ", schema=SCHEMA + "\ncheck = 3\nAnswer = dict")
    assert [problem.split(": ")[0] for problem in said] == ["prompts/adding/task.toml", *["schemas/adding.py"] * 2]


def test_all_broken_and_unknown_tasks_are_reported_in_one_error(workspace: Path) -> None:
    write_task(workspace, "first", task_toml="name = ")
    write_task(workspace, "second", schema="1 / 0")
    with pytest.raises(TaskError) as caught:
        discover(workspace).get(["adding", "first", "second", "third"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "first/task.toml: not valid TOML" in lines[0]
    assert "second.py:1: ZeroDivisionError" in lines[1]
    assert lines[2].startswith(f"task 'third': not found in {workspace}/prompts")
    assert lines[2].endswith("`factory new third` starts one")
    assert "adding, first" in lines[2]


def test_a_broken_neighbour_does_not_keep_a_whole_task_from_use(workspace: Path) -> None:
    write_task(workspace, "broken", schema="1 / 0")
    assert [task.name for task in discover(workspace).get(["adding"])] == ["adding"]


def test_every_object_of_an_answer_is_closed_against_extra_keys(tmp_path: Path) -> None:
    nested = "\nclass Inner(BaseModel):\n    properties: int\nclass Answer(BaseModel):\n    inner: Inner\n"
    write_task(tmp_path, schema=SCHEMA + nested)
    schema = discover(tmp_path).tasks["adding"].answer_schema
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Inner"]["additionalProperties"] is False
    assert list(schema["$defs"]["Inner"]["properties"]) == ["properties"]


def test_an_object_that_is_open_on_purpose_stays_open(tmp_path: Path) -> None:
    write_task(tmp_path, schema=SCHEMA.replace('"forbid"', '"allow"'))
    assert discover(tmp_path).tasks["adding"].answer_schema["additionalProperties"] is True


def test_strings_and_lists_without_a_bound_are_warned_of(tmp_path: Path) -> None:
    loose = "\nclass Answer(BaseModel):\n    word: str\n    many: list[int]\n    day: str = Field(pattern='^a$')\n"
    write_task(tmp_path, schema=SCHEMA + loose)
    warnings = discover(tmp_path).tasks["adding"].warnings
    assert [warning.split(": ", 1)[1] for warning in warnings] == [
        "Word: string without max_length; bound it, or a weak teacher may never end it",
        "Many: list without max_length; bound it, or a weak teacher may never end it",
    ]
