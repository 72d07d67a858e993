"""Everything about a job that can be known before a teacher starts: found, checked, and described for the manifest."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

from factory.errors import JobError, nearest
from factory.hashing import content_hash
from factory.job.gates import StyleConfig
from factory.job.job import Job
from factory.quality.contamination import Index, open_index
from factory.quality.difficulty import Formula, compile_formula, known_names
from factory.quality.filters import RowFilters, find_contaminated_prompt, open_filters
from factory.quality.judge import Judge, open_judges
from factory.quality.trial import require_tried
from factory.quality.validate import Gate
from factory.records import PlannedRow, Prompt, Rejection, Sampling
from factory.runs.goals import Goals, read_goals, require_teachers, teacher_budget
from factory.runs.plan import Plan, make_plan, plan_transcripts, resolve_gates, resolve_sampling
from factory.tasks.calls import find_misfit
from factory.tasks.faults import TaskFault
from factory.tasks.render import Renderer, open_renderer
from factory.tasks.sources import NO_LEVEL, Source, open_source
from factory.tasks.tables import BadRow
from factory.tasks.tasks import Task, discover
from factory.tasks.transcripts import TASK, Transcripts, open_transcripts
from factory.tasks.user_rows import require_sound

LONGEST_TRANSCRIPT = 32_768  # tokens, for a bound on the disk where no window is named


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
    # names of the workspace's tasks that stand in the place of built-in ones
    replacing: tuple[str, ...] = ()
    # What the dataset was begun for, where it was begun for another job than one that asks for more now.
    begun: Goals | None = None
    # Whose part of the job this is, where it has several teachers.
    turn: str = ""
    # Number and count, where this is one of several parts of the plan.
    part: tuple[int, int] | None = None

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
        if row.teacher:
            prompted = self.job.teachers[row.teacher].reasoning == "prompted"
            renderer = replace(renderer, prompted_reasoning=prompted)
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
            teacher=row.teacher,
        )

    @property
    def share(self) -> float:
        """Which share of the plan's shards is to be made here."""
        return 1.0 if self.part is None else 1 / self.part[1]

    @property
    def has_student(self) -> bool:
        """Whether a task shows the student another prompt than the teacher."""
        return any(task.has_student for task in self.tasks.values())

    def most_rows(self) -> dict[str, int]:
        """Rows that the job makes by task, at most: those of what is to come, too."""
        samples = self.plan.samples
        if self.transcripts is not None:
            return {TASK: self.plan.planned}
        goals = read_goals(self.job)
        return {
            task.name: samples
            * teacher_budget(task, self.tasks[task.name], self.sources.get(task.name), goals[task.name], self.turn)
            for task in self.job.tasks
        }

    def of_teacher(self, name: str) -> "Prepared":
        """What one of several teachers has of the job: its rows, and its table as the job's `teacher`."""
        return replace(self, job=self.job.of_teacher(name), plan=self.plan.of_teacher(name), turn=name)

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
    found = discover(workspace, names)
    tasks = {task.name: task for task in found.get(names)}
    require_tried(list(tasks.values()))
    for index, config in enumerate(job.tasks):
        if config.source is None and tasks[config.name].sample is None:
            raise JobError(f"tasks.{index}: {config.name} has no sample(); give it a source")
    require_teachers(job, tasks)
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
        replacing=tuple(name for name in tasks if name in found.replacing),
    )


def _open_sources(job: Job, tasks: dict[str, Task]) -> dict[str, Source]:
    """The sources of a job's tasks; every row is looked at where a bad one stops the job."""
    sources: dict[str, Source] = {}
    for index, config in enumerate(job.tasks):
        if config.source is not None:
            task, where = tasks[config.name], f"tasks.{index}.source"
            # of rows that are asked until enough are accepted, nobody knows how many it will be
            needed = config.count or "all"
            source = open_source(config.source, where, job.seed, needed, task.Scenario, task.levels)
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
    # of several teachers, each has blocks of its own
    cells = list(dict.fromkeys((name, each) for name, each, _, _ in prepared.plan.blocks))
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
    job = _with_candidates(job, transcripts)
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


def _with_candidates(job: Job, transcripts: Transcripts) -> Job:
    """The job, which says that its data names candidates where it does: its rows have columns for them.

    Raises JobError where nothing of a distribution is kept, and so no candidate's log-probability either.
    """
    config = job.transcripts
    if config is None or not transcripts.names_candidates:
        return job
    named = transcripts.columns["candidate_ids"]
    if not job.signals.top_k:
        raise JobError(
            f"signals.top_k is 0, so no logprobs are kept, and {config.path} names candidates ({named}); set top_k = 1 "
            f"or more, or rename the column"
        )
    columns = config.columns | {"candidate_ids": named}
    return job.model_copy(update={"transcripts": config.model_copy(update={"columns": columns})})


def _open_evaluation(job: Job) -> Index | None:
    contamination = job.filters.contamination
    return open_index(contamination) if contamination is not None else None
