"""Turning wishes about a photo into an ordered list of edits.

Trains a phone's assistant to map the user's words to operations and values, one wish at a time, and then to put the
edits into the order that was asked for. Levels grow harder by the number of edits (1-2, 3-4, 5-7), by how a value is
said (a number; words with a stated scale; relative to what the photo is now), by order constraints and by turns
(corrections, wishes taken back, parts to leave alone, things that are not in the photo). `check` decides from the
wishes' intents: every wanted edit once, with its value, and nothing else, in any order that keeps what was asked for.
Where a wish has no intent (a user's own requests) nobody can know what it asks for: then `check` looks only at
targets, duplicates and the export's place, values being bounded by the Answer's types, and refuses an empty list,
because nothing in it can be verified.
"""

import functools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, cast, get_args

from faker import Faker
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

Tone = Literal["exposure", "contrast", "saturation", "temperature"]
Strength = Literal["sharpen", "blur_background"]
Slider = Literal[Tone, Strength]
Op = Literal[Slider, "crop", "rotate", "straighten", "remove_object", "filter", "resize", "export"]
Aspect = Literal["1:1", "16:9", "9:16", "4:5", "5:4", "4:3", "3:4", "3:2", "2:3"]
Format = Literal["jpeg", "png", "heic", "webp"]
Look = Literal["mono", "sepia", "fade", "glow", "pop"]
Short = Annotated[str, StringConstraints(min_length=1, max_length=40)]
Pixels = Annotated[int, Field(ge=1, le=100_000)]
ToneValue = Annotated[int, Field(strict=True, ge=-100, le=100)]
StrengthValue = Annotated[int, Field(strict=True, ge=0, le=100)]
OpT = TypeVar("OpT")
ValueT = TypeVar("ValueT")


class Knobs(NamedTuple):
    edits: tuple[int, int]  # fewest and most that are right in the end
    styles: tuple[int, int, int]  # weights of STYLES: how a value is said
    things: tuple[int, int]  # in the photo
    sliders: int  # how many are not at 0
    step: int  # of settings and of named values
    orders: int
    turns: tuple[int, int]  # out of TURNS
    twice: tuple[Op, ...] = ()  # operations that can stand twice


LEVELS = {
    "easy": Knobs((1, 2), (0, 0, 1), (2, 3), 0, 5, 0, (0, 0)),
    "medium": Knobs((3, 4), (0, 2, 1), (3, 4), 3, 5, 1, (0, 0)),
    "hard": Knobs((5, 7), (3, 2, 1), (4, 6), 6, 1, 2, (1, 2), ("remove_object",)),
}
STYLES = ("relative", "worded", "exact")
TURNS = ("absent", "keep", "take_back", "correct")  # "correct" last: nothing may come between it and what it corrects
STRENGTHS: tuple[Op, ...] = get_args(Strength)
SLIDERS: tuple[Slider, ...] = get_args(Slider)
OPS: tuple[Op, ...] = get_args(Op)
TOLERANCE = 5  # after "about"
SCALE = {"a touch": 5, "a little": 10, "somewhat": 20, "a lot": 40}
PARTS: dict[str, tuple[Op, ...]] = {
    "light": ("exposure", "contrast"),
    "colours": ("saturation", "temperature", "filter"),
    "framing": ("crop", "rotate", "straighten"),
}
NAMES = {"sharpen": "sharpening", "blur_background": "background blur"}
ORDER_WORDS = {
    "first": ("first of all, {}", "{}, before anything else"),
    "last": ("last of all, {}", "{}, as the very last step"),
    "after": ("once {1} is done, {0}", "{0}, but only after {1}"),
}
NOUNS: dict[Op, str] = {
    "exposure": "the exposure change", "contrast": "the contrast change", "saturation": "the saturation change",
    "temperature": "the temperature change", "sharpen": "sharpening", "blur_background": "the background blur",
    "crop": "cropping", "rotate": "the turn", "straighten": "straightening", "filter": "the filter",
    "resize": "resizing", "export": "the file format",
}  # fmt: skip
MORE_LESS: dict[str, tuple[str, ...]] = {
    "exposure": ("make it {} brighter", "make it {} darker"),
    "contrast": ("give it {} more contrast", "give it {} less contrast"),
    "saturation": ("make the colours {} stronger", "make the colours {} paler"),
    "temperature": ("make it {} warmer", "make it {} cooler"),
    "sharpen": ("make it {} sharper",),
    "blur_background": ("blur the background {} more",),
}
THINGS = (
    "trash can", "street sign", "traffic cone", "lamp post", "red car", "white car", "blue bicycle", "green bicycle",
    "parked scooter", "power line", "man in a hat", "woman in a hat", "boy with a kite", "girl with a balloon",
    "tourist", "brown dog", "black dog", "grey cat", "seagull", "pigeon", "garden hose", "plastic bag", "coffee cup",
    "water bottle", "folding chair", "beach umbrella", "picnic table", "fence post", "flower pot", "backpack",
)  # fmt: skip
PLACES = (
    "at the left edge", "at the right edge", "at the top", "in the background", "in the foreground", "in the middle",
)  # fmt: skip
DIMENSIONS = ((4032, 3024), (4000, 3000), (3840, 2160), (4608, 3456), (5472, 3648), (6000, 4000), (3264, 2448))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EditOf(_Frozen, Generic[OpT, ValueT]):
    op: OpT
    value: ValueT


# One shape {op, value} for a small model to learn; the op, written first, picks the values a grammar allows next.
Edit = Annotated[
    EditOf[Tone, ToneValue]
    | EditOf[Strength, StrengthValue]
    | EditOf[Literal["crop"], Aspect]
    | EditOf[Literal["rotate"], Literal[90, 180, 270]]
    | EditOf[Literal["straighten"], Annotated[int, Field(strict=True, ge=-15, le=15)]]
    | EditOf[Literal["remove_object"], Short]
    | EditOf[Literal["filter"], Look]
    | EditOf[Literal["resize"], Annotated[int, Field(strict=True, ge=64, le=8192)]]
    | EditOf[Literal["export"], Format],
    Field(discriminator="op"),
]
EDIT: TypeAdapter[Edit] = TypeAdapter(Edit)


def _use_any_of(schema: dict[str, Any]) -> None:
    """Grammar engines know anyOf; the discriminator is for pydantic, whose first error then names the real fault."""
    items = schema["properties"]["edits"]["items"]
    items["anyOf"] = items.pop("oneOf")
    items.pop("discriminator")


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra=_use_any_of)
    edits: Annotated[list[Edit], Field(max_length=16)]


class Intent(_Frozen):
    """What a wish asks for; `shift` starts from the setting that there is now, `leave` takes earlier wishes back."""

    do: Literal["set", "shift", "leave"]
    op: Op | None = None  # none only where a whole part is to be left alone
    value: int | Short | None = None  # set: the edit's; shift: the change; leave: what not to remove, or a part
    tolerance: Annotated[int, Field(ge=0, le=100)] = 0
    said: Annotated[str, StringConstraints(max_length=200)] = ""  # the words that stand for the value
    place: Literal["first", "last"] | None = None
    after: Op | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Intent":
        if self.do == "set":
            EDIT.validate_python({"op": self.op, "value": self.value})
        elif self.do == "shift" and not (self.op in SLIDERS and isinstance(self.value, int)):
            raise ValueError(f"shift {self.op} {self.value!r}: needs a slider and a whole number")
        elif self.do == "leave" and not self.op and self.value not in PARTS:
            raise ValueError(f"leave {self.value!r}: needs an op, or a part out of {', '.join(PARTS)}")
        elif self.do == "leave" and self.op == "remove_object" and not self.value:
            raise ValueError("leave remove_object: needs the name of the thing as its value")
        return self


class Wish(_Frozen):
    words: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    intent: Intent | None = None


class Photo(_Frozen):
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)] = "my photo"
    caption: Annotated[str, StringConstraints(max_length=200)] = ""
    width: Pixels | None = None
    height: Pixels | None = None
    subjects: Annotated[dict[Short, Annotated[str, StringConstraints(max_length=60)]], Field(max_length=40)] = {}
    settings: dict[Slider, ToneValue] = {}

    @property
    def size(self) -> str:
        if not self.width or not self.height:
            return "of unknown size"
        return f"{self.width} x {self.height} pixels, {self.orientation}"

    @property
    def sliders(self) -> str:
        return ", ".join(f"{op} {self.now(op)}" for op in SLIDERS)

    @property
    def things(self) -> str:
        return (
            ", ".join(f"{name} ({where})" if where else name for name, where in self.subjects.items())
            or "nothing listed"
        )

    @property
    def orientation(self) -> str:
        return "landscape" if (self.width or 0) >= (self.height or 0) else "portrait"

    def now(self, op: Op | None) -> int:
        """A slider's setting, or for `resize` the long side."""
        return max(self.width or 0, self.height or 0) if op == "resize" else self.settings.get(cast(Slider, op), 0)


class Scenario(Photo):
    wishes: Annotated[tuple[Wish, ...], Field(min_length=1, max_length=40)]


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


def _value(photo: Photo, intent: Intent) -> int | str | None:
    if intent.do == "set":
        return intent.value
    return max(0 if intent.op in STRENGTHS else -100, min(100, photo.now(intent.op) + cast(int, intent.value)))


def _is_absent(photo: Photo, intent: Intent) -> bool:
    return intent.op == "remove_object" and intent.value not in photo.subjects


def _read(scenario: Scenario) -> Reading | None:
    """All wishes from first to last, where the last word counts; None where one has no intent."""
    reading = Reading({}, set(), {})
    for intent in (wish.intent for wish in scenario.wishes):
        if intent is None:
            return None
        keys = (_key(intent.op, intent.value),) if intent.op else PARTS[str(intent.value)]
        if intent.do == "leave":
            reading.left.update(keys)
            for key in keys:
                reading.wanted.pop(key, None)
        elif not _is_absent(scenario, intent):
            edit = EDIT.validate_python({"op": intent.op, "value": _value(scenario, intent)})
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
            off = edit.value != wanted.value
            if isinstance(edit.value, int) and isinstance(wanted.value, int):
                off = abs(edit.value - wanted.value) > tolerance
            if off:
                yield f"wrong_value: {edit.op} got {edit.value}, expected {wanted.value}"
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
    by, result = cast(int, value), _value(photo, intent)
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
    ops, spare = pool[:count], next(op for op in pool[count:] if op in NOUNS)
    speaker = Speaker(rng, knobs, _draw_photo(rng, knobs))
    drafts = [speaker.say(op) for op in ops]
    for turn in turns:
        if turn == "correct":
            _correct(speaker, drafts, ops)
        else:
            _add_turn(speaker, turn, drafts, part, spare)
    _ask_order(rng, drafts, ops, knobs.orders)
    wishes = tuple(Wish(words=words, intent=intent) for words, intent in drafts)
    return Scenario(wishes=wishes, **dict(speaker.photo))


@functools.cache
def _faker() -> Faker:
    return Faker("en_US")


def _draw_photo(rng: random.Random, knobs: Knobs) -> Photo:
    fake = _faker()
    fake.seed_instance(rng.getrandbits(32))
    width, height = rng.choice(DIMENSIONS)[:: rng.choice((1, -1))]
    places = rng.sample(PLACES, rng.randint(*knobs.things))
    settings: dict[Slider, int] = {}
    for op in rng.sample(SLIDERS, knobs.sliders):
        settings[op] = rng.choice(range(5, 96, knobs.step)) * (1 if op in STRENGTHS else rng.choice((1, -1)))
    return Photo(
        name=f"IMG_{rng.randint(1000, 9999)}.jpg",
        caption=f"with {fake.first_name()} in {fake.city()}",
        width=width,
        height=height,
        subjects=dict(zip(rng.sample(THINGS, len(places)), places, strict=True)),
        settings=settings,
    )


class Row(NamedTuple):
    """Ways to say an edit: phrases, and for the words in their gap the values that they stand for."""

    phrases: tuple[str, ...]
    values: Mapping[str, int | str]
    do: Literal["set", "shift"] = "set"
    tolerance: int = 0


# fmt: off
ROWS: dict[tuple[str, str], Row] = {
    ("crop", "exact"): Row(("crop it to {}", "cut it to {}"), {aspect: aspect for aspect in get_args(Aspect)}),
    ("crop", "worded"): Row(("crop it to a {} shape", "give it a {} shape"), {
        "square": "1:1", "widescreen": "16:9", "phone story": "9:16", "portrait post": "4:5"}),
    ("rotate", "exact"): Row(("rotate it {} degrees clockwise",), {str(n): n for n in (90, 180, 270)}),
    ("rotate", "worded"): Row(("turn it {}",), {
        "a quarter to the right": 90, "a quarter to the left": 270, "upside down": 180}),
    ("straighten", "exact"): Row(("straighten it by {}",), {
        f"{abs(n)} degrees {'clockwise' if n > 0 else 'counter-clockwise'}": n for n in range(-12, 13) if abs(n) > 1}),
    ("straighten", "relative"): Row(("the horizon leans {}, level it",), {
        f"{abs(n)} degrees to the {'left' if n > 0 else 'right'}": n for n in range(-12, 13) if abs(n) > 1}),
    ("filter", "exact"): Row(("use the {} filter", "put the {} filter on it"), {look: look for look in get_args(Look)}),
    ("filter", "worded"): Row(("give it a {} look",), {
        "black and white": "mono", "brown": "sepia", "washed-out": "fade", "dreamy": "glow", "comic-book": "pop"}),
    ("resize", "exact"): Row(("resize the long side to {} pixels",), {str(n): n for n in range(600, 3000, 50)}),
    ("resize", "worded"): Row(("make it {}",), {"thumbnail size": 256, "mail size": 1024, "screen size": 2048}),
    ("export", "exact"): Row(("save it as {}", "export it as {}"), {name: name for name in get_args(Format)}),
}
# fmt: on


class Draft(NamedTuple):
    words: str
    intent: Intent


class Speaker:
    """Says edits of one photo in words, never the removal of one thing twice."""

    def __init__(self, rng: random.Random, knobs: Knobs, photo: Photo) -> None:
        self.rng, self.knobs, self.photo = rng, knobs, photo
        self.targets = rng.sample(list(photo.subjects), len(photo.subjects))

    def say(self, op: Op) -> Draft:
        style = self.rng.choices(STYLES, self.knobs.styles)[0]
        if op in SLIDERS:
            rows = _slider_rows(self.photo.now(op), op, style, self.knobs.step)
        else:
            rows = [_find_row(self.photo, op, style, self.targets.pop() if op == "remove_object" else "")]
        phrases, values, do, tolerance = self.rng.choice(rows)
        words = self.rng.choice(list(values))
        said = "" if words.lstrip("-").isdigit() or words == values[words] else words
        intent = Intent(do=do, op=op, value=values[words], tolerance=tolerance, said=said)
        return Draft(self.rng.choice(phrases).format(words), intent)


def _find_row(photo: Photo, op: Op, style: str, target: str) -> Row:
    """The row of the style; where the operation has none, of the nearest plainer style."""
    tall = photo.orientation == "portrait"
    ratios = {f"{a} by {b}": f"{b}:{a}" if tall else f"{a}:{b}" for a, b in ((4, 3), (3, 2), (16, 9))}
    rows = {
        **ROWS,
        ("crop", "relative"): Row(("crop it {}, keeping its orientation",), ratios),
        ("resize", "relative"): Row(
            ("shrink the long side to {}",), {"half of what it is now": photo.now("resize") // 2}
        ),
        ("remove_object", "exact"): Row(("remove the {}", "get rid of the {}", "the {} has to go"), {target: target}),
        ("remove_object", "relative"): Row(("take out whatever is {}",), {photo.subjects.get(target, ""): target}),
    }
    return next(rows[op, s] for s in STYLES[STYLES.index(style) :] if (op, s) in rows)


def _slider_rows(now: int, op: Op, style: str, step: int) -> list[Row]:
    name, low = NAMES.get(op, op), 10 if op in STRENGTHS else -80
    if style == "relative" and now:
        values = {"neutral": 0, "twice what it is now": now * 2}
        values |= {"half of what it is now": now // 2} if now % 2 == 0 else {}
        kept = {words: n for words, n in values.items() if abs(n) <= 100}
        return [Row((f"set the {name} to {{}}", f"put the {name} at {{}}"), kept)]
    if style == "exact":
        signs = {"raise": 1, "lower": -1} if low < 0 else {"raise": 1}
        shifts = {verb: {str(n): sign * n for n in range(5, 51, step)} for verb, sign in signs.items()}
        named = {str(n): n for n in range(low, 81, step) if n not in (0, now)}
        by = [Row((f"{verb} the {name} by {{}}",), values, "shift") for verb, values in shifts.items()]
        return [Row((f"set the {name} to {{}}",), named), *by]
    near = {str(n): n for n in range(15, 75, 5) if abs(n - now) > TOLERANCE}
    scales = (SCALE, {words: -n for words, n in SCALE.items()})
    by = [Row((phrase,), scale, "shift") for phrase, scale in zip(MORE_LESS[op], scales, strict=False)]
    return [Row((f"set the {name} to about {{}}",), near, "set", TOLERANCE), *by, *by]


def _add_turn(speaker: Speaker, turn: str, drafts: list[Draft], part: str, spare: Op) -> None:
    """Add words that lead nowhere: something absent, a wish that is taken back, a part that nobody touches."""
    rng = speaker.rng
    if turn == "absent":
        target = rng.choice([thing for thing in THINGS if thing not in speaker.photo.subjects])
        added = [Draft(f"remove the {target}", Intent(do="set", op="remove_object", value=target))]
    elif turn == "keep":
        words = rng.choice(("don't touch the {}", "leave the {} alone")).format(part)
        undone = speaker.say(rng.choice(PARTS[part]))
        added = [*[undone] * rng.randint(0, 1), Draft(words, Intent(do="leave", value=part))]
    else:
        words = rng.choice(("forget {} after all", "on second thought, leave out {}")).format(NOUNS[spare])
        added = [speaker.say(spare), Draft(words, Intent(do="leave", op=spare))]
    place = 0
    for draft in added:
        place = rng.randint(place, len(drafts))
        drafts.insert(place, draft)
        place += 1


def _correct(speaker: Speaker, drafts: list[Draft], ops: Sequence[Op]) -> None:
    """Put a draft with another value before one of `ops`."""
    rng, photo = speaker.rng, speaker.photo
    place = rng.choice([i for i, (_, intent) in enumerate(drafts) if intent.op in NOUNS and intent.op in ops])
    words, intent = wrong = drafts[place]
    op = cast(Op, intent.op)
    while _value(photo, wrong.intent) == _value(photo, intent):
        wrong = speaker.say(op)
    drafts[place] = wrong
    if rng.random() < 0.5:
        drafts.insert(place + 1, Draft(f"no wait, {words} instead", intent))
    else:
        words = f"about {NOUNS[op]}, change of plan: {words}"
        drafts.insert(rng.randint(place + 1, len(drafts)), Draft(words, intent))


def _ask_order(rng: random.Random, drafts: list[Draft], ops: Sequence[Op], count: int) -> None:
    """Say `count` constraints that one hidden order of the edits keeps, each in the first draft on its operation."""
    chain = [op for op in ops if op in NOUNS and op != "export"]
    rng.shuffle(chain)
    asks: list[tuple[Op, str, Op | None]] = [(later, "after", earlier) for earlier, later in pairwise(chain)]
    asks += [(op, "first", None) for op in chain[:1]]
    asks += [(op, "last", None) for op in chain[1:][-1:] if "export" not in ops]
    rng.shuffle(asks)
    for op, (how, earlier) in list({op: (how, earlier) for op, how, earlier in asks}.items())[:count]:
        place = next(i for i, draft in enumerate(drafts) if draft.intent.op == op)
        words, intent = drafts[place]
        words = rng.choice(ORDER_WORDS[how]).format(words, NOUNS[earlier] if earlier else "")
        update = {"after": earlier} if earlier else {"place": how}
        drafts[place] = Draft(words, intent.model_copy(update=update))
