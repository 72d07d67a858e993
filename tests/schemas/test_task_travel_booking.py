"""The travel_booking task: its references are right, its check is exact in both directions, its prompts tell all."""

import functools
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import jinja2.sandbox
import pydantic
import pytest

from factory.tasks.modules import load_module

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ROOT / "prompts" / "travel_booking"
LEVELS = ("easy", "medium", "hard")
PHRASINGS = sorted(path.name for path in PROMPTS.glob("user*.j2"))


def load() -> ModuleType:
    return load_module(ROOT / "schemas" / "travel_booking.py").module


task = load()


@functools.cache
def scenario_of(level: str, seed: int) -> Any:
    return task.sample(random.Random(seed), level)


def scenarios(level: str, count: int) -> Iterator[Any]:
    return (scenario_of(level, seed) for seed in range(count))


def codes(scenario: Any, answer: Any) -> list[str]:
    return [finding.partition(":")[0] for finding in task.check(scenario, answer)]


def plans(s: Any) -> Iterator[tuple[int, int, list[Any], list[Any]]]:
    """Every valid plan of a sampled trip as (total, wishes met, chains, hotels), by brute force."""
    per_leg = []
    for leg in s.legs:
        pairs = [(a, b) for a in s.rides for b in s.rides if a.destination == b.origin] if s.max_changes else []
        options = []
        for chain in [(ride,) for ride in s.rides] + pairs:
            good = chain[0].origin == leg.origin and chain[-1].destination == leg.destination
            good = good and str(chain[0].depart)[:10] == str(leg.date)
            for ride in chain:
                good = good and (not s.only_cabin or ride.cabin == s.only_cabin)
                good = good and (s.max_stops is None or ride.stops <= s.max_stops)
                good = good and ride.carrier != s.avoid_carrier
                good = good and (not s.not_before or ride.depart.strftime("%H:%M") >= s.not_before)
            for one, two in itertools.pairwise(chain):
                good = good and s.min_connection * 60 <= (two.depart - one.arrive).total_seconds()
                good = good and (two.depart - one.arrive).total_seconds() <= s.max_connection * 60
            good = good and (not leg.arrive_by or chain[-1].arrive <= leg.arrive_by)
            hotels = [
                hotel
                for hotel in s.hotels
                if hotel.city == leg.destination
                and hotel.stars >= (s.min_stars or 1)
                and (hotel.breakfast or not s.breakfast)
                and (hotel.free_cancellation or not s.free_cancellation)
            ]
            options += [(chain, hotel) for hotel in (hotels if leg.hotel_until else [None])] if good else []
        per_leg.append(options)
    for picks in itertools.product(*per_leg):
        total = wishes = 0
        for leg, (chain, hotel) in zip(s.legs, picks, strict=True):
            total += s.travellers * sum(ride.price for ride in chain)
            total += hotel.price * (leg.hotel_until - chain[-1].arrive.date()).days if hotel else 0
            wishes += {
                None: False,
                "train": {ride.mode for ride in chain} == {"train"},
                "morning": chain[0].depart.hour < 12,
                "breakfast": bool(hotel and hotel.breakfast),
                "free_cancellation": bool(hotel and hotel.free_cancellation),
            }[s.wish]
        if s.budget is None or total <= s.budget:
            yield total, wishes, [chain for chain, _ in picks], [hotel for _, hotel in picks]


def answer_of(s: Any, plan: tuple[int, int, list[Any], list[Any]]) -> Any:
    total, _, chains, hotels = plan
    bookings = [{"offer_id": ride.id, "date": ride.depart.date()} for chain in chains for ride in chain]
    stays = [
        {"offer_id": hotel.id, "check_in": chain[-1].arrive.date(), "check_out": leg.hotel_until}
        for leg, chain, hotel in zip(s.legs, chains, hotels, strict=True)
        if hotel
    ]
    return task.Answer.model_validate({"rides": bookings, "hotels": stays, "total": total, "currency": s.currency})


@pytest.mark.parametrize("level", LEVELS)
def test_every_reference_answer_passes_its_check_and_its_reasoning_ends_in_the_answer(level: str) -> None:
    for scenario in scenarios(level, 300):
        reasoning, answer = task.solve(scenario)
        assert task.check(scenario, answer) == []
        assert f"Total {answer.total} {answer.currency}, within {scenario.budget}." in reasoning
        assert len(reasoning.split()) <= 310
        assert all(booking.offer_id in reasoning for booking in answer.rides)


@pytest.mark.parametrize(("level", "count"), [("easy", 200), ("medium", 80), ("hard", 25)])
def test_check_accepts_exactly_the_plans_that_brute_force_finds_best(level: str, count: int) -> None:
    refused = 0
    for scenario in scenarios(level, count):
        found = list(plans(scenario))
        best = min((-wishes if scenario.goal == "wish_first" else 0, total) for total, wishes, *_ in found)
        for plan in random.Random(0).sample(found, min(12, len(found))):
            right = (-plan[1] if scenario.goal == "wish_first" else 0, plan[0]) == best
            accepted = task.check(scenario, answer_of(scenario, plan)) == []
            assert accepted is (right or scenario.goal == "any")
            refused += not accepted
    assert refused >= 20


@pytest.mark.parametrize("level", LEVELS)
def test_legs_can_be_chosen_one_by_one_as_the_reasoning_does(level: str) -> None:
    for scenario in scenarios(level, 100):
        reasoning, answer = task.solve(scenario)
        picks = re.findall(r"Lowest(?: as wished)?: [^,]+, (\d+)\.", reasoning)
        assert sum(map(int, picks)) == answer.total
        for leg in scenario.legs:
            arrivals = {chain[-1].arrive.date() for chain in task._options(scenario, leg)}
            assert len(arrivals) == 1
            assert not leg.hotel_until or min(arrivals) < leg.hotel_until


def test_another_choice_within_the_budget_is_accepted_where_any_will_do() -> None:
    others = 0
    for scenario in scenarios("medium", 150):
        if scenario.goal == "any":
            reference = task.solve(scenario)[1]
            answers = [answer_of(scenario, plan) for plan in plans(scenario)]
            assert all(task.check(scenario, answer) == [] for answer in answers)
            others += any(answer != reference for answer in answers)
    assert others >= 15


def set_total(scenario: Any, raw: dict[str, Any]) -> bool:
    raw["total"] += 1
    return True


def set_currency(scenario: Any, raw: dict[str, Any]) -> bool:
    raw["currency"] = next(code for code in ("EUR", "USD") if code != scenario.currency)
    return True


def set_ride(scenario: Any, raw: dict[str, Any]) -> bool:
    raw["rides"][0]["offer_id"] = "F99"
    return True


def set_hotel(scenario: Any, raw: dict[str, Any]) -> bool:
    for stay in raw["hotels"]:
        stay["offer_id"] = "H99"
    return bool(raw["hotels"])


def set_date(scenario: Any, raw: dict[str, Any]) -> bool:
    raw["rides"][-1]["date"] = "2024-12-31"
    return True


def drop_last_ride(scenario: Any, raw: dict[str, Any]) -> bool:
    raw["rides"].pop()
    return bool(raw["rides"]) and len(scenario.legs) > 1


def swap_ends(scenario: Any, raw: dict[str, Any]) -> bool:
    raw["rides"].reverse()
    return len(raw["rides"]) > 1


def repeat_last_ride(scenario: Any, raw: dict[str, Any]) -> bool:
    raw["rides"].append(raw["rides"][-1])
    return True


def drop_hotel(scenario: Any, raw: dict[str, Any]) -> bool:
    dropped = bool(raw["hotels"])
    raw["hotels"] = raw["hotels"][:-1]
    return dropped


def repeat_hotel(scenario: Any, raw: dict[str, Any]) -> bool:
    raw["hotels"] += raw["hotels"][-1:]
    return bool(raw["hotels"])


def leave_early(scenario: Any, raw: dict[str, Any]) -> bool:
    for stay in raw["hotels"]:
        stay["check_out"] = stay["check_in"]
    return bool(raw["hotels"])


def take_wrong_date(scenario: Any, raw: dict[str, Any]) -> bool:
    leg, rides = scenario.legs[0], {ride.id: ride for ride in scenario.rides}
    ends = [rides[booking["offer_id"]].destination == leg.destination for booking in raw["rides"]]
    for ride in scenario.rides:
        if (ride.origin, ride.destination) == (leg.origin, leg.destination) and ride.depart.date() != leg.date:
            raw["rides"][: ends.index(True) + 1] = [{"offer_id": ride.id, "date": str(ride.depart.date())}]
            return True
    return False


MUTATIONS: list[tuple[Callable[[Any, dict[str, Any]], bool], str]] = [
    (set_total, "wrong_total"),
    (set_currency, "wrong_currency"),
    (set_ride, "unknown_ride"),
    (set_hotel, "unknown_hotel"),
    (set_date, "depart_date"),
    (drop_last_ride, "missing_leg"),
    (swap_ends, "wrong_place"),
    (repeat_last_ride, "extra_ride"),
    (drop_hotel, "missing_hotel"),
    (repeat_hotel, "extra_hotel"),
    (leave_early, "hotel_dates"),
    (take_wrong_date, "wrong_date"),
]


@pytest.mark.parametrize(("mutate", "code"), MUTATIONS, ids=[code for _, code in MUTATIONS])
def test_a_reference_answer_with_one_mistake_is_refused_with_the_right_code(
    mutate: Callable[[Any, dict[str, Any]], bool], code: str
) -> None:
    applied = 0
    for level in LEVELS:
        for scenario in scenarios(level, 60):
            raw = json.loads(task.solve(scenario)[1].model_dump_json())
            if mutate(scenario, raw):
                assert code in codes(scenario, task.Answer.model_validate_json(json.dumps(raw)))
                applied += 1
    assert applied >= 50


def test_every_offer_that_breaks_a_rule_is_refused_with_that_rule() -> None:
    seen: Counter[str] = Counter()
    for level in ("medium", "hard"):
        for scenario in scenarios(level, 150):
            best = task._best(scenario)
            for n, leg in enumerate(scenario.legs):
                for chain in task._chains(scenario, leg):
                    chains = [*best.chains[:n], chain, *best.chains[n + 1 :]]
                    plan = (best.price, 0, chains, list(best.hotels))
                    expected = list(task._chain_findings(scenario, leg, chain))
                    found = task.check(scenario, answer_of(scenario, plan))
                    assert set(expected) <= set(found)
                    seen.update(finding.partition(":")[0] for finding in expected)
    for code in ("wrong_date", "wrong_cabin", "too_many_stops", "avoided_carrier", "leaves_early", "arrives_late"):
        assert seen[code] >= 50, code
    assert seen["connection_too_short"] >= 50


def test_the_worse_of_two_valid_plans_is_named_as_too_dear_or_as_missing_the_wish() -> None:
    seen: Counter[str] = Counter()
    for scenario in scenarios("medium", 200):
        found = list(plans(scenario.model_copy(update={"budget": None})))
        for plan in random.Random(1).sample(found, min(4, len(found))):
            seen.update(codes(scenario, answer_of(scenario, plan)))
    assert set(seen) == {"not_cheapest", "wish_missed", "over_budget"}
    assert min(seen.values()) >= 50


def test_the_same_seed_gives_the_same_scenario_and_seeds_differ() -> None:
    for level in LEVELS:
        texts = [scenario.model_dump_json() for scenario in scenarios(level, 300)]
        again = [task.sample(random.Random(seed), level).model_dump_json() for seed in range(100)]
        assert texts[:100] == again
        assert len(set(texts)) >= 295


def test_levels_grow_in_legs_offers_rules_and_length_of_reasoning() -> None:
    def measure(scenario: Any) -> tuple[int, ...]:
        rules = ("only_cabin", "max_stops", "avoid_carrier", "not_before")
        given = sum(getattr(scenario, rule) is not None for rule in rules)
        words = len(task.solve(scenario)[0].split())
        return len(scenario.legs), len(scenario.rides), given, scenario.travellers, words

    means = [[sum(column) for column in zip(*map(measure, scenarios(level, 100)), strict=True)] for level in LEVELS]
    for easy, medium, hard in zip(*means, strict=True):
        assert easy < medium < hard


def test_a_scenario_survives_json() -> None:
    for level in LEVELS:
        for scenario in scenarios(level, 30):
            assert task.Scenario.model_validate_json(scenario.model_dump_json()) == scenario


ENV = jinja2.sandbox.SandboxedEnvironment(
    loader=jinja2.FileSystemLoader(PROMPTS),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
SCHEMA = task.Answer.model_json_schema()


def render(name: str, scenario: Any, level: str) -> str:
    return ENV.get_template(name).render(scenario=scenario, level=level, answer_schema=SCHEMA)


@pytest.mark.parametrize("name", PHRASINGS)
def test_every_phrasing_tells_every_fact_that_check_uses(name: str) -> None:
    assert len(PHRASINGS) >= 2
    for level, limit in (("easy", 350), ("medium", 520), ("hard", 720)):
        for scenario in scenarios(level, 40):
            text = render(name, scenario, level)
            lines = text.splitlines()
            for ride in scenario.rides:
                (line,) = (line for line in lines if line.startswith((f"{ride.id}:", f"{ride.id},", f"{ride.id}|")))
                facts = (ride.origin, ride.destination, f"{ride.depart:%Y-%m-%d %H:%M}", f"{ride.arrive:%H:%M}")
                for fact in (*facts, str(ride.price), ride.mode, ride.carrier, ride.cabin):
                    assert fact in line
                assert ride.arrive.date() == ride.depart.date() or f"{ride.arrive:%Y-%m-%d %H:%M}" in line
            for hotel in scenario.hotels:
                (line,) = (line for line in lines if line.startswith((f"{hotel.id}:", f"{hotel.id},", f"{hotel.id}|")))
                assert hotel.city in line
                assert str(hotel.price) in line
                assert str(hotel.stars) in line
            for leg in scenario.legs:
                facts = (leg.date, leg.hotel_until or "", f"{leg.arrive_by:%H:%M}" if leg.arrive_by else "")
                assert all(str(fact) in text for fact in facts)
            for fact in (scenario.currency, scenario.budget, scenario.avoid_carrier or "", scenario.not_before or ""):
                assert str(fact) in text
            if scenario.max_changes:
                assert str(scenario.min_connection) in text
                assert str(scenario.max_connection) in text
            words = {"train": "train", "morning": "before 12:00", "breakfast": "breakfast", "free_cancellation": "free"}
            assert scenario.wish is None or words[scenario.wish] in text
            assert len(f"{render('system.j2', scenario, level)} {text}".split()) <= limit


def own_trip(**changes: Any) -> Any:
    raw = {
        "legs": [{"origin": "Ghent", "destination": "Kyoto", "date": "2025-03-30"}],
        "rides": [
            {"id": "AF-1", "origin": "Ghent", "destination": "Kyoto", "depart": "2025-03-30T22:00",
             "arrive": "2025-03-31T18:00", "price": 700},
            {"id": "AF-2", "origin": "Ghent", "destination": "Seoul", "depart": "2025-03-30T10:00",
             "arrive": "2025-03-31T05:00", "price": 400},
            {"id": "AF-3", "origin": "Seoul", "destination": "Kyoto", "depart": "2025-03-31T08:00",
             "arrive": "2025-03-31T09:40", "price": 150},
        ],
        **changes,
    }  # fmt: skip
    return task.Scenario.model_validate_json(json.dumps(raw))


def test_a_users_own_offers_work_with_the_fewest_fields() -> None:
    scenario = own_trip()
    for name in ("system.j2", *PHRASINGS):
        assert render(name, scenario, "own")
    direct = '{"rides": [{"offer_id": "AF-1", "date": "2025-03-30"}], "hotels": [], "total": 700, "currency": "EUR"}'
    assert task.check(scenario, task.Answer.model_validate_json(direct)) == []
    cheapest = own_trip(goal="cheapest")
    assert codes(cheapest, task.Answer.model_validate_json(direct)) == ["not_cheapest"]
    reasoning, answer = task.solve(cheapest)
    assert [booking.offer_id for booking in answer.rides] == ["AF-2", "AF-3"]
    assert answer.total == 550
    assert "Lowest: AF-2 and AF-3, 550." in reasoning
    assert codes(own_trip(min_connection=200), answer) == ["connection_too_short"]
    assert codes(own_trip(max_connection=100), answer) == ["connection_too_long"]
    assert codes(own_trip(max_changes=0), answer) == ["too_many_changes"]


def test_a_users_own_trip_may_couple_its_nights_to_the_ride_and_still_gets_the_true_optimum() -> None:
    leg = {"origin": "Ghent", "destination": "Kyoto", "date": "2025-03-30", "hotel_until": "2025-04-01"}
    early = {"id": "R1", "origin": "Ghent", "destination": "Kyoto", "price": 100,
             "depart": "2025-03-30T06:00", "arrive": "2025-03-30T23:00"}  # fmt: skip
    late = {**early, "id": "R2", "price": 150, "arrive": "2025-03-31T04:00"}
    scenario = own_trip(
        legs=[leg], rides=[early, late], hotels=[{"id": "H1", "city": "Kyoto", "price": 80}], goal="cheapest"
    )
    _, answer = task.solve(scenario)
    assert answer.rides[0].offer_id == "R2"
    assert answer.total == 230
    assert str(answer.hotels[0].check_in) == "2025-03-31"


def test_a_trip_that_cannot_be_booked_has_no_reference_and_says_so() -> None:
    with pytest.raises(ValueError, match="no plan keeps every rule"):
        task.solve(own_trip(budget=100))


def test_offers_that_share_an_id_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="share an id"):
        own_trip(hotels=[{"id": "AF-1", "city": "Kyoto", "price": 80}])


def test_every_string_list_and_number_of_an_answer_is_bounded_and_no_object_is_open() -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            kind = node.get("type")
            if kind == "string":
                assert {"maxLength", "pattern", "enum", "const"} & node.keys() or node.get("format") == "date"
            if kind == "array":
                assert "maxItems" in node
            if kind == "integer":
                assert {"minimum", "maximum"} <= node.keys()
            if kind == "object":
                assert node["additionalProperties"] is False
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
            walk(child)

    walk(task.Answer.model_json_schema())


def outcome(level: str, seed: int, text: str) -> tuple[str, ...]:
    if "</think>" not in text:
        return ("rejected", "parse", "reasoning_not_closed")
    body = text.partition("</think>")[2].strip()
    try:
        json.loads(body)
    except ValueError:
        return ("rejected", "parse", "invalid_json")
    try:
        answer = task.Answer.model_validate_json(body)
    except pydantic.ValidationError as error:
        return ("rejected", "schema", error.errors()[0]["type"])
    found = codes(task.sample(random.Random(seed), level), answer)
    return ("rejected", "check", found[0]) if found else ("accepted",)


GOLDEN = [json.loads(line) for line in (PROMPTS / "golden.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", GOLDEN, ids=[line["case"] for line in GOLDEN])
def test_a_golden_text_comes_out_as_stated(line: dict[str, Any]) -> None:
    stated = tuple(line[key] for key in ("outcome", "stage", "reason") if key in line)
    assert outcome(line["level"], line["seed"], line["text"]) == stated
