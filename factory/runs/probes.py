"""Probes: a few of the prompts that a job will ask, made before an engine starts, for a model's chat template and
window to be tried on.

Of every kind that the job has, since a template may take one sequence of roles and not another: the tasks' own, what
asks for a repaired answer, and what a judge is asked. The judge's stand over made-up answers.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from factory.hashing import derive_seed
from factory.records import PlannedRow, Prompt
from factory.runs.prepare import Prepared
from factory.tasks.calls import call_solve, invent_answer, read_scenario
from factory.tasks.faults import TaskFault
from factory.tasks.tasks import Task

PROBES_PER_TASK = 8
REPAIRED = (
    {"role": "assistant", "content": "{}"},
    "That answer was not accepted.",
)  # the texts of a probe: only the roles count


def teacher_probes(prepared: Prepared) -> list[Prompt]:
    """A few prompts of each task, and of what else the same teacher is asked; of transcripts those that the model's
    chat template has to render."""
    if prepared.transcripts is not None:
        prompts = _render_some(prepared, prepared.plan.rows(0))
        return [prompt for prompt in prompts if prompt.transcript is not None and prompt.transcript.turn]
    found = _task_probes(prepared)
    validation, judge = prepared.job.validation, prepared.job.judge
    if validation.retries and validation.retry == "repair":
        found += [prompt.repair(*REPAIRED) for prompt in found]
    if judge is not None and judge.teacher is None:
        found += judge_probes(prepared)
    return found


def judge_probes(prepared: Prepared) -> list[Prompt]:
    """A few of the questions that each judge of the job will ask."""
    asked = (prompt for prompt in _task_probes(prepared) if prompt.task in prepared.judges)
    return [question for prompt in asked if (question := _ask_judge(prepared, prompt)) is not None]


def _task_probes(prepared: Prepared) -> list[Prompt]:
    found: list[Prompt] = []
    for name in prepared.tasks:
        rows = (row for row in prepared.plan.rows(0) if row.task == name and not row.sample)
        found += _render_some(prepared, rows)
    return found


def _render_some(prepared: Prepared, rows: Iterable[PlannedRow]) -> Iterator[Prompt]:
    prompts = map(prepared.render, islice(rows, PROBES_PER_TASK))
    return (prompt for prompt in prompts if isinstance(prompt, Prompt))


def _ask_judge(prepared: Prepared, prompt: Prompt) -> Prompt | None:
    """What a judge would be asked about an answer to a prompt; None where its rubric cannot be filled: that is a row's
    error when it comes to it."""
    task = prepared.tasks[prompt.task]
    try:
        reasoning, answer = _make_answer(task, prompt)
        return prepared.judges[task.name].question(prompt, reasoning, answer)
    except TaskFault:
        return None


def _make_answer(task: Task, prompt: Prompt) -> tuple[str, str]:
    """Reasoning and answer of the reference solution where there is one, else an answer that fits the form."""
    if task.solve is not None:
        try:
            return call_solve(task, read_scenario(task, prompt.scenario))
        except TaskFault:  # some scenarios have no solution
            pass
    return "", invent_answer(task, derive_seed(prompt.seed))
