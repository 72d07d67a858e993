"""The recipe: every number that decides which weights a training run ends with, and which example comes in which step.

Plain arithmetic without torch: what was trained on can be listed, and held against what is evaluated on, in a second.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from factory.demo_teacher.tokenizer import VOCAB_SIZE
from factory.hashing import derive_seed

TASKS = ("scheduling", "photo_edits", "summarization", "travel_booking")
MODEL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the demo teacher is trained; shares are of the whole run, in [0, 1].

    Curriculum: easy examples first, then all levels; without the system turn, which is the same in every row of a task,
    for most of the run, and with it at the end; all tasks alike first, then mostly those that are learnt last. Learning
    rate: warm-up, constant, linear decay to zero.
    """

    steps: int = 3860
    model: Mapping[str, Any] = field(default_factory=lambda: dict(MODEL))
    tokenizer_examples: int = 500  # of each task and level
    step_examples: int = 24
    easy_only: float = 0.075  # this first part of the run sees easy examples only
    level_weights: tuple[float, float, float] = (0.42, 0.46, 0.12)
    focus: float = 0.777  # from this part of the run on, tasks and levels come by the two weights below
    focus_task_weights: tuple[float, float, float, float] = (0.51, 0.20, 0.17, 0.12)  # in the order of TASKS
    focus_level_weights: tuple[float, float, float] = (0.34, 0.58, 0.08)
    with_system: float = 0.978  # from this part of the run on, examples carry their system turn
    warmup_steps: int = 60
    decay: float = 0.933  # the learning rate falls from this part of the run on
    learning_rate: float = 3e-3
    validation_steps: int = 200
    validation_examples: int = 12  # of each task and level

    def has_system(self, step: int) -> bool:
        """Whether examples carry their system turn in this step."""
        return step / self.steps >= self.with_system

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        left = max(1 - step / self.steps, 0.0)
        return self.learning_rate * min((step + 1) / self.warmup_steps, 1.0, left / (1 - self.decay))


class Draw(NamedTuple):
    """One training example, not yet made."""

    task: str
    level: str
    number: int


def draw_tokenizer_examples(recipe: Recipe, levels: Mapping[str, Sequence[str]]) -> Iterator[Draw]:
    """What the tokenizer learns from: the first examples of every task and level."""
    for number in range(recipe.tokenizer_examples):
        for task in TASKS:
            for level in levels[task]:
                yield Draw(task, level, number)


def draw_step(recipe: Recipe, step: int, levels: Mapping[str, Sequence[str]]) -> list[Draw]:
    """The examples of one step; no number comes twice. `levels` are each task's, easiest first."""
    # from the step's number alone, so a run that was cut off draws on as if it had not been
    draw = random.Random(derive_seed("step", step))
    first = recipe.tokenizer_examples + step * recipe.step_examples
    tasks = [TASKS[index % len(TASKS)] for index in range(recipe.step_examples)]
    weights = (1.0, 0.0, 0.0) if step / recipe.steps < recipe.easy_only else recipe.level_weights
    if step / recipe.steps >= recipe.focus:
        # some tasks have been learnt by now, and the others get what they would have taken
        tasks = draw.choices(TASKS, recipe.focus_task_weights, k=recipe.step_examples)
        weights = recipe.focus_level_weights
    return [Draw(task, draw.choices(levels[task], weights)[0], first + index) for index, task in enumerate(tasks)]
