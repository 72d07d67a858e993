"""A task, tried for real without a teacher: drawn, rendered, solved, checked, and its golden lines run.

Whatever would make every row of a job fail shows here in a fraction of a second, with the file and the place.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pydantic import ValidationError

from factory.errors import TaskError
from factory.hashing import derive_seed
from factory.quality.golden import decide_text, end_of, try_golden
from factory.quality.grammar import allows, find_grammar_problems
from factory.records import Rejection
from factory.tasks.calls import (
    UnknownTool,
    call_check,
    call_sample,
    call_solve,
    dump_scenario,
    invent_answer,
    read_answer,
    read_scenario,
)
from factory.tasks.faults import TaskFault
from factory.tasks.render import check_templates
from factory.tasks.tasks import Task
from factory.texts.calls import spell_answer

PLACE = re.compile(r"\([^()\s]+, line \d+\)$")  # as `factory.tasks.faults` tells it
SEEDS = 2  # for each level: a fault of the code shows in the first, a rare one in `factory test`


def try_task(task: Task) -> list[str]:
    """Everything that is wrong with a whole task: templates, grammar, solutions, checks, golden lines."""
    grammar_problems = [] if task.grammar is None else find_grammar_problems(task.grammar)
    problems = [f"{task.schema_path}: grammar: {line}" for line in grammar_problems]
    problems += check_templates(task)
    if problems:
        return problems
    seen = Faults(task)
    for level in task.levels:
        for seed in range(SEEDS):
            seen.add(level, seed, try_seed(task, level, seed))
    return seen.lines() or try_golden(task)


def require_tried(tasks: list[Task]) -> None:
    """Raise one TaskError with every problem of every given task."""
    lines = [line for task in tasks for line in try_task(task)]
    if lines:
        raise TaskError("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a task at one scenario; faults with the same `reason` at one `place` are told once."""

    reason: str
    told: str

    @property
    def place(self) -> str:
        """The file and line that an author's code failed at, where it did."""
        found = PLACE.search(self.told)
        return found[0] if found else ""


@dataclass(slots=True)
class Faults:
    """The faults that a task's scenarios met, each kind with the first scenario that met it and how many did."""

    task: Task
    kinds: dict[tuple[str, str], tuple[str, int, Fault]] = field(default_factory=dict)
    met: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, level: str, seed: int, faults: Iterable[Fault]) -> None:
        """Note what one scenario met."""
        kinds = {(fault.reason, fault.place): fault for fault in faults}
        for kind, fault in kinds.items():
            self.kinds.setdefault(kind, (level, seed, fault))
            self.met[kind] += 1

    def lines(self) -> list[str]:
        """A line a kind of fault."""
        told = []
        for kind, (level, seed, fault) in self.kinds.items():
            others = f" and {self.met[kind] - 1} more" if self.met[kind] > 1 else ""
            told.append(f"{self.task.schema_path}: level {level!r}, seed {seed}{others}: {fault.told}")
        return told


def try_seed(task: Task, level: str, seed: int) -> list[Fault]:
    """What is wrong with a task at one scenario; nothing where it has no sample()."""
    if task.sample is None:
        return []
    try:
        text = dump_scenario(task, call_sample(task, seed, level))
        found = list(try_scenario(task, level, text))
        try_check(task, text, derive_seed(seed))
    except TaskFault as fault:
        return [Fault(fault.reason, f"{fault.reason}: {fault}")]
    return found


def try_scenario(task: Task, level: str, scenario_json: str) -> Iterator[Fault]:
    """What is wrong with a reference solution: it cannot be read, its own check rejects it, a grammar forbids it.

    Raises TaskFault.
    """
    if task.solve is None:
        return
    reasoning, answer = call_solve(task, read_scenario(task, scenario_json))
    outcome = decide_text(task, scenario_json, level, f"{reasoning}\n</think>\n{spell_answer(task.form, answer)}")
    if "</think>" in reasoning:
        yield Fault("solve", "solve: its reasoning holds </think>, which would end it there")
    elif isinstance(outcome, Rejection) and outcome.kind == "error":  # the task's own code, not the solution
        raise TaskFault(outcome.reason, outcome.findings[0])
    elif isinstance(outcome, Rejection):
        findings = "; ".join(outcome.findings)
        told = f"solve: its own answer is not accepted, it ends {end_of(outcome)}: {findings}"
        yield Fault(f"solve {outcome.reason}", told)
    elif task.grammar is not None and allows(task.grammar, answer) is False:
        yield Fault("grammar", f"solve: a teacher held to the answer's grammar cannot write its answer: {answer[:300]}")


def try_check(task: Task, scenario_json: str, seed: int) -> tuple[str, ...] | None:
    """What check finds in an answer that fits the form and knows nothing, as a weak teacher's. Raises TaskFault.

    None where there is no such answer: none was found, or a validator refuses it.
    """
    invented = invent_answer(task, seed)
    if not invented:
        return None
    try:
        answer = read_answer(task, invented)
    except (ValidationError, UnknownTool):
        return None
    return call_check(task, read_scenario(task, scenario_json), answer)
