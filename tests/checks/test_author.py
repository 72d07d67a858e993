"""`factory test`: an author's whole check of a task: facts, warnings, problems, and whether a seed gives the same."""

from pathlib import Path

import pytest
from conftest import SCHEMA, TASK_FILE, write_task

from factory.checks.author import Report, digests, examine
from factory.tasks.tasks import load_task

SEEDS = 12


def look(workspace: Path, **texts: str) -> Report:
    write_task(workspace, **texts)
    return examine(workspace, "adding", SEEDS, "demo")


def test_a_sound_task_has_facts_and_no_problem(workspace: Path) -> None:
    report = look(workspace)
    assert report.problems == []
    facts = "\n".join(report.facts)
    assert "adding 1: 2 levels, 12 seeds each" in facts
    assert "hard: 12 different scenarios of 12, prompt " in facts
    assert "of 24" in facts  # thinking_tokens
    assert "check takes 0 of 24 answers that fit the form and know nothing" in facts
    assert any("golden.jsonl: 0 lines; write 6 or more" in line for line in report.warnings)


def test_a_rare_fault_is_found_and_told_once_with_how_many_seeds_met_it(workspace: Path) -> None:
    schema = SCHEMA.replace("    right = ", "    if scenario.a % 3 == 2:\n        raise KeyError('b')\n    right = ")
    task_is_whole_at_first_sight = look(workspace, schema=schema)
    (told, *others) = task_is_whole_at_first_sight.problems
    assert others == []
    assert "check_raised: KeyError: 'b' (adding.py, line " in told


def test_budgets_that_a_solution_does_not_fit_are_told(workspace: Path) -> None:
    small = TASK_FILE.replace("max_tokens = 120", "max_tokens = 8").replace(
        "thinking_tokens = 24", "thinking_tokens = 3"
    )
    told = "\n".join(look(workspace, task_toml=small).problems)
    for level in ("easy", "hard"):
        assert f"level '{level}': the reference reasoning of 12 of 12 scenarios" in told
        assert f"level '{level}': the reference solution of 12 of 12 scenarios" in told
    assert "sampling.max_tokens is 8; raise it" in told


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (SCHEMA.replace("    right = ", "    return []\n    right = "), "check takes most answers that were made up"),
        (SCHEMA.partition("def solve")[0], "no solve(), so nothing shows that a scenario has a right answer"),
        (SCHEMA.replace("a=rng.randrange(most), b=rng.randrange(most)", "a=1, b=2"), "a long job repeats itself"),
        (SCHEMA.replace('10 if level == "easy" else 100', "2"), "scenarios are in both"),
    ],
)
def test_what_looks_wrong_is_a_warning(schema: str, told: str, workspace: Path) -> None:
    report = look(workspace, schema=schema)
    assert any(told in line for line in report.warnings), report.lines()


def test_a_field_that_no_prompt_shows_is_a_note(workspace: Path) -> None:
    derived = SCHEMA.replace("    b: int = 1", "    b: int = 1\n    right: int = 0").replace(
        "b=rng.randrange(most))", "b=rng.randrange(most), right=rng.randrange(9))"
    )
    report = look(workspace, schema=derived)
    assert [line for line in report.facts if "note:" in line] == [
        "  note: Scenario.right changes no prompt: a teacher knows it only where it follows from what is shown"
    ]
    assert not any("Scenario." in line for line in report.warnings)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("a=rng.randrange(most), b=time.time_ns())", "the same process"),
        ("a=rng.randrange(most), b=hash(level) % 1000)", "another process with another PYTHONHASHSEED"),
        ("a=rng.randrange(most), b=time.localtime(0).tm_hour + 5)", "another process with another PYTHONHASHSEED"),
    ],
)
def test_a_seed_that_gives_something_else_is_told(body: str, where: str, workspace: Path) -> None:
    schema = SCHEMA.replace("import random\n", "import random\nimport time\n", 1)
    schema = schema.replace("a=rng.randrange(most), b=rng.randrange(most))", body)
    schema = schema.partition("def solve")[0]
    told = [line for line in look(workspace, schema=schema).problems if "a seed gives another scenario" in line]
    assert len(told) == 1
    assert f"in {where}" in told[0]


def test_a_broken_task_is_told_and_not_measured(workspace: Path) -> None:
    report = look(workspace, user_j2="{{ nope }}")
    assert len(report.facts) == 1
    assert [line for line in report.lines() if "PROBLEM" in line and "unknown variable 'nope'" in line]


def test_a_task_without_sample_says_where_its_scenarios_come_from(workspace: Path) -> None:
    schema = SCHEMA.partition("def sample")[0] + "def check" + SCHEMA.partition("def check")[2]
    report = look(workspace, schema=schema)
    assert report.problems == []
    assert "no sample()" in report.facts[-1]


def test_digests_are_by_level_and_seed_and_of_the_solution_too(workspace: Path) -> None:
    def all_digests(schema: str) -> dict[str, str]:
        write_task(workspace, schema=schema)
        task, problems = load_task(workspace, "adding")
        assert task is not None, problems
        return digests(task, 2)

    one, other = all_digests(SCHEMA), all_digests(SCHEMA.replace("make {total}.", "are {total}."))
    assert list(one) == ["easy 0", "easy 1", "hard 0", "hard 1"]
    assert not set(one.values()) & set(other.values())
