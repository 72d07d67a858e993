"""Commands that take a job: plan, run, score; and merge, which joins what was made of one in parts."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from factory.cli.arguments import Commands, Parser, directory, file, positive, print_lines, target
from factory.errors import JobError
from factory.terminal import say

if TYPE_CHECKING:
    from factory.dataset.bucket import Url
    from factory.dataset.entries import Totals
    from factory.dataset.store import Store
    from factory.job.job import Job
    from factory.runs.prepare import Prepared


STOPPED: Final = "committed shards are safe, the same command goes on from them"


def add(commands: Commands) -> None:
    """The group's commands and their arguments."""
    plan = commands.add_parser("plan", help="what a job will take: rows, tokens, bytes a token, disk; spends nothing")
    plan.add_argument("job", type=file)
    plan.add_argument("--out", help="instead of the job's out")
    plan.add_argument(
        "--pilot",
        type=positive,
        metavar="N",
        help="run N rows of each task with the teacher, measure, and discard them",
    )
    plan.add_argument("--gpus", type=positive, metavar="N", help="with --tps: wall time, disk and driver on N GPUs")
    plan.add_argument("--tps", type=positive, metavar="R", help="completion tokens a second of each GPU")
    plan.set_defaults(command=_plan)

    run = commands.add_parser("run", help="run a job, or go on with it where it stopped")
    run.add_argument("job", type=file)
    run.add_argument("--out", help="instead of the job's out")
    score = commands.add_parser("score", help="take the signals of transcripts that exist, or go on with it")
    score.add_argument("job", type=file)
    score.add_argument("--out", help="instead of the job's out")
    score.add_argument("--traces", type=target, help="write the traces here again, with reference_logprobs")
    for command in (plan, run, score):
        allow_outside(command)
    for command in (run, score):
        command.add_argument("--repair", action="store_true", help="make damaged shards again, and only those")
        command.add_argument("--log-json", action="store_true", help="progress as JSON lines on standard error")
        command.add_argument("--no-disk-check", action="store_true", help="start even where the disk looks too small")
        command.add_argument(
            "--part",
            metavar="I/N",
            help="make the Ith of N parts of the plan, in OUT-part-I-of-N, for factory merge",
        )
        command.add_argument("--ray", metavar="ADDRESS", help="make it on a Ray cluster; local starts one here")
        command.add_argument(
            "--metrics", type=positive, metavar="PORT", help="with --ray: for Prometheus, on this port"
        )
        command.add_argument(
            "--take-over", action="store_true", help="with an out in an object store: from a run that is gone"
        )
        command.set_defaults(command=_run, scores=command is score, stopped=STOPPED)

    merge = commands.add_parser("merge", help="join the parts of a plan to the dataset that one run makes")
    merge.add_argument("out", type=target, help="a new directory")
    merge.add_argument(
        "parts", type=directory, nargs="+", metavar="PART", help="the directories of all parts, in any order"
    )
    merge.add_argument("--copy", action="store_true", help="copy files where they could be hard links")
    merge.set_defaults(command=_merge)


def allow_outside(command: Parser) -> None:
    """Let a command take jobs whose own paths lead anywhere, where its user says so."""
    command.add_argument(
        "--allow-outside", action="store_true", help="let the job's own paths lead out of the workspace"
    )


def read_job(options: argparse.Namespace) -> tuple[Any, "Path | Url"]:
    """The job, and where its dataset goes; its own paths stay inside unless the options say otherwise."""
    from factory.dataset.bucket import is_url, read_url
    from factory.dataset.manifest import require_no_address, require_plain_path
    from factory.job.job import load_job, source_paths
    from factory.job.paths import require_inside

    job = load_job(options.job)
    named = options.out or job.out
    out: Path | Url
    if is_url(named):
        out = read_url(named)
    else:
        require_no_address(named)  # as it was typed: a Path loses a slash of it
        out = Path(named)
        require_plain_path(out)
    if not options.allow_outside:
        # an --out was typed by whoever starts the job; the paths inside it may be anyone's
        paths = [("out", out)] if isinstance(out, Path) and not options.out else []
        paths += [] if isinstance(out, Path) else [("store.folder", Path(job.store.folder))]
        require_inside([*paths, *source_paths(job)], [Path(), options.workspace, options.job.parent])
    return job, out


def _work_in(job: "Job", out: "Path | Url") -> Path:
    """The directory that a dataset is made in: its own, or a working folder of one in an object store."""
    return out if isinstance(out, Path) else Path(job.store.folder) / out.folder


def _plan(options: argparse.Namespace) -> int:
    from factory.forecast.estimate import estimate
    from factory.forecast.scale import Fleet

    if (options.gpus is None) != (options.tps is None):
        raise JobError("--gpus and --tps belong together: how many there are, and how fast each is; give both")
    fleet = Fleet(options.gpus, options.tps) if options.gpus is not None else None
    job, out = read_job(options)
    address = "" if isinstance(out, Path) else str(out)
    print_lines(estimate(job, options.workspace, _work_in(job, out), options.pilot, fleet, address))
    return 0


def _run(options: argparse.Namespace) -> int:
    from factory.forecast.estimate import require_room
    from factory.publish.show import describe_nothing, describe_totals
    from factory.publish.targets import require_file
    from factory.runs.prepare import prepare

    job, place = read_job(options)
    # which command it is stands in the job too; both must say the same, before an engine is started for nothing
    if options.scores != (job.transcripts is not None):
        other, why = ("run", "no [transcripts]") if options.scores else ("score", "[transcripts] in place of [[tasks]]")
        raise JobError(f"{options.job}: has {why}; use factory {other}")
    prepared = prepare(job, options.workspace)
    prepared, place = _take_part(options, prepared, place)
    out, store = _work_in(job, place), _open_store(options, place)
    traces = getattr(options, "traces", None)
    if traces is not None:
        _require_traces(prepared)
        require_file(traces, "what --traces writes", "traces.jsonl")  # before a teacher is asked for what goes into it
    warning = None if options.no_disk_check else require_room(prepared, out, store.address)
    if warning:
        say(warning, sys.stderr)
    totals = _make(options, prepared, out, store)
    print_lines(describe_totals(out, totals, store.address))
    if traces is not None:
        _write_traces(prepared, out, traces)
    if totals.accepted:
        return 0
    say(
        f"error: no row of {totals.planned:,} was accepted; {describe_nothing(out, totals, not store.address)}",
        sys.stderr,
    )
    return 1


def _open_store(options: argparse.Namespace, place: "Path | Url") -> "Store":
    """What keeps the dataset. Raises JobError for options that mean nothing there."""
    from factory.dataset.object_store import ObjectStore
    from factory.dataset.store import DISK

    if isinstance(place, Path):
        if options.take_over:
            raise JobError(
                f"--take-over: {place} is a directory, where the system lets go of what is gone; leave it out"
            )
        return DISK
    named = {"--repair": options.repair, "--traces": getattr(options, "traces", None)}
    if asked := next((name for name, given in named.items() if given), None):
        raise JobError(
            f"{asked}: reads files of shards, which are in {place} and not here; copy all to a directory "
            f"(`aws s3 sync {place} DIR`), and give --out DIR {asked}"
        )
    return ObjectStore(place, options.take_over)


def _make(options: argparse.Namespace, prepared: "Prepared", out: Path, store: "Store") -> "Totals":
    """Run a job, here or on a cluster."""
    if options.ray is not None:
        from factory.runs.cluster import run_on_cluster

        return run_on_cluster(prepared, out, options.ray, options.repair, options.log_json, options.metrics, store)
    if options.metrics is not None:
        raise JobError("--metrics is of a run on a cluster; give --ray too, or leave it out")
    from factory.runs.run import run_prepared

    return run_prepared(prepared, out, mend=options.repair, log_json=options.log_json, store=store)


def _take_part(options: argparse.Namespace, prepared: "Prepared", out: "Path | Url") -> tuple["Prepared", "Path | Url"]:
    """The part of the job that is asked for, and its place; the whole job where none is."""
    from factory.runs.parts import part_path, read_part, take_part

    if options.part is None:
        return prepared, out
    try:
        part = read_part(options.part)
    except ValueError as error:
        raise JobError(f"--part: {error}") from None
    if getattr(options, "traces", None) is not None:
        raise JobError("--traces: a part has only some of the rows; merge the parts, then score into the whole with it")
    return take_part(prepared, part), out if options.out else part_path(out, part)


def _merge(options: argparse.Namespace) -> int:
    from factory.publish.show import describe_totals
    from factory.runs.merge import merge

    totals = merge(options.out, options.parts, copy=options.copy)
    print_lines(describe_totals(options.out, totals))
    return 0


def _require_traces(prepared: "Prepared") -> Path:
    """The file of traces that a job scores. Raises JobError where there is none, or it could have no logprobs."""
    assert prepared.transcripts is not None
    if not prepared.job.signals.top_k:
        raise JobError("signals.top_k is 0, so no logprobs are kept; set it, or leave --traces out")
    return prepared.transcripts.traces()


def _write_traces(prepared: "Prepared", out: Path, target: Path) -> None:
    from factory.publish.traces import write_traces

    assert prepared.transcripts is not None
    plan = prepared.plan
    rows = (row for shard in range(plan.shards) for row in plan.rows(shard))
    nodes = write_traces(out, _require_traces(prepared), target, prepared.transcripts.places(rows))
    print_lines([f"{target}: {nodes:,} nodes have reference_logprobs"])
