"""Book a trip: choose flights, trains and hotels from the offers in the prompt, and give the exact total.

Trains filtering by rules, chaining places, dates and connection times, and whole-number sums. Levels grow in legs,
offers, decoys that undercut the right choice, changes on the way, party size, rules, wishes and finer prices. `check`
accepts every plan that keeps the stated rules; where the prompt asks for the best plan, an exact search over all plans
decides, so every tie is right. Times are local, and only times in the same city are ever compared.
"""

import datetime as dt
import random
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, Self

from faker import Faker
from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime, model_validator

OfferId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,16}$")]
Name = Annotated[str, Field(max_length=60)]
Money = Annotated[int, Field(ge=0, le=1_000_000)]
Minutes = Annotated[int, Field(ge=0, le=2880)]
Cabin = Literal["economy", "business"]
Goal = Literal["any", "cheapest", "wish_first"]
Currency = Literal["EUR", "USD", "GBP", "CHF", "SEK", "PLN", "JPY", "CAD", "AUD", "INR"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ride(Frozen):
    id: OfferId
    origin: Name
    destination: Name
    depart: NaiveDatetime  # local to the origin
    arrive: NaiveDatetime  # local to the destination
    price: Money  # for one traveller
    mode: Literal["flight", "train"] = "flight"
    carrier: Name = ""
    stops: int = Field(default=0, ge=0, le=5)
    cabin: Cabin = "economy"


class Hotel(Frozen):
    id: OfferId
    city: Name
    price: Money  # one night, the whole party
    stars: int = Field(default=3, ge=1, le=5)
    breakfast: bool = False
    free_cancellation: bool = False


class Leg(Frozen):
    origin: Name
    destination: Name
    date: dt.date
    arrive_by: NaiveDatetime | None = None
    hotel_until: dt.date | None = None  # sleep at the destination from the arrival to this date


class Scenario(Frozen):
    legs: tuple[Leg, ...] = Field(min_length=1, max_length=6)
    rides: tuple[Ride, ...] = Field(min_length=1, max_length=80)
    hotels: tuple[Hotel, ...] = Field(default=(), max_length=40)
    traveller: Name = "Alex Doe"
    travellers: int = Field(default=1, ge=1, le=9)
    currency: Currency = "EUR"
    budget: Money | None = None
    goal: Goal = "any"
    wish: Literal["train", "morning", "breakfast", "free_cancellation"] | None = None
    max_changes: int = Field(default=1, ge=0, le=2)
    min_connection: Minutes = 60
    max_connection: Minutes = 720
    only_cabin: Cabin | None = None
    max_stops: int | None = Field(default=None, ge=0, le=5)
    avoid_carrier: Name | None = None
    not_before: str | None = Field(default=None, pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    min_stars: int | None = Field(default=None, ge=1, le=5)
    breakfast: bool = False
    free_cancellation: bool = False

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        if len({r.id for r in self.rides} | {h.id for h in self.hotels}) < len(self.rides) + len(self.hotels):
            raise ValueError("two offers share an id; ids must differ over rides and hotels together")
        return self


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


Chain = tuple[Ride, ...]
_MINUTE = dt.timedelta(minutes=1)


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
    wait = (two.depart - one.arrive) // _MINUTE
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
    best = None if s.goal == "any" else _best(s)
    if best and (s.budget is None or plan.price <= s.budget) and plan.rank(s.goal) > best.rank(s.goal):
        if plan.price > best.price and (s.goal == "cheapest" or plan.wishes == best.wishes):
            yield f"not_cheapest: got {plan.price}, expected {best.price}"
        else:
            yield f"wish_missed: got it {plan.wishes} times, expected {best.wishes}"


class _Knobs(NamedTuple):
    legs: tuple[int, ...]
    party: int  # travellers at most
    rules: int  # about the rides
    hubs: int  # legs that can be ridden with a change as well
    hotels: int  # a city
    night: float  # chance that a leg's rides arrive on the next day
    step: int  # prices are its multiples
    goals: tuple[Goal, ...]


_KNOBS = {
    "easy": _Knobs((1,), 1, 1, 0, 2, 0.0, 10, ("any", "cheapest")),
    "medium": _Knobs((2,), 2, 2, 1, 3, 0.1, 5, ("any", "cheapest", "wish_first")),
    "hard": _Knobs((3, 3, 3, 4), 3, 3, 2, 2, 0.2, 1, ("cheapest", "wish_first")),
}
_HOUR, _DAY = 60 * _MINUTE, dt.timedelta(1)


@cache
def _faker() -> Faker:
    return Faker("en_US")


def _leg_rides(rng: random.Random, knobs: _Knobs, rules: dict[str, Any], base: Ride, hub: str) -> list[Ride]:
    """Two rides that keep the rules, decoys that undercut them and break one, and perhaps a cheap way round."""

    def vary(ride: Ride, percents: tuple[int, int], wait: dt.timedelta = 0 * _HOUR, **changes: Any) -> Ride:
        price = ride.price * rng.randint(*percents) // 100 // knobs.step * knobs.step
        times = {"depart": ride.depart + wait, "arrive": ride.arrive + wait}
        return ride.model_copy(update={"price": price, "mode": rng.choice(("flight", "train")), **times, **changes})

    stops = (0,) if "max_stops" in rules else (0, 0, 1)
    good = [vary(base, (100, 160), 5 * rng.randrange(48) * _MINUTE, stops=rng.choice(stops)) for _ in range(2)]
    waits = {"date": rng.choice((-24, 24)), "not_before": 5 - good[0].depart.hour, "arrive_by": 6}
    changes: dict[str, dict[str, Any]] = {
        "only_cabin": {"cabin": "economy" if base.cabin == "business" else "business"},
        "max_stops": {"stops": rng.randint(1, 2)},
        "avoid_carrier": {"carrier": rules.get("avoid_carrier")},
    }
    kinds = rng.choices(["date", "arrive_by", *rules], k=2)
    bad = [vary(good[0], (60, 90), waits.get(kind, 0) * _HOUR, **changes.get(kind, {})) for kind in kinds]
    middle = base.depart + rng.randrange(55, 90, 5) * _MINUTE
    leave = middle + rng.choice((35, 45, 55, 60, 70, 85, 105)) * _MINUTE
    end = leave + rng.randrange(55, 120, 5) * _MINUTE
    there, on = vary(base, (30, 55), arrive=middle), vary(base, (30, 55), depart=leave, arrive=end)
    around = [there.model_copy(update={"destination": hub}), on.model_copy(update={"origin": hub})] if hub else []
    return [*good, *bad, *around]


def _draft(rng: random.Random, knobs: _Knobs, goal: Goal, names: list[str]) -> Scenario:
    n = rng.choice(knobs.legs)
    cities, hub, carriers = names[: max(2, n)], names[4], names[5:8]
    pool = {"only_cabin": rng.choice(("economy", "business")), "max_stops": 0, "not_before": "07:00"}
    pool["avoid_carrier"] = carriers[0]
    rules: dict[str, Any] = {key: pool[key] for key in rng.sample(list(pool), knobs.rules)}
    hubs, timed = rng.sample(range(n), knobs.hubs), rng.randrange(-1, n)
    day = dt.datetime(2025, 1, 8) + rng.randrange(320) * _DAY
    legs, rides, hotels = list[Leg](), list[Ride](), list[Hotel]()
    for i, (origin, city) in enumerate(pairwise([*cities, cities[0]][: n + 1])):
        night = rng.random() < knobs.night
        leave = day + (20 if night else rng.choice((7, 8, 9, 12))) * _HOUR
        arrive = leave + (5 * rng.randrange(18, 60) + 240 * night) * _MINUTE
        base = Ride(id="X", origin=origin, destination=city, depart=leave, arrive=arrive, price=rng.randint(60, 220))
        usual = {"carrier": rng.choice(carriers[1:]), "cabin": rules.get("only_cabin", "economy")}
        made = _leg_rides(rng, knobs, rules, base.model_copy(update=usual), hub if i in hubs and not night else "")
        latest = max(made[0].arrive, made[1].arrive) if i == timed else None
        until = day + (rng.randint(1, 4) + night) * _DAY
        sleep = until.date() if city != cities[0] and rng.random() < 0.85 else None
        legs.append(Leg(origin=origin, destination=city, date=day.date(), arrive_by=latest, hotel_until=sleep))
        rides += made
        for _ in range(knobs.hotels if sleep else 0):
            price, extras = rng.randint(40, 160) // knobs.step * knobs.step, rng.choices((True, False), (6, 4), k=2)
            comfort = {"stars": rng.randint(2, 5), "breakfast": extras[0], "free_cancellation": extras[1]}
            hotels.append(Hotel.model_validate({"id": "X", "city": city, "price": price, **comfort}))
        day = until
    if hotels:
        rules |= rng.choice(({"min_stars": rng.choice((3, 4))}, {"breakfast": True}, {"free_cancellation": True}))
    rng.shuffle(rides)
    rng.shuffle(hotels)
    return Scenario(
        legs=tuple(legs),
        rides=tuple(ride.model_copy(update={"id": f"{ride.mode[0].upper()}{i}"}) for i, ride in enumerate(rides, 1)),
        hotels=tuple(hotel.model_copy(update={"id": f"H{i}"}) for i, hotel in enumerate(hotels, 1)),
        traveller=names[8],
        travellers=rng.randint(1, knobs.party),
        currency=rng.choice(("EUR", "USD", "GBP", "CHF")),
        goal=goal,
        wish=rng.choice(("train", "morning", "breakfast", "free_cancellation")) if goal == "wish_first" else None,
        max_changes=int(knobs.hubs > 0),
        max_connection=480,
        **rules,
    )


def sample(rng: random.Random, level: str) -> Scenario:
    knobs, fake = _KNOBS[level], _faker()
    fake.seed_instance(rng.getrandbits(32))
    cities = list(dict.fromkeys(fake.first_name() + fake.city_suffix() for _ in range(9)))[:5]
    names = [*cities, *(fake.last_name() + kind for kind in ("Travel", "Lines", "Express")), fake.name()]
    goal = rng.choice(knobs.goals)
    for _ in range(1000):
        draft = _draft(rng, knobs, goal, names)
        best = _best(draft)
        # One arrival day a leg keeps the nights, and so the choices of different legs, independent of each other.
        if not best or any(len({chain[-1].arrive.date() for chain in _options(draft, leg)}) > 1 for leg in draft.legs):
            continue
        cheapest = _best(draft.model_copy(update={"goal": "cheapest"})) if goal == "wish_first" else None
        if not cheapest or cheapest.price < best.price:
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
        waits = "".join(f", wait {(two.depart - one.arrive) // _MINUTE}" for one, two in pairwise(chain))
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
