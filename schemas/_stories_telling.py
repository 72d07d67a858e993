"""Tells stories to a brief, in either tense and person: what the stories task draws from and what `solve` writes."""

import re
from collections.abc import Callable
from random import Random
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from factory.tasks.words import WordBank, Words, read_words

Tense = Literal["past", "present"]
Person = Literal["first", "third"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Element(Frozen):
    """Something the story must have: how the brief names it, and words of which the text has one."""

    ask: str = Field(min_length=1, max_length=120)
    words: tuple[str, ...] = Field(min_length=1, max_length=10)


class Scenario(Frozen):
    """The hero is the first of the characters; `turn` is told in the middle half of the words."""

    characters: tuple[str, ...] = Field(min_length=1, max_length=6)
    place: Element
    things: tuple[Element, ...] = Field(default=(), max_length=6)
    turn: Element
    min_words: int = Field(ge=20, le=2000)
    max_words: int = Field(ge=30, le=2500)
    reading_age: int = Field(ge=4, le=16)
    tense: Tense
    person: Person
    avoid: tuple[str, ...] = Field(default=(), max_length=20)
    hero_is: Literal["she", "he", "they"] = "they"


class Knobs(NamedTuple):
    friends: int
    things: int
    words: tuple[int, int]  # the lower bound of the length, and the room above it
    ages: tuple[int, ...]
    avoid: int
    tenses: tuple[Tense, ...]
    persons: tuple[Person, ...]


LEVELS = {
    "easy": Knobs(1, 1, (60, 50), (8,), 1, ("past",), ("third",)),
    "medium": Knobs(1, 2, (90, 40), (6, 8, 10), 3, ("past", "present"), ("third",)),
    "hard": Knobs(2, 2, (130, 30), (5, 6, 8, 12), 5, ("past", "present"), ("first", "third")),
}


class _Turn(WordBank):
    ask: str
    words: Words
    told: Words
    mended: Words


class _Beats(WordBank):
    opening: Words
    third: Words
    thing: Words
    thing2: Words
    name: Words
    worry: Words
    idea: Words
    ending: Words


class _Bank(WordBank):
    girls: Words
    boys: Words
    avoid: Words
    verbs: dict[str, Annotated[list[str], Field(min_length=3, max_length=3)]]
    places: dict[str, list[str]]
    things: dict[str, str]
    turns: Annotated[list[_Turn], Field(min_length=2)]
    beats: _Beats
    fillers: Words
    no_names: Words
    more_past: Words
    more_present: Words


BANK = read_words(__file__, _Bank)


def draw_brief(rng: Random, knobs: Knobs) -> Scenario:
    """A brief that `tell` can tell a story to."""
    hero_is: Literal["she", "he"] = rng.choice(("she", "he"))
    hero = rng.choice(BANK.girls if hero_is == "she" else BANK.boys)
    others = [name for name in BANK.girls + BANK.boys if name != hero]
    place, turn = rng.choice(list(BANK.places)), rng.choice(BANK.turns)
    low = rng.randrange(knobs.words[0], knobs.words[0] + 31, 10)
    return Scenario(
        characters=(hero, *rng.sample(others, knobs.friends)),
        place=Element(ask=place, words=tuple(BANK.places[place])),
        things=tuple(Element(ask=t, words=(BANK.things[t],)) for t in rng.sample(list(BANK.things), knobs.things)),
        turn=Element(ask=turn.ask, words=tuple(turn.words)),
        min_words=low,
        max_words=low + knobs.words[1],
        reading_age=rng.choice(knobs.ages),
        tense=rng.choice(knobs.tenses),
        person=rng.choice(knobs.persons),
        avoid=tuple(rng.sample(BANK.avoid, knobs.avoid)),
        hero_is=hero_is,
    )


def _teller(s: Scenario) -> Callable[[str], str]:
    """What turns a sentence of the bank into one of this story."""
    first = s.person == "first"
    subject, object_, possessive = ("I", "me", "my") if first else {
        "she": ("she", "her", "her"), "he": ("he", "him", "his"), "they": ("they", "them", "their"),
    }[s.hero_is]  # fmt: skip
    hero, others = s.characters[0], [*s.characters[1:], "the dog", "the dog"]
    slots = {"N": hero, "H": "I" if first else hero, "P": subject.capitalize(), "p": subject, "o": object_}
    slots |= {"They": "We", "they": "we", "them": "us", "their": "our"} if first else {
        "They": "They", "they": "they", "them": "them", "their": "their",
    }  # fmt: skip
    slots |= {"s": possessive, "A": others[0], "B": others[1], "place": s.place.ask}
    slots |= {f"thing{n}" if n > 1 else "thing": thing.ask for n, thing in enumerate(s.things, 1)}
    slots |= {"thing_word": s.things[0].words[0]} if s.things else {}

    def conjugate(match: re.Match[str]) -> str:
        past, third, own = BANK.verbs[match[1] or match[2]]
        if match[3]:
            # only "be" has forms of its own for several
            return {"was": "were", "is": "are"}.get(
                past if s.tense == "past" else third, past if s.tense == "past" else own
            )
        return past if s.tense == "past" else own if match[1] and first else third

    def tell(sentence: str) -> str:
        text = re.sub(r"\[(\w+)\]|<(\w+)(\*?)>", conjugate, sentence).format_map(slots)
        return text[0].upper() + text[1:]

    return tell


def tell(s: Scenario) -> list[str]:
    """The sentences of the story in order; chosen by the brief alone."""
    rng = Random(s.model_dump_json())
    teller, turn = _teller(s), next((turn for turn in BANK.turns if turn.ask == s.turn.ask), None)
    if turn is None:
        raise ValueError(f"turn: {s.turn.ask!r} has no reference story")

    def fitting(sentences: Words) -> list[str]:
        return [text for text in map(teller, sentences) if not any(re.search(rf"\b{w}", text, re.I) for w in s.avoid)]

    def pick(sentences: Words) -> str:
        return rng.choice(fitting(sentences))

    beats = BANK.beats
    opening = [pick(beats.opening), pick(beats.thing)]
    opening += [pick(beats.thing2)] if len(s.things) > 1 else []
    opening += [pick(beats.third)] if len(s.characters) > 2 else []
    called, worry, idea = pick(beats.name), pick(beats.worry), pick(beats.idea)
    end, turned = [pick(turn.mended), pick(beats.ending)], pick(turn.told)
    fillers = fitting(BANK.fillers)
    told = [*opening, called, turned, worry, idea, *end]
    before, after = _choose_fillers(s, told, rng.sample(fillers, len(fillers)))
    return [*opening, *before, called, turned, worry, *after, idea, *end]


def _choose_fillers(s: Scenario, told: list[str], fillers: list[str]) -> tuple[list[str], list[str]]:
    """Sentences for both sides of the turn, which stays in the middle: up to the middle of the length asked for.

    Whoever learns from it counts words only nearly, and would miss an end that is aimed at.
    """
    aim = (s.min_words + s.max_words) // 2 - 4
    words = sum(len(text.split()) for text in told)
    before: list[str] = []
    after: list[str] = []
    for filler in fillers:
        if words >= aim:
            break
        (before if len(before) <= len(after) else after).append(filler)
        words += len(filler.split())
    return before, after
