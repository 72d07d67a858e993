"""The proactive task: what is due follows from a clock that ticks, and silence is as exact as speech."""

import random
from collections import Counter
from typing import Any

import pytest
from shipped_task import LEVELS, ShippedTask

SHIPPED = ShippedTask("proactive")
task, codes = SHIPPED.module, SHIPPED.codes
scenario_of, scenarios = SHIPPED.scenario_of, SHIPPED.scenarios


def minutes(clock: str) -> int:
    hours, rest = clock.split(":")
    return 60 * int(hours) + int(rest)


def in_time(s: Any, event: Any, left: int) -> bool:
    """Whether who leaves at this minute is there early enough, with the spare minutes left."""
    return left + event.minutes + event.delay + s.buffer + event.early <= minutes(event.start)


def last_minute(now: int, holds: Any) -> int:
    """The last minute from now on at which something still holds; now, where it does not even then."""
    at = now
    while holds(at + 1):
        at += 1
    return at


def by_the_clock(s: Any) -> list[tuple[int, int, str, str | None]]:
    """All that is due, first things first, found by letting the minutes pass."""
    now, found = minutes(s.now), []
    for event in s.events:
        if event.state != "confirmed" or event.title in s.told or event.place == s.here or minutes(event.start) <= now:
            continue
        if event.place is None:
            at = last_minute(now, lambda at, event=event: at + 5 <= minutes(event.start))
            found.append((at, 1, "join", event.title))
        else:
            at = last_minute(now, lambda at, event=event: in_time(s, event, at))
            found.append((at, 0, "leave", event.title))
    low = last_minute(now, lambda at: s.battery.percent * 60 - s.battery.hourly * (at - now) >= 600)
    if s.battery.charge_at is None or minutes(s.battery.charge_at) > low:
        found.append((low, 2, "charge", None))
    quiet = minutes(s.quiet_until) if s.quiet_until else 0
    return sorted(
        (m for m in found if m[0] <= now + s.horizon and (m[2] == "leave" or m[0] >= quiet)), key=lambda m: m[:2]
    )


@pytest.mark.parametrize("level", LEVELS)
def test_every_reference_passes_its_check_and_is_what_the_clock_finds_first(level: str) -> None:
    for scenario in scenarios(level, 1000):
        reasoning, answer = task.solve(scenario)
        assert task.check(scenario, answer) == []
        assert len(reasoning.split()) <= 220
        due = by_the_clock(scenario)
        if not due:
            assert answer.suggest == "nothing"
            continue
        assert (minutes(answer.time), answer.suggest) == (due[0][0], due[0][2])
        assert (*due[0][:3], answer.event) in due


@pytest.mark.parametrize("level", LEVELS)
def test_silence_is_right_in_a_third_of_the_scenarios_and_every_suggestion_comes(level: str) -> None:
    kinds = Counter(task.solve(scenario)[1].suggest for scenario in scenarios(level, 1000))
    assert 270 <= kinds["nothing"] <= 400
    asked = {"leave", "charge"} if level == "easy" else {"leave", "charge", "join"}
    assert all(kinds[kind] >= 80 for kind in asked)


@pytest.mark.parametrize("level", LEVELS)
def test_an_umbrella_is_for_ways_in_the_open_with_likely_rain(level: str) -> None:
    umbrellas = 0
    for scenario in scenarios(level, 600):
        answer = task.solve(scenario)[1]
        event = next((event for event in scenario.events if event.title == answer.event), None)
        wet = False
        if answer.suggest == "leave" and event.way in ("walk", "bike") and not scenario.rain_gear:
            way = range(minutes(answer.time), minutes(answer.time) + event.minutes + event.delay)
            likely = [range(minutes(r.begins), minutes(r.ends)) for r in scenario.rain if r.chance >= 60]
            wet = any(minute in window for minute in way for window in likely)
        assert answer.umbrella is wet
        umbrellas += wet
    assert umbrellas == 0 if level == "easy" else umbrellas >= 20


def changed(answer: Any, **changes: Any) -> Any:
    return task.Answer.model_validate(answer.model_dump() | changes)


@pytest.mark.parametrize("level", LEVELS)
def test_a_reference_with_one_mistake_is_refused_with_the_right_code(level: str) -> None:
    seen: Counter[str] = Counter()
    silent = {"suggest": "nothing", "event": None, "time": None, "umbrella": False, "message": ""}
    for scenario in scenarios(level, 300):
        answer = task.solve(scenario)[1]
        if answer.suggest == "nothing":
            event = scenario.events[0]
            alarm = {
                "suggest": "leave",
                "event": event.title,
                "time": event.start,
                "message": f"Leave at {event.start}.",
            }
            tries = {"false_alarm": alarm, "not_silent": {"message": "All is well."}}
        else:
            later = f"{(minutes(answer.time) + 7) // 60 % 24:02}:{(minutes(answer.time) + 7) % 60:02}"
            tries = {
                "missed": silent,
                "wrong_time": {"time": later, "message": answer.message.replace(answer.time, later)},
                "time_unsaid": {"message": answer.message.replace(answer.time, "soon")},
                "strange_time": {"message": f"{answer.message} Or 03:33."},
                "umbrella_missed" if answer.umbrella else "umbrella_needless": {"umbrella": not answer.umbrella},
                "not_first": {"suggest": "charge" if answer.suggest == "leave" else "leave"},
            }
            if answer.event:
                tries["event_unsaid"] = {"message": answer.message.replace(answer.event, "it")}
                tries["not_first"] = {"event": "something else"}
        for code, changes in tries.items():
            assert code in codes(scenario, changed(answer, **changes))
            seen[code] += 1
    assert len(seen) >= 8


def test_two_events_due_at_the_same_minute_may_each_be_suggested() -> None:
    base = scenario_of("easy", 0).model_copy(update={"told": (), "quiet_until": None, "here": "home", "now": "10:00"})
    events = [task.Event(title=title, start="11:00", place="town", minutes=20) for title in ("one", "two")]
    scenario = base.model_copy(update={"events": tuple(events), "horizon": 60})
    for title in ("one", "two"):
        message = f"Leave at 10:35: {title} at 11:00."
        answer = task.Answer(suggest="leave", event=title, time="10:35", umbrella=False, message=message)
        assert task.check(scenario, answer) == []


def test_what_is_due_beyond_midnight_has_a_time_that_a_clock_shows() -> None:
    battery = {"percent": 20, "hourly": 10}
    day = {"name": "Ida", "date": "2025-03-01", "now": "23:30", "horizon": 90, "here": "home", "events": []}
    scenario = task.Scenario.model_validate({**day, "battery": battery})
    answer = task.solve(scenario)[1]
    assert (answer.suggest, answer.time) == ("charge", "00:30")
    assert task.check(scenario, answer) == []


def test_events_that_share_a_title_are_refused() -> None:
    raw = scenario_of("hard", 0).model_dump()
    raw["events"] = [raw["events"][0], raw["events"][0]]
    with pytest.raises(ValueError, match="same title"):
        task.Scenario.model_validate(raw)


def test_levels_grow_in_events_delays_and_length_of_reasoning() -> None:
    def measure(scenario: Any) -> tuple[int, ...]:
        words = len(task.solve(scenario)[0].split())
        return len(scenario.events), sum(event.delay for event in scenario.events), len(scenario.rain), words

    means = [[sum(column) for column in zip(*map(measure, scenarios(level, 300)), strict=True)] for level in LEVELS]
    for easy, medium, hard in zip(*means, strict=True):
        assert easy < medium < hard


def test_the_same_seed_gives_the_same_scenario_and_it_survives_json() -> None:
    for level in LEVELS:
        texts = [scenario.model_dump_json() for scenario in scenarios(level, 200)]
        assert [task.sample(random.Random(seed), level).model_dump_json() for seed in range(60)] == texts[:60]
        assert len(set(texts)) >= 198
        assert all(
            task.Scenario.model_validate_json(text) == s for text, s in zip(texts, scenarios(level, 200), strict=True)
        )


@pytest.mark.parametrize("name", SHIPPED.phrasings)
def test_every_phrasing_tells_every_fact_that_check_uses(name: str) -> None:
    assert len(SHIPPED.phrasings) >= 2
    for level in LEVELS:
        for scenario in scenarios(level, 60):
            text = SHIPPED.render(name, scenario, level)
            assert all(str(fact) in text for fact in (scenario.now, scenario.horizon, scenario.here, *scenario.told))
            assert scenario.quiet_until is None or scenario.quiet_until in text
            assert scenario.battery.charge_at is None or scenario.battery.charge_at in text
            assert f"{scenario.battery.percent}" in text
            assert f"{scenario.battery.hourly}" in text
            assert all(f"{r.chance}" in text and r.begins in text and r.ends in text for r in scenario.rain)
            for event in scenario.events:
                # behind its start and title stands what else counts of an event
                rest = text[min(text.index(event.start), text.index(event.title)) :]
                facts = [event.title, event.start, event.place or "online"]
                facts += [] if event.state == "confirmed" else [event.state]
                facts += [event.early] if event.early else []
                away = event.place not in (None, scenario.here)
                facts += [event.minutes] if away else []
                facts += [event.delay] if away and event.delay else []
                assert all(str(fact) in rest for fact in facts)
