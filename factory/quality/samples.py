"""Rejection sampling: what the answers to one prompt say together, and which of them are kept.

Pure functions over the outcomes of one prompt. No outcome is added or lost, and their order stays.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np

from factory.hashing import canonical_json
from factory.records import Form, Generation, Outcome, Pair, Record, Rejection, SampleStats
from factory.texts.texts import normalize, words_of

Keep = Literal["all", "best", "shortest", "pair"]
NOT_KEPT: Final = {"best": "not_best", "shortest": "not_shortest", "pair": "not_best"}
# how plausible a wrong answer is, by the stage that rejected it; a stage that is not here says nothing of the answer
PLAUSIBLE: Final = ("check", "judge", "schema", "parse", "filter", "teacher")


def choose(outcomes: Sequence[Outcome], keep: Keep) -> tuple[list[Outcome], Pair | None]:
    """The outcomes of one prompt with their `samples` set, those that are not kept as rejections, and a pair.

    `all` keeps every record, `best` one, `shortest` one, `pair` the best right one together with the most plausible
    wrong answer. The pair is None for another `keep`, and where a right or a wrong answer to the same messages lacks.
    """
    told = _with_stats(outcomes)
    records = [outcome for outcome in told if isinstance(outcome, Record)]
    if keep == "all" or not records:
        return told, None
    kept = _pick(records, keep)
    decided = [_turn_down(o, keep) if isinstance(o, Record) and o is not kept else o for o in told]
    # what a retry replaced is a wrong answer all the same
    earlier = [attempt.outcome for outcome in told for attempt in outcome.prompt.history if attempt.outcome]
    wrong = _most_plausible([*decided, *earlier], kept) if keep == "pair" and is_right(kept) else None
    return decided, (kept, wrong) if wrong else None


def canonical_answer(text: str, form: Form = "json") -> str:
    """One text for all ways to write the same JSON value (3.0 is 3); the text itself where it is not JSON.

    A free text is told without what two writings of it may differ in: Unicode form, case, spaces; so is what is said
    beside calls.
    """
    if form == "text":
        return normalize(text)
    try:
        if form == "calls":
            reply = json.loads(text, parse_float=_whole_or_float)
            return canonical_json(reply | {"content": normalize(reply["content"])})
        return canonical_json(json.loads(text, parse_float=_whole_or_float))
    except (ValueError, RecursionError):
        return text


def is_right(outcome: Outcome) -> bool:
    """Whether the answer passed its task's check without a finding, be it kept or not."""
    return bool(outcome.right)


def _whole_or_float(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _with_stats(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The same outcomes with pass rate and agreement; a prompt with one sample has neither."""
    if len(outcomes) < 2:
        return [replace(outcome, samples=SampleStats()) for outcome in outcomes]
    # a wrong answer votes too: agreement is about what the teacher says, not about whether it is right
    answers = [None if o.answer is None else canonical_answer(o.answer, o.prompt.form) for o in outcomes]
    right = [verdict for verdict in map(_first_verdict, outcomes) if verdict is not None]
    rate = sum(right) / len(right) if right else None
    measures = {"text": word_f1, "calls": reply_f1}
    measure = measures.get(outcomes[0].prompt.form)
    shares = _count_equal(answers) if measure is None else _agree(answers, measure)
    return [replace(o, samples=SampleStats(rate, share)) for o, share in zip(outcomes, shares, strict=True)]


def _count_equal(answers: Sequence[str | None]) -> list[float | None]:
    counts = Counter(answer for answer in answers if answer is not None)
    return [None if answer is None else counts[answer] / counts.total() for answer in answers]


def _agree(texts: Sequence[str | None], measure: Callable[[str, str], float]) -> list[float | None]:
    """Of each text the mean of a measure with all of them, itself among them: 1 where all say the same.

    Two sentences are hardly ever equal, so a share of equal ones would say nothing. Texts that never agree come to
    1 / n, as values that differ do.
    """
    held = [text for text in texts if text is not None]
    means = {text: sum(measure(text, other) for other in held) / len(held) for text in dict.fromkeys(held)}
    return [None if text is None else means[text] for text in texts]


def word_f1(one: str, other: str) -> float:
    """The F1 of two texts' words, as often as each stands there, in any order (SQuAD's measure with our words).

    Texts without words (an emoji, a dash) are 1 where they are equal, else 0.
    """
    words, others = Counter(words_of(one)), Counter(words_of(other))
    if one == other or not (words and others):
        return float(one == other)
    return 2 * (words & others).total() / (words.total() + others.total())


def reply_f1(one: str, other: str) -> float:
    """1 for two replies with the same calls, 0 for other calls; of two that call nothing, the F1 of their words.

    What is said beside a call is courtesy, and not what two replies agree about.
    """
    ours, theirs = json.loads(one), json.loads(other)
    if ours["tool_calls"] or theirs["tool_calls"]:
        return float(ours["tool_calls"] == theirs["tool_calls"])
    return word_f1(ours["content"], theirs["content"])


def _first_verdict(outcome: Outcome) -> bool | None:
    """Whether the first attempt at a row was right: a second one has been told, or is a second chance."""
    history = outcome.prompt.history
    return history[0].right if history else outcome.right


def _pick(records: Sequence[Record], keep: Keep) -> Record:
    # a short wrong answer must not beat a long right one; under the gate `schema` records may be wrong
    right = [record for record in records if is_right(record)] or records
    if keep == "shortest":
        return min(right, key=lambda record: (_tokens(record.generation), *_rank(record)))
    return min(right if keep == "pair" else records, key=_rank)


def _rank(record: Record) -> tuple[float, ...]:
    """Lowest is best: judge, then score, then the teacher's own probability, then length, then sample index."""
    score = record.verdict.score if record.verdict else None
    judged = -math.inf if score is None else score
    generation = record.generation
    return -judged, -record.score, -_mean_logprob(generation), _tokens(generation), record.prompt.sample


def _turn_down(record: Record, keep: str) -> Rejection:
    return record.reject("samples", NOT_KEPT[keep], record.findings)


def _most_plausible(outcomes: Sequence[Outcome], kept: Record) -> Outcome | None:
    """The wrong answer to the very messages of `kept` that is nearest to a right one; None where there is none."""
    wrong = (o for o in outcomes if isinstance(o, Rejection) and _is_wrong(o) and _compares(o, kept))
    return min(wrong, key=_implausibility, default=None)


def _is_wrong(rejection: Rejection) -> bool:
    if rejection.kind == "error":
        return False
    # what a filter or a judge turned down is the worse answer of a pair, although its check found nothing
    return rejection.stage in PLAUSIBLE or (rejection.stage == "samples" and not rejection.right)


def _compares(rejection: Rejection, kept: Record) -> bool:
    """Whether a trainer can hold the two against each other: same messages, and another text that is not blank."""
    generation = rejection.generation
    if generation is None or not generation.answer_text.strip() or generation.text == kept.generation.text:
        return False
    return rejection.prompt.messages == kept.prompt.messages


def _implausibility(rejection: Rejection) -> tuple[Any, ...]:
    assert rejection.generation is not None
    # a record that was not kept although its check found faults stands with those whose check rejected them
    stage = PLAUSIBLE.index("check" if rejection.stage == "samples" else rejection.stage)
    return stage, -_mean_logprob(rejection.generation), rejection.prompt.sample, rejection.prompt.attempt


def _tokens(generation: Generation) -> int:
    return len(generation.completion_token_ids)


def _mean_logprob(generation: Generation) -> float:
    """Mean of the sampled tokens' log-probabilities; lowest of all where they are not kept."""
    logprobs = generation.logprobs
    if logprobs is None or not logprobs.sampled_T.size:
        return -math.inf
    # NaN compares as neither less nor more and would make the order of samples depend on their number
    mean = float(np.mean(logprobs.sampled_T, dtype=np.float64))
    return -math.inf if math.isnan(mean) else mean
