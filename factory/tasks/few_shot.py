"""Few-shot examples: `few_shot(n)` in a template gives n of the task's accepted golden lines, to be shown in any way.

    {% for example in few_shot(2) %}
    Question: {{ example.request }}
    Answer: {{ example.answer }}
    {% endfor %}

Which ones, the row's seed draws: first among those of the row's level, then among the others; never two of one scenario
and never the row's own. So the same row shows the same examples on every machine, and the file of golden lines is part
of a task whose templates show some.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from factory.hashing import derive_seed
from factory.tasks.calls import call_sample, dump_scenario, read_scenario
from factory.tasks.faults import TaskFault
from factory.tasks.golden_lines import END
from factory.tasks.tasks import Task


@dataclass(frozen=True, slots=True)
class Example:
    """A golden line as a template sees it; `request` is the text of the user's turn (`user.j2`) for its scenario."""

    level: str
    scenario: BaseModel
    request: str
    reasoning: str
    answer: str


@dataclass(frozen=True, slots=True)
class Shown:
    """An example beside the JSON of its scenario, by which it is told from a row's own."""

    scenario_json: str
    example: Example


def make_examples(task: Task, ask: Callable[[BaseModel, str], str]) -> list[Shown]:
    """A task's examples in the order of its golden lines, one a scenario; `ask` renders the user's turn of a scenario.

    Raises TaskFault.
    """
    if task.sample is None:
        raise TaskFault("too_few_examples", "few_shot: a task without sample() has no golden scenarios to show")
    found: dict[str, Shown] = {}
    for line in task.golden:
        if line.level not in task.levels:
            continue
        text = dump_scenario(task, call_sample(task, line.seed, line.level))
        scenario = read_scenario(task, text)
        reasoning, _, answer = line.text.partition(END)
        example = Example(line.level, scenario, ask(scenario, line.level), reasoning.strip(), answer.strip())
        found.setdefault(text, Shown(text, example))
    return list(found.values())


def choose_examples(examples: Sequence[Shown], count: int, level: str, scenario_json: str, seed: int) -> list[Example]:
    """`count` of the examples for a row. Raises TaskFault where there are too few, the row's own scenario among them.

    Whether there are enough must not hang on the row: so there is always one more than is shown.
    """
    if type(count) is not int or count < 1:
        raise TaskFault("too_few_examples", f"few_shot({count!r}): say how many examples, 1 or more")
    if count >= len(examples):
        raise TaskFault(
            "too_few_examples",
            f"few_shot({count}): golden.jsonl has {len(examples)} accepted lines of different scenarios, and needs one "
            f"more than is shown, because a row is never shown its own",
        )
    others = [shown.example for shown in examples if shown.scenario_json != scenario_json]
    random.Random(derive_seed(seed, "few_shot")).shuffle(others)
    return sorted(others, key=lambda example: example.level != level)[:count]
