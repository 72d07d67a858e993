"""Validation: the shape, then the check; damaged signals and broken task code are errors, never crashes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SCHEMA, write_task
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.quality.validate import Gate, find_damage, finding_code, validate
from factory.records import Generation, Outcome, Prompt, Record, Rejection, Sampling
from factory.signals import Array, HiddenStates, Logprobs
from factory.tasks.tasks import Task, load_task

TOKENS, INPUTS, K, LAYERS, HIDDEN = 4, 6, 3, (2, 4), 8
PROMPT = Prompt("id", 0, 0, "adding", "easy", (), '{"a":1,"b":2}', 0, Sampling())
RIGHT = '{"total":3,"words":"x"}'
WRONG = '{"total":4,"words":"x"}'


def task_with(root: Path, schema: str = SCHEMA) -> Task:
    write_task(root, schema=schema)
    task, problems = load_task(root, "adding")
    assert task is not None, problems
    return task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return task_with(tmp_path_factory.mktemp("adding"))


def logprobs(**changed: Any) -> Logprobs:
    arrays: dict[str, Any] = {
        "sampled_T": np.full(TOKENS, -0.5, np.float32),
        "topk_ids_TK": np.zeros((TOKENS, K), np.int32),
        "topk_TK": np.full((TOKENS, K), -1.5, np.float16),
        "tail_T": np.full(TOKENS, -2.0, np.float32),
        "entropy_T": np.full(TOKENS, 1.0, np.float32),
    }
    return Logprobs(**(arrays | changed))


def generation(kept: Logprobs | None = None, bits_NLH: Array | None = None) -> Generation:
    """Four tokens after a prompt of three, and so six inputs."""
    return Generation(
        prompt_id="id",
        attempt=0,
        text="",
        reasoning="",
        answer_text="",
        prompt_token_ids=np.zeros(3, np.int32),
        completion_token_ids=np.zeros(TOKENS, np.int32),
        answer_start=2,
        finish_reason="stop",
        logprobs=kept,
        hidden_states=None if bits_NLH is None else HiddenStates(LAYERS, bits_NLH),
    )


def states(count: int = INPUTS, layers: int = len(LAYERS)) -> Array:
    return np.full((count, layers, HIDDEN), 0x3F80, np.uint16)  # 1.0 in bfloat16


def with_value(array: Array, value: float) -> Array:
    """A copy of an array whose last element is another."""
    changed = array.copy()
    changed.flat[-1] = value
    return changed


def decide(task: Task, answer: str, check: bool = True) -> Outcome:
    return validate(Gate(task, check), PROMPT, generation(), answer)


def rejection(task: Task, answer: str) -> Rejection:
    outcome = decide(task, answer)
    assert isinstance(outcome, Rejection)
    return outcome


def test_a_right_answer_becomes_a_record(task: Task) -> None:
    outcome = decide(task, RIGHT)
    assert isinstance(outcome, Record)
    assert (outcome.answer, outcome.score, outcome.findings, outcome.prompt) == (RIGHT, 1.0, (), PROMPT)


@pytest.mark.parametrize(
    ("answer", "reason", "finding"),
    [
        ('{"total":3}', "missing", "words: Field required"),
        ('{"total":3,"words":"x","why":1}', "extra_forbidden", "why: Extra inputs are not permitted"),
        ('{"total":"three","words":"x"}', "int_type", "total: Input should be a valid integer"),
        ('{"total":"3","words":"x"}', "int_type", "total: Input should be a valid integer"),
        ('{"total":-1,"words":"x"}', "greater_than_equal", "total: Input should be greater than or equal to 0"),
        ('{"total":1001,"words":"x"}', "less_than_equal", "total: Input should be less than or equal to 1000"),
        ('{"total":1e999,"words":"x"}', "int_type", "total: Input should be a valid integer"),
        ('{"total":3,"words":"' + "x" * 21 + '"}', "string_too_long", "words: String should have at most 20"),
        ('{"total":3,"words":"\\ud800"}', "json_invalid", "answer: Invalid JSON"),
        ('{"total":3,"words":"\ud800"}', "string_unicode", "answer: Input should be a valid string"),
        ('{"a":' * 400 + "1" + "}" * 400, "json_invalid", "answer: Invalid JSON: recursion limit exceeded"),
    ],
)
def test_an_answer_of_the_wrong_shape_is_rejected_with_pydantic_s_type(
    task: Task, answer: str, reason: str, finding: str
) -> None:
    got = rejection(task, answer)
    assert (got.stage, got.reason, got.kind) == ("schema", reason, "rejected")
    assert got.findings[0].startswith(finding)


def test_all_faults_of_a_shape_are_found_but_not_without_end(task: Task) -> None:
    assert len(rejection(task, '{"total":-1,"why":1}').findings) == 3
    many = ",".join(f'"k{number}":1' for number in range(100))
    assert len(rejection(task, "{" + many + "}").findings) == 20


def test_a_wrong_answer_is_rejected_with_the_code_of_its_first_finding(task: Task) -> None:
    got = rejection(task, WRONG)
    assert (got.stage, got.reason, got.kind) == ("check", "wrong_total", "rejected")
    assert got.findings == ("wrong_total: got 4, expected 3",)


def test_a_schema_gate_keeps_a_wrong_answer_with_its_findings_and_score_0(task: Task) -> None:
    outcome = decide(task, WRONG, check=False)
    assert isinstance(outcome, Record)
    assert (outcome.score, outcome.findings) == (0.0, ("wrong_total: got 4, expected 3",))
    right = decide(task, RIGHT, check=False)
    assert isinstance(right, Record)
    assert (right.score, right.findings) == (1.0, ())


def test_a_schema_gate_still_wants_the_shape(task: Task) -> None:
    outcome = decide(task, "{}", check=False)
    assert isinstance(outcome, Rejection)
    assert outcome.stage == "schema"


@pytest.mark.parametrize(
    ("finding", "code"),
    [
        ("busy_overlap: Ann is busy", "busy_overlap"),
        ("a1:", "a1"),
        ("no code here", "check_failed"),
        ("Ann: is busy", "check_failed"),
        ("two words: no", "check_failed"),
        ("1st: no", "check_failed"),
        ("x" * 65 + ": too long", "check_failed"),
        ("", "check_failed"),
    ],
)
def test_a_finding_begins_with_its_code(finding: str, code: str) -> None:
    assert finding_code(finding) == code


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("return check(scenario, answer)", "RecursionError: maximum recursion depth exceeded"),
        ("assert False, 'x' * 5000", "AssertionError: xxx"),
        ("return None", "TypeError: check must return a list of findings, got None"),
        ("return True", "TypeError: check must return a list of findings, got True"),
        ("return {'a': 1}", "TypeError: check must return a list of findings, got dict"),
        ("return [1]", "TypeError: check must return findings that are texts, got 1 among them"),
        ("return 'wrong_total: one text'", "TypeError: check must return a list of findings, got 'wrong_total: one"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})", "Mute"),
    ],
)
def test_a_check_that_breaks_is_an_error_of_its_row_alone(tmp_path: Path, body: str, says: str) -> None:
    broken = f"\ndef check(scenario, answer):\n    {body}\n"
    got = rejection(task_with(tmp_path, SCHEMA + broken), RIGHT)
    assert (got.stage, got.reason, got.kind) == ("check", "check_raised", "error")
    assert got.findings[0].startswith(says)
    assert len(got.findings[0]) <= 2000


def test_a_validator_that_breaks_is_an_error_of_its_row_alone(tmp_path: Path) -> None:
    broken = "\nfrom pydantic import field_validator\nclass Answer(Answer):\n    @field_validator('total')\n"
    broken += "    def _known(cls, value): return {3: 3}[value]\n"
    task = task_with(tmp_path, SCHEMA + broken)
    assert isinstance(decide(task, RIGHT), Record)
    got = rejection(task, WRONG)
    assert (got.stage, got.reason, got.kind, got.findings) == (
        "schema",
        "validator_raised",
        "error",
        ("KeyError: 4 (adding.py, line 34)",),
    )


def test_a_validator_that_objects_rejects_the_answer(tmp_path: Path) -> None:
    strict = "\nfrom pydantic import field_validator\nclass Answer(Answer):\n    @field_validator('total')\n"
    strict += "    def _even(cls, value):\n        assert value % 2 == 0, 'must be even'\n        return value\n"
    got = rejection(task_with(tmp_path, SCHEMA + strict), RIGHT)
    assert (got.stage, got.reason, got.kind) == ("schema", "assertion_error", "rejected")
    assert got.findings == ("total: Assertion failed, must be even",)


def test_sound_signals_pass() -> None:
    assert find_damage(generation()) is None
    assert find_damage(generation(logprobs(), states())) is None


def test_a_log_probability_of_minus_infinity_and_an_empty_tail_are_sound() -> None:
    minus = with_value(np.full(TOKENS, -1.0, np.float32), -np.inf)
    topk = with_value(np.full((TOKENS, K), -1.0, np.float16), -np.inf)
    assert find_damage(generation(logprobs(sampled_T=minus, topk_TK=topk, tail_T=minus))) is None


def test_rounding_above_0_is_no_damage() -> None:
    kept = logprobs(sampled_T=np.full(TOKENS, 1e-4, np.float32), tail_T=np.full(TOKENS, 1e-4, np.float32))
    assert find_damage(generation(kept)) is None


def test_negative_zero_is_a_blank_state_too() -> None:
    bits = states()
    bits[2, 1] = 0x8000
    assert find_damage(generation(bits_NLH=bits)) == (
        "nonfinite",
        "a hidden state is all zero, infinite or not a number",
    )


def test_a_zero_embedding_is_sound_and_a_zero_block_is_not() -> None:
    bits_NLH = states()
    bits_NLH[2, 0] = 0
    kept = HiddenStates((0, *range(2, bits_NLH.shape[1] + 1)), bits_NLH)
    assert find_damage(replace(generation(), hidden_states=kept)) is None
    assert find_damage(replace(generation(), hidden_states=HiddenStates((1, *kept.layers[1:]), bits_NLH))) is not None


WHOLE = logprobs()
ONE_BLANK, ONE_INFINITE, ONE_NAN = states(), states(), states()
ONE_BLANK[0, 0] = 0
ONE_INFINITE[5, 1, 7] = 0x7F80
ONE_NAN[3, 0, 2] = 0xFFC1


@pytest.mark.parametrize(
    ("made", "reason", "detail"),
    [
        (generation(logprobs(sampled_T=WHOLE.sampled_T[:-1])), "misaligned", "logprobs of length [3, 4] for 4 tokens"),
        (generation(logprobs(tail_T=np.zeros(5))), "misaligned", "logprobs of length [4, 5] for 4 tokens"),
        (generation(logprobs(entropy_T=np.zeros(0))), "misaligned", "logprobs of length [0, 4] for 4 tokens"),
        (generation(logprobs(topk_TK=WHOLE.topk_TK[:2])), "misaligned", "logprobs of length [2, 4] for 4 tokens"),
        (generation(logprobs(topk_ids_TK=WHOLE.topk_ids_TK[:, :2])), "misaligned", "logprobs of length [4]"),
        (generation(logprobs(sampled_T=with_value(WHOLE.sampled_T, np.nan))), "nonfinite", "a kept log-probability"),
        (generation(logprobs(sampled_T=with_value(WHOLE.sampled_T, 0.5))), "nonfinite", "a kept log-probability"),
        (generation(logprobs(topk_TK=with_value(WHOLE.topk_TK, np.nan))), "nonfinite", "a kept log-probability"),
        (generation(logprobs(topk_TK=with_value(WHOLE.topk_TK, np.inf))), "nonfinite", "a kept log-probability"),
        (generation(logprobs(tail_T=with_value(WHOLE.tail_T, np.nan))), "nonfinite", "an entropy is not a number, or"),
        (generation(logprobs(tail_T=with_value(WHOLE.tail_T, np.inf))), "nonfinite", "an entropy is not a number, or"),
        (generation(logprobs(entropy_T=with_value(WHOLE.entropy_T, np.nan))), "nonfinite", "an entropy is not a numb"),
        (generation(logprobs(entropy_T=with_value(WHOLE.entropy_T, np.inf))), "nonfinite", "an entropy is not a numb"),
        (generation(bits_NLH=states(7)), "misaligned", "hidden states of 7 positions for 6 input tokens"),
        (generation(bits_NLH=states(0)), "misaligned", "hidden states of 0 positions for 6 input tokens"),
        (generation(bits_NLH=states(layers=1)), "misaligned", "hidden states of shape (6, 1, 8) for 2 layers"),
        (generation(bits_NLH=states()[0]), "misaligned", "hidden states of shape (2, 8) for 2 layers"),
        (generation(bits_NLH=ONE_BLANK), "nonfinite", "a hidden state is all zero, infinite or not a number"),
        (generation(bits_NLH=ONE_INFINITE), "nonfinite", "a hidden state is all zero, infinite or not a number"),
        (generation(bits_NLH=ONE_NAN), "nonfinite", "a hidden state is all zero, infinite or not a number"),
    ],
)
def test_damaged_signals_are_an_error_before_anything_else(
    task: Task, made: Generation, reason: str, detail: str
) -> None:
    for answer in (RIGHT, "{}"):
        outcome = validate(Gate(task, check=True), PROMPT, made, answer)
        assert isinstance(outcome, Rejection)
        assert (outcome.stage, outcome.reason, outcome.kind) == ("signals", reason, "error")
        assert outcome.findings[0].startswith(detail)


@settings(max_examples=300)
@given(text=st.text(max_size=60) | st.from_regex(r'\{"total":-?[0-9.eE]{0,6},"words":".{0,30}"\}', fullmatch=True))
def test_any_text_ends_as_a_record_or_a_rejection(task: Task, text: str) -> None:
    outcome = decide(task, text)
    if isinstance(outcome, Rejection):
        assert outcome.kind == "rejected"
        assert outcome.stage in {"schema", "check"}
    else:
        assert outcome.answer == text


def test_a_scenario_that_cannot_be_read_back_is_an_error(task: Task) -> None:
    outcome = validate(Gate(task, check=True), replace(PROMPT, scenario='{"b":1}'), generation(), RIGHT)
    assert isinstance(outcome, Rejection)
    assert (outcome.stage, outcome.reason, outcome.kind) == ("check", "scenario_not_json", "error")
