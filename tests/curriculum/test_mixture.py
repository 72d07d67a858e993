"""Mixture: stages rise, ties and gaps have their place, weights and budgets hold to one row."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.curriculum.config import EASIER, CurriculumConfig, TabledConfig
from factory.curriculum.mixture import Candidates, Cut, Stage, fill_stage, plan_cuts
from factory.dataset.stages import SPLITS


def candidates(
    values: Sequence[float | None],
    tasks: Sequence[str] = (),
    tokens: Sequence[int] = (),
    splits: Sequence[int] = (),
    easier: bool = False,
) -> Candidates:
    names = tuple(sorted(set(tasks))) or ("a",)
    count = len(values)
    return Candidates(
        ids=np.array([f"{i * 7919 % 10007:05d}".encode() for i in range(count)]),
        task=np.array([names.index(task) for task in tasks] if tasks else np.zeros(count), np.int64),
        value=np.array([np.nan if value is None else value for value in values], np.float32),
        tokens=np.array(tokens if tokens else np.ones(count), np.int64),
        split=np.array(splits if splits else np.zeros(count), np.int8),
        tasks=names,
        more_is_easier=easier,
    )


def fill(rows: Candidates, **config: Any) -> list[Stage]:
    model = TabledConfig if isinstance(config.get("stages"), list) else CurriculumConfig
    read = model.model_validate(config)
    return [fill_stage(cut, number, rows, read) for number, cut in enumerate(plan_cuts(read), 1)]


def all_of(stage: Stage) -> list[int]:
    return [int(i) for split in SPLITS for i in stage.members[split]]


def keys(rows: Candidates, members: Iterable[int]) -> list[tuple[float, bytes]]:
    return [(float(rows.hardness[i]), rows.ids[i]) for i in members]


measures = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(-1e6, 1e6, width=32))


@given(st.lists(measures, min_size=1, max_size=60), st.integers(1, 9), st.booleans())
def test_quantile_stages_rise_and_take_every_row_once(values: list[float | None], count: int, easier: bool) -> None:
    rows = candidates(values, splits=[i % 3 for i in range(len(values))], easier=easier)
    stages = fill(rows, stages=count, by="pass_rate" if easier else "difficulty")
    taken = [all_of(stage) for stage in stages]
    assert sorted(itertools.chain(*taken)) == list(range(len(values)))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1
    filled = [keys(rows, members) for members in taken if members]
    assert all(max(low) < min(high) for low, high in itertools.pairwise(filled))


@given(st.lists(measures, min_size=1, max_size=60), st.lists(st.floats(-100, 100), min_size=1, max_size=5, unique=True))
def test_threshold_stages_rise_and_an_equal_value_is_the_harder_ones(
    values: list[float | None], thresholds: list[float]
) -> None:
    for by in ("difficulty", "pass_rate"):
        rows = candidates(values, easier=by in EASIER)
        try:
            stages = fill(rows, by=by, thresholds=sorted(thresholds))
        except ValueError:  # equal as float32
            return
        assert sorted(i for stage in stages for i in all_of(stage)) == list(range(len(values)))
        for stage, (low, high) in zip(stages, _ranges(thresholds, by in EASIER), strict=True):
            assert all(low <= key < high or key == high == np.inf for key, _ in keys(rows, all_of(stage)))


def _ranges(thresholds: list[float], easier: bool) -> Iterable[tuple[float, float]]:
    signed = sorted(float(np.float32(-x if easier else x)) for x in thresholds)
    return itertools.pairwise([-np.inf, *signed, np.inf])


def test_a_threshold_means_the_number_that_is_stored() -> None:
    rows = candidates([0.7, 0.69, 0.71], easier=True)  # float32 0.7 is below 0.7
    assert [all_of(s) for s in fill(rows, by="pass_rate", thresholds=[0.7])] == [[2], [0, 1]]
    assert [sorted(all_of(s)) for s in fill(rows, by="pass_rate", stages=[{"name": "a", "min": 0.7}])] == [[0, 2]]
    assert [sorted(all_of(s)) for s in fill(rows, by="pass_rate", stages=[{"name": "a", "max": 0.7}])] == [[1]]


@pytest.mark.parametrize(("by", "unknown"), [("difficulty", "max"), ("pass_rate", "min")])
def test_min_belongs_to_a_stage_and_max_does_not_and_rows_without_a_value_are_hardest(by: str, unknown: str) -> None:
    rows = candidates([0.0, 0.25, 0.5, 0.75, 1.0, None], easier=by in EASIER)

    def members(**bounds: float) -> list[int]:
        (stage,) = fill(rows, by=by, stages=[{"name": "a", **bounds}])
        return sorted(all_of(stage))

    assert members(min=0.25, max=0.75) == [1, 2]
    assert members(min=0.25) == [1, 2, 3, 4] + ([5] if unknown == "max" else [])
    assert members(max=0.75) == [0, 1, 2] + ([5] if unknown == "min" else [])


def test_rows_without_a_value_end_up_in_the_last_stage_in_the_order_of_their_ids() -> None:
    rows = candidates([None, 0.5, None, 0.1, 0.9, None])
    first, last = fill(rows, stages=2)
    assert all_of(first) == [3, 1, 4]
    assert all_of(last) == sorted([0, 2, 5], key=lambda i: rows.ids[i])


@given(st.lists(st.tuples(st.sampled_from("abc"), measures), min_size=1, max_size=60), st.integers(1, 4))
def test_quantiles_inside_each_task_give_every_stage_every_task(
    drawn: list[tuple[str, float | None]], count: int
) -> None:
    rows = candidates([value for _, value in drawn], tasks=[task for task, _ in drawn])
    stages = fill(rows, stages=count, per_task=True)
    for code in range(len(rows.tasks)):
        mine = [[i for i in all_of(stage) if rows.task[i] == code] for stage in stages]
        assert max(map(len, mine)) - min(map(len, mine)) <= 1
        filled = [keys(rows, members) for members in mine if members]
        assert all(max(low) < min(high) for low, high in itertools.pairwise(filled))


def test_shares_of_a_stage_are_of_the_rows_of_its_tasks() -> None:
    rows = candidates([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], tasks=list("aaabbb"))
    (stage,) = fill(rows, stages=[{"name": "x", "tasks": ["b"], "to": 0.34}])
    assert all_of(stage) == [3]


weights = st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 10), min_size=1)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=80), weights, st.integers(1, 90) | st.none())
def test_a_mixture_of_rows_is_kept_to_one_row(tasks: list[str], mixture: dict[str, float], budget: int | None) -> None:
    rows = candidates([0.5] * len(tasks), tasks=tasks)
    stage: dict[str, Any] = {"name": "x", "mixture": mixture}
    (filled,) = fill(rows, stages=[stage | ({"rows": budget} if budget else {})])
    there = {task: weight for task, weight in mixture.items() if task in tasks}
    counts = {task: sum(rows.tasks[rows.task[i]] == task for i in all_of(filled)) for task in set(tasks)}
    assert {task for task, count in counts.items() if count} <= set(there)
    if not there:
        return
    scale = min(tasks.count(task) / weight for task, weight in there.items())
    if budget:
        scale = min(scale, budget / sum(there.values()))
        assert sum(counts.values()) <= budget
    for task, weight in there.items():
        assert abs(counts[task] - weight * scale) < 1 + 1e-6
    assert sum(counts.values()) > sum(there.values()) * scale - 1 - 1e-6


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), min_size=1, max_size=80),
    st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 10)),
    st.integers(1, 20_000),
)
def test_a_budget_of_tokens_is_kept_to_one_row_of_each_task(
    drawn: list[tuple[str, int]], mixture: dict[str, float], budget: int
) -> None:
    rows = candidates([0.5] * len(drawn), tasks=[t for t, _ in drawn], tokens=[n for _, n in drawn])
    (stage,) = fill(rows, stages=[{"name": "x", "mixture": mixture, "tokens": budget}])
    members = np.array(all_of(stage), np.int64)
    assert rows.tokens[members].sum() <= budget
    pools = {t: w for t, w in mixture.items() if t in rows.tasks} if mixture else {"": 1.0}
    if not pools:
        assert not len(members)
        return
    sizes = {t: sum(n for task, n in drawn if t in ("", task)) for t in pools}
    scale = min(budget / sum(pools.values()), *(sizes[t] / w for t, w in pools.items()))
    for task, weight in pools.items():
        mine = members if not task else members[rows.task[members] == rows.tasks.index(task)]
        short = weight * scale - rows.tokens[mine].sum()
        assert -1e-3 <= short < max(n for t, n in drawn if task in ("", t)) + 1e-3


def test_a_budget_draws_from_the_whole_range_and_spares_validation_and_test() -> None:
    values = [i / 1000 for i in range(1000)]
    rows = candidates(values, splits=[0] * 800 + [1] * 100 + [2] * 100)
    (stage,) = fill(rows, stages=[{"name": "x", "rows": 100}])
    assert [len(stage.members[split]) for split in SPLITS] == [100, 100, 100]
    assert stage.left_out == 700
    assert 0.3 < rows.value[stage.members["train"]].mean() < 0.5  # of 0 to 0.8
    (other,) = fill(rows, stages=[{"name": "x", "rows": 101}])
    assert set(stage.members["train"]) < set(other.members["train"])  # a larger budget keeps what a smaller one took
    (again,) = fill(rows, stages=[{"name": "y", "rows": 100}])
    assert set(stage.members["train"]) != set(again.members["train"])


def test_the_orders() -> None:
    rows = candidates([0.4, 0.3, 0.2, 0.1, 0.9, 0.8], tasks=list("aaaabb"))
    assert [all_of(s) for s in fill(rows, stages=1)] == [[3, 2, 1, 0, 5, 4]]
    (turns,) = fill(rows, stages=1, order="interleaved")
    assert [rows.tasks[rows.task[i]] for i in all_of(turns)] == list("abaaba")
    assert [i for i in all_of(turns) if i < 4] == [3, 2, 1, 0]
    many = candidates([i / 100 for i in range(100)])
    (shuffled,) = fill(many, stages=1, order="shuffled")
    (other,) = fill(many, stages=1, order="shuffled", seed=1)
    assert sorted(all_of(shuffled)) == sorted(all_of(other)) == list(range(100))
    assert list(range(100)) != all_of(shuffled) != all_of(other)


def test_rows_in_two_stages_are_allowed() -> None:
    rows = candidates([0.1, 0.2, 0.3])
    stages = fill(rows, stages=[{"name": "first", "to": 0.67}, {"name": "all"}])
    assert [all_of(stage) for stage in stages] == [[0, 1], [0, 1, 2]]


@pytest.mark.parametrize("order", ["easy_to_hard", "interleaved", "shuffled"])
def test_no_row_at_all_is_no_crash(order: str) -> None:
    rows = candidates([])
    assert [all_of(stage) for stage in fill(rows, order=order)] == [[], [], []]
    cut = Cut("x", mixture={"a": 1.0}, rows=5)
    assert all_of(fill_stage(cut, 1, rows, CurriculumConfig())) == []


def test_levels_are_stages_when_nothing_else_is_said() -> None:
    config = CurriculumConfig(by="level")
    rows = candidates([2, 0, 1, 0])
    stages = [fill_stage(cut, 1, rows, config) for cut in plan_cuts(config, most_levels=3)]
    assert [sorted(all_of(stage)) for stage in stages] == [[1, 3], [2], [0]]
