"""A built-in task as its own tests try it: its module, its scenarios by seed, its findings' codes, its phrasings."""

import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from factory.tasks.modules import load_module

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ("easy", "medium", "hard")


class ShippedTask:
    """`module` is the task's Python file, `phrasings` the names of its user templates."""

    def __init__(self, name: str) -> None:
        self.folder = ROOT / "prompts" / name
        self.module = load_module(ROOT / "schemas" / f"{name}.py").module
        self.phrasings = sorted(path.name for path in self.folder.glob("user*.j2"))
        # without the factory's own tags and bounds: what a template says is seen as it stands
        self.environment = jinja2.sandbox.SandboxedEnvironment(
            loader=jinja2.FileSystemLoader(self.folder),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.scenario_of = functools.cache(self._sample)

    def _sample(self, level: str, seed: int) -> Any:
        return self.module.sample(random.Random(seed), level)

    def scenarios(self, level: str, count: int) -> Iterator[Any]:
        """Those of the first seeds."""
        return (self.scenario_of(level, seed) for seed in range(count))

    def codes(self, scenario: Any, answer: Any) -> list[str]:
        """What each finding of the check begins with."""
        return [finding.partition(":")[0] for finding in self.module.check(scenario, answer)]

    def render(self, name: str, scenario: Any, level: str) -> str:
        """One of the task's templates."""
        return self.environment.get_template(name).render(scenario=scenario, level=level)
