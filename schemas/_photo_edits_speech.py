"""How wishes are said: edits in words of three styles, the turns that lead nowhere, and the order asked for.

Every draft carries the intent that its words state. `check` reads intents only, so words and intent are always made
together, here.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, cast, get_args

from pydantic import Field

from factory.tasks.words import WordBank, Words, read_words

from ._names import seed_faker
from ._photo_edits_wishes import (
    PARTS,
    SLIDERS,
    STRENGTHS,
    Aspect,
    Format,
    Intent,
    Look,
    Op,
    Photo,
    Slider,
    value_of,
)

Style = Literal["relative", "worded", "exact"]


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
STYLES: tuple[Style, ...] = ("relative", "worded", "exact")
# "correct" last: nothing may come between it and what it corrects
TURNS = ("absent", "keep", "take_back", "correct")
TOLERANCE = 5  # after "about"


class Said(WordBank):
    phrases: Words
    values: Annotated[dict[str, int | str], Field(default_factory=dict)]


class Turns(WordBank):
    keep: Words
    take_back: Words


class Orders(WordBank):
    first: Words
    last: Words
    after: Words


class Bank(WordBank):
    things: Annotated[Words, Field(min_length=7)]  # one more than a photo holds
    places: Annotated[Words, Field(min_length=6)]
    dimensions: Annotated[tuple[tuple[int, int], ...], Field(min_length=1)]
    scale: dict[str, int]
    names: dict[Op, str]
    nouns: dict[Op, str]
    more_less: dict[Op, Words]
    orders: Orders
    turns: Turns
    rows: dict[Op, dict[Style, Said]]


BANK = read_words(__file__, Bank)


def draw_photo(rng: random.Random, knobs: Knobs) -> Photo:
    fake = seed_faker(rng)
    # half of the photos are turned to portrait
    width, height = rng.choice(BANK.dimensions)[:: rng.choice((1, -1))]
    places = rng.sample(BANK.places, rng.randint(*knobs.things))
    settings: dict[Slider, int] = {}
    for op in rng.sample(SLIDERS, knobs.sliders):
        settings[op] = rng.choice(range(5, 96, knobs.step)) * (1 if op in STRENGTHS else rng.choice((1, -1)))
    return Photo(
        name=f"IMG_{rng.randint(1000, 9999)}.jpg",
        caption=f"with {fake.first_name()} in {fake.city()}",
        width=width,
        height=height,
        subjects=dict(zip(rng.sample(BANK.things, len(places)), places, strict=True)),
        settings=settings,
    )


class Row(NamedTuple):
    """Ways to say an edit: phrases, and for the words in their gap the values that they stand for."""

    phrases: tuple[str, ...]
    values: Mapping[str, int | str]
    do: Literal["set", "shift"] = "set"
    tolerance: int = 0


VALUES: dict[tuple[Op, str], Mapping[str, int | str]] = {
    ("crop", "exact"): {aspect: aspect for aspect in get_args(Aspect)},
    ("rotate", "exact"): {str(n): n for n in (90, 180, 270)},
    ("straighten", "exact"): {
        f"{abs(n)} degrees {'clockwise' if n > 0 else 'counter-clockwise'}": n for n in range(-12, 13) if abs(n) > 1
    },
    # what leans to the left is levelled by turning it to the right
    ("straighten", "relative"): {
        f"{abs(n)} degrees to the {'left' if n > 0 else 'right'}": n for n in range(-12, 13) if abs(n) > 1
    },
    ("filter", "exact"): {look: look for look in get_args(Look)},
    ("resize", "exact"): {str(n): n for n in range(600, 3000, 50)},
    ("export", "exact"): {name: name for name in get_args(Format)},
}


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
        # reasoning explains words, and not a value that stands there as it is
        said = "" if words.lstrip("-").isdigit() or words == values[words] else words
        intent = Intent(do=do, op=op, value=values[words], tolerance=tolerance, said=said)
        return Draft(self.rng.choice(phrases).format(words), intent)


def _find_row(photo: Photo, op: Op, style: Style, target: str) -> Row:
    """The row of the style; where the operation has none, of the nearest plainer style."""
    tall = photo.orientation == "portrait"
    ratios = {f"{a} by {b}": f"{b}:{a}" if tall else f"{a}:{b}" for a, b in ((4, 3), (3, 2), (16, 9))}
    values = VALUES | {
        ("crop", "relative"): ratios,
        ("resize", "relative"): {"half of what it is now": photo.now("resize") // 2},
        ("remove_object", "exact"): {target: target},
        ("remove_object", "relative"): {photo.subjects.get(target, ""): target},
    }
    rows = BANK.rows[op]
    found = next(s for s in STYLES[STYLES.index(style) :] if s in rows)
    return Row(rows[found].phrases, rows[found].values or values[op, found])


def _slider_rows(now: int, op: Op, style: str, step: int) -> list[Row]:
    name, low = BANK.names.get(op, op), 10 if op in STRENGTHS else -80
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
    # "about 20" where it is 18 already would ask for nothing that can be checked
    near = {str(n): n for n in range(15, 75, 5) if abs(n - now) > TOLERANCE}
    scales = (BANK.scale, {words: -n for words, n in BANK.scale.items()})
    by = [Row((phrase,), scale, "shift") for phrase, scale in zip(BANK.more_less[op], scales, strict=False)]
    # twice, so that the scale is said more often than a value
    return [Row((f"set the {name} to about {{}}",), near, "set", TOLERANCE), *by, *by]


def add_turn(speaker: Speaker, turn: str, drafts: list[Draft], part: str, spare: Op) -> None:
    """Add words that lead nowhere: something absent, a wish that is taken back, a part that nobody touches."""
    rng = speaker.rng
    if turn == "absent":
        target = rng.choice([thing for thing in BANK.things if thing not in speaker.photo.subjects])
        added = [Draft(f"remove the {target}", Intent(do="set", op="remove_object", value=target))]
    elif turn == "keep":
        words = rng.choice(BANK.turns.keep).format(part)
        # half of the time something of the part was wished for before: then the edit must go, not only stay away
        undone = speaker.say(rng.choice(PARTS[part]))
        added = [*[undone] * rng.randint(0, 1), Draft(words, Intent(do="leave", value=part))]
    else:
        words = rng.choice(BANK.turns.take_back).format(BANK.nouns[spare])
        added = [speaker.say(spare), Draft(words, Intent(do="leave", op=spare))]
    # in this order, wherever they land: what takes a wish back must come after it
    place = 0
    for draft in added:
        place = rng.randint(place, len(drafts))
        drafts.insert(place, draft)
        place += 1


def correct(speaker: Speaker, drafts: list[Draft], ops: Sequence[Op]) -> None:
    """Put a draft with another value before one of `ops`."""
    rng, photo = speaker.rng, speaker.photo
    place = rng.choice([i for i, (_, intent) in enumerate(drafts) if intent.op in BANK.nouns and intent.op in ops])
    words, intent = wrong = drafts[place]
    op = cast(Op, intent.op)
    # by value and not by words: "a lot brighter" may end at the same limit as "+50"
    while value_of(photo, wrong.intent) == value_of(photo, intent):
        wrong = speaker.say(op)
    drafts[place] = wrong
    if rng.random() < 0.5:
        drafts.insert(place + 1, Draft(f"no wait, {words} instead", intent))
    else:
        words = f"about {BANK.nouns[op]}, change of plan: {words}"
        drafts.insert(rng.randint(place + 1, len(drafts)), Draft(words, intent))


def ask_order(rng: random.Random, drafts: list[Draft], ops: Sequence[Op], count: int) -> None:
    """Say `count` constraints that one hidden order of the edits keeps, each in the first draft on its operation."""
    # the export is last by itself, and of a removal there may be two: neither can be named in an order
    chain = [op for op in ops if op in BANK.nouns and op != "export"]
    rng.shuffle(chain)
    asks: list[tuple[Op, str, Op | None]] = [(later, "after", earlier) for earlier, later in pairwise(chain)]
    asks += [(op, "first", None) for op in chain[:1]]
    asks += [(op, "last", None) for op in chain[1:][-1:] if "export" not in ops]
    rng.shuffle(asks)
    # one constraint an operation, the last one drawn: an intent has one place
    for op, (how, earlier) in list({op: (how, earlier) for op, how, earlier in asks}.items())[:count]:
        place = next(i for i, draft in enumerate(drafts) if draft.intent.op == op)
        words, intent = drafts[place]
        words = rng.choice(getattr(BANK.orders, how)).format(words, BANK.nouns[earlier] if earlier else "")
        update = {"after": earlier} if earlier else {"place": how}
        drafts[place] = Draft(words, intent.model_copy(update=update))
