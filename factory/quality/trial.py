"""A task, tried for real without a teacher: drawn, rendered, solved, checked, and its golden lines run.

Whatever would make every row of a job fail shows here in a fraction of a second, with the file and the place.
"""

from collections.abc import Iterator

from pydantic import ValidationError

from factory.errors import TaskError
from factory.hashing import derive_seed
from factory.quality.golden import decide_text, end_of, try_golden
from factory.quality.grammar import allows, find_grammar_problems
from factory.records import Record
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

SEEDS = 2  # for each level: a fault of the code shows in the first, a rare one in `factory test`


def try_task(task: Task) -> list[str]:
    """Everything that is wrong with a whole task: templates, grammar, solutions, checks, golden lines."""
    grammar_problems = [] if task.grammar is None else find_grammar_problems(task.grammar)
    problems = [f"{task.schema_path}: grammar: {line}" for line in grammar_problems]
    problems += check_templates(task)
    if problems:
        return problems
    told = [line for level in task.levels for seed in range(SEEDS) for line in try_seed(task, level, seed)]
    return list(dict.fromkeys(told)) or try_golden(task)


def require_tried(tasks: list[Task]) -> None:
    """Raise one TaskError with every problem of every given task."""
    lines = [line for task in tasks for line in try_task(task)]
    if lines:
        raise TaskError("\n".join(lines))


def try_seed(task: Task, level: str, seed: int) -> Iterator[str]:
    """What is wrong with a task at one scenario; nothing where it has no sample()."""
    if task.sample is None:
        return
    where = f"{task.schema_path}: level {level!r}, seed {seed}"
    try:
        text = dump_scenario(task, call_sample(task, seed, level))
        yield from (f"{where}: {line}" for line in try_scenario(task, level, text))
        try_check(task, text, derive_seed(seed))
    except TaskFault as fault:
        yield f"{where}: {fault.reason}: {fault}"


def try_scenario(task: Task, level: str, scenario_json: str) -> Iterator[str]:
    """What is wrong with a reference solution: it cannot be read, its own check rejects it, a grammar forbids it.

    Raises TaskFault.
    """
    if task.solve is None:
        return
    reasoning, answer = call_solve(task, read_scenario(task, scenario_json))
    outcome = decide_text(task, scenario_json, level, f"{reasoning}\n</think>\n{spell_answer(task.form, answer)}")
    if "</think>" in reasoning:
        yield "solve: its reasoning holds </think>, which would end it there"
    elif not isinstance(outcome, Record):
        findings = "; ".join(outcome.findings)
        yield f"solve: its own answer is not accepted, it ends {end_of(outcome)}: {findings}"
    elif task.grammar is not None and allows(task.grammar, answer) is False:
        yield f"solve: a teacher held to the answer's grammar cannot write its answer: {answer[:300]}"


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
