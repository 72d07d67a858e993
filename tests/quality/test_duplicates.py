"""Duplicates: what was there already is found, what was not is kept, the same on every machine and after a resume."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.hashing import content_hash
from factory.job.gates import FiltersConfig
from factory.quality.duplicates import (
    KEPT_HASHES,
    MISSED,
    PERMUTATIONS,
    Duplicates,
    NearIndex,
    StoredRow,
    estimate_jaccard,
    list_shingles,
    shape_bands,
    split_words,
)
from factory.records import Form, Generation, Outcome, Prompt, Record, Rejection, SampleStats, Sampling, Verdict
from factory.tasks.calls import call_solve
from factory.tasks.tasks import discover

ROOT = Path(__file__).parent.parent.parent
EXACT = FiltersConfig(duplicates=True)
NEAR = FiltersConfig(near_duplicates=0.8)
BOTH = FiltersConfig(duplicates=True, near_duplicates=0.8)
TASKS = discover(ROOT).tasks
WORDS = [f"{a}{b}" for a in ("alder", "birch", "cedar", "dogwood", "elm", "fir") for b in range(400)]


def record(
    name: str,
    answer: object = None,
    text: str = "Do it.",
    scenario: object = None,
    task: str = "t",
    group: str = "",
    repaired: bool = False,
) -> Record:
    messages = [{"role": "system", "content": "Answer in JSON."}, {"role": "user", "content": text}]
    if repaired:
        messages += [{"role": "assistant", "content": "{"}, {"role": "user", "content": "Not accepted."}]
    said = answer if isinstance(answer, str) else json.dumps({} if answer is None else answer)
    made_from = scenario if isinstance(scenario, str) else json.dumps({} if scenario is None else scenario)
    prompt = Prompt(
        name, 0, 0, task, "easy", tuple(messages), made_from, 0, Sampling(), group=group or name, repaired=repaired
    )
    return Record(prompt, Generation.failed(name, 0, "", ""), said, 1.0)


def stored(records: Iterable[Outcome]) -> list[StoredRow]:
    """What a dataset would hold of the records among these outcomes."""
    return [
        StoredRow(
            r.prompt.id,
            r.prompt.group,
            r.prompt.task,
            r.prompt.messages,
            r.prompt.scenario,
            r.answer,
            r.prompt.repaired,
            r.prompt.form,
        )
        for r in records
        if isinstance(r, Record)
    ]


def reasons(outcomes: Sequence[Outcome]) -> list[str | None]:
    return [outcome.reason if isinstance(outcome, Rejection) else None for outcome in outcomes]


def check(config: FiltersConfig, *records: Outcome) -> list[str | None]:
    return reasons(Duplicates(config).check(records))


def document(seed: int, words: int, changed: int = 0) -> str:
    """`words` random words; `changed` of them, far apart, are others than without."""
    drawn = random.Random(seed).choices(WORDS, k=words)
    for place in range(changed):
        drawn[(2 * place + 1) * words // (2 * changed)] = f"changed{place}"
    return " ".join(drawn)


def jaccard(a: StoredRow, b: StoredRow) -> float:
    left, right = set(list_shingles(a)), set(list_shingles(b))
    return len(left & right) / len(left | right) if left | right else 0.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (record("a", {"x": 1, "y": [2]}), record("b", '{ "y": [2.0], "x": 1 }')),
        (record("a", text="Make  it\n\uff22\uff29\uff27"), record("b", text=" make it big ")),
        (record("a", text="Straße fiancé"), record("b", text="STRASSE fiance\u0301")),
        (record("a", "{}", text=""), record("b", "{}", text="")),
        (record("a", {"x": 1}), record("b", {"x": 1}, group="a")),
        (record("a", {"x": 1}), record("b", {"x": 1}, group="a", repaired=True)),
        (record("a", '{"x":"\\ud800"}'), record("b", '{"x": "\\ud800"}')),
    ],
    ids=["json", "spaces and case", "unicode", "empty", "samples of a prompt", "a repaired sample", "half a character"],
)
def test_the_same_prompt_and_answer_written_otherwise_is_a_duplicate(first: Record, second: Record) -> None:
    assert check(EXACT, first, second) == [None, "duplicate"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (record("a", {"x": 1}), record("b", {"x": 2})),
        (record("a", {"x": 1}), record("b", {"x": "1"})),
        (record("a", {"x": 1}), record("b", {"x": True})),
        (record("a", {"x": [1, 2]}), record("b", {"x": [2, 1]})),
        (record("a", {"x": "Big"}), record("b", {"x": "big"})),
        (record("a", text="Add 1 and 2"), record("b", text="Add 12 and")),
        (record("a", task="t"), record("b", task="u")),
        (record("a", {"x": 1}), record("b", {"x": 2}, group="a")),
    ],
    ids=["value", "type", "boolean", "order", "case of an answer", "prompt", "task", "samples that differ"],
)
def test_what_differs_in_task_prompt_or_answer_is_kept(first: Record, second: Record) -> None:
    assert check(EXACT, first, second) == [None, None]


def test_a_duplicate_keeps_all_that_the_record_had_and_names_the_row_it_repeats() -> None:
    first = record("first", {"x": 1})
    made = record("again", {"x": 1})
    second = Record(
        made.prompt, made.generation, made.answer, 1.0, (), Verdict(0.5, "so"), samples=SampleStats(1.0, 0.5)
    )
    kept, rejected = Duplicates(EXACT).check([first, second])
    assert kept is first
    assert rejected == Rejection(
        second.prompt,
        second.generation,
        "filter",
        "duplicate",
        ("duplicate: like row first",),
        answer=second.answer,
        verdict=second.verdict,
        samples=second.samples,
        passed=True,
    )


def test_nothing_is_a_duplicate_where_nothing_is_asked() -> None:
    assert check(FiltersConfig(), record("a"), record("b")) == [None, None]


def test_rejections_pass_and_are_not_remembered() -> None:
    made = record("a", {"x": 1})
    rejected = Rejection(made.prompt, made.generation, "check", "wrong", answer=made.answer)
    assert check(BOTH, rejected, record("b", {"x": 1}), rejected) == ["wrong", None, "wrong"]


def test_only_near_asked_finds_the_same_scenario_under_another_phrasing() -> None:
    a = record("a", {"x": 1}, "Short.", {"d": document(1, 50)})
    b = record("b", {"x": 1}, "Said at length.", {"d": document(1, 50)})
    assert check(NEAR, a, b) == [None, "near_duplicate"]
    assert check(EXACT, a, b) == [None, None]


@pytest.mark.parametrize("changed", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_a_document_with_a_few_words_changed_is_found(changed: int, seed: int) -> None:
    a = record("a", {"title": "one two three"}, "First.", {"document": document(seed, 110)})
    b = record("b", {"title": "one two three"}, "Second.", {"document": document(seed, 110, changed)})
    rejected = Duplicates(BOTH).check([a, b])[1]
    assert isinstance(rejected, Rejection)
    assert rejected.reason == "near_duplicate"
    assert rejected.findings == (f"near_duplicate: {jaccard(*stored([a, b])):.2f} like row a",)


def test_a_document_with_many_words_changed_is_kept() -> None:
    a = record("a", scenario={"document": document(1, 110)})
    assert check(BOTH, a, record("b", "1", scenario={"document": document(1, 110, 12)})) == [None, None]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_scenario_with_one_value_changed_is_found(name: str) -> None:
    task, found, above = TASKS[name], 0, 0
    assert task.sample
    assert task.solve
    for seed in range(40):
        scenario = task.sample(random.Random(seed), "medium")
        answer = call_solve(task, scenario)[1]
        fields = scenario.model_dump(mode="json")
        place = _a_leaf(fields, random.Random(seed))
        place[0][place[1]] = "quite another"
        a, b = record("a", answer, "a", scenario.model_dump_json()), record("b", answer, "b", fields)
        if jaccard(*stored([a, b])) >= 0.8:
            above += 1
            found += check(NEAR, a, b)[1] == "near_duplicate"
    # of a scenario of few words one is more than a fifth
    assert above >= (20 if name == "photo_edits_image" else 35)
    assert found == above


def _a_leaf(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container and the key in it of one value drawn from the whole of it."""
    places: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        container = pending.pop()
        for key, part in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(part, dict | list):
                pending.append(part)
            elif part is not None:
                places.append((container, key))
    return rng.choice(places)


@pytest.mark.parametrize(("name", "level"), [(name, level) for name in sorted(TASKS) for level in TASKS[name].levels])
def test_sampled_rows_of_the_built_in_tasks_are_no_near_duplicates(name: str, level: str) -> None:
    task = TASKS[name]
    assert task.sample
    assert task.solve
    scenarios = [task.sample(random.Random(seed), level) for seed in range(120)]
    rows = [
        record(str(seed), call_solve(task, s)[1], str(seed), s.model_dump_json(), task=name)
        for seed, s in enumerate(scenarios)
    ]
    assert set(check(NEAR, *rows)) == {None}


def test_samples_of_one_prompt_are_never_near_duplicates_of_each_other_but_of_others() -> None:
    scenario = {"d": document(3, 60)}
    samples = [record(f"s{n}", {"total": n}, "p", scenario, group="s0") for n in range(3)]
    other = record("other", {"total": 9}, "q", scenario)
    outcomes = Duplicates(BOTH).check([*samples, other])
    assert reasons(outcomes) == [None, None, None, "near_duplicate"]
    assert outcomes[3].findings[0].endswith("like row s0")


def test_rows_of_two_tasks_are_never_near_duplicates() -> None:
    scenario = {"d": document(3, 60)}
    assert check(NEAR, record("a", scenario=scenario), record("b", scenario=scenario, task="u")) == [None, None]


def test_a_rejected_row_is_no_measure_for_the_next() -> None:
    a, b, c = (record(str(n), scenario={"d": document(5, 110, n)}, text=str(n)) for n in (0, 3, 6))
    assert jaccard(*stored([a, b])) >= 0.8 > jaccard(*stored([a, c]))
    assert check(NEAR, a, b, c) == [None, "near_duplicate", None]


@pytest.mark.parametrize(
    ("scenario", "other"),
    [
        ({"a": 3, "b": 4}, {"a": 3, "b": 5}),
        ({"a": "easy"}, {"a": "hard"}),
        ({"a": [1, 2, 3, 4]}, {"a": [2, 3, 4, 5]}),
        ({}, {}),
        ({"a": None, "b": []}, {"a": None, "b": []}),
        ({"a": "...", "b": "?!"}, {"a": "...", "b": "?!"}),
        ({"a": -5, "b": "x"}, {"a": 5, "b": "x"}),
    ],
    ids=["numbers", "a word", "a shifted list", "empty", "nulls", "no words", "sign"],
)
def test_short_rows_are_not_taken_for_each_other(scenario: object, other: object) -> None:
    a, b = record("a", "{}", "first", scenario), record("b", "{}", "second", other)
    assert check(NEAR, a, b) == [None, None]


def test_keys_and_prompt_text_make_no_similarity() -> None:
    long = " ".join(WORDS[:200])
    a = record("a", {key: 1 for key in WORDS[:50]}, long + " one", {key: "north" for key in WORDS[50:90]})
    b = record("b", {key: 2 for key in WORDS[:50]}, long + " two", {key: "south" for key in WORDS[50:90]})
    assert check(BOTH, a, b) == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "我们决定在十一月二十三日上午九点在会议室召开下一次项目会议请大家准时参加并带上自己的报告",
        "来週の月曜日の午後三時から会議室で新しい計画について話し合いますので資料を準備してください",
        "เราจะประชุมกันในวันจันทร์หน้าเวลาเก้าโมงเช้าที่ห้องประชุมใหญ่ชั้นสองของอาคารสำนักงานใหม่",
    ],
    ids=["chinese", "japanese", "thai"],
)
def test_scripts_without_spaces_are_compared_by_their_characters(text: str) -> None:
    half = len(text) // 2
    changed = text[:half] + "中" + text[half + 1 :]
    a, b = record("a", text="a", scenario={"d": text}), record("b", text="b", scenario={"d": changed})
    assert check(NEAR, a, b) == [None, "near_duplicate"]
    assert check(NEAR, a, record("c", text="c", scenario={"d": text[::-1]})) == [None, None]


def test_words_are_those_of_values_in_their_order() -> None:
    scenario = {"Key": "\uff26ull-width WORDS", "list": [1, -2.5, True, None, {"deep": "naïve"}], "last": "中文x"}
    assert list(split_words(json.dumps(scenario))) == [
        "full", "width", "words", "1", "-2.5", "true", "naïve", "中", "文", "x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[" * 100_000, "9" * 10_000, '{"a":"\\ud800 b c d"}', '"' + "\ud800 x y z" + '"', "NaN", "\x00"],
    ids=["empty", "text", "deep", "long number", "escaped half", "half", "nan", "nul"],
)
def test_no_text_breaks_it(text: str) -> None:
    a, b = record("a", text, text="a", scenario=text), record("b", text, text="a", scenario=text)
    assert check(EXACT, a, b) == [None, "duplicate"]
    assert check(NEAR, a, b)[0] is None


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_any_json_is_a_duplicate_of_itself_and_has_words(value: object) -> None:
    assert check(EXACT, record("a", json.dumps(value)), record("b", json.dumps(value, indent=3))) == [None, "duplicate"]
    assert all(split_words(json.dumps(value)))


edited_documents = st.builds(document, st.integers(0, 3), st.integers(3, 150), st.integers(0, 3))


@given(st.lists(edited_documents, max_size=6), st.floats(0.31, 0.99))
def test_no_row_below_the_threshold_is_called_near(documents: list[str], threshold: float) -> None:
    config = FiltersConfig(near_duplicates=threshold)
    records = [record(str(n), text=str(n), scenario={"d": text}) for n, text in enumerate(documents)]
    outcomes = Duplicates(config).check(records)
    kept = stored(outcomes)
    for made, outcome in zip(records, outcomes, strict=True):
        likes = {row.id: jaccard(row, stored([made])[0]) for row in kept if int(row.id) < int(made.prompt.id)}
        if isinstance(outcome, Rejection):
            told = outcome.findings[0].split()
            assert likes[told[-1]] == max(likes.values()) >= threshold
            assert told[1] == f"{max(likes.values()):.2f}"


def test_hardly_a_pair_at_the_threshold_is_overlooked() -> None:
    """Pairs of 18 to 400 shingles whose similarity is just above 0.8: 23 bands of 6 hashes miss one in a thousand."""
    rng = random.Random(7)
    pairs = missed = 0
    while pairs < 500:
        words = rng.choices(WORDS, k=rng.randint(20, 400))
        changed = list(words)
        for place in rng.sample(range(len(words)), max(1, len(words) // 27)):
            changed[place] = "changed"
        a, b = (StoredRow(n, n, "t", (), json.dumps(w), "{}") for n, w in (("a", words), ("b", changed)))
        if 0.8 <= jaccard(a, b) < 0.82:
            pairs += 1
            index = NearIndex(0.8)
            index.add(a, index.sketch(a))
            missed += index.find(b, index.sketch(b)) is None
    assert missed <= 3


@given(st.floats(0.3, 1, exclude_min=True, exclude_max=True))
def test_bands_find_what_they_promise_within_their_means(threshold: float) -> None:
    per_band, bands = shape_bands(threshold)
    assert per_band * bands <= PERMUTATIONS
    assert (1 - threshold**per_band) ** bands <= MISSED * (1 + 1e-9)


@pytest.mark.parametrize("size", [KEPT_HASHES // 2, KEPT_HASHES, 4 * KEPT_HASHES, 20 * KEPT_HASHES])
@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9, 1.0])
def test_similarity_is_exact_of_few_and_near_of_many(size: int, shared: float) -> None:
    rng = np.random.default_rng(size)
    drawn = rng.permutation(np.unique(rng.integers(0, 2**32, 3 * size, dtype=np.uint32)))[: 2 * size]
    common = int(size * shared)
    a, b = (np.sort(part) for part in (drawn[:size], np.concatenate((drawn[:common], drawn[size : 2 * size - common]))))
    true = common / (2 * size - common)
    estimate = estimate_jaccard(a[:KEPT_HASHES], b[:KEPT_HASHES])
    assert abs(estimate - true) <= (0 if size < KEPT_HASHES else 0.07)


rows_of_a_run = st.lists(
    st.builds(
        lambda number, sample, changed, total, text: record(
            "", {"total": total}, text, {"d": document(number, 60, changed)}, group=f"g{number} {changed} {text}"
        ),
        st.integers(0, 4),
        st.integers(0, 2),
        st.integers(0, 2),
        st.integers(0, 2),
        st.sampled_from(["Do it.", "Do  IT.", "Please do it."]),
    ),
    max_size=12,
)


def named(records: Sequence[Record]) -> list[Record]:
    """The same records with ids of their own."""
    made = []
    for number, r in enumerate(records):
        name = content_hash(number)
        prompt = Prompt(
            name, 0, number, "t", "easy", r.prompt.messages, r.prompt.scenario, 0, Sampling(), group=r.prompt.group
        )
        made.append(Record(prompt, r.generation, r.answer, 1.0))
    return made


@given(rows_of_a_run, st.data(), st.sampled_from([EXACT, NEAR, BOTH]))
def test_a_resumed_run_decides_as_an_uninterrupted_one(
    rows: list[Record], data: st.DataObject, config: FiltersConfig
) -> None:
    records = named(rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(records)), max_size=3)))
    whole = Duplicates(config).check(records)
    pieces: list[Outcome] = []
    for start, end in zip([0, *cuts], [*cuts, len(records)], strict=True):
        resumed = Duplicates(config)
        resumed.remember(stored(pieces))
        pieces += resumed.check(records[start:end])
    assert pieces == whole


def test_rows_are_remembered_as_the_dataset_gives_them_back() -> None:
    """A dataset holds UTF-8: half a character of a prompt or an answer comes back as a question mark."""
    made = record("a", '{"x": "\ud800 one two three"}', "Say \ud800.", {"d": "one \udfff two three four five"})
    row = stored([made])[0]
    texts = [{key: text.encode("utf-8", "replace").decode() for key, text in each.items()} for each in row.messages]
    cleaned = [text.encode("utf-8", "replace").decode() for text in (row.scenario, row.answer)]
    again = record("b", '{"x": "\ud800 one two three"}', "Say \ud800.", {"d": "one \udfff two three four five"})
    for config, reason in ((EXACT, "duplicate"), (NEAR, "near_duplicate")):
        resumed = Duplicates(config)
        resumed.remember([StoredRow(row.id, row.prompt_id, row.task, texts, *cleaned)])
        assert reasons(resumed.check([again])) == [reason]


DECISIONS = """
import json
from test_duplicates import BOTH, Duplicates, document, record
rows = [record(str(n), {"x": n % 5}, f"p{n % 7}", {"d": document(n % 9, 40 + n % 9, n % 4)}) for n in range(120)]
print(json.dumps([getattr(o, "findings", None) for o in Duplicates(BOTH).check(rows)]))
"""


def test_decisions_are_the_same_under_every_hash_seed() -> None:
    told = set()
    for seed in ("1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT / 'tests' / 'quality'}:{ROOT}"}
        command = [sys.executable, "-c", DECISIONS]
        told.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(told) == 1
    findings = [finding for row in json.loads(told.pop()) for finding in row]
    assert {finding.split(":")[0] for finding in findings} == {"duplicate", "near_duplicate"}


def test_signatures_are_those_that_were_written_down() -> None:
    """Another version of the MinHash library may sign otherwise, and a resumed run would decide otherwise."""
    from rensa import RMinHash

    index = NearIndex(0.8)
    sketch = index.sketch(StoredRow("a", "a", "t", (), '["one two three four", 5]', "{}"))
    assert sketch is not None
    assert sketch.minhash.digest()[:3] == [3285564981, 3403715582, 3457859180]
    assert sketch.hashes.tolist() == [700526638, 834616074, 2380318904]
    assert RMinHash.ALGORITHM_VERSION == 2


def test_earlier_turns_belong_to_the_prompt_and_a_repair_s_do_not() -> None:
    def talk(name: str, said: str, repaired: bool = False) -> Record:
        made = record(name, {"x": 1}, repaired=repaired)
        earlier = ({"role": "user", "content": said}, {"role": "assistant", "content": "Noted."})
        messages = (made.prompt.messages[0], *earlier, *made.prompt.messages[1:])
        return replace(made, prompt=replace(made.prompt, messages=messages))

    assert check(EXACT, talk("a", "I like tea."), talk("b", "I like soup.")) == [None, None]
    assert check(EXACT, talk("a", "I like tea."), talk("b", " i like TEA.", repaired=True)) == [None, "duplicate"]


def test_a_free_text_is_compared_as_text() -> None:
    def text(name: str, answer: str, form: Form = "text") -> Record:
        made = record(name, answer, group=name)
        return replace(made, prompt=replace(made.prompt, form=form))

    assert check(EXACT, text("a", "Hello  Ada"), text("b", "hello ada")) == [None, "duplicate"]
    assert check(EXACT, text("a", "3"), text("b", "3.0")) == [None, None]
    # its words are shingles although it looks like a JSON object
    assert list_shingles(stored([text("a", '{"one": "two three"}')])[0]) == ["one two three"]
