"""Few-shot examples: which golden lines a row is shown, and what they belong to."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task

from factory.checks.verify import verify
from factory.errors import DatasetError
from factory.job.job import Job
from factory.quality.trial import try_task
from factory.records import PlannedRow, Sampling
from factory.runs.run import run
from factory.tasks.calls import call_sample, call_solve, dump_scenario
from factory.tasks.catalog import preview
from factory.tasks.few_shot import choose_examples, make_examples
from factory.tasks.golden_lines import read_lines
from factory.tasks.render import check_templates, open_renderer
from factory.tasks.tasks import Task, load_task

SHOWS = """Answer with JSON.
{% for one in few_shot(2) %}
[{{ one.level }}] {{ one.request }} => {{ one.reasoning }} => {{ one.answer }} ({{ one.scenario.a }})
{% endfor %}"""
MakeJob = Callable[..., Job]


def golden(task: Task, level: str, seed: int, **changed: Any) -> str:
    """A line that ends as it says: the reference solution of a scenario, accepted."""
    reasoning, answer = call_solve(task, call_sample(task, seed, level))
    line = {"case": f"{level} {seed}", "level": level, "seed": seed, "text": f"{reasoning}\n</think>\n{answer}"}
    return json.dumps(line | {"outcome": "accepted"} | changed) + "\n"


def load(workspace: Path) -> Task:
    task, problems = load_task(workspace, "adding")
    assert task is not None, problems
    return task


@pytest.fixture
def shown(workspace: Path) -> Path:
    """`adding` with six golden lines: of five scenarios that are accepted, two of them hard, and a wrong one."""
    task = load(workspace)
    lines = [golden(task, "easy", seed) for seed in (1, 2, 3)]
    lines += [golden(task, "hard", seed) for seed in (1, 2)]
    wrong = {"text": "</think>{}", "outcome": "rejected", "stage": "schema", "reason": "missing"}
    lines += [golden(task, "easy", 4, **wrong), golden(task, "easy", 1, case="the first again")]
    write_task(workspace, system_j2=SHOWS)
    (workspace / "prompts/adding/golden.jsonl").write_text("".join(lines), encoding="utf-8")
    return workspace


def system_turn(task: Task, level: str, seed: int) -> str:
    return open_renderer(task, Sampling()).render(PlannedRow(0, 0, "adding", level, 0, seed)).messages[0]["content"]


def test_examples_are_accepted_lines_of_the_rows_level_first(shown: Path) -> None:
    task = load(shown)
    assert try_task(task) == []
    hard = system_turn(task, "hard", 99)
    assert [line[:6] for line in hard.splitlines()[1:]] == ["[hard]", "[hard]"]
    scenario = call_sample(task, 1, "hard")
    a, b = scenario.a, scenario.b  # type: ignore[attr-defined]
    told = f'[hard] Add {a} and {b}. => {a} and {b} make {a + b}. => {{"total":{a + b},"words":"done"}} ({a})'
    assert told in hard.splitlines()
    easy = {system_turn(task, "easy", seed) for seed in range(40)}
    assert len(easy) == 6  # ordered pairs of three
    assert not any("[hard]" in text for text in easy)
    assert system_turn(task, "easy", 7) == system_turn(load(shown), "easy", 7)


def test_a_row_is_never_shown_its_own_scenario(shown: Path) -> None:
    task = load(shown)
    examples = make_examples(task, lambda scenario, level: "")
    assert len(examples) == 5  # one a scenario
    own = dump_scenario(task, call_sample(task, 1, "hard"))
    for seed in range(30):
        chosen = choose_examples(examples, 4, "hard", own, seed)
        assert own not in [dump_scenario(task, example.scenario) for example in chosen]
        assert [example.level for example in chosen] == ["hard", "easy", "easy", "easy"]


@pytest.mark.parametrize("count", ["5", "0", "-1", "1.5", "'2'", "true"])
def test_too_many_or_no_number_is_told_with_the_template(count: str, shown: Path) -> None:
    write_task(shown, system_j2=f"{{% for example in few_shot({count}) %}}{{% endfor %}}")
    (problem, *others) = check_templates(load(shown))
    assert others == []
    told = "golden.jsonl has 5 accepted lines" if count == "5" else "say how many examples"
    assert problem.startswith(f"{shown / 'prompts/adding'}/system.j2: few_shot({count.replace('true', 'True')})")
    assert told in problem


def test_a_user_turn_that_shows_examples_shows_them_without_their_own(shown: Path) -> None:
    asks = "{% for one in few_shot(1) %}Q: {{ one.request }} A: {{ one.answer }}\n{% endfor %}Add {{ scenario.a }}."
    write_task(shown, user_j2=asks, user_short_j2=asks, system_j2="Hi")
    (prompt,) = preview(shown, "adding", "easy", 0, 1)
    text = prompt.messages[-1]["content"]
    assert (text.count("Q:"), text.count("Add ")) == (1, 2)


def test_a_rubric_shows_none(shown: Path) -> None:
    write_task(shown, judge_j2="{% for one in few_shot(1) %}{{ one.answer }}{% endfor %}")
    assert any("judge.j2: unknown variable 'few_shot'" in line for line in check_templates(load(shown)))


def test_golden_lines_are_part_of_a_task_that_shows_them_and_of_no_other(
    shown: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    path, out = shown / "prompts/adding/golden.jsonl", tmp_path / "out"
    run(make_job(), shown, out)
    assert (out / "templates/adding/golden.jsonl").read_bytes() == path.read_bytes()
    assert list(verify(out)) == []
    ids = {prompt.id for prompt in preview(shown, "adding", "easy", 0, 8)}
    path.write_text(path.read_text().replace("make", "give"), encoding="utf-8")
    assert not ids & {prompt.id for prompt in preview(shown, "adding", "easy", 0, 8)}
    with pytest.raises(DatasetError, match=r"golden\.jsonl"):
        run(make_job(), shown, out)
    write_task(shown)
    before = load(shown)
    path.write_text("", encoding="utf-8")
    assert load(shown).digests == before.digests
    assert before.golden == ()


def test_a_task_without_sample_has_none_to_show(shown: Path) -> None:
    task = replace(load(shown), sample=None)
    with pytest.raises(Exception, match=r"without sample\(\) has no golden scenarios"):
        open_renderer(task, Sampling()).render(PlannedRow(0, 0, "adding", "easy", 0, 1), {"a": 1, "b": 2})


def test_broken_lines_are_told_and_not_shown(shown: Path) -> None:
    with (shown / "prompts/adding/golden.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"case": "no more"}\nno JSON\n')
    task = load(shown)
    assert len(task.golden) == 6
    assert [line.partition(": ")[0][-2:] for line in try_task(task)] == [":8", ":9"]


def test_a_golden_line_with_a_key_twice_is_none(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text('{"case": "a"}\n{"outcome": "accepted", "outcome": "rejected"}\n', encoding="utf-8")
    (first, second) = read_lines(path)
    assert first == (1, {"case": "a"})
    assert second[0] == 2
    assert str(second[1]) == "has the key 'outcome' twice in one object; keep the one that is meant"
