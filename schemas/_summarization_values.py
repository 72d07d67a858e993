"""Drawing the values of a document: each as the document writes it, and as a summary may write it."""

import datetime as dt
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from ._names import seed_faker
from ._summarization_meaning import BANK, MONTHS, TENS, UNITS, WORD_NAMES


class Value(NamedTuple):
    shown: str  # as the document writes it
    forms: tuple[str, ...]  # as a summary may write it, the reference's form first
    day: dt.date | None = None


class Drawer:
    """Draws values; no two of one scenario share a number or a name."""

    def __init__(self, rng: Random, places: Sequence[str]) -> None:
        self.rng, self.places, self.currency, self.used = rng, places, rng.choice("$£€"), set[str]()
        self.fake = seed_faker(rng)

    # a summary that holds a number or a name must not hold it by chance, as part of another fact
    def number(self, low: int, high: int) -> int:
        number = next(n for n in iter(lambda: self.rng.randrange(low, high), None) if str(n) not in self.used)
        self.used.add(str(number))
        return number

    def name(self, part: str) -> str:
        name = str(getattr(self.fake, part)())
        while name in self.used or len(name) < 5 or name.lower() in WORD_NAMES:
            name = str(getattr(self.fake, part)())
        self.used.add(name)
        return name

    def draw(self, slot: str) -> Value:
        rng = self.rng
        if slot == "date":
            # through `number`, from 1000 on: no other value of the scenario is then the same number
            day = dt.date(2025, 1, 1) + dt.timedelta(self.number(1000, 1360) - 1000)
            month = MONTHS[day.month - 1]
            plain = f"{day.day} {month} {day.year}"
            long = f"{BANK.weekdays[day.weekday()]} {plain}"
            looks = (plain, long, f"{month} {day.day}, {day.year}", day.isoformat())
            return Value(rng.choice(looks), (plain, f"{day.day} {month}"), day)
        if slot == "time":
            hour, minute = self.number(8, 20), rng.choice((0, 10, 15, 20, 30, 40, 45, 50))
            plain, tail = f"{hour:02}:{minute:02}", f":{minute:02}" if minute else ""
            return Value(rng.choice((plain, f"{(hour - 1) % 12 + 1}{tail} {'ap'[hour > 11]}m")), (plain,))
        if slot == "place":
            street = f"{self.name('last_name')} {rng.choice(('Street', 'Lane', 'Road', 'Square'))}"
            text = rng.choice(self.places).format(street=street, n=self.number(101, 400))
            return Value(text, (text, street) if street in text else (text,))
        if slot == "owner":
            first, last = self.name("first_name"), self.name("last_name")
            return Value(f"{first} {last}", (f"{first} {last}", last, first))
        if slot == "amount":
            plain = f"{self.currency}{self.number(81, 1980) * 5:,}"
            return Value(rng.choice((plain, f"{plain}.00")), (plain,))
        if slot == "code":
            letters, digits = "".join(rng.choices("BCDFGKLPRSTVX", k=2)), str(self.number(10_001, 99_999))
            return Value(f"{letters}-{digits}", (f"{letters}-{digits}", digits))
        tens, units = divmod(self.number(21, 69), 10)
        words = TENS[tens - 2] + (f"-{UNITS[units - 1]}" if units else "")
        return Value(rng.choice((f"{tens}{units}", f"{tens}{units}", words)), (f"{tens}{units}",))
