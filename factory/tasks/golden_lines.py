"""The lines of a task's `golden.jsonl`: what a teacher might write, as its author sees it, and what must become of it.

What becomes of them is tried in `factory.quality.golden`; accepted ones may be shown in prompts, see
`factory.tasks.few_shot`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from factory.job.config import Config
from factory.tasks.keys import read_json

FILE = "golden.jsonl"
END = "</think>"  # all before the first one is reasoning, whatever markers the model that will be asked has


class GoldenLine(Config):
    """One line: the scenario that `seed` draws at `level`, a teacher's whole `text`, and how it must end."""

    case: Annotated[str, Field(min_length=1)]
    level: str
    seed: int
    text: str
    outcome: Literal["accepted", "rejected"]
    stage: Literal["parse", "schema", "check"] | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _ends_one_way(self) -> "GoldenLine":
        if (self.outcome == "rejected") != (self.stage is not None and self.reason is not None):
            raise ValueError("a rejected line has a stage and a reason, an accepted one has neither")
        return self


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line; an Exception in place of the value of one that is no JSON, or has a key twice."""
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        yield 1, error
        return
    for number, text in enumerate(texts, 1):
        if text.strip():
            try:
                value, doubled = read_json(text)
                yield number, ValueError(doubled) if doubled else value
            except (ValueError, RecursionError) as error:
                yield number, error


def accepted_lines(path: Path) -> tuple[GoldenLine, ...]:
    """Those that must be accepted, in the file's order; a broken one is left out, and told where they are tried."""
    found: list[GoldenLine] = []
    for _, value in read_lines(path) if path.exists() else ():
        try:
            line = GoldenLine.model_validate(value)
        except ValidationError:
            continue
        found += [line] if line.outcome == "accepted" else []
    return tuple(found)
