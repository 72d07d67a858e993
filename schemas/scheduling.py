"""Finding a time for a meeting.

Trains an assistant to carry several calendars into the organizer's clock, cut the free time down person by person and
book a slot that all required people can keep. Levels grow harder by people, calendar entries, days, time zones (hard:
three or more, around a Sunday on which a clock moves) and extra rules (a buffer, lunch, a personal "not before").
`check` decides whether the slot keeps every rule: any that does is right, unless the earliest was asked for.

`_blocks` alone says what keeps a person from meeting, on the one clock of `_scheduling_clock.py`. `check` looks for a
block that the slot touches, `solve` cuts every block out of the window: so the slot it finds touches none, and no
earlier one is free.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Literal, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from factory.tasks.words import WordBank, Words, read_words

from ._names import pick_first_names
from ._scheduling_clock import (
    HOUR,
    Clock,
    Slot,
    Span,
    Strict,
    carry,
    cut,
    local,
    make_slot,
    minute,
    minute_of_day,
    offset,
    show,
    show_day,
    show_shift,
    show_turn,
)

Moment = Annotated[str, Field(pattern=f"^20[0-9][0-9]-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T{HOUR}$")]
Name = Annotated[str, Field(min_length=1, max_length=60)]
Role = Literal["required", "optional"]


class Knobs(NamedTuple):
    required: int  # the organizer among them
    guests: tuple[int, int]  # fewest and most
    zones: tuple[int, int]
    days: int
    entries: tuple[int, int]  # calendar entries of one person on one day
    rules: tuple[int, int]  # how many of RULES
    durations: tuple[int, ...]
    step: int
    clock_moves: bool


LEVELS = {
    "easy": Knobs(2, (0, 1), (1, 1), 1, (1, 2), (0, 0), (30, 60), 30, False),
    "medium": Knobs(3, (0, 1), (2, 2), 2, (2, 3), (1, 1), (30, 45, 60), 15, False),
    "hard": Knobs(4, (1, 2), (3, 4), 3, (2, 3), (2, 2), (30, 45, 60), 15, True),
}
RULES = ("buffer", "lunch", "limit")
CORE = 180  # minutes for which all are at work on each day: the meeting that is hidden lies in them


class Circle(WordBank):
    """Zones that share working hours."""

    zones: Annotated[tuple[str, ...], Field(min_length=5)]
    hour: Annotated[int, Field(ge=0, le=23)]  # UTC, from which all can be at work for CORE minutes
    sundays: Annotated[tuple[date, ...], Field(min_length=1)]  # on which the first zone moves its clock


class Bank(WordBank):
    topics: Words
    circles: Annotated[tuple[Circle, ...], Field(min_length=1)]


BANK = read_words(__file__, Bank)


class Entry(Slot):
    day: date


class Person(Strict):  # all of it on the person's own clock
    name: Name
    zone: ZoneInfo = ZoneInfo("UTC")
    works: Slot = Slot(start="09:00", end="17:00")
    busy: tuple[Entry, ...] = Field(default=(), max_length=200)
    role: Role = "required"
    not_before: Clock | None = None

    @property
    def agenda(self) -> str:
        days: dict[date, list[str]] = {}
        for entry in sorted(self.busy, key=lambda entry: (entry.day, entry.start, entry.end)):
            days.setdefault(entry.day, []).append(f"{entry.start}-{entry.end}")
        return "; ".join(f"{show_day(day)} {', '.join(slots)}" for day, slots in days.items()) or "nothing"


class Scenario(Strict):
    topic: str = Field(default="meeting", min_length=1, max_length=40)
    people: tuple[Person, ...] = Field(min_length=1, max_length=20)  # the first one is the organizer
    days: tuple[date, ...] = Field(min_length=1, max_length=31)
    window: Slot = Slot(start="00:00", end="23:59")  # on each of the days, on the organizer's clock
    duration: int = Field(default=30, ge=5, le=480)
    step: int = Field(default=15, ge=1, le=60)  # a meeting starts at a multiple of it past the hour
    earliest: bool = False
    buffer: int = Field(default=0, ge=0, le=120)
    lunch: Slot | None = None  # on everybody's own clock

    @model_validator(mode="after")
    def _is_solvable(self) -> "Scenario":
        if len({person.name for person in self.people}) < len(self.people) or self.host.role != "required":
            raise ValueError("people must have different names, and the first one must be required")
        # the search itself is the validator: rows of a user's own are refused before a teacher is asked
        if _search(self)[0] is None:
            raise ValueError("no slot fits all required people: add `days`, widen `window` or shorten `duration`")
        return self

    @property
    def host(self) -> Person:
        return self.people[0]

    @property
    def required(self) -> list[Person]:
        return [person for person in self.people if person.role == "required"]

    @property
    def multi_zone(self) -> bool:
        return len({person.zone for person in self.people}) > 1

    @property
    def days_text(self) -> str:
        return ", ".join(show_day(day) for day in sorted(self.days))

    def offsets(self, person: Person) -> str:
        """The UTC offset on the first day, and the date of every change until the last."""
        first, last = min(self.days), max(self.days)
        dates = [first + timedelta(days=ahead) for ahead in range((last - first).days + 1)]
        shown = [f"UTC{show_shift(offset(day, person.zone))}" for day in dates]
        moves = [at for at in range(1, len(dates)) if shown[at] != shown[at - 1]]
        return ", ".join([shown[0], *(f"{shown[at]} from {show_day(dates[at])}" for at in moves)])


class Attendee(Strict):
    name: Name
    role: Role
    local_start: Clock | None = None


class Answer(Strict):
    title: str = Field(min_length=1, max_length=60)
    start: Moment
    end: Moment
    attendees: list[Attendee] = Field(min_length=1, max_length=20)


def _blocks(scenario: Scenario, person: Person, day: date) -> Iterator[tuple[str, Span, Span]]:
    """What keeps a person from meeting around a day of the organizer's: code of the finding, span, span with buffer."""
    zone, near = person.zone, [day + timedelta(days=ahead) for ahead in (-1, 0, 1, 2)]
    rules = [("before_personal_limit", "00:00", person.not_before)] if person.not_before else []
    rules += [("lunch_overlap", scenario.lunch.start, scenario.lunch.end)] if scenario.lunch else []
    # the day before and after as well: two clocks may be a date apart
    for today, tomorrow in itertools.pairwise(near):
        night = (minute(today, person.works.end, zone), minute(tomorrow, person.works.start, zone))
        yield "outside_working_hours", night, night
        for code, start, end in rules:
            span = (minute(today, start, zone), minute(today, end, zone))
            yield code, span, span
    for entry in sorted(person.busy, key=lambda entry: (entry.day, entry.start)):
        if entry.day in near:
            low, high = minute(entry.day, entry.start, zone), minute(entry.day, entry.end, zone)
            yield "busy_overlap", (low, high), (low - scenario.buffer, high + scenario.buffer)


def _keep_hours(scenario: Scenario, person: Person, day: date, gaps: list[Span]) -> tuple[list[Span], list[str]]:
    """Keep of the gaps what one person's hours and lunch leave; the gaps, and the lines that say so."""
    zone, home, opens = person.zone, scenario.host.zone, max(person.works.start, person.not_before or "")
    hours, lunches = (minute(day, opens, zone), minute(day, person.works.end, zone)), []
    for code, _, span in _blocks(scenario, person, day):
        if code == "lunch_overlap" and local(span[0], zone).date() == day:
            lunches.append(span)
        elif code != "busy_overlap":
            gaps = cut(gaps, span, scenario.duration)
    here, there = offset(day, home), offset(day, zone)
    turn = f" to UTC{show_shift(here)} is {show_shift(here - there)}h" if here != there else ""
    clock = f" UTC{show_shift(there)}{turn}," if scenario.multi_zone else ""
    word = "works" if opens == person.works.start else "limited to"
    again = f", {carry(hours, day, zone, home)}" if turn else ""
    lines = [f"{person.name}{clock} {word} {show(zone, hours)}{again}, left {show(home, *gaps)}."]
    for span in lunches if gaps else ():
        gaps = cut(gaps, span, scenario.duration)
        lines.append(f"Lunch {carry(span, day, zone, home)}, left {show(home, *gaps)}.")
    return gaps, lines


def _keep_entries(scenario: Scenario, person: Person, day: date, gaps: list[Span]) -> tuple[list[Span], list[str]]:
    """Keep of the gaps what one person's calendar leaves, entry by entry, until nothing is left."""
    home, lines, shown = scenario.host.zone, [], []
    for code, bare, padded in _blocks(scenario, person, day):
        left = cut(gaps, padded, scenario.duration)
        if code == "busy_overlap" and (left != gaps or local(bare[0], person.zone).date() == day):
            shown.append(bare)
            if gaps:
                pad = f", padded {scenario.buffer} = {show(home, padded)}" if padded != bare else ""
                lines.append(f"Cut {carry(bare, day, person.zone, home)}{pad}, left {show(home, *left)}.")
            gaps = left
    return gaps, [f"{person.name} busy {show(person.zone, *shown)}.", *lines]


def _search(scenario: Scenario) -> tuple[int | None, list[str]]:
    """The earliest start, and how it was found."""
    lines, zone = [], scenario.host.zone
    for day in sorted(scenario.days):
        gaps = [(minute(day, scenario.window.start, zone), minute(day, scenario.window.end, zone))]
        clock = f" UTC{show_shift(offset(day, zone))}" if scenario.multi_zone else ""
        lines.append(f"{show_day(day)} {show(zone, *gaps)}{clock}.")
        # everybody's hours before anybody's entries: the reasoning about a day ends as soon as nothing is left of it
        for keep, person in itertools.product((_keep_hours, _keep_entries), scenario.required):
            if gaps:
                gaps, more = keep(scenario, person, day, gaps)
                lines += more
        # every minute, not every step: steps count from the full hour, and a gap may begin anywhere
        for start in (start for low, high in gaps for start in range(low, high - scenario.duration + 1)):
            if local(start, zone).minute % scenario.step == 0:
                return start, lines
    return None, lines


def _clashes(scenario: Scenario, person: Person, start: int) -> list[str]:
    span, findings = (start, start + scenario.duration), []
    for code, bare, padded in _blocks(scenario, person, local(start, scenario.host.zone).date()):
        # the buffer has a code of its own only where the meeting itself would have fitted
        if span[0] < padded[1] and padded[0] < span[1]:
            code = code if span[0] < bare[1] and bare[0] < span[1] else "buffer_too_short"
            got, expected = show(person.zone, span), show(person.zone, bare)
            findings.append(f"{code}: got {got} on the clock of {person.name}, expected to keep off {expected}")
    return findings


def _check_time(scenario: Scenario, start: datetime, end: datetime, length: int) -> Iterator[str]:
    slot, window = f"{start:%H:%M}-{end:%H:%M}", scenario.window
    # a day that was not offered says it all: its hours would only add findings that mean the same
    if start.date() not in scenario.days:
        yield f"day_not_offered: got {start.date()}, expected one of {scenario.days_text}"
    elif slot[:5] < window.start or slot[6:] > window.end or end.date() > start.date():
        yield f"outside_window: got {slot}, expected within {window.start}-{window.end}"
    if length != scenario.duration:
        yield f"wrong_duration: got {length} minutes, expected {scenario.duration}"
    if start.minute % scenario.step:
        yield f"off_grid: got {slot[:5]}, expected minutes that are a multiple of {scenario.step}"


def _check_list(scenario: Scenario, attendees: Sequence[Attendee], start: int) -> Iterator[str]:
    # a guest who can come must be in the list, and one who cannot must not: the list follows from the slot alone
    names = [attendee.name for attendee in attendees]
    for person in scenario.people:
        listed, can_come = names.count(person.name), not _clashes(scenario, person, start)
        if listed > 1:
            yield f"duplicate_attendee: got {person.name} {listed} times, expected once"
        if person.role == "required" and not listed:
            yield f"missing_attendee: got {names}, expected the required {person.name} too"
        if person.role == "optional" and can_come != bool(listed):
            code, expected = ("left_out", "in") if can_come else ("cannot_come", "not in")
            yield f"optional_{code}: got {names}, expected {person.name} {expected} the list"
    people = {person.name: person for person in scenario.people}
    for attendee in attendees:
        listed_person = people.get(attendee.name)
        if listed_person is None:
            yield f"unknown_attendee: got {attendee.name}, expected only people of the request"
            continue
        clock = f"{local(start, listed_person.zone):%H:%M}"
        if attendee.role != listed_person.role:
            yield f"wrong_role: got {attendee.role} for {attendee.name}, expected {listed_person.role}"
        # where all share a zone nothing has to be carried over, and the clock may be left out
        if attendee.local_start != clock and (attendee.local_start or scenario.multi_zone):
            yield f"wrong_local_start: got {attendee.local_start} for {attendee.name}, expected {clock}"


def check(scenario: Scenario, answer: Answer) -> list[str]:
    words = [word for word in scenario.topic.split() if word.casefold() not in answer.title.casefold()]
    findings = [f"off_topic_title: got {answer.title!r}, expected the words {' '.join(words)!r} in it"] if words else []
    try:
        start, end = datetime.fromisoformat(answer.start), datetime.fromisoformat(answer.end)
    except ValueError:
        return [*findings, f"impossible_date: got {answer.start} and {answer.end}, expected days of the calendar"]
    at, until = (minute(moment.date(), f"{moment:%H:%M}", scenario.host.zone) for moment in (start, end))
    findings += _check_time(scenario, start, end, until - at)
    findings += [finding for person in scenario.required for finding in _clashes(scenario, person, at)]
    findings += _check_list(scenario, answer.attendees, at)
    best = _search(scenario)[0]
    # only later than the best: a slot before it breaks a rule, and that is told already
    if scenario.earliest and best is not None and at > best:
        findings.append(f"not_earliest: got {answer.start}, expected {local(best, scenario.host.zone):%Y-%m-%dT%H:%M}")
    return findings


def solve(scenario: Scenario) -> tuple[str, Answer]:
    home, (at, found) = scenario.host.zone, _search(scenario)
    assert at is not None, "a scenario without a solution is refused when it is made"
    start, end, chosen = local(at, home), local(at + scenario.duration, home), scenario.required
    need = f"{scenario.duration} min" + (f", busy padded by {scenario.buffer}" if scenario.buffer else "")
    head = f"Need {need}, on the clock of {scenario.host.name}; drop shorter gaps."
    lines = [head, *found, f"First start at a multiple of {scenario.step}: {start:%Y-%m-%dT%H:%M}, end {end:%H:%M}."]
    for guest in [person for person in scenario.people if person.role == "optional"]:
        left, hours = _keep_hours(scenario, guest, start.date(), [(at, at + scenario.duration)])
        left, entries = _keep_entries(scenario, guest, start.date(), left) if left else (left, [])
        chosen += [guest] if left else []
        lines += [f"Optional {hours[0]}", *hours[1:], *entries, f"{'Add' if left else 'Leave out'} {guest.name}."]
    clocks = {person.name: f"{local(at, person.zone):%H:%M}" for person in chosen}
    turns = [f"{person.name} {show_turn(start, person.zone, home)}" for person in chosen]
    lines.append(f"Coming, local start: {', '.join(turns)}.")
    shown = clocks if scenario.multi_zone else {}
    people = [Attendee(name=person.name, role=person.role, local_start=shown.get(person.name)) for person in chosen]
    begins, ends = (f"{moment:%Y-%m-%dT%H:%M}" for moment in (start, end))
    return "\n".join(lines), Answer(title=scenario.topic.capitalize(), start=begins, end=ends, attendees=people)


def _pick_days(rng: random.Random, knobs: Knobs, sundays: Sequence[date]) -> list[date]:
    if not knobs.clock_moves:
        monday = date(2025, 1, 6) + timedelta(weeks=rng.randrange(50))
        return [monday + timedelta(days=ahead) for ahead in sorted(rng.sample(range(5), knobs.days))]
    # at least one day on each side of the Sunday, so that one offset for all days is wrong
    sunday, before = rng.choice(sundays), rng.randint(1, knobs.days - 1)
    ahead = rng.sample((-4, -3, -2), before) + rng.sample((1, 2, 3), knobs.days - before)
    return [sunday + timedelta(days=days) for days in sorted(ahead)]


def _pick_zones(rng: random.Random, knobs: Knobs, circle: Sequence[str], count: int) -> list[ZoneInfo]:
    # the zone whose clock moves is always there on the level that asks about it
    first, *rest = circle if knobs.clock_moves else rng.sample(circle, len(circle))
    zones = [first, *rng.sample(rest, rng.randint(*knobs.zones) - 1)]
    return [ZoneInfo(zone) for zone in rng.sample(zones + rng.choices(zones, k=count - len(zones)), count)]


def _hold(rng: random.Random, low: int, starts: Sequence[int], lengths: Sequence[int]) -> Slot:
    start = rng.choice([start for start in starts if start <= low])
    return make_slot(start, max(start + rng.choice(lengths), low + CORE))


def _fill(rng: random.Random, knobs: Knobs, day: date, works: Slot, taken: list[Span]) -> list[Entry]:
    low, high = (int(clock[:2]) * 60 + int(clock[3:]) for clock in (works.start, works.end))
    entries = []
    for _ in range(rng.randint(*knobs.entries)):
        length = rng.choice((30, 60, 90))
        start = rng.randrange(low, high - length + 1, knobs.step)
        if all(start + length <= other[0] or other[1] <= start for other in taken):
            taken.append((start, start + length))
            entries.append(Entry(day=day, **make_slot(start, start + length).model_dump()))
    return entries


def sample(rng: random.Random, level: str) -> Scenario:
    """Hides a solution inside the core, which all work, and fills the calendars around it."""
    knobs, circle = LEVELS[level], rng.choice(BANK.circles)
    rules, size = rng.sample(RULES, rng.randint(*knobs.rules)), knobs.required + rng.randint(*knobs.guests)
    days, zones = _pick_days(rng, knobs, circle.sundays), _pick_zones(rng, knobs, circle.zones, size)
    names = pick_first_names(rng, size)
    day, duration, buffer = rng.choice(days), rng.choice(knobs.durations), rng.choice((15, 30)) * ("buffer" in rules)
    hour, clock = (rng.randint(8, 14), zones[0]) if len(set(zones)) == 1 else (circle.hour, ZoneInfo("UTC"))
    core = minute(day, f"{hour:02d}:00", clock)
    starts = range(core, core + CORE - duration + 1, knobs.step)
    # in some mixes of zones it is always lunchtime for somebody: then nobody has a rule about it
    after = [at for at in starts if not any(720 - duration < minute_of_day(at, zone) < 780 for zone in zones)]
    lunch = "lunch" in rules and bool(after)
    hidden, limited = rng.choice(after if lunch else starts), rng.choice(names[: knobs.required])
    people = []
    for at, (name, zone) in enumerate(zip(names, zones, strict=True)):
        works = _hold(rng, minute_of_day(core, zone), (420, 480, 510, 540, 600, 660), (480, 540))
        begin = minute_of_day(hidden, zone)
        role: Role = "required" if at < knobs.required else "optional"
        # required people have the hidden slot free; of the others some, so that both verdicts on a guest occur
        keep = [(begin - buffer, begin + duration + buffer)] if role == "required" or rng.random() < 0.4 else []
        busy = [entry for on in days for entry in _fill(rng, knobs, on, works, keep if on == day else [])]
        # the full hour up to the hidden start, which it therefore allows
        limit = f"{begin // 60:02d}:00"
        not_before = limit if "limit" in rules and name == limited and works.start < limit else None
        people.append(Person(name=name, zone=zone, works=works, busy=tuple(busy), role=role, not_before=not_before))
    return Scenario(
        topic=rng.choice(BANK.topics),
        people=tuple(people),
        days=tuple(days),
        window=_hold(rng, minute_of_day(core, zones[0]), (420, 480, 540, 600), (480, 540, 600)),
        duration=duration,
        step=knobs.step,
        earliest=rng.random() < 0.6,
        buffer=buffer,
        lunch=Slot(start="12:00", end="13:00") if lunch else None,
    )
