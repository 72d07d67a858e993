"""Times of a day as people write them, and the one clock on which calendars are compared: minutes since the epoch."""

import functools
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, model_validator

# [0-9], not \d: pydantic's regex engine lets \d match the digits of every script.
HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"
Clock = Annotated[str, Field(pattern=f"^{HOUR}$")]
Span = tuple[int, int]  # first minute, and the one after the last


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Slot(Strict):
    start: Clock
    end: Clock

    @model_validator(mode="after")
    def _runs_forward(self) -> "Slot":
        # as texts: HH:MM sorts as time does
        if self.end <= self.start:
            raise ValueError(f"a slot must end after it starts, got {self.start}-{self.end}")
        return self


def make_slot(low: int, high: int) -> Slot:
    return Slot(start=f"{low // 60:02d}:{low % 60:02d}", end=f"{high // 60:02d}:{high % 60:02d}")


# one scenario asks for the same few clocks at every cut and check
@functools.lru_cache(maxsize=8192)
def minute(day: date, clock: str, zone: ZoneInfo) -> int:
    moment = datetime(day.year, day.month, day.day, int(clock[:2]), int(clock[3:]), tzinfo=zone)
    return int(moment.timestamp()) // 60


def local(at: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(at * 60, UTC).astimezone(zone)


def offset(day: date, zone: ZoneInfo) -> int:
    """Minutes that a zone's clock is ahead of UTC on a day."""
    # at noon: clocks move at night, so a day has one offset during working hours
    return minute(day, "12:00", ZoneInfo("UTC")) - minute(day, "12:00", zone)


def show_day(day: date) -> str:
    # not %a, which speaks the machine's language
    return f"{('Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun')[day.weekday()]} {day.isoformat()}"


def show_shift(minutes: int) -> str:
    whole, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{whole}" + (f":{rest:02d}" if rest else "")


def show(zone: ZoneInfo, *spans: Span) -> str:
    return ", ".join(f"{local(low, zone):%H:%M}-{local(high, zone):%H:%M}" for low, high in spans) or "nothing"


def cut(gaps: Sequence[Span], span: Span, shortest: int) -> list[Span]:
    """The gaps without a span; what is left of one is dropped where it is too short."""
    parts = [part for low, high in gaps for part in ((low, min(high, span[0])), (max(low, span[1]), high))]
    return [part for part in parts if part[1] - part[0] >= shortest]


def minute_of_day(at: int, zone: ZoneInfo) -> int:
    return (at + offset(local(at, zone).date(), zone)) % 1440


def carry(span: Span, day: date, zone: ZoneInfo, home: ZoneInfo) -> str:
    """A span on the home clock; where the other clock is another one, each end is carried over by itself."""
    shift = show_shift(offset(day, home) - offset(day, zone))
    sums = (f"{local(at, zone):%H:%M} {shift}h = {local(at, home):%H:%M}" for at in span)
    return show(home, span) if shift == "+0" else ", ".join(sums)


def show_turn(start: datetime, zone: ZoneInfo, home: ZoneInfo) -> str:
    """How a moment on the home clock becomes one on another."""
    shift = offset(start.date(), zone) - offset(start.date(), home)
    turn = f"{start:%H:%M} {show_shift(shift)}h = " if shift else ""
    return f"{turn}{start.astimezone(zone):%H:%M}"
