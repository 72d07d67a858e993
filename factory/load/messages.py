"""Messages: reasoning put back inside an assistant's content, for templates that know no `reasoning_content`."""

from dataclasses import dataclass, field, replace
from typing import Any

from factory.dataset.rows import Row

Markers = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Voices:
    """What a dataset says of its teachers, by name, "" where there is one: whose vocabulary its ids are of, and, where
    the reasoning goes into the content, the texts around it."""

    tokenizers: dict[str, str] = field(default_factory=dict)
    markers: dict[str, Markers] | None = None
    # whether rows have the student's prompt, where they have another one for it
    students: bool = False

    def tell(self, row: Row) -> Row:
        """A row with what its teacher adds to it."""
        name = row.columns.get("teacher") or ""
        row = replace(row, tokenizer=self.tokenizers.get(name, ""))
        row = row.as_student() if self.students else row
        return row if self.markers is None else inline_reasoning(row, self.markers[name])


TURNS = ("completion", "chosen", "rejected")  # the columns that hold an assistant's turn


def inline_reasoning(row: Row, markers: Markers) -> Row:
    """A row whose answers carry their reasoning in the content, between the teacher's own markers."""
    turns = {name: [_inline(turn, markers) for turn in row[name]] for name in TURNS if name in row.columns}
    return replace(row, columns=row.columns | turns)


def _inline(turn: dict[str, Any], markers: Markers) -> dict[str, Any]:
    reasoning, rest = turn.get("reasoning_content"), {k: v for k, v in turn.items() if k != "reasoning_content"}
    if reasoning is None:
        return rest
    return rest | {"content": f"{markers[0]}{reasoning}{markers[1]}{turn['content'] or ''}"}
