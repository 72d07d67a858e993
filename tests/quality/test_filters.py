"""Row filters: every planted fault is found and named, and no reference answer of a built-in task is ever flagged."""

import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_support import make_generation, make_prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import JobError
from factory.hashing import canonical_json
from factory.job.gates import ContaminationConfig, FiltersConfig, StyleConfig
from factory.quality.contamination import open_index
from factory.quality.filters import RowFilters, apply, find_contaminated_prompt, find_loop, open_filters, repeated_share
from factory.records import Record, Rejection, Verdict
from factory.signals import SignalSpec
from factory.tasks.calls import call_solve
from factory.tasks.tasks import Task, discover
from factory.teachers.scripted import STOP, THINK_END, encode
from factory.texts.refusals import find_refusal

TASKS = discover(Path(__file__).parent.parent.parent).tasks
CELLS = [(name, level) for name, task in sorted(TASKS.items()) for level in task.levels]
ROWS_PER_CELL = 150
STYLE = StyleConfig(fields=["title", "points"], min_words=1, max_words=60)
EVERYTHING: dict[str, Any] = {
    "language": ["en"],
    "length": {"min_tokens": 8, "max_tokens": 20_000},
    "repetition": True,
    "refusals": True,
    "pii": True,
    "style": True,
}


def make_row(reasoning: str | None, answer: object, scenario: object = None, ids: Any = None) -> Record:
    text = answer if isinstance(answer, str) else canonical_json(answer)
    if ids is None:
        ids = [*encode(reasoning or ""), THINK_END, *encode(text), STOP]
    generation = make_generation(0, SignalSpec(), reasoning=reasoning, completion_token_ids=np.array(ids, np.int32))
    return Record(make_prompt(0, scenario=canonical_json(scenario or {"a": 1})), generation, text, 1.0)


def filters(style: StyleConfig | None = None, **config: Any) -> RowFilters:
    return open_filters(FiltersConfig.model_validate(config), style, None)


def reason(record: Record, style: StyleConfig | None = None, **config: Any) -> str | None:
    outcome = apply(filters(style, **config), record)
    return outcome.reason if isinstance(outcome, Rejection) else None


def solved(task: Task, level: str, count: int) -> Iterator[Record]:
    assert task.sample is not None
    assert task.solve is not None
    for seed in range(count):
        scenario = task.sample(random.Random(seed), level)
        yield make_row(*call_solve(task, scenario), scenario.model_dump(mode="json"))


@pytest.fixture(scope="module")
def open_all(tmp_path_factory: pytest.TempPathFactory) -> Callable[[StyleConfig], RowFilters]:
    """All filters for a style, beside an evaluation set of other texts."""
    path = tmp_path_factory.mktemp("sets") / "exam.txt"
    path.write_text("the quick brown fox jumps over the lazy dog while seven grey cats look on from the wall\n" * 3)
    contamination = ContaminationConfig(files=[str(path)])
    config = FiltersConfig.model_validate(EVERYTHING | {"contamination": contamination.model_dump()})
    index = open_index(contamination)
    return lambda style: open_filters(config, style, index)


@pytest.fixture(scope="module")
def everything(open_all: Callable[[StyleConfig], RowFilters]) -> RowFilters:
    return open_all(STYLE)


@pytest.mark.parametrize(("name", "level"), CELLS)
def test_reference_answers_pass_every_filter(
    open_all: Callable[[StyleConfig], RowFilters], name: str, level: str
) -> None:
    run = open_all(TASKS[name].style)
    assert len(run) == 7
    flagged = [apply(run, row) for row in solved(TASKS[name], level, ROWS_PER_CELL)]
    found = [row.findings for row in flagged if isinstance(row, Rejection)]
    if name == "emotional_support":  # the numbers of helplines are numbers: docs/filters.md says what to leave out
        found = [findings for findings in found if not re.fullmatch(r"pii: [^;]*phone[^;]*", findings[0])]
    assert found == []


def test_nothing_is_on_until_it_is_named() -> None:
    assert filters() == ()
    record = make_row("I cannot help with that.", {"x": "jane@example.com 🎉"})
    assert apply((), record) is record
    assert apply(filters(style=STYLE), record) is record


def test_a_rejection_carries_the_row_and_all_findings_and_the_first_filter_s_reason() -> None:
    record = make_row("Short.", {"title": "Mail jane@example.com or I can't help with that."})
    record = Record(record.prompt, record.generation, record.answer, 0.0, ("wrong: 3",), Verdict(0.5, "meh"))
    outcome = apply(filters(refusals=True, pii=True, length={"max_tokens": 5}), record)
    assert isinstance(outcome, Rejection)
    assert (outcome.stage, outcome.reason, outcome.kind) == ("filter", "too_long", "rejected")
    assert [finding.split(":")[0] for finding in outcome.findings] == ["wrong", "too_long", "refusal", "pii"]
    assert (outcome.answer, outcome.verdict, outcome.prompt) == (record.answer, record.verdict, record.prompt)
    assert "jane" not in outcome.findings[3]


def test_a_filter_that_raises_is_an_error_of_that_row_alone() -> None:
    def broken(record: Record) -> list[str]:
        raise KeyError("no\nsuch")

    outcome = apply((broken,), make_row("", {}))
    assert isinstance(outcome, Rejection)
    assert (outcome.stage, outcome.reason, outcome.kind) == ("filter", "filter_raised", "error")
    assert outcome.findings == ("filter_raised: KeyError: 'no\\nsuch'",)


@pytest.mark.parametrize(
    ("tokens", "found"), [(9, "too_short"), (10, None), (20, None), (21, "too_long"), (0, "too_short")]
)
def test_bounds_of_length_are_inclusive(tokens: int, found: str | None) -> None:
    assert reason(make_row("", {}, ids=range(tokens)), length={"min_tokens": 10, "max_tokens": 20}) == found


@given(st.integers(1, 64), st.integers(4, 40), st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_a_planted_loop_of_any_period_is_found(period: int, repeats: int, before: int, after: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    once = rng.permutation(100_000)[:period]
    ids = np.concatenate([rng.integers(0, 2**31, before), np.tile(once, repeats), rng.integers(0, 2**31, after)])
    found = find_loop(ids.astype(np.int32))
    if period * repeats < 64:
        return
    assert found is not None
    assert found[0] == period
    assert found[1] >= repeats
    assert before - period <= found[2] <= before


@given(st.lists(st.integers(0, 2**31 - 1), max_size=600, unique=True))
def test_tokens_that_never_come_twice_are_no_loop(ids: list[int]) -> None:
    array = np.array(ids, np.int32)
    assert find_loop(array) is None
    assert repeated_share(array) == 0.0


def test_a_loop_with_a_counter_in_it_is_found() -> None:
    looping = " ".join(f"Wait, let me look at the options once more, time {i}." for i in range(40))
    assert reason(make_row(looping, {"x": 1}), repetition=True) == "repetition"


@pytest.mark.parametrize(
    "text",
    [
        "Ann busy 10:00-11:00, padded 09:45-11:15, busy 12:00-13:00, padded 11:45-13:15; left 13:15-17:00.",
        "No. " * 10,
        "F1: 90. F2: 120. F3: 95. F4: 200. F5: 310. F6: 87. F7: 99. F8: 100. F9: 104.",
    ],
)
def test_lists_and_short_repeats_are_no_loop(text: str) -> None:
    assert reason(make_row(text, {"x": [0, 0, 0, 0, 0, 0]}), repetition=True) is None


WRONG_LANGUAGE = [
    "Der Aufzug wird am Montag gewartet und ist bis zum Abend nicht in Betrieb.",
    "Le vol de neuf heures est le moins cher qui respecte votre budget.",
    "El ascensor estará en mantenimiento el lunes y no funcionará hasta la tarde.",
    "La foto viene prima ritagliata e poi leggermente schiarita.",
    "O elevador estará em manutenção na segunda-feira e fora de serviço até à noite.",
    "Встреча назначена на четверг утром, все приглашены.",
    "我先看看哪些火车能准时到达,然后再比较价格。",
    "会議は木曜日の午前十時に決まり、全員を招待しました。",
    "تم تحديد الاجتماع صباح يوم الخميس ودعوة الجميع إليه.",
]


@pytest.mark.parametrize("text", WRONG_LANGUAGE)
def test_another_language_is_told_in_a_short_answer_and_in_the_reasoning(text: str) -> None:
    assert reason(make_row("The meeting is short.", {"title": text}), language=["en"]) == "wrong_language"
    assert reason(make_row(text, {"title": "A short title"}), language=["en"]) == "wrong_language"


def test_a_foreign_passage_shows_in_a_long_english_text() -> None:
    english = "First I look at all the trains that arrive in time, then I compare what they cost. " * 20
    foreign = "然后我再看看每个酒店的价格和评分,最后选择最便宜并且带早餐的那一家酒店。" * 5
    assert reason(make_row(english, {"x": 1}), language=["en"]) is None
    assert reason(make_row(english + foreign + english, {"x": 1}), language=["en"]) == "wrong_language"


@pytest.mark.parametrize(
    "text",
    [
        "Herr Schneider and Frau Müller fly to Düsseldorf on Tuesday.",
        "Dinner with Francesca and Giuseppe at Trattoria Bella Napoli on Friday.",
        "Lunch moved to noon at Café de Flore with Amélie.",
        "The guest from Tokyo, 山田太郎, arrives at noon and wants a quiet room.",
        "exposure straighten rotate filter sepia resize crop",
        "BV-98477, XS-79158, IMG_5363.jpg, 4032 x 3024, CHF, EUR",
        "Straße",
        "",
        "see https://beispiel.example/der/aufzug/wird/am/montag/gewartet",
    ],
)
def test_names_codes_and_short_texts_are_no_other_language(text: str) -> None:
    assert reason(make_row(text, {"title": text, "op": "saturation"}), language=["en"]) is None


def test_every_allowed_language_passes() -> None:
    row = make_row(WRONG_LANGUAGE[0], {"title": WRONG_LANGUAGE[1]})
    assert reason(row, language=["en", "de"]) == "wrong_language"
    assert reason(row, language=["de", "fr"]) is None


def test_a_language_that_cannot_be_told_is_an_error_of_the_job() -> None:
    with pytest.raises(JobError, match=r"filters.language: xx cannot be told \(known: .*\bde, .*\ben, "):
        filters(language=["en", "xx"])


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, but I can\u2019t assist with that request.",
    "As an AI language model, I don't have access to calendars.",
    "As an AI, I cannot do this.",
    "Sorry, I can't comply.",
    "I am unable to provide that information.",
    "I must respectfully decline this request.",
    "I'm not able to fulfill your request.",
    "Leider kann ich diese Anfrage nicht erfüllen.",
    "Ich kann Ihnen dabei leider nicht helfen.",
    "Als KI-Sprachmodell habe ich keinen Zugriff.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "En tant qu\u2019IA, je ne peux pas voir ton agenda.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Mi dispiace, ma non posso aiutarti con questa richiesta.",
    "Desculpe, mas não posso ajudar com isso.",
]
CONTENT = [
    "We cannot refund tickets.",
    "I'm sorry for the delay.",
    "I'm sorry, but I can't make it on Friday.",
    "I can't help with the move on Saturday.",
    "The visa office is unable to answer that question by phone.",
    "I cannot provide more than two bullets.",
    "An AI project starts in May.",
    "Ich kann dir am Samstag nicht helfen.",
    "Je ne peux pas venir vendredi.",
    "No puedo ayudarte el sábado.",
    "Non posso venire a cena.",
    "Não posso ir à reunião.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_told_in_the_answer_and_at_both_ends_of_the_reasoning(text: str) -> None:
    padding = "The first train leaves at nine. " * 60
    assert reason(make_row("Fine.", {"points": ["Fine.", text]}), refusals=True) == "refusal"
    assert reason(make_row(text + padding, {"x": 1}), refusals=True) == "refusal"
    assert reason(make_row(padding + text, {"x": 1}), refusals=True) == "refusal"


@pytest.mark.parametrize("text", CONTENT)
def test_content_that_says_no_is_no_refusal(text: str) -> None:
    assert reason(make_row(text, {"title": text}), refusals=True) is None


@pytest.mark.parametrize(
    ("kinds", "found"), [(True, "pii"), (["email"], "pii"), (["phone", "card"], None), (False, None), ([], None)]
)
def test_personal_data_is_told_in_the_answer_and_the_reasoning(kinds: Any, found: str | None) -> None:
    assert reason(make_row("Fine.", {"a": [{"b": "to jane@example.com"}]}), pii=kinds) == found
    assert reason(make_row("Write to jane@example.com.", {"a": 1}), pii=kinds) == found


def test_style_is_checked_where_the_task_has_one() -> None:
    row = make_row("Fine.", {"title": "**Bold** move"})
    assert reason(row, style=StyleConfig()) is None
    assert apply(open_filters(FiltersConfig(style=True), None, None), row) is row
    outcome = apply(open_filters(FiltersConfig(style=True), StyleConfig(), None), row)
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "style_markdown"


def test_shared_words_are_told_in_the_scenario_the_answer_and_the_reasoning(tmp_path: Path) -> None:
    exam = "the old lift in the north wing was replaced by a new one last spring"
    (tmp_path / "exam.txt").write_text(exam)
    contamination = ContaminationConfig(files=[str(tmp_path / "exam.txt")])
    index = open_index(contamination)
    run = open_filters(FiltersConfig(contamination=contamination), None, index)
    clean = make_row("Fine.", {"t": "A new lift."}, {"document": "Nothing to see."})
    assert apply(run, clean) is clean
    rows = {
        "answer": make_row("Fine.", {"t": [exam]}),
        "reasoning": make_row(f"It says: {exam}.", {"t": 1}),
    }
    for place, row in rows.items():
        outcome = apply(run, row)
        assert isinstance(outcome, Rejection)
        assert outcome.reason == "contaminated"
        assert outcome.findings[0].startswith(f"contaminated: the {place} shares with {tmp_path / 'exam.txt'} line 1")
    asked = make_row("Fine.", {"t": 1}, {"deep": [{"document": f"Dear all, {exam.upper()}!"}]})
    assert apply(run, asked) is asked  # it is never asked: a prompt is looked at before
    (told,) = find_contaminated_prompt(index, asked.prompt)
    assert told.startswith(f"contaminated: the scenario shares with {tmp_path / 'exam.txt'} line 1")
    assert find_contaminated_prompt(index, clean.prompt) == []


def test_what_all_prompts_share_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "exam.txt").write_text("question 0 " + " ".join(f"word{n}" for n in range(20)))
    contamination = ContaminationConfig(files=[str(tmp_path / "exam.txt")])
    run = open_filters(FiltersConfig(contamination=contamination), None, open_index(contamination))
    row = make_row("Fine.", {"t": 1})
    text = (tmp_path / "exam.txt").read_text()
    prompt = make_prompt(0, messages=({"role": "user", "content": text},))
    assert isinstance(apply(run, Record(prompt, row.generation, row.answer, 1.0)), Record)


UNITS = ["a", " ", "\n", "I cannot ", "as an AI ", "ich kann dir ", "kann ich leider ", "*a **b ", "[", "`a", "9", "1 "]
UNITS += ["a@", "x.", "📷", "👩\u200d", "会", "\u0301", "DE89 ", "+49 ", "(0", "- a\n", "|a", "\x00", "\ud800"]
HOSTILE = [unit * (100_000 // len(unit)) for unit in UNITS]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:8]))
def test_hostile_texts_end_soon_and_raise_nothing(everything: RowFilters, text: str) -> None:
    row = make_row(text, {"title": "x"}, ids=range(50))
    row = Record(row.prompt, row.generation, f'{{"title":{canonical_json(text)}}}', 1.0)
    started = time.process_time()
    outcome = apply(everything, row)
    assert time.process_time() - started < 30  # a pattern that backtracks takes hours
    assert not isinstance(outcome, Rejection) or outcome.kind == "rejected"


@given(st.text(max_size=300), st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=8))
@settings(max_examples=100)
def test_no_text_makes_a_filter_raise(reasoning: str, value: Any) -> None:
    outcome = apply(
        open_filters(FiltersConfig.model_validate(EVERYTHING), StyleConfig(), None),
        make_row(reasoning, {"value": value}),
    )
    assert not isinstance(outcome, Rejection) or outcome.kind == "rejected"


def test_a_row_without_reasoning_is_looked_at(everything: RowFilters) -> None:
    row = make_row(None, {"title": "A short title"})
    assert apply(everything, row) is row


@given(st.text(max_size=200))
def test_white_space_and_the_curly_apostrophe_make_no_difference(padding: str) -> None:
    assert find_refusal(f"I\u2019m sorry, but I can\u2019t\n help   with that. {padding}")
