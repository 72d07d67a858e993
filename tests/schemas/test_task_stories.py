"""The stories task: every promise of a brief is checked by itself, and a story that is nobody's template passes too."""

import random
from collections import Counter
from typing import Any

import pytest
from shipped_task import LEVELS, ShippedTask

SHIPPED = ShippedTask("stories")
task, codes = SHIPPED.module, SHIPPED.codes
scenario_of, scenarios = SHIPPED.scenario_of, SHIPPED.scenarios
BRIEF = {
    "characters": ["Wanda", "Piet"],
    "place": {"ask": "the mill", "words": ["mill"]},
    "things": [{"ask": "a brass bell", "words": ["bell"]}],
    "turn": {"ask": "the wheel stops", "words": ["wheel"]},
    "min_words": 60,
    "max_words": 120,
    "reading_age": 8,
    "tense": "past",
    "person": "third",
    "avoid": ["old"],
}
STORY = (
    "Wanda carried the flour up the stairs of the mill. Piet sat on a sack and was no help at all. "
    "“Ring when the miller comes,” said Wanda, and gave him the bell. He looked at it, and at the window, and fell "
    "asleep. Then the wheel stopped. It was so still that Piet woke. A branch had come down the stream and held it. "
    "He rang as loud as he could, and Wanda ran down with the long pole. Together they pushed, and the water laughed "
    "and went on. “Now you have helped,” said Wanda."
)


def brief(**changes: Any) -> Any:
    return task.Scenario.model_validate(BRIEF | changes)


@pytest.mark.parametrize("level", LEVELS)
def test_every_reference_passes_its_check(level: str) -> None:
    for scenario in scenarios(level, 1500):
        reasoning, answer = task.solve(scenario)
        assert task.check(scenario, answer) == []
        assert len(reasoning.split()) <= 90


def test_a_story_of_ones_own_passes_and_keeps_every_promise_of_its_brief() -> None:
    assert task.check(brief(), STORY) == []


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("character_missing", {"characters": ["Wanda", "Piet", "Ole"]}),
        ("place_missing", {"place": {"ask": "the harbour", "words": ["harbour"]}}),
        ("thing_missing", {"things": [{"ask": "a kite", "words": ["kite"]}]}),
        ("turn_missing", {"turn": {"ask": "a storm comes up", "words": ["storm", "thunder"]}}),
        ("turn_place", {"turn": {"ask": "flour is carried", "words": ["flour"]}}),
        ("avoided_word", {"avoid": ["laugh"]}),
        ("length", {"min_words": 20, "max_words": 40}),
        ("length", {"min_words": 200, "max_words": 240}),
        ("long_sentences", {"reading_age": 4}),
        ("wrong_tense", {"tense": "present"}),
        ("wrong_person", {"person": "first"}),
    ],
)
def test_a_story_that_breaks_one_promise_is_refused_for_that_alone(code: str, changes: dict[str, Any]) -> None:
    assert codes(brief(**changes), STORY) == [code]


@pytest.mark.parametrize(
    ("code", "story"),
    [
        ("no_end", STORY + " And then"),
        ("repetition", STORY.replace("Then the wheel stopped.", "Then the wheel stopped. Then the wheel stopped.")),
        ("stranger", STORY + " In came Ludger. They gave Ludger tea."),
        ("wrong_person", STORY.replace("He looked at it", "I looked at it")),
    ],
)
def test_a_story_with_one_fault_is_refused_for_that_alone(code: str, story: str) -> None:
    assert codes(brief(max_words=140), story) == [code]


def test_speech_is_free_in_tense_and_person_and_in_any_quotation_marks() -> None:
    speech = "“I am here, and I see it, and I hold it, and I know, and I wait, and I come,” said Piet."
    for text in (speech, speech.replace("“", '"').replace("”", '"')):
        assert codes(brief(max_words=140), f"{STORY} {text}") == []


def test_first_person_and_present_tense_are_known_by_their_verbs() -> None:
    story = (
        "I sit in the mill, and Piet sits beside me. I have the bell in my hand, and I look at it. Then the wheel "
        "stops. I know what it is, and I run down. \"Wanda, wait,\" calls Piet. A branch is in the water. We hold the "
        "pole and push, and the wheel goes on. I laugh. It is late, and we go home over the wet stones of the yard."
    )  # fmt: skip
    assert codes(brief(tense="present", person="first"), story) == []
    assert codes(brief(tense="past", person="first"), story) == ["wrong_tense"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_reference_told_otherwise_than_asked_is_refused(level: str) -> None:
    seen: Counter[str] = Counter()
    for scenario in scenarios(level, 200):
        other = {
            "wrong_tense": {"tense": "present" if scenario.tense == "past" else "past"},
            "wrong_person": {"person": "first" if scenario.person == "third" else "third"},
        }
        for code, change in other.items():
            text = task.solve(scenario.model_copy(update=change))[1]
            assert code in codes(scenario, text)
            seen[code] += 1
        # the story of a longer brief has too many words, that of a shorter one too few
        longer = {"min_words": scenario.min_words + 70, "max_words": scenario.max_words + 70}
        assert "length" in codes(scenario.model_copy(update=longer), task.solve(scenario)[1])
    assert len(seen) == 2


def test_levels_grow_in_promises_and_length() -> None:
    def measure(s: Any) -> tuple[int, ...]:
        return len(s.things) + len(s.characters), len(s.avoid), s.min_words, len(task.solve(s)[1].split())

    means = [[sum(column) for column in zip(*map(measure, scenarios(level, 200)), strict=True)] for level in LEVELS]
    for easy, medium, hard in zip(*means, strict=True):
        assert easy < medium < hard
    assert {(s.tense, s.person) for s in scenarios("hard", 100)} == {
        (tense, person) for tense in ("past", "present") for person in ("first", "third")
    }


def test_the_same_seed_gives_the_same_brief_and_the_same_story() -> None:
    for level in LEVELS:
        texts = [scenario.model_dump_json() for scenario in scenarios(level, 200)]
        assert [task.sample(random.Random(seed), level).model_dump_json() for seed in range(60)] == texts[:60]
        assert len(set(texts)) >= 195
        for text, scenario in zip(texts, scenarios(level, 100), strict=False):
            again = task.Scenario.model_validate_json(text)
            assert again == scenario
            assert task.solve(again) == task.solve(scenario)


def test_a_brief_of_ones_own_has_no_reference() -> None:
    with pytest.raises(ValueError, match="no reference story"):
        task.solve(brief())


@pytest.mark.parametrize("name", SHIPPED.phrasings)
def test_every_phrasing_tells_the_whole_brief(name: str) -> None:
    assert len(SHIPPED.phrasings) >= 2
    for level in LEVELS:
        for s in scenarios(level, 60):
            text = SHIPPED.render(name, s, level)
            facts = [*s.characters, s.place.ask, *(thing.ask for thing in s.things), s.turn.ask, *s.avoid]
            facts += [str(s.min_words), str(s.max_words), str(s.reading_age), s.tense]
            assert all(fact in text for fact in facts)
            assert ("as I" in text and "not as I" not in text) is (s.person == "first")
