"""Forms: what a task's `Answer` may be, and what follows from it.

    Answer                            form    the answer                         a teacher is held to
    a pydantic model                  json    its JSON                           the grammar of its JSON schema
    str, or an annotated str          text    what follows the reasoning         nothing: the model ends it
    Reply, beside TOOLS               calls   text, and calls of these tools     nothing: it has a format of its own

A text's bounds (`Annotated[str, Field(max_length=600)]`) are looked at when it is there.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeGuard, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from factory.records import Form
from factory.tasks.answers import describe_answer, describe_grammar, find_problems, find_warnings
from factory.tasks.replies import Reply, describe_reply, find_tool_problems, find_tool_warnings

ALLOWED = "a pydantic BaseModel, str for a free text, or Reply beside TOOLS"


class Described(NamedTuple):
    """An Answer's form, the JSON schema that prompts show, and the one a grammar is made of: none for a text."""

    form: Form
    schema: dict[str, Any]
    grammar: dict[str, Any] | None
    warnings: tuple[str, ...]


def is_model(value: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(value, type) and issubclass(value, BaseModel)


def form_of(answer: object) -> Form | None:
    """The form of a task's `Answer`; None for what can be none."""
    if is_model(answer):
        return "json"
    if answer is Reply:
        return "calls"
    plain = get_args(answer)[0] if get_origin(answer) is Annotated else answer
    return "text" if plain is str else None


def describe(answer: Any, tools: Any, path: Path, problems: list[str]) -> Described | None:
    """What a module's Answer is; None, with the reason among the `problems`, where it has no JSON schema."""
    form = form_of(answer)
    if form is not None and (form == "calls") != (tools is not None):
        told = "TOOLS need Answer = Reply" if tools is not None else "Answer = Reply needs TOOLS, a list of models"
        problems.append(f"{path}: {told} (from factory.tasks.replies import Reply)")
        return None
    if tools is not None and (wrong := list(find_tool_problems(tools, path))):
        problems += wrong
        return None
    try:
        if form == "calls":
            for tool in tools:
                describe_grammar(tool)  # it raises for types that JSON has no word for
            return Described("calls", describe_reply(tools), None, tuple(find_tool_warnings(tools, path)))
        if form == "text":
            return Described("text", TypeAdapter(answer).json_schema(), None, ())
        if not is_model(answer):
            return None
        schema, grammar = describe_answer(answer), describe_grammar(answer)
        problems += find_problems(answer, schema, path)
        return Described("json", schema, grammar, tuple(_warn(answer, schema, grammar, path)))
    except (Exception, SystemExit) as error:  # pydantic refuses types that JSON has no word for, and unknown names
        told = (str(error).splitlines() or [type(error).__name__])[0]
        problems.append(f"{path}: Answer has no JSON schema: {told}; use types that JSON has")
        return None


def _warn(answer: type[BaseModel], schema: dict[str, Any], grammar: dict[str, Any], path: Path) -> list[str]:
    """What is not wrong and will be paid for."""
    open_extra = answer.model_config.get("extra") != "forbid"
    loose = [f'{path}: Answer: has no extra="forbid"; without a grammar a teacher adds keys that no check sees']
    return [*(loose if open_extra else []), *find_warnings(schema, grammar, path)]
