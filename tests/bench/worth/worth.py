"""What a teacher's signals are worth: students that learn from text, from distributions, from states, and one table.

    python tests/bench/worth/worth.py [--quick | --real] [--arms NAME ...] [--rows N ...] [--seeds N] [--workers N]
                                      [--write]

Makes datasets by `factory run` and `factory score` in build/worth, trains a student for each arm, number of rows and
seed by docs/examples/train_student/train.py, and measures it. One file a student: what is there is not made again, so
it goes on where it was cut off, and more seeds or arms are added to what is there. worth.toml has every number.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from real_teacher import real_teacher
from worth_arms import ARMS, Bench, Cell, write_result
from worth_data import make_datasets, run_job, scaled_job
from worth_figures import curves, headline, passes, read_results, table, tell_passes
from worth_measure import count_passes
from worth_settings import HERE, ROOT, Scale, Settings, read_settings
from worth_text import make_scored

from factory.dataset.manifest import find_changes
from factory.dataset.shards import sha256_digest
from factory.errors import FactoryError, JobError
from factory.teachers.demo import demo_teacher
from factory.terminal import report

PAGE = ROOT / "docs" / "worth.md"
TOLD = {name: arm.told for name, arm in ARMS.items()}
JOBS = ("data", "draws", "held_out", "passes", "stages")


def require_same(work: Path, settings: Settings, scale: Scale, teacher: Path) -> None:
    """Keep what decides the results beside them, or hold it against what is there. Raises JobError."""
    # what the other teacher's students begin with decides nothing here
    told: dict[str, Any] = settings.model_dump(exclude={"scales", "student" if scale.teacher == "real" else "fresh"})
    told |= {"steps": scale.steps, "share": scale.share, "weights": sha256_digest(teacher / "model.safetensors")}
    told |= {f"{name}.toml": sha256_digest(HERE / f"{name}.toml") for name in JOBS}
    path = work / "settings.json"
    if path.is_file():
        changes = "; ".join(find_changes(json.loads(path.read_text(encoding="utf-8")), told))
        if changes:
            raise JobError(f"{work}: made with other settings ({changes}); remove it, or put them back")
        return
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def cells(rows: Sequence[int], arms: Sequence[str], seeds: int) -> list[Cell]:
    """All students, the first seed of every arm before the second of any: cut off early, it compares all of them."""
    return [Cell(arm, count, seed) for seed in range(seeds) for count in rows for arm in arms]


BENCH: list[Bench] = []


def open_bench(work: Path, settings: Settings, scale: Scale) -> None:
    """In each worker process, once: one thread each, so that workers do not stand in each other's way."""
    import torch

    torch.set_num_threads(1)
    BENCH.append(Bench(work, settings, scale))


def run_cell(cell: Cell) -> dict[str, Any] | None:
    """In a worker process."""
    return BENCH[0].run(cell)


def train_students(work: Path, settings: Settings, scale: Scale, pending: Sequence[Cell], workers: int) -> None:
    """A file in `results/` for each cell that has none."""
    pending = [cell for cell in pending if not (work / "results" / f"{cell.name}.json").is_file()]
    if not pending:
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, open_bench, (work, settings, scale)) as pool:
        jobs = {pool.submit(run_cell, cell): cell for cell in pending}
        for number, job in enumerate(as_completed(jobs), start=1):
            cell, result = jobs[job], job.result()
            if result is None:
                print(f"{number}/{len(pending)} {cell.name}: too few such rows", flush=True)
                continue
            write_result(work / "results" / f"{cell.name}.json", result)
            told = f"KL {result['kl']:.4f}, calibration error {result['calibration']:.4f}, {result['seconds']:.0f} s"
            print(f"{number}/{len(pending)} {cell.name}: {told}", flush=True)


def check_answers(work: Path, scale: Scale, wanted: Sequence[Cell]) -> None:
    """A file in `passes/` for the teacher and each student whose answers are checked, by a `factory run`."""
    if not scale.passes:
        return
    models = {"teacher": work / "teacher"}
    models |= {cell.name: work / "students" / cell.name for cell in wanted if cell.rows in scale.passes}
    for name, model in models.items():
        path = work / "passes" / f"{name}.json"
        if path.is_file() or not (model / "config.json").is_file():
            continue
        job = scaled_job("passes", work)
        job["teacher"]["model"] = str(model)
        job["out"] = str(work / "answers" / name)
        found = count_passes(run_job("run", job, work))
        write_result(path, found)
        print(f"{name}: right {tell_passes(*passes([{'passes': found}]))}", flush=True)


def describe(work: Path) -> str:
    """The table, the teacher's own line and what a row replaces."""
    results = read_results(work)
    lines = [table(results, TOLD), ""]
    teacher = work / "passes" / "teacher.json"
    if teacher.is_file():
        right = json.loads(teacher.read_text(encoding="utf-8"))
        lines += [f"The teacher itself: {tell_passes(*passes([{'passes': right}]))} right.", ""]
    return "\n".join([*lines, *headline(results, TOLD)])


def write_page(name: str, text: str, page: Path = PAGE) -> None:
    """Put a scale's results between its marks in the page. Raises JobError where it has none."""
    marks = f"<!-- results: {name} -->\n", f"<!-- end: {name} -->"
    whole = page.read_text(encoding="utf-8")
    if not all(mark in whole for mark in marks):
        raise JobError(f"{page}: has no {marks[0].strip()} and {marks[1]}; put them where the table shall stand")
    before, rest = whole.split(marks[0], 1)
    page.write_text(f"{before}{marks[0]}{text}\n{marks[1]}{rest.split(marks[1], 1)[1]}", encoding="utf-8")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_true", help="a tenth of the size: ten minutes")
    scale.add_argument("--real", action="store_true", help="SmolLM2 as the teacher, over free text")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="default: those of worth.toml")
    parser.add_argument("--rows", nargs="+", type=int, help="default: those of worth.toml")
    parser.add_argument("--seeds", type=int, help="default: as many as worth.toml says")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="students at once (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "worth")
    parser.add_argument("--write", action="store_true", help="put table and curves into docs/")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Command line: exit code 0, or 2 and one line."""
    asked = parse(arguments)
    name = "quick" if asked.quick else "real" if asked.real else "full"
    try:
        settings = read_settings()
        teacher = Path(real_teacher() if asked.real else demo_teacher())
        scale, work = settings.scales[name], (asked.work / name).resolve()
        wanted = cells(asked.rows or scale.rows, asked.arms or scale.arms, asked.seeds or scale.seeds)
        require_same(work, settings, scale, teacher)
        if asked.real:
            make_scored(work, teacher)
        else:
            make_datasets(work, teacher, settings.teacher.temperature, scale.share)
        train_students(work, settings, scale, wanted, asked.workers)
        check_answers(work, scale, wanted)
        text = describe(work)
        print(text)
        if asked.write:
            curves(read_results(work), TOLD, PAGE.with_name(f"worth-{name}.svg"))
            write_page(name, text)
    except FactoryError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
