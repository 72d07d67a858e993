"""The photo_edits_image task: what an edit does is measured on the picture, so only right edits pass."""

import functools
import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from factory.tasks.modules import load_module

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ("easy", "medium", "hard")
SEEDS = 40  # a scenario takes about 20 ms: its picture is drawn and measured
task = load_module(ROOT / "schemas" / "photo_edits_image.py").module
# what each edit is to move, by which amount of its own, and by how much at least
MOVES = {
    "temperature": ("warmth", 30, 25),
    "exposure": ("brightness", 30, 25),
    "contrast": ("contrast", 30, 6),
    "straighten": ("lean", 5, 4),
}
UNASKED = (
    ("warmth", "temperature", 20),
    ("brightness", "exposure", -20),
    ("lean", "straighten", 4),
    ("contrast", "contrast", 30),
    ("noise", "denoise", 25),
)
CLEAN = {
    "ground": "field",
    "sky": (140, 165, 190),
    "sun": (0.6, 0.2),
    "house": 0.4,
    "seed": 1,
}


@functools.cache
def solved(level: str, seed: int) -> tuple[Any, str, Any]:
    scenario = task.sample(random.Random(seed), level)
    return scenario, *task.solve(scenario)


def codes(scenario: Any, edits: list[dict[str, Any]]) -> list[str]:
    answer = task.Answer.model_validate({"edits": edits})
    return [finding.partition(":")[0] for finding in task.check(scenario, answer)]


def measures(picture: Any, *edits: tuple[str, int]) -> Any:
    applied = [task.Edit(op=op, value=value) for op, value in edits]
    return task.measure(task.apply(picture.pixels(), applied))


@pytest.mark.parametrize("level", LEVELS)
def test_every_reference_does_what_was_asked_and_no_less_would(level: str) -> None:
    for seed in range(SEEDS):
        scenario, reasoning, answer = solved(level, seed)
        assert task.check(scenario, answer) == []
        assert len(reasoning.split()) <= 90
        edits = answer.model_dump()["edits"]
        assert len(edits) == len(scenario.wishes) >= 1
        for number in range(len(edits)):
            assert "wish_missed" in codes(scenario, edits[:number] + edits[number + 1 :]), (level, seed, number)


@pytest.mark.parametrize("level", LEVELS)
def test_a_reference_with_one_mistake_is_refused_with_the_right_code(level: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        scenario, _, answer = solved(level, seed)
        edits, asked = answer.model_dump()["edits"], {wish.measure for wish in scenario.wishes}
        tries = [("duplicate_edit", [*edits, edits[0]])]
        if not any(edit["op"].startswith("crop") for edit in edits):
            tries += [("crop_too_much", [*edits, {"op": "crop_left", "value": 5}])]
        for which, op, value in UNASKED:
            if which not in asked:
                tries += [("moved_unasked", [*edits, {"op": op, "value": value}])]
        for number, edit in enumerate(edits):
            if edit["op"] in ("temperature", "straighten") and edit["value"]:
                tries += [("wish_missed", [*edits[:number], edit | {"value": -edit["value"]}, *edits[number + 1 :]])]
            if edit["op"].startswith("crop"):
                over = edit | {"value": edit["value"] + 8}
                tries += [("crop_too_much", [*edits[:number], over, *edits[number + 1 :]])]
        for code, wrong in tries:
            assert code in codes(scenario, wrong), (level, seed, code, wrong)
            seen[code] += 1
    assert set(seen) == {"duplicate_edit", "crop_too_much", "moved_unasked", "wish_missed"}


@pytest.mark.parametrize("op", MOVES)
def test_an_edit_moves_its_own_measure_and_leaves_the_others(op: str) -> None:
    which, amount, least = MOVES[op]
    for ground in ("sea", "field", "sand"):
        picture = task.Picture(**(CLEAN | {"ground": ground}))
        before, up, down = (measures(picture, *edits) for edits in ((), ((op, amount),), ((op, -amount),)))
        assert getattr(up, which) - getattr(before, which) > least
        assert getattr(before, which) - getattr(down, which) > least
        # turning shows other pixels at the corners, and light is clipped a little at its end
        for other in set(before._fields) - {which}:
            assert abs(getattr(up, other) - getattr(before, other)) <= task.TOLERANCE[other], (ground, other)


def test_each_fault_is_seen_in_its_measure() -> None:
    before = measures(task.Picture(**CLEAN))
    faults = {"warmth": {"cast": 30}, "brightness": {"light": 35}, "lean": {"lean": 6}, "noise": {"noise": 14}}
    for which, fault in (faults | {"edge": {"intruder": 0.1}}).items():
        after = measures(task.Picture(**CLEAN, **fault))
        assert getattr(after, which) > getattr(before, which) + 3 * task.TOLERANCE[which], which
    assert measures(task.Picture(**CLEAN, flat=40)).contrast < before.contrast * 0.7
    noisy = task.Picture(**CLEAN, noise=14)
    assert measures(noisy, ("denoise", 50)).noise < measures(noisy).noise / 3
    spoilt = task.Picture(**CLEAN, intruder=0.1)
    assert measures(spoilt, ("crop_left", 12)).edge == 0
    assert measures(spoilt, ("crop_right", 12)).edge > 0


def test_the_photo_is_a_picture_with_all_of_the_faults() -> None:
    scenario, *_ = solved("hard", 0)
    with Image.open(io.BytesIO(scenario.photo)) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (160, 112), "RGB")
        assert np.array_equal(np.asarray(image, dtype=float), scenario.picture.pixels())
    assert scenario.photo == task.Scenario.model_validate_json(scenario.model_dump_json()).photo


def test_levels_have_more_faults_and_tell_fewer_of_them() -> None:
    wishes = [sum(len(solved(level, seed)[0].wishes) for seed in range(SEEDS)) for level in LEVELS]
    silent = [sum(solved(level, seed)[0].mend_all for seed in range(SEEDS)) for level in LEVELS]
    assert wishes[0] < wishes[1] < wishes[2]
    assert silent[:2] == [0, 0]
    assert silent[2] > SEEDS / 2


def test_the_same_seed_gives_the_same_scenario() -> None:
    for level in LEVELS:
        again = [task.sample(random.Random(seed), level) for seed in range(5)]
        assert again == [solved(level, seed)[0] for seed in range(5)]
        assert len({solved(level, seed)[0].model_dump_json() for seed in range(SEEDS)}) == SEEDS
