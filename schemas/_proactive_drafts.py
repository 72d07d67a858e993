"""Draws days for the proactive task: where the user is, what is ahead, and what makes it harder to see what is due."""

import datetime as dt
from random import Random
from typing import Annotated, NamedTuple

from pydantic import Field

from factory.tasks.words import WordBank, Words, read_words

from ._names import pick_first_names
from ._proactive_day import LOW_BATTERY, Battery, Event, Rain, Scenario, Way, clock_of


class Knobs(NamedTuple):
    events: tuple[int, int]
    delays: float  # share of the ways that take longer than usual
    ruled_out: float  # share of the events that need nothing
    online: float
    battery: float  # share of the scenarios in which the battery may run low
    quiet: float  # share of the scenarios with quiet time
    rain: tuple[int, int]
    horizons: tuple[int, ...]


LEVELS = {
    "easy": Knobs((1, 2), 0.4, 0.2, 0.0, 0.2, 0.0, (0, 0), (60,)),
    "medium": Knobs((2, 4), 0.5, 0.35, 0.25, 0.4, 0.2, (1, 1), (60, 90)),
    "hard": Knobs((4, 6), 0.6, 0.4, 0.3, 0.6, 0.4, (1, 3), (60, 90, 120)),
}


class _Visit(WordBank):
    title: str
    places: Words
    early: Annotated[list[int], Field(min_length=1)]


class _Bank(WordBank):
    here: Words
    online: Words
    visits: Annotated[list[_Visit], Field(min_length=1)]


_BANK = read_words(__file__, _Bank)
_MINUTES: dict[Way, tuple[int, int]] = {"walk": (5, 35), "bike": (6, 40), "drive": (10, 60), "train": (15, 75)}


def _draw_visit(rng: Random, knobs: Knobs, visit: _Visit, now: int, until: int) -> Event:
    way = rng.choice(list(_MINUTES))
    minutes = rng.randint(*_MINUTES[way])
    delay = rng.randint(4, 30) if way in ("drive", "train") and rng.random() < knobs.delays else 0
    early = rng.choice(visit.early)
    # mostly beside the end of the horizon, on both sides of it; now and then already too late
    left = rng.choice((rng.randint(now - 10, until), rng.randint(until - 20, until + 20), until + rng.randint(20, 120)))
    start = -(-(left + early + minutes + delay + 5) // 5) * 5
    place = rng.choice(visit.places)
    return Event(
        title=visit.title, start=clock_of(start), place=place, way=way, minutes=minutes, delay=delay, early=early
    )


def _draw_online(rng: Random, title: str, now: int, until: int) -> Event:
    start = rng.choice((rng.randint(now + 10, until), until + rng.randint(10, 90)))
    return Event(title=title, start=clock_of(-(-start // 5) * 5))


def _draw_battery(rng: Random, knobs: Knobs, now: int, horizon: int) -> Battery:
    hourly = rng.randint(4, 24)
    low = rng.random() < knobs.battery
    minutes = rng.randint(5, horizon + 15) if low else rng.randint(horizon + 60, horizon + 240)
    percent = min(100, LOW_BATTERY + minutes * hourly // 60)
    charge_at = clock_of(now + rng.randint(15, horizon + 60)) if rng.random() < 0.4 else None
    return Battery(percent=percent, hourly=hourly, charge_at=charge_at)


def draft_day(rng: Random, knobs: Knobs) -> Scenario:
    now, horizon = rng.randint(7 * 60, 18 * 60), rng.choice(knobs.horizons)
    until, here = now + horizon, rng.choice(_BANK.here)
    count = rng.randint(*knobs.events)
    online = sum(rng.random() < knobs.online for _ in range(count))
    events = [_draw_visit(rng, knobs, visit, now, until) for visit in rng.sample(_BANK.visits, count - online)]
    events += [_draw_online(rng, title, now, until) for title in rng.sample(_BANK.online, online)]
    told: list[str] = []
    for number, event in enumerate(events):
        if rng.random() < knobs.ruled_out:
            why = rng.choice(("cancelled", "declined", "told", "here"))
            if why == "told":
                told.append(event.title)
            elif why == "here" and not event.online:
                events[number] = event.model_copy(update={"place": here, "minutes": 0, "delay": 0})
            else:
                events[number] = event.model_copy(update={"state": "declined" if why == "declined" else "cancelled"})
    rain = []
    for _ in range(rng.randint(*knobs.rain)):
        begins = now + rng.randint(-20, horizon)
        ends = begins + rng.randint(20, 90)
        rain.append(Rain(begins=clock_of(begins), ends=clock_of(ends), chance=rng.choice((20, 40, 50, 60, 70, 80, 90))))
    quiet = rng.random() < knobs.quiet
    return Scenario(
        name=pick_first_names(rng, 1)[0],
        date=dt.date(2025, 1, 1) + dt.timedelta(days=rng.randrange(365)),
        now=clock_of(now),
        horizon=horizon,
        here=here,
        events=tuple(sorted(events, key=lambda event: event.start)),
        told=tuple(told),
        quiet_until=clock_of(now + rng.randint(10, horizon)) if quiet else None,
        rain=tuple(sorted(rain, key=lambda window: window.begins)),
        rain_gear=bool(rain) and rng.random() < 0.2,
        battery=_draw_battery(rng, knobs, now, horizon),
    )
