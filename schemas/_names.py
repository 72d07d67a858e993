"""Invented names for the tasks that need some: Faker, seeded by a scenario's own chance."""

import functools
import random

from faker import Faker


@functools.cache
def _faker() -> Faker:
    return Faker("en_US")


def seed_faker(rng: random.Random) -> Faker:
    """Faker at a place that `rng` decides. All scenarios share one, so draw from it before another one is begun."""
    # building one costs more than sampling a scenario
    fake = _faker()
    fake.seed_instance(rng.getrandbits(32))
    return fake


def pick_first_names(rng: random.Random, count: int) -> list[str]:
    """Different first names: Faker repeats itself, so some more are drawn than are needed."""
    fake = seed_faker(rng)
    return list(dict.fromkeys(fake.first_name() for _ in range(3 * count + 3)))[:count]
