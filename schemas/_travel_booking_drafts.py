"""Drafts of trips: offers that keep the rules, and decoys beside them that are cheaper and break one.

A draft need not have a best plan, nor one alone: `sample` takes the drafts in which the exact search finds what it
wants.
"""

import datetime as dt
import random
from itertools import pairwise
from typing import Any, NamedTuple

from ._names import seed_faker
from ._travel_booking_trip import MINUTE, Goal, Hotel, Leg, Ride, Scenario


class Knobs(NamedTuple):
    legs: tuple[int, ...]
    party: int  # travellers at most
    rules: int  # about the rides
    hubs: int  # legs that can be ridden with a change as well
    hotels: int  # a city
    night: float  # chance that a leg's rides arrive on the next day
    step: int  # prices are its multiples
    goals: tuple[Goal, ...]


LEVELS = {
    "easy": Knobs((1,), 1, 1, 0, 2, 0.0, 10, ("any", "cheapest")),
    "medium": Knobs((2,), 2, 2, 1, 3, 0.1, 5, ("any", "cheapest", "wish_first")),
    "hard": Knobs((3, 3, 3, 4), 3, 3, 2, 2, 0.2, 1, ("cheapest", "wish_first")),
}
_HOUR, _DAY = 60 * MINUTE, dt.timedelta(1)


def _leg_rides(rng: random.Random, knobs: Knobs, rules: dict[str, Any], base: Ride, hub: str) -> list[Ride]:
    """Two rides that keep the rules, decoys that undercut them and break one, and perhaps a cheap way round."""

    def vary(ride: Ride, percents: tuple[int, int], wait: dt.timedelta = 0 * _HOUR, **changes: Any) -> Ride:
        price = ride.price * rng.randint(*percents) // 100 // knobs.step * knobs.step
        times = {"depart": ride.depart + wait, "arrive": ride.arrive + wait}
        return ride.model_copy(update={"price": price, "mode": rng.choice(("flight", "train")), **times, **changes})

    # where "max_stops" is a rule of the trip it is 0
    stops = (0,) if "max_stops" in rules else (0, 0, 1)
    good = [vary(base, (100, 160), 5 * rng.randrange(48) * MINUTE, stops=rng.choice(stops)) for _ in range(2)]
    # what breaks each rule; five in the morning is before every `not_before`
    waits = {"date": rng.choice((-24, 24)), "not_before": 5 - good[0].depart.hour, "arrive_by": 6}
    changes: dict[str, dict[str, Any]] = {
        "only_cabin": {"cabin": "economy" if base.cabin == "business" else "business"},
        "max_stops": {"stops": rng.randint(1, 2)},
        "avoid_carrier": {"carrier": rules.get("avoid_carrier")},
    }
    # a decoy costs less than the ride it copies: whoever overlooks its fault takes it
    kinds = rng.choices(["date", "arrive_by", *rules], k=2)
    bad = [vary(good[0], (60, 90), waits.get(kind, 0) * _HOUR, **changes.get(kind, {})) for kind in kinds]
    middle = base.depart + rng.randrange(55, 90, 5) * MINUTE
    # the shortest connection is 60 minutes, so some of these ways round are too tight and some just fit
    leave = middle + rng.choice((35, 45, 55, 60, 70, 85, 105)) * MINUTE
    end = leave + rng.randrange(55, 120, 5) * MINUTE
    there, on = vary(base, (30, 55), arrive=middle), vary(base, (30, 55), depart=leave, arrive=end)
    around = [there.model_copy(update={"destination": hub}), on.model_copy(update={"origin": hub})] if hub else []
    return [*good, *bad, *around]


def draft_trip(rng: random.Random, knobs: Knobs, goal: Goal, names: list[str]) -> Scenario:
    """A trip of a level, with `invent_names`' names; its budget comes later, from its best plan."""
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
        arrive = leave + (5 * rng.randrange(18, 60) + 240 * night) * MINUTE
        # ids come last, from the shuffled order: they must not tell which offers were made as the right ones
        base = Ride(id="X", origin=origin, destination=city, depart=leave, arrive=arrive, price=rng.randint(60, 220))
        usual = {"carrier": rng.choice(carriers[1:]), "cabin": rules.get("only_cabin", "economy")}
        made = _leg_rides(rng, knobs, rules, base.model_copy(update=usual), hub if i in hubs and not night else "")
        # the two good rides keep the limit by construction, a change of trains may not
        latest = max(made[0].arrive, made[1].arrive) if i == timed else None
        until = day + (rng.randint(1, 4) + night) * _DAY
        # nobody needs a hotel where the trip began, and now and then a traveller has a bed elsewhere
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


def invent_names(rng: random.Random) -> list[str]:
    """Five cities, three carriers and a traveller, in this order."""
    fake = seed_faker(rng)
    # cities that do not exist: nothing but the offers can tell how far apart they are
    cities = list(dict.fromkeys(fake.first_name() + fake.city_suffix() for _ in range(9)))[:5]
    return [*cities, *(fake.last_name() + kind for kind in ("Travel", "Lines", "Express")), fake.name()]
