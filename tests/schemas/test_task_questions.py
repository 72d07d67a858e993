"""The questions task: a reader who knows only the sentences' forms finds the same answer in the passages."""

import random
import re
import tomllib
from collections import Counter
from typing import Any

import pytest
from shipped_task import LEVELS, ROOT, ShippedTask

BANK = tomllib.loads((ROOT / "schemas" / "_questions_passages.words.toml").read_text(encoding="utf-8"))
ATTRIBUTES = [(kind["noun"], attribute) for kind in BANK["kinds"] for attribute in kind["attributes"]]
SHIPPED = ShippedTask("questions")
task, codes = SHIPPED.module, SHIPPED.codes
scenario_of, scenarios = SHIPPED.scenario_of, SHIPPED.scenarios


def changed(answer: Any, /, **changes: Any) -> Any:
    return task.Answer.model_validate(answer.model_dump() | changes)


def pattern(form: str, **groups: str) -> re.Pattern[str]:
    """A form of the word bank as a pattern; its places in braces become the groups given."""
    parts = re.split(r"\{(\w+)\}", form)
    return re.compile("".join(groups[part] if n % 2 else re.escape(part) for n, part in enumerate(parts)))


def read_passages(scenario: Any) -> list[tuple[int, str, str, str]]:
    """(passage, place, attribute, value) of every sentence that has a known form."""
    found = []
    for number, passage in enumerate(scenario.passages, 1):
        for noun, attribute in ATTRIBUTES:
            place = rf"(?P<name>[A-Z][a-z]+(?: [A-Za-z]+)? {noun})"
            for form in attribute["say"]:
                for match in pattern(form, name=place, v=r"(?P<v>\d+|[A-Z]\w+ [A-Z]\w+)").finditer(passage.text):
                    found.append((number, match["name"], attribute["brief"], match["v"]))
        for form in BANK["held"]:
            held = pattern(form, event="(?P<event>[A-Z][A-Za-z ]+?)", name="(?P<name>[A-Z][A-Za-z ]+)")
            found += [(number, match["event"], "held", match["name"]) for match in held.finditer(passage.text)]
    # "The X is ..." and "Each year the X ..." may both match one sentence: the shorter name is the place's own
    return sorted(set(found))


def read_answer(scenario: Any) -> tuple[str, set[str], list[int]]:
    """Status, values and sources, from question and passages alone."""
    facts, question = read_passages(scenario), scenario.question
    newest = {number: passage.date for number, passage in enumerate(scenario.passages, 1)}
    for noun, attribute in ATTRIBUTES:
        place = rf"[A-Z][a-z]+(?: [A-Za-z]+)? {noun}"
        of = {}
        for number, name, brief, value in facts:
            if brief == attribute["brief"]:
                of.setdefault(name, []).append((number, value))
        match = pattern(
            attribute["ask"], name=rf"(?:(?P<name>{place})|place where the (?P<event>.+) are held)"
        ).fullmatch(question)
        if match:
            name, sources = match["name"], []
            if match["event"]:
                ((step, name),) = [
                    (n, value) for n, event, brief, value in facts if (event, brief) == (match["event"], "held")
                ]
                sources = [step]
            told = of.get(name, [])
            if not told:
                return "unknown", set(), []
            last = max((newest[number] for number, _ in told if newest[number]), default=None)
            told = [(number, value) for number, value in told if newest[number] == last]
            values = {value for _, value in told}
            return "conflict" if len(values) > 1 else "answered", values, sorted(sources + [n for n, _ in told])
        if attribute.get("total"):
            match = pattern(attribute["total"], names="(?P<names>.+)").fullmatch(question)
            if match and re.fullmatch(rf"(the {place}(, | and )?)+", match["names"]):
                names = re.findall(place, match["names"])
                return (
                    "answered",
                    {str(sum(int(of[name][0][1]) for name in names))},
                    sorted(of[name][0][0] for name in names),
                )
        if attribute.get("first"):
            match = pattern(attribute["first"], a=f"(?P<a>{place})", b=f"(?P<b>{place})").fullmatch(question)
            if match:
                pair = [(int(of[name][0][1]), name, of[name][0][0]) for name in (match["a"], match["b"])]
                return "answered", {min(pair)[1]}, sorted(number for *_, number in pair)
    raise AssertionError(f"no form of the word bank asks {question!r}")


@pytest.mark.parametrize("level", LEVELS)
def test_every_reference_passes_its_check_and_is_what_the_passages_say(level: str) -> None:
    for scenario in scenarios(level, 600):
        reasoning, answer = task.solve(scenario)
        assert task.check(scenario, answer) == []
        assert len(reasoning.split()) <= 130
        status, values, sources = read_answer(scenario)
        assert (answer.status, answer.sources) == (status, sources)
        assert set(scenario.expected.values) == values
        assert all(value in answer.answer for value in values)


def test_every_kind_of_question_comes_in_its_level() -> None:
    asked = [Counter(scenario.expected.asked for scenario in scenarios(level, 600)) for level in LEVELS]
    assert set(asked[0]) == {"lookup", "sum", "unknown"}
    assert set(asked[1]) == {"lookup", "sum", "first", "conflict", "unknown"}
    assert set(asked[2]) == {"sum", "first", "bridge", "update", "conflict", "unknown"}
    assert all(count >= 60 for kinds in asked for count in kinds.values())


def test_what_is_not_told_of_a_place_is_told_of_a_neighbour() -> None:
    for level in LEVELS:
        unknown = [scenario for scenario in scenarios(level, 300) if scenario.expected.asked == "unknown"]
        assert all(scenario.expected.others for scenario in unknown)


@pytest.mark.parametrize("level", LEVELS)
def test_a_reference_with_one_mistake_is_refused_with_the_right_code(level: str) -> None:
    seen: Counter[str] = Counter()
    for scenario in scenarios(level, 300):
        expected, answer = scenario.expected, task.solve(scenario)[1]
        beside = next(n for n in range(1, len(scenario.passages) + 2) if n not in answer.sources)
        tries = {"too_long": {"answer": answer.answer + " and" * 25}}
        if expected.asked == "unknown":
            tries |= {
                "wrong_status": {"status": "answered", "answer": expected.others[0], "sources": [1]},
                "unknown_unsaid": {"answer": "Ask me another one."},
                "source_of_nothing": {"sources": [1]},
            }
        else:
            tries |= {
                "wrong_status": {"status": "unknown", "answer": "The passages do not say.", "sources": []},
                "wrong_answer": {"answer": "It is 7777."},
                "strange_value": {"answer": f"{answer.answer} Or 7777."},
                "source_missing": {"sources": answer.sources[1:]},
                "source_needless": {"sources": sorted([*answer.sources, beside])},
            }
            if len(answer.sources) > 1:
                tries["sources_order"] = {"sources": answer.sources[::-1]}
        for code, changes in tries.items():
            assert code in codes(scenario, changed(answer, **changes)), (code, scenario)
            seen[code] += 1
    assert len(seen) == 9


def test_figures_may_have_separators_and_sums_may_show_their_terms() -> None:
    passages = [{"text": "The Elder Garden has 1,200 trees."}, {"text": "The Heron Garden has 300 trees."}]
    evidence = [{"passage": n, "place": "garden", "value": value} for n, value in ((1, "1200"), (2, "300"))]
    expected = {
        "asked": "sum",
        "brief": "trees",
        "values": ["1500"],
        "sources": [1, 2],
        "evidence": evidence,
        "sentence": "1500.",
    }
    scenario = task.Scenario.model_validate({"passages": passages, "question": "How many?", "expected": expected})
    for text in ("1,500 trees.", "1500.", "1,200 + 300 = 1,500."):
        assert task.check(scenario, task.Answer(status="answered", answer=text, sources=[1, 2])) == []
    assert codes(scenario, task.Answer(status="answered", answer="1,500 or 1,501", sources=[1, 2])) == ["strange_value"]


def test_passages_of_a_user_are_checked_by_their_figures_and_have_no_reference() -> None:
    passages = [{"text": "The pool has 8 lanes."}, {"text": "The hall has 90 seats."}]
    scenario = task.Scenario.model_validate({"passages": passages, "question": "How many lanes has the pool?"})
    assert task.check(scenario, task.Answer(status="answered", answer="It has 8 lanes.", sources=[1])) == []
    assert codes(scenario, task.Answer(status="answered", answer="It has 8 lanes.", sources=[2])) == ["strange_value"]
    assert codes(scenario, task.Answer(status="answered", answer="It has 8.", sources=[])) == [
        "source_missing",
        "strange_value",
    ]
    assert codes(scenario, task.Answer(status="answered", answer="It has 8.", sources=[1, 3])) == ["no_such_passage"]
    assert task.check(scenario, task.Answer(status="unknown", answer="The passages do not say.", sources=[])) == []
    with pytest.raises(ValueError, match="no reference"):
        task.solve(scenario)


def test_levels_grow_in_passages_words_and_length_of_reasoning() -> None:
    def measure(scenario: Any) -> tuple[int, ...]:
        words = sum(len(passage.text.split()) for passage in scenario.passages)
        return len(scenario.passages), words, len(task.solve(scenario)[0].split())

    means = [[sum(column) for column in zip(*map(measure, scenarios(level, 200)), strict=True)] for level in LEVELS]
    for easy, medium, hard in zip(*means, strict=True):
        assert easy < medium < hard


def test_the_same_seed_gives_the_same_scenario_and_it_survives_json() -> None:
    for level in LEVELS:
        texts = [scenario.model_dump_json() for scenario in scenarios(level, 200)]
        assert [task.sample(random.Random(seed), level).model_dump_json() for seed in range(60)] == texts[:60]
        assert len(set(texts)) == 200
        for text, scenario in zip(texts, scenarios(level, 200), strict=True):
            assert task.Scenario.model_validate_json(text) == scenario


@pytest.mark.parametrize("name", SHIPPED.phrasings)
def test_every_phrasing_numbers_the_passages_and_tells_dates_and_question(name: str) -> None:
    assert len(SHIPPED.phrasings) >= 2
    for level in LEVELS:
        for scenario in scenarios(level, 40):
            text = SHIPPED.render(name, scenario, level)
            places = [text.index(passage.text) for passage in scenario.passages]
            assert places == sorted(places)
            assert scenario.question in text
            for number, (passage, place) in enumerate(zip(scenario.passages, places, strict=True), 1):
                before = text[places[number - 2] + len(scenario.passages[number - 2].text) if number > 1 else 0 : place]
                assert str(number) in before
                assert passage.date is None or str(passage.date) in text
