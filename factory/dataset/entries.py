"""Entries: what a ledger's line tells of a committed shard, and the sums over all of them.

Every planned row of a shard ends as accepted, rejected or an error, by task and level and by reason.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from factory.dataset.shards import ShardFile
from factory.records import Outcome, Record


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One committed shard: accepted + rejected + errors = planned. Its field names are the keys of its line."""

    shard: int
    planned: int
    accepted: int
    rejected: int
    errors: int
    # By "stage/reason"; together rejected + errors.
    reasons: dict[str, int]
    # [accepted, rejected, errors] by "task/level".
    cells: dict[str, list[int]]
    # Of every row with a generation, accepted or not, of its last attempt.
    prompt_tokens: int
    completion_tokens: int
    # What was replaced in its scenarios, by kind of personal data.
    scrubbed: dict[str, int]
    # One for each config of the dataset, those without rows too.
    files: tuple[ShardFile, ...]

    def counts(self) -> dict[str, Any]:
        """What became of the shard's rows, by name."""
        return {name: getattr(self, name) for name in ("shard", "planned", "accepted", "rejected", "errors")}


@dataclass(slots=True)
class Totals:
    """Sums over committed shards."""

    # Of the plan so far, not of what is committed.
    planned: int = 0
    shards: int = 0
    # By task {"accepted": rows wanted, "rows": rows to spend on them at most}, of tasks that want so many.
    goals: dict[str, dict[str, int]] = field(default_factory=dict)
    # Nothing more is planned for the goals: they are reached, or what may be spent on them is spent.
    ended: bool = True
    # "2/8" of a directory that holds the second of eight parts of a plan; `planned` and `shards` are its own.
    part: str = ""
    committed_shards: int = 0
    accepted: int = 0
    rejected: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bytes: int = 0
    pairs: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    scrubbed: Counter[str] = field(default_factory=Counter)
    cells: dict[str, list[int]] = field(default_factory=dict)
    # [accepted, rejected, errors] by teacher, where a dataset has several.
    teachers: dict[str, list[int]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.accepted + self.rejected + self.errors

    @property
    def left(self) -> int:
        return self.planned - self.done

    @property
    def complete(self) -> bool:
        """Whether every planned row is committed and no more will be planned for this job; a part is never a whole."""
        return self.left == 0 and self.ended and not self.part

    def describe_rest(self) -> str:
        """What an unfinished dataset lacks."""
        if self.left:
            part = f" of part {self.part}" if self.part else ""
            return f"unfinished: {self.left:,} of {self.planned:,} rows{part} are still to come"
        if self.part:
            return f"only part {self.part} of a plan: `factory merge` joins all of them"
        return f"unfinished: rows of {', '.join(task for task, *_ in self.short())} are still wanting"

    def plan(self, plan: Mapping[str, Any]) -> None:
        """Take over what line 1 says."""
        number, of = plan.get("part", (1, 1))
        self.planned, self.shards = plan["planned"], len(range(number - 1, plan["shards"], of))
        self.part = f"{number}/{of}" if "part" in plan else ""
        self.goals = plan.get("goals", {})
        self.ended = not self.goals or plan.get("ended", False)

    def accepted_of(self, task: str) -> int:
        """Accepted rows of a task."""
        return sum(counts[0] for cell, counts in self.cells.items() if cell.partition("/")[0] == task)

    def short(self) -> Iterator[tuple[str, int, int]]:
        """Tasks that have fewer accepted rows than they want: name, rows that are there, rows wanted."""
        found = ((task, self.accepted_of(task), goal["accepted"]) for task, goal in sorted(self.goals.items()))
        return ((task, rows, wanted) for task, rows, wanted in found if rows < wanted)

    def ranked_reasons(self) -> list[tuple[str, int]]:
        """Why rows were not accepted, the commonest reason first."""
        return sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))

    def figures(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        # not dataclasses.asdict: it makes counters of pairs anew, which turns (name, count) into a key that is counted
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"reasons": dict(self.reasons), "scrubbed": dict(self.scrubbed), "left": self.left}

    def add(self, entry: ShardEntry, teacher: str = "") -> None:
        self.committed_shards += 1
        self.accepted += entry.accepted
        self.rejected += entry.rejected
        self.errors += entry.errors
        self.prompt_tokens += entry.prompt_tokens
        self.completion_tokens += entry.completion_tokens
        self.bytes += sum(file.bytes for file in entry.files)
        self.pairs += sum(file.rows for file in entry.files if file.path.startswith("preferences/"))
        self.reasons.update(entry.reasons)
        self.scrubbed.update(entry.scrubbed)
        for cell, counts in entry.cells.items():
            _add(self.cells, cell, counts)
        if teacher:
            _add(self.teachers, teacher, [entry.accepted, entry.rejected, entry.errors])


def _add(sums: dict[str, list[int]], name: str, counts: list[int]) -> None:
    sums[name] = [a + b for a, b in zip(sums.get(name, [0, 0, 0]), counts, strict=True)]


def summarize_shard(
    shard: int, outcomes: Sequence[Outcome], files: Sequence[ShardFile], scrubbed: Mapping[str, int] | None = None
) -> ShardEntry:
    """The ledger's line for a finished shard; `scrubbed` counts what was replaced in the scenarios of its prompts."""
    kinds = [_kind(outcome) for outcome in outcomes]
    cells: dict[str, list[int]] = {}
    for outcome, kind in zip(outcomes, kinds, strict=True):
        counts = cells.setdefault(f"{outcome.prompt.task}/{outcome.prompt.level}", [0, 0, 0])
        counts[kind] += 1
    generations = [outcome.generation for outcome in outcomes if outcome.generation is not None]
    reasons = Counter(f"{o.stage}/{o.reason}" for o in outcomes if not isinstance(o, Record))
    return ShardEntry(
        shard=shard,
        planned=len(outcomes),
        accepted=kinds.count(0),
        rejected=kinds.count(1),
        errors=kinds.count(2),
        reasons=dict(sorted(reasons.items())),
        cells=dict(sorted(cells.items())),
        scrubbed=dict(sorted((scrubbed or {}).items())),
        prompt_tokens=sum(len(g.prompt_token_ids) for g in generations),
        completion_tokens=sum(len(g.completion_token_ids) for g in generations),
        files=tuple(files),
    )


def _kind(outcome: Outcome) -> int:
    return 0 if isinstance(outcome, Record) else 1 if outcome.kind == "rejected" else 2
