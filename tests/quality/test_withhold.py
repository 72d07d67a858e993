"""Withholding: with `redacted` and `dropped` nothing personal is left of a rejected answer, wherever it was carried."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_support import make_generation, make_prompt, make_record, read_table

from factory.checks.verify import verify
from factory.forecast.estimate import estimate
from factory.job.gates import FiltersConfig
from factory.job.job import Job
from factory.quality.retry import ask_again
from factory.quality.withhold import HIDDEN, withhold
from factory.records import Attempt, Record, Rejection, Verdict
from factory.runs.run import run
from factory.texts.personal import find_personal

ADDRESS = "jane@example.com"
TEXT = f"Write to {ADDRESS}."


def make_leak(**changed: Any) -> Rejection:
    """A rejection that carries an address wherever a rejection can carry text."""
    generation = make_generation(1, text=f"{TEXT}</think>{TEXT}", reasoning=TEXT, answer_text=TEXT)
    attempt = Attempt(1, "check", "wrong", (f"wrong: {ADDRESS}",), TEXT)
    rejection = Rejection(
        make_prompt(1, history=(attempt,)),
        generation,
        "filter",
        "pii",
        ("pii: 1 email in the answer", f"wrong: {ADDRESS}"),
        answer=json.dumps({"to": ADDRESS, "text": "Hello", "n": 4111111111111111}),
        verdict=Verdict(0.5, TEXT),
    )
    return replace(rejection, **changed)


def cover(rejection: Rejection, mode: str, kinds: Any = True) -> Rejection:
    config = FiltersConfig(pii=kinds, rejected_pii=mode)
    (covered,), _ = withhold(config, [rejection], [])
    assert isinstance(covered, Rejection)
    return covered


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from strings(part)


def carried(rejection: Rejection) -> list[str]:
    """All texts that are written of a rejection, but for its prompt."""
    generation, verdict = rejection.generation, rejection.verdict
    assert generation is not None
    assert verdict is not None
    history = [[attempt.text, attempt.findings] for attempt in rejection.prompt.history]
    return list(
        strings(
            [
                generation.text,
                generation.reasoning,
                generation.answer_text,
                rejection.answer,
                rejection.findings,
                verdict.reasoning,
                history,
            ]
        )
    )


def test_what_is_kept_is_untouched() -> None:
    rejection = make_leak()
    assert cover(rejection, "kept") is rejection
    assert sum(ADDRESS in text for text in carried(rejection)) == 8


def test_what_is_redacted_has_one_placeholder_everywhere() -> None:
    covered = cover(make_leak(), "redacted")
    assert not any(ADDRESS in text for text in carried(covered))
    assert sum("[EMAIL_1]" in text for text in carried(covered)) == 8
    assert json.loads(str(covered.answer)) == {"to": "[EMAIL_1]", "text": "Hello", "n": 4111111111111111}
    assert covered.generation is not None
    assert covered.generation.completion_token_ids.tolist() == [HIDDEN] * 2
    assert (covered.stage, covered.reason, covered.findings[0]) == ("filter", "pii", "pii: 1 email in the answer")


def test_what_is_dropped_has_no_text_of_the_teacher() -> None:
    covered = cover(make_leak(), "dropped")
    assert not any(ADDRESS in text for text in carried(covered))
    assert covered.generation is not None
    assert (covered.generation.text, covered.generation.reasoning, covered.answer) == ("", None, None)
    assert covered.generation.completion_token_ids.tolist() == [HIDDEN] * 2
    assert covered.prompt.history[0].text == ""
    assert covered.findings == ("pii: 1 email in the answer", "wrong: [EMAIL_1]")


@pytest.mark.parametrize("mode", ["redacted", "dropped"])
def test_a_rejection_without_personal_data_is_untouched(mode: str) -> None:
    rejection = Rejection(make_prompt(1), make_generation(1), "check", "wrong", ("wrong: 4",), answer='{"a": 4}')
    assert cover(rejection, mode) is rejection
    assert cover(Rejection(make_prompt(1), None, "prompt", "render_failed"), mode).generation is None
    leak = make_leak(findings=())
    assert cover(leak, mode, kinds=["iban"]) is leak


def test_an_address_in_escapes_of_json_is_covered_too() -> None:
    text = '{"to": "jane\\u0040example.com"}'
    generation = make_generation(1, text=text, reasoning=None, answer_text=text)
    covered = cover(Rejection(make_prompt(1), generation, "check", "wrong", answer=text), "redacted")
    assert covered.generation is not None
    assert covered.answer is not None
    assert [covered.generation.text, json.loads(covered.answer)] == ['{"to": "[EMAIL_1]"}', {"to": "[EMAIL_1]"}]


def test_what_stands_across_two_strings_is_dropped() -> None:
    answer = json.dumps({"how": "call", "number": "5551234567"})
    generation = make_generation(1, text=answer, reasoning=None, answer_text=answer)
    findings = ("pii: 1 phone in the answer",)
    covered = cover(Rejection(make_prompt(1), generation, "filter", "pii", findings, answer=answer), "redacted")
    assert covered.answer is None
    assert covered.generation is not None
    assert "5551234567" not in covered.generation.text


def test_pairs_are_covered_or_left_out() -> None:
    record, leak = make_record(0), make_leak()
    clean = Rejection(make_prompt(2), make_generation(2), "check", "wrong")
    pairs = [(record, leak), (record, clean)]
    _, kept = withhold(FiltersConfig(pii=True, rejected_pii="kept"), [], pairs)
    assert kept == pairs
    _, redacted = withhold(FiltersConfig(pii=True, rejected_pii="redacted"), [], pairs)
    assert [pair[1].generation.answer_text for pair in redacted if pair[1].generation] == [
        "Write to [EMAIL_1].",
        make_generation(2).answer_text,
    ]
    _, left = withhold(FiltersConfig(pii=True, rejected_pii="dropped"), [], pairs)
    assert left == [(record, clean)]


def test_an_accepted_row_is_never_changed() -> None:
    record = make_record(0)
    (same,), _ = withhold(FiltersConfig(pii=True, rejected_pii="dropped"), [record], [])
    assert same is record
    assert isinstance(same, Record)


@pytest.mark.parametrize(("mode", "shown"), [("kept", TEXT), ("redacted", "Write to [EMAIL_1]."), ("dropped", None)])
def test_a_repair_shows_the_teacher_no_more_than_may_stay(
    make_job: Callable[..., Job], mode: str, shown: str | None
) -> None:
    job = make_job(filters={"pii": True, "rejected_pii": mode}, validation={"retries": 1, "retry": "repair"})
    again = ask_again(job, make_leak(prompt=make_prompt(1)))
    assert again is not None
    assert again.repaired == (shown is not None)
    assert (again.messages[-2]["content"] if again.repaired else None) == shown
    assert (ADDRESS in again.messages[-1]["content"]) == (mode == "kept")


def test_covering_needs_something_to_look_for() -> None:
    with pytest.raises(ValueError, match="pii is off; set it"):
        FiltersConfig(rejected_pii="redacted")


def leaks(out: Path) -> int:
    """Cells of a dataset in which something personal stands, as text or as the token ids that spell it."""
    found = 0
    for config in ("data", "rejected", "preferences"):
        for row in read_table(out, config):
            spelled = [
                bytes(i for i in row[name] if 0 <= i < 256).decode("utf-8", "replace")
                for name in ("prompt_token_ids", "completion_token_ids")
                if name in row
            ]
            found += sum(bool(find_personal(text)) for text in [*strings(row), *spelled])
    return found


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("mode", ["kept", "redacted", "dropped"])
def test_a_whole_run_leaves_nothing_personal_and_stays_sound(
    workspace: Path, make_job: Callable[..., Job], tmp_path: Path, mode: str, retries: int
) -> None:
    job = make_job(
        teacher={"backend": "scripted", "scripted": {"pii": 0.5, "wrong": 0.2}},
        samples={"n": 3, "keep": "pair"},
        validation={"retries": retries, "retry": "repair"},
        filters={"pii": True, "rejected_pii": mode},
        sampling={"max_tokens": 4096, "thinking_tokens": 4000},
    )
    out = tmp_path / mode
    totals = run(job, workspace, out)
    assert list(verify(out)) == []
    assert totals.reasons["filter/pii"] > 0
    assert (leaks(out) > 0) == (mode == "kept")
    lines = "\n".join(estimate(job, workspace, tmp_path / "other"))
    assert "personal data in rejected answers (filters.rejected_pii): " in lines
    card = (out / "README.md").read_text(encoding="utf-8")
    told = {"kept": "as it came", "redacted": "replaced by placeholders", "dropped": "are left out"}
    assert told[mode] in card
    rows = read_table(out, "rejected")
    assert totals.rejected == len(rows)
    assert totals.completion_tokens == sum(
        len(row["completion_token_ids"]) for row in [*rows, *read_table(out, "data")]
    )
    hidden = [row for row in rows if row["completion_token_ids"] and set(row["completion_token_ids"]) == {HIDDEN}]
    assert bool(hidden) == (mode != "kept")
    assert np.all([row["text"] == "" for row in hidden]) or mode == "redacted"
