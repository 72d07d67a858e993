"""Everything about a job that can be known before a teacher starts: found, checked, and described for the manifest."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import tomli_w

from factory import __version__
from factory.dataset.codec import BOUNDS
from factory.dataset.layouts import FORMAT_VERSION
from factory.dataset.ledger import Ledger
from factory.dataset.manifest import (
    COPIES,
    DIGEST,
    MANIFEST_VERSION,
    digest_job,
    read_manifest,
    replace_section,
    write_atomically,
)
from factory.errors import JobError, nearest
from factory.hashing import content_hash
from factory.job.endpoint import forget_manner
from factory.job.gates import StyleConfig
from factory.job.job import Job
from factory.quality.contamination import Index, open_index
from factory.quality.difficulty import Formula, compile_formula, known_names
from factory.quality.filters import RowFilters, find_contaminated_prompt, open_filters
from factory.quality.judge import Judge, open_judges
from factory.quality.trial import require_tried
from factory.quality.validate import Gate
from factory.records import PlannedRow, Prompt, Rejection, Sampling
from factory.runs.plan import Plan, make_plan, plan_transcripts, resolve_gates, resolve_sampling
from factory.tasks.calls import find_misfit
from factory.tasks.digests import digest_bytes
from factory.tasks.faults import TaskFault
from factory.tasks.render import Renderer, open_renderer
from factory.tasks.sources import NO_LEVEL, Source, open_source
from factory.tasks.tables import BadRow
from factory.tasks.tasks import JUDGE, Task, discover
from factory.tasks.transcripts import TASK, Transcripts, open_transcripts
from factory.tasks.user_rows import require_sound

PROBES_PER_TASK = 8
LONGEST_TRANSCRIPT = 32_768  # tokens, for a bound on the disk where no window is named
# how fast and how patiently a teacher works, not what it is: these may change when a job is resumed
HOW_NOT_WHAT = (
    "engine",  # what of it decides numbers is in the teacher's details
    "max_num_seqs",
    "in_flight",
    "replicas",
    "gpu_memory_utilization",
    "kv_cache_gb",
    "max_restarts",
    "start_timeout_s",
    "hang_timeout_s",
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job with everything that can be known of it before a teacher starts.

    By name of a task: `tasks`, `sampling`, `gates`, `renderers` and `filters` have each of the job's, `sources` and
    `judges` those that have one. Where transcripts are scored there are no tasks; TASK stands for them in the others.
    """

    job: Job
    workspace: Path
    tasks: dict[str, Task]
    plan: Plan
    sampling: dict[str, Sampling]
    gates: dict[str, Gate]
    renderers: dict[str, Renderer]
    sources: dict[str, Source]
    filters: dict[str, RowFilters]
    judges: dict[str, Judge]
    formula: Formula
    evaluation: Index | None = None
    transcripts: Transcripts | None = None

    def render(self, row: PlannedRow) -> Prompt | Rejection:
        """The prompt of a planned row, or its rejection where it cannot be made or can lead to no row."""
        prompt = self._make(row)
        if isinstance(prompt, Rejection) or self.evaluation is None:
            return prompt
        findings = find_contaminated_prompt(self.evaluation, prompt)
        return Rejection(prompt, None, "filter", "contaminated", tuple(findings)) if findings else prompt

    def _make(self, row: PlannedRow) -> Prompt | Rejection:
        if self.transcripts is not None:
            return self.transcripts.prompt(row)
        source = self.sources.get(row.task)
        if source is not None:
            return self._make_sourced(row, source)
        try:
            return self._render(row, None)
        except TaskFault as error:  # a sample or a template of the task failed
            return Rejection(self._nameless(row, {}), None, "prompt", error.reason, (str(error),), "error")

    def _make_sourced(self, row: PlannedRow, source: Source) -> Prompt | Rejection:
        """The prompt of a row of the user's data; one that does not fit is data, no fault."""
        fields: Mapping[str, Any] = {}
        kind: Literal["rejected", "error"] = "rejected"
        try:
            fields = source.scenario(row.number)
            if row.level == NO_LEVEL:
                raise TaskFault("level_unknown", source.level_fault(row.number))
            prompt = self._render(row, fields)
            return replace(prompt, source_row=source.mark(row.number))
        except BadRow as error:
            reason, told = "row_unreadable", str(error)
        except TaskFault as error:
            # the machine failed, not the data
            kind = "error" if error.reason == "render_stalled" else "rejected"
            reason, told = error.reason, str(error)
        prompt = replace(self._nameless(row, fields), source_row=source.mark(row.number))
        return Rejection(prompt, None, "prompt", reason, (f"{source.where(row.number)}: {told}",), kind)

    def _render(self, row: PlannedRow, fields: Mapping[str, Any] | None) -> Prompt:
        renderer = self.renderers[row.task]
        try:
            return renderer.render(row, fields)
        except TaskFault as error:
            if error.reason != "render_stalled":
                raise
            return renderer.render(row, fields)  # the machine stood still for a while: it may not the second time

    def _nameless(self, row: PlannedRow, fields: Mapping[str, Any]) -> Prompt:
        """What stands for the prompt of a row that has none; its scenario is the data as it came."""
        name = content_hash([row.task, row.level, row.number, row.seed])
        scenario = json.dumps(fields, default=str, sort_keys=True, ensure_ascii=False)
        return Prompt(
            id=content_hash([name, row.sample]) if row.sample else name,
            shard=row.shard,
            position=row.position,
            task=row.task,
            level=row.level,
            messages=(),
            scenario=scenario,
            seed=row.seed,
            sampling=self.sampling[row.task],
            sample=row.sample,
            group=name,
        )

    def probes(self) -> list[Prompt]:
        """A few prompts of each task, to see before the engine starts whether any fits the model's window; of
        transcripts those that the model's chat template has to render."""
        found: list[Prompt] = []
        if self.transcripts is not None:
            prompts = map(self.render, islice(self.plan.rows(0), PROBES_PER_TASK))
            readable = (prompt for prompt in prompts if isinstance(prompt, Prompt))
            return [prompt for prompt in readable if prompt.transcript is not None and prompt.transcript.turn]
        for name in self.tasks:
            rows = (row for row in self.plan.rows(0) if row.task == name and not row.sample)
            prompts = map(self.render, islice(rows, PROBES_PER_TASK))
            found += [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        return found

    def bad_rows(self, task: str) -> Iterator[str]:
        """Each planned row of a task's source that cannot become a prompt, and why."""
        return self.sources[task].bad_rows(partial(find_misfit, self.tasks[task]))

    def scrubbed(self, shard: int) -> Counter[str]:
        """What was replaced in the scenarios of a shard's prompts, by kind of personal data."""
        told = Counter[str]()
        for row in self.plan.rows(shard):
            source = self.sources.get(row.task)
            if source is not None and source.config.scrub and not row.sample:
                told += source.replaced(row.number)
        return told


def prepare(job: Job, workspace: Path) -> Prepared:
    """Find and check all that a job names, without starting anything. Raises JobError or TaskError with every fault."""
    transcripts = open_transcripts(job)
    if transcripts is not None:
        return _prepare_scoring(job, workspace, transcripts)
    names = [config.name for config in job.tasks]
    tasks = {task.name: task for task in discover(workspace).get(names)}
    require_tried(list(tasks.values()))
    for index, config in enumerate(job.tasks):
        if config.source is None and tasks[config.name].sample is None:
            raise JobError(f"tasks.{index}: {config.name} has no sample(); give it a source")
    sources = _open_sources(job, tasks)
    plan = make_plan(job, tasks, sources)
    sampling, gates = resolve_sampling(job, tasks), resolve_gates(job, tasks)
    prompted = job.teacher.reasoning == "prompted"
    judges = open_judges(job, tasks)
    if job.judge is not None and not judges:
        told = ", ".join(names)
        raise JobError(f"judge: no task of the job has a rubric (judge.j2): {told}; write one or leave [judge] out")
    evaluation = _open_evaluation(job)
    known = known_names(job.samples.n, job.signals.top_k, bool(judges))
    return Prepared(
        job=job,
        workspace=workspace,
        tasks=tasks,
        plan=plan,
        sampling=sampling,
        gates={name: Gate(tasks[name], check=gates[name] == "check") for name in names},
        renderers={name: open_renderer(tasks[name], sampling[name], prompted) for name in names},
        sources=sources,
        filters={name: open_filters(job.filters, task.style, evaluation) for name, task in tasks.items()},
        judges=judges,
        formula=compile_formula(job.difficulty.formula, known),
        evaluation=evaluation,
    )


def _open_sources(job: Job, tasks: dict[str, Task]) -> dict[str, Source]:
    """The sources of a job's tasks; every row is looked at where a bad one stops the job."""
    sources: dict[str, Source] = {}
    for index, config in enumerate(job.tasks):
        if config.source is not None:
            task, where = tasks[config.name], f"tasks.{index}.source"
            source = open_source(config.source, where, job.seed, config.count, task.Scenario, task.levels)
            require_sound(config.source, where, source.bad_rows(partial(find_misfit, task)), len(source))
            sources[config.name] = source
    return sources


def preview_job(
    job: Job, workspace: Path, task: str | None, level: str | None, count: int
) -> Iterator[Prompt | Rejection]:
    """The first prompts of a job, as it will ask them, in its order. Raises JobError.

    Without `level` each in turn, so that a few prompts show them all.
    """
    prepared = prepare(job, workspace)
    cells = [(name, each) for name, each, _, _ in prepared.plan.blocks]
    chosen = [cell for cell in cells if task is None or cell[0] == task]
    if not chosen:
        has = ", ".join(dict.fromkeys(name for name, _ in cells))
        raise JobError(f"task {task!r}: not of this job (has: {has}){nearest(str(task), [name for name, _ in cells])}")
    levels = [each for _, each in chosen]
    if level is not None and level not in levels:
        raise JobError(f"level {level!r}: no row of this job has it (has: {', '.join(dict.fromkeys(levels))})")
    queues = [_rows_of(prepared.plan, cell) for cell in chosen if level is None or cell[1] == level]
    turns = (row for turn in zip_longest(*queues) for row in turn if row is not None)
    return map(prepared.render, islice(turns, count))


def _rows_of(plan: Plan, cell: tuple[str, str]) -> Iterator[PlannedRow]:
    rows = (row for shard in range(plan.shards) for row in plan.rows(shard))
    return (row for row in rows if (row.task, row.level) == cell and not row.sample)


def _prepare_scoring(job: Job, workspace: Path, transcripts: Transcripts) -> Prepared:
    """A job that scores transcripts: no task is asked, and a row only has to come with sound signals."""
    evaluation = _open_evaluation(job)
    return Prepared(
        job=job,
        workspace=workspace,
        tasks={},
        plan=plan_transcripts(job, len(transcripts)),
        sampling={TASK: Sampling(max_tokens=job.teacher.max_model_len or LONGEST_TRANSCRIPT)},
        gates={TASK: Gate(None, check=False)},
        renderers={},
        sources={},
        filters={TASK: open_filters(job.filters, StyleConfig(), evaluation)},
        judges={},
        formula=compile_formula(job.difficulty.formula, known_names(1, job.signals.top_k, False)),
        evaluation=evaluation,
        transcripts=transcripts,
    )


def _open_evaluation(job: Job) -> Index | None:
    contamination = job.filters.contamination
    return open_index(contamination) if contamination is not None else None


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
    # the digest says which rows a job makes, so where they go, how fast and how well checked they are is not in it
    job = prepared.job.model_dump(mode="json", exclude={"out"})
    for teacher in filter(None, (job["teacher"], (job["judge"] or {}).get("teacher"))):
        for name in HOW_NOT_WHAT:
            del teacher[name]
        forget_manner(teacher)
    del job["signals"]["verify_rows"]  # how much is checked, not what is made
    # what a task's rows are sampled and gated with stands in `tasks`, whichever of three places it was said in
    for said in (job, *job["tasks"]):
        del said["sampling"]
    for said in (job["validation"], *job["tasks"]):
        del said["gate"]
    tasks = {task.name: _describe_task(prepared, task) for task in prepared.tasks.values()}
    sources = {name: source.digest() for name, source in prepared.sources.items()}
    sources |= {} if prepared.transcripts is None else {TASK: prepared.transcripts.digest()}
    evaluation = prepared.evaluation.digests if prepared.evaluation is not None else {}
    sections: dict[str, Any] = {"job": job, "tasks": tasks, "sources": sources, "evaluation_files": evaluation}
    meaning = {"distribution": "before temperature and grammar mask", "logarithm": "natural", "entropy": "nats, exact"}
    if prepared.job.teacher.remote:
        meaning |= {"distribution": "the endpoint's own, as teacher.details says", "entropy": "nats, a lower bound"}
        meaning |= {"tail": "one minus the kept ids, an upper bound where that is 1e-6"}
    meaning |= {"topk_logprobs": "float16", "hidden_states": "bfloat16", "layers": "0 embeddings, i output of block i"}
    meaning |= BOUNDS if prepared.job.storage.logprobs == "compact" else {}
    meaning |= {"logprobs": prepared.job.storage.logprobs}
    versions = {"format": FORMAT_VERSION, "manifest": MANIFEST_VERSION, "factory": __version__}
    copies = {task.name: {path.name: digest_bytes(path) for path in task.sources} for task in prepared.tasks.values()}
    return sections | {DIGEST: digest_job(sections), "meaning": meaning, "versions": versions, COPIES: copies}


def _describe_task(prepared: Prepared, task: Task) -> dict[str, Any]:
    """What of a task decides its rows: not what it says of itself, nor a rubric that no judge reads."""
    judged = task.name in prepared.judges
    return {
        "version": task.version,
        "levels": list(task.levels),
        "style": task.style.model_dump(mode="json"),
        "gate": "check" if prepared.gates[task.name].check else "schema",
        "sampling": _describe_sampling(prepared.sampling[task.name]),
        "files": {name: digest for name, digest in task.digests.items() if judged or Path(name).name != JUDGE},
    }


def _describe_sampling(sampling: Sampling) -> dict[str, Any]:
    """All of it; without what came later and is off, so that datasets begun before it go on."""
    told = asdict(sampling)
    return told if sampling.stop_repetition else {n: v for n, v in told.items() if n != "stop_repetition"}


def keep_provenance(prepared: Prepared, ledger: Ledger) -> None:
    """Copies of the job and of the tasks' sources, as they were when the dataset was begun."""
    out = ledger.out
    if not ledger.entries:  # a job without rows may have been corrected
        shutil.rmtree(out / "templates", ignore_errors=True)
    before = read_manifest(out)[COPIES]
    kept = {name: _keep_copies(out, task, before.get(name, {})) for name, task in prepared.tasks.items()}
    if kept != before:
        replace_section(out, COPIES, kept)
    # what may change between two runs of a job must not make the copy differ from what the first rows were made with
    if ledger.entries and (out / "job.toml").exists():
        return
    job = prepared.job.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    write_atomically(out / "job.toml", tomli_w.dumps(job).encode())


def _keep_copies(out: Path, task: Task, before: dict[str, str]) -> dict[str, str]:
    """Put back what is lost of a task's copies; digests of what lies there in the end.

    A copy that is whole stays, whatever its source has become: a comment may change, and the first rows were made with
    the first. One that is lost is made of the source as it is now, which decides the same rows, or given up with it.
    """
    target = out / "templates" / task.name
    target.mkdir(parents=True, exist_ok=True)
    sources, kept = {path.name: path for path in task.sources}, {}
    for name, digest in before.items():
        copy = target / name
        if copy.is_file() and digest_bytes(copy) == digest:
            kept[name] = digest
        elif name in sources:
            write_atomically(copy, sources[name].read_bytes())
            kept[name] = digest_bytes(copy)
        else:
            copy.unlink(missing_ok=True)
    return kept
