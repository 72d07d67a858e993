"""The demo teacher's tokenizer: nothing is lost, and times, dates and digits are cut as its description says."""

import json
from itertools import chain

import pytest
from demo_support import TINY, shared_corpus, shared_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from factory.demo_teacher.corpus import texts
from factory.demo_teacher.recipe import TASKS, draw_tokenizer_examples
from factory.demo_teacher.tokenizer import CHAT_TEMPLATE, train_tokenizer
from factory.messages import Message
from factory.teachers.prompt_ids import PromptEncoder
from factory.teachers.reasoning import find_markers
from factory.texts.calls import spell_answer


def pieces(text: str) -> list[str]:
    """Where a text is cut before any token is sought."""
    cut = shared_tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in cut]


def round_trip(text: str) -> str:
    tokenizer = shared_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("task", TASKS)
def test_all_texts_of_the_tasks_come_back_as_they_were(task: str) -> None:
    corpus = shared_corpus()
    examples = [corpus.held_out(task, level, number) for level in corpus.levels[task] for number in range(4)]
    assert [text for text in texts(examples) if round_trip(text) != text] == []


@given(st.text())
def test_any_text_comes_back_as_it_was(text: str) -> None:
    assert round_trip(text) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n\n  \t", "né 日本語 🛫👩‍👩‍👧 \u200b\ufeff", "\x00\x7f", "a" * 20_000, "1" * 5_000]
)
def test_odd_and_long_texts_come_back_as_they_were(text: str) -> None:
    assert round_trip(text) == text


def test_a_clock_time_is_one_piece() -> None:
    assert pieces("at 09:30-17:45, 7:30") == ["at", " 09:30", "-", "17:45", ",", " 7", ":", "3", "0"]
    assert pieces("T09:30") == ["T", "09:30"]


def test_a_date_is_a_year_a_month_and_a_day() -> None:
    assert pieces("on 2025-03-30T10:00") == ["on", " 2025", "-03", "-30", "T", "10:00"]


@pytest.mark.parametrize("text", ["12345", "5472 x 3648", "130 x 4 = 520", "2025", "12:345", "112:30"])
def test_every_other_digit_stands_on_its_own(text: str) -> None:
    assert [piece for piece in pieces(text) if sum(char.isdigit() for char in piece) > 1] == []


def test_no_token_of_the_vocabulary_holds_two_digits_but_times_years_months_and_days() -> None:
    tokenizer = shared_tokenizer()
    tokens = [tokenizer.decode([index]) for index in range(len(tokenizer))]
    many = {token.strip() for token in tokens if sum(char in "0123456789" for char in token) > 1}
    allowed = [len(token) <= 5 and token[-2:].isdigit() for token in many]
    assert many
    assert all(allowed), many


def test_pieces_join_to_the_text() -> None:
    text = '{"start":"2025-06-17T09:00"}\n\n  Tue 2025-06-17 08:00-17:00;  left 1,200 €.'
    assert "".join(pieces(text)) == text


def test_the_same_texts_give_the_same_tokenizer() -> None:
    corpus = shared_corpus()
    made = [
        train_tokenizer(texts(corpus.examples(draw_tokenizer_examples(TINY, corpus.levels))), 400) for _ in range(2)
    ]
    assert made[0].backend_tokenizer.to_str() == made[1].backend_tokenizer.to_str()
    assert len(made[0]) == 400


QUESTION: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}]


@pytest.mark.parametrize(
    ("reasoning", "end"), [("auto", "<think>"), ("prompted", "<think>"), ("off", "<think></think>")]
)
def test_a_prompt_ends_where_the_model_goes_on(reasoning: str, end: str) -> None:
    tokenizer = shared_tokenizer()
    ids = PromptEncoder(tokenizer, find_markers(tokenizer, reasoning), {}).encode(QUESTION)
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 2?<|im_end|>\n"
    assert tokenizer.decode(ids) == f"{turns}<|im_start|>assistant\n{end}"


def test_the_chat_template_opens_no_reasoning_where_no_answer_is_asked_for() -> None:
    text = shared_tokenizer().apply_chat_template(QUESTION, tokenize=False, chat_template=CHAT_TEMPLATE)
    assert text.endswith("1 + 2?<|im_end|>\n")


def test_an_answer_with_its_reasoning_is_rendered_as_the_teacher_gives_it() -> None:
    tokenizer = shared_tokenizer()
    answer = {"role": "assistant", "content": "{}", "reasoning_content": "Three."}
    shown = [
        tokenizer.apply_chat_template([*QUESTION, turn], tokenize=False, chat_template=CHAT_TEMPLATE)
        for turn in (answer, answer | {"reasoning_content": None}, {"role": "assistant", "content": "{}"})
    ]
    asked = tokenizer.apply_chat_template(
        QUESTION, tokenize=False, chat_template=CHAT_TEMPLATE, add_generation_prompt=True
    )
    assert shown[0] == f"{asked}Three.</think>{{}}<|im_end|>\n"
    assert shown[1] == shown[2] == f"{asked.removesuffix('<think>')}{{}}<|im_end|>\n"


@pytest.mark.parametrize("content", ["", "Both are set."])
def test_calls_are_rendered_as_a_teacher_spells_them(content: str) -> None:
    """Whoever trains through the template must see what the ids say, to the last line break."""
    calls = [{"name": "set_timer", "arguments": {"minutes": 5}}, {"name": "say", "arguments": {"text": "done"}}]
    answer = {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": call} for call in calls],
    }
    shown = shared_tokenizer().apply_chat_template([*QUESTION, answer], tokenize=False, chat_template=CHAT_TEMPLATE)
    spelt = spell_answer("calls", json.dumps({"content": content, "tool_calls": calls}))
    assert shown.endswith(f"<|im_start|>assistant\n{spelt}<|im_end|>\n")


def test_the_special_tokens_are_the_first_ids_and_one_token_each() -> None:
    tokenizer = shared_tokenizer()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    assert list(chain.from_iterable(tokenizer.encode(name, add_special_tokens=False) for name in names)) == [*range(5)]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
