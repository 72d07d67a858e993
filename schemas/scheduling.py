"""Finding a time for a meeting.

Trains an assistant to carry several calendars into the organizer's clock, cut the free time down person by person and
book a slot that all required people can keep. Levels grow harder by people, calendar entries, days, time zones (hard:
three or more, around a Sunday on which a clock moves) and extra rules (a buffer, lunch, a personal "not before").
`check` decides whether the slot keeps every rule: any that does is right, unless the earliest was asked for.
"""

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal, NamedTuple
from zoneinfo import ZoneInfo

from faker import Faker
from pydantic import BaseModel, ConfigDict, Field, model_validator

# [0-9], not \d: pydantic's regex engine lets \d match the digits of every script.
HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"
Clock = Annotated[str, Field(pattern=f"^{HOUR}$")]
Moment = Annotated[str, Field(pattern=f"^20[0-9][0-9]-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T{HOUR}$")]
Name = Annotated[str, Field(min_length=1, max_length=60)]
Role = Literal["required", "optional"]
Span = tuple[int, int]  # minutes since the epoch: the one clock on which calendars are compared


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
CORE = 180
US, EU, AU = ("2025-03-09", "2025-11-02"), ("2025-03-30", "2025-10-26"), ("2025-04-06", "2025-10-05")
# Zones, of which the first moves its clock on the Sundays; the UTC hour from which all can be at work for CORE minutes.
CIRCLES = (
    (("America/New_York", "Europe/Berlin", "Africa/Lagos", "America/Sao_Paulo", "Europe/London"), 13, US),
    (("Europe/London", "America/New_York", "Europe/Athens", "Africa/Lagos", "America/Sao_Paulo"), 13, EU),
    (("America/Los_Angeles", "America/New_York", "America/Chicago", "America/Denver", "America/Phoenix"), 17, US),
    (("Europe/Berlin", "Asia/Kolkata", "Asia/Dubai", "Europe/London", "Africa/Nairobi"), 8, EU),
    (("Australia/Sydney", "Asia/Tokyo", "Asia/Singapore", "Asia/Manila", "Australia/Brisbane"), 2, AU),
)
TOPICS = (
    *("budget review", "sprint planning", "hiring sync", "roadmap check-in", "design critique", "launch rehearsal"),
    *("vendor call", "data migration", "security audit", "team retro", "pricing workshop", "press briefing"),
)


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Slot(Strict):
    start: Clock
    end: Clock

    @model_validator(mode="after")
    def _runs_forward(self) -> "Slot":
        if self.end <= self.start:
            raise ValueError(f"a slot must end after it starts, got {self.start}-{self.end}")
        return self


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
        return "; ".join(f"{_show_day(day)} {', '.join(slots)}" for day, slots in days.items()) or "nothing"


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
        return ", ".join(_show_day(day) for day in sorted(self.days))

    def offsets(self, person: Person) -> str:
        """The UTC offset on the first day, and the date of every change until the last."""
        first, last = min(self.days), max(self.days)
        dates = [first + timedelta(days=ahead) for ahead in range((last - first).days + 1)]
        shown = [f"UTC{_show_shift(_offset(day, person.zone))}" for day in dates]
        moves = [at for at in range(1, len(dates)) if shown[at] != shown[at - 1]]
        return ", ".join([shown[0], *(f"{shown[at]} from {_show_day(dates[at])}" for at in moves)])


class Attendee(Strict):
    name: Name
    role: Role
    local_start: Clock | None = None


class Answer(Strict):
    title: str = Field(min_length=1, max_length=60)
    start: Moment
    end: Moment
    attendees: list[Attendee] = Field(min_length=1, max_length=20)


@functools.lru_cache(maxsize=8192)
def _minute(day: date, clock: str, zone: ZoneInfo) -> int:
    moment = datetime(day.year, day.month, day.day, int(clock[:2]), int(clock[3:]), tzinfo=zone)
    return int(moment.timestamp()) // 60


def _local(minute: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(minute * 60, UTC).astimezone(zone)


def _offset(day: date, zone: ZoneInfo) -> int:
    return _minute(day, "12:00", ZoneInfo("UTC")) - _minute(day, "12:00", zone)


def _show_day(day: date) -> str:
    return f"{('Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun')[day.weekday()]} {day.isoformat()}"


def _show_shift(minutes: int) -> str:
    whole, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{whole}" + (f":{rest:02d}" if rest else "")


def _show(zone: ZoneInfo, *spans: Span) -> str:
    return ", ".join(f"{_local(low, zone):%H:%M}-{_local(high, zone):%H:%M}" for low, high in spans) or "nothing"


def _blocks(scenario: Scenario, person: Person, day: date) -> Iterator[tuple[str, Span, Span]]:
    """What keeps a person from meeting around a day of the organizer's: code of the finding, span, span with buffer."""
    zone, near = person.zone, [day + timedelta(days=ahead) for ahead in (-1, 0, 1, 2)]
    rules = [("before_personal_limit", "00:00", person.not_before)] if person.not_before else []
    rules += [("lunch_overlap", scenario.lunch.start, scenario.lunch.end)] if scenario.lunch else []
    for today, tomorrow in itertools.pairwise(near):  # two clocks may be a date apart
        night = (_minute(today, person.works.end, zone), _minute(tomorrow, person.works.start, zone))
        yield "outside_working_hours", night, night
        for code, start, end in rules:
            span = (_minute(today, start, zone), _minute(today, end, zone))
            yield code, span, span
    for entry in sorted(person.busy, key=lambda entry: (entry.day, entry.start)):
        if entry.day in near:
            low, high = _minute(entry.day, entry.start, zone), _minute(entry.day, entry.end, zone)
            yield "busy_overlap", (low, high), (low - scenario.buffer, high + scenario.buffer)


def _cut(gaps: Sequence[Span], span: Span, shortest: int) -> list[Span]:
    parts = [part for low, high in gaps for part in ((low, min(high, span[0])), (max(low, span[1]), high))]
    return [part for part in parts if part[1] - part[0] >= shortest]


def _turn(scenario: Scenario, person: Person, day: date, span: Span) -> str:
    """A span on the organizer's clock; where a person's own is another one, each end is carried over by itself."""
    zone, home = person.zone, scenario.host.zone
    shift = _show_shift(_offset(day, home) - _offset(day, zone))
    sums = (f"{_local(at, zone):%H:%M} {shift}h = {_local(at, home):%H:%M}" for at in span)
    return _show(home, span) if shift == "+0" else ", ".join(sums)


def _keep_hours(scenario: Scenario, person: Person, day: date, gaps: list[Span]) -> tuple[list[Span], list[str]]:
    """Keep of the gaps what one person's hours and lunch leave; the gaps, and the lines that say so."""
    zone, home, opens = person.zone, scenario.host.zone, max(person.works.start, person.not_before or "")
    hours, lunches = (_minute(day, opens, zone), _minute(day, person.works.end, zone)), []
    for code, _, span in _blocks(scenario, person, day):
        if code == "lunch_overlap" and _local(span[0], zone).date() == day:
            lunches.append(span)
        elif code != "busy_overlap":
            gaps = _cut(gaps, span, scenario.duration)
    here, there = _offset(day, home), _offset(day, zone)
    turn = f" to UTC{_show_shift(here)} is {_show_shift(here - there)}h" if here != there else ""
    clock = f" UTC{_show_shift(there)}{turn}," if scenario.multi_zone else ""
    word = "works" if opens == person.works.start else "limited to"
    again = f", {_turn(scenario, person, day, hours)}" if turn else ""
    lines = [f"{person.name}{clock} {word} {_show(zone, hours)}{again}, left {_show(home, *gaps)}."]
    for span in lunches if gaps else ():
        gaps = _cut(gaps, span, scenario.duration)
        lines.append(f"Lunch {_turn(scenario, person, day, span)}, left {_show(home, *gaps)}.")
    return gaps, lines


def _keep_entries(scenario: Scenario, person: Person, day: date, gaps: list[Span]) -> tuple[list[Span], list[str]]:
    """Keep of the gaps what one person's calendar leaves, entry by entry, until nothing is left."""
    home, lines, shown = scenario.host.zone, [], []
    for code, bare, padded in _blocks(scenario, person, day):
        left = _cut(gaps, padded, scenario.duration)
        if code == "busy_overlap" and (left != gaps or _local(bare[0], person.zone).date() == day):
            shown.append(bare)
            if gaps:
                pad = f", padded {scenario.buffer} = {_show(home, padded)}" if padded != bare else ""
                lines.append(f"Cut {_turn(scenario, person, day, bare)}{pad}, left {_show(home, *left)}.")
            gaps = left
    return gaps, [f"{person.name} busy {_show(person.zone, *shown)}.", *lines]


def _search(scenario: Scenario) -> tuple[int | None, list[str]]:
    """The earliest start, and how it was found."""
    lines, zone = [], scenario.host.zone
    for day in sorted(scenario.days):
        gaps = [(_minute(day, scenario.window.start, zone), _minute(day, scenario.window.end, zone))]
        offset = f" UTC{_show_shift(_offset(day, zone))}" if scenario.multi_zone else ""
        lines.append(f"{_show_day(day)} {_show(zone, *gaps)}{offset}.")
        for keep, person in itertools.product((_keep_hours, _keep_entries), scenario.required):
            if gaps:
                gaps, more = keep(scenario, person, day, gaps)
                lines += more
        for start in (start for low, high in gaps for start in range(low, high - scenario.duration + 1)):
            if _local(start, zone).minute % scenario.step == 0:
                return start, lines
    return None, lines


def _clashes(scenario: Scenario, person: Person, start: int) -> list[str]:
    span, findings = (start, start + scenario.duration), []
    for code, bare, padded in _blocks(scenario, person, _local(start, scenario.host.zone).date()):
        if span[0] < padded[1] and padded[0] < span[1]:
            code = code if span[0] < bare[1] and bare[0] < span[1] else "buffer_too_short"
            got, expected = _show(person.zone, span), _show(person.zone, bare)
            findings.append(f"{code}: got {got} on the clock of {person.name}, expected to keep off {expected}")
    return findings


def _check_time(scenario: Scenario, start: datetime, end: datetime, length: int) -> Iterator[str]:
    slot, window = f"{start:%H:%M}-{end:%H:%M}", scenario.window
    if start.date() not in scenario.days:
        yield f"day_not_offered: got {start.date()}, expected one of {scenario.days_text}"
    elif slot[:5] < window.start or slot[6:] > window.end or end.date() > start.date():
        yield f"outside_window: got {slot}, expected within {window.start}-{window.end}"
    if length != scenario.duration:
        yield f"wrong_duration: got {length} minutes, expected {scenario.duration}"
    if start.minute % scenario.step:
        yield f"off_grid: got {slot[:5]}, expected minutes that are a multiple of {scenario.step}"


def _check_list(scenario: Scenario, attendees: Sequence[Attendee], start: int) -> Iterator[str]:
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
        clock = f"{_local(start, listed_person.zone):%H:%M}"
        if attendee.role != listed_person.role:
            yield f"wrong_role: got {attendee.role} for {attendee.name}, expected {listed_person.role}"
        if attendee.local_start != clock and (attendee.local_start or scenario.multi_zone):
            yield f"wrong_local_start: got {attendee.local_start} for {attendee.name}, expected {clock}"


def check(scenario: Scenario, answer: Answer) -> list[str]:
    words = [word for word in scenario.topic.split() if word.casefold() not in answer.title.casefold()]
    findings = [f"off_topic_title: got {answer.title!r}, expected the words {' '.join(words)!r} in it"] if words else []
    try:
        start, end = datetime.fromisoformat(answer.start), datetime.fromisoformat(answer.end)
    except ValueError:
        return [*findings, f"impossible_date: got {answer.start} and {answer.end}, expected days of the calendar"]
    at, until = (_minute(moment.date(), f"{moment:%H:%M}", scenario.host.zone) for moment in (start, end))
    findings += _check_time(scenario, start, end, until - at)
    findings += [finding for person in scenario.required for finding in _clashes(scenario, person, at)]
    findings += _check_list(scenario, answer.attendees, at)
    best = _search(scenario)[0]
    if scenario.earliest and best is not None and at > best:
        findings.append(f"not_earliest: got {answer.start}, expected {_local(best, scenario.host.zone):%Y-%m-%dT%H:%M}")
    return findings


def solve(scenario: Scenario) -> tuple[str, Answer]:
    home, (at, found) = scenario.host.zone, _search(scenario)
    assert at is not None, "a scenario without a solution is refused when it is made"
    start, end, chosen = _local(at, home), _local(at + scenario.duration, home), scenario.required
    need = f"{scenario.duration} min" + (f", busy padded by {scenario.buffer}" if scenario.buffer else "")
    head = f"Need {need}, on the clock of {scenario.host.name}; drop shorter gaps."
    lines = [head, *found, f"First start at a multiple of {scenario.step}: {start:%Y-%m-%dT%H:%M}, end {end:%H:%M}."]
    for guest in [person for person in scenario.people if person.role == "optional"]:
        left, hours = _keep_hours(scenario, guest, start.date(), [(at, at + scenario.duration)])
        left, entries = _keep_entries(scenario, guest, start.date(), left) if left else (left, [])
        chosen += [guest] if left else []
        lines += [f"Optional {hours[0]}", *hours[1:], *entries, f"{'Add' if left else 'Leave out'} {guest.name}."]
    clocks = {person.name: f"{_local(at, person.zone):%H:%M}" for person in chosen}
    turns = [_show_turn(person, start, home) for person in chosen]
    lines.append(f"Coming, local start: {', '.join(turns)}.")
    shown = clocks if scenario.multi_zone else {}
    people = [Attendee(name=person.name, role=person.role, local_start=shown.get(person.name)) for person in chosen]
    begins, ends = (f"{moment:%Y-%m-%dT%H:%M}" for moment in (start, end))
    return "\n".join(lines), Answer(title=scenario.topic.capitalize(), start=begins, end=ends, attendees=people)


_faker = functools.cache(lambda: Faker("en_US"))  # building one costs more than sampling a scenario


def _pick_names(rng: random.Random, count: int) -> list[str]:
    _faker().seed_instance(rng.getrandbits(32))
    return list(dict.fromkeys(_faker().first_name() for _ in range(3 * count + 3)))[:count]


def _pick_days(rng: random.Random, knobs: Knobs, sundays: Sequence[str]) -> list[date]:
    if not knobs.clock_moves:
        monday = date(2025, 1, 6) + timedelta(weeks=rng.randrange(50))
        return [monday + timedelta(days=ahead) for ahead in sorted(rng.sample(range(5), knobs.days))]
    sunday, before = date.fromisoformat(rng.choice(sundays)), rng.randint(1, knobs.days - 1)
    ahead = rng.sample((-4, -3, -2), before) + rng.sample((1, 2, 3), knobs.days - before)
    return [sunday + timedelta(days=days) for days in sorted(ahead)]


def _pick_zones(rng: random.Random, knobs: Knobs, circle: Sequence[str], count: int) -> list[ZoneInfo]:
    first, *rest = circle if knobs.clock_moves else rng.sample(circle, len(circle))
    zones = [first, *rng.sample(rest, rng.randint(*knobs.zones) - 1)]
    return [ZoneInfo(zone) for zone in rng.sample(zones + rng.choices(zones, k=count - len(zones)), count)]


def _minute_of_day(minute: int, zone: ZoneInfo) -> int:
    return (minute + _offset(_local(minute, zone).date(), zone)) % 1440


def _show_turn(person: Person, start: datetime, home: ZoneInfo) -> str:
    """How the start on the host's clock becomes the one on this person's."""
    shift = _offset(start.date(), person.zone) - _offset(start.date(), home)
    turn = f"{start:%H:%M} {_show_shift(shift)}h = " if shift else ""
    return f"{person.name} {turn}{start.astimezone(person.zone):%H:%M}"


def _slot(low: int, high: int) -> Slot:
    return Slot(start=f"{low // 60:02d}:{low % 60:02d}", end=f"{high // 60:02d}:{high % 60:02d}")


def _hold(rng: random.Random, low: int, starts: Sequence[int], lengths: Sequence[int]) -> Slot:
    start = rng.choice([start for start in starts if start <= low])
    return _slot(start, max(start + rng.choice(lengths), low + CORE))


def _fill(rng: random.Random, knobs: Knobs, day: date, works: Slot, taken: list[Span]) -> list[Entry]:
    low, high = (int(clock[:2]) * 60 + int(clock[3:]) for clock in (works.start, works.end))
    entries = []
    for _ in range(rng.randint(*knobs.entries)):
        length = rng.choice((30, 60, 90))
        start = rng.randrange(low, high - length + 1, knobs.step)
        if all(start + length <= other[0] or other[1] <= start for other in taken):
            taken.append((start, start + length))
            entries.append(Entry(day=day, **_slot(start, start + length).model_dump()))
    return entries


def sample(rng: random.Random, level: str) -> Scenario:
    """Hides a solution inside the core, which all work, and fills the calendars around it."""
    knobs, (circle, hour, sundays) = LEVELS[level], rng.choice(CIRCLES)
    rules, size = rng.sample(RULES, rng.randint(*knobs.rules)), knobs.required + rng.randint(*knobs.guests)
    days, zones, names = _pick_days(rng, knobs, sundays), _pick_zones(rng, knobs, circle, size), _pick_names(rng, size)
    day, duration, buffer = rng.choice(days), rng.choice(knobs.durations), rng.choice((15, 30)) * ("buffer" in rules)
    hour, clock = (rng.randint(8, 14), zones[0]) if len(set(zones)) == 1 else (hour, ZoneInfo("UTC"))
    core = _minute(day, f"{hour:02d}:00", clock)
    starts = range(core, core + CORE - duration + 1, knobs.step)
    after = [at for at in starts if not any(720 - duration < _minute_of_day(at, zone) < 780 for zone in zones)]
    lunch = "lunch" in rules and bool(after)  # in some mixes of zones it is always lunchtime for somebody
    hidden, limited = rng.choice(after if lunch else starts), rng.choice(names[: knobs.required])
    people = []
    for at, (name, zone) in enumerate(zip(names, zones, strict=True)):
        works = _hold(rng, _minute_of_day(core, zone), (420, 480, 510, 540, 600, 660), (480, 540))
        begin = _minute_of_day(hidden, zone)
        role: Role = "required" if at < knobs.required else "optional"
        keep = [(begin - buffer, begin + duration + buffer)] if role == "required" or rng.random() < 0.4 else []
        busy = [entry for on in days for entry in _fill(rng, knobs, on, works, keep if on == day else [])]
        limit = f"{begin // 60:02d}:00"
        not_before = limit if "limit" in rules and name == limited and works.start < limit else None
        people.append(Person(name=name, zone=zone, works=works, busy=tuple(busy), role=role, not_before=not_before))
    return Scenario(
        topic=rng.choice(TOPICS),
        people=tuple(people),
        days=tuple(days),
        window=_hold(rng, _minute_of_day(core, zones[0]), (420, 480, 540, 600), (480, 540, 600)),
        duration=duration,
        step=knobs.step,
        earliest=rng.random() < 0.6,
        buffer=buffer,
        lunch=Slot(start="12:00", end="13:00") if lunch else None,
    )
