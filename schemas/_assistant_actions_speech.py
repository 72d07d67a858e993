"""Draws what a user says and what is right to do: requests, references to the situation, and what is missing."""

import datetime as dt
from collections.abc import Callable
from random import Random
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from factory.tasks.words import WordBank, Words, read_words

from ._assistant_actions_tools import Call, Expected, Reminder, Scenario, Setting, Way


class Knobs(NamedTuple):
    requests: tuple[int, int]
    reference: float  # share of requests that refer to the screen, the last message or the last reminder
    missing: float  # share of scenarios in which something must be asked
    ambiguous: float  # of these, share in which two contacts have the first name
    unserved: float  # share of scenarios that no tool serves


LEVELS = {
    "easy": Knobs((1, 1), 0.0, 0.15, 0.0, 0.15),
    "medium": Knobs((1, 2), 0.4, 0.25, 0.3, 0.15),
    "hard": Knobs((2, 3), 0.6, 0.25, 0.5, 0.15),
}


class _Missing(WordBank):
    said: Words
    ask: str
    words: Words


class _Bank(WordBank):
    labels: Words
    texts: Words
    errands: Words
    artists: Words
    songs: Words
    places: Words
    first: Words
    last: Words
    joins: Words
    ordinals: Words
    timer: Words
    timer_labelled: Words
    message: Words
    message_back: Words
    reminder: Words
    reminder_tomorrow: Words
    reminder_same: Words
    music: Words
    music_shuffled: Words
    music_shown: Words
    way: Words
    way_by: Words
    way_shown: Words
    on: Words
    off: Words
    unserved: Words
    by: dict[Way, str]
    settings: dict[Setting, str]
    missing: Annotated[list[_Missing], Field(min_length=3)]


BANK = read_words(__file__, _Bank)


class _Said(NamedTuple):
    text: str
    call: Call
    step: str


class _Speaker:
    """Somebody in a situation, who says requests that fit it."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.now = dt.datetime(2025, 1, 1, 7) + dt.timedelta(minutes=rng.randrange(360 * 1440))
        self.contacts = [f"{f} {n}" for f, n in zip(rng.sample(BANK.first, 5), rng.sample(BANK.last, 5), strict=True)]
        self.shows: Literal["places", "songs"] = rng.choice(("places", "songs"))
        self.shown = rng.sample(BANK.places if self.shows == "places" else BANK.songs, 4)
        self.writer = rng.choice(self.contacts)
        at = self.now.replace(hour=rng.randint(8, 20), minute=rng.choice((0, 10, 15, 30, 45)))
        self.reminder = Reminder(text=rng.choice(BANK.errands), at=at)

    def pick(self, phrases: Words, **slots: object) -> str:
        return self.rng.choice(phrases).format(**slots)

    def timer(self) -> _Said:
        minutes, label = self.rng.randint(2, 90), self.rng.choice(BANK.labels)
        if self.rng.random() < 0.5:
            call = Call(tool="SetTimer", arguments={"minutes": minutes})
            return _Said(self.pick(BANK.timer, minutes=minutes), call, f"Timer, {minutes} minutes, no label.")
        call = Call(tool="SetTimer", arguments={"minutes": minutes, "label": label})
        said = self.pick(BANK.timer_labelled, minutes=minutes, label=label)
        return _Said(said, call, f"Timer, {minutes} minutes, for {label}.")

    def message(self) -> _Said:
        to, text = self.rng.choice(self.contacts), self.rng.choice(BANK.texts)
        call = Call(tool="SendMessage", arguments={"to": to, "text": text})
        first = to.split()[0]
        return _Said(self.pick(BANK.message, to=first, text=text), call, f"Message, {first} is {to}.")

    def reply(self) -> _Said:
        text = self.rng.choice(BANK.texts)
        call = Call(tool="SendMessage", arguments={"to": self.writer, "text": text})
        return _Said(self.pick(BANK.message_back, text=text), call, f"Message back, the last was from {self.writer}.")

    def remind(self) -> _Said:
        text, time = self.rng.choice(BANK.errands), f"{self.rng.randint(7, 21):02}:{self.rng.choice((0, 15, 30)):02}"
        days = self.rng.choice((1, 1, *range(2, 20)))
        day = self.now.date() + dt.timedelta(days=days)
        call = Call(tool="AddReminder", arguments={"text": text, "at": f"{day}T{time}"})
        if days == 1:
            said = self.pick(BANK.reminder_tomorrow, time=time, text=text)
            return _Said(said, call, f"Reminder, tomorrow is {day}, at {time}.")
        return _Said(self.pick(BANK.reminder, day=day, time=time, text=text), call, f"Reminder, {day} at {time}.")

    def remind_same(self) -> _Said:
        text, at = self.rng.choice(BANK.errands), self.reminder.at
        when = dt.datetime.combine(self.now.date() + dt.timedelta(days=1), at.time())
        call = Call(tool="AddReminder", arguments={"text": text, "at": f"{when:%Y-%m-%dT%H:%M}"})
        step = f"Reminder, same time is {at:%H:%M}, tomorrow is {when.date()}."
        return _Said(self.pick(BANK.reminder_same, text=text), call, step)

    def music(self) -> _Said:
        what, shuffle = self.rng.choice(BANK.artists + BANK.songs), self.rng.random() < 0.4
        call = Call(tool="PlayMusic", arguments={"what": what, "shuffle": shuffle})
        said = self.pick(BANK.music_shuffled if shuffle else BANK.music, what=what)
        return _Said(said, call, f"Music, {what}{', shuffled' if shuffle else ''}.")

    def way(self) -> _Said:
        to, by = self.rng.choice(BANK.places), self.rng.choice(list(BANK.by))
        if self.rng.random() < 0.5:
            call = Call(tool="Navigate", arguments={"to": to, "by": "car"})
            return _Said(self.pick(BANK.way, to=to), call, f"Way to {to}, by car as nothing is said.")
        call = Call(tool="Navigate", arguments={"to": to, "by": by})
        return _Said(self.pick(BANK.way_by, to=to, by=BANK.by[by]), call, f"Way to {to}, {by}.")

    def setting(self) -> _Said:
        setting, on = self.rng.choice(list(BANK.settings)), self.rng.random() < 0.5
        call = Call(tool="ChangeSetting", arguments={"setting": setting, "on": on})
        said = self.pick(BANK.on if on else BANK.off, setting=BANK.settings[setting])
        return _Said(said, call, f"Setting {setting}, {'on' if on else 'off'}.")

    def shown_one(self) -> _Said:
        number = self.rng.randrange(len(self.shown))
        nth, what = BANK.ordinals[number], self.shown[number]
        if self.shows == "songs":
            call = Call(tool="PlayMusic", arguments={"what": what, "shuffle": False})
            return _Said(self.pick(BANK.music_shown, nth=nth), call, f"Music, the {nth} one shown is {what}.")
        call = Call(tool="Navigate", arguments={"to": what, "by": "car"})
        return _Said(self.pick(BANK.way_shown, nth=nth), call, f"Way, the {nth} one shown is {what}, by car.")

    def requests(self, count: int, reference: float) -> list[_Said]:
        """So many requests, each for something else."""
        plain: list[Callable[[], _Said]] = [self.timer, self.message, self.remind, self.music, self.way, self.setting]
        refers: list[Callable[[], _Said]] = [self.reply, self.remind_same, self.shown_one]
        said: list[_Said] = []
        while len(said) < count:
            one = self.rng.choice(refers if self.rng.random() < reference else plain)()
            if one.call.tool not in [other.call.tool for other in said]:
                said.append(one)
        return said

    def lacking(self) -> tuple[str, Expected]:
        """A request that lacks something that only the user can tell."""
        missing = self.rng.choice(BANK.missing)
        to = self.rng.choice(self.contacts).split()[0]
        said = self.pick(missing.said, to=to, text=self.rng.choice(BANK.texts), errand=self.rng.choice(BANK.errands))
        return said, Expected(ask=missing.ask, ask_words=tuple(missing.words), steps=(f"Missing: {missing.ask}.",))

    def ambiguous(self) -> tuple[str, Expected]:
        """A message to a first name that two contacts have."""
        name = self.rng.choice(self.contacts)
        first, taken = name.split()
        other = self.rng.choice([last for last in BANK.last if last != taken])
        self.contacts.append(f"{first} {other}")
        said = self.pick(BANK.message, to=first, text=self.rng.choice(BANK.texts))
        steps = (f"{first} may be {name} or {first} {other}.", "Missing: which of the two.")
        return said, Expected(ask=f"which {first}", ask_words=("which", taken, other), steps=steps)


def draw_utterance(rng: Random, knobs: Knobs) -> Scenario:
    """A situation, what is said in it, and what is right to do."""
    speaker, drawn = _Speaker(rng), rng.random()
    if drawn < knobs.unserved:
        said = rng.choice(BANK.unserved)
        expected = Expected(unserved=said, steps=(f"No tool serves: {said}.",))
    elif drawn < knobs.unserved + knobs.missing:
        said, expected = speaker.ambiguous() if rng.random() < knobs.ambiguous else speaker.lacking()
    else:
        requests = speaker.requests(rng.randint(*knobs.requests), knobs.reference)
        said = requests[0].text + "".join(rng.choice(BANK.joins) + one.text for one in requests[1:])
        steps = tuple(one.step for one in requests)
        expected = Expected(calls=tuple(one.call for one in requests), steps=steps)
    contacts = rng.sample(speaker.contacts, len(speaker.contacts))
    return Scenario(
        now=speaker.now,
        contacts=tuple(contacts),
        shown=tuple(speaker.shown),
        shown_kind=speaker.shows,
        last_message_from=speaker.writer,
        last_reminder=speaker.reminder,
        utterance=f"{said[0].upper()}{said[1:]}.",
        expected=expected,
    )
