"""The command line: arguments, printing and exit codes, no logic.

Exit codes: 0 done, 1 `verify`, `tasks`, `test` or a run's fidelity check found faults, or a run accepted no row, 2 bad
input (one line says what), 130 and 143 stopped by a signal (the same command goes on). Heavy imports stay inside the
commands, so `--help` is quick.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from factory import __version__
from factory.cli import datasets, jobs, publishing, tasks
from factory.cli.arguments import Parser, directory
from factory.errors import FactoryError, Terminated
from factory.terminal import report, say

BEGIN_ANEW: Final = "the same command begins anew"  # where a command says nothing else of itself


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `factory`."""
    told = BEGIN_ANEW
    try:
        options = build_parser().parse_args(arguments)
        told = getattr(options, "stopped", BEGIN_ANEW)
        told = told if isinstance(told, str) else told(options)
        signal.signal(signal.SIGTERM, partial(_on_sigterm, told))
        command: Callable[[argparse.Namespace], int] = options.command
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
        print(f"stopped; {told}", file=sys.stderr)
        code = 130
    sys.exit(code)


def _on_sigterm(told: str, number: int, frame: object) -> NoReturn:
    # SystemExit passes through every `finally` and context manager, as Ctrl-C does: the engine is stopped in order
    print(f"stopped by SIGTERM; {told}", file=sys.stderr)
    raise Terminated(143)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = Parser(
        prog="factory",
        description="Make distillation datasets: templates in; validated rows with logprobs and hidden states out.",
    )
    parser.add_argument("--version", action="version", version=f"factory {__version__}")
    parser.add_argument(
        "--workspace", type=directory, default=Path(), help="folder with your prompts/ and schemas/ (default: here)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (tasks, jobs, datasets, publishing):
        group.add(commands)
    return parser
