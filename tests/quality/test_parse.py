"""Parsing: one JSON object or the reason why there is none, for any text a teacher may write."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.quality.parse import parse
from factory.records import Generation, Prompt, Rejection, Sampling

PROMPT = Prompt("id", 0, 0, "adding", "easy", (), "{}", 0, Sampling())


def generation(answer: str, **changed: Any) -> Generation:
    """A whole completion of four tokens, of which the last two are the answer."""
    fields: dict[str, Any] = {
        "prompt_id": "id",
        "attempt": 0,
        "text": f"why</think>{answer}",
        "reasoning": "why",
        "answer_text": answer,
        "prompt_token_ids": np.zeros(3, np.int32),
        "completion_token_ids": np.zeros(4, np.int32),
        "answer_start": 2,
        "finish_reason": "stop",
    }
    return Generation(**(fields | changed))


def outcome(answer: str, **changed: Any) -> str | tuple[str, str]:
    """The answer's text, or stage and reason; a rejection carries its prompt, its generation and one finding."""
    made = generation(answer, **changed)
    parsed = parse(PROMPT, made)
    if isinstance(parsed, str):
        return parsed
    assert parsed.prompt is PROMPT
    assert parsed.generation is made
    assert len(parsed.findings) == 1
    assert parsed.kind == "rejected"
    return parsed.stage, parsed.reason


@pytest.mark.parametrize(
    "text", ['{"a":1}', "{}", '{ "a" : [1, {"b": null}] }', '{"ü":"日本\\n"}', '{"a":1e999,"b":-0}']
)
def test_an_object_is_kept_as_it_was_written(text: str) -> None:
    assert outcome(text) == text


@pytest.mark.parametrize(
    "text", ['  {"a":1}\n\n', '```json\n{"a":1}\n```', '```\n{"a":1}```', '\n```json{"a":1}\n```  ']
)
def test_space_and_one_code_fence_around_an_object_are_taken_off(text: str) -> None:
    assert outcome(text) == '{"a":1}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_answer"),
        (" \n\t", "no_answer"),
        ("```json\n```", "no_answer"),
        ("The answer is 4.", "invalid_json"),
        ('{"a":1', "invalid_json"),
        ('{"a":1,}', "invalid_json"),
        ("{'a':1}", "invalid_json"),
        ('{"a":1} Hope that helps!', "invalid_json"),
        ('Sure: {"a":1}', "invalid_json"),
        ('{"a":1}{"a":2}', "invalid_json"),
        ('```json\n{"a":1}\n```\nDone.', "invalid_json"),
        ('```python\n{"a":1}\n```', "invalid_json"),
        ("``````", "invalid_json"),
        ("```", "invalid_json"),
        ('{"a":NaN}', "invalid_json"),
        ('{"a":Infinity}', "invalid_json"),
        ('{"a":-Infinity}', "invalid_json"),
        ('{"a":' + "9" * 5000 + "}", "invalid_json"),
        ('{"a":"\x00"}', "invalid_json"),
        ('\ufeff{"a":1}', "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("[" * 100_000 + "]" * 100_000, "invalid_json"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "invalid_json"),
        ("[]", "not_an_object"),
        ('[{"a":1}]', "not_an_object"),
        ('"a"', "not_an_object"),
        ("3", "not_an_object"),
        ("null", "not_an_object"),
        ("true", "not_an_object"),
        ('{"a":1,"a":2}', "duplicate_keys"),
        ('{"a":1,"\\u0061":2}', "duplicate_keys"),
        ('{"b":[{"a":1,"a":1}]}', "duplicate_keys"),
    ],
)
def test_what_is_no_single_object_has_a_reason(text: str, reason: str) -> None:
    assert outcome(text) == ("parse", reason)


def test_a_finding_says_what_was_wrong_and_where() -> None:
    def finding(text: str) -> str:
        rejection = parse(PROMPT, generation(text))
        assert isinstance(rejection, Rejection)
        return rejection.findings[0]

    assert finding('{"a":1,"b":2,"a":3}') == "key 'a' stands more than once"
    assert finding('{"a":NaN}') == "NaN is not JSON"
    assert finding("[1]") == "got a JSON list, need an object"
    assert finding('{"a":1} x') == "Extra data: line 1 column 9 (char 8)"


def test_a_failed_generation_is_the_teacher_s_or_the_prompt_s() -> None:
    for failure, stage in (("engine_crash", "teacher"), ("prompt_too_long", "prompt")):
        parsed = parse(PROMPT, Generation.failed("id", 0, failure, "why"))
        assert isinstance(parsed, Rejection)
        assert (parsed.stage, parsed.reason, parsed.findings) == (stage, failure, ("why",))


def test_a_completion_without_tokens_is_empty() -> None:
    assert outcome("", completion_token_ids=np.zeros(0, np.int32), answer_start=0) == ("teacher", "empty")


def test_a_completion_that_was_cut_off_is_truncated_whatever_it_holds() -> None:
    assert outcome('{"a":1}', finish_reason="length") == ("teacher", "truncated")
    assert outcome("", finish_reason="length", answer_start=4) == ("teacher", "truncated")


def test_reasoning_that_never_ends_is_not_an_answer() -> None:
    assert outcome("", answer_start=4) == ("parse", "reasoning_not_closed")
    assert outcome('{"a":1}', answer_start=4) == ("parse", "reasoning_not_closed")


def test_a_teacher_that_does_not_reason_needs_no_reasoning() -> None:
    assert outcome('{"a":1}', reasoning=None, answer_start=0) == '{"a":1}'


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
JSON_LIKE = st.text(st.sampled_from('{}[]",:\\ntruefalsN0123.eE-+`json \n\ud800\u0000'), max_size=60)


@settings(max_examples=200)
@given(text=st.text(max_size=200) | JSON_LIKE, tail=st.sampled_from(["", "```", '"}', "}", "]}"]))
def test_any_text_ends_as_an_object_or_a_rejection(text: str, tail: str) -> None:
    for answer in (text + tail, '{"a":"' + text + tail, "```json\n" + text + tail):
        parsed = parse(PROMPT, generation(answer))
        if isinstance(parsed, Rejection):
            assert parsed.reason in {"no_answer", "invalid_json", "duplicate_keys", "not_an_object"}
        else:
            assert isinstance(json.loads(parsed), dict)
            assert parsed in answer


@settings(max_examples=200)
@given(value=JSON_VALUES, indent=st.none() | st.integers(0, 2), ascii_only=st.booleans(), fenced=st.booleans())
def test_every_json_object_is_accepted_and_no_other_value(
    value: Any, indent: int | None, ascii_only: bool, fenced: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    parsed = parse(PROMPT, generation(f"```json\n{text}\n```" if fenced else f" {text} "))
    if isinstance(value, dict):
        assert parsed == text
    else:
        assert isinstance(parsed, Rejection)
        assert parsed.reason == "not_an_object"
