"""A job, from plan to dataset: the one place that sees every stage. Follow one record through `produce`.

    plan -> render -> teacher -> parse -> validate -> filter -> judge -> choose among samples -> shard -> ledger
    prepare           desk                                             finish                   here

Rows of many shards are in flight at once; a shard is committed when its last row is decided. Every planned row ends as
one accepted record, one rejection or one error, and the ledger refuses a shard for which that does not hold.
"""

import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from factory.checks.fidelity import check_run, require_passed
from factory.checks.repair import repair
from factory.dataset.entries import ShardEntry, Totals, summarize_shard
from factory.dataset.history import begin_run, end_run
from factory.dataset.late import write_late
from factory.dataset.ledger import LEDGER, SPOOL, WORKERS, Ledger, hold, open_ledger, planned_shards, require_manifest
from factory.dataset.manifest import reconcile_manifest
from factory.dataset.shards import write_shard
from factory.dataset.sound import require_present
from factory.dataset.stages import current_summary
from factory.dataset.store import DISK, Store
from factory.errors import DatasetError
from factory.job.job import Job
from factory.publish.card import save_card
from factory.quality.parse import count_tokens
from factory.records import Outcome, PlannedRow, Prompt, Rejection
from factory.runs.desk import JUDGE_FOLDER, Desk, open_desk, require_later_served, require_ways
from factory.runs.finish import Draft, Finished, finish_alone, finish_shards
from factory.runs.parts import require_same_part
from factory.runs.plan import Rows
from factory.runs.prepare import Prepared, prepare
from factory.runs.progress import Progress, Reporter, chooses_later
from factory.runs.provenance import describe_job, describe_plan, keep_provenance
from factory.runs.room import Room
from factory.runs.rounds import catch_up, count_accepted, later_turns, next_turn, pending_of, plan_on, resume
from factory.runs.watch import Watch
from factory.teachers import require_startable

# what makes all that is left: the job, its manifest, the ledger, where to tell of it
Make = Callable[[Prepared, dict[str, Any], Ledger, Reporter], None]
MOST_HELD = 16  # whole shards that wait while a task is in doubt, for one that has few rows may be so for long


def run(job: Job, workspace: Path, out: Path, mend: bool = False, log_json: bool = False) -> Totals:
    """Prepare a job and run it, all in one; see `run_prepared`."""
    return run_prepared(prepare(job, workspace), out, mend, log_json)


def run_prepared(
    prepared: Prepared,
    out: Path,
    mend: bool = False,
    log_json: bool = False,
    make: Make | None = None,
    store: Store = DISK,
) -> Totals:
    """Make the job's dataset in `out`, going on from what is committed there. Returns the dataset's totals.

    `make` makes what is left, where not this process does; `store` keeps the shards, where the directory does not.
    `mend` first gives up every shard that is damaged, so that it is made again, and no other.
    Raises FidelityError where the whole dataset's signals do not pass their check, another FactoryError for anything
    that is the user's to mend; nothing that was committed is touched.
    """
    reporter = Reporter(as_json=log_json)
    # a run that cannot begin leaves no folder behind; of one that has begun, all rows may be there
    if make is None and store is DISK and not (out / LEDGER).exists():
        require_ways(prepared.job, require_startable)
    with hold(out), store.hold(out, reporter.tell):
        try:
            # what is there was planned for the job as it was begun, which may have asked for less
            prepared = resume(prepared, out)
            require_same_part(prepared, out)
            manifest = describe_job(prepared)
            plan = describe_plan(prepared, manifest)
            # checked before anything is opened: a folder that is not this job's is never touched
            if mend:
                _tell_repaired(repair(out, plan, manifest), reporter)
            else:
                require_manifest(out)
            ledger = open_ledger(out, plan, manifest, store)
            # a run never looks at what is committed: without this it would call complete what is not there
            if store is DISK:
                require_present(ledger)
            keep_provenance(prepared, ledger)
            catch_up(prepared, ledger)
            prepared = plan_on(prepared, ledger)
            # before anything is spent: what refuses to be written to says so now
            store.save()
            planned, done = ledger.totals.planned, ledger.totals.done
            reporter.tell(
                "started", out=store.address or str(out), digest=manifest["digest"], planned=planned, committed=done
            )
            for name in prepared.replacing:
                reporter.tell("replaced", f"task {name}: yours, which replaces the built-in one", task=name)
            if next_turn(prepared, ledger) is not None:
                require_later_served(prepared.job, later_turns(prepared, ledger), out)
                (make or _run_teachers)(prepared, manifest, ledger, reporter)
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


@contextmanager
def told_in_history(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Two lines in runs.jsonl around what is done inside; the second has the figures that are given meanwhile."""
    # before anything is spent: a run that is killed outright leaves this line and no other
    began = begin_run(ledger.out, ledger.totals.done)
    figures: dict[str, Any] = {}
    outcome = "failed"
    try:
        yield figures
        outcome = "complete"
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        outcome = "stopped"
        raise
    finally:
        end_run(ledger.out, began, outcome, figures)


def _run_teachers(prepared: Prepared, manifest: dict[str, Any], ledger: Ledger, reporter: Reporter) -> None:
    """Ask, decide and commit what is left; several teachers take turns."""
    with told_in_history(ledger) as figures, ExitStack() as whole:
        progress: Progress | None = None
        while (turn := next_turn(prepared, ledger)) is not None:
            with ExitStack() as stack:
                begin = time.monotonic()
                desk = open_desk(prepared, ledger.out, stack, reporter, turn)
                reconcile_manifest(ledger.out, manifest | desk.described)
                seconds = time.monotonic() - begin
                figures["startup_seconds"] = round(figures.get("startup_seconds", 0) + seconds, 3)
                # rows are counted from when the first teacher is ready, and not while the next one starts
                if progress is None:
                    progress = whole.enter_context(open_progress(prepared, ledger, reporter))
                else:
                    progress.wait(seconds)
                try:
                    prepared = _make_rows(desk, ledger, progress)
                finally:
                    figures |= progress.summary()


def open_progress(
    prepared: Prepared, ledger: Ledger, reporter: Reporter, crew: Callable[[], dict[str, Any]] = dict
) -> Progress:
    """Progress from where the ledger stands; `crew` tells of the workers of a cluster."""
    totals, later = ledger.totals, chooses_later(prepared.job)
    goals = totals.goals if len(totals.goals) == len(prepared.tasks) else {}
    wanted = sum(goal["accepted"] for goal in goals.values())
    return Progress(totals.planned, totals.done, totals.accepted, reporter, later, wanted, crew=crew)


def _make_rows(desk: Desk, ledger: Ledger, progress: Progress) -> Prepared:
    """Commit round after round until no row is wanting, or another teacher's are; the job with what is planned then."""
    progress.spent = desk.teacher.spent
    while True:
        _make_round(desk, ledger, progress)
        before, desk.prepared = desk.prepared, plan_on(desk.prepared, ledger)
        if desk.prepared is not before:
            progress.plan(ledger.totals.planned)
            progress.reporter.tell("round", planned=ledger.totals.planned, accepted=ledger.totals.accepted)
        if not ledger.totals.left or next_turn(desk.prepared, ledger) != desk.turn:
            return desk.prepared


def _make_round(desk: Desk, ledger: Ledger, progress: Progress) -> None:
    """Commit shard after shard of what is planned for this teacher, until no row of it is left."""
    prepared, out = desk.prepared, ledger.out
    room = Room(out, prepared.plan.shard_size(0))
    # of several teachers each is new
    known = count_accepted(prepared.plan, ledger, desk.turn)
    watch = Watch(task for (task, _), rows in known.items() if rows)
    shards = produce(desk, room, pending_of(prepared, ledger, desk.turn), watch, progress)
    for finished in finish_alone(prepared, shards) if prepared.part else finish_shards(prepared, ledger, shards):
        # files first, then the line in the ledger: what the ledger names is whole on the disk
        entry = store_shard(desk, out, room, finished)
        ledger.commit(entry)
        # only now may the spool forget them: a kill before the commit finds every answer again
        for outcome in finished.outcomes:
            desk.release(outcome.prompt)
        save_card(ledger, current_summary(ledger))
        ledger.store.save()
        progress.commit(entry.planned, entry.accepted)
        progress.reporter.tell("shard", **entry.counts())
    watch.tell_failed(partial(_count_rows, prepared, ledger, desk.turn), progress.reporter.tell)
    room.require_none_left(sum(map(prepared.plan.shard_size, pending_of(prepared, ledger, desk.turn))))


def store_shard(desk: Desk, out: Path, room: Room, finished: Finished) -> ShardEntry:
    """Write a shard's files; its line for the ledger."""
    shard, outcomes, pairs = finished.shard, finished.outcomes, finished.pairs
    room.require(shard, outcomes)
    files = write_shard(out, shard, outcomes, desk.signals, pairs)
    if finished.late is not None:
        files.append(write_late(out, shard, outcomes, pairs, finished.late, desk.signals))
    return summarize_shard(shard, outcomes, files, desk.prepared.scrubbed(shard))


def _count_rows(prepared: Prepared, ledger: Ledger, turn: str) -> Counter[str]:
    """The rows of each task that a teacher has in this directory."""
    if prepared.part is None:
        return Counter(prepared.plan.of_teacher(turn).rows_of_tasks())
    own = (shard for shard in planned_shards(ledger.plan) if prepared.plan.round_of(shard).teacher == turn)
    return Counter(row.task for shard in own for row in prepared.plan.rows(shard))


def _settle(ledger: Ledger) -> None:
    """Give a complete dataset its final form; an earlier run may have been killed after its last commit."""
    ledger.finish()
    save_card(ledger, current_summary(ledger))
    for name in (SPOOL, JUDGE_FOLDER, WORKERS):
        shutil.rmtree(ledger.out / name, ignore_errors=True)


def produce(
    desk: Desk, room: Room, shards: Iterable[int], watch: Watch, progress: Progress
) -> Iterator[tuple[int, list[Outcome]]]:
    """Whole shards, each as soon as its last row is decided."""
    prepared, rows = desk.prepared, Rows(desk.prepared.plan, iter(shards))
    drafts: dict[int, Draft] = {}
    held: deque[tuple[int, list[Outcome]]] = deque()
    while True:
        decided: list[Outcome] = []
        # while the disk is short nothing more is asked, until what is asked is committed
        while not decided and not room.short(desk.waiting()) and desk.teacher.room():
            # a row's next attempt goes first: its shard waits for it
            prompt = desk.again.popleft() if desk.again else _next_prompt(desk, rows)
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
            progress.answer(count_tokens(generation)[1])
            outcome = desk.conclude(generation)
            if outcome is not None:
                decided.append(outcome)
        for outcome in decided:
            progress.finish_row(not isinstance(outcome, Rejection))
            room.saw(outcome)
            watch.saw(outcome, progress.committed)
            shard = outcome.prompt.shard
            draft = drafts.setdefault(shard, Draft([None] * prepared.plan.shard_size(shard)))
            # shards are whole in any order; only duplicates need them in theirs, see `_in_order`
            if draft.put(outcome):
                held.append((shard, drafts.pop(shard).whole()))
        while held and (not watch.in_doubt or len(held) > MOST_HELD):
            yield held.popleft()


def _next_prompt(desk: Desk, rows: Iterator[PlannedRow]) -> Prompt | Rejection | None:
    row = next(rows, None)
    prompt = None if row is None else desk.prepared.render(row)
    shown = desk.show_student(prompt) if isinstance(prompt, Prompt) else None
    # nobody is asked for what no student could be shown
    return shown if isinstance(shown, Rejection) else prompt
