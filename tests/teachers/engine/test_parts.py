"""The parts of a row: what it begins with, and when it goes on after a turn that has ended."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from random_teacher import train_tokenizer

from factory.records import Sampling
from factory.teachers.engine.parts import Part, Parts, Request
from factory.teachers.prompt_ids import PromptEncoder
from factory.teachers.reasoning import find_markers

OWN = ("auto", "", "")
HALF = ("custom", " <reason>", "</think>")
SPELT = ("custom", "<reason>", "</reason>")
TOKENIZER = train_tokenizer()


def make(markers: tuple[str, str, str], sampling: Sampling, flat_k: int = 0) -> tuple[Parts, Request]:
    """Parts for these markers, and a row not begun yet."""
    encoder = PromptEncoder(TOKENIZER, find_markers(TOKENIZER, *markers), {})
    encoded = encoder.encode_prompt([{"role": "user", "content": "Add."}])
    prompt: dict[str, Any] = {"id": "p", "attempt": 0, "seed": 7, "keeps": True, "sampling": asdict(sampling)}
    return Parts(encoder, 1000, None, flat_k), Request(prompt, encoded.ids, reasons=encoded.reasons)


@pytest.mark.parametrize(
    ("markers", "thinking", "flat_k", "expected"),
    [
        (("off", "", ""), 100, 0, "whole"),
        (OWN, 100, 0, "whole"),
        (OWN, None, 0, "whole"),
        (OWN, 0, 0, "whole"),
        (HALF, 100, 0, "reasoning"),
        (HALF, 100, 5, "whole"),
        (SPELT, 100, 0, "reasoning"),
        (SPELT, None, 0, "reasoning"),
        (SPELT, 0, 0, "answer"),
    ],
)
def test_a_row_begins_with_what_vllm_can_end(
    markers: tuple[str, str, str], thinking: int | None, flat_k: int, expected: Part
) -> None:
    parts, row = make(markers, Sampling(max_tokens=200, thinking_tokens=thinking), flat_k)
    assert parts.first(row) == expected


def test_a_prompt_that_closes_its_reasoning_is_answered_whole() -> None:
    parts, row = make(SPELT, Sampling(max_tokens=200, thinking_tokens=10))
    assert parts.first(replace(row, reasons=False)) == "whole"


def test_only_a_turn_that_stops_inside_its_reasoning_and_leaves_room_goes_on() -> None:
    parts, row = make(OWN, Sampling(max_tokens=6))
    end = TOKENIZER.convert_tokens_to_ids("</think>")
    assert parts.stopped_inside(row, [9, 9, TOKENIZER.eos_token_id])
    assert not parts.stopped_inside(row, [9, end, 9])
    assert not parts.stopped_inside(row, [9] * 6)
    assert not parts.stopped_inside(replace(row, reasons=False), [9])
    assert not parts.stopped_inside(replace(row, part="answer"), [9])


def test_a_completion_ends_where_the_window_does() -> None:
    parts, row = make(OWN, Sampling(max_tokens=5000))
    assert parts.total(row) == 1000 - len(row.prompt_ids)


def test_signals_are_of_all_ids_of_a_row_or_none() -> None:
    _, row = make(SPELT, Sampling())
    kept = {part: replace(row, part=part).keeps for part in ("whole", "reasoning", "answer", "scored")}
    assert kept == {"whole": True, "reasoning": False, "answer": False, "scored": True}
    given = replace(row, part="answer", completion_ids=[1, 2, 3])
    assert given.inputs == [*row.prompt_ids, 1, 2, 3]
    assert replace(given, part="scored").inputs == [*row.prompt_ids, 1, 2]
