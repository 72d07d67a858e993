"""The forecast: how many tokens and bytes a job will come to, from real files that are written and weighed.

Best are the shards that the job has committed already. Before there are any, a sample of its rows goes through the real
`write_shard` as stand-ins; a pilot (`factory plan --pilot N`) corrects every column by what the real teacher wrote.
"""

import math
import tempfile
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Final, Literal

from factory.dataset.codec import CANDIDATES, STORED
from factory.dataset.entries import ShardEntry, Totals, summarize_shard
from factory.dataset.history import read_history
from factory.dataset.ledger import Ledger, read_ledger
from factory.dataset.shards import column_bytes, read_batches, write_shard
from factory.dataset.signal_columns import PROMPT
from factory.errors import DatasetError, JobError
from factory.forecast.standin import ANY_LEVEL, Cell, Measured, StandIns
from factory.job.job import Job
from factory.records import Outcome, Record
from factory.runs.finish import choose_kept
from factory.runs.prepare import Prepared, prepare
from factory.runs.provenance import describe_job
from factory.runs.run import run_prepared
from factory.tasks.tasks import held_in
from factory.teachers.models import REMOTE_SHAPE, ModelShape, locate_model, read_shape, resolve_signals
from factory.teachers.remote.purse import describe_spending
from factory.teachers.scripted import SHAPE
from factory.teachers.tokens import open_counter

Basis = Literal[
    "scripted teacher", "the transcripts", "reference solutions", "pilot", "committed shards", "max_tokens bound"
]
Columns = Tally[tuple[str, str]]  # bytes by (folder, column); a file's frame has the column ""
GROUPS: Final = ("texts", "images", "ids", "logprobs", "hidden states", "experts", "attention", "rejected rows")
FOLDER_GROUPS: Final = {
    "hidden_states": "hidden states",
    "experts": "experts",
    "attention": "attention",
    "rejected": "rejected rows",
}
SAMPLE_ROWS, SAMPLE_TOKENS = 256, 150_000  # enough to fill Parquet's pages of 1 MB; about a second of work
WEIGHED_SHARDS = 16
SEEN_COLUMN_BYTES = 8  # a column with fewer bytes a row is empty in the stand-ins: it grows with the rows alone


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a whole job comes to, with what is committed of it; `bases` tells by task where the numbers come from."""

    rows: int
    accepted: float
    prompt_tokens: float
    completion_tokens: float
    groups: dict[str, float]
    bases: dict[str, Basis]
    committed: int = 0
    notes: tuple[str, ...] = ()
    # of a pilot: rows a second from when its teacher was ready, and the seconds until then
    rows_per_second: float | None = None
    startup_seconds: float = 0.0
    spent: tuple[str, ...] = ()  # lines on what its requests cost, where the teacher is behind an endpoint

    @property
    def bytes(self) -> float:
        return sum(self.groups.values())

    @property
    def left(self) -> float:
        """Bytes that are still to be written."""
        return max(0.0, self.bytes - self.committed)

    @property
    def is_bound(self) -> bool:
        """Whether some of it is no prediction: nothing is known of a task's answers but their limit."""
        return "max_tokens bound" in self.bases.values()


@dataclass(frozen=True, slots=True)
class Weighed:
    """Rows that were written to real files: their totals, as a ledger has them, and the bytes of every column."""

    totals: Totals = field(default_factory=Totals)
    columns: Columns = field(default_factory=Tally)
    unsolved: dict[str, str] = field(default_factory=dict)


def make_forecast(prepared: Prepared, out: Path, pilot: int | None = None) -> Forecast:
    """The forecast of a job on the best basis there is; `pilot` runs so many rows of each task first."""
    ledger = committed_ledger(prepared, out)
    if pilot is not None:
        forecast = _forecast_pilot(prepared, pilot)
        return forecast if ledger is None else replace(forecast, committed=ledger.totals.bytes)
    if ledger is not None:
        return _forecast_committed(prepared, ledger)
    weighed, how = weigh_stand_ins(prepared, {})
    bases = {name: _basis(prepared, name, name in weighed.unsolved) for name in prepared.gates}
    notes = [] if how is None else [f"tokens counted with {how}"]
    notes += [f"{name}: solve fails, so max_tokens stands for it: {why}" for name, why in weighed.unsolved.items()]
    return _draw_out(prepared, weighed.totals, weighed.columns, bases, tuple(notes))


def shape_of_teacher(job: Job) -> ModelShape:
    """The shape of the job's model. Raises TeacherError where it cannot be had."""
    if job.teacher.backend == "scripted":
        return SHAPE
    if job.teacher.remote:
        return REMOTE_SHAPE
    model = locate_model(job.teacher)
    return read_shape(model, job.teacher)


def committed_ledger(prepared: Prepared, out: Path) -> Ledger | None:
    """The ledger in `out` where this very job has committed shards; None where it has not, they are not here, or
    it is damaged."""
    try:
        ledger = read_ledger(out)
    except DatasetError:
        return None
    if not ledger.entries or ledger.plan.get("digest") != describe_job(prepared)["digest"]:
        return None
    # those of a working folder are in an object store
    here = ((out / file.path).exists() for entry in ledger.entries.values() for file in entry.files)
    return ledger if all(here) else None


def _basis(prepared: Prepared, name: str, unsolved: bool) -> Basis:
    if prepared.job.teacher.backend == "scripted":
        return "scripted teacher"
    if prepared.transcripts is not None:
        return "the transcripts"
    return "max_tokens bound" if unsolved or prepared.tasks[name].solve is None else "reference solutions"


def _draw_out(
    prepared: Prepared,
    sample: Totals,
    columns: Mapping[tuple[str, str], float],
    bases: dict[str, Basis],
    notes: tuple[str, ...],
    frames: float | None = None,
) -> Forecast:
    """A sample drawn out to the job: columns grow with the rows, the frames of files with the shards or as told."""
    rows = _expect_rows(prepared, sample)
    # a file's frame does not grow with its rows, so it is counted by files
    share = rows / max(sample.done, 1)
    shards = -(-rows // max(prepared.plan.shard_size(0), 1))
    frames = shards / max(sample.committed_shards, 1) if frames is None else frames
    groups = dict.fromkeys(GROUPS, 0.0)
    for (folder, column), size in columns.items():
        groups[_group(folder, column)] += size * (share if column else frames)
    tokens = sample.prompt_tokens * share, sample.completion_tokens * share
    return Forecast(rows, sample.accepted / max(sample.done, 1), *tokens, groups, bases, notes=notes)


def _expect_rows(prepared: Prepared, sample: Totals) -> int:
    """Rows that the job comes to, where a task asks until enough are accepted: by the share that the sample accepts."""
    most, planned = prepared.most_rows(), prepared.plan.counts()
    for config in prepared.job.tasks:
        if config.accepted is not None:
            rows = [sum(counts) for cell, counts in sample.cells.items() if cell.partition("/")[0] == config.name]
            share = sample.accepted_of(config.name) / max(sum(rows), 1)
            wanted = prepared.plan.rounds[-1].wanted.get((config.name, ""), config.accepted)
            needed = math.ceil(wanted / share) if share else most[config.name]
            already = sum(planned.get(config.name, {}).values())
            most[config.name] = min(most[config.name], max(needed, already))
    return sum(most.values())


def _group(folder: str, column: str) -> str:
    if folder in FOLDER_GROUPS:
        return FOLDER_GROUPS[folder]
    if column.removeprefix(PROMPT) in STORED or column in CANDIDATES:
        return "logprobs"
    if folder == "data" and column.partition(".")[0] == "images":
        return "images"
    return "ids" if folder == "data" and column.endswith("_token_ids") else "texts"


def _forecast_committed(prepared: Prepared, ledger: Ledger) -> Forecast:
    """What is committed, drawn out to all rows: every shard is the same mixture."""
    totals, plan = ledger.totals, prepared.plan
    entries = list(ledger.entries.values())
    # how the bytes divide among columns is read off a few shards; how many there are is known of all
    columns = _weigh_shards(ledger.out, entries[:: max(1, len(entries) // WEIGHED_SHARDS)])
    # the ledger knows the bytes of all shards; those that were opened say only how they divide
    scale = totals.bytes / max(columns.total(), 1)
    scaled = {column: size * scale for column, size in columns.items()}
    bases: dict[str, Basis] = dict.fromkeys(prepared.gates, "committed shards")
    notes = (f"{totals.committed_shards:,} of {plan.shards:,} shards are committed, {totals.bytes:,} bytes",)
    whole = _draw_out(prepared, totals, scaled, bases, notes, _expect_rows(prepared, totals) / totals.done)
    return replace(whole, committed=totals.bytes)


def _weigh_shards(out: Path, entries: Iterable[ShardEntry]) -> Columns:
    columns: Columns = Tally()
    for entry in entries:
        for file in entry.files:
            columns.update(_file_columns(out, file.path))
    return columns


def _file_columns(out: Path, name: str) -> Columns:
    """Bytes of one file by column. A file that is not there weighs nothing: a run will say so."""
    try:
        found = column_bytes(out / name)
    except DatasetError:
        return Tally()
    return Tally({(name.partition("/")[0], column): size for column, size in found.items()})


def weigh_stand_ins(
    prepared: Prepared, measured: Mapping[Cell, Measured], rows: int = SAMPLE_ROWS
) -> tuple[Weighed, str | None]:
    """The first rows of a job as stand-ins, written in the job's own shards; and how their tokens were counted."""
    job = prepared.job
    shape = shape_of_teacher(job)
    signals = resolve_signals(job, shape, **held_in(prepared.tasks.values()))
    counter = None if job.teacher.backend == "scripted" else open_counter(job)
    weighed = Weighed()
    stand_ins = StandIns(prepared, shape, signals, counter, measured, unsolved=weighed.unsolved)
    with tempfile.TemporaryDirectory(prefix="factory-plan-") as name:
        for shard in range(prepared.plan.shards):
            outcomes = list(_take(stand_ins.outcomes(prepared.plan.rows(shard)), weighed.totals, rows))
            chosen, pairs = choose_kept(prepared, outcomes)
            files = write_shard(Path(name), shard, chosen, signals, pairs)
            weighed.totals.add(summarize_shard(shard, chosen, files))
            for file in files:
                weighed.columns.update(_file_columns(Path(name), file.path))
                (Path(name) / file.path).unlink()
            weighed.columns["hidden_states", "states"] += _rest_of_states(chosen, shape)
            if _is_enough(weighed.totals, rows):
                break
    told = [how for how in (counter.how if counter else "", stand_ins.pictures.how) if how]
    return weighed, ", ".join(told) or None


def _take(outcomes: Iterator[Outcome], before: Totals, rows: int) -> Iterator[Outcome]:
    """Whole prompts of a shard, until the sample is large enough."""
    so_far = deepcopy(before)
    for _, group in groupby(outcomes, key=lambda outcome: outcome.prompt.group):
        samples = list(group)
        so_far.add(summarize_shard(0, samples, ()))
        yield from samples
        if _is_enough(so_far, rows):
            return


def _is_enough(sample: Totals, rows: int) -> bool:
    return sample.done >= rows or sample.completion_tokens >= SAMPLE_TOKENS


def _rest_of_states(outcomes: Iterable[Outcome], shape: ModelShape) -> int:
    """Bytes of the accepted rows' hidden states that stand-ins leave out; they are not compressed, so this is exact."""
    kept = [o.generation.hidden_states for o in outcomes if isinstance(o, Record) and o.generation.hidden_states]
    return sum(2 * s.bits_NLH.size // s.bits_NLH.shape[2] * (shape.hidden_size - s.bits_NLH.shape[2]) for s in kept)


def _forecast_pilot(prepared: Prepared, count: int) -> Forecast:
    """Run a few rows of each task with the real teacher; what they made is thrown away."""
    if prepared.transcripts is not None:
        raise JobError("--pilot: transcripts are scored as they stand and their tokens are known; leave --pilot out")
    pilot = prepare(_pilot_job(prepared, count), prepared.workspace)
    with tempfile.TemporaryDirectory(prefix="factory-pilot-") as name:
        out = Path(name) / "out"
        run_prepared(pilot, out)
        return forecast_from_pilot(prepared, pilot, out)


def forecast_from_pilot(prepared: Prepared, pilot: Prepared, out: Path) -> Forecast:
    """Stand-ins of the whole job, corrected column by column by what the first rows of `pilot` came to in `out`."""
    ledger = read_ledger(out)
    real = _weigh_shards(out, ledger.entries.values())
    totals, measured = ledger.totals, measure_rows(out)
    # the same rows as the pilot ran, as stand-ins: what they are wrong by, all others are wrong by
    drawn, _ = weigh_stand_ins(pilot, measured, totals.done)
    whole, _ = weigh_stand_ins(prepared, measured)
    columns = correct(real, totals.done, drawn, whole)
    bases: dict[str, Basis] = dict.fromkeys(prepared.gates, "pilot")
    attempts = sum(m.attempts * m.rows for (_, level), m in measured.items() if level == ANY_LEVEL) / max(
        totals.done, 1
    )
    told = f"{totals.done:,} rows, {totals.accepted:,} accepted, {attempts:.3g} attempts a row"
    speed = _measure_speed(out)
    forecast = _draw_out(prepared, whole.totals, columns, bases, (told,))
    spent = tuple(describe_spending(out))
    return replace(forecast, rows_per_second=speed[0], startup_seconds=speed[1], spent=spent)


def _measure_speed(out: Path) -> tuple[float | None, float]:
    """Rows a second of a finished pilot, and its seconds before the first was asked; of its one run."""
    ended = [line for line in read_history(out) if line.get("event") == "ended"]
    if not ended or not ended[-1]["rows"]:
        return None, 0.0
    return ended[-1]["rows"] / max(ended[-1]["seconds"], 1e-3), ended[-1]["startup_seconds"]


def _pilot_job(prepared: Prepared, count: int) -> Job:
    job, planned = prepared.job, prepared.plan.prompts()
    asks = {
        name: {"count": min(count, prompts), "accepted": None, "at_most": None} for name, prompts in planned.items()
    }
    tasks = [task.model_copy(update=asks[task.name]) for task in job.tasks]
    signals = job.signals.model_copy(update={"verify_rows": 0})
    return job.model_copy(update={"tasks": tasks, "signals": signals})


def measure_rows(out: Path) -> dict[Cell, Measured]:
    """What the rows of a finished dataset came to, by task and level, and by task alone for a level that has none."""
    rows: dict[Cell, list[tuple[bool, int, int]]] = {}
    names = ["task", "level", "completion_token_ids", "attempt"]
    for path in sorted([*out.glob("data/*.parquet"), *out.glob("rejected/*.parquet")]):
        for batch in read_batches(path, names):
            for row in batch.to_pylist():
                told = path.parent.name == "data", len(row["completion_token_ids"]), row["attempt"] + 1
                for cell in ((row["task"], row["level"]), (row["task"], ANY_LEVEL)):
                    rows.setdefault(cell, []).append(told)
    return {
        cell: Measured(len(kept), *(sum(column) / len(kept) for column in zip(*kept, strict=True)))
        for cell, kept in rows.items()
    }


def correct(
    real: Mapping[tuple[str, str], float], real_rows: int, drawn: Weighed, whole: Weighed
) -> dict[tuple[str, str], float]:
    """Bytes of the whole sample's columns, each by what the same column of the pilot's stand-ins was wrong by."""
    columns: dict[tuple[str, str], float] = {}
    for (folder, column), size in real.items():
        mine = drawn.columns[folder, column]
        if not column:
            columns[folder, column] = whole.columns[folder, column]
        elif mine >= SEEN_COLUMN_BYTES * drawn.totals.done:
            columns[folder, column] = (
                size * whole.columns[folder, column] / mine * drawn.totals.done / max(real_rows, 1)
            )
        else:
            columns[folder, column] = size * whole.totals.done / max(real_rows, 1)
    return columns


def note_bases(bases: Mapping[str, Basis]) -> str:
    """Where a forecast's numbers come from, for people: `reference solutions (a, b), max_tokens bound (c)`."""
    found = {
        basis: [name for name, other in bases.items() if other == basis] for basis in dict.fromkeys(bases.values())
    }
    return (
        ", ".join(f"{basis} ({', '.join(names)})" for basis, names in found.items())
        if len(found) > 1
        else next(iter(found))
    )
