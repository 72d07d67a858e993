"""Sections of a job file, as pydantic checks them, and one line for everything that is wrong in one.

    teacher.max_num_seqs: Input should be a valid integer, got 'many'; teacher.modle: unknown key (known here: ...)
    where                 what                             got

All faults of a file are told at once, since each costs its author another start.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from factory.errors import JobError, nearest

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e9)]


class Config(BaseModel):
    """Base of every section: unknown keys are errors and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _read_count(value: Any) -> int | Literal["all"] | None:
    if value is None:
        return None
    if value == "all":
        return "all"
    try:
        return NUMBER.validate_python(value)
    except ValidationError as error:
        # told as one error of the key; of a union pydantic tells one for each branch
        if isinstance(value, str):
            raise ValueError('need a whole number, or "all" for every row of a source') from None
        raise ValueError(error.errors()[0]["msg"]) from None


NUMBER: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=100_000_000)])
Count = Annotated[int | Literal["all"] | None, PlainValidator(_read_count)]


def number_or_auto(most: int) -> PlainValidator:
    """For a key that takes a number from 1 to `most`, or "auto"."""
    number: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=most)])

    def read(value: Any) -> int | Literal["auto"]:
        if value == "auto":
            return "auto"
        try:
            return number.validate_python(value)
        except ValidationError as error:
            # told as one error of the key; of a union pydantic tells one for each branch
            raise ValueError(f'{error.errors()[0]["msg"]}, or "auto"') from None

    return PlainValidator(read)


def read_toml(path: Path, missing: str) -> dict[str, Any]:
    """A TOML file as it stands; JobError where it is not there (`missing` says what to do) or is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"{path}: {missing}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise JobError(f"{path}: not valid TOML: nested too deeply") from None


def describe_problems(error: ValidationError, model: type[BaseModel]) -> str:
    """A ValidationError on one line: where, got, allowed."""
    return "; ".join(_describe_problem(dict(problem), model) for problem in error.errors(include_url=False))


def _describe_problem(problem: dict[str, Any], model: type[BaseModel]) -> str:
    # a fault that belongs to no key; a task's Scenario is told about here too, and is no file
    whole = "file" if issubclass(model, Config) else model.__name__
    where = ".".join(str(part) for part in problem["loc"]) or whole
    if problem["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, problem["loc"][:-1]))
        like = nearest(str(problem["loc"][-1]), known)
        return f"{where}: unknown key (known here: {', '.join(known) or 'nothing'}){like}"
    if problem["type"] == "missing":
        return f"{where}: missing; add it"
    # pydantic's prefix before messages of our own validators
    message = problem["msg"].removeprefix("Value error, ")
    # what was got may be a whole section
    if isinstance(problem["input"], dict | list):
        return f"{where}: {message}"
    return f"{where}: {message}, got {problem['input']!r}"


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the keys allowed at a location inside a model, as far as it can be followed."""
    for part in location:
        # a number is a place in a list; what is no field is a branch of a union, which pydantic names in the location
        if isinstance(part, int) or part not in model.model_fields:
            continue
        annotation = model.model_fields[part].annotation
        # the model itself, or the one inside a list or a union
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return [field.alias or name for name, field in model.model_fields.items()]
