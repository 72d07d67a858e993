"""Parts: one plan, made by several machines that know nothing of each other, each in a directory of its own.

Part i of n holds every nth shard of the plan, from the ith on. Shards keep their numbers, so the files of all parts lie
beside each other when `merge` joins them. What only all rows together can decide waits until then.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.dataset.bucket import Url
from factory.dataset.ledger import LEDGER, is_unspent, planned_shards, scan_ledger
from factory.errors import DatasetError, JobError
from factory.job.job import Job
from factory.runs.goals import read_goals
from factory.runs.prepare import Prepared

PART = "part"  # the key in a ledger's plan


@dataclass(frozen=True, slots=True)
class Part:
    """The `number`th of `of` parts of a plan, from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def read_part(text: str) -> Part:
    """`2/8` as it is typed. Raises ValueError."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ValueError(f"need i/n with i from 1 to n, such as 2/8, got {text!r}")
    return Part(int(number), int(of))


def part_path(out: "Path | Url", part: Part) -> "Path | Url":
    """Where a part goes when nobody says where: beside the whole."""
    return out.with_name(f"{out.name}-part-{part.number:05d}-of-{part.of:05d}")


def take_part(prepared: Prepared, part: Part) -> Prepared:
    """The job as one of its parts. Raises JobError where it cannot be made in parts."""
    require_divisible(prepared.job, "--part")
    wanting = [task.name for task in prepared.job.tasks if task.accepted is not None]
    if wanting:
        raise JobError(
            f"--part {part}: tasks.{wanting[0]}.accepted: how many prompts it takes is known when all rows are in, and "
            f"no part knows the others'; say count, or run it on one machine or with --ray"
        )
    if part.of > prepared.plan.shards:
        raise JobError(
            f"--part {part}: the plan has {prepared.plan.shards:,} shards, so some parts would have none; "
            f"make at most {prepared.plan.shards:,} parts, or shard_rows smaller"
        )
    return replace(prepared, part=(part.number, part.of))


def require_divisible(job: Job, option: str) -> None:
    """Raise JobError where a bound of the job is one over all rows, which machines apart could not keep."""
    teachers = {"teacher": job.teacher} | {f"teachers.{name}": teacher for name, teacher in job.teachers.items()}
    if job.judge is not None and job.judge.teacher is not None:
        teachers["judge.teacher"] = job.judge.teacher
    for key, teacher in teachers.items():
        if teacher.max_cost is not None:
            raise JobError(
                f"{option}: {key}.max_cost bounds what all rows cost, and each machine would spend as much; leave it "
                f"out and bound the key at its provider, or run the job on one machine"
            )


def require_same_part(prepared: Prepared, out: Path) -> None:
    """Raise DatasetError where a directory was begun as another part of a plan, or as the whole of one."""
    if not (out / LEDGER).exists():
        return
    plan, entries, complaints = scan_ledger(out)
    # what has no row yet may be begun anew
    if plan is None or (not entries and not complaints and is_unspent(out)):
        return
    before, now = plan.get(PART), None if prepared.part is None else list(prepared.part)
    if before != now:
        told = [f"part {p[0]}/{p[1]} of a plan" if p else "the whole plan" for p in (before, now)]
        step = f"--part {before[0]}/{before[1]}" if before else "no --part"
        raise DatasetError(
            f"{out}: holds {told[0]}, asked for is {told[1]}; run it with {step}, or choose another `out`"
        )
    if now is not None and prepared.begun is not None and prepared.begun != read_goals(prepared.job):
        raise DatasetError(
            f"{out}: part {now[0]}/{now[1]} was planned for other counts, and a part does not grow; finish all "
            f"parts as they were begun, merge them, and grow the whole"
        )


def describe_part(prepared: Prepared, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan of a whole job as its part has it in line 1 of the ledger."""
    if prepared.part is None:
        return plan
    part = plan | {PART: list(prepared.part)}
    return part | {"planned": sum(map(prepared.plan.shard_size, planned_shards(part)))}
