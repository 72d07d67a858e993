"""Commands that take a dataset: status, verify, curriculum, show, export, align."""

import argparse
from pathlib import Path

from factory.cli.arguments import Commands, positive, print_lines
from factory.terminal import say


def add(commands: Commands) -> None:
    """The group's commands and their arguments."""
    status = commands.add_parser("status", help="planned, accepted, rejected by reason, errors, left")
    status.add_argument("dir", type=Path)
    status.add_argument("--json", action="store_true", help="one JSON object")
    status.set_defaults(command=_status)

    verify = commands.add_parser("verify", help="check checksums, counts, columns and alignment of a dataset")
    verify.add_argument("dir", type=Path)
    verify.add_argument(
        "--fidelity", type=positive, metavar="N", help="also run N rows again through transformers and compare"
    )
    verify.set_defaults(command=_verify)

    _add_curriculum(commands)

    show = commands.add_parser("show", help="show the first rows, readable, with their signals")
    show.add_argument("dir", type=Path)
    show.add_argument("-n", type=positive, default=1, metavar="COUNT", help="how many (default: 1)")
    show.add_argument("--rejected", action="store_true", help="rows that were not accepted, and why")
    show.add_argument("--reason", help="of these, the ones with this reason, stage, or STAGE/REASON")
    show.add_argument("--task", help="rows of this task")
    show.add_argument("--level", help="rows of this level")
    show.add_argument("--id", help="rows whose id, or their prompt's, begins so; accepted or not")
    show.set_defaults(command=_show)

    _add_export(commands)
    _add_align(commands)


def _add_curriculum(commands: Commands) -> None:
    curriculum = commands.add_parser("curriculum", help="make stages, splits and hand-off labels of a complete dataset")
    curriculum.add_argument("dir", type=Path)
    curriculum.add_argument("config", type=Path, nargs="?", help="a TOML file (default: 3 stages, easy to hard)")
    curriculum.set_defaults(command=_curriculum)


def _add_export(commands: Commands) -> None:
    export = commands.add_parser("export", help="write the rows as a trainer reads them, with its config beside them")
    export.add_argument("dir", type=Path)
    export.add_argument("out", type=Path, help="a new folder; the same command goes on where it was cut off")
    export.add_argument("--to", required=True, metavar="FORMAT", help="trl-sft, axolotl-kd, ...: docs/trainers.md")
    export.add_argument("--stage", metavar="NAME", help="a stage of the curriculum (default: all accepted rows)")
    export.add_argument("--split", default="train", help="of a stage: train, validation or test (default: train)")
    export.add_argument("--teacher", metavar="NAME", help="rows of this teacher, where rows have a column `teacher`")
    export.add_argument("--student", metavar="TOKENIZER", help="refuse what it would not understand")
    export.add_argument("--k", type=positive, metavar="N", help="the N likeliest ids of each position (default: all)")
    export.add_argument("--mass", choices=("renormalised", "tail"), help="kept ids add up to 1, or true, with a tail")
    export.add_argument("--length", type=positive, metavar="N", help="leave out rows of more tokens; pad to it")
    export.add_argument("--pack", action="store_true", help="several rows in a sequence of --length tokens")
    export.add_argument("--filler", type=int, metavar="ID", help="the token id that pads (default: 0)")
    export.add_argument("--rows", choices=("ids", "messages"), help="of trl-sft (default: ids)")
    export.add_argument("--reasoning", choices=("content", "apart"), help="inside the content, or beside it")
    export.set_defaults(command=_export)


def _add_align(commands: Commands) -> None:
    align = commands.add_parser("align", help="token ids and top-k of a student with another tokenizer")
    align.add_argument("dir", type=Path)
    align.add_argument("--student", required=True, metavar="TOKENIZER", help="its folder, hub id, or demo")
    align.add_argument("--name", help="the config will be aligned-NAME (default: the tokenizer's name)")
    align.set_defaults(command=_align)


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
        print_lines(describe_totals(options.dir, totals))
    return 0


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
    from factory.checks.fidelity import check_dataset, describe

    section = check_dataset(options.dir, options.fidelity)
    print_lines([describe(section)])
    return bool(section["verdict"] != "failed")


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


def _export(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from factory.publish.exporting import export
    from factory.publish.exports.asked import Asked

    asked = Asked(**{field.name: getattr(options, field.name) for field in fields(Asked)})
    print_lines(export(options.dir, options.out, asked))
    return 0


def _align(options: argparse.Namespace) -> int:
    from factory.publish.aligning import align

    print_lines(align(options.dir, options.student, options.name))
    return 0
