"""The conversation_memory task: somebody who only reads the turns in order knows which fact is current."""

import random
import re
import tomllib
from collections import Counter
from typing import Any

import pytest
from shipped_task import LEVELS, ROOT, ShippedTask

BANK = tomllib.loads((ROOT / "schemas" / "_conversation_memory_talk.words.toml").read_text(encoding="utf-8"))
SHIPPED = ShippedTask("conversation_memory")
task, codes = SHIPPED.module, SHIPPED.codes
scenario_of, scenarios = SHIPPED.scenario_of, SHIPPED.scenarios


def form(text: str) -> re.Pattern[str]:
    groups = {"whose": r"(?P<whose>[Mm]y(?: \w+'s)?)", "phrase": r"(?P<phrase>[a-z' ]+?)", "v": r"(?P<v>[\w. ]+?)"}
    groups["old"] = r"[\w. ]+?"
    parts = re.split(r"\{(\w+)\}", text)
    return re.compile("".join(groups[part] if n % 2 else re.escape(part) for n, part in enumerate(parts)))


FORMS = [(kind, form(text)) for kind in ("forget", "back", "update", "tell") for text in BANK[kind]]


def remember(scenario: Any) -> dict[str, str | None]:
    """What is known in the end, by reading every turn of the user in order."""
    known: dict[str, str | None] = {}
    for session in scenario.sessions:
        for exchange in session.exchanges:
            for kind, pattern in FORMS:
                match = pattern.fullmatch(exchange.user)
                if match:
                    name = f"{match['whose'][0].lower()}{match['whose'][1:]} {match['phrase']}"
                    known[name] = None if kind == "forget" else match["v"]
                    break
    return known


@pytest.mark.parametrize("level", LEVELS)
def test_every_reference_passes_its_check_and_gives_what_a_reader_of_the_turns_knows(level: str) -> None:
    for scenario in scenarios(level, 1000):
        reasoning, answer = task.solve(scenario)
        assert task.check(scenario, answer) == []
        assert len(reasoning.split()) <= 70
        known = remember(scenario)
        expected = scenario.expected
        values = [known.get(asked) for asked in expected.asked]
        if expected.values:
            assert tuple(values) == expected.values
        else:
            assert values == [None]
        never = {value for value in known.values() if value} - set(expected.values)
        assert not any(value in re.findall(r"[\w.]+(?: [\w.]+)*", answer) for value in never)


def test_every_kind_of_memory_comes_in_its_level() -> None:
    kinds = [Counter(s.expected.kind for s in scenarios(level, 1000)) for level in LEVELS]
    assert set(kinds[0]) == {"recall", "unknown"}
    assert set(kinds[1]) == {"recall", "update", "forgotten", "unknown"}
    assert set(kinds[2]) == {"update", "back", "retold", "two", "forgotten", "unknown"}
    assert all(count >= 100 for level in kinds for count in level.values())


def test_somebody_else_has_the_same_thing_in_every_scenario() -> None:
    for level in LEVELS:
        for scenario in scenarios(level, 200):
            phrase = scenario.expected.asked[0].split("'s ")[-1].removeprefix("my ")
            owners = {step.whose for step in scenario.expected.steps if step.phrase.endswith(phrase)}
            assert len(owners - {scenario.expected.asked[0].removesuffix(f" {phrase}")}) >= 1


@pytest.mark.parametrize("level", LEVELS)
def test_a_reference_with_one_mistake_is_refused_with_the_right_code(level: str) -> None:
    seen: Counter[str] = Counter()
    for scenario in scenarios(level, 300):
        expected, answer = scenario.expected, task.solve(scenario)[1]
        tries = {"too_long": f"{answer} {'and so on ' * 15}", "one_paragraph": f"{answer}\nYes."}
        if expected.others:
            tries["other_fact"] = f"{answer} Not {expected.others[0]}."
        if expected.outdated:
            tries["outdated_fact"] = f"{answer} Before it was {expected.outdated[0]}."
        if expected.forgotten:
            tries["forgotten_used"] = f"{answer} Perhaps {expected.forgotten[0]}."
        if expected.values:
            tries["fact_missing"] = answer.replace(expected.values[-1], "something")
        else:
            tries |= {"unknown_unsaid": "Shall we look?", "not_asked": "I do not have it."}
        for code, text in tries.items():
            assert code in codes(scenario, text)
            seen[code] += 1
    assert len(seen) == {"easy": 6, "medium": 8, "hard": 8}[level]


def test_sessions_out_of_order_are_refused() -> None:
    raw = scenario_of("hard", 0).model_dump()
    raw["sessions"] = raw["sessions"][::-1]
    with pytest.raises(ValueError, match="order of their dates"):
        task.Scenario.model_validate(raw)


def test_a_conversation_of_ones_own_is_checked_for_its_form_and_has_no_reference() -> None:
    exchange = {"user": "My name is Ida.", "assistant": "Hello Ida."}
    raw = {"sessions": [{"date": "2025-03-01", "exchanges": [exchange]}], "request": "Who am I?"}
    scenario = task.Scenario.model_validate(raw)
    assert task.check(scenario, "You are Ida.") == []
    assert codes(scenario, "You are Ida.\nAre you?") == ["one_paragraph"]
    with pytest.raises(ValueError, match="no reference"):
        task.solve(scenario)


def test_levels_grow_in_sessions_turns_and_length_of_reasoning() -> None:
    def measure(scenario: Any) -> tuple[int, ...]:
        turns = sum(len(session.exchanges) for session in scenario.sessions)
        return len(scenario.sessions), turns, len(task.solve(scenario)[0].split())

    means = [[sum(column) for column in zip(*map(measure, scenarios(level, 300)), strict=True)] for level in LEVELS]
    for easy, medium, hard in zip(*means, strict=True):
        assert easy < medium < hard


def test_the_same_seed_gives_the_same_scenario_and_it_survives_json() -> None:
    for level in LEVELS:
        texts = [scenario.model_dump_json() for scenario in scenarios(level, 200)]
        assert [task.sample(random.Random(seed), level).model_dump_json() for seed in range(60)] == texts[:60]
        assert len(set(texts)) >= 198
        for text, scenario in zip(texts, scenarios(level, 200), strict=True):
            assert task.Scenario.model_validate_json(text) == scenario
