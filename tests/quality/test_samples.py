"""Rejection sampling: shares that add up, one choice for one set of answers, and nothing lost."""

import random
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.quality.samples import Keep, canonical_answer, choose, is_right, word_f1
from factory.records import Generation, Outcome, Prompt, Record, Rejection, SampleStats, Sampling, Verdict
from factory.signals import Logprobs

KEEPS: tuple[Keep, ...] = get_args(Keep)
ASKED = ({"role": "user", "content": "Add 1 and 2."},)


def generation(
    text: str = "{}", tokens: int = 4, logprob: float | None = -0.5, failure: str | None = None
) -> Generation:
    kept = None
    if logprob is not None:
        sampled_T = np.full(tokens, logprob, np.float32)
        kept = Logprobs(sampled_T, np.zeros((tokens, 1), np.int32), sampled_T[:, None], sampled_T, -sampled_T)
    return Generation(
        prompt_id="p",
        attempt=0,
        text=text,
        reasoning=None,
        answer_text=text,
        prompt_token_ids=np.zeros(2, np.int32),
        completion_token_ids=np.zeros(tokens, np.int32),
        answer_start=0,
        finish_reason="stop",
        logprobs=kept,
        failure=failure,
    )


def prompt(sample: int, messages: tuple[dict[str, str], ...] = ASKED) -> Prompt:
    return Prompt(f"p{sample}", 0, sample, "t", "easy", messages, "{}", 0, Sampling(), sample=sample, group="p0")


def right(sample: int, answer: str = '{"total":3}', judge: float | None = None, **made: Any) -> Record:
    verdict = None if judge is None else Verdict(judge, "so")
    return Record(prompt(sample), generation(answer, **made), answer, 1.0, (), verdict)


def faulty(sample: int, answer: str = '{"total":4}', **made: Any) -> Record:
    """Accepted although its check found a fault, as under the gate `schema`."""
    return replace(right(sample, answer, **made), score=0.0, findings=("wrong_total: got 4",))


def wrong(
    sample: int, stage: Any = "check", text: str = '{"total":5}', kind: Any = "rejected", **made: Any
) -> Rejection:
    answer = text if stage in ("check", "schema", "judge", "filter") else None
    return Rejection(prompt(sample), generation(text, **made), stage, "wrong", ("wrong: so",), kind, answer)


outcomes_of_a_prompt = st.lists(
    st.one_of(
        st.builds(
            right,
            st.just(0),
            st.sampled_from(['{"total":3}', '{"total": 3.0}', "{}"]),
            st.none() | st.sampled_from([0.2, 0.9]),
            tokens=st.integers(1, 3),
            logprob=st.none() | st.sampled_from([-0.5, -1.0]),
        ),
        st.builds(faulty, st.just(0), logprob=st.sampled_from([-0.5, -1.0])),
        st.builds(
            wrong,
            st.just(0),
            st.sampled_from(["prompt", "teacher", "parse", "schema", "check", "signals", "judge", "filter"]),
            st.sampled_from(["", "  ", "no", '{"total":5}']),
            st.sampled_from(["rejected", "error"]),
            logprob=st.none() | st.sampled_from([-0.5, -1.0]),
            failure=st.sampled_from([None, "engine_crash"]),
        ),
        st.just(Rejection(prompt(0), None, "prompt", "too_long")),
    ),
    max_size=7,
).map(lambda made: [replace(o, prompt=prompt(n)) for n, o in enumerate(made)])


def kept(outcomes: list[Outcome]) -> list[int]:
    return [outcome.prompt.sample for outcome in outcomes if isinstance(outcome, Record)]


def stats(outcomes: list[Outcome]) -> list[tuple[float | None, float | None]]:
    return [(outcome.samples.pass_rate, outcome.samples.agreement) for outcome in outcomes]


def test_pass_rate_counts_what_was_judged_and_agreement_what_has_an_answer() -> None:
    outcomes: list[Outcome] = [
        right(0, '{"total": 3, "words": "x"}'),
        right(1, '{"words":"x","total":3.0}'),
        faulty(2),
        wrong(3, "schema", '{"total":4}'),
        wrong(4, "parse", "no json"),
        wrong(5, "check", kind="error"),
        wrong(6, "teacher", "", failure="engine_crash"),
        Rejection(prompt(7), None, "prompt", "too_long"),
    ]
    rate = 2 / 5
    assert stats(choose(outcomes, "all")[0]) == [
        (rate, 2 / 5),
        (rate, 2 / 5),
        (rate, 2 / 5),
        (rate, 2 / 5),
        (rate, None),
        (rate, 1 / 5),
        (rate, None),
        (rate, None),
    ]


def asked_again(first: Rejection, then: Record, whole: bool = False) -> Record:
    """The record that a row ends in after a first attempt that was turned down."""
    return replace(then, prompt=replace(first.prompt, attempt=1, history=(first.as_attempt(whole),)))


def test_a_retry_does_not_raise_the_pass_rate_and_a_filter_or_judge_does_not_lower_it() -> None:
    filtered = right(2).reject("filter", "pii", ("pii: 1 email in the answer",))
    below = right(3, judge=0.1).reject("judge", "below_threshold", ("below_threshold: 0.10",))
    crashed = wrong(4, "teacher", "", failure="engine_crash")
    outcomes: list[Outcome] = [asked_again(wrong(0), right(0)), asked_again(filtered, right(1)), filtered, below]
    assert {rate for rate, _ in stats(choose(outcomes, "all")[0])} == {3 / 4}
    assert {rate for rate, _ in stats(choose([asked_again(crashed, right(4)), wrong(5)], "all")[0])} == {0.0}


def test_a_scenario_that_a_filter_turns_down_says_nothing_of_the_teacher() -> None:
    contaminated = [right(n).reject("filter", "contaminated", ("contaminated: the scenario ...",)) for n in range(2)]
    assert {rate for rate, _ in stats(choose(contaminated, "all")[0])} == {1.0}
    assert not is_right(faulty(0).reject("filter", "pii", ("pii: 1 email",)))


def test_the_wrong_answer_that_a_retry_replaced_makes_a_pair() -> None:
    first = wrong(0, text='{"total":7}')
    outcomes, pair = choose([asked_again(first, right(0), whole=True), right(1, logprob=-4.0)], "pair")
    assert pair is not None
    assert (pair[0].prompt.attempt, pair[1].prompt.attempt) == (1, 0)
    assert pair[1].generation is not None
    assert pair[1].generation.answer_text == '{"total":7}'
    assert kept(outcomes) == [0]
    repaired = asked_again(first, right(0), whole=True)
    turns = ({"role": "user", "content": "again"},)
    other = replace(repaired, prompt=replace(repaired.prompt, messages=turns))
    assert choose([other], "pair")[1] is None, "a repair was asked something else"


def test_one_sample_has_neither_share() -> None:
    assert stats(choose([right(0)], "all")[0]) == [(None, None)]


def test_no_verdict_at_all_gives_no_pass_rate() -> None:
    outcomes: list[Outcome] = [wrong(0, kind="error"), wrong(1, "teacher", "", failure="engine_crash")]
    assert [rate for rate, _ in stats(choose(outcomes, "all")[0])] == [None, None]


@pytest.mark.parametrize(
    ("records", "best"),
    [
        ([right(0, judge=0.4), right(1, judge=0.9, logprob=-3.0)], 1),
        ([right(0, judge=0.4), right(1)], 0),
        ([faulty(0, judge=0.9), right(1, judge=0.9)], 1),
        ([right(0, logprob=-0.5), right(1, logprob=-0.2, tokens=9)], 1),
        ([right(0, logprob=None), right(1, logprob=-9.0)], 1),
        ([right(0, tokens=5), right(1, tokens=4)], 1),
        ([right(2), right(1), right(3)], 1),
    ],
    ids=["judge", "unjudged", "score", "logprob", "no logprobs", "length", "first sample"],
)
def test_best_is_the_judge_s_choice_then_the_check_s_then_the_teacher_s(records: list[Record], best: int) -> None:
    outcomes, pair = choose(records, "best")
    assert kept(outcomes) == [best]
    assert pair is None
    assert {(o.stage, o.reason) for o in outcomes if isinstance(o, Rejection)} == {("samples", "not_best")}


@pytest.mark.parametrize(
    ("records", "shortest"),
    [
        ([right(0, tokens=5), right(1, tokens=4, logprob=-9.0)], 1),
        ([right(0, tokens=5), faulty(1, tokens=2)], 0),
        ([faulty(0, tokens=5), faulty(1, tokens=4)], 1),
        ([right(0, tokens=4), right(1, tokens=4, logprob=-0.1)], 1),
    ],
    ids=["length", "right ones only", "none right", "a tie"],
)
def test_shortest_is_the_right_answer_of_the_fewest_tokens(records: list[Record], shortest: int) -> None:
    outcomes, _ = choose(records, "shortest")
    assert kept(outcomes) == [shortest]
    assert {o.reason for o in outcomes if isinstance(o, Rejection)} == {"not_shortest"}


@pytest.mark.parametrize(
    ("rejected", "partner"),
    [
        ([wrong(1, "schema"), wrong(2, "check"), wrong(3, "parse")], 2),
        ([wrong(1, "parse", logprob=-0.1), wrong(2, "schema", logprob=-5.0)], 2),
        ([wrong(1, logprob=-2.0), wrong(2, logprob=-1.0)], 2),
        ([wrong(1, logprob=None), wrong(2, logprob=-1.0)], 2),
        ([wrong(2), wrong(1)], 1),
        ([wrong(1, "check", "  "), wrong(2, "parse", "I cannot")], 2),
        ([wrong(1, "schema"), faulty(2)], 2),
        ([wrong(1, "teacher", "{"), wrong(2, "judge")], 2),
    ],
    ids=["stage", "stage first", "logprob", "no logprobs", "first sample", "blank", "accepted but faulty", "judge"],
)
def test_a_pair_has_the_most_plausible_wrong_answer(rejected: list[Outcome], partner: int) -> None:
    outcomes, pair = choose([right(0), right(9, logprob=-4.0), *rejected], "pair")
    assert pair is not None
    assert (pair[0].prompt.sample, pair[1].prompt.sample) == (0, partner)
    assert kept(outcomes) == [0]


@pytest.mark.parametrize(
    "rejected",
    [
        [],
        [wrong(1, kind="error")],
        [wrong(1, "signals")],
        [Rejection(prompt(1), None, "prompt", "too_long")],
        [wrong(1, "check", "")],
        [replace(wrong(1), prompt=prompt(1, (*ASKED, {"role": "user", "content": "Not accepted."})))],
        [wrong(1, "filter", '{"total":3}')],
        [right(1)],
    ],
    ids=["none", "error", "damaged", "never asked", "no text", "another prompt", "the same text", "only right ones"],
)
def test_a_right_answer_without_a_wrong_one_is_kept_alone(rejected: list[Outcome]) -> None:
    outcomes, pair = choose([right(0), *rejected], "pair")
    assert pair is None
    assert kept(outcomes) == [0]


def test_without_a_right_answer_there_is_no_pair() -> None:
    assert choose([wrong(0), wrong(1)], "pair")[1] is None
    outcomes, pair = choose([faulty(0), wrong(1), faulty(2, logprob=-0.1)], "pair")
    assert pair is None
    assert kept(outcomes) == [2]


def test_an_answer_that_is_not_kept_loses_nothing() -> None:
    loser = replace(faulty(1, logprob=-3.0), verdict=Verdict(0.1, "poor"))
    outcomes, _ = choose([replace(right(0), verdict=Verdict(0.2, "fair")), loser], "best")
    rejected = Rejection(
        loser.prompt, loser.generation, "samples", "not_best", loser.findings, "rejected", loser.answer, loser.verdict
    )
    assert outcomes[1] == replace(rejected, samples=SampleStats(0.5, 0.5), passed=False)


def test_no_outcomes_are_no_outcomes() -> None:
    assert all(choose([], keep) == ([], None) for keep in KEEPS)


def identity(outcome: Outcome) -> tuple[str, Any, str | None]:
    return outcome.prompt.id, id(outcome.generation), outcome.answer


@given(outcomes_of_a_prompt, st.sampled_from(KEEPS))
def test_each_outcome_stays_in_its_place(outcomes: list[Outcome], keep: Keep) -> None:
    chosen, _ = choose(outcomes, keep)
    assert [identity(outcome) for outcome in chosen] == [identity(outcome) for outcome in outcomes]
    for before, after in zip(outcomes, chosen, strict=True):
        if isinstance(before, Rejection) or isinstance(after, Record):
            assert replace(after, samples=before.samples) == before


@given(outcomes_of_a_prompt, st.sampled_from(KEEPS))
def test_one_record_is_kept_where_there_is_any_and_a_right_one_of_pairs(outcomes: list[Outcome], keep: Keep) -> None:
    chosen, pair = choose(outcomes, keep)
    records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
    assert len(kept(chosen)) == (len(records) if keep == "all" else min(len(records), 1))
    assert keep == "pair" or pair is None
    if pair is not None:
        assert any(pair[0] is outcome for outcome in chosen)
        assert any(pair[1] is outcome for outcome in chosen)
        assert is_right(pair[0])
        assert not is_right(pair[1])
    if keep in ("shortest", "pair") and any(is_right(record) for record in records):
        assert all(is_right(outcome) for outcome in chosen if isinstance(outcome, Record))


@given(outcomes_of_a_prompt, st.sampled_from(KEEPS))
def test_choosing_again_changes_nothing(outcomes: list[Outcome], keep: Keep) -> None:
    once, pair = choose(outcomes, keep)
    twice, again = choose(once, keep)
    assert twice == once
    assert (pair and [side.prompt.id for side in pair]) == (again and [side.prompt.id for side in again])


@given(outcomes_of_a_prompt, st.sampled_from(KEEPS), st.randoms(use_true_random=False))
def test_the_order_of_the_answers_does_not_matter(outcomes: list[Outcome], keep: Keep, rng: random.Random) -> None:
    mixed = list(outcomes)
    rng.shuffle(mixed)
    chosen, pair = choose(outcomes, keep)
    other, other_pair = choose(mixed, keep)
    assert sorted(other, key=lambda outcome: outcome.prompt.sample) == chosen
    assert other_pair == pair


@given(outcomes_of_a_prompt, st.sampled_from(KEEPS))
def test_shares_lie_between_0_and_1_and_agree_with_each_other(outcomes: list[Outcome], keep: Keep) -> None:
    told = stats(choose(outcomes, keep)[0])
    assert len({rate for rate, _ in told}) <= 1
    assert all(share is None or 0 <= share <= 1 for both in told for share in both)
    if len(outcomes) > 1:
        shares = zip(outcomes, told, strict=True)
        answers = {canonical_answer(o.answer): share for o, (_, share) in shares if o.answer is not None}
        assert not answers or sum(share or 0 for share in answers.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("one", "other"),
    [('{"a":1,"b":2}', '{ "b": 2.0, "a": 1e0 }'), ('"é"', '"\\u00e9"'), ("{", "{"), ("[" * 10_000, "[" * 10_000)],
    ids=["order and numbers", "escapes", "no json", "deep"],
)
def test_answers_are_the_same_where_their_values_are(one: str, other: str) -> None:
    assert canonical_answer(one) == canonical_answer(other)


@pytest.mark.parametrize(
    ("one", "other"), [("[1,2]", "[2,1]"), ("1", '"1"'), ("1", "true"), ("1e999", "2"), ("0.1", "0.10001")]
)
def test_answers_differ_where_their_values_do(one: str, other: str) -> None:
    assert canonical_answer(one) != canonical_answer(other)


@pytest.mark.parametrize(
    ("one", "other", "f1"),
    [
        ("You leave at nine.", "you  LEAVE at nine", 1.0),
        ("The train leaves at nine", "It leaves at nine", 2 * 3 / 9),
        ("no no no", "no", 2 * 1 / 4),
        ("yes", "no", 0.0),
        ("\U0001f600", "\U0001f600", 1.0),
        ("\U0001f600", "\U0001f601", 0.0),
        ("yes", "\U0001f600", 0.0),
        ("\u660e\u5929\u89c1", "\u660e\u5929", 2 * 2 / 5),
    ],
)
def test_two_texts_agree_by_the_words_that_they_share(one: str, other: str, f1: float) -> None:
    assert word_f1(one, other) == word_f1(other, one) == pytest.approx(f1)


def test_a_text_is_no_json_even_where_it_looks_like_it() -> None:
    assert canonical_answer("3.0", "text") != canonical_answer("3", "text")
    assert canonical_answer(" Gut  gemacht, STRASSE", "text") == canonical_answer("gut gemacht, Stra\u00dfe", "text")
