"""Measure a demo teacher with the factory itself: `python -m factory.demo_teacher.evaluate [--model DIR]`.

An ordinary job of held-out seeds is run, and what the dataset says of each task and level becomes one table,
`pass_rates.json` and the model card, both in the model's folder.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.dataset.ledger import read_ledger
from factory.dataset.manifest import read_manifest
from factory.dataset.shards import read_batches, sha256_digest, shard_path
from factory.demo_teacher.card import PASS_RATES, WEIGHTS, describe_cells, write_card
from factory.demo_teacher.corpus import EVALUATION_ROWS, EVALUATION_SEED
from factory.demo_teacher.recipe import TASKS, Recipe
from factory.errors import FactoryError, JobError
from factory.job.job import Job
from factory.runs.run import run
from factory.tasks.tasks import builtin_root, find_tasks
from factory.teachers.demo import demo_teacher
from factory.terminal import report

# a row that was rejected here had an answer of the right form
WELL_FORMED = ("check",)
# the normal distribution's quantile of a 95 % interval
Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of the rows of one task and level."""

    task: str
    level: str
    # planned rows: each has ended as right, as rejected or as an error
    rows: int
    # of these, those whose answer matched the schema, right or wrong
    well_formed: int
    # of these, those that `check` had nothing to say of
    right: int
    # mean over the tokens of right answers, nats; None without any
    entropy: float | None
    # mean over all rows
    completion_tokens: float

    def as_json(self) -> dict[str, Any]:
        """The counts, their shares in percent with 95 % Wilson intervals, and the two means."""
        form, right = wilson(self.well_formed, self.rows), wilson(self.right, self.rows)
        return {
            "task": self.task,
            "level": self.level,
            "rows": self.rows,
            "schema_valid": self.well_formed,
            "schema_valid_percent": _percent(self.well_formed / self.rows),
            "schema_valid_interval": [_percent(form[0]), _percent(form[1])],
            "check_passes": self.right,
            "check_passes_percent": _percent(self.right / self.rows),
            "check_passes_interval": [_percent(right[0]), _percent(right[1])],
            "mean_entropy_of_right": None if self.entropy is None else round(self.entropy, 4),
            "mean_completion_tokens": round(self.completion_tokens, 1),
        }


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share, in [0, 1] (Wilson 1927). `count` is at least 1."""
    share, z2 = successes / count, Z_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))  # rounding passes by 0 and 1


def _percent(share: float) -> float:
    return round(100 * share, 1)


def evaluation_job(model: str, rows: int, backend: str = "vllm") -> Job:
    """`rows` held-out rows of each task and level. Raises JobError where that is more than are held out."""
    # validation has taken its examples from the last rows of the same seeds
    levels = {task.name: len(task.levels) for task in find_tasks(builtin_root(), TASKS)}
    most = (EVALUATION_ROWS - Recipe().validation_examples) // max(levels.values())
    if not 1 <= rows <= most:
        raise JobError(f"--rows {rows}: must be 1 to {most}: no more rows of a task and level are held out")
    return Job.model_validate(
        {
            "out": "out",
            "seed": EVALUATION_SEED,
            "shard_rows": 64,
            "teacher": {"model": model, "backend": backend},
            "sampling": {"temperature": 0.7},
            "signals": {"top_k": 20},
            "validation": {"gate": "check", "constrain": True},
            "tasks": [{"name": name, "count": rows * count} for name, count in levels.items()],
        }
    )


def read_cells(out: Path) -> list[Cell]:
    """The cells of a finished dataset: tasks in the order of TASKS, levels easiest first."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _read_rows(out):
        rows.setdefault((row["task"], row["level"]), []).append(row)
    tasks = find_tasks(builtin_root(), TASKS)
    return [_sum_up(task.name, level, rows[task.name, level]) for task in tasks for level in task.levels]


def _read_rows(out: Path) -> Iterator[dict[str, Any]]:
    common = ["task", "level", "completion_token_ids"]
    for shard in sorted(read_ledger(out).entries):
        for folder, columns in (("data", [*common, "entropy"]), ("rejected", [*common, "stage"])):
            for batch in read_batches(out / shard_path(folder, shard), columns):
                yield from batch.to_pylist()


def _sum_up(task: str, level: str, rows: Sequence[dict[str, Any]]) -> Cell:
    right = [row for row in rows if "stage" not in row]
    return Cell(
        task=task,
        level=level,
        rows=len(rows),
        well_formed=len(right) + sum(row.get("stage") in WELL_FORMED for row in rows),
        right=len(right),
        entropy=_mean(value for row in right for value in row["entropy"]),
        completion_tokens=_mean(len(row["completion_token_ids"]) for row in rows) or 0.0,
    )


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return math.fsum(known) / len(known) if known else None


def evaluate(model: str, rows: int, out: Path, backend: str = "vllm") -> dict[str, Any]:
    """Run the evaluation in `out`; what goes into pass_rates.json. Raises a FactoryError."""
    job = evaluation_job(model, rows, backend)
    totals = run(job, builtin_root(), out)
    details = read_manifest(out)["teacher"]["details"]
    return {
        "settings": {
            "backend": backend,
            "engine": details.get("engine", {}),
            "dtype": details.get("dtype"),
            "seed": job.seed,
            "temperature": job.sampling.temperature,
            "grammar": job.validation.constrain,
            "rows_of_each_task_and_level": rows,
        },
        "cells": [cell.as_json() for cell in read_cells(out)],
        "rejected_for": dict(sorted(totals.reasons.items())),
    }


@contextmanager
def _kept_or_temporary(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="demo-teacher-eval-") as temporary:
        yield Path(temporary) / "dataset"


def main(arguments: list[str]) -> int:
    """Command line: exit code 0, or 2 and one line."""
    parser = argparse.ArgumentParser(description="Measure a demo teacher and write its model card.")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model folder (default: the shipped one)")
    parser.add_argument("--rows", type=int, default=120, help="rows of each task and level (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the dataset here (default: thrown away)")
    parser.add_argument("--backend", choices=("vllm", "scripted"), default="vllm", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        folder = options.model or Path(demo_teacher())
        model = "demo" if options.model is None else str(folder)
        with _kept_or_temporary(options.out) as out:
            result = evaluate(model, options.rows, out, options.backend)
        result = {"weights_sha256": sha256_digest(folder / WEIGHTS)} | result
        (folder / PASS_RATES).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        write_card(folder)
    except FactoryError as error:
        return report(error)
    print("\n".join(describe_cells(result["cells"])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
