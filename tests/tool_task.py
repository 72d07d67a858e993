"""A task with tools, which nobody here has as a built-in one: set a timer, send a message, or ask back."""

SCHEMA = '''
import random

from pydantic import BaseModel, ConfigDict, Field

from factory.tasks.replies import Reply


class SetTimer(BaseModel):
    """Start a timer."""

    model_config = ConfigDict(extra="forbid")
    minutes: int = Field(ge=1, le=600, description="how long it runs")
    label: str = Field(default="", max_length=40)


class SendMessage(BaseModel):
    """Send a message to somebody."""

    model_config = ConfigDict(extra="forbid")
    to: str = Field(min_length=1, max_length=40)
    text: str = Field(min_length=1, max_length=200)


TOOLS = [SetTimer, SendMessage]
Answer = Reply
NAMES = ("Ada", "Bo", "Cy", "Di", "Eve", "Flo", "Gus", "Hal")


class Scenario(BaseModel):
    name: str
    minutes: int | None


def sample(rng: random.Random, level: str) -> Scenario:
    asks = level == "hard" and rng.random() < 0.4
    return Scenario(name=f"{rng.choice(NAMES)}{rng.randrange(100)}", minutes=None if asks else rng.randint(1, 90))


def check(scenario: Scenario, answer: Reply) -> list[str]:
    if scenario.minutes is None:
        return ["called_too_soon: nobody said how long"] if answer.calls else []
    match list(answer.calls):
        case [SetTimer(minutes=minutes), SendMessage(to=to)]:
            findings = [] if minutes == scenario.minutes else [f"wrong_minutes: {minutes}"]
            return findings + ([] if to == scenario.name else [f"wrong_name: {to}"])
        case calls:
            return [f"wrong_calls: {[type(call).__name__ for call in calls]}"]


def solve(scenario: Scenario) -> tuple[str, Reply]:
    if scenario.minutes is None:
        return "No time is given.", Reply("For how long?")
    calls = [SetTimer(minutes=scenario.minutes), SendMessage(to=scenario.name, text='Started, "really".')]
    return f"{scenario.minutes} minutes, then {scenario.name}.", Reply(calls=calls)
'''
TASK = """
name = "errands"
version = "1"
description = "Set a timer and tell somebody, or ask how long."
levels = ["easy", "hard"]
[sampling]
max_tokens = 600
"""
USER = """
Start a timer{% if scenario.minutes %} of {{ scenario.minutes }} minutes{% endif %} and tell {{ scenario.name }}.
"""
TIMER = '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": 5}}\n</tool_call>'
