"""Hand-off: which rows and prompts a small model should pass on, and why."""

import numpy as np
import pytest

from factory.curriculum.config import HandOffConfig
from factory.curriculum.handoff import Attempts, explain_prompts, explain_rows, was_answered


def test_why_a_row_is_handed_off() -> None:
    nan = float("nan")
    rates, sure = (np.array(column, np.float32) for column in ([0.2, 0.7, 0.2, nan, 0.7], [0.1, 0.1, 0.9, nan, 0.9]))
    reasons = explain_rows(rates, sure, HandOffConfig(min_pass_rate=0.7, min_confidence=0.5))
    assert reasons.tolist() == ["pass_rate", "confidence", "pass_rate", None, None]


def test_why_a_prompt_is_handed_off() -> None:
    nan = float("nan")
    told: list[tuple[int, bool, bool, bool, bool, bool, float, float]] = [
        # prompt, accepted, right, answered, fits, over, pass rate, confidence
        (1, True, True, True, True, False, 0.9, 0.2),
        (2, True, True, True, False, True, 0.9, 0.9),
        (3, True, True, True, True, False, 0.1, 0.9),
        (4, True, True, True, True, False, 0.9, 0.1),
        (4, True, True, True, False, True, 0.9, 0.5),
        (5, False, False, True, False, False, nan, nan),
        (6, False, True, True, False, False, nan, nan),
        (7, False, False, False, False, False, nan, nan),
        (1, False, False, True, False, False, 0.9, nan),
        (8, False, True, True, False, True, nan, nan),
    ]
    columns = [np.array(column) for column in zip(*told, strict=True)]
    columns[0] = columns[0].astype(np.uint64)
    prompts = explain_prompts(Attempts(*columns), HandOffConfig(min_confidence=0.25))
    found = dict(zip(prompts.row_Q.tolist(), prompts.reason_Q.tolist(), strict=True))
    assert found == {0: "confidence", 1: "too_long", 2: "pass_rate", 3: None, 5: "never_right", 6: None, 9: "too_long"}
    assert prompts.unanswered == 1
    assert prompts.confidence_Q.tolist()[3] == pytest.approx(0.3)


def test_what_tells_nothing_of_the_teacher_is_no_answer() -> None:
    rows = [
        ("rejected", "check", "wrong_total", True),
        ("rejected", "teacher", "truncated", True),
        ("rejected", "teacher", "engine_crash", False),
        ("rejected", "prompt", "prompt_too_long", False),
        ("error", "check", "check_raised", False),
    ]
    kinds, stages, reasons = (np.array([row[i] for row in rows], np.bytes_) for i in range(3))
    assert was_answered(kinds, stages, reasons).tolist() == [row[3] for row in rows]
