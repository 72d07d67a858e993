"""Photo edits on a picture: look at it, and give edits that do what was asked when they are applied.

Trains reading a picture's faults and choosing amounts. The answer's edits are applied to the picture's pixels, and the
outcome is measured: what was asked for must come within its bounds, what was not asked must not move. Levels go from
one wish in words to "whatever is wrong with it", where the faults are in the picture alone (`_LEVELS`).
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import ceil
from random import Random
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from factory.tasks.words import WordBank, Words, read_words

from ._photo_edits_image_pictures import (
    GROUNDS,
    TOLERANCE,
    Edit,
    Frozen,
    Measure,
    Measures,
    Op,
    Picture,
    apply,
    measure,
)

_CUTS: tuple[Op, ...] = ("crop_left", "crop_right")


class _Knobs(NamedTuple):
    faults: tuple[int, int]
    changes: tuple[int, int]  # wishes that mend nothing: a little warmer, a lot darker
    named: float  # share of scenarios in which the faults are told in words


_LEVELS = {
    "easy": _Knobs((0, 1), (0, 1), 1.0),
    "medium": _Knobs((1, 2), (0, 1), 1.0),
    "hard": _Knobs((2, 3), (0, 1), 0.3),
}


class Wish(Frozen):
    """What the user asks of one measure, and its bounds afterwards; `ask` is empty where it is not said."""

    measure: Measure
    ask: str = Field(default="", max_length=120)
    low: float
    high: float


class Scenario(Frozen):
    picture: Picture
    wishes: tuple[Wish, ...] = Field(max_length=8)
    mend_all: bool = False
    # what to leave as it is; nothing else may move either, but the user says these
    leave: str = Field(default="", max_length=60)

    @property
    def photo(self) -> bytes:
        """The picture as a PNG file."""
        return self.picture.png()


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    edits: list[Edit] = Field(max_length=8)


class _Change(WordBank):
    measure: Measure
    up: Words
    down: Words
    amounts: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]]


class _Bank(WordBank):
    faults: dict[Measure, Words]
    leave: dict[Measure, str]
    changes: Annotated[list[_Change], Field(min_length=2)]


_BANK = read_words(__file__, _Bank)


def _measure(pixels: object, which: Measure) -> float:
    return float(getattr(pixels, which))


@lru_cache(maxsize=256)
def _measured(picture: Picture, edits: tuple[Edit, ...]) -> Measures:
    return measure(apply(picture.pixels(), list(edits)))


def check(scenario: Scenario, answer: Answer) -> list[str]:
    ops = [edit.op for edit in answer.edits]
    twice = sorted({op for op in ops if ops.count(op) > 1})
    if twice:
        return [f"duplicate_edit: {twice[0]} more than once"]
    cuts = {edit.op: edit.value for edit in answer.edits if edit.op.startswith("crop")}
    if sum(cuts.values()) > 40:
        return [f"crop_too_much: {sum(cuts.values()):g} percent of the width, allowed 40"]
    after = _measured(scenario.picture, tuple(answer.edits))
    return [*_wish_findings(scenario, after), *_rest_findings(scenario, after, answer), *_crop_findings(scenario, cuts)]


def _wish_findings(s: Scenario, after: Measures) -> Iterator[str]:
    for wish in s.wishes:
        got = _measure(after, wish.measure)
        if not wish.low <= got <= wish.high:
            yield f"wish_missed: {wish.measure} is {got:.1f}, expected {wish.low:.1f} to {wish.high:.1f}"


def _rest_findings(s: Scenario, after: Measures, answer: Answer) -> Iterator[str]:
    asked = {wish.measure for wish in s.wishes}
    # cutting and turning show other pixels: what was not asked is compared with the picture cut and turned alike
    cut = _only(s.picture, answer, _CUTS)
    turned = _only(s.picture, answer, (*_CUTS, "straighten"))
    for which, tolerance in TOLERANCE.items():
        moved = abs(_measure(after, which) - _measure(cut if which == "lean" else turned, which))
        if which not in asked and moved > tolerance:
            yield f"moved_unasked: {which} moved by {moved:.1f}, allowed {tolerance:g}"
    # its blur is seen in nothing that is measured where there is no grain
    if "noise" not in asked and any(edit.op == "denoise" and edit.value > 0 for edit in answer.edits):
        yield "moved_unasked: denoise, where no grain was to be taken out"


def _only(picture: Picture, answer: Answer, ops: tuple[Op, ...]) -> Measures:
    return _measured(picture, tuple(edit for edit in answer.edits if edit.op in ops))


def _crop_findings(s: Scenario, cuts: Mapping[Op, float]) -> Iterator[str]:
    for op, value in cuts.items():
        needed = s.picture.intruder * 100 if op == f"crop_{s.picture.side}" else 0.0
        if value > (needed + 6 if needed else 0):
            yield f"crop_too_much: {op} takes {value:g} percent, {needed:.0f} are in the way"


def _draw_fault(rng: Random, which: Measure) -> dict[str, object]:
    sign = rng.choice((-1, 1))
    drawn: dict[Measure, dict[str, object]] = {
        "warmth": {"cast": sign * rng.randint(24, 44)},
        "brightness": {"light": sign * rng.randint(28, 46)},
        "contrast": {"flat": rng.randint(30, 44)},
        "lean": {"lean": sign * rng.randint(3, 8)},
        "noise": {"noise": rng.randint(10, 18)},
        "edge": {"intruder": rng.randint(6, 14) / 100, "side": rng.choice(("left", "right"))},
    }
    return drawn[which]


def _mended(picture: Picture, which: Measure) -> tuple[float, float]:
    """The bounds of a measure whose fault is gone."""
    clean = _measure(measure(picture.clean().pixels()), which)
    room = {"warmth": 14, "brightness": 16, "contrast": 9, "lean": 1.2, "noise": 4.5, "edge": 0.011}[which]
    if which in ("noise", "edge"):
        return 0, room
    return round(clean - room, 1), round(clean + room, 1)


def sample(rng: Random, level: str) -> Scenario:
    knobs = _LEVELS[level]
    faults = rng.sample(list(_BANK.faults), rng.randint(*knobs.faults))
    changes = rng.sample(_BANK.changes, rng.randint(*knobs.changes) if faults else 1)
    picture = Picture(
        ground=rng.choice(list(GROUNDS)[:3]),  # type: ignore[arg-type]
        sky=(rng.randint(120, 165), rng.randint(150, 185), rng.randint(180, 205)),
        sun=(rng.randint(55, 75) / 100, rng.randint(10, 30) / 100),
        house=rng.randint(25, 50) / 100,
        seed=rng.getrandbits(32),
    )
    for which in faults:
        picture = picture.model_copy(update=_draw_fault(rng, which))
    named = rng.random() < knobs.named
    wishes = []
    for which in faults:
        low, high = _mended(picture, which)
        ask = _name_fault(rng, picture, which) if named else ""
        wishes.append(Wish(measure=which, ask=ask, low=low, high=high))
    # a picture whose light is wrong is not to be made a little darker as well
    for change in (change for change in changes if change.measure not in faults):
        wishes.append(_draw_change(rng, picture, change, {"edge"} & set(faults) != set()))
    untouched = [which for which in _BANK.leave if which not in {wish.measure for wish in wishes}]
    leave = _BANK.leave[rng.choice(untouched)] if untouched and rng.random() < 0.4 else ""
    told = rng.sample(wishes, len(wishes))
    return Scenario(picture=picture, wishes=tuple(told), mend_all=bool(faults) and not named, leave=leave)


def _name_fault(rng: Random, picture: Picture, which: Measure) -> str:
    way = "warm" if picture.cast > 0 else "cold"
    light = "bright" if picture.light > 0 else "dark"
    return rng.choice(_BANK.faults[which]).format(way=way, light=light, side=picture.side)


def _draw_change(rng: Random, picture: Picture, change: _Change, cropped: bool) -> Wish:
    words, up = rng.choice(list(change.amounts)), rng.random() < 0.5
    low, high = change.amounts[words]
    # measured against the picture without what will be cut away
    base = _measure(measure(picture.model_copy(update={"intruder": 0}).pixels()), change.measure)
    ask = rng.choice(change.up if up else change.down).format(amount=words)
    bounds = (base + low, base + high) if up else (base - high, base - low)
    slack = 3 if cropped else 0
    # rounded: the last digits of a mean differ from one processor to the next, and a scenario must not
    return Wish(measure=change.measure, ask=ask, low=round(bounds[0] - slack, 1), high=round(bounds[1] + slack, 1))


def solve(scenario: Scenario) -> tuple[str, Answer]:
    picture, told = scenario.picture, list[str]()
    edits: list[Edit] = []
    order = {"edge": 0, "lean": 1, "noise": 2, "contrast": 3, "warmth": 4, "brightness": 5}
    for wish in sorted(scenario.wishes, key=lambda wish: order[wish.measure]):
        now = _measured(picture, tuple(edits))
        edit, why = _mend(picture, wish, now)
        edits.append(edit)
        told.append(f"{why}: {edit.op} {edit.value:g}.")
    told.append("Nothing else was asked." if edits else "Nothing to do.")
    return " ".join(told), Answer(edits=edits)


def _mend(picture: Picture, wish: Wish, now: Measures) -> tuple[Edit, str]:
    middle, got = (wish.low + wish.high) / 2, _measure(now, wish.measure)
    if wish.measure == "edge":
        op: Op = "crop_left" if picture.side == "left" else "crop_right"
        return Edit(op=op, value=ceil(picture.intruder * 100) + 2), f"Something pink at the {picture.side}"
    if wish.measure == "lean":
        side = "right" if picture.lean > 0 else "left"
        return Edit(op="straighten", value=round(-picture.lean)), f"The {side} end of the horizon is too low"
    if wish.measure == "noise":
        return Edit(op="denoise", value=50), "Grain all over the sky"
    if wish.measure == "contrast":
        return Edit(op="contrast", value=round((middle / got - 1) * 100)), f"Contrast {got:.0f}, wanted {middle:.0f}"
    op = "temperature" if wish.measure == "warmth" else "exposure"
    return Edit(op=op, value=round(middle - got)), f"{wish.measure.capitalize()} {got:.0f}, wanted {middle:.0f}"
