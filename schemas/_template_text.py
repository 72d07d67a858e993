"""The Python side of the task `_template_text`: what the user said last about a thing, in a sentence.

Replace it piece by piece with a task of your own, and keep the five names: Scenario, Answer, sample, check, solve.
"""

import random
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field, model_validator


# Knobs: what makes a level harder is written in one place. The levels are those of task.toml.
class Knobs(NamedTuple):
    facts: int
    changes: int  # how many of them are said anew


LEVELS = {"easy": Knobs(2, 0), "medium": Knobs(4, 1), "hard": Knobs(6, 3)}
VALUES = {
    "locker number": ("217", "340", "458", "561", "672", "783"),
    "favourite tea": ("jasmine", "rooibos", "fennel", "darjeeling", "sencha", "hibiscus"),
    "dentist's name": ("Abara", "Brandt", "Castel", "Dimitrov", "Ekberg", "Falk"),
    "gym day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "train platform": ("2", "5", "9", "11", "14", "16"),
    "cat's name": ("Biscuit", "Cosmo", "Domino", "Pepper", "Saffron", "Tofu"),
}


# Scenario: all facts that a prompt states and that `check` needs, and no fact that it does not.
class Fact(BaseModel):
    thing: str = Field(min_length=1, max_length=40)
    value: str = Field(min_length=1, max_length=40)

    @property  # templates may use properties and methods
    def said(self) -> str:
        return f"My {self.thing} is {self.value}."

    @property
    def noted(self) -> str:
        return f"Noted: your {self.thing} is {self.value}."


class Scenario(BaseModel):
    facts: list[Fact] = Field(min_length=1, max_length=20)
    asked: str = Field(min_length=1, max_length=40)

    @model_validator(mode="after")
    def _is_known(self) -> "Scenario":
        if self.asked not in {fact.thing for fact in self.facts}:
            raise ValueError("nobody has said what is asked")
        return self

    @property
    def current(self) -> str:
        return next(fact.value for fact in reversed(self.facts) if fact.thing == self.asked)

    @property
    def former(self) -> list[str]:
        return [fact.value for fact in self.facts if fact.thing == self.asked and fact.value != self.current]


# Answer: a text. No grammar holds the teacher, so the bounds are looked at when the answer is there.
Answer = Annotated[str, Field(min_length=3, max_length=300)]


def sample(rng: random.Random, level: str) -> Scenario:
    """A scenario. Everything random comes from `rng`: no clock, no global random, no order of a set."""
    knobs = LEVELS[level]
    things = rng.sample(sorted(VALUES), knobs.facts)
    drawn = {thing: rng.sample(VALUES[thing], 2) for thing in things}
    facts = [Fact(thing=thing, value=drawn[thing][0]) for thing in things]
    changed = rng.sample(things, knobs.changes)
    facts += [Fact(thing=thing, value=drawn[thing][1]) for thing in changed]
    return Scenario(facts=facts, asked=rng.choice(changed or things))


def check(scenario: Scenario, answer: str) -> list[str]:
    """What is wrong; empty if nothing is. The code of the first finding becomes the reason of the rejected row."""
    words = "".join(letter if letter.isalnum() else " " for letter in answer.lower()).split()
    findings = [f"outdated: {value} is not true any more" for value in scenario.former if value.lower() in words]
    if scenario.current.lower() not in words:
        findings.append(f"not_said: the {scenario.asked} is {scenario.current}")
    return findings


def solve(scenario: Scenario) -> tuple[str, str]:
    """Reference reasoning and answer: what a good teacher would write. Optional; dry runs and tests use it."""
    steps = [f"Asked: {scenario.asked}."]
    steps += [f"Said: {fact.value}." for fact in scenario.facts if fact.thing == scenario.asked]
    steps.append(f"The last one holds: {scenario.current}.")
    return "\n".join(steps), f"Your {scenario.asked} is {scenario.current}."
