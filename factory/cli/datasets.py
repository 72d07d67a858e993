"""Commands that take a dataset: status, verify, curriculum, show."""

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from factory.cli.arguments import Commands, directory, file, positive, print_lines
from factory.terminal import say


def add(commands: Commands) -> None:
    """The group's commands and their arguments."""
    status = commands.add_parser("status", help="planned, accepted, rejected by reason, errors, left")
    status.add_argument("dir", help="or s3://BUCKET/PREFIX")
    status.add_argument("--json", action="store_true", help="one JSON object")
    status.set_defaults(command=_status)

    verify = commands.add_parser("verify", help="check checksums, counts, columns and alignment of a dataset")
    verify.add_argument("dir", type=directory)
    verify.add_argument(
        "--fidelity", type=positive, metavar="N", help="also run N rows again through transformers and compare"
    )
    verify.set_defaults(command=_verify)

    _add_curriculum(commands)

    show = commands.add_parser("show", help="show the first rows, readable, with their signals")
    show.add_argument("dir", type=directory)
    show.add_argument("-n", type=positive, default=1, metavar="COUNT", help="how many (default: 1)")
    show.add_argument("--rejected", action="store_true", help="rows that were not accepted, and why")
    show.add_argument("--reason", help="of these, the ones with this reason, stage, or STAGE/REASON")
    show.add_argument("--task", help="rows of this task")
    show.add_argument("--level", help="rows of this level")
    show.add_argument("--id", help="rows whose id, or their prompt's, begins so; accepted or not")
    show.set_defaults(command=_show)


def _add_curriculum(commands: Commands) -> None:
    curriculum = commands.add_parser("curriculum", help="make stages, splits and hand-off labels of a complete dataset")
    curriculum.add_argument("dir", type=directory)
    curriculum.add_argument("config", type=file, nargs="?", help="a TOML file (default: 3 stages, easy to hard)")
    curriculum.set_defaults(command=_curriculum)


def _status(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from factory.dataset.bucket import is_url
    from factory.dataset.history import count_runs, read_state
    from factory.publish.show import describe_totals, find_damage, read_samples, read_totals
    from factory.teachers.remote.purse import read_spending

    with _seen(options.dir) as folder:
        totals = read_totals(folder)
        damage = [] if is_url(options.dir) else find_damage(folder)
        if options.json:
            (samples, keep), runs = read_samples(folder), asdict(count_runs(folder))
            spent = read_spending(folder)
            told = {"samples": samples, "keep": keep, "runs": runs, "damage": damage} | (
                {"spent": spent} if spent else {}
            )
            state = read_state(folder)
            told |= {"cluster": state} if state else {}
            say(json.dumps(totals.figures() | told))
        else:
            print_lines(describe_totals(folder, totals, options.dir, damage))
    return 0


def _seen(place: str) -> AbstractContextManager[Path]:
    """The directory of a dataset, or what an object store has that tells of its state."""
    from factory.dataset.bucket import is_url, read_url
    from factory.dataset.object_store import view

    return view(read_url(place)) if is_url(place) else nullcontext(directory(place))


def _verify(options: argparse.Namespace) -> int:
    from factory.checks.verify import verify
    from factory.publish.show import read_totals

    faults = list(verify(options.dir))
    print_lines(faults)
    if not faults:
        totals = read_totals(options.dir)
        say(f"{options.dir}: sound: {totals.committed_shards} of {totals.shards} shards, {totals.done:,} rows")
    return 1 if faults or (options.fidelity and not _verify_fidelity(options)) else 0


def _verify_fidelity(options: argparse.Namespace) -> bool:
    from factory.checks.fidelity import check_dataset, tell_of
    from factory.dataset.manifest import read_manifest, teachers_of

    names = teachers_of(read_manifest(options.dir))
    sections = {name: check_dataset(options.dir, options.fidelity, name) for name in names}
    print_lines(tell_of(name, section) for name, section in sections.items())
    return all(section["verdict"] != "failed" for section in sections.values())


def _curriculum(options: argparse.Namespace) -> int:
    from factory.curriculum.build import make_curriculum
    from factory.curriculum.config import load_config
    from factory.dataset.stages import describe_curriculum

    config = load_config(options.config)
    summary = make_curriculum(options.dir, config, str(options.config or "curriculum"))
    print_lines(describe_curriculum(options.dir, summary))
    return 0


def _show(options: argparse.Namespace) -> int:
    from factory.publish.show import Choice, describe_rows

    choice = Choice(options.rejected, options.reason, options.task, options.level, options.id)
    print_lines(describe_rows(options.dir, options.n, choice))
    return 0
