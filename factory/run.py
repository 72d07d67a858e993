"""A job, from plan to dataset: the one place that sees every stage. Follow one record through `_produce`.

    plan -> render -> teacher -> parse -> validate -> shard -> ledger

Rows of many shards are in flight at once; a shard is committed when its last row is decided. Every planned row ends as
one accepted record, one rejection or one error, and the ledger refuses a shard for which that does not hold.
"""

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from factory import __version__
from factory.card import write_card
from factory.columns import FORMAT_VERSION
from factory.errors import DatasetError, JobError
from factory.job import Job
from factory.ledger import (
    SPOOL,
    Ledger,
    Totals,
    digest_job,
    hold,
    open_ledger,
    read_manifest,
    read_signals,
    reconcile_manifest,
    require_manifest,
    summarize_shard,
    write_atomically,
)
from factory.parse import parse
from factory.plan import Plan, make_plan, resolve_gates, resolve_sampling
from factory.progress import Progress
from factory.records import (
    Generation,
    Outcome,
    PlannedRow,
    Prompt,
    Rejection,
    Sampling,
    SignalSpec,
    canonical_json,
    content_hash,
)
from factory.render import Renderer, RenderError, open_renderer, require_whole
from factory.repair import repair
from factory.shards import write_shard
from factory.sources import Source, open_source
from factory.tasks import Task, discover
from factory.teachers import Teacher, open_teacher
from factory.validate import Gate, validate

PROBES_PER_TASK = 8
# how fast and how patiently a teacher works, not what it is: these may change when a job is resumed
HOW_NOT_WHAT = (
    "max_num_seqs",
    "in_flight",
    "gpu_memory_utilization",
    "kv_cache_gb",
    "max_restarts",
    "start_timeout_s",
    "hang_timeout_s",
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job with everything that can be known of it before a teacher starts."""

    job: Job
    tasks: dict[str, Task]
    plan: Plan
    sampling: dict[str, Sampling]
    gates: dict[str, Gate]
    renderers: dict[str, Renderer]
    sources: dict[str, Source]

    def render(self, row: PlannedRow) -> Prompt | Rejection:
        """The prompt of a planned row, or its rejection where it cannot be made."""
        source = self.sources.get(row.task)
        fields = source.scenario(row.number) if source else None
        try:
            return self.renderers[row.task].render(row, fields)
        except RenderError as error:
            prompt = self._nameless(row, fields)
            if source is None:  # a sample or a template of the task failed: that is a fault
                return Rejection(prompt, None, "prompt", error.reason, (str(error),), "error")
            # a row of the user's data that does not fit is data
            place = f"row {source.place(row.number)} of {source.config.path}: {error}"
            return Rejection(prompt, None, "prompt", error.reason, (place,))

    def _nameless(self, row: PlannedRow, fields: Mapping[str, Any] | None) -> Prompt:
        """What stands for the prompt of a row that has none; its scenario is the data as it came."""
        name = content_hash([row.task, row.level, row.number, row.seed])
        scenario = json.dumps(fields or {}, default=str, sort_keys=True, ensure_ascii=False)
        sampling = self.sampling[row.task]
        return Prompt(name, row.shard, row.position, row.task, row.level, (), scenario, row.seed, sampling)


@dataclass(slots=True)
class Draft:
    """A shard whose rows are not all decided yet."""

    outcomes: list[Outcome | None]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.outcomes)

    def put(self, outcome: Outcome) -> bool:
        """Keep a row's outcome in its place; true when it was the last one."""
        assert self.outcomes[outcome.prompt.position] is None
        self.outcomes[outcome.prompt.position] = outcome
        self.left -= 1
        return self.left == 0

    def whole(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome is not None]


def prepare(job: Job, workspace: Path) -> Prepared:
    """Find and check all that a job names, without starting anything. Raises JobError or TaskError with every fault."""
    names = [config.name for config in job.tasks]
    tasks = {task.name: task for task in discover(workspace).get(names)}
    require_whole(list(tasks.values()))
    for index, config in enumerate(job.tasks):
        if config.source is None and tasks[config.name].sample is None:
            raise JobError(f"tasks.{index}: {config.name} has no sample(); give it a source")
    plan = make_plan(job, tasks)
    sampling, gates = resolve_sampling(job, tasks), resolve_gates(job, tasks)
    prompted = job.teacher.reasoning == "prompted"
    return Prepared(
        job=job,
        tasks=tasks,
        plan=plan,
        sampling=sampling,
        gates={name: Gate(tasks[name], check=gates[name] == "check") for name in names},
        renderers={name: open_renderer(tasks[name], sampling[name], prompted) for name in names},
        sources={
            config.name: open_source(config.source, f"tasks.{index}.source", job.seed, config.count)
            for index, config in enumerate(job.tasks)
            if config.source is not None
        },
    )


def run(job: Job, workspace: Path, out: Path, mend: bool = False, log_json: bool = False) -> Totals:
    """Make the job's dataset in `out`, going on from what is committed there. Returns the totals of the whole dataset.

    `mend` first gives up every shard that is damaged, so that it is made again, and no other.
    Raises a FactoryError for anything that is the user's to mend; nothing that was committed is touched.
    """
    prepared = prepare(job, workspace)
    manifest = describe_job(prepared)
    plan = describe_plan(prepared.plan, manifest)
    with hold(out):
        try:
            if mend:
                _tell_repaired(repair(out, plan, manifest), log_json)
            else:
                require_manifest(out)
            ledger = open_ledger(out, plan, manifest)
            _keep_provenance(prepared, ledger)
            if ledger.totals.left or "teacher" not in read_manifest(out):
                _run_teacher(prepared, manifest, ledger, log_json)
            _settle(ledger)
        except BrokenPipeError:  # whoever read our output has left: nothing to do with the disk
            raise
        except OSError as error:  # a disk that is full, read-only or gone
            told = f"{out}: cannot be written: {error.strerror or error}; committed shards are whole"
            raise DatasetError(f"{told}, the same command goes on from them") from error
        return ledger.totals


def _tell_repaired(lines: list[str], as_json: bool) -> None:
    for line in lines:
        told = json.dumps({"event": "repair", "given_up": line})
        print(told if as_json else f"given up, to be made again: {line}", file=sys.stderr)


def _run_teacher(prepared: Prepared, manifest: dict[str, Any], ledger: Ledger, log_json: bool) -> None:
    job, out, totals = prepared.job, ledger.out, ledger.totals
    started = datetime.now(UTC)
    with open_teacher(job, prepared.tasks.values(), list(_probes(prepared)), out) as teacher:
        manifest = manifest | {"teacher": asdict(teacher.info), "signals": asdict(teacher.signals)}
        reconcile_manifest(out, manifest)
        prepared = replace(prepared, gates=_gates_for(teacher, prepared.gates))
        with Progress(totals.planned, totals.done, totals.accepted, as_json=log_json) as progress:
            try:
                for shard, outcomes in _produce(prepared, teacher, ledger, progress):
                    files = write_shard(out, shard, outcomes, teacher.signals)
                    ledger.commit(summarize_shard(shard, outcomes, files))
                    for outcome in outcomes:
                        teacher.release(outcome.prompt.id, outcome.prompt.attempt)
                    _write_card(ledger)
            finally:
                _log_run(out, started, progress)
        teacher.finish()


def _gates_for(teacher: Teacher, gates: dict[str, Gate]) -> dict[str, Gate]:
    """The gates with what this teacher promises to keep of each row, and how many ids it knows."""
    vocab = teacher.info.details.get("vocab_size")
    return {name: replace(gate, signals=teacher.signals, vocab=vocab) for name, gate in gates.items()}


def _settle(ledger: Ledger) -> None:
    """Give a complete dataset its final form; an earlier run may have been killed after its last commit."""
    ledger.finish()
    _write_card(ledger)
    shutil.rmtree(ledger.out / SPOOL, ignore_errors=True)


def _produce(
    prepared: Prepared, teacher: Teacher, ledger: Ledger, progress: Progress
) -> Iterator[tuple[int, list[Outcome]]]:
    """Whole shards, each as soon as its last row is decided."""
    rows = (row for shard in ledger.pending() for row in prepared.plan.rows(shard))
    drafts: dict[int, Draft] = {}
    again: deque[Prompt] = deque()
    asked: dict[str, Prompt] = {}
    while True:
        decided: list[Outcome] = []
        while teacher.room() and not decided:
            prompt = again.popleft() if again else _next_prompt(prepared, rows)
            if prompt is None:
                break
            if isinstance(prompt, Rejection):
                decided.append(prompt)
            else:
                asked[prompt.id] = prompt
                teacher.submit(prompt)
        generations = [] if decided else teacher.collect()
        if not decided and not generations:
            return
        for generation in generations:
            progress.answer(len(generation.completion_token_ids))
            prompt = asked.pop(generation.prompt_id)
            outcome = decide(prepared.gates[prompt.task], prompt, generation)
            if isinstance(outcome, Rejection) and deserves_retry(outcome, prepared.job.validation.retries):
                again.append(prompt.again(outcome.as_attempt()))
            else:
                decided.append(outcome)
        for outcome in decided:
            progress.finish_row(not isinstance(outcome, Rejection))
            shard = outcome.prompt.shard
            draft = drafts.setdefault(shard, Draft([None] * prepared.plan.shard_size(shard)))
            if draft.put(outcome):
                yield shard, drafts.pop(shard).whole()


def _next_prompt(prepared: Prepared, rows: Iterator[PlannedRow]) -> Prompt | Rejection | None:
    row = next(rows, None)
    return None if row is None else prepared.render(row)


def decide(gate: Gate, prompt: Prompt, generation: Generation) -> Outcome:
    """What becomes of one generation."""
    answer = parse(prompt, generation)
    return answer if isinstance(answer, Rejection) else validate(gate, prompt, generation, answer)


def deserves_retry(rejection: Rejection, retries: int) -> bool:
    """Whether to ask again: the answer was at fault, not the prompt or our own code, and there are attempts left."""
    if rejection.kind == "error" or rejection.stage == "prompt" or rejection.reason == "engine_crash":
        return False
    return rejection.prompt.attempt < retries


def _probes(prepared: Prepared) -> Iterator[Prompt]:
    """A few prompts of each task, to see before the engine starts whether any fits the model's window."""
    for name in prepared.tasks:
        rows = (row for row in prepared.plan.rows(0) if row.task == name)
        prompts = (prepared.render(row) for row in islice(rows, PROBES_PER_TASK))
        yield from (prompt for prompt in prompts if isinstance(prompt, Prompt))


def describe_plan(plan: Plan, manifest: dict[str, Any]) -> dict[str, Any]:
    """The first line of the ledger."""
    return {
        "digest": manifest["digest"],
        "planned": plan.planned,
        "shards": plan.shards,
        "shard_rows": plan.shard_rows,
        "counts": plan.counts(),
    }


def describe_job(prepared: Prepared) -> dict[str, Any]:
    """The manifest's sections that are known before the teacher starts: all that decides which rows a job makes."""
    job = prepared.job.model_dump(mode="json", exclude={"out"})
    for name in HOW_NOT_WHAT:
        del job["teacher"][name]
    tasks = {
        task.name: {
            "version": task.version,
            "gate": "check" if prepared.gates[task.name].check else "schema",
            "sampling": asdict(prepared.sampling[task.name]),
            "files": task.digests,
        }
        for task in prepared.tasks.values()
    }
    sources = {name: source.digest() for name, source in prepared.sources.items()}
    sections: dict[str, Any] = {"job": job, "tasks": tasks, "sources": sources}
    meaning = {"distribution": "before temperature and grammar mask", "logarithm": "natural", "entropy": "nats, exact"}
    meaning |= {"topk_logprobs": "float16", "hidden_states": "bfloat16", "layers": "0 embeddings, i output of block i"}
    versions = {"format": FORMAT_VERSION, "factory": __version__}
    return sections | {"digest": digest_job(sections), "meaning": meaning, "versions": versions}


def _keep_provenance(prepared: Prepared, ledger: Ledger) -> None:
    """Copies of the job and of the tasks' sources, as they were when the dataset was begun."""
    out = ledger.out
    if ledger.entries and (out / "job.toml").exists():
        return
    shutil.rmtree(out / "templates", ignore_errors=True)
    for task in prepared.tasks.values():
        target = out / "templates" / task.name
        target.mkdir(parents=True, exist_ok=True)
        for path in [task.folder / "task.toml", *task.folder.glob("*.j2"), task.schema_path]:
            shutil.copyfile(path, target / path.name)
    import tomli_w

    job = prepared.job.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    write_atomically(out / "job.toml", tomli_w.dumps(job).encode())


def _write_card(ledger: Ledger) -> None:
    manifest = read_manifest(ledger.out)
    card = write_card(ledger.totals, manifest, read_signals(manifest) or SignalSpec())
    write_atomically(ledger.out / "README.md", card.encode())


def _log_run(out: Path, started: datetime, progress: Progress) -> None:
    """One line in runs.jsonl, the only file of a dataset that holds times and speeds."""
    line = {
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - progress.started, 3),
        "rows": progress.done - progress.first,
        "completion_tokens": progress.tokens,
        "tokens_per_second": round(progress.tokens_per_second(), 1),
    }
    with (out / "runs.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(canonical_json(line) + "\n")
