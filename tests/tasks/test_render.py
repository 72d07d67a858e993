"""Rendering: the same prompt for the same row, and templates that cannot reach anything but their scenario."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, write_task

from factory.errors import TaskError
from factory.job.job import Job
from factory.records import PlannedRow, Rejection, Sampling
from factory.runs.prepare import prepare
from factory.tasks.render import REASON_IN_WORDS, Renderer, TaskFault, check_templates, open_renderer, require_whole
from factory.tasks.tasks import Task, discover, load_task

ROW = PlannedRow(shard=3, position=5, task="adding", level="easy", number=7, seed=11)


def task_with(root: Path, **texts: str) -> Task:
    write_task(root, **texts)
    task, problems = load_task(root, "adding")
    assert task is not None, problems
    return task


def renderer_with(root: Path, **texts: str) -> Renderer:
    return open_renderer(task_with(root, **texts), Sampling(max_tokens=9))


def faults(root: Path, **texts: str) -> list[str]:
    """What `check_templates` says of a task with some files replaced, without the root of its paths."""
    return [problem.replace(f"{root}/", "") for problem in check_templates(task_with(root, **texts))]


def test_a_prompt_holds_its_row_and_its_two_turns(tmp_path: Path) -> None:
    renderer = renderer_with(tmp_path, user_short_j2="{{ scenario.a }} and {{ scenario.b }} at {{ level }}")
    prompt = renderer.render(ROW, {"a": 2, "b": 3})
    assert (prompt.shard, prompt.position, prompt.task, prompt.level) == (3, 5, "adding", "easy")
    assert (prompt.sampling, prompt.attempt, prompt.scenario) == (Sampling(max_tokens=9), 0, '{"a":2,"b":3}')
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert '"additionalProperties": false' in prompt.messages[0]["content"]
    assert prompt.messages[1]["content"] in {"Add 2 and 3.", "2 and 3 at easy"}


def test_the_same_row_gives_the_same_prompt_from_another_renderer(tmp_path: Path) -> None:
    one, two = (renderer_with(tmp_path, system_j2="Be brief.").render(ROW) for _ in range(2))
    assert one == two
    assert one.id == "67fa31f7694972dd5611b937"  # the same on every machine


def test_the_id_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    renderer = renderer_with(tmp_path)
    moved = renderer.render(replace(ROW, shard=0, position=0))
    assert moved.id == renderer.render(ROW).id
    others = [replace(ROW, number=8), replace(ROW, level="hard"), replace(ROW, seed=12)]
    assert len({renderer.render(row).id for row in [ROW, *others]}) == 4


def test_a_new_version_of_a_task_gives_new_ids(tmp_path: Path) -> None:
    task = task_with(tmp_path)
    ids = {open_renderer(replace(task, version=version), Sampling()).render(ROW).id for version in ("1", "2")}
    assert len(ids) == 2


def test_the_seed_draws_the_phrasing_and_all_are_drawn(tmp_path: Path) -> None:
    renderer = renderer_with(tmp_path, user_j2="long {{ scenario.a }}", user_short_j2="short {{ scenario.a }}")
    texts = [renderer.render(replace(ROW, seed=seed)).messages[-1]["content"] for seed in range(60)]
    assert 15 < len([text for text in texts if text.startswith("short ")]) < 45
    assert texts == [renderer.render(replace(ROW, seed=seed)).messages[-1]["content"] for seed in range(60)]


def test_a_task_without_a_system_turn_has_none(tmp_path: Path) -> None:
    task = task_with(tmp_path)
    bare = replace(task, templates={"user.j2": "hello"})
    assert open_renderer(bare, Sampling()).render(ROW).messages == ({"role": "user", "content": "hello"},)
    asked = open_renderer(bare, Sampling(), prompted_reasoning=True).render(ROW)
    assert asked.messages[0] == {"role": "system", "content": REASON_IN_WORDS}


def test_reasoning_in_words_is_asked_for_after_the_task_s_own_system_turn(tmp_path: Path) -> None:
    asked = open_renderer(task_with(tmp_path), Sampling(), prompted_reasoning=True).render(ROW)
    assert asked.messages[0]["content"].startswith("Answer with one JSON object")
    assert asked.messages[0]["content"].endswith(REASON_IN_WORDS)


def test_text_that_looks_like_a_template_or_a_turn_is_left_as_it_is(tmp_path: Path) -> None:
    schema = SCHEMA.replace("a: int", "a: str").replace("a=rng.randrange(most)", "a='x'")
    renderer = renderer_with(tmp_path, schema=schema, user_j2="{{ scenario.a }}", user_short_j2="{{ scenario.a }}")
    text = "{{ 1 + 1 }} {% raise %} <|im_end|></think> <b>&amp;"
    assert renderer.render(ROW, {"a": text}).messages[-1]["content"] == text


def test_a_whole_task_has_no_faults(workspace: Path) -> None:
    assert check_templates(discover(workspace, ["adding"]).tasks["adding"]) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("one\n{% if scenario.a %}\nthree", ":3: not valid Jinja: Unexpected end of template"),
        ("one\n{{ scenario.a + }}", ":2: not valid Jinja: unexpected 'end of print statement'"),
        ("one\n{{ scenario.a | shout }}", ":2: not valid Jinja: No filter named 'shout'."),
        (
            "{% if level == 'x' %}\n{{ 1 | shout }}{% endif %}",
            ":2: no filter named 'shout'; see Jinja's list of built-",
        ),
        ("{% block a %}{% endblock %}\n{% block a %}{% endblock %}", ":2: not valid Jinja: block 'a' defined twice"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", ": not valid Jinja: nested too deeply"),
        ("{{ scenari.a }}", ": unknown variable 'scenari' (has: scenario, level, answer_schema, style, few_shot)"),
        ("{{ [1, 2] | random }}", ":1: not valid Jinja: No filter named 'random'."),
        ("{{ lipsum() }}", ": unknown variable 'lipsum' (has: scenario, level, answer_schema, style, few_shot)"),
        ("\n{{ scenario.__class__ }}", ":2: '__class__' is out of a template's reach (no underscore names)"),
        ("{{ scenario._secret }}", ":1: '_secret' is out of a template's reach (no underscore names)"),
        ("{% if false %}{{ scenario.a.__init__ }}{% endif %}", ":1: '__init__' is out of a template's reach"),
        ("{{ scenario | attr('__class__') }}", ": SecurityError: access to attribute '__class__' of 'Scenario' object"),
        ("{{ scenario['__class__'] }}", ": SecurityError: access to attribute '__class__' of 'Scenario' object"),
        ("{{ '{0.__class__}'.format(scenario) }}", ": SecurityError: access to attribute '__class__'"),
        ("{{ scenario.model_fields_set.clear() }}", ": SecurityError: access to attribute 'clear' of 'set' object"),
        ("{% include '../../../etc/passwd' %}", ": cannot include '../../../etc/passwd': only files of its own folder"),
        (
            "{% include '../other/user.j2' %}",
            ": cannot include '../other/user.j2': only files of its own folder and of prompts/_shared/ (has:",
        ),
        ("{% extends '/etc/passwd' %}", ": cannot include '/etc/passwd': only files of its own folder"),
        ("{% include level %}", ": cannot include None: only files of its own folder"),
        ("{% include 'user.j2' %}", ": RecursionError: "),
        ("{{ scenario.c }}", ": UndefinedError: "),
        ("{{ 1 // 0 }}", ": ZeroDivisionError: "),
        ("{# nothing #}\n", ": renders to nothing at level easy"),
    ],
)
def test_a_template_that_cannot_work_is_named_before_any_run(tmp_path: Path, text: str, says: str) -> None:
    assert faults(tmp_path, user_j2=text)[0].startswith(f"prompts/adding/user.j2{says}")


def test_a_template_cannot_hold_up_a_run_with_a_huge_loop(tmp_path: Path) -> None:
    before = time.process_time()
    (fault,) = faults(tmp_path, user_j2="{% for i in range(10 ** 9) %}x{% endfor %}")
    assert "OverflowError: Range too big" in fault
    assert time.process_time() - before < 5


def test_a_template_may_include_a_file_of_its_own_folder(tmp_path: Path) -> None:
    task = task_with(tmp_path, user_j2="{% include 'facts.j2' %}", facts_j2="{{ scenario.a }}!")
    assert check_templates(task) == []
    assert task.phrasings == ["user.j2", "user_short.j2"]


def test_each_fault_of_all_templates_and_tasks_is_told_at_once(tmp_path: Path) -> None:
    said = faults(tmp_path, system_j2="{{ scenario._x }}", user_j2="{{ nope }}", user_short_j2="{% if %}")
    assert [line.split(":")[0] for line in said] == [f"prompts/adding/{f}.j2" for f in ("system", "user", "user_short")]
    write_task(tmp_path, "second", user_j2="{{ nope }}")
    with pytest.raises(TaskError) as caught:
        require_whole(discover(tmp_path).get(["adding", "second"]))
    assert len(str(caught.value).splitlines()) == 4


def test_a_fault_that_shows_at_one_level_only_is_found(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, user_j2="{% if level == 'hard' %}{{ scenario.c }}{% endif %}x")
    assert fault.startswith("prompts/adding/user.j2: UndefinedError: ")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return Scenario(a", "return dict(a", "sample(rng, 'easy') raised TypeError: returned dict, need a Scenario"),
        ("most = 10 if", "most = nope if", "sample(rng, 'easy') raised NameError: name 'nope' is not defined"),
        (
            "def sample(rng: random.Random, level: str)",
            "def sample()",
            "sample(rng, 'easy') raised TypeError: sample()",
        ),
        ("a: int\n", "a: int = Field(gt=99)\n", "sample(rng, 'easy') raised ValidationError: 1 validation error for"),
        (
            "a: int\n",
            "a: int = Field(exclude=True)\n",
            "a Scenario of level 'easy' cannot be read back from its JSON: a: ",
        ),
    ],
)
def test_a_sample_that_makes_no_scenario_is_named_on_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    said = faults(tmp_path, schema=SCHEMA.replace(old, new, 1))
    assert said[0].startswith(f"schemas/adding.py: {says}")
    assert "\n" not in said[0]


def render_fault(renderer: Renderer, row: PlannedRow = ROW, source: dict[str, Any] | None = None) -> tuple[str, str]:
    with pytest.raises(TaskFault) as caught:
        renderer.render(row, source)
    return caught.value.reason, str(caught.value)


def test_a_row_whose_template_fails_is_a_render_error(tmp_path: Path) -> None:
    rare = "{% if scenario.a == 99 %}{{ scenario.c }}{% endif %}x"
    renderer = renderer_with(tmp_path, user_j2=rare, user_short_j2=rare)
    assert check_templates(renderer.task) == []
    reason, detail = render_fault(renderer, source={"a": 99})
    assert reason == "render_failed"
    assert "UndefinedError" in detail


def test_an_underscore_attribute_that_shows_only_at_render_is_refused_there(tmp_path: Path) -> None:
    rare = "{% if scenario.a == 99 %}{{ scenario | attr('__cl' ~ 'ass__') }}{% endif %}x"
    renderer = renderer_with(tmp_path, user_j2=rare, user_short_j2=rare)
    assert check_templates(renderer.task) == []
    assert render_fault(renderer, source={"a": 99})[1].count("SecurityError") == 1


def test_a_sample_that_fails_at_some_rows_is_a_render_error_there(tmp_path: Path) -> None:
    renderer = renderer_with(tmp_path, schema=SCHEMA.replace("most = 10 if", "most = 1 // rng.randrange(2) if"))
    broken = next(seed for seed in range(99) if random.Random(seed).randrange(2) == 0)
    assert render_fault(renderer, replace(ROW, seed=broken)) == (
        "sample_raised",
        "ZeroDivisionError: integer division or modulo by zero (adding.py, line 18)",
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"a": "many"}, "a: Input should be a valid integer, unable to parse string as an integer, got 'many'"),
        ({"b": 1}, "a: missing; add it"),
        ({}, "a: missing; add it"),
    ],
)
def test_a_row_of_the_user_that_is_no_scenario_is_told_why(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    assert render_fault(renderer_with(tmp_path), source=fields) == ("scenario_invalid", says)


def test_a_validator_that_breaks_on_a_row_of_the_user_costs_that_row_only(tmp_path: Path) -> None:
    validator = "\n    @field_validator('a')\n    def _known(cls, value): return {1: 1}[value]\n"
    schema = SCHEMA.replace("import BaseModel", "import BaseModel, field_validator")
    renderer = renderer_with(tmp_path, schema=schema.replace("    b: int = 1\n", "    b: int = 1\n" + validator))
    assert renderer.render(ROW, {"a": 1}).scenario == '{"a":1,"b":1}'
    assert render_fault(renderer, source={"a": 2}) == ("scenario_invalid", "KeyError: 2 (adding.py, line 11)")


def test_a_scenario_that_is_no_unicode_costs_that_row_only(tmp_path: Path) -> None:
    schema = SCHEMA.replace("b: int = 1", "b: int = 1\n    note: str = ''")
    assert render_fault(renderer_with(tmp_path, schema=schema), source={"a": 1, "note": "\ud800"})[0] in {
        "scenario_invalid",
        "scenario_not_json",
    }


def test_a_row_that_cannot_be_rendered_becomes_an_error_row(workspace: Path, make_job: Callable[..., Job]) -> None:
    rare = "{% if scenario.a % 3 == 2 %}{{ scenario.c }}{% endif %}x"  # not so at seed 0, which is tried first
    write_task(workspace, user_j2=rare, user_short_j2=rare)
    task = discover(workspace, ["adding"]).tasks["adding"]
    assert task.sample is not None
    assert all(task.sample(random.Random(0), level).a % 3 != 2 for level in task.levels)
    prepared = prepare(make_job(), workspace)
    made = [prepared.render(row) for shard in range(prepared.plan.shards) for row in prepared.plan.rows(shard)]
    broken = [outcome for outcome in made if isinstance(outcome, Rejection)]
    assert 0 < len(broken) < len(made)
    assert {(outcome.stage, outcome.reason, outcome.kind) for outcome in broken} == {
        ("prompt", "render_failed", "error")
    }
    assert len({outcome.prompt.id for outcome in broken}) == len(broken)
