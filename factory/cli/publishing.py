"""Commands that hand a dataset over: report, export, align, push."""

import argparse
from typing import Final

from factory.cli.arguments import Commands, directory, positive, print_lines, target
from factory.terminal import say

STOPPED: Final = "finished parts are safe, the same command goes on from them"


def add(commands: Commands) -> None:
    """The group's commands and their arguments."""
    _add_report(commands)
    _add_export(commands)
    _add_align(commands)
    _add_push(commands)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", help="write report.html: what is in a dataset, or how two of a plan differ")
    report.add_argument("dir", type=directory)
    report.add_argument("other", type=directory, nargs="?", help="compare with this dataset over the same plan")
    report.add_argument("--to", type=target, metavar="FILE", help="instead of report.html (comparison.html) in DIR")
    report.add_argument("--rows", type=positive, default=60, metavar="N", help="how many rows to show (default: 60)")
    report.add_argument("--json", action="store_true", help="print the numbers as one JSON object, write no file")
    report.set_defaults(command=_report)


def _add_export(commands: Commands) -> None:
    export = commands.add_parser("export", help="write the rows as a trainer reads them, with its config beside them")
    export.add_argument("dir", type=directory)
    export.add_argument("out", type=target, help="a new folder; the same command goes on where it was cut off")
    export.add_argument("--to", required=True, metavar="FORMAT", help="trl-sft, axolotl-kd, ...: docs/trainers.md")
    export.add_argument("--stage", metavar="NAME", help="a stage of the curriculum (default: all accepted rows)")
    export.add_argument("--split", help="of a stage: train, validation or test (default: train)")
    export.add_argument("--teacher", metavar="NAME", help="rows of this teacher, where rows have a column `teacher`")
    export.add_argument("--prompt", choices=("student", "teacher"), help="whose, with a student.j2 (default: student)")
    export.add_argument("--student", metavar="TOKENIZER", help="refuse what it would not understand")
    export.add_argument("--k", type=positive, metavar="N", help="the N likeliest ids of each position (default: all)")
    export.add_argument("--mass", choices=("renormalised", "tail"), help="kept ids add up to 1, or true, with a tail")
    export.add_argument("--length", type=positive, metavar="N", help="leave out rows of more tokens; pad to it")
    export.add_argument("--pack", action="store_true", help="several rows in a sequence of --length tokens")
    export.add_argument("--filler", type=int, metavar="ID", help="the token id that pads (default: 0)")
    export.add_argument("--rows", choices=("ids", "messages"), help="of trl-sft (default: ids)")
    export.add_argument("--reasoning", choices=("content", "apart"), help="inside the content, or beside it")
    export.set_defaults(command=_export, stopped=STOPPED)


def _add_align(commands: Commands) -> None:
    align = commands.add_parser("align", help="token ids and top-k of a student with another tokenizer")
    align.add_argument("dir", type=directory)
    align.add_argument("--student", required=True, metavar="TOKENIZER", help="its folder, hub id, or demo")
    align.add_argument("--name", help="the config will be aligned-NAME (default: the tokenizer's name)")
    align.set_defaults(command=_align, stopped=STOPPED)


def _add_push(commands: Commands) -> None:
    push = commands.add_parser("push", help="send a dataset to the hub, whole or not at all")
    push.add_argument("dir", type=directory)
    push.add_argument("repo", metavar="OWNER/NAME", help="the same command goes on where it was cut off")
    push.add_argument(
        "--local", action="store_true", help="OWNER/NAME is a new folder: write the copy there, send none"
    )
    push.add_argument("--private", action="store_true", help="where the repository is new")
    push.add_argument("--without", action="append", default=[], metavar="CONFIG", help="leave it out; may be repeated")
    push.add_argument("--report", action="store_true", help="send report.html too")
    push.add_argument("--no-templates", action="store_true", help="do not send the tasks' sources")
    push.add_argument("--allow-personal", action="store_true", help="send personal data that was found")
    push.add_argument("--allow-secrets", action="store_true", help="send keys and tokens that were found")
    push.set_defaults(command=_push, stopped=_tell_stopped)


def _tell_stopped(options: argparse.Namespace) -> str:
    """What is true of a push wherever it is cut: main is changed in one step, and a copy gets its name at the end."""
    if options.local:
        return "no half of a copy is left, the same command begins anew"
    return "what readers see is whole, as it was or as it will be; the same command goes on from what was sent"


def _report(options: argparse.Namespace) -> int:
    import json

    from factory.publish.report.build import read_facts, write_report

    if options.json:
        say(json.dumps(read_facts(options.dir, options.other), allow_nan=False))
        return 0
    path = write_report(options.dir, options.other, options.to, options.rows)
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
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


def _push(options: argparse.Namespace) -> int:
    from factory.publish.pushing import Wish, push, write_copy

    wish = Wish(
        without=tuple(dict.fromkeys(options.without)),
        private=options.private,
        report=options.report,
        templates=not options.no_templates,
        allow_personal=options.allow_personal,
        allow_secrets=options.allow_secrets,
    )
    if options.local:
        print_lines(write_copy(options.dir, target(options.repo), wish))
    else:
        print_lines(push(options.dir, options.repo, wish))
    return 0
