"""The demo teacher's training text: the built-in tasks' own scenarios, rendered and solved.

An example is what the factory would send and what a right answer looks like: the prompt in the chat template, then
`<think>`, the reference reasoning of `solve`, `</think>`, the answer as JSON and the end of the turn.

Training and evaluation never share a scenario: training draws from the seeds of job seed TRAINING_SEED, evaluation runs
ordinary jobs of seed EVALUATION_SEED, and a training example whose derived seed an evaluation row has is left out.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.demo_teacher.recipe import TASKS, Draw
from factory.demo_teacher.tokenizer import THINK_END, THINK_START, TURN_END
from factory.hashing import content_hash, derive_seed
from factory.messages import Message
from factory.records import PlannedRow, Sampling
from factory.tasks.calls import call_solve, read_scenario
from factory.tasks.render import Renderer, open_renderer
from factory.tasks.tasks import Task, builtin_root, find_tasks
from factory.texts.calls import spell_answer

TRAINING_SEED = 1_000_003
EVALUATION_SEED = 7
EVALUATION_ROWS = 1_000
"""Row numbers below this are kept for evaluation, at every level: a plan counts a task's rows on through its levels."""


@dataclass(frozen=True, slots=True)
class Example:
    """One solved prompt, as text; `answer` is spelt as a teacher writes it, `tools` is the JSON of what it may call."""

    task: str
    level: str
    messages: tuple[Message, ...]
    reasoning: str
    answer: str
    tools: str = ""

    @property
    def system(self) -> str:
        """The system turn, which is the same for every example of a task; empty where there is none."""
        first = self.messages[0]
        return str(first["content"]) if first["role"] == "system" else ""


def training_seed(draw: Draw) -> int:
    """The derived seed of a training example."""
    return derive_seed(TRAINING_SEED, *draw)


def _read_python_side(task: Task) -> list[str]:
    """The task's file, its parts and their word banks."""
    return [path.read_text(encoding="utf-8") for path in task.sources if path.parent == task.schema_path.parent]


class Corpus:
    """Training and held-out examples by task, level and number, made when asked for."""

    def __init__(self, root: Path | None = None) -> None:
        tasks = find_tasks(root or builtin_root(), TASKS)
        self._tasks: dict[str, Task] = {task.name: task for task in tasks}
        self._renderers: dict[str, Renderer] = {task.name: open_renderer(task, Sampling()) for task in tasks}
        self.levels = {task.name: task.levels for task in tasks}
        self.evaluation_seeds = {
            derive_seed(EVALUATION_SEED, task, level, number)
            for task, levels in self.levels.items()
            for level in levels
            for number in range(EVALUATION_ROWS)
        }

    def digest(self) -> str:
        """One name for all that decides what an example of a seed is."""
        texts = [[task.templates, _read_python_side(task)] for task in self._tasks.values()]
        return content_hash([TRAINING_SEED, EVALUATION_SEED, EVALUATION_ROWS, texts])

    def example(self, draw: Draw) -> Example | None:
        """A training example, or None where its seed belongs to evaluation."""
        seed = training_seed(draw)
        return None if seed in self.evaluation_seeds else self.solve(draw.task, draw.level, seed)

    def examples(self, draws: Iterable[Draw]) -> Iterator[Example]:
        """The training examples of these draws, in order."""
        return (example for draw in draws if (example := self.example(draw)) is not None)

    def held_out(self, task: str, level: str, number: int) -> Example:
        """A validation example: the evaluation rows from the last one down."""
        # from the other end than a job counts, so the rows an evaluation runs on have not steered the training either
        return self.solve(task, level, derive_seed(EVALUATION_SEED, task, level, EVALUATION_ROWS - 1 - number))

    def solve(self, task: str, level: str, seed: int) -> Example:
        """The scenario of a seed, rendered and solved."""
        prompt = self._renderers[task].render(PlannedRow(0, 0, task, level, 0, seed))
        known = self._tasks[task]
        assert known.solve is not None
        reasoning, answer = call_solve(known, read_scenario(known, prompt.scenario))
        return Example(task, level, prompt.messages, reasoning, spell_answer(prompt.form, answer), prompt.tools)


def texts(examples: Iterable[Example]) -> Iterator[str]:
    """What the tokenizer learns from."""
    for example in examples:
        yield from (message["content"] for message in example.messages)
        yield from (example.reasoning, example.answer)
        yield from [example.tools] if example.tools else []


def encode(tokenizer: Any, example: Example, with_system: bool) -> tuple[list[int], int]:
    """Token ids [T] of the whole example, and how many of them are the prompt (they carry no loss).

    The prompt is what a teacher is sent but for its last token, `<think>`: that one is learnt too.
    """
    messages = [message for message in example.messages if with_system or message["role"] != "system"]
    tools = json.loads(example.tools) if example.tools else None
    prompt = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(prompt.removesuffix(THINK_START), add_special_tokens=False)
    completion = f"{THINK_START}{example.reasoning}{THINK_END}{example.answer}{TURN_END}"
    return prompt_ids + tokenizer.encode(completion, add_special_tokens=False), len(prompt_ids)
