"""Reasoning markers: which texts a model puts around its reasoning, and where in its token ids the answer begins.

Everything is decided on token ids. A marker that is one token of the vocabulary is found by its id; any other is found
by decoding ever longer prefixes, never by tokenising text again.

    prompt ids             completion ids
    ... <think> \n   |     r r r r </think>  a a a a <eos>
                           0                ^ answer_start: the first id after the end marker

A reasoning that the teacher never ends, and any whose end marker is several tokens, is cut where it ends and closed
with the marker's own ids before the answer begins (`cut_reasoning`):

    r r r r <eos>   ->   r r r r </ think >  a a a a <eos>

In ids that came from elsewhere the last token of such a marker may hold the answer's first letters too: `answer_start`
is then the id after it, and the text of the answer begins inside the id before.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

import numpy as np

from factory.messages import KNOWN_MARKERS
from factory.signals import Array

__all__ = ["KNOWN_MARKERS", "Markers"]


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    all_special_ids: list[int]

    def get_vocab(self) -> dict[str, int]: ...

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Markers:
    """Texts around the reasoning, without white space at their ends; `end_id` is the end's token id where it is one.

    `asked`: the job asks for the reasoning, whatever the model's template does. `opening` and `closing` are the two as
    the job itself spells them, with their white space.
    """

    start: str
    end: str
    # the end's id where it is one token of the vocabulary; None where it is spelt in several
    end_id: int | None
    asked: bool = False
    opening: str = ""
    closing: str = ""


def find_markers(tokenizer: Tokenizer, reasoning: str, start: str = "", end: str = "") -> Markers | None:
    """The markers of a job's `teacher.reasoning`: "auto", "prompted", "off" or "custom" with its two texts.

    None means that the model does not reason: every completion token belongs to the answer.
    """
    vocab = tokenizer.get_vocab()
    opening, closing, asked = start, end, reasoning != "auto"
    if reasoning == "off":
        return None
    if reasoning == "prompted":
        # asked for in words: they need be no tokens of this model
        start, end = KNOWN_MARKERS[0]
    elif reasoning == "auto":
        known = [pair for pair in KNOWN_MARKERS if pair[1] in vocab]
        if not known:
            return None
        start, end = known[0]
    start, end = start.strip(), end.strip()
    return Markers(start, end, vocab.get(end), asked, opening, closing)


def ends_open(prompt: str, markers: Markers) -> bool:
    """Whether a prompt ends where the reasoning begins."""
    return prompt.rstrip().endswith(markers.start)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Token ids as text, with every special token and space as it is."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def find_answer_start(tokenizer: Tokenizer, ids_T: Array, markers: Markers | None) -> int:
    """Index of the first token after the reasoning's end; T where the reasoning never ends, 0 without markers."""
    if markers is None:
        return 0
    if markers.end_id is not None:
        # the first: after it the answer may speak of markers
        hits = np.flatnonzero(ids_T == markers.end_id)
        return int(hits[0]) + 1 if len(hits) else len(ids_T)
    # ids cannot be searched one by one: a letter, or the marker itself, may be spread over several
    ids = ids_T.tolist()
    return first_prefix(len(ids), lambda length: markers.end in decode(tokenizer, ids[:length]))


def first_prefix(length: int, holds: Callable[[int], bool]) -> int:
    """The smallest n in 1..length with holds(n), length if there is none; bisects, as holds never turns false again."""
    low, high = 1, length
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def cut_reasoning(tokenizer: Tokenizer, ids: Sequence[int], markers: Markers, stop_ids: Collection[int]) -> list[int]:
    """Of ids that begin inside a reasoning those that are nothing else: no part of its end marker, nothing behind it,
    and none of the tokens that end a turn."""
    if markers.end_id is not None:
        ids = [*takewhile(lambda number: number != markers.end_id, ids)]
    length = len(ids)
    while length and ids[length - 1] in stop_ids:
        length -= 1
    if markers.end_id is None:
        end = decode(tokenizer, ids[:length]).find(markers.end)
        # a token that lies on both sides goes too: the answer may not begin inside one
        while length and -1 < end < len(decode(tokenizer, ids[:length])):
            length -= 1
    return list(ids[:length])


@dataclass(frozen=True, slots=True)
class SplitCompletion:
    """A completion cut into reasoning and answer."""

    # everything, markers and stop tokens included
    text: str
    # without markers and the line breaks next to them; None where the model does not reason
    reasoning: str | None
    # without the stop tokens at its end; empty where the reasoning never ended
    answer: str
    # index of its first id; T where there is none
    answer_start: int


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of all special tokens: the named ones, and those the vocabulary alone marks so (a turn's end, often)."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset([*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)])


def split_completion(
    tokenizer: Tokenizer,
    ids_T: Array,
    markers: Markers | None,
    stop_ids: Collection[int] | None = None,
    answer_start: int | None = None,
) -> SplitCompletion:
    """Cut a completion where its reasoning ends. The prompt has opened the reasoning, so the ids begin inside it.

    The answer's text is without the stop tokens at its end (`stop_ids`, else the tokenizer's special ones); `text` is
    everything, as it was generated. `answer_start` where it is known already.
    """
    ids = ids_T.tolist()
    start = find_answer_start(tokenizer, ids_T, markers) if answer_start is None else answer_start
    text = decode(tokenizer, ids)
    stops = special_ids(tokenizer) if stop_ids is None else stop_ids
    end = len(ids)
    while end > start and ids[end - 1] in stops:
        end -= 1
    answer = text if not start and end == len(ids) else decode(tokenizer, ids[start:end])
    if markers is None:
        return SplitCompletion(text, None, answer, start)
    reasoning, closed, straddle = decode(tokenizer, ids[:start]).partition(markers.end)
    # a model may write the start marker once more, although the prompt has
    reasoning = reasoning.removeprefix(markers.start)
    # a marker of several tokens may end inside one that already holds the answer's first letters
    begun = straddle if closed and answer_start is None else ""
    return SplitCompletion(text, reasoning.strip("\n"), begun + answer, start)
