"""A watch over a run's first rows: where all of them fail for one reason that no teacher can mend, the run stops."""

from dataclasses import dataclass, field

from factory.errors import TaskError
from factory.records import Outcome, Rejection

FIRST_ROWS = 50
REFUSALS = ("refused_by_engine", "refused_by_template", "prompt_too_long")  # of the engine, whatever is asked


@dataclass(slots=True)
class Watch:
    """In doubt while every row so far has failed for the one reason; a row that ends otherwise ends the watch.

    Nothing of them is committed while in doubt, so a task that is mended can begin again in the same directory; not so
    where another teacher's rows are there already.
    """

    in_doubt: bool
    first: Rejection | None = field(default=None)
    seen: int = 0

    def saw(self, outcome: Outcome) -> None:
        """Look at one decided row. Raises TaskError after FIRST_ROWS of them."""
        if not self.in_doubt:
            return
        self.first = self.first or (outcome if isinstance(outcome, Rejection) else None)
        self.in_doubt = isinstance(outcome, Rejection) and is_hopeless(outcome) and self._is_the_same(outcome)
        self.seen += 1
        if self.in_doubt and self.seen >= FIRST_ROWS:
            assert self.first is not None
            raise TaskError(
                f"{describe_failure(self.first, self.seen)}; none of them was committed, mend it and run again"
            )

    def _is_the_same(self, outcome: Rejection) -> bool:
        return self.first is not None and (outcome.stage, outcome.reason) == (self.first.stage, self.first.reason)


def is_hopeless(rejection: Rejection) -> bool:
    """Whether the task, the job or the engine's refusal is to blame, not what the teacher wrote."""
    if rejection.stage == "signals":  # the teacher's numbers
        return False
    return rejection.kind == "error" or rejection.stage == "prompt" or rejection.reason in REFUSALS


def describe_failure(rejection: Rejection, rows: int) -> str:
    """`the first 50 rows all end as prompt/sample_raised (task ...): why`."""
    why = rejection.findings[0] if rejection.findings else "no detail"
    where = f"task {rejection.prompt.task!r}, stage {rejection.stage}, reason {rejection.reason}"
    return f"the first {rows} rows all fail for one reason ({where}): {why}"
