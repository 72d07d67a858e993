"""Passages about invented places, and questions whose answer in them is known: draws for the questions task.

A draft is a list of facts (place, attribute, value), each told in one passage; a question picks some of them. What is
asked is told by nothing but these facts, so the evidence of an answer is exact.
"""

import datetime as dt
from random import Random
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from factory.tasks.words import WordBank, Words, read_words

from ._names import seed_faker

Asked = Literal["lookup", "sum", "first", "bridge", "update", "conflict", "unknown"]
Status = Literal["answered", "conflict", "unknown"]


class Knobs(NamedTuple):
    places: tuple[int, int]
    facts: tuple[int, int]  # of a place in its passage
    fillers: tuple[int, int]  # sentences of a passage that answer nothing
    terms: tuple[int, int]  # places whose numbers are added
    dated: bool
    asked: tuple[Asked, ...]


LEVELS = {
    "easy": Knobs((2, 3), (2, 2), (0, 1), (2, 2), False, ("lookup", "lookup", "sum", "unknown")),
    "medium": Knobs((3, 4), (2, 3), (1, 2), (2, 2), False, ("lookup", "sum", "first", "conflict", "unknown")),
    "hard": Knobs((4, 6), (2, 3), (1, 3), (2, 3), True, ("sum", "first", "bridge", "update", "conflict", "unknown")),
}


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Passage(Frozen):
    """`date` is when it was written; None where nobody knows."""

    source: str = Field(default="", max_length=120)
    text: str = Field(min_length=1, max_length=20_000)
    date: dt.date | None = None


class Evidence(Frozen):
    """What a passage (counted from 1) says of what was asked: a value, or None where it tells of the place alone."""

    passage: int = Field(ge=1, le=50)
    place: str = Field(min_length=1, max_length=120)
    value: str | None = Field(default=None, max_length=120)


class Expected(Frozen):
    """The answer: texts that it must hold, others that it must not, and the passages it stands on."""

    asked: Asked
    brief: str = Field(max_length=80)
    values: tuple[str, ...] = Field(max_length=4)
    others: tuple[str, ...] = Field(default=(), max_length=40)
    sources: tuple[int, ...] = Field(max_length=20)
    evidence: tuple[Evidence, ...] = Field(max_length=40)
    sentence: str = Field(max_length=300)

    @property
    def status(self) -> Status:
        return self.asked if self.asked in ("conflict", "unknown") else "answered"


class Scenario(Frozen):
    passages: tuple[Passage, ...] = Field(min_length=1, max_length=50)
    question: str = Field(min_length=1, max_length=400)
    expected: Expected | None = None


class _Attribute(WordBank):
    brief: str
    ask: str
    say: Words
    total: str = ""
    first: str = ""
    kind: Literal["number", "year", "person"] = "number"
    low: int = 0
    high: int = 0
    step: int = 1


class _Kind(WordBank):
    noun: str
    attributes: Annotated[list[_Attribute], Field(min_length=3)]


class _Bank(WordBank):
    prefixes: Words
    events: Words
    sources: Words
    fillers: Words
    held: Words
    kinds: Annotated[list[_Kind], Field(min_length=2)]


_BANK = read_words(__file__, _Bank)


class _Draft:
    """Passages that grow fact by fact; at the end they are shuffled and numbered."""

    def __init__(self, rng: Random, knobs: Knobs) -> None:
        self.rng, self.knobs = rng, knobs
        self.kind = rng.choice(_BANK.kinds)
        count = rng.randint(*knobs.places)
        self.prefixes = rng.sample(_BANK.prefixes, count)
        self.places = [f"{prefix} {self.kind.noun}" for prefix in self.prefixes]
        fake = seed_faker(rng)
        self.people = [f"{fake.first_name()} {fake.last_name()}" for _ in range(3 * count + 6)]
        # sentences of each passage, and the facts in it: (place, attribute, value)
        self.texts: list[list[str]] = []
        self.facts: list[list[tuple[str, str, str]]] = []
        self.dates: list[dt.date | None] = []

    def draw_value(self, attribute: _Attribute, besides: set[str]) -> str:
        while True:
            if attribute.kind == "person":
                value = self.people.pop()
            elif attribute.kind == "year":
                value = str(self.rng.randint(1850, 2015))
            else:
                steps = (attribute.high - attribute.low) // attribute.step
                value = str(attribute.low + attribute.step * self.rng.randint(0, steps))
            if value not in besides:
                return value

    def values_of(self, attribute: _Attribute) -> set[str]:
        return {value for facts in self.facts for _, brief, value in facts if brief == attribute.brief}

    def write(self, place: str, attributes: list[_Attribute], date: dt.date | None = None) -> int:
        """A passage with a value of each attribute; its index. Values of an attribute are all different."""
        facts = [(place, a.brief, self.draw_value(a, self.values_of(a))) for a in attributes]
        said = [
            self.rng.choice(a.say).format(name=place, v=value)
            for a, (_, _, value) in zip(attributes, facts, strict=True)
        ]
        self.texts.append(said)
        self.facts.append(facts)
        self.dates.append(date or (self.draw_date() if self.knobs.dated else None))
        return len(self.texts) - 1

    def draw_date(self) -> dt.date:
        return dt.date(2024, 1, 1) + dt.timedelta(days=self.rng.randrange(365))

    def pick(self, besides: _Attribute) -> list[_Attribute]:
        others = [attribute for attribute in self.kind.attributes if attribute is not besides]
        return self.rng.sample(others, min(len(others), self.rng.randint(*self.knobs.facts) - 1))


class _Asked(NamedTuple):
    """What is asked, by indexes of passages before they are shuffled."""

    question: str
    values: tuple[str, ...]
    sources: tuple[int, ...]
    sentence: str


def _value(draft: _Draft, index: int, attribute: _Attribute) -> str:
    return next(value for _, brief, value in draft.facts[index] if brief == attribute.brief)


def _ask(draft: _Draft, asked: Asked, attribute: _Attribute, homes: list[int]) -> _Asked:
    """The question over the places' own passages (`homes`, one a place); further passages are written here."""
    rng, place, home = draft.rng, draft.places[0], homes[0]
    question = attribute.ask.format(name=place)
    if asked == "unknown":
        return _Asked(question, (), (), f"The passages do not say: {attribute.brief} of the {place}.")
    value = _value(draft, home, attribute)
    sentence = attribute.say[0].format(name=place, v=value)
    if asked == "lookup":
        return _Asked(question, (value,), (home,), sentence)
    if asked == "sum":
        count = min(len(homes), rng.randint(*draft.knobs.terms))
        names = [f"the {name}" for name in draft.places[:count]]
        total = sum(int(_value(draft, index, attribute)) for index in homes[:count])
        told = f"{', '.join(names[:-1])} and {names[-1]}"
        return _Asked(
            attribute.total.format(names=told), (str(total),), tuple(homes[:count]), f"Together it is {total}."
        )
    if asked == "first":
        pair = sorted(range(2), key=lambda n: int(_value(draft, homes[n], attribute)))
        question = attribute.first.format(a=place, b=draft.places[1])
        winner = draft.places[pair[0]]
        return _Asked(question, (winner,), (homes[0], homes[1]), f"It is the {winner}.")
    if asked == "bridge":
        event = f"{rng.choice(draft.prefixes[1:])} {rng.choice(_BANK.events)}"
        draft.texts.append([rng.choice(_BANK.held).format(event=event, name=place)])
        draft.facts.append([(event, "place", place)])
        draft.dates.append(draft.draw_date())
        question = attribute.ask.format(name=f"place where the {event} are held")
        return _Asked(question, (value,), (home, len(draft.texts) - 1), sentence)
    date = draft.dates[home]
    if asked == "conflict":
        # of the same day, where there are days: neither is newer
        other = draft.write(place, [attribute, *draft.pick(attribute)][:2], date)
        values = value, _value(draft, other, attribute)
        return _Asked(question, values, (home, other), f"The passages disagree: {values[0]} or {values[1]}.")
    assert date is not None
    other = draft.write(place, [attribute], date + dt.timedelta(days=rng.randint(20, 400)))
    value = _value(draft, other, attribute)
    return _Asked(question, (value,), (other,), attribute.say[0].format(name=place, v=value))


def draft_questions(rng: Random, knobs: Knobs) -> Scenario:
    """One question with its passages."""
    draft, asked = _Draft(rng, knobs), rng.choice(knobs.asked)
    fits = [a for a in draft.kind.attributes if (asked != "sum" or a.total) and (asked != "first" or a.first)]
    attribute = rng.choice(fits)
    homes = []
    for number, place in enumerate(draft.places):
        # all places have what is asked, but the one that it is asked of has it not where nothing is to be known
        own = [] if asked == "unknown" and number == 0 else [attribute]
        homes.append(draft.write(place, [*own, *draft.pick(attribute)] or [draft.kind.attributes[0]]))
    if knobs.dated or asked == "unknown":
        # a place of another kind with nearly the same name
        other = rng.choice([kind for kind in _BANK.kinds if kind is not draft.kind])
        draft.write(f"{draft.prefixes[0]} {other.noun}", rng.sample(other.attributes, 2))
    question = _ask(draft, asked, attribute, homes)
    return _lay_out(draft, asked, attribute, question)


def _lay_out(draft: _Draft, asked: Asked, attribute: _Attribute, question: _Asked) -> Scenario:
    rng = draft.rng
    order = rng.sample(range(len(draft.texts)), len(draft.texts))
    number_of = {index: number for number, index in enumerate(order, 1)}
    sources = rng.sample(_BANK.sources, len(order))
    passages, evidence = [], []
    for number, index in enumerate(order, 1):
        lines = draft.texts[index] + rng.sample(_BANK.fillers, rng.randint(*draft.knobs.fillers))
        text = " ".join(rng.sample(lines, len(lines)))
        passages.append(Passage(source=sources[number - 1], text=text, date=draft.dates[index]))
        for place, brief, value in draft.facts[index]:
            if brief in (attribute.brief, "place"):
                evidence.append(Evidence(passage=number, place=place, value=value))
        if all(brief not in (attribute.brief, "place") for _, brief, _ in draft.facts[index]):
            evidence.append(Evidence(passage=number, place=draft.facts[index][0][0]))
    values = draft.values_of(attribute) if asked != "first" else set(draft.places)
    expected = Expected(
        asked=asked,
        brief=attribute.brief,
        values=question.values,
        others=tuple(sorted(values - set(question.values))),
        sources=tuple(sorted(number_of[index] for index in question.sources)),
        evidence=tuple(evidence),
        sentence=question.sentence,
    )
    return Scenario(passages=tuple(passages), question=question.question, expected=expected)
