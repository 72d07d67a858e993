"""The command line: arguments, printing and exit codes, no logic.

Exit codes: 0 done, 1 `verify`, `tasks`, `test` or a run's fidelity check found faults, or a run accepted no row, 2 bad
input (one line says what), 130 and 143 stopped by a signal (the same command goes on). Heavy imports stay inside the
commands, so `--help` is quick.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from factory import __version__
from factory.errors import FactoryError, JobError, TaskError, Terminated
from factory.terminal import printable, report, say


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `factory`."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _on_sigterm)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
    except FactoryError as error:
        code = report(error)
    except BrokenPipeError:
        # `factory show DIR | head`: no error of anyone's. Python flushes stdout once more as it ends, now into nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        # a disk or a right that is missing in a place that has no better message: the user's to mend, so no traceback
        say(f"error: {error.filename or 'file system'}: {error.strerror or error}", sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped; committed shards are safe, the same command goes on from them", file=sys.stderr)
        code = 130
    sys.exit(code)


def _on_sigterm(number: int, frame: object) -> NoReturn:
    # SystemExit passes through every `finally` and context manager, as Ctrl-C does: the engine is stopped in order
    print("stopped by SIGTERM; committed shards are safe, the same command goes on from them", file=sys.stderr)
    raise Terminated(143)


class Parser(argparse.ArgumentParser):
    """A parser whose messages, which repeat what was typed, reach the terminal as all else does."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message), file)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = Parser(
        prog="factory",
        description="Make distillation datasets: templates in; validated rows with logprobs and hidden states out.",
    )
    parser.add_argument("--version", action="version", version=f"factory {__version__}")
    parser.add_argument(
        "--workspace", type=Path, default=Path(), help="folder with your prompts/ and schemas/ (default: here)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    tasks = commands.add_parser("tasks", help="list tasks: version, levels, schema, what is broken and why")
    tasks.set_defaults(command=_tasks)

    test = commands.add_parser("test", help="try a task with many seeds: budgets, check, golden lines, determinism")
    test.add_argument("task")
    test.add_argument("--seeds", type=_positive, default=50, metavar="N", help="of each level (default: 50)")
    test.add_argument("--model", default="demo", help="whose tokenizer counts (default: demo)")
    test.set_defaults(command=_test)

    new = commands.add_parser("new", help="start a task: prompts/NAME/ and schemas/NAME.py that pass as they are")
    new.add_argument("name")
    new.set_defaults(command=_new)

    _add_jobs(commands, _add_preview(commands))

    status = commands.add_parser("status", help="planned, accepted, rejected by reason, errors, left")
    status.add_argument("dir", type=Path)
    status.add_argument("--json", action="store_true", help="one JSON object")
    status.set_defaults(command=_status)

    verify = commands.add_parser("verify", help="check checksums, counts, columns and alignment of a dataset")
    verify.add_argument("dir", type=Path)
    verify.add_argument(
        "--fidelity", type=_positive, metavar="N", help="also run N rows again through transformers and compare"
    )
    verify.set_defaults(command=_verify)

    _add_curriculum(commands)

    show = commands.add_parser("show", help="show the first rows, readable, with their signals")
    show.add_argument("dir", type=Path)
    show.add_argument("-n", type=_positive, default=1, metavar="COUNT", help="how many (default: 1)")
    show.add_argument("--rejected", action="store_true", help="rows that were not accepted, and why")
    show.add_argument("--reason", help="of these, the ones with this reason, stage, or STAGE/REASON")
    show.add_argument("--task", help="rows of this task")
    show.add_argument("--level", help="rows of this level")
    show.add_argument("--id", help="rows whose id, or their prompt's, begins so; accepted or not")
    show.set_defaults(command=_show)
    return parser


def _add_preview(commands: "argparse._SubParsersAction[Parser]") -> Parser:
    preview = commands.add_parser("preview", help="show rendered prompts, without a teacher")
    preview.add_argument("task", nargs="?", help="may be left out with --job: then of each task in turn")
    preview.add_argument("--job", type=Path, metavar="JOB", help="the prompts that this job will ask, its sources' too")
    preview.add_argument("-n", type=_positive, default=1, metavar="COUNT", help="how many (default: 1)")
    preview.add_argument("--level", help="one level (default: each in turn)")
    preview.add_argument("--seed", type=int, help="(default: 0); a job has its own")
    preview.add_argument("--model", metavar="M", help="the exact text and number of ids this teacher would be given")
    preview.add_argument("--json", action="store_true", help="one JSON object a line")
    preview.set_defaults(command=_preview, out=None)
    return preview


def _add_jobs(commands: "argparse._SubParsersAction[Parser]", preview: Parser) -> None:
    plan = commands.add_parser("plan", help="what a job will take: rows, tokens, bytes a token, disk; spends nothing")
    plan.add_argument("job", type=Path)
    plan.add_argument("--out", type=Path, help="instead of the job's out")
    plan.add_argument(
        "--pilot",
        type=_positive,
        metavar="N",
        help="run N rows of each task with the teacher, measure, and discard them",
    )
    plan.set_defaults(command=_plan)

    run = commands.add_parser("run", help="run a job, or go on with it where it stopped")
    run.add_argument("job", type=Path)
    run.add_argument("--out", type=Path, help="instead of the job's out")
    score = commands.add_parser("score", help="take the signals of transcripts that exist, or go on with it")
    score.add_argument("job", type=Path)
    score.add_argument("--out", type=Path, help="instead of the job's out")
    for command in (preview, plan, run, score):
        command.add_argument(
            "--allow-outside", action="store_true", help="let the job's own paths lead out of the workspace"
        )
    for command in (run, score):
        command.add_argument("--repair", action="store_true", help="make damaged shards again, and only those")
        command.add_argument("--log-json", action="store_true", help="progress as JSON lines on standard error")
        command.add_argument("--no-disk-check", action="store_true", help="start even where the disk looks too small")
        command.set_defaults(command=_run, scores=command is score)


def _add_curriculum(commands: "argparse._SubParsersAction[Parser]") -> None:
    curriculum = commands.add_parser("curriculum", help="make stages, splits and hand-off labels of a complete dataset")
    curriculum.add_argument("dir", type=Path)
    curriculum.add_argument("config", type=Path, nargs="?", help="a TOML file (default: 3 stages, easy to hard)")
    curriculum.set_defaults(command=_curriculum)


def _positive(text: str) -> int:
    # int() would also take "1_000", " 7" and "+7"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _print(lines: Iterable[str]) -> None:
    # lines may hold what a job or a model wrote, and be piped into a log that others read
    for line in lines:
        say(line)


def _tasks(options: argparse.Namespace) -> int:
    from factory.quality.trial import try_task
    from factory.tasks.catalog import list_tasks

    lines, problems = list_tasks(options.workspace, try_task)
    _print(lines)
    return 1 if problems else 0


def _test(options: argparse.Namespace) -> int:
    from factory.checks.author import examine

    report = examine(options.workspace, options.task, options.seeds, options.model)
    _print(report.lines())
    return 1 if report.problems else 0


def _new(options: argparse.Namespace) -> int:
    from factory.tasks.catalog import scaffold

    _print(f"wrote {path}" for path in scaffold(options.workspace, options.name))
    say(f"next: factory preview {options.name}")
    return 0


def _preview(options: argparse.Namespace) -> int:
    from factory.publish.show import describe_prompt

    prompts = _preview_job(options) if options.job is not None else _preview_task(options)
    encode = None
    if options.model is not None:
        from factory.job.job import TeacherConfig
        from factory.teachers.tokens import require_exact

        encode = require_exact(TeacherConfig(model=options.model)).encode_prompt
    _print(describe_prompt(prompt, options.json, encode) for prompt in prompts)
    return 0


def _preview_task(options: argparse.Namespace) -> Iterator[Any]:
    from factory.tasks.catalog import preview

    if options.task is None:
        raise TaskError("preview: name a task (factory tasks lists them), or a job with --job")
    return preview(options.workspace, options.task, options.level, options.seed or 0, options.n)


def _preview_job(options: argparse.Namespace) -> Iterator[Any]:
    from factory.runs.prepare import preview_job

    if options.seed is not None:
        raise JobError(f"--seed: {options.job} has a seed of its own; leave it out")
    job, _ = _read_job(options)
    return preview_job(job, options.workspace, options.task, options.level, options.n)


def _plan(options: argparse.Namespace) -> int:
    from factory.forecast.estimate import estimate

    job, out = _read_job(options)
    _print(estimate(job, options.workspace, out, options.pilot))
    return 0


def _read_job(options: argparse.Namespace) -> tuple[Any, Path]:
    """The job, and where its dataset goes; its own paths stay inside unless the options say otherwise."""
    from factory.dataset.manifest import require_plain_path
    from factory.job.job import load_job, source_paths
    from factory.job.paths import require_inside

    job = load_job(options.job)
    out = options.out or Path(job.out)
    require_plain_path(out)
    if not options.allow_outside:
        # an --out was typed by whoever starts the job; the paths inside it may be anyone's
        paths = [] if options.out else [("out", out)]
        require_inside([*paths, *source_paths(job)], [Path(), options.workspace, options.job.parent])
    return job, out


def _run(options: argparse.Namespace) -> int:
    from factory.forecast.estimate import require_room
    from factory.publish.show import describe_totals
    from factory.runs.prepare import prepare
    from factory.runs.run import run_prepared

    job, out = _read_job(options)
    # which command it is stands in the job too; both must say the same, before an engine is started for nothing
    if options.scores != (job.transcripts is not None):
        other, why = ("run", "no [transcripts]") if options.scores else ("score", "[transcripts] in place of [[tasks]]")
        raise JobError(f"{options.job}: has {why}; use factory {other}")
    prepared = prepare(job, options.workspace)
    warning = None if options.no_disk_check else require_room(prepared, out)
    if warning:
        say(warning, sys.stderr)
    totals = run_prepared(prepared, out, mend=options.repair, log_json=options.log_json)
    _print(describe_totals(out, totals))
    if totals.accepted:
        return 0
    say(f"error: no row of {totals.planned:,} was accepted; the reasons are above", sys.stderr)
    return 1


def _status(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from factory.dataset.history import count_runs
    from factory.publish.show import describe_totals, read_samples, read_totals

    totals = read_totals(options.dir)
    if options.json:
        (samples, keep), runs = read_samples(options.dir), asdict(count_runs(options.dir))
        say(json.dumps(totals.figures() | {"samples": samples, "keep": keep, "runs": runs}))
    else:
        _print(describe_totals(options.dir, totals))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from factory.checks.verify import verify
    from factory.publish.show import read_totals

    faults = list(verify(options.dir))
    _print(faults)
    if not faults:
        totals = read_totals(options.dir)
        say(f"{options.dir}: sound: {totals.committed_shards} of {totals.shards} shards, {totals.done:,} rows")
    return 1 if faults or (options.fidelity and not _verify_fidelity(options)) else 0


def _verify_fidelity(options: argparse.Namespace) -> bool:
    from factory.checks.fidelity import check_dataset, describe

    section = check_dataset(options.dir, options.fidelity)
    _print([describe(section)])
    return bool(section["verdict"] != "failed")


def _curriculum(options: argparse.Namespace) -> int:
    from factory.curriculum.build import make_curriculum
    from factory.curriculum.config import load_config
    from factory.dataset.stages import describe_curriculum

    config = load_config(options.config)
    summary = make_curriculum(options.dir, config, str(options.config or "curriculum"))
    _print(describe_curriculum(options.dir, summary))
    return 0


def _show(options: argparse.Namespace) -> int:
    from factory.publish.show import Choice, describe_rows

    choice = Choice(options.rejected, options.reason, options.task, options.level, options.id)
    _print(describe_rows(options.dir, options.n, choice))
    return 0


if __name__ == "__main__":
    main()
