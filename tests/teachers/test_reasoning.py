"""Reasoning: where the answer begins is read off the token ids, whether the marker is one token or many."""

from collections.abc import Sequence

import numpy as np
import pytest

from factory.teachers.reasoning import (
    Markers,
    SplitCompletion,
    cut_reasoning,
    decode,
    find_answer_start,
    find_markers,
    first_prefix,
    split_completion,
)


class TinyTokenizer:
    """A vocabulary of whole pieces; ids are their places in it."""

    def __init__(self, *pieces: str, special: Sequence[str] = ()) -> None:
        self.pieces = [*pieces, *special]
        self.all_special_ids = [self.pieces.index(piece) for piece in special]

    def get_vocab(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate(self.pieces)}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not skip_special_tokens
        assert not clean_up_tokenization_spaces
        return "".join(self.pieces[i] for i in token_ids)

    def ids(self, *pieces: str) -> np.ndarray:
        return np.array([self.pieces.index(piece) for piece in pieces], np.int32)


ONE = TinyTokenizer("a", "b", "{}", "\n", "</think>", "<think>", special=["<|end|>", "<|pad|>"])
MANY = TinyTokenizer("a", "</", "think", ">", "{}", ">{", "}", "\n", special=["<|end|>"])
THINK = Markers("<think>", "</think>", ONE.get_vocab()["</think>"])
SPELT = Markers("<think>", "</think>", None)


@pytest.mark.parametrize(
    ("pieces", "reasoning", "expected"),
    [
        (["<think>", "</think>"], "auto", Markers("<think>", "</think>", 1)),
        (["[THINK]", "[/THINK]"], "auto", Markers("[THINK]", "[/THINK]", 1)),
        (["[/THINK]", "</think>"], "auto", Markers("<think>", "</think>", 1)),
        (["<|START_THINKING|>", "<|END_THINKING|>"], "auto", Markers("<|START_THINKING|>", "<|END_THINKING|>", 1)),
        (["a"], "auto", None),
        (["a"], "prompted", Markers("<think>", "</think>", None, asked=True)),
        (["a", "</think>"], "prompted", Markers("<think>", "</think>", 1, asked=True)),
        (["<think>", "</think>"], "off", None),
    ],
)
def test_markers_come_from_the_vocabulary_or_from_the_job(
    pieces: list[str], reasoning: str, expected: Markers | None
) -> None:
    assert find_markers(TinyTokenizer(*pieces), reasoning) == expected


def test_a_jobs_own_markers_are_taken_as_they_are() -> None:
    assert find_markers(TinyTokenizer("a", "<<"), "custom", ">>", "<<") == Markers(">>", "<<", 1, True, ">>", "<<")
    assert find_markers(TinyTokenizer("a"), "custom", ">>", "<<") == Markers(">>", "<<", None, True, ">>", "<<")


def test_white_space_of_a_jobs_marker_is_its_spelling_and_not_looked_for() -> None:
    found = find_markers(TinyTokenizer("a", "<<"), "custom", ">>\n", "\n<<")
    assert found == Markers(">>", "<<", 1, True, ">>\n", "\n<<")


def test_the_answer_begins_after_the_first_marker() -> None:
    assert find_answer_start(ONE, ONE.ids("a", "b", "</think>", "{}", "</think>"), THINK) == 3
    assert find_answer_start(ONE, ONE.ids("</think>", "{}"), THINK) == 1


def test_an_answer_that_never_begins_begins_at_the_end() -> None:
    assert find_answer_start(ONE, ONE.ids("a", "b"), THINK) == 2
    assert find_answer_start(ONE, ONE.ids("a", "</think>"), THINK) == 2
    assert find_answer_start(MANY, MANY.ids("a", "</", "think"), SPELT) == 3
    assert find_answer_start(ONE, np.zeros(0, np.int32), THINK) == 0
    assert find_answer_start(MANY, np.zeros(0, np.int32), SPELT) == 0


def test_without_markers_everything_is_the_answer() -> None:
    assert find_answer_start(ONE, ONE.ids("a", "</think>", "b"), None) == 0


def test_a_marker_of_several_tokens_is_found_where_it_is_complete() -> None:
    for before in range(9):
        ids_T = MANY.ids(*["a"] * before, "</", "think", ">", "{}", "a")
        assert find_answer_start(MANY, ids_T, SPELT) == before + 3


@pytest.mark.parametrize("length", [1, 2, 3, 10, 100])
def test_the_first_prefix_is_found_by_bisection(length: int) -> None:
    for first in range(1, length + 1):
        assert first_prefix(length, first.__le__) == first
    assert first_prefix(length, lambda n: False) == length


def test_bisection_asks_few_questions() -> None:
    asked: list[int] = []

    def holds(length: int) -> bool:
        asked.append(length)
        return length >= 700

    assert first_prefix(1000, holds) == 700
    assert len(asked) <= 11


def test_a_completion_is_cut_into_reasoning_and_answer() -> None:
    ids_T = ONE.ids("a", "b", "\n", "</think>", "\n", "{}", "<|end|>", "<|pad|>")
    assert split_completion(ONE, ids_T, THINK) == SplitCompletion(
        text="ab\n</think>\n{}<|end|><|pad|>", reasoning="ab", answer="\n{}", answer_start=4
    )


def test_a_teacher_that_opens_its_reasoning_itself_is_read_the_same() -> None:
    split = split_completion(ONE, ONE.ids("<think>", "\n", "a", "</think>", "{}"), THINK)
    assert (split.reasoning, split.answer) == ("a", "{}")


def test_special_tokens_inside_the_answer_stay_and_those_at_its_end_go() -> None:
    split = split_completion(ONE, ONE.ids("</think>", "<|pad|>", "a", "<|end|>"), THINK)
    assert (split.answer, split.text) == ("<|pad|>a", "</think><|pad|>a<|end|>")


def test_reasoning_that_never_ends_leaves_no_answer() -> None:
    split = split_completion(ONE, ONE.ids("a", "b", "<|end|>"), THINK)
    assert (split.answer, split.answer_start) == ("", 3)
    assert split.reasoning is not None
    assert split.reasoning.startswith("ab")


def test_without_markers_there_is_no_reasoning_at_all() -> None:
    split = split_completion(ONE, ONE.ids("a", "</think>", "{}", "<|end|>"), None)
    assert split == SplitCompletion("a</think>{}<|end|>", None, "a</think>{}", 0)


def test_a_token_that_ends_the_marker_and_begins_the_answer_loses_neither() -> None:
    ids_T = MANY.ids("a", "</", "think", ">{", "}", "<|end|>")
    split = split_completion(MANY, ids_T, SPELT)
    assert (split.reasoning, split.answer, split.answer_start) == ("a", "{}", 4)


def test_an_empty_completion_has_nothing_in_it() -> None:
    assert split_completion(ONE, np.zeros(0, np.int32), THINK) == SplitCompletion("", "", "", 0)


def test_every_end_token_goes_whoever_names_it() -> None:
    ids_T = ONE.ids("{}", "b", "<|end|>")
    assert split_completion(ONE, ids_T, None).answer == "{}b"
    assert split_completion(ONE, ids_T, None, stop_ids={1, 6}).answer == "{}"


def test_decoding_shows_every_token() -> None:
    assert decode(ONE, [4, 6, 0]) == "</think><|end|>a"


@pytest.mark.parametrize(
    ("tokenizer", "markers", "pieces", "kept"),
    [
        (ONE, THINK, ["a", "b"], ["a", "b"]),
        (ONE, THINK, ["a", "<|end|>", "<|pad|>"], ["a"]),
        (ONE, THINK, ["a", "</think>", "b", "<|end|>"], ["a"]),
        (MANY, SPELT, ["a", "a"], ["a", "a"]),
        (MANY, SPELT, ["a", "</", "think", ">"], ["a"]),
        (MANY, SPELT, ["a", "</", "think", ">{"], ["a"]),
        (MANY, SPELT, ["a", "</", "think", "<|end|>"], ["a", "</", "think"]),
        (MANY, SPELT, ["</", "think", ">", "\n", "<|end|>"], []),
        (MANY, SPELT, ["<|end|>"], []),
        (MANY, SPELT, [], []),
    ],
)
def test_a_reasoning_is_cut_before_its_marker_and_the_end_of_the_turn(
    tokenizer: TinyTokenizer, markers: Markers, pieces: list[str], kept: list[str]
) -> None:
    ids = tokenizer.ids(*pieces).tolist()
    assert cut_reasoning(tokenizer, ids, markers, tokenizer.all_special_ids) == tokenizer.ids(*kept).tolist()


def test_where_an_answer_begins_may_be_known_already() -> None:
    """White space of the closing marker is no part of the answer."""
    ids = MANY.ids("a", "</", "think", ">", "\n", "{}", "<|end|>")
    assert split_completion(MANY, ids, SPELT, answer_start=5) == SplitCompletion("a</think>\n{}<|end|>", "a", "{}", 5)
