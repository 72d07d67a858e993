"""A job, from plan to dataset: the one place that sees every stage. Follow one record through `_produce`.

    plan -> render -> teacher -> parse -> validate -> filter -> judge -> choose among samples -> shard -> ledger

Rows of many shards are in flight at once; a shard is committed when its last row is decided. Every planned row ends as
one accepted record, one rejection or one error, and the ledger refuses a shard for which that does not hold.
"""

import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from factory.checks.fidelity import check_run, require_passed
from factory.checks.repair import repair
from factory.dataset.history import begin_run, end_run
from factory.dataset.ledger import SPOOL, Ledger, Totals, hold, open_ledger, require_manifest, summarize_shard
from factory.dataset.manifest import read_manifest, reconcile_manifest
from factory.dataset.shards import write_shard
from factory.dataset.stages import current_summary
from factory.errors import DatasetError
from factory.job.gates import StudentConfig
from factory.job.job import Job
from factory.job.signals import SignalsConfig
from factory.publish.card import save_card
from factory.quality.difficulty import measure
from factory.quality.duplicates import Deduplication
from factory.quality.filters import RowFilters, apply
from factory.quality.judge import VERDICT_SCHEMA, judge_id, judge_name
from factory.quality.parse import parse
from factory.quality.retry import ask_again
from factory.quality.samples import choose
from factory.quality.validate import Gate, validate
from factory.quality.withhold import withhold
from factory.records import Generation, Outcome, Pair, PlannedRow, Prompt, Record, Rejection
from factory.runs.prepare import Prepared, describe_job, describe_plan, keep_provenance, prepare
from factory.runs.progress import Progress, Reporter
from factory.runs.room import Room
from factory.runs.watch import Watch
from factory.teachers import Teacher, open_teacher
from factory.teachers.fit import refuse_for_student

JUDGE_FOLDER = ".judge"  # spool and log of a judge that is not the teacher


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


def run(job: Job, workspace: Path, out: Path, mend: bool = False, log_json: bool = False) -> Totals:
    """Prepare a job and run it, all in one; see `run_prepared`."""
    return run_prepared(prepare(job, workspace), out, mend, log_json)


def run_prepared(prepared: Prepared, out: Path, mend: bool = False, log_json: bool = False) -> Totals:
    """Make the job's dataset in `out`, going on from what is committed there. Returns the totals of the whole dataset.

    `mend` first gives up every shard that is damaged, so that it is made again, and no other.
    Raises FidelityError where the whole dataset's signals do not pass their check, another FactoryError for anything
    that is the user's to mend; nothing that was committed is touched.
    """
    manifest = describe_job(prepared)
    plan, reporter = describe_plan(prepared.plan, manifest), Reporter(as_json=log_json)
    with hold(out):
        try:
            # checked before anything is opened: a folder that is not this job's is never touched
            if mend:
                _tell_repaired(repair(out, plan, manifest), reporter)
            else:
                require_manifest(out)
            ledger = open_ledger(out, plan, manifest)
            keep_provenance(prepared, ledger)
            planned, done = ledger.totals.planned, ledger.totals.done
            reporter.tell("started", out=str(out), digest=manifest["digest"], planned=planned, committed=done)
            # a manifest that was lost and made anew does not name the teacher: one is opened although no row is left
            if ledger.totals.left or "teacher" not in read_manifest(out):
                _run_teacher(prepared, manifest, ledger, reporter)
            # no teacher lives here any more, so the plain forward has the memory for itself
            _settle(ledger)
            _check_fidelity(ledger, prepared.job, reporter)
        except BrokenPipeError:  # whoever read our output has left: nothing to do with the disk
            raise
        except OSError as error:  # a disk that is full, read-only or gone
            told = f"{out}: cannot be written: {error.strerror or error}; committed shards are whole"
            raise DatasetError(f"{told}, the same command goes on from them") from error
        reporter.tell("finished", **ledger.totals.figures())
        return ledger.totals


def _tell_repaired(lines: list[str], reporter: Reporter) -> None:
    for line in lines:
        reporter.tell("repair", f"given up, to be made again: {line}", given_up=line)


def _check_fidelity(ledger: Ledger, job: Job, reporter: Reporter) -> None:
    """Run a few rows again, now that no teacher is left. Raises FidelityError where they are not what is stored."""
    told = check_run(ledger, job)
    if told is not None:
        save_card(ledger, current_summary(ledger))
        reporter.tell("fidelity", told, told=told)
        require_passed(ledger.out)


def _run_teacher(prepared: Prepared, manifest: dict[str, Any], ledger: Ledger, reporter: Reporter) -> None:
    """Ask, decide and commit what is left, between two lines of runs.jsonl."""
    # before anything is spent: a run that is killed outright leaves this line and no other
    began, begin = begin_run(ledger.out, ledger.totals.done), time.monotonic()
    figures: dict[str, Any] = {}
    outcome = "failed"
    try:
        with ExitStack() as stack:
            desk = _open_desk(prepared, manifest, ledger.out, stack, reporter)
            figures["startup_seconds"] = round(time.monotonic() - begin, 3)
            _make_rows(desk, ledger, reporter, figures)
        outcome = "complete"
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        outcome = "stopped"
        raise
    finally:
        end_run(ledger.out, began, outcome, figures)


def _open_desk(prepared: Prepared, manifest: dict[str, Any], out: Path, stack: ExitStack, reporter: Reporter) -> "Desk":
    """The desk with teacher and judge ready behind it; what they say of themselves is in the manifest."""
    verdicts = {judge_name(task): VERDICT_SCHEMA for task in prepared.judges}
    tasks, probes = prepared.tasks.values(), prepared.probes()
    teacher = stack.enter_context(open_teacher(prepared.job, tasks, probes, out, verdicts, reporter.tell))
    judge = _open_judge(prepared, stack, out, verdicts, reporter) or teacher
    described = {"teacher": asdict(teacher.info), "signals": teacher.signals.described()}
    described |= {"judge": asdict(judge.info)} if prepared.judges else {}
    reconcile_manifest(out, manifest | described)
    # only the teacher knows which layers `-1` is and how many ids there are; the gates hold rows against that
    return Desk(replace(prepared, gates=gates_for(teacher, prepared.gates)), teacher, judge)


def _make_rows(desk: "Desk", ledger: Ledger, reporter: Reporter, figures: dict[str, Any]) -> None:
    """Commit shard after shard until no row is left; `figures` are filled with what was done, however it ends."""
    prepared, out, totals = desk.prepared, ledger.out, ledger.totals
    room = Room(out, prepared.plan.shard_size(0))
    chosen, spent = chooses_later(prepared.job), desk.teacher.spent
    with Progress(totals.planned, totals.done, totals.accepted, reporter, chosen, spent) as progress:
        try:
            for shard, outcomes, pairs in _finish(prepared, ledger, _produce(desk, room, ledger, progress)):
                # files first, then the line in the ledger: what the ledger names is whole on the disk
                room.require(shard, outcomes)
                files = write_shard(out, shard, outcomes, desk.teacher.signals, pairs)
                entry = summarize_shard(shard, outcomes, files, prepared.scrubbed(shard))
                ledger.commit(entry)
                # only now may the spool forget them: a kill before the commit finds every answer again
                for outcome in outcomes:
                    desk.release(outcome.prompt)
                save_card(ledger, current_summary(ledger))
                progress.commit(entry.planned, entry.accepted)
                reporter.tell("shard", **entry.counts())
            room.require_none_left(totals.left)
        finally:
            figures |= progress.summary()


def chooses_later(job: Job) -> bool:
    """Whether an accepted row may still be turned down when its shard is whole."""
    return job.samples.keep != "all" or job.filters.duplicates or job.filters.near_duplicates is not None


def _open_judge(
    prepared: Prepared, stack: ExitStack, out: Path, verdicts: dict[str, Any], reporter: Reporter
) -> Teacher | None:
    """The judge's own teacher, where the job names one; it keeps no signals."""
    job = prepared.job
    if job.judge is None or job.judge.teacher is None:
        return None
    folder = out / JUDGE_FOLDER
    folder.mkdir(exist_ok=True)
    own = job.model_copy(update={"teacher": job.judge.teacher, "signals": SignalsConfig(top_k=0)})
    return stack.enter_context(open_teacher(own, [], [], folder, verdicts, reporter.tell))


def gates_for(teacher: Teacher, gates: dict[str, Gate]) -> dict[str, Gate]:
    """The gates with what this teacher promises to keep of each row, and how many ids it knows."""
    vocab = teacher.info.details.get("vocab_size")
    return {name: replace(gate, signals=teacher.signals, vocab=vocab) for name, gate in gates.items()}


def _settle(ledger: Ledger) -> None:
    """Give a complete dataset its final form; an earlier run may have been killed after its last commit."""
    ledger.finish()
    save_card(ledger, current_summary(ledger))
    for name in (SPOOL, JUDGE_FOLDER):
        shutil.rmtree(ledger.out / name, ignore_errors=True)


@dataclass(slots=True)
class Desk:
    """What has been asked and is not decided yet: prompts at the teacher, accepted answers at the judge."""

    prepared: Prepared
    teacher: Teacher
    judge: Teacher
    asked: dict[str, Prompt] = field(default_factory=dict)
    judged: dict[str, tuple[Record, Prompt]] = field(default_factory=dict)
    again: deque[Prompt] = field(default_factory=deque)

    def waiting(self) -> int:
        """How many prompts are asked and not decided."""
        return len(self.asked) + len(self.judged)

    def ask(self, prompt: Prompt) -> None:
        self.asked[prompt.id] = prompt
        self.teacher.submit(prompt)

    def collect(self) -> list[Generation]:
        """Wait for the next finished generations; a judge of its own is waited for when it has no room left."""
        # a full judge goes first, else the teacher would fill memory with answers that wait for a verdict
        if self.judge is not self.teacher and not self.judge.room():
            return self.judge.collect()
        return self.teacher.collect() or self.judge.collect()

    def conclude(self, generation: Generation) -> Outcome | None:
        """What becomes of one generation; None where it went to the judge or is asked for again."""
        # one teacher may be its own judge: whose generation this is, the id alone says
        if generation.prompt_id in self.judged:
            record, prompt = self.judged.pop(generation.prompt_id)
            return self._settle(self.prepared.judges[record.prompt.task].conclude(record, prompt, generation))
        prompt = self.asked.pop(generation.prompt_id)
        filters = self.prepared.filters[prompt.task]
        outcome = decide(self.prepared.gates[prompt.task], prompt, generation, filters, self.prepared.job.student)
        judge = self.prepared.judges.get(prompt.task)
        if judge is None or isinstance(outcome, Rejection):
            return self._settle(outcome)
        # nobody judges what a check or a filter has turned down: it would cost a prompt and change nothing
        question = judge.ask(outcome)
        if isinstance(question, Rejection):
            return question
        self.judged[question.id] = (outcome, question)
        self.judge.submit(question)
        return None

    def _settle(self, outcome: Outcome) -> Outcome | None:
        prompt = ask_again(self.prepared.job, outcome) if isinstance(outcome, Rejection) else None
        if prompt is None:
            return outcome
        self.again.append(prompt)
        return None

    def answer(self, prompt: Prompt) -> Outcome:
        """The outcome of one prompt by itself, however often it is asked; nothing else may be waiting."""
        self.again.append(prompt)
        while True:
            if self.again:
                self.ask(self.again.popleft())
            for outcome in map(self.conclude, self.collect()):
                if outcome is not None:
                    return outcome

    def release(self, prompt: Prompt) -> None:
        """A row is committed: nobody needs to keep its generations."""
        self.teacher.release(prompt.id, prompt.attempt)
        if prompt.task in self.prepared.judges:
            for attempt in range(prompt.attempt + 1):
                self.judge.release(judge_id(prompt.id, attempt), 0)


def _produce(desk: Desk, room: Room, ledger: Ledger, progress: Progress) -> Iterator[tuple[int, list[Outcome]]]:
    """Whole shards, each as soon as its last row is decided."""
    prepared = desk.prepared
    rows = (row for shard in ledger.pending() for row in prepared.plan.rows(shard))
    drafts: dict[int, Draft] = {}
    held: deque[tuple[int, list[Outcome]]] = deque()
    watch = Watch(in_doubt=not ledger.totals.accepted)
    while True:
        decided: list[Outcome] = []
        # while the disk is short nothing more is asked, until what is asked is committed
        while not decided and not room.short(desk.waiting()) and desk.teacher.room():
            # a row's next attempt goes first: its shard waits for it
            prompt = desk.again.popleft() if desk.again else _next_prompt(prepared, rows)
            if prompt is None:
                break
            if isinstance(prompt, Rejection):
                decided.append(prompt)
            else:
                desk.ask(prompt)
        generations = [] if decided else desk.collect()
        # nothing asked, nothing under way: all rows are decided, or the disk is short and all that was asked is in
        if not decided and not generations:
            yield from held
            return
        for generation in generations:
            progress.answer(generation.lengths[1])
            outcome = desk.conclude(generation)
            if outcome is not None:
                decided.append(outcome)
        for outcome in decided:
            progress.finish_row(not isinstance(outcome, Rejection))
            room.saw(outcome)
            watch.saw(outcome)
            shard = outcome.prompt.shard
            draft = drafts.setdefault(shard, Draft([None] * prepared.plan.shard_size(shard)))
            # shards are whole in any order; only duplicates need them in theirs, see `_in_order`
            if draft.put(outcome):
                held.append((shard, drafts.pop(shard).whole()))
        while held and not watch.in_doubt:
            yield held.popleft()


def _next_prompt(prepared: Prepared, rows: Iterator[PlannedRow]) -> Prompt | Rejection | None:
    row = next(rows, None)
    return None if row is None else prepared.render(row)


def decide(
    gate: Gate,
    prompt: Prompt,
    generation: Generation,
    filters: RowFilters = (),
    student: StudentConfig | None = None,
) -> Outcome:
    """What becomes of one generation, by itself."""
    answer = parse(prompt, generation)
    if isinstance(answer, Rejection):
        return answer
    outcome = validate(gate, prompt, generation, answer)
    if isinstance(outcome, Record) and student is not None:
        outcome = fit_student(student, outcome)
    return apply(filters, outcome) if isinstance(outcome, Record) else outcome


def fit_student(student: StudentConfig, record: Record) -> Outcome:
    """The record, or its rejection where it has more tokens than the student may be shown."""
    generation = record.generation
    refusal = refuse_for_student(*generation.lengths, student.max_tokens)
    return record if refusal is None else record.reject("filter", refusal[0], (refusal[1],))


def _in_order(ledger: Ledger, shards: Iterator[tuple[int, list[Outcome]]]) -> Iterator[tuple[int, list[Outcome]]]:
    """The same shards, ascending: whether a row is a duplicate depends on those before it."""
    order, whole = deque(ledger.pending()), dict[int, list[Outcome]]()
    for shard, outcomes in shards:
        whole[shard] = outcomes
        while order and order[0] in whole:
            yield order[0], whole.pop(order.popleft())


def _finish(
    prepared: Prepared, ledger: Ledger, shards: Iterator[tuple[int, list[Outcome]]]
) -> Iterator[tuple[int, list[Outcome], list[Pair]]]:
    """Whole shards as they are written: what is kept of each prompt's samples, and nothing that was there already."""
    filters = prepared.job.filters
    forms = {name: task.form for name, task in prepared.tasks.items()}
    deduplication = Deduplication(filters, ledger, forms) if filters.duplicates or filters.near_duplicates else None
    for shard, outcomes in shards if deduplication is None else _in_order(ledger, shards):
        outcomes, pairs = choose_kept(prepared, outcomes)
        if deduplication is not None:
            outcomes = deduplication.check(shard, outcomes)
            accepted = {outcome.prompt.id for outcome in outcomes if isinstance(outcome, Record)}
            pairs = [pair for pair in pairs if pair[0].prompt.id in accepted]
        # last: what was decided was decided of the texts as they came
        yield shard, *withhold(filters, outcomes, pairs)


def choose_kept(prepared: Prepared, outcomes: Iterable[Outcome]) -> tuple[list[Outcome], list[Pair]]:
    """Among all samples of each prompt those that are kept, each with its measures; and the preference pairs."""
    chosen: list[Outcome] = []
    pairs: list[Pair] = []
    for _, group in groupby(outcomes, key=lambda outcome: outcome.prompt.group):
        kept, pair = choose(list(group), prepared.job.samples.keep)
        chosen += [_measured(prepared, outcome) for outcome in kept]
        pairs += [] if pair is None else [pair]
    return chosen, pairs


def _measured(prepared: Prepared, outcome: Outcome) -> Outcome:
    return replace(outcome, measures=measure(outcome, prepared.formula)) if isinstance(outcome, Record) else outcome
