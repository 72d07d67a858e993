"""Golden lines: what a teacher might write, as a task's author imagines it, and what must become of it.

They pin a task's check and schema: each line goes through the parsing and validation of a real row.
"""

from typing import Any

import numpy as np
from pydantic import ValidationError

from factory.errors import nearest
from factory.job.config import describe_problems
from factory.quality.parse import parse
from factory.quality.validate import Gate, validate
from factory.records import Form, Generation, Outcome, Prompt, Record, Rejection, Sampling
from factory.tasks.calls import call_sample, dump_scenario
from factory.tasks.faults import TaskFault
from factory.tasks.golden_lines import END, FILE, GoldenLine, read_lines
from factory.tasks.tasks import Task
from factory.texts.calls import read_calls


def _ending(outcome: str, stage: str | None, reason: str | None) -> str:
    return f"{outcome} at {stage} as {reason}" if stage else outcome


def said_of(line: GoldenLine) -> str:
    """How a line says that it ends."""
    return _ending(line.outcome, line.stage, line.reason)


def try_golden(task: Task) -> list[str]:
    """A problem for each golden line that is broken or does not end as it says; none where there is no file."""
    path = task.folder / FILE
    if not path.exists():
        return []
    return [f"{path}:{number}: {told}" for number, value in read_lines(path) if (told := _try_line(task, value))]


def count_golden(task: Task) -> int:
    return sum(1 for _ in read_lines(task.folder / FILE)) if (task.folder / FILE).exists() else 0


def _try_line(task: Task, value: Any) -> str | None:
    if isinstance(value, Exception):
        return f"not JSON: {value}"
    try:
        line = GoldenLine.model_validate(value)
    except ValidationError as error:
        return describe_problems(error, GoldenLine)
    if line.level not in task.levels:
        return f"level: no level {line.level!r} (has: {', '.join(task.levels)}){nearest(line.level, task.levels)}"
    if task.sample is None:
        return "a task without sample() has no seeds to draw golden scenarios from; remove the file"
    try:
        outcome = decide_line(task, line)
    except TaskFault as fault:
        return f"case {line.case!r}: {fault.reason}: {fault}"
    got = end_of(outcome)
    if got == said_of(line):
        return None
    why = f" ({outcome.findings[0]})" if outcome.findings else ""
    return f"case {line.case!r}: says {said_of(line)}, ends {got}{why}"


def decide_line(task: Task, line: GoldenLine) -> Outcome:
    """What becomes of a golden text. Raises TaskFault where its scenario cannot be drawn."""
    scenario = dump_scenario(task, call_sample(task, line.seed, line.level))
    return decide_text(task, scenario, line.level, line.text)


def decide_text(task: Task, scenario_json: str, level: str, text: str) -> Outcome:
    """What becomes of a text that a reasoning teacher wrote for a scenario."""
    prompt = Prompt("golden", 0, 0, task.name, level, (), scenario_json, 0, Sampling(), form=task.form)
    generation = as_generation(text, task.form)
    answer = parse(prompt, generation)
    return answer if isinstance(answer, Rejection) else validate(Gate(task, check=True), prompt, generation, answer)


def end_of(outcome: Outcome) -> str:
    if isinstance(outcome, Record):
        return "accepted"
    return _ending("rejected" if outcome.kind == "rejected" else "an error", outcome.stage, outcome.reason)


def as_generation(text: str, form: Form = "json") -> Generation:
    """What a reasoning teacher's text is to the factory: all before the first </think> is reasoning.

    Calls are spelt as in `factory.texts.calls`, whatever the format of the model that will be asked.
    """
    reasoning, closed, answer = text.partition(END)
    tokens = len(text.encode("utf-8", "replace"))
    content, calls = read_calls(answer) if form == "calls" else ("", ())
    return Generation(
        prompt_id="golden",
        attempt=0,
        text=text,
        reasoning=reasoning,
        answer_text=answer,
        prompt_token_ids=np.zeros(1, np.int32),
        completion_token_ids=np.zeros(tokens, np.int32),
        answer_start=tokens - len(answer.encode("utf-8", "replace")) if closed else tokens,
        finish_reason="stop",
        content=content,
        calls=calls,
    )
