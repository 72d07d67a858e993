"""A watch over each task's first rows: where all fail for one reason that no teacher can mend, the run stops."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from factory.errors import TaskError
from factory.records import Outcome, Rejection

FIRST_ROWS = 50  # of a task
REFUSALS = ("refused_by_engine", "refused_by_template", "prompt_too_long")  # of the engine, whatever is asked


@dataclass(slots=True)
class Doubt:
    """A task whose rows have all failed for one reason so far: the first of them, and how many."""

    first: Rejection
    seen: int = 0

    @property
    def cause(self) -> tuple[str, str]:
        return self.first.stage, self.first.reason


class Watch:
    """A task is in doubt while every row of it has failed for the one reason; a row that ends otherwise ends its watch.

    While a task is in doubt nothing need be committed, so that a task that is mended can begin again in the same
    directory. `trusted` are tasks that are watched no more.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self.trusted = set(trusted)
        self.doubts: dict[str, Doubt] = {}

    @property
    def in_doubt(self) -> bool:
        return bool(self.doubts)

    def saw(self, outcome: Outcome, committed: int = 0) -> None:
        """Look at one decided row, of which so many are committed. Raises TaskError after FIRST_ROWS of a task."""
        task = outcome.prompt.task
        if task in self.trusted:
            return
        doubt = self.doubts.get(task)
        if not isinstance(outcome, Rejection) or not is_hopeless(outcome) or _differs(doubt, outcome):
            self.trusted.add(task)
            self.doubts.pop(task, None)
            return
        doubt = self.doubts.setdefault(task, Doubt(outcome))
        doubt.seen += 1
        if doubt.seen >= FIRST_ROWS:
            told = f"{committed:,} rows are committed; mend it, and begin in another out where that changes the task"
            step = told if committed else "nothing was committed, mend it and run again"
            raise TaskError(f"{describe_failure(doubt.first, f'the first {doubt.seen}')}; {step}")

    def tell_failed(self, count: Callable[[], Mapping[str, int]], tell: Callable[..., None]) -> None:
        """An event for each task whose every planned row has failed so; those are too few to stop a run.

        `count` gives the planned rows by task; it is asked only where a task is in doubt.
        """
        planned = count() if self.doubts else {}
        for task, doubt in self.doubts.items():
            if doubt.seen == planned.get(task):
                told = describe_failure(doubt.first, f"all {doubt.seen}")
                tell("task_failed", told, task=task, reason=doubt.first.reason)


def _differs(doubt: Doubt | None, outcome: Rejection) -> bool:
    return doubt is not None and doubt.cause != (outcome.stage, outcome.reason)


def is_hopeless(rejection: Rejection) -> bool:
    """Whether the task, the job or the engine's refusal is to blame, not what the teacher wrote."""
    if rejection.stage == "signals":  # the teacher's numbers
        return False
    return rejection.kind == "error" or rejection.stage == "prompt" or rejection.reason in REFUSALS


def describe_failure(rejection: Rejection, rows: str) -> str:
    """`the first 50 rows of task 'adding' fail for one reason (stage prompt, reason sample_raised): why`."""
    why = rejection.findings[0] if rejection.findings else "no detail"
    where = f"stage {rejection.stage}, reason {rejection.reason}"
    return f"{rows} rows of task {rejection.prompt.task!r} fail for one reason ({where}): {why}"
