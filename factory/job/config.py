"""Sections of a job file, as pydantic checks them, and one line for everything that is wrong in one."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from factory.errors import nearest


class Config(BaseModel):
    """Base of every section: unknown keys are errors and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def describe_problems(error: ValidationError, model: type[BaseModel]) -> str:
    """A ValidationError on one line: where, got, allowed."""
    return "; ".join(_describe_problem(dict(problem), model) for problem in error.errors(include_url=False))


def _describe_problem(problem: dict[str, Any], model: type[BaseModel]) -> str:
    whole = "file" if issubclass(model, Config) else model.__name__
    where = ".".join(str(part) for part in problem["loc"]) or whole
    if problem["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, problem["loc"][:-1]))
        like = nearest(str(problem["loc"][-1]), known)
        return f"{where}: unknown key (known here: {', '.join(known) or 'nothing'}){like}"
    if problem["type"] == "missing":
        return f"{where}: missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict | list):
        return f"{where}: {message}"
    return f"{where}: {message}, got {problem['input']!r}"


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the keys allowed at a location inside a model, as far as it can be followed."""
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return [field.alias or name for name, field in model.model_fields.items()]
