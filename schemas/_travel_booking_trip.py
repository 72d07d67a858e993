"""What a trip is made of: offers, legs and the rules that bookings must keep. Times are local to their city."""

import datetime as dt
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime, model_validator

MINUTE = dt.timedelta(minutes=1)
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


Chain = tuple[Ride, ...]  # one leg's rides, in order
