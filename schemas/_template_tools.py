"""The Python side of the task `_template_tools`: calls of two tools in the right order, or a question.

Replace it piece by piece with a task of your own; keep the names: TOOLS, Scenario, Answer, sample, check, solve.
"""

import random
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from factory.tasks.replies import Reply


# Knobs: what makes a level harder is written in one place. The levels are those of task.toml.
class Knobs(NamedTuple):
    wishes: int
    missing: float  # how often a timer's length is not said


LEVELS = {"easy": Knobs(1, 0.0), "medium": Knobs(2, 0.2), "hard": Knobs(3, 0.4)}
NAMES = ("Ada", "Bruno", "Chidi", "Dana", "Emil", "Farah", "Goran", "Hana")
TEXTS = ("I am on my way", "dinner is ready", "please call me back", "the meeting has moved", "happy birthday")


# Tools: their docstrings and descriptions are what tells the teacher what they do.
class SetTimer(BaseModel):
    """Start a timer."""

    model_config = ConfigDict(extra="forbid")
    minutes: int = Field(ge=1, le=600, description="how long it runs")


class SendMessage(BaseModel):
    """Send a text message to somebody."""

    model_config = ConfigDict(extra="forbid")
    to: str = Field(min_length=1, max_length=40, description="the person's name")
    text: str = Field(min_length=1, max_length=200)


TOOLS = [SetTimer, SendMessage]
Answer = Reply  # what is said, and what is called in order: answer.text and answer.calls


# Scenario: all facts that a prompt states and that `check` needs, and no fact that it does not.
class Wish(BaseModel):
    to: str = Field(default="", max_length=40)  # nobody: a timer
    text: str = Field(default="", max_length=200)
    minutes: int | None = Field(default=None, ge=1, le=600)

    @property
    def is_whole(self) -> bool:
        return bool(self.to) or self.minutes is not None

    def call(self) -> SetTimer | SendMessage:
        return SendMessage(to=self.to, text=self.text) if self.to else SetTimer(minutes=self.minutes or 1)


class Scenario(BaseModel):
    wishes: list[Wish] = Field(min_length=1, max_length=10)

    @property
    def is_whole(self) -> bool:
        return all(wish.is_whole for wish in self.wishes)


def sample(rng: random.Random, level: str) -> Scenario:
    """A scenario. Everything random comes from `rng`: no clock, no global random, no order of a set."""
    knobs, wishes = LEVELS[level], list[Wish]()
    for name in rng.sample(NAMES, knobs.wishes):
        if rng.random() < 0.5:
            wishes.append(Wish(to=name, text=rng.choice(TEXTS)))
        else:
            wishes.append(Wish(minutes=None if rng.random() < knobs.missing else rng.randint(1, 90)))
    return Scenario(wishes=wishes)


def check(scenario: Scenario, answer: Reply) -> list[str]:
    """What is wrong; empty if nothing is. The code of the first finding becomes the reason of the rejected row."""
    if not scenario.is_whole:
        findings = ["called_too_soon: a timer's length was not said"] if answer.calls else []
        return findings + ([] if "?" in answer.text else ["did_not_ask: the answer asks nothing"])
    wanted = [wish.call() for wish in scenario.wishes]
    if len(answer.calls) != len(wanted):
        return [f"wrong_number: {len(answer.calls)} calls, {len(wanted)} are wanted"]
    return [
        f"wrong_call: call {number} is {made!r}, wanted {right!r}"
        for number, (made, right) in enumerate(zip(answer.calls, wanted, strict=True), 1)
        if _plain(made) != _plain(right)
    ]


def _plain(call: BaseModel) -> object:
    """A call without what may differ in a text: case and the mark at its end."""
    if isinstance(call, SendMessage):
        return call.to, call.text.lower().rstrip(".!")
    return call


def solve(scenario: Scenario) -> tuple[str, Reply]:
    """Reference reasoning and answer: what a good teacher would write. Optional; dry runs and tests use it."""
    steps = [
        f"A message to {wish.to}." if wish.to else f"A timer, {wish.minutes or 'its length is missing'}."
        for wish in scenario.wishes
    ]
    if not scenario.is_whole:
        return "\n".join([*steps, "I ask first."]), Reply("How long should the timer run?")
    return "\n".join(steps), Reply(calls=[wish.call() for wish in scenario.wishes])
