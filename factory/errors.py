"""What can go wrong for a user, as one small tree; everything else is a bug and may show a traceback.

    FactoryError          one clear line, exit 2
    ├── JobError          the job file or the command line
    ├── TaskError         a task's folder, templates or schema
    ├── TeacherError      the model or the engine cannot be used as asked
    ├── DatasetError      an output directory that cannot be written, resumed, read or trusted
    └── FidelityError     the signals in a dataset are not the teacher's (exit 1: found, not mistyped)

A message says what, where, got, allowed and the next step. A bad record is never an exception: it is a `Rejection`.
"""

import json
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from urllib.parse import unquote, urlsplit

PACKAGE = "distillation-factory"

# whole words where the short form is common elsewhere: `_KEY` and `KEY`, not MONKEY
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|APIKEY|(^|_)KEY|_PAT$", re.IGNORECASE)


def redact(text: str) -> str:
    """A text for people without the secrets of the environment (variables named like tokens, keys and passwords)."""
    secrets = [(value.strip(), name) for name, value in os.environ.items() if SECRET_NAME.search(name)]
    # longest first, as one may begin with another; a short value may be any word of the text
    for value, name in sorted(secrets, key=lambda pair: -len(pair[0])):
        if len(value) >= 8:
            text = text.replace(value, f"<{name}>")
    return text


def root_cause(error: BaseException) -> BaseException:
    """The innermost error: one that was raised from another tells less than the one it came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def one_line(error: BaseException, most: int = 500) -> str:
    """What an error says, on one line of at most so many characters; the name of its type where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'subject'?` where a known name is like an unknown one, else nothing: the end of a message."""
    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def pip_install(extra: str) -> str:
    """The command that brings an extra, as typed: from the checkout that this is installed from, or by name."""
    # inside the function: only who lacks something waits for it
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        told = json.loads(distribution(PACKAGE).read_text("direct_url.json") or "{}")
        url, origin = str(told.get("url", "")), told.get("dir_info")
    except (PackageNotFoundError, ValueError, AttributeError):
        url, origin = "", None
    # what came from an index or as a wheel has no `dir_info` (PEP 610)
    if not isinstance(origin, dict) or not url.startswith("file:"):
        return f'pip install "{PACKAGE}[{extra}]"'
    folder = unquote(urlsplit(url).path)
    # a checkout that has moved since is known to its owner alone
    place = folder if os.path.isdir(folder) else "."
    return f'pip install {"-e " if origin.get("editable") else ""}"{place}[{extra}]"'


class Terminated(SystemExit):
    """SIGTERM has come. No code of a task's may take it for an exit of its own."""


class FactoryError(Exception):
    """Base of every error that is the user's to mend; the command line prints one line and exits with its code."""

    exit_code = 2


class JobError(FactoryError):
    """The job file or an argument is wrong."""


class TaskError(FactoryError):
    """One or more tasks are broken; the message holds one line for each problem."""


class TeacherError(FactoryError):
    """The model or the engine cannot serve this job."""


class DatasetError(FactoryError):
    """The output directory cannot be written, resumed, read or trusted."""


class FidelityError(FactoryError):
    """The signals that a job has stored do not agree with a second forward."""

    exit_code = 1
