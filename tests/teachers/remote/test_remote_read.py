"""Answers as rows: distributions with honest bounds, texts cut at their markers, ids that are ids."""

import math

import numpy as np
import pytest

from factory.signals import SignalSpec
from factory.teachers.reasoning import KNOWN_MARKERS
from factory.teachers.remote.read import (
    BadAnswer,
    NoIds,
    Token,
    as_ids,
    ended_otherwise,
    find_end,
    make_logprobs,
    split_text,
    text_markers,
    whole_number,
)

WHOLE = SignalSpec(top_k=3, source="endpoint")
RAGGED = SignalSpec(top_k=3, positions="answer", source="endpoint")
EACH = list(zip((5, 7, 9, 11), np.log([0.5, 0.3, 0.1, 0.06]), strict=True))


def token(likeliest: list[tuple[int, float]], number: int = 5, logprob: float = math.log(0.5)) -> Token:
    return Token(number, logprob, tuple(likeliest))


def test_the_likeliest_are_kept_in_order_whatever_order_they_came_in() -> None:
    made = make_logprobs([token([EACH[3], EACH[1], EACH[0], EACH[2]])], WHOLE)
    assert made.topk_ids_TK.tolist() == [[5, 7, 9]]
    assert np.exp(made.topk_TK.astype(np.float64)) == pytest.approx(np.array([[0.5, 0.3, 0.1]]), rel=1e-3)
    assert math.exp(made.tail_T[0]) == pytest.approx(0.1)


def test_the_entropy_is_a_lower_bound_of_any_distribution_it_may_be() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        probs = rng.dirichlet(np.full(50, rng.uniform(0.05, 2)))
        order = np.argsort(-probs)
        made = make_logprobs([token([(int(i), math.log(probs[i])) for i in order[:3]])], WHOLE)
        true = -(probs * np.log(probs)).sum()
        tail = 1 - probs[order[:3]].sum()
        assert made.entropy_T[0] <= true + 1e-4
        assert true <= made.entropy_T[0] + tail * math.log(47) + 1e-4


def test_mass_adds_up_to_one() -> None:
    rng = np.random.default_rng(2)
    probs_TV = rng.dirichlet(np.full(30, 0.2), 100)
    tokens = [token([(int(i), math.log(p[i])) for i in np.argsort(-p)[:3]]) for p in probs_TV]
    for signals in (WHOLE, SignalSpec(top_k=3, keep="top_p", top_p=0.6, source="endpoint")):
        made = make_logprobs(tokens, signals)
        kept = np.where(made.topk_ids_TK < 0, 0, np.exp(made.topk_TK.astype(np.float64))).sum(1)
        assert kept + np.exp(made.tail_T) == pytest.approx(np.ones(100), abs=2e-3)


def test_what_a_grammar_forbids_has_no_probability() -> None:
    made = make_logprobs([token([(5, 0.0), (1, -9999.0), (2, -9999.0)], logprob=0.0)], WHOLE)
    assert made.topk_TK.tolist() == [[0.0, -math.inf, -math.inf]]
    assert made.entropy_T[0] == pytest.approx(0, abs=2e-5)
    assert made.tail_T[0] == pytest.approx(math.log(1e-6))


def test_a_place_with_fewer_has_no_row_where_each_must_have_k() -> None:
    few = [token(EACH[:3]), token(EACH[:2])]
    with pytest.raises(NoIds, match="token 1 has 2 of 3"):
        make_logprobs(few, WHOLE)
    made = make_logprobs(few, RAGGED)
    assert made.topk_ids_TK.tolist() == [[5, 7, 9], [5, 7, -1]]
    assert math.exp(made.tail_T[1]) == pytest.approx(0.2)


def test_no_tokens_are_no_distributions() -> None:
    made = make_logprobs([], WHOLE)
    assert made.topk_ids_TK.shape == (0, 3)
    assert len(made.entropy_T) == 0


@pytest.mark.parametrize(
    ("told", "content", "reasoning", "answer", "unclosed"),
    [
        ("I think.\n", "{}", "I think.", "{}", False),
        (None, "<think>\nI think.\n</think>\n\n{}", "I think.", "{}", False),
        (None, "I think.</think>{}", "I think.", "{}", False),
        (None, "<think>I think and", "I think and", "", True),
        (None, "{}", None, "{}", False),
        ("", "{}", "", "{}", False),
        (None, "[THINK]so[/THINK]{}", "so", "{}", False),
    ],
)
def test_reasoning_is_the_endpoints_field_or_stands_between_markers(
    told: str | None, content: str, reasoning: str | None, answer: str, unclosed: bool
) -> None:
    parts = split_text(told, content, KNOWN_MARKERS)
    assert (parts.reasoning, parts.answer, parts.unclosed) == (reasoning, answer, unclosed)


def test_which_markers_are_looked_for_is_the_jobs() -> None:
    assert text_markers("off") == []
    assert text_markers("prompted") == [KNOWN_MARKERS[0]]
    assert text_markers("auto") == list(KNOWN_MARKERS)


def test_the_answer_begins_after_the_token_that_ends_the_marker() -> None:
    assert find_end([b"a", b"</think>", b"{}"], KNOWN_MARKERS) == 2
    assert find_end([b"a", b"</", b"think", b">{", b"}"], KNOWN_MARKERS) == 4
    assert find_end([b"a", b"b</think>"], KNOWN_MARKERS) == 2
    assert find_end([b"a", b"{}"], KNOWN_MARKERS) is None
    assert find_end([], KNOWN_MARKERS) is None


@pytest.mark.parametrize("value", [None, [], "12", [1, "2"], [1.0], [True], [-1], [2**31]])
def test_what_is_no_list_of_ids_is_none(value: object) -> None:
    with pytest.raises(NoIds):
        as_ids(value, "ids")


@pytest.mark.parametrize("reason", [None, ["stop"], "", "Very odd!", "x" * 60, 5])
def test_an_odd_end_is_an_unreadable_answer(reason: object) -> None:
    found = ended_otherwise(reason)
    assert isinstance(found, BadAnswer)
    assert found.reason == "unreadable_answer"
    assert ended_otherwise("SAFETY").reason == "ended_by_safety"


def test_a_count_that_is_not_there_is_nothing() -> None:
    assert whole_number({"a": {"b": 3}}, "a", "b") == 3
    assert whole_number({"a": None}, "a", "b") == 0
    assert whole_number({"a": -1}, "a") == 0
    assert whole_number(None, "a") == 0
