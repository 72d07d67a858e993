"""Word banks: what a task draws from, in a TOML file beside its Python file, named after it: `gifts.words.toml`.

The name alone makes the file part of the task. So its digest is in the job's, its copy is in the dataset, and no task
can read another one's by accident.
"""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from factory.errors import JobError, TaskError
from factory.job.config import Config, describe_problems, read_toml

# not .toml alone: a task named "task" would then have two files of one name among the dataset's copies
SUFFIX = ".words.toml"
Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
ModelT = TypeVar("ModelT", bound=BaseModel)


class WordBank(Config):
    """Base of what a word bank holds: unknown keys are errors and nothing changes after loading."""


def read_words(module: str, model: type[ModelT]) -> ModelT:
    """The word bank of a Python file, which gives its own `__file__`. Raises TaskError."""
    return read_checked(words_path(Path(module)), model, f"{Path(module).name} draws from it")


def words_path(module: Path) -> Path:
    """Where the word bank of a Python file lies, if it has one."""
    return module.with_suffix(SUFFIX)


def read_checked(path: Path, model: type[ModelT], need: str) -> ModelT:
    """A checked TOML file of a task. Raises TaskError, with the path and on one line."""
    try:
        return model.model_validate(read_toml(path, f"missing; {need}"))
    except JobError as error:
        raise TaskError(str(error)) from None
    except ValidationError as error:
        raise TaskError(f"{path}: {describe_problems(error, model)}") from None
