"""Task discovery: whole tasks are found where they lie, broken ones stay in sight with every reason and its line."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, TASK_FILE, write_task

from factory.errors import TaskError
from factory.job.gates import StyleConfig
from factory.records import PlannedRow, Sampling
from factory.tasks.catalog import list_tasks, scaffold
from factory.tasks.render import open_renderer
from factory.tasks.replies import Reply
from factory.tasks.tasks import Task, builtin_root, discover, load_task
from factory.tasks.turns import spell


def problems(root: Path, name: str = "adding", **texts: str) -> list[str]:
    """What is said of a task with some of its files replaced, each problem without the root of its path."""
    write_task(root, name, **texts)
    task, said = load_task(root, name)
    assert task is None
    return [problem.removeprefix(f"{root}/") for problem in said]


def test_a_folder_and_a_file_are_a_task(workspace: Path) -> None:
    task = discover(workspace, ["adding"]).tasks["adding"]
    assert (task.version, task.levels, task.gate) == ("1", ("easy", "hard"), "check")
    assert task.phrasings == ["user.j2", "user_short.j2"]
    assert task.sampling == Sampling(max_tokens=120, thinking_tokens=24)
    assert sorted(task.digests) == [
        "prompts/adding/system.j2",
        "prompts/adding/user.j2",
        "prompts/adding/user_short.j2",
        "schemas/adding.py",
    ]
    assert task.warnings == ()


def test_a_digest_changes_with_its_file_and_no_other(workspace: Path) -> None:
    before = discover(workspace, ["adding"]).tasks["adding"].digests
    (workspace / "prompts/adding/user.j2").write_text("{{ scenario.a }} and {{ scenario.b }}?")
    after = discover(workspace, ["adding"]).tasks["adding"].digests
    assert {path for path in before if before[path] != after[path]} == {"prompts/adding/user.j2"}


def test_built_in_tasks_are_found_from_an_empty_folder(tmp_path: Path) -> None:
    found = discover(tmp_path)
    folders = {path.name for path in (builtin_root() / "prompts").iterdir() if path.is_dir()}
    assert {*found.tasks, *found.problems} == {name for name in folders if not name.startswith(("_", "."))}
    assert "scheduling" in found.tasks


def test_a_task_of_the_workspace_shadows_the_built_in_of_its_name(tmp_path: Path) -> None:
    write_task(tmp_path, "scheduling")
    assert discover(tmp_path, ["scheduling"]).tasks["scheduling"].folder == tmp_path / "prompts" / "scheduling"


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
    assert [problem.removeprefix(f"{tmp_path}/") for problem in discover(tmp_path, ["hollow"]).problems["hollow"]] == [
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
            "nmae: unknown key (known here: description, gate, levels, name, sampling, style, version)",
        ),
        (TASK_FILE.replace("120", "0"), "sampling.max_tokens: Input should be greater than or equal to 1, got 0"),
    ],
)
def test_a_bad_task_file_is_named_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    (problem,) = problems(tmp_path, task_toml=text)
    assert problem.startswith(f"prompts/adding/task.toml: {says}")


def test_a_folder_in_place_of_a_file_is_told(workspace: Path) -> None:
    (workspace / "prompts/adding/extra.j2").mkdir()
    (problem,) = discover(workspace, ["adding"]).problems["adding"]
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
        (
            SCHEMA + "\nAnswer = dict",
            "Answer must be a pydantic BaseModel, str for a free text, or Reply beside TOOLS, got",
        ),
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
    assert "(known: adding, " in lines[2]
    assert " first, " in lines[2]


def test_a_broken_neighbour_does_not_keep_a_whole_task_from_use(workspace: Path) -> None:
    write_task(workspace, "broken", schema="1 / 0")
    assert [task.name for task in discover(workspace, ["adding"]).get(["adding"])] == ["adding"]


def test_every_object_of_an_answer_is_closed_against_extra_keys(tmp_path: Path) -> None:
    nested = "\nclass Inner(BaseModel):\n    properties: int\nclass Answer(BaseModel):\n    inner: Inner\n"
    write_task(tmp_path, schema=SCHEMA + nested)
    schema = discover(tmp_path, ["adding"]).tasks["adding"].answer_schema
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Inner"]["additionalProperties"] is False
    assert list(schema["$defs"]["Inner"]["properties"]) == ["properties"]


def test_an_object_that_is_open_on_purpose_stays_open(tmp_path: Path) -> None:
    write_task(tmp_path, schema=SCHEMA.replace('"forbid"', '"allow"'))
    assert discover(tmp_path, ["adding"]).tasks["adding"].answer_schema["additionalProperties"] is True


def test_strings_and_lists_without_a_bound_are_warned_of(tmp_path: Path) -> None:
    loose = "\nclass Answer(Answer):\n    word: str\n    many: list[int]\n    day: str = Field(pattern='^a$')\n"
    write_task(tmp_path, schema=SCHEMA + loose)
    warnings = discover(tmp_path, ["adding"]).tasks["adding"].warnings
    assert [warning.split(": ", 1)[1] for warning in warnings] == [
        "Answer.word: string without max_length; bound it, or a weak teacher may never end it",
        "Answer.many: list without max_length; bound it, or a weak teacher may never end it",
        "Answer.many.*: number without ge and le; bound it, or a weak teacher may never end it",
    ]


RUBRIC = "Score {{ answer }} from 1 to 5; {{ style.tone }}."
STYLED = TASK_FILE + '\n[style]\ntone = "short"\nfields = ["words"]\nmax_words = 3\n'


def test_a_rubric_is_the_judge_s_text_and_neither_a_phrasing_nor_a_template_of_the_prompt(tmp_path: Path) -> None:
    write_task(tmp_path, judge_j2=RUBRIC)
    task = discover(tmp_path, ["adding"]).tasks["adding"]
    assert task.judge == RUBRIC
    assert task.phrasings == ["user.j2", "user_short.j2"]
    assert sorted(task.templates) == ["system.j2", "user.j2", "user_short.j2"]
    assert "prompts/adding/judge.j2" in task.digests


def test_a_rubric_leaves_the_prompts_as_they_are(tmp_path: Path) -> None:
    write_task(tmp_path)
    row = PlannedRow(0, 0, "adding", "hard", 3, seed=5)
    bare = open_renderer(discover(tmp_path, ["adding"]).tasks["adding"], Sampling()).render(row)
    write_task(tmp_path, judge_j2=RUBRIC, task_toml=STYLED)
    assert open_renderer(discover(tmp_path, ["adding"]).tasks["adding"], Sampling()).render(row) == bare


def test_a_task_without_a_rubric_has_no_judge_and_an_empty_style(workspace: Path) -> None:
    task = discover(workspace, ["adding"]).tasks["adding"]
    assert task.judge is None
    assert task.style == StyleConfig()


def test_the_list_of_tasks_tells_which_have_a_judge(tmp_path: Path) -> None:
    write_task(tmp_path)
    write_task(tmp_path, "judged", judge_j2=RUBRIC)
    lines, problems = list_tasks(tmp_path)
    assert problems == []
    assert "judged  1  levels: easy, hard  gate: check  judge: yes" in lines
    assert "adding  1  levels: easy, hard  gate: check" in lines


def test_a_rubric_that_cannot_be_read_breaks_its_task(workspace: Path) -> None:
    (workspace / "prompts/adding/judge.j2").write_bytes(b"\xff\xfe")
    (problem,) = discover(workspace, ["adding"]).problems["adding"]
    assert "prompts/adding/judge.j2: cannot be read: " in problem


def test_a_rubric_alone_is_no_user_turn(workspace: Path) -> None:
    (workspace / "prompts/adding/user.j2").rename(workspace / "prompts/adding/judge.j2")
    (problem,) = discover(workspace, ["adding"]).problems["adding"]
    assert problem.endswith("prompts/adding/user.j2: missing; it is the user's turn")


def test_a_style_is_read_from_the_task_file(tmp_path: Path) -> None:
    write_task(tmp_path, task_toml=STYLED)
    assert discover(tmp_path, ["adding"]).tasks["adding"].style == StyleConfig(
        tone="short", fields=["words"], max_words=3
    )


NESTED = (
    SCHEMA
    + """
class Inner(BaseModel):
    texts: list[str]
    other: dict[str, str] = {}
class Answer(BaseModel):
    inner: list[Inner] | None
    pair: tuple[Inner, int]
    total: int
"""
)


@pytest.mark.parametrize("field", ["inner", "inner.*.texts", "inner.*.texts.*", "pair.*.texts.*", "inner.*.other.any"])
def test_a_style_may_name_any_key_that_an_answer_can_have(tmp_path: Path, field: str) -> None:
    write_task(tmp_path, schema=NESTED, task_toml=STYLED.replace('"words"', f'"{field}"'))
    assert discover(tmp_path, ["adding"]).tasks["adding"].style.fields == [field]


@pytest.mark.parametrize("field", ["words", "*", "inner.texts", "inner.*.text", "total.*", "pair.*.texts.*.x", "0"])
def test_a_style_that_names_a_key_no_answer_has_is_told(tmp_path: Path, field: str) -> None:
    (problem,) = problems(tmp_path, schema=NESTED, task_toml=STYLED.replace('"words"', f'"{field}"'))
    told = f"style.fields: no answer has '{field}' (keys: inner, pair, total; `*` for each item of a list)"
    assert problem == f"prompts/adding/task.toml: {told}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (STYLED.replace("tone", "tune"), "style.tune: unknown key (known here: emoji, fields, markdown, max_words,"),
        (STYLED.replace('"words"', '"a b"'), "style.fields.0: String should match pattern"),
        (STYLED + "min_words = 4\n", "style.max_words 3: less than style.min_words 4; raise it"),
    ],
)
def test_a_bad_style_is_named_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    (problem,) = problems(tmp_path, task_toml=text)
    assert problem.startswith(f"prompts/adding/task.toml: {says}")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """The built-in tasks, and a new one as `factory new` writes it."""
    workspace = tmp_path_factory.mktemp("new")
    scaffold(workspace, "fresh")
    return discover(workspace).tasks


SHIPPED = [
    *sorted(path.name for path in (builtin_root() / "prompts").iterdir() if not path.name.startswith(("_", "."))),
    "fresh",
]


def texts_at(value: Any, keys: list[str]) -> Iterator[str]:
    """The texts under a dotted path of an answer."""
    if not keys:
        if isinstance(value, str):
            yield value
    elif keys[0] == "*":
        for item in value:
            yield from texts_at(item, keys[1:])
    else:
        yield from texts_at(value[keys[0]], keys[1:])


@pytest.mark.parametrize("name", SHIPPED)
def test_the_reference_answers_keep_the_style_of_their_task(shipped: dict[str, Task], name: str) -> None:
    task = shipped[name]
    style = task.style
    assert style.tone
    assert style.fields or task.form == "text"
    texts = []
    for level in task.levels:
        for seed in range(60):
            assert task.sample is not None
            assert task.solve is not None
            solved = task.solve(task.sample(random.Random(seed), level))[1]
            if isinstance(solved, str):
                texts.append(solved)
                continue
            answer = {"content": solved.text} if isinstance(solved, Reply) else solved.model_dump(mode="json")
            texts += [text for field in style.fields for text in texts_at(answer, field.split(".")) if text]
    words = [len(text.split()) for text in texts]
    assert words
    assert min(words) >= style.min_words
    assert max(words) <= (style.max_words or 10**9)
    assert not [text for text in texts if re.search(r"[*`#]|\]\(|[\U0001F000-\U0001FAFF]", text)]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_rubric_shows_the_judge_all_it_needs_and_asks_for_a_verdict(shipped: dict[str, Task], name: str) -> None:
    task = shipped[name]
    assert task.judge is not None
    judged = open_renderer(replace(task, templates={"judge.j2": task.judge}), Sampling()).environment
    for level in task.levels:
        row = PlannedRow(0, 0, name, level, 0, seed=9)
        prompt = open_renderer(task, Sampling()).render(row)
        scenario = task.Scenario.model_validate_json(prompt.scenario)
        asked = spell(prompt.turns)
        text = judged.get_template("judge.j2").render(
            scenario=scenario,
            level=level,
            prompt=asked,
            answer='{"the": "answer"}',
            reasoning="",
            style=task.style,
        )
        assert asked in text
        assert '{"the": "answer"}' in text
        assert "Reasoning <<<\nnone\n>>>" in text
        assert task.style.tone in text
        assert re.findall(r"^([1-5]): \S", text, re.M) == ["5", "4", "3", "2", "1"]
        assert text.strip().splitlines()[-1].count('"reasoning"') == text.strip().splitlines()[-1].count('"score"') == 1
        assert len(text) - len(asked) < 2000


def test_of_tasks_that_are_not_asked_for_nothing_is_run_and_their_names_are_known(workspace: Path) -> None:
    other = workspace / "prompts" / "touching"
    other.mkdir()
    (other / "task.toml").write_text("nonsense")
    ran = workspace / "ran"
    (workspace / "schemas" / "touching.py").write_text(f"open({str(ran)!r}, 'w')\n")
    found = discover(workspace, ["adding"])
    assert list(found.tasks) == ["adding"]
    assert not found.problems
    assert "touching" in found.others
    assert not ran.exists()
    with pytest.raises(TaskError, match=r"task 'toching': not found .*known: adding, .*did you mean 'touching'"):
        found.get(["toching"])
    discover(workspace)
    assert ran.exists()
