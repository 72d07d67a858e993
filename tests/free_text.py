"""A task whose answer is a free text, which nobody here has as a built-in one: a greeting of so many words."""

SCHEMA = """
import random
from typing import Annotated

from pydantic import BaseModel, Field


class Scenario(BaseModel):
    name: str = Field(max_length=40)
    mood: str = Field(max_length=20)


Answer = Annotated[str, Field(min_length=5, max_length=400)]
NAMES = ("Ada", "Bo", "Cy", "Di", "Eve", "Flo", "Gus", "Hal")
MOODS = ("glad", "calm", "proud", "tired", "curious")


def sample(rng: random.Random, level: str) -> Scenario:
    return Scenario(name=f"{rng.choice(NAMES)} {rng.randrange(10_000)}", mood=rng.choice(MOODS))


def check(scenario: Scenario, answer: str) -> list[str]:
    findings = [] if scenario.name in answer else [f"no_name: {scenario.name} is not greeted"]
    return findings + ([] if scenario.mood in answer else [f"no_mood: says nothing of being {scenario.mood}"])


def solve(scenario: Scenario) -> tuple[str, str]:
    return f"Greet {scenario.name}.", f"Hello {scenario.name}, you look {scenario.mood} today."
"""
TASK = """
name = "greeting"
version = "1"
description = "Greet somebody in one sentence."
levels = ["easy", "hard"]
[sampling]
max_tokens = 300
[style]
max_words = 20
"""


def golden(name: str, mood: str) -> list[dict[str, object]]:
    """Golden lines for the scenario of seed 1, which names this person and mood."""
    line = {"level": "easy", "seed": 1}
    lost = {"outcome": "rejected", "stage": "parse"}
    return [
        line | {"case": "two lines", "text": f"Hm.</think>\n\nHi, {name}.\n\nYou are {mood}.\n", "outcome": "accepted"},
        line | {"case": "it looks like JSON", "text": f'Hm.</think>"{name} {mood}"', "outcome": "accepted"},
        line
        | {"case": "nobody", "text": f"Hm.</think>So {mood}.", "outcome": "rejected"}
        | {"stage": "check", "reason": "no_name"},
        line | lost | {"case": "nothing", "text": "Hm.</think>\n \n", "reason": "no_answer"},
        line | lost | {"case": "no end", "text": "Hm. Hm.", "reason": "reasoning_not_closed"},
        line | lost | {"case": "thinks again", "text": f"Hm.</think>{name} <think>", "reason": "marker_in_answer"},
        line
        | {"case": "too long", "text": f"Hm.</think>{name} {mood} {'very ' * 90}", "outcome": "rejected"}
        | {"stage": "schema", "reason": "string_too_long"},
    ]
