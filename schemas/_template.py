"""The Python side of the task `_template`: the best product that a budget allows.

Replace it piece by piece with a task of your own, and keep the five names: Scenario, Answer, sample, check, solve.
"""

import random
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator


# Knobs: what makes a level harder is written in one place. The levels are those of task.toml.
class Knobs(NamedTuple):
    items: int
    shipping: tuple[int, int]  # least and most


LEVELS = {
    "easy": Knobs(items=3, shipping=(0, 0)),
    "medium": Knobs(items=5, shipping=(0, 0)),
    "hard": Knobs(items=7, shipping=(2, 9)),
}
PRODUCTS = ("headphones", "backpack", "desk lamp", "kettle", "keyboard", "rain jacket")
BRANDS = ("Aldo", "Brio", "Corin", "Dovo", "Elan", "Fenn", "Gala", "Hexa", "Iris", "Juno")


# Scenario: all facts that a prompt states and that `check` needs, and no fact that it does not.
# It may also come from your own data (a job's `source`), so it says itself what makes sense.
class Item(BaseModel):
    name: str = Field(min_length=1, max_length=40)
    price: int = Field(ge=1, le=10_000)
    stars: float = Field(ge=0, le=5)


class Scenario(BaseModel):
    product: str = Field(min_length=1, max_length=40)
    items: list[Item] = Field(min_length=1, max_length=20)
    shipping: int = Field(default=0, ge=0, le=1_000)
    budget: int = Field(ge=1, le=20_000)

    @model_validator(mode="after")
    def _has_an_answer(self) -> "Scenario":
        if len({item.name for item in self.items}) < len(self.items):
            raise ValueError("items must have different names")
        if not self.affordable:
            raise ValueError("no item fits the budget: raise `budget` or lower a price")
        return self

    @property  # templates may use properties and methods
    def affordable(self) -> list[Item]:
        return [item for item in self.items if item.price + self.shipping <= self.budget]


# Answer: what the teacher must write, as JSON. extra="forbid" and a bound on every text, list and number: a weak
# teacher that is held to this schema by a grammar would else invent keys, or write one text until it is cut off.
class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    item: str = Field(min_length=1, max_length=40)
    total: int = Field(ge=0, le=20_000)
    left: int = Field(ge=0, le=20_000)


def sample(rng: random.Random, level: str) -> Scenario:
    """A scenario. Everything random comes from `rng`: no clock, no global random, no order of a set."""
    knobs = LEVELS[level]
    names = rng.sample(BRANDS, knobs.items)
    prices = rng.sample(range(15, 100), knobs.items)
    stars = rng.sample(range(20, 50), knobs.items)
    shipping = rng.randint(*knobs.shipping)
    items = [Item(name=n, price=p, stars=s / 10) for n, p, s in zip(names, prices, stars, strict=True)]
    budget = rng.randint(min(prices), max(prices)) + shipping
    return Scenario(product=rng.choice(PRODUCTS), items=items, shipping=shipping, budget=budget)


def check(scenario: Scenario, answer: Answer) -> list[str]:
    """What is wrong; empty if nothing is. The code of the first finding becomes the reason of the rejected row."""
    items = {item.name: item for item in scenario.items}
    if answer.item not in items:
        return [f"unknown_item: {answer.item!r} is not offered"]
    item, findings = items[answer.item], []
    total, best = item.price + scenario.shipping, max(item.stars for item in scenario.affordable)
    if total > scenario.budget:
        findings.append(f"over_budget: {item.name} costs {total}, the budget is {scenario.budget}")
    elif item.stars < best:
        findings.append(f"not_best: {item.name} has {item.stars} stars, {best} can be had")
    if answer.total != total:
        findings.append(f"wrong_total: got {answer.total}, expected {total}")
    if answer.left != scenario.budget - answer.total:
        findings.append(f"wrong_left: got {answer.left}, expected {scenario.budget - answer.total}")
    return findings


def solve(scenario: Scenario) -> tuple[str, Answer]:
    """Reference reasoning and answer: what a good teacher would write. Optional; dry runs and tests use it."""
    steps = []
    for item in scenario.items:
        total = item.price + scenario.shipping
        verdict = "fits" if total <= scenario.budget else "too much"
        steps.append(f"{item.name}: {item.price} + {scenario.shipping} = {total}, {verdict}.")
    best = max(scenario.affordable, key=lambda item: item.stars)
    total = best.price + scenario.shipping
    steps.append(f"Of those that fit, {best.name} has the most stars, {best.stars}.")
    steps.append(f"Left: {scenario.budget} - {total} = {scenario.budget - total}.")
    return "\n".join(steps), Answer(item=best.name, total=total, left=scenario.budget - total)
