"""Summarization: a letter, notice, thread, report or notes, condensed under stated limits.

Trains finding what was asked, dropping values that the document replaced later, and inventing nothing. Levels harden by
longer documents, more asked facts, more replaced values and more figures that belong elsewhere. `check` decides:
length, asked facts (dates, times, sums and number words compared by meaning), no replaced value, no number or name the
document lacks, no long verbatim run, right key facts. A user's scenario may hold only a document. Where that is not
English, names, number words and sentence ends are not checked, and figures only as far as `strange_numbers` says.

`check` and `solve` know of the document what its facts say: forms that count as the value, and forms that no longer
do. `solve` composes the first form of each fact, and the limits come from that very composition (`_compose`), so a
reference always fits its limits and names nothing that is not a fact.
"""

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from factory.tasks.words import WordBank, Words, read_words

from ._summarization_meaning import MONTHS, canon, holds, is_english, strange_names, strange_numbers
from ._summarization_values import Drawer, Value


class _Knobs(NamedTuple):
    words: tuple[int, int]  # length of the document
    facts: tuple[int, int]  # asked for
    replaced: tuple[int, int]  # of these, corrected by a later sentence
    others: tuple[int, int]  # figures and names that belong to something else
    points: tuple[int, int]
    spare_words: int  # room over the reference summary
    max_copied: int


_LEVELS = {
    "easy": _Knobs((60, 90), (2, 2), (0, 1), (1, 1), (1, 2), 18, 12),
    "medium": _Knobs((120, 180), (3, 4), (1, 2), (2, 2), (2, 3), 16, 11),
    "hard": _Knobs((220, 320), (5, 6), (2, 3), (3, 4), (3, 4), 14, 10),
}
Urgency = Literal["low", "normal", "high"]
Style = Literal["sentences", "bullets"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fact(_Frozen):
    """`ask` is shown; any of `forms` in the summary satisfies it; `replaced` are forms that no longer hold."""

    ask: str = Field(min_length=1, max_length=200)
    forms: tuple[str, ...] = Field(min_length=1, max_length=20)
    replaced: tuple[str, ...] = Field(default=(), max_length=20)


class Expected(_Frozen):
    date: dt.date | None = None
    amount: str | None = Field(default=None, max_length=24)
    urgency: Urgency


class Scenario(_Frozen):
    document: str = Field(min_length=1, max_length=200_000)
    kind: str = Field(default="document", min_length=1, max_length=80)
    event: str = Field(default="", max_length=120)
    amount_role: str = Field(default="", max_length=120)
    audience: str = Field(default="", max_length=200)
    style: Style = "sentences"
    min_points: int = Field(default=1, ge=1, le=8)
    max_points: int = Field(default=5, ge=1, le=8)
    max_words: int = Field(default=100, ge=5, le=400)
    max_point_words: int = Field(default=40, ge=4, le=60)
    max_copied: int = Field(default=15, ge=5, le=60)
    facts: tuple[Fact, ...] = Field(default=(), max_length=20)
    people: tuple[str, ...] = Field(default=(), max_length=100)
    expected: Expected | None = None

    @property
    def length(self) -> str:
        low, high = self.min_points, max(self.min_points, self.max_points)
        count = f"exactly {low}" if low == high else f"{low} to {high}"
        return f"{count} {self.style[:-1] if high == 1 else self.style}"


class KeyFacts(BaseModel):
    model_config = ConfigDict(extra="forbid")
    date: dt.date | None
    amount: Annotated[str, Field(min_length=1, max_length=24)] | None
    people: list[Annotated[str, Field(min_length=1, max_length=60)]] = Field(max_length=6)
    urgency: Urgency


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = Field(min_length=1, max_length=90)
    points: list[Annotated[str, Field(min_length=1, max_length=320)]] = Field(min_length=1, max_length=8)
    key_facts: KeyFacts


class _Slots(WordBank):
    """Sentences for each kind of value that a document holds."""

    date: Words
    time: Words
    place: Words
    owner: Words
    amount: Words
    code: Words
    count: Words


class _Kind(WordBank):
    """A kind of document: what it may be about, who and what belongs to it, and what else it says."""

    layout: Literal["notice", "notes", "thread", "report", "letter"]
    events: Words
    others: Words
    place: str
    owner: str
    amount: str
    noun: str
    places: Words
    fillers: Words


class _Bank(WordBank):
    audience: Words
    filler: Words
    corrections: Words
    urgency: dict[Urgency, Words]
    say: _Slots
    other: _Slots
    kinds: Annotated[dict[str, _Kind], Field(min_length=1)]


_BANK = read_words(__file__, _Bank)


def _lay_out(layout: str, lines: list[str], event: str, first: str, second: str, cuts: list[int]) -> str:
    blocks = [" ".join(lines[start:end]) for start, end in pairwise([0, *sorted(cuts), len(lines)])]
    if layout == "thread":
        blocks = [f"{(first, second)[turn % 2]}: {block}" for turn, block in enumerate(blocks)]
    elif layout == "notes":
        blocks = [f"{event.capitalize()}, notes taken by {first}", *(f"- {line}" for line in lines)]
    elif layout == "letter":
        blocks = [f"Dear {first},", *blocks, f"Kind regards, {second}"]
    else:
        blocks = [f"{layout.capitalize()} about the {event}, issued by {first}", *blocks]
    return "\n".join(blocks)


def _write(rng: Random, knobs: _Knobs) -> Scenario:
    name = rng.choice(list(_BANK.kinds))
    kind = _BANK.kinds[name]
    event, drawer = rng.choice(kind.events), Drawer(rng, kind.places)
    roles = {"date": f"date of the {event}", "time": "start time", "place": kind.place, "owner": kind.owner}
    roles |= {"amount": kind.amount, "code": "reference number", "count": f"number of {kind.noun}"}

    def say(phrases: Sequence[str], slot: str, value: Value) -> str:
        words = {"event": event, "noun": kind.noun, "other": rng.choice(kind.others)}
        text = rng.choice(phrases).format(role=roles[slot], v=value.shown, **words)
        return text[0].upper() + text[1:]

    # the date is always asked for: it is a key fact, and the title tells it
    slots = rng.sample(list(roles)[1:], rng.randint(*knobs.facts) - 1)
    slots.insert(rng.randint(0, len(slots)), "date")
    now = {slot: drawer.draw(slot) for slot in slots}
    old = {slot: drawer.draw(slot) for slot in rng.sample(slots, rng.randint(*knobs.replaced))}
    extra = {slot: drawer.draw(slot) for slot in rng.sample(list(roles), rng.randint(*knobs.others))}
    # the place of each sentence in the document, from 0 to 1: a correction comes after what it corrects
    said = {slot: rng.random() * 0.7 * (slot != "date") for slot in slots}
    lines = [(said[slot], say(getattr(_BANK.say, slot), slot, old.get(slot, now[slot]))) for slot in slots]
    lines += [(rng.uniform(said[slot], 1), say(_BANK.corrections, slot, now[slot])) for slot in old]
    lines += [(rng.random(), say(getattr(_BANK.other, slot), slot, value)) for slot, value in extra.items()]
    room = rng.randint(knobs.words[0], knobs.words[1] - 20) - sum(len(line.split()) for _, line in lines)
    fillers = _BANK.filler + kind.fillers
    for filler in rng.sample(fillers, len(fillers)):
        if room > 0:
            lines.append((rng.random(), filler))
            room -= len(filler.split())
    # drawn apart from the text: the last sentence alone tells it
    urgency: Urgency = rng.choice(("low", "normal", "high"))
    texts = [*(line for _, line in sorted(lines)), rng.choice(_BANK.urgency[urgency])]
    people = [value.shown for value in (drawer.draw("owner"), drawer.draw("owner"))]
    cuts = rng.sample(range(1, len(texts)), len(texts) // 3)
    document = _lay_out(kind.layout, texts, event, people[0], people[1], cuts)
    # the signatures, then owners; not all stand in the document, a report has no second signature
    people += [values["owner"].shown for values in (now, old, extra) if "owner" in values]
    past = {slot: value.forms for slot, value in old.items()}
    facts = [Fact(ask=f"the {roles[slot]}", forms=now[slot].forms, replaced=past.get(slot, ())) for slot in slots]
    style: Style = rng.choice(("sentences", "bullets"))
    points = rng.randint(*knobs.points)
    sizes = [len(point.split()) for point in _compose(facts, points, style)]
    sum_now = now["amount"].forms[0] if "amount" in now else None
    return Scenario(
        document=document,
        kind=name,
        event=event,
        amount_role=kind.amount,
        audience=rng.choice(_BANK.audience),
        style=style,
        min_points=points,
        max_points=points,
        # a round number, as people state limits; the spare words are more than rounding takes away
        max_words=(sum(sizes) + knobs.spare_words) // 5 * 5,
        max_point_words=max(sizes) + knobs.spare_words // 2,
        max_copied=knobs.max_copied,
        facts=tuple(facts),
        people=tuple(person for person in people if person in document),
        expected=Expected(date=now["date"].day, amount=sum_now, urgency=urgency),
    )


def sample(rng: Random, level: str) -> Scenario:
    low, high = _LEVELS[level].words
    # fillers come whole, so a document can end a little beside the length that was drawn
    for _ in range(50):
        scenario = _write(rng, _LEVELS[level])
        if low <= len(scenario.document.split()) <= high:
            return scenario
    raise AssertionError(f"no {level} document of {low} to {high} words in 50 tries")


@lru_cache(maxsize=64)
def _runs(text: str, length: int) -> frozenset[tuple[str, ...]]:
    # without marks and case: another comma makes no sentence one's own
    words = [word.strip("\"'.,;:!?()*-").casefold() for word in text.split()]
    return frozenset(tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _count_words(text: str) -> int:
    """Two Chinese or Japanese characters count as a word."""
    return len(text.split()) + len(re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]", text)) // 2


def _is_one_sentence(point: str) -> bool:
    # the full stops of abbreviations and initials end nothing
    inner = re.sub(r"\b(?:Mr|Mrs|Ms|Dr|St|No|vs|Inc|Ltd|Co|[A-Za-z])\.", "", point)
    return bool(re.search(r"[.!?][\"')\]]*\s*$", point)) and not re.search(r"[.!?]\s+[A-Z]", inner)


def _check_length(scenario: Scenario, answer: Answer) -> Iterator[str]:
    sizes = [_count_words(point) for point in answer.points]
    if not scenario.min_points <= len(sizes) <= max(scenario.min_points, scenario.max_points):
        yield f"point_count: got {len(sizes)}, expected {scenario.length}"
    if sum(sizes) > scenario.max_words:
        yield f"too_many_words: points have {sum(sizes)} words, allowed {scenario.max_words}"
    if max(sizes) > scenario.max_point_words:
        yield f"point_too_long: a point has {max(sizes)} words, allowed {scenario.max_point_words}"
    if len(answer.title.split()) > 10:
        yield f"title_too_long: got {len(answer.title.split())} words, allowed 10"
    if len({canon(point) for point in answer.points}) < len(sizes) or not all(sizes):
        yield "empty_point: a point is blank or says what another says"


def _check_source(scenario: Scenario, answer: Answer, summary: str) -> Iterator[str]:
    document, english = scenario.document, is_english(scenario.document)
    figures = f"{summary}\n{answer.key_facts.amount or ''}"
    for number in strange_numbers(figures, document):
        yield f"invented_number: {number!r} is not in the document"
    signs, used = (sorted(set("$£€¥") & set(text)) for text in (document, figures))
    if signs and not set(used) <= set(signs):
        yield f"invented_number: got the currency {' '.join(used)}, the document has {' '.join(signs)}"
    # A title in Title Case hides which of its words are names.
    plain_title = any(word[0].islower() for word in answer.title.split() if len(word) > 4)
    for name in strange_names(summary if plain_title else "\n".join(answer.points), document) if english else ():
        yield f"invented_name: {name!r} is not in the document"
    for point in answer.points:
        if _runs(point, scenario.max_copied + 1) & _runs(document, scenario.max_copied + 1):
            yield f"copied_run: more than {scenario.max_copied} words in a row are the document's own: {point[:60]!r}"
        if english and scenario.style == "sentences" and not _is_one_sentence(point):
            yield f"not_one_sentence: a point must be one sentence with its end mark, got {point[:60]!r}"


def _check_people(scenario: Scenario, listed: list[str], summary: str) -> Iterator[str]:
    for person in scenario.people:
        named = holds(summary, person) or holds(summary, person.split()[-1])
        if named and not any(holds(entry, person) for entry in listed):
            yield f"people_missing: the summary names {person!r}, key_facts.people lacks it"
    # a title before a name is no part of it, in the document as in the list
    for entry in (re.sub(r"^(?:Mr|Mrs|Ms|Dr)\b\.?\s+", "", entry) for entry in listed):
        if is_english(scenario.document) and not holds(scenario.document, entry):
            yield f"invented_name: {entry!r} in key_facts.people is not in the document"
        elif is_english(scenario.document) and not any(holds(summary, part) for part in entry.split()):
            yield f"people_extra: {entry!r} is not named in title or points"


def _check_key_facts(expected: Expected, got: KeyFacts) -> Iterator[str]:
    if got.date != expected.date:
        yield f"wrong_date: got {got.date}, expected {expected.date}"
    # by its figures: a sum may be written with or without its currency and its separators
    sums = [amount and set(re.findall(r"\d+(?:\.\d+)?", canon(amount))) for amount in (got.amount, expected.amount)]
    if sums[0] != sums[1]:
        yield f"wrong_amount: got {got.amount}, expected {expected.amount}"
    if got.urgency != expected.urgency:
        yield f"wrong_urgency: got {got.urgency}, expected {expected.urgency}"


def check(scenario: Scenario, answer: Answer) -> list[str]:
    summary = "\n".join([answer.title, *answer.points])
    findings = list(_check_length(scenario, answer))
    for fact in scenario.facts:
        # a summary that names the old value too has the fact, and still says what no longer holds
        if not any(holds(summary, form) for form in fact.forms):
            findings.append(f"missing_fact: {fact.ask} not found, expected {fact.forms[0]!r}")
        old = next((form for form in fact.replaced if holds(summary, form)), None)
        if old:
            findings.append(f"superseded_value: {fact.ask} is no longer {old!r}; leave it out")
    findings += _check_source(scenario, answer, summary)
    findings += _check_people(scenario, answer.key_facts.people, summary)
    return findings + list(_check_key_facts(scenario.expected, answer.key_facts) if scenario.expected else ())


def _compose(facts: list[Fact], points: int, style: Style) -> list[str]:
    """The facts in order, spread evenly over the points."""
    texts = []
    for start, end in pairwise(len(facts) * cut // points for cut in range(points + 1)):
        if style == "bullets":
            text = "; ".join(f"{fact.ask.removeprefix('the ')}: {fact.forms[0]}" for fact in facts[start:end])
        else:
            text = " and ".join(f"{fact.ask} is {fact.forms[0]}" for fact in facts[start:end]) + "."
        texts.append(text[0].upper() + text[1:])
    return texts


def solve(scenario: Scenario) -> tuple[str, Answer]:
    """Composes the asked facts; a user's scenario without facts needs a teacher instead."""
    if len(scenario.facts) < scenario.min_points:
        raise ValueError(f"summarization: {len(scenario.facts)} facts cannot fill {scenario.length}; add facts")
    points = _compose(list(scenario.facts), scenario.min_points, scenario.style)
    # a user's document may come with facts and without key facts
    expected = scenario.expected or Expected(urgency="low")
    day, amount, topic = expected.date, expected.amount, scenario.event or scenario.kind
    plain_day = f"{day.day} {MONTHS[day.month - 1]} {day.year}" if day else ""
    people = [person for person in scenario.people if holds("\n".join(points), person)]
    signs = _BANK.urgency[expected.urgency]
    asked = next((line for line in signs if line in scenario.document), "nothing about a reply")
    steps = [f"This is about the {topic}. Facts to keep: {len(scenario.facts)}."]
    for fact in scenario.facts:
        change = f"first {fact.replaced[0]}, replaced later, so now " if fact.replaced else ""
        steps.append(f"{fact.ask[0].upper()}{fact.ask[1:]}: {change}{fact.forms[0]}.")
    steps += [
        f"I write {scenario.length} from these facts in this order.",
        f"The {topic} is on {plain_day}, so date is {day}." if day else "There is no main date, so date is null.",
        f"The {scenario.amount_role} is {amount}." if amount else "The main matter has no sum, so amount is null.",
        f"The points name {' and '.join(people)}." if people else "The points name nobody, so people is empty.",
        f"The document says: {asked.rstrip('.')}. So urgency is {expected.urgency}.",
    ]
    title = (topic[0].upper() + topic[1:] + (f" on {plain_day}" if day else ""))[:90]
    key_facts = KeyFacts(date=day, amount=amount, people=people, urgency=expected.urgency)
    return "\n".join(steps), Answer(title=title, points=points, key_facts=key_facts)
