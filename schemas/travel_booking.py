"""Book a trip: choose flights, trains and hotels from the offers in the prompt, and give the exact total.

Trains filtering by rules, chaining places, dates and connection times, and whole-number sums. Levels grow in legs,
offers, decoys that undercut the right choice, changes on the way, party size, rules, wishes and finer prices (`LEVELS`
in `_travel_booking_drafts.py`). `check` accepts every plan that keeps the stated rules; where the prompt asks for the
best plan, an exact search over all plans decides, so every tie is right. Times are local, and only times in the same
city are ever compared.

The `_..._findings` functions alone say what a rule forbids, and `_extend` alone what a plan costs. `check` runs them
over the plan that was booked, the search behind `solve` over all plans: so a reference breaks no rule, and none that
keeps them ranks before it.
"""

import datetime as dt
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from pydantic import Field

from ._travel_booking_drafts import LEVELS, draft_trip, invent_names
from ._travel_booking_trip import MINUTE, Chain, Currency, Frozen, Hotel, Leg, OfferId, Ride, Scenario


class Booking(Frozen):
    offer_id: OfferId
    date: dt.date


class Stay(Frozen):
    offer_id: OfferId
    check_in: dt.date
    check_out: dt.date


class Answer(Frozen):
    rides: list[Booking] = Field(min_length=1, max_length=18)
    hotels: list[Stay] = Field(max_length=6)
    total: int = Field(strict=True, ge=0, le=100_000_000)
    currency: Currency


class Plan(NamedTuple):
    price: int = 0
    wishes: int = 0
    chains: tuple[Chain, ...] = ()
    hotels: tuple[Hotel | None, ...] = ()

    def rank(self, goal: str) -> tuple[int, int]:
        return (-self.wishes, self.price) if goal == "wish_first" else (self.price, -self.wishes)


def _ride_findings(s: Scenario, ride: Ride) -> Iterator[str]:
    if s.only_cabin not in (None, ride.cabin):
        yield f"wrong_cabin: {ride.id} is {ride.cabin}, not {s.only_cabin}"
    if s.max_stops is not None and ride.stops > s.max_stops:
        yield f"too_many_stops: {ride.id} has stops: {ride.stops}, at most {s.max_stops}"
    if s.avoid_carrier and ride.carrier == s.avoid_carrier:
        yield f"avoided_carrier: {ride.id} is with {ride.carrier}"
    if s.not_before and f"{ride.depart:%H:%M}" < s.not_before:
        yield f"leaves_early: {ride.id} leaves at {ride.depart:%H:%M}, before {s.not_before}"


def _wait_findings(s: Scenario, one: Ride, two: Ride, longest: int | None = None) -> Iterator[str]:
    wait = (two.depart - one.arrive) // MINUTE
    if wait < s.min_connection:
        yield f"connection_too_short: {one.id} to {two.id} leaves {wait} minutes, at least {s.min_connection}"
    if longest is not None and wait > longest:
        yield f"connection_too_long: {one.id} to {two.id} leaves {wait} minutes, at most {longest}"


def _chain_findings(s: Scenario, leg: Leg, chain: Chain) -> Iterator[str]:
    first, last = chain[0], chain[-1]
    if first.depart.date() != leg.date:
        yield f"wrong_date: {first.id} leaves on {first.depart.date()}, not {leg.date}"
    for ride in chain:
        yield from _ride_findings(s, ride)
    for one, two in pairwise(chain):
        yield from _wait_findings(s, one, two, s.max_connection)
    if len(chain) > s.max_changes + 1:
        yield f"too_many_changes: {len(chain) - 1} on the way to {leg.destination}, at most {s.max_changes}"
    if leg.arrive_by and last.arrive > leg.arrive_by:
        yield f"arrives_late: {last.id} arrives {last.arrive:%Y-%m-%d %H:%M}, after {leg.arrive_by:%Y-%m-%d %H:%M}"


def _hotel_findings(s: Scenario, leg: Leg, hotel: Hotel) -> Iterator[str]:
    if hotel.city != leg.destination:
        yield f"hotel_city: {hotel.id} is in {hotel.city}, not in {leg.destination}"
    if s.min_stars and hotel.stars < s.min_stars:
        yield f"too_few_stars: {hotel.id} has stars: {hotel.stars}, at least {s.min_stars}"
    if s.breakfast and not hotel.breakfast:
        yield f"no_breakfast: {hotel.id} has no breakfast"
    if s.free_cancellation and not hotel.free_cancellation:
        yield f"no_free_cancellation: {hotel.id} has no free cancellation"


def _wishes(s: Scenario, chain: Chain, hotel: Hotel | None) -> int:
    if s.wish in ("breakfast", "free_cancellation"):
        return int(bool(hotel and getattr(hotel, s.wish)))
    if s.wish == "train":
        return int(bool(chain) and all(ride.mode == "train" for ride in chain))
    return int(s.wish == "morning" and bool(chain) and chain[0].depart.hour < 12)


def _nights(leg: Leg, arrive: dt.datetime) -> int:
    return max(0, (leg.hotel_until - arrive.date()).days) if leg.hotel_until else 0


def _chains(s: Scenario, leg: Leg, so_far: Chain = ()) -> Iterator[Chain]:
    """Every way to ride from the leg's origin to its destination, whether or not it keeps the rules."""
    city = so_far[-1].destination if so_far else leg.origin
    for ride in s.rides:
        # a first ride on another day is told as wrong by itself, and nothing is chained to it
        if ride.origin != city or (so_far and (so_far[0].depart.date() != leg.date or ride.depart < so_far[-1].arrive)):
            continue
        if ride.destination == leg.destination:
            yield (*so_far, ride)
        elif len(so_far) < s.max_changes:
            yield from _chains(s, leg, (*so_far, ride))


def _options(s: Scenario, leg: Leg) -> list[Chain]:
    return [chain for chain in _chains(s, leg) if not any(_chain_findings(s, leg, chain))]


def _extend(s: Scenario, leg: Leg, chain: Chain, hotel: Hotel | None, plan: Plan) -> Plan:
    price = sum(ride.price for ride in chain) * s.travellers
    price += hotel.price * _nights(leg, chain[-1].arrive) if hotel else 0
    wishes = plan.wishes + _wishes(s, chain, hotel)
    return Plan(plan.price + price, wishes, (*plan.chains, chain), (*plan.hotels, hotel))


def _best(s: Scenario) -> Plan | None:
    # The rest of a trip sees of a plan only its last arrival, its wishes met and its price, so the cheapest plan for
    # each (arrival, wishes) is enough: exact under budget and ranking, without the product of all options.
    front = [Plan()]
    for leg in s.legs:
        reached: dict[tuple[dt.datetime, int], Plan] = {}
        hotels = [hotel for hotel in s.hotels if not any(_hotel_findings(s, leg, hotel))]
        for chain in _options(s, leg):
            # from one leg to the next a traveller may wait as long as it takes: only the shortest connection counts
            before = [p for p in front if not p.chains or not any(_wait_findings(s, p.chains[-1][-1], chain[0]))]
            for hotel in hotels if _nights(leg, chain[-1].arrive) else [None]:
                for plan in (_extend(s, leg, chain, hotel, plan) for plan in before):
                    key = (chain[-1].arrive, plan.wishes)
                    if key not in reached or plan.price < reached[key].price:
                        reached[key] = plan
        front = list(reached.values())
    kept = [plan for plan in front if s.budget is None or plan.price <= s.budget]
    return min(kept, key=lambda plan: plan.rank(s.goal), default=None)


def _split(s: Scenario, rides: list[Ride]) -> tuple[list[Chain], str]:
    """The rides cut into one chain a leg, and the finding that says where the route breaks, if it does."""
    chains: list[Chain] = []
    chain: Chain = ()
    for ride in rides:
        if len(chains) == len(s.legs):
            return chains, f"extra_ride: {ride.id} comes after the last leg, nothing expected"
        leg = s.legs[len(chains)]
        # a leg ends as soon as a ride reaches its destination: answers list rides only, not where a leg ends
        city = chain[-1].destination if chain else leg.origin
        if ride.origin != city:
            return chains, f"wrong_place: {ride.id} leaves from {ride.origin}, expected {city}"
        chain = (*chain, ride)
        if ride.destination == leg.destination:
            chains, chain = [*chains, chain], ()
    return chains, "" if len(chains) == len(s.legs) else f"missing_leg: got {len(chains)}, expected {len(s.legs)}"


def check(scenario: Scenario, answer: Answer) -> list[str]:
    s, rides, hotels = scenario, {ride.id: ride for ride in scenario.rides}, {h.id: h for h in scenario.hotels}
    findings = [f"unknown_ride: {b.offer_id} is not offered" for b in answer.rides if b.offer_id not in rides]
    findings += [f"unknown_hotel: {b.offer_id} is not offered" for b in answer.hotels if b.offer_id not in hotels]
    # an offer that does not exist has no place, no time and no price: nothing else can be said of the plan
    if findings:
        return findings
    chains, broken = _split(s, [rides[booking.offer_id] for booking in answer.rides])
    if broken:
        return [broken]
    for booking, day in ((b, rides[b.offer_id].depart.date()) for b in answer.rides):
        if booking.date != day:
            findings.append(f"depart_date: {booking.offer_id} got {booking.date}, expected {day}")
    plan, stays = Plan(), list(answer.hotels)
    for leg, chain in zip(s.legs, chains, strict=True):
        if plan.chains:
            findings += _wait_findings(s, plan.chains[-1][-1], chain[0])
        findings += _chain_findings(s, leg, chain)
        needed = _nights(leg, chain[-1].arrive) > 0
        hotel = hotels[stays[0].offer_id] if needed and stays else None
        if hotel:
            findings += _stay_findings(s, leg, chain, hotel, stays.pop(0))
        elif needed:
            findings.append(f"missing_hotel: none booked in {leg.destination} until {leg.hotel_until}")
        plan = _extend(s, leg, chain, hotel, plan)
    findings += [f"extra_hotel: {stay.offer_id} is not needed" for stay in stays]
    # a plan that breaks a rule may well be cheaper than the best: its price is no finding of its own
    return findings or [*_price_findings(s, answer, plan)]


def _stay_findings(s: Scenario, leg: Leg, chain: Chain, hotel: Hotel, stay: Stay) -> Iterator[str]:
    yield from _hotel_findings(s, leg, hotel)
    day = chain[-1].arrive.date()
    if (stay.check_in, stay.check_out) != (day, leg.hotel_until):
        got = f"{stay.check_in} to {stay.check_out}"
        yield f"hotel_dates: {hotel.id} got {got}, expected {day} to {leg.hotel_until}"


def _price_findings(s: Scenario, answer: Answer, plan: Plan) -> Iterator[str]:
    if answer.currency != s.currency:
        yield f"wrong_currency: got {answer.currency}, expected {s.currency}"
    if answer.total != plan.price:
        yield f"wrong_total: got {answer.total}, expected {plan.price} for these bookings"
    if s.budget is not None and plan.price > s.budget:
        yield f"over_budget: got {plan.price}, at most {s.budget}"
    # compared by rank and not by content: every plan that ties with the best is right
    best = None if s.goal == "any" else _best(s)
    if best and (s.budget is None or plan.price <= s.budget) and plan.rank(s.goal) > best.rank(s.goal):
        if plan.price > best.price and (s.goal == "cheapest" or plan.wishes == best.wishes):
            yield f"not_cheapest: got {plan.price}, expected {best.price}"
        else:
            yield f"wish_missed: got it {plan.wishes} times, expected {best.wishes}"


def sample(rng: random.Random, level: str) -> Scenario:
    knobs, names = LEVELS[level], invent_names(rng)
    goal = rng.choice(knobs.goals)
    for _ in range(1000):
        draft = draft_trip(rng, knobs, goal, names)
        best = _best(draft)
        # One arrival day a leg keeps the nights, and so the choices of different legs, independent of each other.
        if not best or any(len({chain[-1].arrive.date() for chain in _options(draft, leg)}) > 1 for leg in draft.legs):
            continue
        # a wish that the cheapest plan meets anyhow asks for nothing: the wished plan must cost more
        cheapest = _best(draft.model_copy(update={"goal": "cheapest"})) if goal == "wish_first" else None
        if not cheapest or cheapest.price < best.price:
            # sometimes barely enough, so that the budget binds, sometimes no hindrance at all
            budget = (best.price + best.price // rng.choice((6, 12, 100))) // knobs.step * knobs.step
            return draft.model_copy(update={"budget": budget})
    raise AssertionError(f"no solvable {level} trip in 1000 drafts")


def _cost(prices: list[int], times: int) -> str:
    """One small step each: "70 + 30 = 100, 100 x 2 = 200"."""
    added = [f"{' + '.join(map(str, prices))} = {sum(prices)}"] if len(prices) > 1 else []
    multiplied = [f"{sum(prices)} x {times} = {sum(prices) * times}"] if times > 1 else []
    return ", ".join(added + multiplied) or str(prices[0])


def _tell_leg(s: Scenario, leg: Leg, taken: Chain) -> Iterator[str]:
    yield f"{leg.origin} to {leg.destination} on {leg.date}."
    for chain in _chains(s, leg):
        fault = next(_chain_findings(s, leg, chain), "").partition(": ")[2]
        waits = "".join(f", wait {(two.depart - one.arrive) // MINUTE}" for one, two in pairwise(chain))
        wish = ", as wished" if _wishes(s, chain, None) else ""
        names, cost = " and ".join(ride.id for ride in chain), _cost([ride.price for ride in chain], s.travellers)
        yield f"{fault}." if fault else f"{names}: {cost}{waits}{wish}."
    lowest = "Lowest as wished" if s.goal == "wish_first" and _wishes(s, taken, None) else "Lowest"
    yield f"{lowest}: {' and '.join(ride.id for ride in taken)}, {sum(ride.price for ride in taken) * s.travellers}."


def _tell_stay(s: Scenario, leg: Leg, stay: Stay, taken: Hotel) -> Iterator[str]:
    nights = (stay.check_out - stay.check_in).days
    yield f"Hotel from {stay.check_in} to {stay.check_out}, nights: {nights}."
    for hotel in (hotel for hotel in s.hotels if hotel.city == leg.destination):
        fault = next(_hotel_findings(s, leg, hotel), "").partition(": ")[2]
        wish = ", as wished" if _wishes(s, (), hotel) else ""
        yield f"{fault}." if fault else f"{hotel.id}: {_cost([hotel.price], nights)}{wish}."
    lowest = "Lowest as wished" if s.goal == "wish_first" and _wishes(s, (), taken) else "Lowest"
    yield f"{lowest}: {taken.id}, {taken.price * nights}."


def solve(scenario: Scenario) -> tuple[str, Answer]:
    best = _best(scenario)
    if best is None:
        raise ValueError("no plan keeps every rule of this trip within its budget")
    told: list[str] = []
    stays: list[Stay] = []
    total = 0
    for leg, chain, hotel in zip(scenario.legs, best.chains, best.hotels, strict=True):
        told += _tell_leg(scenario, leg, chain)
        costs = [sum(ride.price for ride in chain) * scenario.travellers]
        if hotel and leg.hotel_until:
            stays.append(Stay(offer_id=hotel.id, check_in=chain[-1].arrive.date(), check_out=leg.hotel_until))
            told += _tell_stay(scenario, leg, stays[-1], hotel)
            costs.append(hotel.price * _nights(leg, chain[-1].arrive))
        for cost in costs:
            told += [f"{total} + {cost} = {total + cost}."] if total else []
            total += cost
    budget = f", within {scenario.budget}" if scenario.budget is not None else ""
    told.append(f"Total {total} {scenario.currency}{budget}.")
    bookings = [Booking(offer_id=ride.id, date=ride.depart.date()) for chain in best.chains for ride in chain]
    return " ".join(told), Answer(rides=bookings, hotels=stays, total=total, currency=scenario.currency)
