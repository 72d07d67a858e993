"""A reward: 1 where a task's own check finds nothing in an answer, for reinforcement learning with other programs.

An answer is read as a run reads its teacher's, so what a run would accept is what is rewarded: JSON bare or inside one
code fence, no key twice, strict types; a free text without the white space around it.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from factory.errors import TaskError
from factory.quality.parse import ParseError, parse_answer, read_text
from factory.tasks.calls import call_check, read_answer, read_scenario
from factory.tasks.tasks import Task, load_task


@lru_cache(maxsize=64)
def _open_task(root: Path, name: str) -> Task:
    task, problems = load_task(root, name)
    if task is None:
        raise TaskError(f"{root}: {'; '.join(problems)}")
    return task


def score(root: Path, name: str, text: str, scenario: str, end: str = "", endings: Sequence[str] = ()) -> float:
    """1.0 for a right completion, else 0.0.

    `root` has the task in `prompts/` and `schemas/`, `scenario` is JSON as a row keeps it. What stands before the last
    `end` is reasoning; of `endings`, texts of tokens that end a turn, one is taken off. Raises TaskError for a task
    that is broken, TaskFault for one whose code fails.
    """
    task = _open_task(root, name)
    text = (text.rpartition(end)[2] if end else text).strip()
    ending = next((ending for ending in endings if ending and text.endswith(ending)), "")
    text = text.removesuffix(ending)
    try:
        answer = read_answer(task, read_text(text) if task.form == "text" else parse_answer(text))
    except (ParseError, ValidationError):
        return 0.0
    return 0.0 if call_check(task, read_scenario(task, scenario), answer) else 1.0
