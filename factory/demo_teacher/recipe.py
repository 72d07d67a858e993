"""The recipe: every number that decides which weights a training run ends with, and which example comes in which step.

Plain arithmetic without torch: what was trained on can be listed, and held against what is evaluated on, in a second.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from factory.demo_teacher.tokenizer import VOCAB_SIZE
from factory.hashing import derive_seed

TASK_WEIGHTS = {
    "scheduling": 0.07,
    "photo_edits": 0.06,
    "summarization": 0.06,
    "travel_booking": 0.02,
    "questions": 0.24,
    "proactive": 0.03,
    "conversation_memory": 0.36,
    "stories": 0.06,
    "assistant_actions": 0.06,
    "emotional_support": 0.04,
}
"""The built-in tasks that are text alone, and what share of the examples is of each."""
TASKS = tuple(TASK_WEIGHTS)
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
    for most of the run, and with it at the end. Learning rate: warm-up, constant, linear decay to zero.
    """

    steps: int = 700
    model: Mapping[str, Any] = field(default_factory=lambda: dict(MODEL))
    tokenizer_examples: int = 300  # of each task and level
    step_examples: int = 24
    earlier_steps: int = 6000  # kept for the runs whose weights this one begins from: no example comes again
    easy_only: float = 0.0  # this first part of the run sees easy examples only
    level_weights: tuple[float, float, float] = (0.55, 0.34, 0.11)
    with_system: float = 0.7  # from this part of the run on, examples carry their system turn
    warmup_steps: int = 60
    decay: float = 0.5  # the learning rate falls from this part of the run on
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
    number = recipe.earlier_steps + step
    draw = random.Random(derive_seed("step", number))
    first = recipe.tokenizer_examples + number * recipe.step_examples
    weights = (1.0, 0.0, 0.0) if step / recipe.steps < recipe.easy_only else recipe.level_weights
    tasks = draw.choices(TASKS, list(TASK_WEIGHTS.values()), k=recipe.step_examples)
    return [Draw(task, draw.choices(levels[task], weights)[0], first + index) for index, task in enumerate(tasks)]
