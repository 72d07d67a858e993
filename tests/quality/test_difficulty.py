"""Difficulty: measures by hand, formulas that are told to be wrong before a run, and a number or None for every row."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from factory.errors import JobError
from factory.job.gates import DifficultyConfig
from factory.quality.difficulty import FUNCTIONS, NAMES, Values, compile_formula, known_names, measure, values
from factory.records import Generation, Measures, Prompt, Record, SampleStats, Sampling, Verdict
from factory.signals import Logprobs

DEFAULT = DifficultyConfig().formula
ALL = known_names(2, 20, True)
UNSAMPLED = SampleStats()
PROMPT = Prompt("p", 0, 0, "t", "easy", (), "{}", 0, Sampling())


def values_of(made: Record, measures: Measures) -> Values:
    return values(made.samples, made.verdict.score if made.verdict else None, measures)


def record(
    sampled: Any = (-0.5, -1.5, -0.25, -0.75),
    entropy: Any = (1.0, 3.0, 0.0, 2.0),
    answer_start: int = 2,
    reasoning: str | None = "so",
    samples: SampleStats = UNSAMPLED,
    judge: float | None = None,
) -> Record:
    """A row of as many tokens as `sampled` has; no logprobs where that is None."""
    kept = None
    tokens = 4 if sampled is None else len(sampled)
    if sampled is not None:
        sampled_T, entropy_T = np.array(sampled, np.float32), np.array(entropy, np.float32)
        kept = Logprobs(sampled_T, np.zeros((tokens, 0), np.int32), np.zeros((tokens, 0)), sampled_T, entropy_T)
    made = Generation(
        prompt_id="p",
        attempt=0,
        text="",
        reasoning=reasoning,
        answer_text="{}",
        prompt_token_ids=np.zeros(1, np.int32),
        completion_token_ids=np.zeros(tokens, np.int32),
        answer_start=answer_start,
        finish_reason="stop",
        logprobs=kept,
    )
    verdict = None if judge is None else Verdict(judge, "so")
    return Record(PROMPT, made, "{}", 1.0, (), verdict, samples)


def difficulty(formula: str, made: Record) -> float | None:
    return measure(made, compile_formula(formula, ALL)).difficulty


def test_measures_by_hand() -> None:
    assert measure(record()) == Measures(
        entropy_mean=1.5, entropy_max=3.0, surprise=0.75, confidence=math.exp(-0.5), reasoning_tokens=2
    )


def test_parts_by_hand() -> None:
    made = record(samples=SampleStats(0.75, 0.5), judge=0.9)
    known = values_of(made, measure(made))
    assert known["uncertainty"] == pytest.approx(1 - math.exp(-1.5))
    assert known["surprisal"] == pytest.approx(1 - math.exp(-0.75))
    assert known["effort"] == pytest.approx(1 - math.exp(-2 / 256))
    assert known["failure"] == 0.25
    assert known["disagreement"] == 0.5
    assert known["doubt"] == pytest.approx(0.1)
    assert (known["pass_rate"], known["agreement"], known["judge_score"]) == (0.75, 0.5, 0.9)
    assert tuple(sorted(known)) == tuple(sorted(NAMES))


def test_the_default_formula_is_the_mean_of_the_parts_that_are_known() -> None:
    made = record(samples=SampleStats(0.75, 0.5), judge=0.9)
    known = values_of(made, measure(made))
    parts = [known[name] for name in ("uncertainty", "surprisal", "effort", "failure", "disagreement", "doubt")]
    assert difficulty(DEFAULT, made) == pytest.approx(np.mean(np.array(parts, float)))
    assert difficulty(DEFAULT, record()) == pytest.approx(np.mean(np.array(parts[:3], float)))
    assert difficulty(DEFAULT, record(sampled=None)) == pytest.approx(1 - math.exp(-2 / 256))


def test_without_logprobs_their_measures_are_unknown() -> None:
    assert measure(record(sampled=None)) == Measures(reasoning_tokens=2)


def test_a_teacher_that_does_not_reason_spends_no_tokens_on_it() -> None:
    assert measure(record(reasoning=None, answer_start=1)).reasoning_tokens == 0


def test_no_tokens_have_no_measures() -> None:
    assert measure(record((), ())) == Measures(reasoning_tokens=0)
    assert measure(record(answer_start=4)).confidence is None


def test_numbers_that_are_none_are_not_kept() -> None:
    made = measure(record((-math.inf, -1.0, -1.0, -1.0), (math.nan, 1.0, 1.0, 1.0)))
    assert made == Measures(None, None, None, math.exp(-1.0), 2)


def test_what_rounding_puts_over_the_edge_stays_in_bounds() -> None:
    made = record((1e-3,) * 4, (-1e-3,) * 4)
    assert measure(made).confidence == 1.0
    known = values_of(made, measure(made))
    assert (known["uncertainty"], known["surprisal"]) == (0.0, 0.0)


arrays_of_floats = hnp.arrays(np.float32, st.integers(0, 6), elements=st.floats(width=32))


@given(arrays_of_floats, arrays_of_floats, st.integers(-1, 8), st.none() | st.text(max_size=3))
@example(np.array([math.inf, -math.inf], np.float32), np.zeros(0, np.float32), 0, None)
def test_every_float_is_finite_and_every_part_in_bounds(
    sampled: Any, entropy: Any, answer_start: int, reasoning: str | None
) -> None:
    made = record(sampled, np.resize(entropy, len(sampled)), answer_start, reasoning)
    measures = measure(made, compile_formula(DEFAULT, ALL))
    told = [getattr(measures, each.name) for each in fields(measures)]
    assert all(value is None or math.isfinite(value) for value in told)
    for name in ("uncertainty", "surprisal", "effort"):
        part = values_of(made, measures)[name]
        assert part is None or 0 <= part <= 1
    assert measures.difficulty is None or 0 <= measures.difficulty <= 1


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("reasoning_tokens", 2.0),
        ("mean(1, 2, 6)", 3.0),
        ("min(surprise, 2) + max(1, 2, 3)", 3.75),
        ("exp(0) + log(1) + sqrt(16) + abs(-2)", 7.0),
        ("-entropy_max ** 2 / 3 + +1", -2.0),
        ("2 ** -1 - 0.5 * 3", -1.0),
        ("mean(failure, effort * 0, 1)", 0.5),
        ("  \n mean(\n  1,\n  3)  \n", 2.0),
        ("log(8, 2)", 3.0),
    ],
)
def test_formulas_by_hand(formula: str, expected: float) -> None:
    assert difficulty(formula, record()) == pytest.approx(expected)


@pytest.mark.parametrize(
    "formula",
    [
        "1 / (reasoning_tokens - 2)",
        "log(surprise - 1)",
        "sqrt(-surprise)",
        "(-surprise) ** 0.5",
        "exp(reasoning_tokens * 1000)",
        "9 ** 9 ** 9",
        "reasoning_tokens ** 99999",
        "1e308 * 10",
        "1e999 - 1e999",
        "failure + 1",
        "2 * failure",
        "min(failure, 1)",
        "mean(failure, doubt)",
        "mean()",
    ],
)
def test_a_row_for_which_a_formula_has_no_number_has_no_difficulty(formula: str) -> None:
    assert difficulty(formula, record()) is None


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        ("", "no formula"),
        ("1 +", "no formula"),
        ("surprise; 1", "no formula"),
        ("x = 1", "no formula"),
        ("\x00", "no formula"),
        ("hardness + 1", "unknown name 'hardness' (known: reasoning_tokens, effort,"),
        ("mean", "unknown name 'mean'"),
        ("min(1, 2, key=abs)", "names an argument"),
        ("surprise.real", "surprise.real, which is no arithmetic"),
        ("().__class__.__bases__[0].__subclasses__()", "unknown function"),
        ("surprise.__class__", "which is no arithmetic"),
        ("'a' * 9999999999", "'a', which is no arithmetic"),
        ("b'a'", "which is no arithmetic"),
        ("True", "True, which is no arithmetic"),
        ("1j", "which is no arithmetic"),
        ("...", "which is no arithmetic"),
        ("[x for x in (1, 2)]", "which is no arithmetic"),
        ("lambda: 1", "which is no arithmetic"),
        ("1 if surprise else 2", "which is no arithmetic"),
        ("surprise > 1", "which is no arithmetic"),
        ("surprise and 1", "which is no arithmetic"),
        ("7 // 2", "FloorDiv, which is no arithmetic"),
        ("7 % 2", "Mod, which is no arithmetic"),
        ("~1", "which is no arithmetic"),
        ("1 << 99999", "which is no arithmetic"),
        ("f'{surprise}'", "which is no arithmetic"),
        ("(y := 1)", "which is no arithmetic"),
        ("mean(*(1, 2))", "which is no arithmetic"),
        ("open('x')", "unknown function open"),
        ("__import__('os')", "unknown function __import__"),
        ("surprise(1)", "unknown function surprise"),
        ("mean(1)(2)", "unknown function mean(1)"),
        ("sqrt(1, 2)", "sqrt"),
        ("sqrt()", "sqrt"),
        ("min(1)", "not iterable"),
        ("-" * 900 + "1", "nested too deeply"),
        ("(" * 400 + "1" + ")" * 400, ""),
    ],
)
def test_what_is_no_formula_is_told_on_one_line(formula: str, told: str) -> None:
    with pytest.raises(JobError) as caught:
        compile_formula(formula, ALL)
    message = str(caught.value)
    assert message.startswith("difficulty.formula: ")
    assert told in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("formula", "known", "needs"),
    [
        ("failure", known_names(1, 20, True), "failure, which needs samples.n of 2 or more"),
        ("1 + mean(effort, 2 * agreement)", known_names(1, 20, True), "agreement, which needs samples.n"),
        ("mean(max(doubt, effort))", known_names(2, 20, False), "doubt, which needs a [judge]"),
        ("uncertainty * effort", known_names(2, 0, True), "uncertainty, which needs signals.top_k"),
        ("mean(failure, doubt)", known_names(1, 20, False), "no row of this job has doubt, failure (it has: "),
    ],
)
def test_a_name_that_no_row_will_have_is_told_before_the_run(formula: str, known: set[str], needs: str) -> None:
    with pytest.raises(JobError, match=r"^difficulty\.formula: no row of this job has") as caught:
        compile_formula(formula, known)
    assert needs in str(caught.value)
    assert compile_formula(formula, ALL)


def test_the_default_formula_is_for_every_job() -> None:
    for n in (1, 2):
        for top_k in (0, 20):
            for judged in (False, True):
                assert compile_formula(DEFAULT, known_names(n, top_k, judged))


def test_known_names_are_those_that_rows_have() -> None:
    made = record(samples=SampleStats(0.5, 0.5), judge=0.5)
    bare = replace(record(sampled=None), samples=UNSAMPLED)
    for each, names in ((made, ALL), (bare, known_names(1, 0, False))):
        assert {name for name, value in values_of(each, measure(each)).items() if value is not None} == names


numbers = st.integers(-9, 999).map(str) | st.floats(0, 10).map(repr)
formulas = st.recursive(
    numbers | st.sampled_from(NAMES),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner),
        st.builds("-{}".format, inner),
        st.builds("{}({}, {})".format, st.sampled_from(["mean", "min", "max"]), inner, inner),
        st.builds("{}({})".format, st.sampled_from(["exp", "log", "sqrt", "abs", "mean"]), inner),
    ),
    max_leaves=12,
)
row_values = st.fixed_dictionaries({name: st.none() | st.floats(0, 1) | st.integers(0, 10**6) for name in NAMES})


@given(formulas, row_values)
@example("min(0, (0 - 1) ** 1.5)", dict.fromkeys(NAMES, 0.5))
def test_a_formula_gives_a_finite_number_or_none_and_never_raises(formula: str, row: dict[str, float | None]) -> None:
    result = compile_formula(formula, ALL)(row)
    assert result is None or (isinstance(result, float) and math.isfinite(result))


@given(st.text(st.sampled_from("meanx()+-*/.,0123456789 \"'_[]{}:=!<>\n\\e") | st.characters(), max_size=40))
@example("1" * 5000)
@example("0x")
@example("1if")
@example("mean(" + "effort," * 150 + "1)")
def test_any_text_is_a_formula_or_an_error_of_one_line(text: str) -> None:
    told, value = "", None
    try:
        value = compile_formula(text, ALL)(values_of(record(), Measures()))
    except JobError as error:
        told = str(error)
    assert "\n" not in told
    assert value is None or math.isfinite(value)


def test_two_formulas_do_not_meddle_with_each_other() -> None:
    one, two = compile_formula("surprise", ALL), compile_formula("surprise * 2", ALL)
    row = values_of(record(), measure(record()))
    assert (one(row), two(row), one(row)) == (0.75, 1.5, 0.75)


def test_functions_are_the_ones_that_the_documents_name() -> None:
    assert sorted(FUNCTIONS) == ["abs", "exp", "log", "max", "mean", "min", "sqrt"]
