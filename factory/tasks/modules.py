"""Running a task's Python: `schemas/<task>.py`, and what it imports from beside it (`from ._names import ...`).

Each task runs in a package of its own that is gone from the import path once the file has run. So two tasks may have
parts of one name, a part that two tasks share is run for each, and every part that a task can ever run is known.
"""

import importlib.util
import sys
import traceback
from collections.abc import Sequence
from hashlib import blake2b
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

from factory.errors import TaskError, Terminated
from factory.tasks.faults import MAX_SECONDS, MAX_WAIT_SECONDS, name_error
from factory.tasks.pictures import tell_missing
from factory.tasks.sandbox import time_limit
from factory.tasks.words import words_path


class Loaded(NamedTuple):
    module: ModuleType
    files: list[Path]  # the task's file, then its parts and word banks by name


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        # Never from __pycache__, which knows a file by its size and second: what runs must be what the digest is of.
        return self.source_to_code(self.get_data(self.path), self.path)


class _Parts(MetaPathFinder):
    """Finds the modules of one task's package: the files beside the task's own, and none in folders below."""

    def __init__(self, package: str, folder: Path) -> None:
        self.prefix, self.folder = f"{package}.", folder

    def file(self, name: str) -> Path:
        # not __file__, which Python makes absolute: sources are told by the path that the task was given by
        return self.folder / f"{name.removeprefix(self.prefix)}.py"

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        file = self.file(name)
        if not name.startswith(self.prefix) or "." in file.stem or not file.is_file():
            return None
        return importlib.util.spec_from_file_location(name, file, loader=_Loader(name, str(file)))


def load_module(path: Path) -> Loaded:
    """Run a task's Python file. It is the author's code, with the author's rights. Raises TaskError."""
    name = f"factory_task_{path.stem}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    package, finder = ModuleType(name), _Parts(name, path.parent)
    package.__path__ = []  # a package, so that relative imports work, in which only the finder finds anything
    _forget(name)
    sys.modules[name] = package
    sys.meta_path.insert(0, finder)
    try:
        with time_limit(MAX_SECONDS, MAX_WAIT_SECONDS):
            module = importlib.import_module(f"{name}.{path.stem}")
    except (TaskError, Terminated):
        _forget(name)
        raise
    except (Exception, SystemExit) as error:
        _forget(name)
        raise TaskError(f"{_place(error, path)}: {_describe(error, finder)}") from None
    finally:
        sys.meta_path.remove(finder)
    parts = [finder.file(key) for key in sys.modules if key.startswith(finder.prefix)]
    beside = {part for part in parts if part != path} | {words_path(part) for part in parts}
    return Loaded(module, [path, *sorted(file for file in beside if file.is_file())])


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _describe(error: BaseException, finder: _Parts) -> str:
    text = name_error(error)
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] == "PIL":
        return tell_missing()
    name = f"{error.name}." if isinstance(error, ImportError) else ""
    # "from . import _names": Python names the package, and the part in its text alone
    if name == finder.prefix:
        return f"{text.partition(' from ')[0]}, no such file in {finder.folder}"
    if isinstance(error, ModuleNotFoundError) and name.startswith(finder.prefix):
        return f"imports {finder.file(str(error.name))}, which is missing; a part lies beside the file that imports it"
    return text


def _place(error: BaseException, path: Path) -> str:
    """The file and line at which the task's own code failed."""
    own = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        own.append((str(error.filename), error.lineno))
    own = [(file, line) for file, line in own if Path(file).parent == path.parent and line]
    return f"{own[-1][0]}:{own[-1][1]}" if own else str(path)
