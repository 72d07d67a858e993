"""Style: texts of an answer against a task's `[style]`, where they stand and what is wrong with them."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.job.gates import StyleConfig
from factory.texts.style import find_emoji, find_markdown, find_style
from factory.texts.texts import every_text, texts_at

ANSWER = {"title": "A short title", "points": ["One two three.", "Four five."], "facts": {"who": ["Ann"], "n": 3}}


def findings(answer: object = ANSWER, **style: Any) -> list[str]:
    return find_style(StyleConfig.model_validate(style), answer)


def codes(text: str, **style: Any) -> list[str]:
    return [finding.split(":")[0] for finding in findings({"t": text}, **style)]


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        ([], ["title", "points.0", "points.1", "facts.who.0"]),
        (["title"], ["title"]),
        (["points"], ["points.0", "points.1"]),
        (["points.*"], ["points.0", "points.1"]),
        (["points.1", "title"], ["points.1", "title"]),
        (["facts.*.0"], ["facts.who.0"]),
        (["*.who.*"], ["facts.who.0"]),
        (["no.such", "title.0", "facts.n"], []),
    ],
)
def test_fields_name_the_texts_that_are_looked_at(fields: list[str], places: list[str]) -> None:
    assert [place for place, _ in texts_at(ANSWER, fields)] == places
    assert [f.split(" has ")[0] for f in findings(fields=fields, min_words=9)] == [
        f"style_too_few_words: {place}" for place in places
    ]


@pytest.mark.parametrize(
    ("words", "found"), [(1, ["style_too_few_words"]), (2, []), (4, []), (5, ["style_too_many_words"])]
)
def test_bounds_of_words_are_inclusive_and_for_one_text(words: int, found: list[str]) -> None:
    assert codes(" ".join(["word"] * words), min_words=2, max_words=4) == found
    assert findings(fields=["points"], max_words=3) == []


@pytest.mark.parametrize(
    "text",
    [
        "# Title",
        "Title\n---",
        "**bold** text",
        "*wow*",
        "_word_ here",
        "- one\n- two",
        "* item",
        "1. one\n2. two",
        "use `png`",
        "```py\nx\n```",
        "[a](http://b.c)",
        "![a](b)",
        "|a|b|\n|-|-|\n|1|2|",
        "~~x~~",
        "a\n\n***\n\nb",
    ],
)
def test_markdown_is_found_unless_the_task_wants_it(text: str) -> None:
    assert codes(text) == ["style_markdown"]
    assert codes(text, markdown=True) == []


@pytest.mark.parametrize(
    "text",
    [
        "3*4*5 = 60",
        "2 * 3 * 4",
        "remove_object and blur_background",
        "-5 degrees",
        "5 > 3 < 4",
        "#5 Main St",
        "a | b",
        "2. Mai ist frei",
        "Room #3",
        "as of 1.5.",
        "[sic] and (so)",
        "<b>",
        "a_b_c",
        "",
        "plain\n    indented",
        "~5 min",
    ],
)
def test_signs_that_are_no_markdown_pass(text: str) -> None:
    assert codes(text) == []


@pytest.mark.parametrize("text", ["✅ done", "fun 🎉", "❤️", "1️⃣", "👩‍👩‍👧", "🇩🇪", "日本 😀"])
def test_emoji_are_found_unless_the_task_wants_them(text: str) -> None:
    assert codes(text) == ["style_emoji"]
    assert codes(text, emoji=True) == []


@pytest.mark.parametrize("text", ["© 2025 ™", "€ £ ° ½ → \u00d7 \u2013", "naïve Ünïcödé 会議 ก", "5 #1 *", "№ 7 ✓"])
def test_signs_that_are_text_are_no_emoji(text: str) -> None:
    assert find_emoji(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "As an AI, I think so.",
        "I'm ChatGPT.",
        "I\u2019m Claude, an AI model.",
        "I was trained by OpenAI.",
        "My name is Qwen.",
        "I'm just a language model.",
        "My training data ends in May.",
    ],
)
def test_talk_about_itself_is_found(text: str) -> None:
    assert codes(text) == ["style_persona"]
    assert codes(text, phone=False) == []


@pytest.mark.parametrize(
    "text",
    ["Right-click the photo.", "Press Ctrl+C.", "Click here to go on.", "See the table above.", "Use your mouse."],
)
def test_talk_of_a_desktop_is_found(text: str) -> None:
    assert codes(text) == ["style_desktop"]
    assert codes(text, phone=False) == []


@pytest.mark.parametrize(
    "text",
    [
        "Meet Claude on Friday.",
        "I'm Claude's neighbour.",
        "A phone made by Google.",
        "As an AI engineer she knows.",
        "Click & Collect at noon.",
        "The table above the sofa.",
        "This is Alexa from work.",
        "The cat found a mouse.",
    ],
)
def test_people_things_and_vendors_pass(text: str) -> None:
    assert codes(text) == []


def test_a_finding_says_where_and_what() -> None:
    answer = {"points": ["Fine.", "**Loud** 🎉"]}
    assert findings(answer) == ["style_markdown: points.1 has bold", "style_emoji: points.1 has 🎉"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_no_answer_makes_it_raise(value: Any) -> None:
    found = findings({"value": value}, min_words=1, max_words=3)
    assert all(finding.startswith("style_") for finding in found)


def test_texts_are_found_at_any_depth() -> None:
    value: Any = "deep"
    for _ in range(5_000):
        value = [value]
    assert [text for _, text in every_text(value)] == ["deep"]


UNITS = [
    "*",
    "_a",
    "`",
    "`a",
    "[",
    "[a](",
    "> ",
    "- a\n",
    "|a|b|\n|-|-|\n",
    "*a **b ",
    "![",
    "~~a",
    "\\",
    "<",
    "\n",
    "as an ",
]


@pytest.mark.parametrize("unit", UNITS)
def test_hostile_texts_end_soon(unit: str) -> None:
    started = time.process_time()
    find_markdown(unit * (100_000 // len(unit)))
    assert time.process_time() - started < 30  # the parser is not linear, so it is given a bounded text
