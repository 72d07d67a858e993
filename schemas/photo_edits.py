"""Turning wishes about a photo into an ordered list of edits.

Trains a phone's assistant to map the user's words to operations and values, one wish at a time, and then to put the
edits into the order that was asked for. Levels grow harder by the number of edits (1-2, 3-4, 5-7), by how a value is
said (a number; words with a stated scale; relative to what the photo is now), by order constraints and by turns
(corrections, wishes taken back, parts to leave alone, things that are not in the photo): `LEVELS` in
`_photo_edits_speech.py`. `check` decides from the wishes' intents: every wanted edit once, with its value, and nothing
else, in any order that keeps what was asked for. Where a wish has no intent (a user's own requests) nobody can know
what it asks for: then `check` looks only at targets, duplicates and the export's place, values being bounded by the
Answer's types, and refuses an empty list, because nothing in it can be verified.

`check` and `solve` start from one reading of the intents (`_read`): the edits wanted in the end, what must not be
done, and the rules of order. `solve` arranges the first by the last, so every reference keeps what `check` asks.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field

from ._photo_edits_speech import BANK, LEVELS, TURNS, Speaker, add_turn, ask_order, correct, draw_photo
from ._photo_edits_wishes import EDIT, OPS, PARTS, SLIDERS, Edit, Intent, Op, Photo, Scenario, Wish, value_of


def _use_any_of(schema: dict[str, Any]) -> None:
    """Grammar engines know anyOf; the discriminator is for pydantic, whose first error then names the real fault."""
    items = schema["properties"]["edits"]["items"]
    items["anyOf"] = items.pop("oneOf")
    items.pop("discriminator")


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra=_use_any_of)
    edits: Annotated[list[Edit], Field(max_length=16)]


class Rule(NamedTuple):
    """`earlier` before `later`; None stands for every other edit."""

    earlier: Op | None
    later: Op | None

    def puts(self, front: Op, back: Op) -> bool:
        """Whether a `front` edit must come before a `back` one; the export comes before nothing."""
        opens = front == self.earlier or (self.earlier is None and front != self.later)
        closes = back == self.later or (self.later is None and back != self.earlier)
        return opens and closes and front != "export"

    def __str__(self) -> str:
        if self.earlier and self.later:
            return f"{self.later} after {self.earlier}"
        return f"{self.earlier} first" if self.earlier else f"{self.later} last"


EXPORT_LAST = Rule(None, "export")


class Reading(NamedTuple):
    wanted: dict[str, tuple[Edit, int]]  # with the tolerance of its value
    left: set[str]  # keys of edits that were taken back or never to be made
    rules: dict[Rule, None]


def _key(op: Op | None, value: object) -> str:
    """What there may be only one of: an operation, or the removal of one thing."""
    return f"{op} {value}" if op == "remove_object" else str(op)


def _is_absent(photo: Photo, intent: Intent) -> bool:
    return intent.op == "remove_object" and intent.value not in photo.subjects


def _read(scenario: Scenario) -> Reading | None:
    """All wishes from first to last, where the last word counts; None where one has no intent."""
    reading = Reading({}, set(), {})
    for intent in (wish.intent for wish in scenario.wishes):
        if intent is None:
            return None
        keys = (_key(intent.op, intent.value),) if intent.op else PARTS[str(intent.value)]
        # "left" is remembered only to tell a wish that was taken back from an edit that nobody asked for
        if intent.do == "leave":
            reading.left.update(keys)
            for key in keys:
                reading.wanted.pop(key, None)
        elif not _is_absent(scenario, intent):
            # a dict keeps a corrected wish at its first place, which is where `_arrange` puts its edit
            edit = EDIT.validate_python({"op": intent.op, "value": value_of(scenario, intent)})
            reading.left.discard(keys[0])
            reading.wanted[keys[0]] = edit, intent.tolerance
            reading.rules.update(dict.fromkeys(_rules(intent)))
    return reading


def _rules(intent: Intent) -> Iterator[Rule]:
    if intent.after:
        yield Rule(intent.after, intent.op)
    if intent.place:
        yield Rule(intent.op, None) if intent.place == "first" else Rule(None, intent.op)


def check(scenario: Scenario, answer: Answer) -> list[str]:
    """Findings; none where every wish is met. Without all intents: only what holds for any wishes."""
    reading = _read(scenario)
    findings = list(_check_form(scenario, answer.edits))
    if reading is not None:
        findings += _check_wishes(scenario, reading, answer.edits)
    elif not answer.edits:
        findings.append("no_edits: got an empty list, expected at least one edit")
    return findings


def _check_form(photo: Photo, edits: Sequence[Edit]) -> Iterator[str]:
    seen: list[str] = []
    for edit in edits:
        key = _key(edit.op, edit.value)
        if edit.op == "remove_object" and edit.value not in photo.subjects:
            yield f"unknown_target: got {edit.value!r}, the photo has: {photo.things}"
        if key in seen:
            yield f"duplicate_edit: got {key} more than once, expected it once"
        seen.append(key)
    if "export" in seen and seen[-1] != "export":
        yield f"export_not_last: got {seen[-1]} at the end, expected the export"


def _check_wishes(photo: Photo, reading: Reading, edits: Sequence[Edit]) -> Iterator[str]:
    keys, ops = [_key(edit.op, edit.value) for edit in edits], [edit.op for edit in edits]
    for key, (wanted, _) in reading.wanted.items():
        if key not in keys:
            yield f"missing_edit: expected {_list([wanted])}"
    for key, edit in zip(keys, edits, strict=True):
        if key in reading.wanted:
            wanted, tolerance = reading.wanted[key]
            # a tolerance only where "about" was said: it is 0 for every other number
            off = edit.value != wanted.value
            if isinstance(edit.value, int) and isinstance(wanted.value, int):
                off = abs(edit.value - wanted.value) > tolerance
            if off:
                yield f"wrong_value: {edit.op} got {edit.value}, expected {wanted.value}"
        # the removal of something absent is an unknown target already
        elif edit.op != "remove_object" or edit.value in photo.subjects:
            code = "left_alone" if key in reading.left else "unasked_edit"
            yield f"{code}: got {_list([edit])}, expected no such edit"
    for rule in reading.rules:
        if any(rule.puts(op, earlier) for i, op in enumerate(ops) for earlier in ops[:i]):
            yield f"wrong_order: got {', '.join(ops)}, expected {rule}"


def solve(scenario: Scenario) -> tuple[str, Answer]:
    """Reference reasoning and answer. Raises ValueError where a wish has no intent."""
    reading = _read(scenario)
    if reading is None:
        raise ValueError("solve needs an intent on every wish")
    edits = list(_arrange(reading))
    orders = [str(rule) for rule in dict.fromkeys([*reading.rules, EXPORT_LAST])]
    orders = [text for text in orders if text != "export last" or any(edit.op == "export" for edit in edits)]
    steps = [
        f"The photo is {scenario.size}. In it: {scenario.things}.",
        *_explain(scenario),
        f"Edits wanted: {_list(edit for edit, _ in reading.wanted.values())}.",
        f"Order asked: {', '.join(orders)}." if orders else "No order is asked, so they stay as they were said.",
        f"So the edits are: {_list(edits)}.",
    ]
    return "\n".join(steps), Answer(edits=edits)


def _list(edits: Iterable[Edit]) -> str:
    return ", ".join(f"{edit.op} {edit.value}" for edit in edits) or "none"


def _arrange(reading: Reading) -> Iterator[Edit]:
    """The wanted edits as said, each held back only as long as a rule puts another one before it."""
    left, rules = [edit for edit, _ in reading.wanted.values()], [*reading.rules, EXPORT_LAST]
    while left:
        free = (e for e in left if not any(rule.puts(other.op, e.op) for rule in rules for other in left))
        # a user's own wishes may contradict each other: then none is free, and the first goes on
        chosen = next(free, left[0])
        left.remove(chosen)
        yield chosen


def _explain(scenario: Scenario) -> Iterator[str]:
    seen: list[str] = []
    for number, intent in enumerate((wish.intent for wish in scenario.wishes), start=1):
        assert intent is not None
        key = _key(intent.op, intent.value)
        again = " in place of the earlier one" if key in seen and intent.do != "leave" else ""
        seen.append(key)
        yield f"Wish {number}: {_explain_one(scenario, intent)}{again}."


def _explain_one(photo: Photo, intent: Intent) -> str:
    op, value = intent.op, intent.value
    if intent.do == "leave":
        return f"leave {_key(op, value) if op else ', '.join(PARTS[str(value)])} alone"
    if _is_absent(photo, intent):
        return f"{value} is not in the photo, so leave it out"
    now, base = photo.now(op), f"{op} "
    if op == "crop" and " by " in intent.said:
        base = f"crop of a {photo.orientation} photo, "
    elif (op in SLIDERS or op == "resize") and (intent.said or intent.do == "shift"):
        base = f"{op} is {now} now, "
    if intent.do == "set":
        return f'{base}"{intent.said}" is {value}' if intent.said else f"{base}{value}"
    by, result = cast(int, value), value_of(photo, intent)
    scale = f'"{intent.said}" is {abs(by)}, ' if intent.said else ""
    limit = f", the limit is {result}" if now + by != result else ""
    return f"{base}{scale}{now} {'-' if by < 0 else '+'} {abs(by)} = {now + by}{limit}"


def sample(rng: random.Random, level: str) -> Scenario:
    """Draw the edits that are right in the end, say each in words, then add the turns and the order asked for."""
    knobs = LEVELS[level]
    turns = sorted(rng.sample(TURNS, rng.randint(*knobs.turns)), key=TURNS.index)
    part = rng.choice(list(PARTS)) if "keep" in turns else ""
    pool = [op for op in OPS + knobs.twice if op not in PARTS.get(part, ())]
    rng.shuffle(pool)
    count = rng.randint(*knobs.edits)
    # the spare one is wished for and taken back, so it must be one that has a name
    ops, spare = pool[:count], next(op for op in pool[count:] if op in BANK.nouns)
    speaker = Speaker(rng, knobs, draw_photo(rng, knobs))
    drafts = [speaker.say(op) for op in ops]
    # turns before orders: an order is asked in the first draft on its operation, which a correction may have changed
    for turn in turns:
        if turn == "correct":
            correct(speaker, drafts, ops)
        else:
            add_turn(speaker, turn, drafts, part, spare)
    ask_order(rng, drafts, ops, knobs.orders)
    wishes = tuple(Wish(words=words, intent=intent) for words, intent in drafts)
    return Scenario(wishes=wishes, **dict(speaker.photo))
