"""Everything that a report says of one dataset, as plain values; `--json` prints it."""

from pathlib import Path
from typing import Any, Final

from factory.dataset.ledger import Ledger, read_ledger, require_manifest
from factory.dataset.manifest import read_manifest, read_signals, run_command
from factory.dataset.stages import dataset_state
from factory.errors import DatasetError
from factory.publish.report.counts import describe_flow, describe_head, describe_runs, describe_stages
from factory.publish.report.coverage import describe_coverage
from factory.publish.report.measures import (
    count_over,
    describe_calibration,
    describe_cells,
    describe_difficulty,
    describe_lengths,
    describe_samples,
)
from factory.publish.report.store import Store
from factory.publish.report.tokens import describe_tokens

# a number for whoever reads the JSON: it goes up when a name changes its meaning or goes away
VERSION: Final = 1


def open_dataset(out: Path) -> tuple[Ledger, dict[str, Any]]:
    """Ledger and manifest of a dataset with a committed row at least.

    Raises DatasetError where there is no dataset, or nothing of it to tell of yet.
    """
    require_manifest(out)
    manifest, ledger = read_manifest(out), read_ledger(out)
    if not ledger.entries:
        rest = f"`{run_command(manifest)}` goes on with it, `factory status {out}` tells how far it is"
        told = f"no shard of {ledger.plan['shards']:,} is committed yet, so there is nothing to report"
        raise DatasetError(f"{out}: {told}; {rest}")
    return ledger, manifest


def gather(store: Store, manifest: dict[str, Any]) -> dict[str, Any]:
    """All counts and measures of a dataset. Raises DatasetError where a file of it cannot be read."""
    ledger, signals = store.ledger, read_signals(manifest)
    head = describe_head(ledger, manifest)
    checked = [name for name, said in (manifest.get("tasks") or {}).items() if said.get("gate") == "check"]
    student = head["student_tokens"]
    return {
        "version": VERSION,
        "state": dataset_state(ledger),
        "shards": len(ledger.entries),
        "head": head,
        "flow": describe_flow(store),
        "cells": describe_cells(store),
        "difficulty": describe_difficulty(store),
        "samples": describe_samples(store),
        "calibration": describe_calibration(store, checked),
        "tokens": describe_tokens(ledger, signals) if signals is not None else None,
        "lengths": describe_lengths(store) | {"over_student": count_over(store, student) if student else None},
        "coverage": describe_coverage(store),
        "runs": describe_runs(ledger),
        "stages": describe_stages(ledger),
    }
