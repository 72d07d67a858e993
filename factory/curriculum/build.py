"""Curriculum: a complete dataset's rows as stages from easy to hard, with splits and hand-off labels.

    columns -> groups -> splits -> stages -> files -> curriculum.json -> card

A few numbers of every row are held in memory; texts and token ids pass through once; signals stay where they are.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from factory.checks.verify import check_sources
from factory.curriculum.config import EASIER, CurriculumConfig, SplitsConfig
from factory.curriculum.handoff import (
    OVER_BUDGET,
    RIGHT_BUT_LEFT_OUT,
    Attempts,
    Prompts,
    explain_prompts,
    explain_rows,
    was_answered,
)
from factory.curriculum.mixture import (
    Candidates,
    Stage,
    describe_counts,
    fill_stage,
    plan_cuts,
    require_tasks,
)
from factory.curriculum.ranking import COUNTS, MEASURES, Columns, read_columns, value_rows
from factory.curriculum.regroup import Move, regroup
from factory.curriculum.splits import Links, assign_splits
from factory.dataset.columns import STUDENT_COLUMNS
from factory.dataset.ledger import Ledger, hold, read_ledger
from factory.dataset.manifest import read_manifest, read_signals, run_command, write_atomically
from factory.dataset.shards import ShardFile, shard_path, sync_directory
from factory.dataset.sound import require_intact
from factory.dataset.stages import FOLDER, SPLITS, SUMMARY, dataset_state, summary_text
from factory.errors import DatasetError, JobError
from factory.publish.card import save_card
from factory.signals import Array

BIG_GROUP: Final = 0.25  # share of the rows from which on one group makes the splits uneven


@dataclass(frozen=True, slots=True)
class Decisions:
    """All that a curriculum is, before any file is written. R counts all rows, accepted ones first, A the accepted."""

    accepted: Columns
    rejected: Columns
    rows: Candidates  # the accepted rows that fit the student
    kept: Array  # which of the accepted rows these are
    value_A: Array
    reason_A: Array
    stages: list[Stage]
    prompts: Prompts
    renamed: dict[str, str]  # columns that are taken in place of others: the student's prompt
    group_R: Array
    split_R: Array
    documents: list[str]  # scenario fields that hold documents


def make_curriculum(out: Path, config: CurriculumConfig, where: str = "curriculum") -> dict[str, Any]:
    """Make or replace the curriculum of a complete dataset; returns what curriculum.json then says.

    Until all is written the former curriculum stays whole. `where` names the config in messages. Raises DatasetError
    for a dataset that is unfinished, in use or without accepted rows, JobError for a config that does not fit it.
    """
    manifest = read_manifest(out)
    with hold(out):
        ledger = read_ledger(out)
        _require_complete(ledger, manifest)
        # all that is read is proved first: stages are copies of texts
        require_intact(ledger, "data", "rejected")
        if config.by == "level":
            _require_templates(out, manifest)
        fresh = out / f".tmp-{FOLDER}"
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            decided = _decide(ledger, config, where)
            summary = _write_files(ledger, manifest, config, decided, fresh)
            # the card names no stage while there is none: a kill between these lines leaves a dataset that loads
            save_card(ledger, None)
            _install(out, fresh)
            save_card(ledger, summary)
        except OSError as error:
            raise DatasetError(f"{out}: curriculum cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return summary


def _require_complete(ledger: Ledger, manifest: dict[str, Any]) -> None:
    out, totals = ledger.out, ledger.totals
    if not totals.complete:
        told = f"{out}: {totals.describe_rest()}"
        raise DatasetError(f"{told}; let `{run_command(manifest)}` finish it first")
    if not totals.accepted:
        raise DatasetError(f"{out}: has no accepted row; `factory status {out}` tells why rows were rejected")


def _require_templates(out: Path, manifest: dict[str, Any]) -> None:
    """Raise DatasetError where the copy of a task.toml, which orders its levels, is not the one rows were made with."""
    if told := next((line for line in check_sources(out, manifest) if "/task.toml: " in line), None):
        raise DatasetError(f"{out}: {told}")


def _install(out: Path, fresh: Path) -> None:
    """Put a finished folder in the place of the former one; between the two renames there is none."""
    # a folder cannot be renamed over one that is not empty
    target, former = out / FOLDER, out / f".tmp-{FOLDER}-former"
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        target.rename(former)
    fresh.rename(target)
    sync_directory(out)
    shutil.rmtree(former, ignore_errors=True)


# --- deciding ---------------------------------------------------------------------------------------------------------


def _decide(ledger: Ledger, config: CurriculumConfig, where: str) -> Decisions:
    """Read what decides, and decide."""
    links = Links(config.splits.ignore)
    of_student = _takes_students(ledger, config, where)
    ids = STUDENT_COLUMNS["prompt_token_ids"] if of_student else "prompt_token_ids"
    accepted = read_columns(ledger, "data", ("id", "task", "level", *MEASURES), links, ids)
    rejected = read_columns(ledger, "rejected", ("kind", "stage", "reason", "pass_rate"), links)
    if strangers := sorted(links.ignore - links.ignored_fields):
        has = ", ".join(sorted(links.document_fields)) or "none"
        raise JobError(f"{where}: splits.ignore: no scenario has a text {', '.join(strangers)} (long texts: {has})")
    group_R, names = links.group()
    split_R = assign_splits(names, config.seed, config.splits.validation, config.splits.test)[group_R]
    value_A = value_rows(ledger, accepted, config, where)
    if config.formula is not None:
        accepted["difficulty"] = value_A
    # the student's limit bounds stages, not labels: a prompt is told of by all its rows
    kept = np.flatnonzero(accepted["tokens"] <= (config.student.max_tokens or np.inf))
    tasks, codes = np.unique(accepted["task"], return_inverse=True)
    rows = Candidates(
        ids=accepted["id"][kept],
        task=codes[kept],
        value=value_A[kept],
        tokens=accepted["tokens"][kept],
        split=split_R[kept],
        tasks=tuple(task.decode() for task in tasks.tolist()),
        more_is_easier=config.by in EASIER,
    )
    return Decisions(
        accepted=accepted,
        rejected=rejected,
        rows=rows,
        kept=kept,
        value_A=value_A,
        reason_A=explain_rows(accepted["pass_rate"], accepted["confidence"], config.hand_off),
        stages=_fill_stages(ledger.out, rows, config, where),
        renamed=STUDENT_COLUMNS if of_student else {},
        prompts=explain_prompts(_attempts(accepted, rejected, links.prompt_keys(), config), config.hand_off),
        group_R=group_R,
        split_R=split_R,
        documents=sorted(links.document_fields),
    )


def _fill_stages(out: Path, rows: Candidates, config: CurriculumConfig, where: str) -> list[Stage]:
    if np.isnan(rows.value).all() and len(rows.value):
        told = f"{out}: no row has a value for {'formula' if config.formula else config.by}"
        raise DatasetError(f'{told}; set another `by`, such as "tokens", in a curriculum file')
    cuts = plan_cuts(config, int(np.nanmax(rows.value, initial=0)) + 1 if config.by == "level" else 0)
    require_tasks(cuts, rows.tasks, where)
    stages = [fill_stage(cut, number, rows, config) for number, cut in enumerate(cuts, 1)]
    if not any(len(members) for stage in stages for members in stage.members.values()):
        raise DatasetError(f"{out}: no row falls into any stage; widen the stages or student.max_tokens")
    return stages


def _takes_students(ledger: Ledger, config: CurriculumConfig, where: str) -> bool:
    """Whether rows have the student's prompts. Raises JobError where they are asked for and the dataset has none."""
    signals = read_signals(read_manifest(ledger.out))
    there = signals is not None and signals.students
    if config.prompt == "student" and not there:
        raise JobError(f"{where}: prompt = 'student': no task of the dataset has a student.j2; leave it out")
    return there and config.prompt != "teacher"


def _attempts(accepted: Columns, rejected: Columns, prompt_R: Array, config: CurriculumConfig) -> Attempts:
    """All rows as what they say of their prompts."""
    ones, wrong = np.ones(len(accepted["row"]), np.bool_), np.zeros(len(rejected["row"]), np.bool_)
    fits = accepted["tokens"] <= (config.student.max_tokens or np.inf)
    return Attempts(
        prompt_R=prompt_R,
        accepted_R=np.concatenate([ones, wrong]),
        right_R=np.concatenate([ones, np.isin(rejected["stage"], RIGHT_BUT_LEFT_OUT)]),
        answered_R=np.concatenate([ones, was_answered(rejected["kind"], rejected["stage"], rejected["reason"])]),
        fits_R=np.concatenate([fits, wrong]),
        over_R=np.concatenate([~fits, rejected["reason"] == OVER_BUDGET]),
        pass_rate_R=np.concatenate([accepted["pass_rate"], rejected["pass_rate"]]),
        confidence_R=np.concatenate([accepted["confidence"], np.full(len(wrong), np.nan)]),
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_files(
    ledger: Ledger, manifest: dict[str, Any], config: CurriculumConfig, decided: Decisions, fresh: Path
) -> dict[str, Any]:
    """Write every file into a new folder, curriculum.json last; returns what that says."""
    fresh.mkdir()
    shards = sorted(ledger.entries)
    data, rejected = ([ledger.out / shard_path(folder, shard) for shard in shards] for folder in ("data", "rejected"))
    stage_moves = [move for stage in decided.stages for move in _stage_moves(stage, decided, shards)]
    prompt_moves = list(_prompt_moves(decided, shards))
    files = regroup(data, stage_moves, fresh, decided.renamed)
    files += regroup([*data, *rejected], prompt_moves, fresh, decided.renamed)
    summary = _summarize(ledger, manifest, config, decided, prompt_moves, files)
    write_atomically(fresh / SUMMARY, summary_text(summary).encode())
    return summary


def _stage_moves(stage: Stage, decided: Decisions, shards: list[int]) -> Iterator[Move]:
    """Where the rows of a stage come from, and what is said of each."""
    for split, members in stage.members.items():
        rows = decided.kept[members]
        taken = {name: column[rows] for name, column in decided.accepted.items()}
        labels = {name: taken[name] for name in ("difficulty", "tokens", "shard", "row")}
        labels |= {"value": decided.value_A[rows], "index": rows, "position": np.arange(len(rows))}
        labels |= {"stage": np.full(len(rows), stage.number), "hand_off_reason": decided.reason_A[rows]}
        labels["hand_off"] = decided.reason_A[rows] != np.array(None)
        source = np.searchsorted(shards, taken["shard"])
        yield Move(stage.name, split, source, taken["row"], 600 + 12 * taken["tokens"], labels)


def _prompt_moves(decided: Decisions, shards: list[int]) -> Iterator[Move]:
    """Where the prompts of the hand-off config come from: accepted rows, and rejected ones of prompts without any."""
    prompts, (accepted, rejected) = decided.prompts, (decided.accepted, decided.rejected)
    both = {name: np.concatenate([accepted[name], rejected[name]])[prompts.row_Q] for name in COUNTS}
    source = np.searchsorted(shards, both["shard"]) + len(shards) * (prompts.row_Q >= len(accepted["row"]))
    for code, split in enumerate(SPLITS):
        mine = np.flatnonzero(decided.split_R[prompts.row_Q] == code)
        reason = prompts.reason_Q[mine]
        labels = {"reason": reason, "hand_off": reason != np.array(None), "split": np.full(len(mine), split, object)}
        labels |= {"pass_rate": prompts.pass_rate_Q[mine], "confidence": prompts.confidence_Q[mine]}
        yield Move("hand-off", split, source[mine], both["row"][mine], 600 + 6 * both["prompt_tokens"][mine], labels)


def _summarize(
    ledger: Ledger,
    manifest: dict[str, Any],
    config: CurriculumConfig,
    decided: Decisions,
    prompts: list[Move],
    files: list[ShardFile],
) -> dict[str, Any]:
    """What curriculum.json says; no time and no path of this machine, so that equal curricula are equal bytes."""
    placed = np.unique(np.concatenate([m for stage in decided.stages for m in stage.members.values()]))
    reasons = Counter(reason for reason in decided.prompts.reason_Q.tolist() if reason)
    return {
        "config": config.model_dump(mode="json", by_alias=True, exclude_none=True),
        "dataset": {
            "digest": manifest["digest"],
            "state": dataset_state(ledger),
            "rows": len(decided.accepted["row"]),
        },
        "by": "formula" if config.formula else config.by,
        "stages": [_sum_up(stage, decided) for stage in decided.stages],
        "hand_off": {"rows": {move.split: len(move.row_D) for move in prompts}, "reasons": dict(reasons)},
        "dropped": {
            "too_long": len(decided.value_A) - len(decided.kept),
            "in_no_stage": len(decided.kept) - len(placed),
            "unanswered": decided.prompts.unanswered,
        },
        "without_value": int(np.isnan(decided.rows.value).sum()),
        "groups": int(decided.group_R.max()) + 1,
        "warnings": list(_warnings(decided, config.splits)),
        "files": [file.told() for file in files],
    }


def _sum_up(stage: Stage, decided: Decisions) -> dict[str, Any]:
    everything, rows = np.concatenate(list(stage.members.values())), decided.rows
    tasks = {name: describe_counts(stage, rows, code) for code, name in enumerate(rows.tasks)}
    return {
        "name": stage.name,
        "number": stage.number,
        **describe_counts(stage, rows),
        "tasks": {name: part for name, part in tasks.items() if any(part["rows"].values())},
        "hand_off": int((decided.reason_A[decided.kept[everything]] != np.array(None)).sum()),
        "left_out": stage.left_out,
    }


def _warnings(decided: Decisions, splits: SplitsConfig) -> Iterator[str]:
    """What a user should know and might not see."""
    wanted = {"train": True, "validation": splits.validation > 0, "test": splits.test > 0}
    sizes = np.bincount(decided.group_R)
    if sizes.max() > BIG_GROUP * sizes.sum() and sizes.sum() >= 20:
        told = f"{sizes.max():,} of {sizes.sum():,} rows share texts and so one split"
        fields = ", ".join(decided.documents)
        yield told + (
            f"; if one is no document, name its field in splits.ignore (long texts: {fields})" if fields else ""
        )
    for stage in decided.stages:
        for split, told in (("train", "training"), ("validation", "validation"), ("test", "test")):
            if wanted[split] and not len(stage.members[split]):
                yield f"{stage.name} has no {told} row" + (
                    "" if split == "train" else ", so `datasets` knows no such split"
                )
        if stage.left_out and len(stage.members["train"]):
            yield f"{stage.name}: {stage.left_out:,} rows of its range left out by its mixture or budget"
