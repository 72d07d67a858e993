"""Proactive help: read the calendar, the place, the roads, the sky and the battery; suggest one thing, or keep silent.

Trains arithmetic of when to leave, and restraint: at every level about a third of the scenarios need nothing. Levels
grow in events, in delays, in what rules an event out (cancelled, declined, here already, told already), in quiet time,
rain and battery (`LEVELS`). `check` tells a missed suggestion from a false alarm, from one that is not the first due
and from one at a wrong time. What is due, and when, is in `_proactive_day.py`.
"""

import re
from collections.abc import Iterator
from random import Random
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ._proactive_day import (
    JOIN_EARLY,
    LOW_BATTERY,
    Clock,
    Event,
    Moment,
    Scenario,
    Way,
    clock_of,
    is_wet,
    low_at,
    minute_of,
    moments,
    reason_against,
)
from ._proactive_drafts import LEVELS, draft_day


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    suggest: Literal["leave", "join", "charge", "nothing"]
    event: Annotated[str, Field(min_length=1, max_length=60)] | None
    time: Clock | None
    umbrella: bool
    message: str = Field(max_length=160)


def _same(moment: Moment, answer: Answer) -> bool:
    title = None if moment.event is None else moment.event.title
    return (moment.kind, title) == (answer.suggest, answer.event)


def check(scenario: Scenario, answer: Answer) -> list[str]:
    due = moments(scenario)
    if not due:
        if answer.suggest == "nothing":
            return list(_silence_findings(answer))
        return [f"false_alarm: got {answer.suggest}, and nothing is due within {scenario.horizon} minutes"]
    first = due[0]
    # two events may be due at the same minute: either is right
    firsts = [moment for moment in due if (moment.at, moment.kind) == (first.at, first.kind)]
    if answer.suggest == "nothing":
        return [f"missed: {_describe(first)}"]
    taken = next((moment for moment in firsts if _same(moment, answer)), None)
    if taken is None:
        return [f"not_first: got {answer.suggest} {answer.event or ''}, expected {_describe(first)}"]
    return [*_suggestion_findings(scenario, answer, taken)]


def _describe(moment: Moment) -> str:
    return f"{moment.kind} {moment.event.title if moment.event else ''} at {clock_of(moment.at)}".replace("  ", " ")


def _silence_findings(answer: Answer) -> Iterator[str]:
    if answer.message or answer.event is not None or answer.time is not None or answer.umbrella:
        yield 'not_silent: nothing is suggested, so event and time are null, umbrella false and message ""'


def _suggestion_findings(s: Scenario, answer: Answer, taken: Moment) -> Iterator[str]:
    if answer.time != clock_of(taken.at):
        yield f"wrong_time: got {answer.time}, expected {clock_of(taken.at)}"
    if taken.umbrella and not answer.umbrella:
        yield f"umbrella_missed: rain is likely on the way to {taken.event and taken.event.title}"
    if answer.umbrella and not taken.umbrella:
        yield "umbrella_needless: no rain to be ready for on this way"
    said, message = re.findall(r"\b\d{1,2}:\d\d\b", answer.message), answer.message.casefold()
    starts = [taken.event.start] if taken.event else []
    if clock_of(taken.at) not in said:
        yield f"time_unsaid: the message must say {clock_of(taken.at)}"
    for time in sorted(set(said) - {clock_of(taken.at), *starts}):
        yield f"strange_time: the message says {time}, which is not of this suggestion"
    if taken.event and taken.event.title.casefold() not in message:
        yield f"event_unsaid: the message must name {taken.event.title!r}"
    if taken.kind == "charge" and not re.search(r"\b(charg\w*|plug\w*)\b", message):
        yield "charge_unsaid: the message must say what to do: charge, or plug in"
    if taken.umbrella and "umbrella" not in message:
        yield "umbrella_unsaid: the message must say to take an umbrella"


def sample(rng: Random, level: str) -> Scenario:
    # silence would be rare in busy days and common in empty ones: drawn first, it is a third at every level
    silent = rng.random() < 1 / 3
    for _ in range(1000):
        scenario = draft_day(rng, LEVELS[level])
        # a late start of the day's last event may lead past midnight
        if (
            scenario.events
            and max(minute_of(e.start) for e in scenario.events) < 24 * 60
            and silent != bool(moments(scenario))
        ):
            return scenario
    raise AssertionError(f"no {level} scenario in 1000 drafts")


_BY: dict[Way, str] = {"walk": "on foot", "bike": "by bike", "drive": "by car", "train": "by train"}


def _tell_due(s: Scenario, at: int, leaves: bool) -> str:
    until, quiet = minute_of(s.now) + s.horizon, minute_of(s.quiet_until or "00:00")
    if at > until:
        return f"after {clock_of(until)}: not yet."
    if not leaves and at < quiet:
        return f"before {s.quiet_until}, quiet: no."
    return f"by {clock_of(until)}: due."


def _tell_event(s: Scenario, event: Event) -> Iterator[str]:
    against = reason_against(s, event)
    if against:
        yield f"{event.title}: {against}."
    elif event.online:
        at = minute_of(event.start) - JOIN_EARLY
        late = f", passed: now, {s.now}" if at < minute_of(s.now) else ""
        due = _tell_due(s, max(at, minute_of(s.now)), leaves=False)
        yield f"{event.title} {event.start} - {JOIN_EARLY} = {clock_of(at)}{late}, {due}"
    else:
        at, steps = minute_of(event.start), f"{event.title} {event.start}"
        for minutes, what in (
            (event.early, "early"),
            (event.minutes, "way"),
            (event.delay, "delay"),
            (s.buffer, "spare"),
        ):
            if minutes:
                at -= minutes
                steps += f" - {minutes} {what} = {clock_of(at)}"
        late = f", passed: now, {s.now}" if at < minute_of(s.now) else ""
        at = max(at, minute_of(s.now))
        yield f"{steps}{late}, {_tell_due(s, at, leaves=True)}"
        if at <= minute_of(s.now) + s.horizon:
            yield from _tell_rain(s, event, at)


def _tell_rain(s: Scenario, event: Event, left: int) -> Iterator[str]:
    if not s.rain or s.rain_gear or event.way not in ("walk", "bike"):
        return
    arrives = left + event.minutes + event.delay
    wet = "likely rain, umbrella" if is_wet(s, event, left) else "no likely rain"
    yield f"{_BY[event.way].capitalize()} from {clock_of(left)} to {clock_of(arrives)}: {wet}."


def _tell_battery(s: Scenario) -> Iterator[str]:
    battery = s.battery
    spare = max(0, battery.percent - LOW_BATTERY)
    minutes, low = spare * 60 // battery.hourly, low_at(s)
    yield f"Battery {battery.percent} - {LOW_BATTERY} = {spare}, x 60 = {spare * 60}, / {battery.hourly} = {minutes}."
    if battery.charge_at is not None and low >= minute_of(battery.charge_at):
        yield f"{s.now} + {minutes} = {clock_of(low)}, charger at {battery.charge_at}: no."
    else:
        yield f"{s.now} + {minutes} = {clock_of(low)}, {_tell_due(s, low, leaves=False)}"


def _compose(s: Scenario, moment: Moment) -> str:
    at = f"now, {s.now}" if moment.at == minute_of(s.now) else f"at {clock_of(moment.at)}"
    event = moment.event
    if event is None:
        return f"Plug in {at}: {s.battery.percent}% left, down to {LOW_BATTERY}% by then."
    if moment.kind == "join":
        return f"Join {at}: {event.title}, begins at {event.start}."
    delay = f", {event.delay} more for the delay" if event.delay else ""
    umbrella = " Take an umbrella." if moment.umbrella else ""
    return f"Leave {at}: {event.title} at {event.start}, {event.minutes} minutes {_BY[event.way]}{delay}.{umbrella}"


def solve(scenario: Scenario) -> tuple[str, Answer]:
    s, due = scenario, moments(scenario)
    told = [f"Until {s.now} + {s.horizon} = {clock_of(minute_of(s.now) + s.horizon)}."]
    for event in s.events:
        told += _tell_event(s, event)
    told += _tell_battery(s)
    if not due:
        return " ".join([*told, "Nothing is due: silent."]), Answer(
            suggest="nothing", event=None, time=None, umbrella=False, message=""
        )
    first = due[0]
    told.append(f"First: {_describe(first)}.")
    answer = Answer(
        suggest=first.kind,
        event=None if first.event is None else first.event.title,
        time=clock_of(first.at),
        umbrella=first.umbrella,
        message=_compose(s, first),
    )
    return " ".join(told), answer
