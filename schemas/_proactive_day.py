"""What a day holds, and what of it is due: the rules of the proactive task.

`moments` alone knows them: `check` compares with its first, `solve` tells its steps, `sample` draws until the outcome
is the one it wants. All times are of one day, on the user's own clock.
"""

import datetime as dt
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Clock = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Way = Literal["walk", "bike", "drive", "train"]
Kind = Literal["leave", "join", "charge"]
JOIN_EARLY = 5  # minutes before an online event
LOW_BATTERY = 10  # percent
WET_FROM = 60  # percent


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Event(Frozen):
    """`early`: minutes to be there before its start. `minutes` and `delay`: of the way from here, now."""

    title: str = Field(min_length=1, max_length=60)
    start: Clock
    place: str | None = Field(default=None, max_length=60)
    state: Literal["confirmed", "cancelled", "declined"] = "confirmed"
    way: Way = "walk"
    minutes: int = Field(default=0, ge=0, le=600)
    delay: int = Field(default=0, ge=0, le=600)
    early: int = Field(default=0, ge=0, le=240)

    @property
    def online(self) -> bool:
        return self.place is None


class Rain(Frozen):
    begins: Clock
    ends: Clock
    chance: int = Field(ge=0, le=100)


class Battery(Frozen):
    """`charge_at`: when the user will be at a charger anyway; None where nobody knows."""

    percent: int = Field(ge=0, le=100)
    hourly: int = Field(ge=1, le=100)
    charge_at: Clock | None = None


class Scenario(Frozen):
    name: str = Field(min_length=1, max_length=40)
    date: dt.date
    now: Clock
    horizon: int = Field(ge=10, le=240)
    here: str = Field(min_length=1, max_length=60)
    buffer: int = Field(default=5, ge=0, le=60)
    events: tuple[Event, ...] = Field(max_length=20)
    told: tuple[str, ...] = Field(default=(), max_length=20)
    quiet_until: Clock | None = None
    rain: tuple[Rain, ...] = Field(default=(), max_length=12)
    rain_gear: bool = False
    battery: Battery

    @model_validator(mode="after")
    def _titles_differ(self) -> Self:
        titles = [event.title.casefold() for event in self.events]
        if len(set(titles)) < len(titles):
            raise ValueError("events: two have the same title, and an answer names its event by it")
        return self


class Moment(NamedTuple):
    """Something to suggest, and the minute of the day at which it is due."""

    at: int
    kind: Kind
    event: Event | None = None
    umbrella: bool = False


def minute_of(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def clock_of(minute: int) -> str:
    # late in the evening what is due may lie beyond midnight
    return f"{minute // 60 % 24:02}:{minute % 60:02}"


def reason_against(s: Scenario, event: Event) -> str:
    """Why nothing needs to be said of an event; empty where something does."""
    if event.state != "confirmed":
        return event.state
    if event.title in s.told:
        return "told already"
    if minute_of(event.start) <= minute_of(s.now):
        return "has begun"
    return "here already" if event.place == s.here else ""


def leave_at(s: Scenario, event: Event) -> int:
    return minute_of(event.start) - event.early - event.minutes - event.delay - s.buffer


def is_wet(s: Scenario, event: Event, left: int) -> bool:
    """Whether the way is in the open and rain is likely in some minute of it."""
    arrives = left + event.minutes + event.delay
    likely = [rain for rain in s.rain if rain.chance >= WET_FROM]
    return event.way in ("walk", "bike") and any(
        minute_of(rain.begins) < arrives and left < minute_of(rain.ends) for rain in likely
    )


def low_at(s: Scenario) -> int:
    """The minute at which the battery falls to LOW_BATTERY, rounded down."""
    return minute_of(s.now) + max(0, s.battery.percent - LOW_BATTERY) * 60 // s.battery.hourly


def moments(s: Scenario) -> list[Moment]:
    """All that is due within the horizon, the first one first; at the same minute leave, then join, then charge."""
    now, quiet = minute_of(s.now), minute_of(s.quiet_until or "00:00")
    found: list[Moment] = []
    for event in s.events:
        if reason_against(s, event):
            continue
        if event.online:
            found.append(Moment(max(now, minute_of(event.start) - JOIN_EARLY), "join", event))
        else:
            # too late is as late as it gets: leave now
            left = max(now, leave_at(s, event))
            found.append(Moment(left, "leave", event, is_wet(s, event, left) and not s.rain_gear))
    low = low_at(s)
    if s.battery.charge_at is None or low < minute_of(s.battery.charge_at):
        found.append(Moment(low, "charge"))
    due = [m for m in found if m.at <= now + s.horizon and (m.kind == "leave" or m.at >= quiet)]
    order = {"leave": 0, "join": 1, "charge": 2}
    return sorted(due, key=lambda moment: (moment.at, order[moment.kind]))
