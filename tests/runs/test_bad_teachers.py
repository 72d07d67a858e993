"""Whatever a teacher hands over ends as one row with its reason; nothing raises, and every shard stays readable."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from bad_generations import (
    HUGE,
    HUGE_KINDS,
    KINDS,
    SHARD_ROWS,
    SIGNALS,
    VOCAB,
    Expected,
    adding_gate,
    make_bad_generations,
    sound_logprobs,
    sound_states,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from factory.dataset.entries import summarize_shard
from factory.dataset.shards import write_shard
from factory.dataset.signal_columns import decode_states
from factory.quality.validate import Gate, find_damage
from factory.records import Generation, Outcome, Prompt, Record, Rejection
from factory.runs.desk import decide
from factory.signals import HiddenStates

COUNT = 1500
STAGES = {"prompt", "teacher", "parse", "schema", "check", "signals"}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return adding_gate(tmp_path_factory.mktemp("adding"))


@dataclass(frozen=True, slots=True)
class Decided:
    """Every bad generation with what became of it, and the dataset that was written of them."""

    out: Path
    rows: list[tuple[Outcome, Expected]]

    def column(self, config: str, *columns: str) -> Iterator[dict[str, Any]]:
        for path in sorted((self.out / config).glob("*.parquet")):
            yield from pq.read_table(path, columns=list(columns)).to_pylist()


@pytest.fixture(scope="module")
def decided(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Decided:
    made = make_bad_generations(seed=7, count=COUNT)
    rows = [(decide(gate, prompt, generation), expected) for prompt, generation, expected in made]
    out = tmp_path_factory.mktemp("out")
    for shard, outcomes in by_shard(rows):
        write_shard(out, shard, outcomes, SIGNALS)
    return Decided(out, rows)


def by_shard(rows: list[tuple[Outcome, Expected]]) -> Iterator[tuple[int, list[Outcome]]]:
    for shard, group in groupby((outcome for outcome, _ in rows), key=lambda outcome: outcome.prompt.shard):
        yield shard, list(group)


def end_of(outcome: Outcome) -> str:
    return "accepted" if isinstance(outcome, Record) else f"{outcome.stage}/{outcome.reason}"


def as_stored(text: str) -> str:
    """A text with every lone surrogate replaced."""
    return re.sub("[\ud800-\udfff]", "?", text)


def test_the_same_seed_makes_the_same_generations_and_every_kind_is_among_them() -> None:
    def told(seed: int) -> list[tuple[str, str, str]]:
        return [(p.id, g.answer_text, e.kind) for p, g, e in make_bad_generations(seed, 600)]

    assert told(3) == told(3)
    assert told(3) != told(4)
    assert {kind for _, _, kind in told(3)} >= set(KINDS)


def test_every_kind_of_generation_ends_as_it_must(decided: Decided) -> None:
    wrong = [(e.kind, end_of(outcome), sorted(e.ends)) for outcome, e in decided.rows if end_of(outcome) not in e.ends]
    assert wrong == []
    assert {expected.kind for _, expected in decided.rows} == {*KINDS, *HUGE_KINDS}


def test_a_key_that_stands_twice_among_a_hundred_thousand_is_found_in_one_pass(gate: Gate) -> None:
    prompt, generation, _ = next(make_bad_generations(seed=0, count=1))
    keys = ",".join(f'"{number}":1' for number in range(100_000))
    outcome = decide(gate, prompt, replace(generation, failure=None, answer_text=f'{{{keys},"99999":1}}'))
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "duplicate_keys"


def test_accepted_rejected_and_errors_are_all_there_is(decided: Decided) -> None:
    entries = [summarize_shard(shard, outcomes, []) for shard, outcomes in by_shard(decided.rows)]
    assert len(entries) == -(-COUNT // SHARD_ROWS)
    assert sum(entry.accepted + entry.rejected + entry.errors for entry in entries) == COUNT
    reasons = sum((Counter(entry.reasons) for entry in entries), Counter[str]())
    assert reasons == Counter(end_of(outcome) for outcome, _ in decided.rows if isinstance(outcome, Rejection))
    assert all(entry.accepted and entry.rejected and entry.errors for entry in entries)


def test_what_is_damaged_is_an_error_and_what_is_badly_written_is_not(decided: Decided) -> None:
    for outcome, expected in decided.rows:
        if isinstance(outcome, Rejection):
            assert (outcome.kind == "error") == (outcome.stage == "signals"), expected.kind
            assert outcome.stage in STAGES
            assert all(len(finding) <= 5000 for finding in outcome.findings)


def test_every_row_is_read_back_with_its_texts(decided: Decided) -> None:
    for config, kind in (("data", Record), ("rejected", Rejection)):
        want = [outcome for outcome, _ in decided.rows if isinstance(outcome, kind)]
        got = list(decided.column(config, "id", "text", "findings", "finish_reason"))
        for row, outcome in zip(got, want, strict=True):
            assert outcome.generation is not None
            assert row["id"] == outcome.prompt.id
            assert row["text"] == as_stored(outcome.generation.text)
            assert row["findings"] == [as_stored(finding) for finding in outcome.findings]
            assert row["finish_reason"] == outcome.generation.finish_reason


def test_texts_of_ten_million_characters_are_kept_whole(decided: Decided) -> None:
    lengths = [len(row["text"]) for config in ("data", "rejected") for row in decided.column(config, "text")]
    assert len([length for length in lengths if length > HUGE * 0.99]) >= 2


def test_an_accepted_row_holds_its_ids_its_signals_and_its_answer(decided: Decided) -> None:
    records = [outcome for outcome, _ in decided.rows if isinstance(outcome, Record)]
    columns = ("answer", "reasoning", "prompt_token_ids", "completion_token_ids", "topk_ids", "sampled_logprobs")
    states = decided.column("hidden_states", "id", "shape", "states")
    for record, row, state in zip(records, decided.column("data", *columns), states, strict=True):
        made = record.generation
        assert made.logprobs is not None
        assert made.hidden_states is not None
        assert json.loads(row["answer"])["total"] == sum(json.loads(record.prompt.scenario).values())
        assert row["reasoning"] == (None if made.reasoning is None else as_stored(made.reasoning))
        assert row["prompt_token_ids"] == made.prompt_token_ids.tolist()
        assert row["completion_token_ids"] == made.completion_token_ids.tolist()
        assert row["topk_ids"] == made.logprobs.topk_ids_TK.reshape(-1).tolist()
        assert row["sampled_logprobs"] == made.logprobs.sampled_T.tolist()
        assert state["id"] == record.prompt.id
        assert np.array_equal(decode_states(state["states"], state["shape"]), made.hidden_states.bits_NLH)


def test_datasets_loads_every_config(decided: Decided, tmp_path: Path) -> None:
    accepted = sum(isinstance(outcome, Record) for outcome, _ in decided.rows)
    for config, rows in (("data", accepted), ("hidden_states", accepted), ("rejected", COUNT - accepted)):
        files = str(decided.out / config / "*.parquet")
        loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
        assert loaded.num_rows == rows
        assert len(set(loaded["id"])) == rows


def right(gate: Gate, **changed: Any) -> tuple[Prompt, Generation]:
    """A right answer of its own prompt, with some fields replaced."""
    rows = make_bad_generations(seed=1, count=400)
    prompt, generation = next((p, g) for p, g, e in rows if e.kind == "right")
    assert isinstance(decide(gate, prompt, generation), Record)
    return prompt, replace(generation, **changed)


def holds(outcome: Outcome, out: Path) -> None:
    """A row is whole: it has a stage and a reason where it was not accepted, and Parquet takes and gives it back."""
    if isinstance(outcome, Rejection):
        assert outcome.stage in STAGES
        assert outcome.reason
    else:
        assert find_damage(outcome.generation, SIGNALS, VOCAB) is None
        assert isinstance(json.loads(outcome.answer), dict)
    write_shard(out, 0, [outcome], SIGNALS)
    read = {name: pq.read_table(out / name / "train-00000.parquet").to_pylist() for name in ("data", "rejected")}
    assert outcome.generation is not None
    (row,) = read["data"] + read["rejected"]
    assert row["text"] == as_stored(outcome.generation.text)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80)


@settings(max_examples=100)
@given(text=ANY_TEXT, reasoning=st.none() | ANY_TEXT, finish=st.sampled_from(["stop", "length", "", "\ud800"]))
@example(text='{"total":1,"words":"\x00"}', reasoning="\ud800\x00", finish="stop")
def test_any_text_as_a_completion_ends_as_one_row(
    gate: Gate, tmp_path_factory: pytest.TempPathFactory, text: str, reasoning: str | None, finish: str
) -> None:
    whole = f"{reasoning or ''}</think>{text}"
    prompt, made = right(gate, text=whole, answer_text=text, reasoning=reasoning, finish_reason=finish)
    holds(decide(gate, prompt, made), tmp_path_factory.getbasetemp() / "any_text")


SNIPPETS = st.text(st.sampled_from('{}[]",:\\0129eE+-.tfn \n\x00\ud800'), max_size=4) | st.text(max_size=3)


@settings(max_examples=150)
@given(where=st.floats(0, 1), dropped=st.integers(0, 6), put=SNIPPETS)
@example(where=1.0, dropped=0, put="\x1f")
@example(where=0.0, dropped=0, put="\ufeff")
def test_a_mutated_right_answer_is_accepted_only_where_it_is_still_right(
    gate: Gate, where: float, dropped: int, put: str
) -> None:
    prompt, made = right(gate)
    at = round(where * len(made.answer_text))
    answer = made.answer_text[:at] + put + made.answer_text[at + dropped :]
    outcome = decide(gate, prompt, replace(made, answer_text=answer, text=f"why</think>{answer}"))
    if isinstance(outcome, Record):
        assert outcome.answer in answer
        value = json.loads(outcome.answer)
        assert set(value) == {"total", "words"}
        assert value["total"] == sum(json.loads(prompt.scenario).values())
        assert type(value["total"]) is int
        assert isinstance(value["words"], str)
    else:
        assert outcome.stage in {"parse", "schema", "check"}
        assert outcome.kind == "rejected"


@settings(max_examples=100)
@given(start=st.integers(-5, 200), reasons=st.booleans())
@example(start=0, reasons=False)
def test_an_answer_s_first_token_is_one_of_its_tokens_or_the_row_is_not_accepted(
    gate: Gate, start: int, reasons: bool
) -> None:
    prompt, made = right(gate, answer_start=start, reasoning="why" if reasons else None)
    outcome = decide(gate, prompt, made)
    tokens = len(made.completion_token_ids)
    if 0 <= start < tokens:
        assert isinstance(outcome, Record)
    elif reasons and start >= tokens:
        assert end_of(outcome) == "parse/reasoning_not_closed"
    else:
        assert end_of(outcome) == "signals/misaligned"


@settings(max_examples=100)
@given(cut=st.integers(0, 60))
def test_a_completion_cut_at_any_token_keeps_its_ids_or_says_why_not(gate: Gate, cut: int) -> None:
    prompt, made = right(gate)
    ids_T, rng = made.completion_token_ids[:cut], np.random.default_rng(cut)
    tokens, start = len(ids_T), min(made.answer_start, len(ids_T))
    states = sound_states(rng, max(0, len(made.prompt_token_ids) + tokens - 1))
    outcome = decide(
        gate,
        prompt,
        replace(
            made,
            completion_token_ids=ids_T,
            answer_start=start,
            answer_text=made.answer_text[: max(0, tokens - start)],
            logprobs=sound_logprobs(rng, ids_T),
            hidden_states=HiddenStates(SIGNALS.layers, states),
        ),
    )
    answer = len(made.answer_text)  # ASCII: one token a character
    if cut >= made.answer_start + answer:
        assert isinstance(outcome, Record)
    else:
        cuts = {"teacher/empty", "parse/reasoning_not_closed", "parse/invalid_json"}
        assert end_of(outcome) in cuts


@pytest.mark.parametrize(
    ("changed", "end"),
    [
        ({"prompt_token_ids": np.array([-1], np.int32)}, "signals/bad_token_id"),
        ({"prompt_token_ids": np.array([2**31], np.int64)}, "signals/bad_token_id"),
        ({"prompt_token_ids": np.array([VOCAB], np.int32), "hidden_states": None, "logprobs": None}, "accepted"),
    ],
)
def test_ids_are_held_to_what_is_known_of_the_vocabulary(gate: Gate, changed: dict[str, Any], end: str) -> None:
    prompt, made = right(gate, **changed)
    assert end_of(decide(replace(gate, signals=None, vocab=None), prompt, made)) == end


def test_signals_that_were_not_asked_for_are_no_fault(gate: Gate) -> None:
    prompt, made = right(gate)
    assert isinstance(decide(replace(gate, signals=replace(SIGNALS, top_k=0, layers=())), prompt, made), Record)
