"""Conversations in which facts are told, changed, taken back and forgotten: draws for the conversation_memory task."""

import datetime as dt
from random import Random
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from factory.tasks.words import WordBank, Words, read_words

Kind = Literal["recall", "update", "back", "retold", "two", "forgotten", "unknown"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Exchange(Frozen):
    user: str = Field(min_length=1, max_length=4000)
    assistant: str = Field(min_length=1, max_length=4000)


class Session(Frozen):
    date: dt.date
    exchanges: tuple[Exchange, ...] = Field(min_length=1, max_length=40)


class Step(Frozen):
    """What a session (counted from 1) did to a fact: told it, changed it, or forgot it (no value)."""

    session: int = Field(ge=1, le=100)
    whose: str = Field(max_length=60)
    phrase: str = Field(max_length=60)
    value: str | None = Field(default=None, max_length=120)


class Expected(Frozen):
    """`values`: what the reply must hold, none where it must say that it does not know; `others`: what it must not."""

    kind: Kind
    asked: tuple[str, ...] = Field(max_length=4)
    values: tuple[str, ...] = Field(default=(), max_length=4)
    outdated: tuple[str, ...] = Field(default=(), max_length=20)
    forgotten: tuple[str, ...] = Field(default=(), max_length=20)
    others: tuple[str, ...] = Field(default=(), max_length=40)
    steps: tuple[Step, ...] = Field(default=(), max_length=60)
    reply: str = Field(max_length=400)


class Scenario(Frozen):
    sessions: tuple[Session, ...] = Field(min_length=1, max_length=100)
    request: str = Field(min_length=1, max_length=4000)
    expected: Expected | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "Scenario":
        dates = [session.date for session in self.sessions]
        if dates != sorted(dates):
            raise ValueError("sessions: must be in the order of their dates, the oldest first")
        return self


class Knobs(NamedTuple):
    sessions: tuple[int, int]
    chat: tuple[int, int]  # exchanges of a session that tell nothing
    others: tuple[int, int]  # facts that are not asked for
    kinds: tuple[Kind, ...]


LEVELS = {
    "easy": Knobs((2, 3), (0, 1), (1, 2), ("recall", "recall", "unknown")),
    "medium": Knobs((3, 4), (1, 2), (2, 3), ("recall", "update", "update", "forgotten", "unknown")),
    "hard": Knobs((5, 6), (1, 2), (3, 5), ("update", "back", "retold", "two", "forgotten", "unknown")),
}


class _Chat(WordBank):
    user: str
    assistant: str


class _Topic(WordBank):
    phrase: str
    values: Annotated[list[str], Field(min_length=6)]
    requests: Words


class _Bank(WordBank):
    owners: Words
    tell: Words
    update: Words
    back: Words
    forget: Words
    noted: Words
    gone: Words
    both: Words
    not_known: Words
    chat: Annotated[list[_Chat], Field(min_length=6)]
    topics: Annotated[list[_Topic], Field(min_length=6)]


BANK = read_words(__file__, _Bank)


class _Fact:
    """One thing of one person, with the values that it may take in turn."""

    def __init__(self, rng: Random, topic: _Topic, owner: str, taken: set[str]) -> None:
        self.topic, self.owner = topic, owner
        free = [value for value in topic.values if value not in taken]
        self.values = rng.sample(free, 2)

    @property
    def whose(self) -> str:
        return "my" if self.owner == "me" else f"{self.owner}'s"

    @property
    def name(self) -> str:
        """As a reply says it: the user's "my mother" is "your mother" there."""
        return f"{self.whose.replace('my', 'your', 1)} {self.topic.phrase}"

    def say(self, phrases: Words, rng: Random, value: str = "", old: str = "") -> str:
        text = rng.choice(phrases).format(whose=self.whose, phrase=self.topic.phrase, v=value, old=old)
        return text[0].upper() + text[1:]


class _Talk:
    """Sessions that fill up; what is said of a fact comes in later and later ones."""

    def __init__(self, rng: Random, knobs: Knobs) -> None:
        self.rng = rng
        self.exchanges: list[list[Exchange]] = [[] for _ in range(rng.randint(*knobs.sessions))]
        self.steps: list[Step] = []

    def places(self, count: int) -> list[int]:
        """So many sessions, ascending."""
        return sorted(self.rng.sample(range(len(self.exchanges)), count))

    def put(self, session: int, fact: _Fact, phrases: Words, value: str | None, old: str = "") -> None:
        answers = BANK.gone if value is None else BANK.noted
        text = fact.say(phrases, self.rng, value or "", old)
        self.exchanges[session].append(Exchange(user=text, assistant=self.rng.choice(answers)))
        self.steps.append(Step(session=session + 1, whose=fact.whose, phrase=fact.topic.phrase, value=value))

    def tell(self, fact: _Fact) -> None:
        self.put(self.rng.randrange(len(self.exchanges)), fact, BANK.tell, fact.values[0])


class _Asked(NamedTuple):
    facts: list[_Fact]
    values: list[str]
    outdated: list[str]
    forgotten: list[str]


def _happen(talk: _Talk, kind: Kind, facts: list[_Fact]) -> _Asked:
    """Tell what is asked for, as its kind has it."""
    fact, (first, second) = facts[0], facts[0].values
    if kind == "unknown":
        return _Asked([fact], [], [], [])
    if kind == "two":
        for one in facts:
            talk.tell(one)
        return _Asked(facts, [one.values[0] for one in facts], [], [])
    if kind == "recall":
        talk.tell(fact)
        return _Asked([fact], [first], [], [])
    places = talk.places(3 if kind in ("back", "retold") else 2)
    talk.put(places[0], fact, BANK.tell, first)
    if kind == "update":
        talk.put(places[1], fact, BANK.update, second, first)
        return _Asked([fact], [second], [first], [])
    if kind == "back":
        talk.put(places[1], fact, BANK.update, second, first)
        talk.put(places[2], fact, BANK.back, first)
        return _Asked([fact], [first], [second], [])
    talk.put(places[1], fact, BANK.forget, None)
    if kind == "forgotten":
        return _Asked([fact], [], [], [first])
    # told again after it was forgotten: what was forgotten stays so, what was told then holds
    talk.put(places[2], fact, BANK.tell, second)
    return _Asked([fact], [second], [], [first])


def _draw_facts(rng: Random, count: int, asked: int) -> list[_Fact]:
    """Facts of different (topic, person); one after those asked for shares the topic of the first."""
    topics = rng.sample(BANK.topics, asked)
    taken: dict[str, set[str]] = {}
    facts: list[_Fact] = []
    for number in range(asked + count):
        topic = topics[number] if number < asked else topics[0] if number == asked else rng.choice(BANK.topics)
        used = {fact.owner for fact in facts if fact.topic is topic}
        owner = rng.choice([o for o in ("me", *BANK.owners) if o not in used])
        if len(taken.get(topic.phrase, ())) + 2 > len(topic.values):
            continue
        fact = _Fact(rng, topic, owner, taken.get(topic.phrase, set()))
        taken.setdefault(topic.phrase, set()).update(fact.values)
        facts.append(fact)
    return facts


def _ask(rng: Random, asked: _Asked) -> tuple[str, str]:
    """The request and its reply."""
    fact = asked.facts[0]
    if len(asked.facts) > 1:
        one, two = (f"{fact.whose} {fact.topic.phrase}" for fact in asked.facts)
        told = [f"{fact.name} is {value}" for fact, value in zip(asked.facts, asked.values, strict=True)]
        reply = " and ".join(told)
        return rng.choice(BANK.both).format(one=one, two=two), f"{reply[0].upper()}{reply[1:]}."
    who = "myself" if fact.owner == "me" else fact.owner
    request = rng.choice(fact.topic.requests).format(who=who, whose=fact.whose)
    if asked.values:
        return request, f"{fact.name[0].upper()}{fact.name[1:]} is {asked.values[0]}."
    reply = rng.choice(BANK.not_known).format(phrase=fact.name)
    return request, f"{reply[0].upper()}{reply[1:]}"


def draw_conversation(rng: Random, knobs: Knobs) -> Scenario:
    """Sessions, a last request, and what a reply to it must hold."""
    kind, talk = rng.choice(knobs.kinds), _Talk(rng, knobs)
    asked_count = 2 if kind == "two" else 1
    facts = _draw_facts(rng, rng.randint(*knobs.others), asked_count)
    asked = _happen(talk, kind, facts[:asked_count])
    for fact in facts[asked_count:]:
        talk.tell(fact)
    date, sessions = dt.date(2025, 1, 1) + dt.timedelta(days=rng.randrange(200)), []
    for exchanges in talk.exchanges:
        chat = [Exchange(user=c.user, assistant=c.assistant) for c in rng.sample(BANK.chat, rng.randint(*knobs.chat))]
        mixed = [*exchanges, *chat] or [Exchange(user=BANK.chat[0].user, assistant=BANK.chat[0].assistant)]
        sessions.append(Session(date=date, exchanges=tuple(rng.sample(mixed, len(mixed)))))
        date += dt.timedelta(days=rng.randint(1, 30))
    request, reply = _ask(rng, asked)
    others = {value for fact in facts[asked_count:] for value in fact.values[:1]}
    expected = Expected(
        kind=kind,
        asked=tuple(f"{fact.whose} {fact.topic.phrase}" for fact in asked.facts),
        values=tuple(asked.values),
        outdated=tuple(asked.outdated),
        forgotten=tuple(asked.forgotten),
        others=tuple(sorted(others)),
        steps=tuple(sorted(talk.steps, key=lambda step: step.session)),
        reply=reply,
    )
    return Scenario(sessions=tuple(sessions), request=request, expected=expected)
