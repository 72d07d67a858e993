"""Commands for whoever writes tasks: tasks, test, new, preview."""

import argparse
from collections.abc import Iterator
from typing import Any

from factory.cli.arguments import Commands, file, positive, print_lines
from factory.cli.jobs import allow_outside, read_job
from factory.errors import JobError, TaskError
from factory.terminal import say


def add(commands: Commands) -> None:
    """The group's commands and their arguments."""
    tasks = commands.add_parser("tasks", help="list tasks: version, levels, schema, what is broken and why")
    tasks.set_defaults(command=_tasks)

    test = commands.add_parser("test", help="try a task with many seeds: budgets, check, golden lines, determinism")
    test.add_argument("task")
    test.add_argument("--seeds", type=positive, default=50, metavar="N", help="of each level (default: 50)")
    test.add_argument("--model", default="demo", help="whose tokenizer counts (default: demo)")
    test.set_defaults(command=_test)

    new = commands.add_parser("new", help="start a task: prompts/NAME/ and schemas/NAME.py that pass as they are")
    new.add_argument("name")
    kinds = ("json", "text", "tools")
    new.add_argument("--kind", choices=kinds, default="json", help="what it answers with (default: json)")
    new.add_argument("--replace", action="store_true", help="let it take the place of a built-in task")
    new.set_defaults(command=_new)

    _add_preview(commands)


def _add_preview(commands: Commands) -> None:
    preview = commands.add_parser("preview", help="show rendered prompts, without a teacher")
    preview.add_argument("task", nargs="?", help="may be left out with --job: then of each task in turn")
    preview.add_argument("--job", type=file, metavar="JOB", help="the prompts that this job will ask, its sources' too")
    preview.add_argument("-n", type=positive, default=1, metavar="COUNT", help="how many (default: 1)")
    preview.add_argument("--level", help="one level (default: each in turn)")
    preview.add_argument("--seed", type=int, help="(default: 0); a job has its own")
    preview.add_argument("--model", metavar="M", help="the exact text and number of ids this teacher would be given")
    preview.add_argument("--json", action="store_true", help="one JSON object a line")
    preview.set_defaults(command=_preview, out=None)
    allow_outside(preview)


def _tasks(options: argparse.Namespace) -> int:
    from factory.quality.trial import try_task
    from factory.tasks.catalog import list_tasks

    lines, problems = list_tasks(options.workspace, try_task)
    print_lines(lines)
    return 1 if problems else 0


def _test(options: argparse.Namespace) -> int:
    from factory.checks.author import examine

    report = examine(options.workspace, options.task, options.seeds, options.model)
    print_lines(report.lines())
    return 1 if report.problems else 0


def _new(options: argparse.Namespace) -> int:
    from factory.tasks.catalog import scaffold

    asked = {"workspace": options.workspace, "name": options.name, "kind": options.kind, "replace": options.replace}
    print_lines(f"wrote {path}" for path in scaffold(**asked))
    say(f"next: factory preview {options.name}")
    return 0


def _preview(options: argparse.Namespace) -> int:
    from factory.publish.show import describe_prompt

    prompts = _preview_job(options) if options.job is not None else _preview_task(options)
    encode = None
    if options.model is not None:
        from factory.job.teacher import TeacherConfig
        from factory.teachers.tokens import require_exact

        encode = require_exact(TeacherConfig(model=options.model)).encode_prompt
    print_lines(describe_prompt(prompt, options.json, encode) for prompt in prompts)
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
    job, _ = read_job(options)
    return preview_job(job, options.workspace, options.task, options.level, options.n)
