"""Merge: the parts of a plan become the dataset that one run would have made, byte for byte.

    checked     every part once, all of one job, each complete, every file whole
    decided     in the order of the plan, what only all rows together can tell: which are there twice
    joined      a file that stays as it is becomes a link (or a copy), a shard that loses rows is written anew

All of it in a directory beside `out`, which takes its name at the end: `out` is whole, or not there. Parts stay as they
are.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from factory.checks.fidelity import check_run, require_passed
from factory.checks.verify import check_files, check_sources
from factory.dataset.entries import ShardEntry, Totals
from factory.dataset.history import HISTORY
from factory.dataset.late import Turned, is_late, read_forms, turn_down, without_late
from factory.dataset.ledger import LOCK, Ledger, hold, read_ledger, write_ledger
from factory.dataset.manifest import (
    COPIES,
    MANIFEST,
    PUBLISH,
    list_changes,
    of_teacher,
    read_manifest,
    read_signals,
    require_plain_path,
    run_command,
    sealed_text,
    write_atomically,
)
from factory.dataset.shards import sync_directory
from factory.dataset.stages import current_summary
from factory.errors import DatasetError
from factory.job.config import describe_problems, read_toml
from factory.job.job import Job
from factory.publish.card import save_card
from factory.quality.duplicates import Duplicates, stored_rows
from factory.runs.admission import seeks_duplicates
from factory.runs.desk import JUDGE_FOLDER
from factory.runs.parts import PART
from factory.teachers.remote.purse import usage_path
from factory.terminal import say

FIDELITY = "fidelity"  # of the files of one part: the whole has its own


@dataclass(frozen=True, slots=True)
class Made:
    """One part as it lies there."""

    out: Path
    ledger: Ledger
    manifest: dict[str, Any]


def merge(out: Path, parts: Sequence[Path], copy: bool = False) -> Totals:
    """Join all parts of a plan into a new dataset `out`; its totals.

    Raises DatasetError where a part is missing, unfinished, damaged or of something else, before anything is written.
    FidelityError where the signals of the whole do not pass their check: it is there then, as after a run.
    """
    require_plain_path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out}: is there already; choose a new directory, parts are joined whole or not at all")
    made = _open_parts(parts)
    for part in made:
        _require_whole(part)
    stage = out.with_name(f"{out.name}.merging")
    job = _read_job(made[0].out)
    _clear(stage)
    with hold(stage):
        _join(stage, made, job, copy)
        ledger = read_ledger(stage)
        save_card(ledger, current_summary(ledger))
        if (told := check_run(ledger, job)) is not None:
            save_card(ledger, current_summary(ledger))
            say(told, sys.stderr)
        sync_directory(stage)
        stage.rename(out)
        sync_directory(out.absolute().parent)
    require_passed(out)
    return ledger.totals


def _clear(stage: Path) -> None:
    """Remove what a merge left behind that was killed."""
    if stage.exists():
        with hold(stage):  # not while another is at work there
            for path in stage.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _open_parts(paths: Sequence[Path]) -> list[Made]:
    """The parts in their order. Raises DatasetError where they are not all those of one plan."""
    found: dict[int, Made] = {}
    first: Made | None = None
    for path in paths:
        made = Made(path, read_ledger(path), read_manifest(path))
        part = made.ledger.plan.get(PART)
        if part is None:
            raise DatasetError(
                f"{path}: is a dataset of its own and no part of a plan; only what --part made is joined"
            )
        first = first or made
        _require_same_plan(first, made)
        if part[0] in found:
            raise DatasetError(f"{path}: is part {part[0]}/{part[1]}, as {found[part[0]].out} is; give each part once")
        found[part[0]] = made
    assert first is not None  # the command line wants one at least
    of = first.ledger.plan[PART][1]
    missing = [str(number) for number in range(1, of + 1) if number not in found]
    if missing:
        told = ", ".join(missing[:20]) + (" and more" if len(missing) > 20 else "")
        raise DatasetError(f"part {told} of {of} is missing; make it with `factory run JOB --part {missing[0]}/{of}`")
    return [found[number] for number in sorted(found)]


def _require_same_plan(first: Made, made: Made) -> None:
    plans = [
        {key: value for key, value in one.ledger.plan.items() if key not in (PART, "planned")}
        | {"of": one.ledger.plan[PART][1]}
        for one in (first, made)
    ]
    changes = list_changes(*({k: v for k, v in one.manifest.items() if k != FIDELITY} for one in (first, made)))
    changes += [] if plans[0] == plans[1] else [f"plan: {json.dumps(plans[0])[:80]} is not {json.dumps(plans[1])[:80]}"]
    if first.manifest.get(PUBLISH) != made.manifest.get(PUBLISH):
        changes.append("publish: says something else")
    if changes:
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise DatasetError(
            f"{made.out}: belongs to another plan than {first.out}: {changes[0]}{more}; merge parts of one"
        )


def _require_whole(made: Made) -> None:
    """Raise DatasetError where rows of a part are missing, or any of its files is not what was committed."""
    totals, again = made.ledger.totals, run_command(made.manifest)
    if totals.left:
        raise DatasetError(f"{made.out}: {totals.describe_rest()}; the same `{again} --part {totals.part}` goes on")
    require_passed(made.out)
    for _, entry in sorted(made.ledger.entries.items()):
        if damage := next(check_files(made.out, entry), None):
            raise DatasetError(f"{made.out}: {damage}; `{again} JOB --part {totals.part} --repair` makes it again")
    if damage := next(check_sources(made.out, made.manifest), None):
        raise DatasetError(f"{made.out}: {damage}")


def _read_job(out: Path) -> Job:
    path = out / "job.toml"
    try:
        return Job.model_validate(read_toml(path, "gone from the part; the same `factory run --part` writes it again"))
    except ValidationError as error:
        raise DatasetError(f"{path}: {describe_problems(error, Job)}") from None


def _join(stage: Path, made: list[Made], job: Job, copy: bool) -> None:
    """Everything of the dataset but its card."""
    manifest: dict[str, Any] = {}
    for part in made:
        # of several teachers a part knows those that it had rows of
        manifest |= {name: value for name, value in part.manifest.items() if name.partition(".")[0] != FIDELITY}
    first = made[0]
    # each part has copies of its own, and comments in them may differ
    manifest = manifest | {COPIES: first.manifest[COPIES]}
    shutil.copytree(first.out / "templates", stage / "templates")
    shutil.copyfile(first.out / "job.toml", stage / "job.toml")
    entries = {entry.shard: entry for entry in _join_shards(stage, made, job, manifest, copy)}
    plan = {key: value for key, value in first.ledger.plan.items() if key != PART}
    plan |= {"planned": sum(part.ledger.plan["planned"] for part in made)}
    assert sorted(entries) == list(range(plan["shards"]))
    write_atomically(stage / MANIFEST, sealed_text(manifest).encode())
    write_ledger(stage, plan, entries)
    (stage / HISTORY).write_bytes(b"".join(_read(part.out / HISTORY) for part in made))
    for folder in ("", JUDGE_FOLDER):
        lines = list(_join_accounts(usage_path(part.out / folder) for part in made))
        if lines:
            usage_path(stage / folder).write_text("".join(lines), encoding="utf-8")


def _join_shards(stage: Path, made: list[Made], job: Job, manifest: dict[str, Any], copy: bool) -> Iterator[ShardEntry]:
    """The entries of all shards, in order, each with its files in place."""
    duplicates = Duplicates(job.filters) if seeks_duplicates(job.filters) else None
    shards = made[0].ledger.plan["shards"]
    for shard in range(shards):
        part = made[shard % len(made)]
        entry = part.ledger.entries[shard]
        turned = {} if duplicates is None else find_turned(duplicates, part.out, shard)
        if turned:
            signals = read_signals(of_teacher(manifest, part.ledger.teacher_of(shard)))
            assert signals is not None  # there are rows, so there was a teacher
            yield turn_down(part.out, entry, turned, signals, stage)
            continue
        for file in entry.files:
            if not is_late(file):
                _place(part.out / file.path, stage / file.path, copy)
        yield without_late(entry)


def find_turned(duplicates: Duplicates, out: Path, shard: int) -> Turned:
    """The accepted rows of a shard that rows before them are like, and why."""
    found = ((row.id, duplicates.find(row)) for row in stored_rows(out, shard, read_forms(out, shard)))
    return {name: ("filter", why[0], (why[1],)) for name, why in found if why is not None}


def _place(source: Path, target: Path, copy: bool) -> None:
    target.parent.mkdir(exist_ok=True)
    if not copy:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())


def _read(path: Path) -> bytes:
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]  # without a line that a kill has torn


def _join_accounts(paths: Iterator[Path]) -> Iterator[str]:
    """The lines of all accounts; requests are numbered on, so that each end stays that of its own beginning."""
    first = 0
    for path in paths:
        after = first
        for text in _read(path).splitlines():
            line = json.loads(text)
            for key in ("asked", "used", "void"):
                if key in line:
                    line[key] += first
                    after = max(after, line[key] + 1)
            yield json.dumps(line) + "\n"
        first = after
