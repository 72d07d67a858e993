"""The one place that calls a task's own Python: sample, check, solve, and pydantic with the task's validators.

Each call gives what the contract promises or raises TaskFault; nothing else comes out, whatever the author's code does.
An answer is written as it is read: by alias, without computed fields, a set's items in one order under every hash seed.
"""

import json
import random
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

from factory.hashing import canonical_json
from factory.job.config import describe_problems
from factory.tasks.answers import has_sets, sets_in
from factory.tasks.faults import TaskFault, blamed
from factory.tasks.replies import Reply, tool_name
from factory.tasks.tasks import Task
from factory.texts.calls import compose_reply
from factory.texts.texts import lone_surrogate

PHRASES = (
    "I am not sure what to say about that.",
    "Let us look at it together another time.",
    "That is a good question, and there is much to say.",
    "It depends on many things.",
    "Thank you for telling me.",
    "Perhaps it is best to wait and see.",
)


class UnknownTool(Exception):
    """A teacher calls a tool that the task does not have."""


def call_sample(task: Task, seed: int, level: str) -> BaseModel:
    """The scenario that a task draws from a seed. Raises TaskFault `sample_raised`."""
    assert task.sample is not None
    with blamed("sample_raised", task.schema_path):
        scenario: Any = task.sample(random.Random(seed), level)
        if not isinstance(scenario, task.Scenario):
            raise TypeError(f"returned {_kind(scenario)}, need a Scenario")
    return scenario


def adopt_scenario(task: Task, fields: Mapping[str, Any]) -> BaseModel:
    """The scenario of one row of the user's data. Raises TaskFault `scenario_invalid`."""
    with blamed("scenario_invalid", task.schema_path):
        try:
            return task.Scenario.model_validate(dict(fields))
        except ValidationError as error:
            raise TaskFault("scenario_invalid", describe_problems(error, task.Scenario)) from None


def find_misfit(task: Task, fields: Mapping[str, Any]) -> str | None:
    """Why the fields of a row of the user's data are no scenario of the task; None where they are one."""
    try:
        # `check` is given what the row keeps as JSON: what cannot be kept so, or read again, is no scenario either
        read_scenario(task, dump_scenario(task, adopt_scenario(task, fields)))
    except TaskFault as error:
        return lone_surrogate(fields) or str(error)
    return None


def dump_scenario(task: Task, scenario: BaseModel) -> str:
    """A scenario as rows keep it, so that it can be read back. Raises TaskFault `scenario_not_json`."""
    with blamed("scenario_not_json", task.schema_path):
        return scenario.model_dump_json(by_alias=True, round_trip=True)


def read_scenario(task: Task, text: str) -> BaseModel:
    """A scenario from a row's JSON, perhaps days later. Raises TaskFault `scenario_not_json`."""
    with blamed("scenario_not_json", task.schema_path):
        try:
            return task.Scenario.model_validate_json(text)
        except ValidationError as error:
            raise TaskFault("scenario_not_json", describe_problems(error, task.Scenario)) from None


def read_answer(task: Task, text: str) -> Any:
    """The answer in a teacher's text, held strictly to its types: the model of a JSON, the text itself, or a Reply.

    Raises ValidationError or UnknownTool, which are the teacher's fault, or TaskFault `validator_raised`.
    """
    invalid: ValidationError | UnknownTool
    with blamed("validator_raised", task.schema_path):
        try:
            if task.form == "calls":
                return _read_reply(task, json.loads(text))
            if task.form == "text":
                return TypeAdapter(task.Answer).validate_python(text, strict=True)
            return task.Answer.model_validate_json(text, strict=True)
        except (ValidationError, UnknownTool) as error:
            invalid = error
    raise invalid


def _read_reply(task: Task, reply: dict[str, Any]) -> Reply:
    tools = {tool_name(tool): tool for tool in task.tools}
    for call in reply["tool_calls"]:
        if call["name"] not in tools:
            raise UnknownTool(f"{call['name'][:80]!r} is no tool here (has: {', '.join(tools)})")
    told = [(tools[call["name"]], json.dumps(call["arguments"])) for call in reply["tool_calls"]]
    return Reply(reply["content"], tuple(tool.model_validate_json(text, strict=True) for tool, text in told))


def dump_answer(task: Task, answer: Any) -> str:
    """An answer as a teacher should write it. Raises TaskFault `answer_not_json`."""
    if task.form == "text":
        return str(answer)
    if task.form == "calls":
        return _dump_reply(task, answer)
    with blamed("answer_not_json", task.schema_path):
        text: str = answer.model_dump_json(by_alias=True, round_trip=True)
    return _order_sets(task, text) if has_sets(task.answer_schema) else text


def _dump_reply(task: Task, reply: Reply) -> str:
    """What is not set is not written: a teacher leaves out what a tool does not ask for."""
    with blamed("answer_not_json", task.schema_path):
        written = [call.model_dump_json(by_alias=True, round_trip=True, exclude_unset=True) for call in reply.calls]
        names = [tool_name(type(call)) for call in reply.calls]
        return compose_reply(reply.text, zip(names, map(json.loads, written), strict=True))


def _order_sets(task: Task, text: str) -> str:
    value = json.loads(text)
    for _, items in sets_in(task.answer_schema, task.answer_schema, value):
        items.sort(key=canonical_json)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def call_check(task: Task, scenario: BaseModel, answer: Any) -> tuple[str, ...]:
    """The findings of a task's check; empty means that the answer is right. Raises TaskFault `check_raised`."""
    with blamed("check_raised", task.schema_path):
        findings: Any = task.check(scenario, answer)
        if not isinstance(findings, list | tuple):
            raise TypeError(f"check must return a list of findings, got {_kind(findings)}")
        for finding in findings:
            if not isinstance(finding, str):
                raise TypeError(f"check must return findings that are texts, got {_kind(finding)} among them")
    return tuple(findings)


def call_solve(task: Task, scenario: BaseModel) -> tuple[str, str]:
    """Reference reasoning, and the reference answer as a teacher writes it. Raises TaskFault `solve_raised`."""
    assert task.solve is not None
    with blamed("solve_raised", task.schema_path):
        solved: Any = task.solve(scenario)
        if not (isinstance(solved, tuple) and len(solved) == 2):
            raise TypeError(f"solve must return (reasoning, Answer), got {_kind(solved)}")
        reasoning, answer = solved
        if not isinstance(reasoning, str):
            raise TypeError(f"solve must return (reasoning, Answer), got {_kind(reasoning)} as the reasoning")
        if not isinstance(answer, str if task.form == "text" else task.Answer):
            raise TypeError(f"solve must return (reasoning, Answer), got {_kind(answer)} as the answer")
        if isinstance(answer, Reply) and (strange := [c for c in answer.calls if not isinstance(c, task.tools)]):
            raise TypeError(f"solve must call what is in TOOLS, got {_kind(strange[0])}")
        return str(reasoning), dump_answer(task, answer)


def invent_answer(task: Task, seed: int) -> str:
    """A schema-valid answer that knows nothing of the scenario: `{}`, or no text, where none is found.

    A model's values are polyfactory's; a text is one of PHRASES where that fits its bounds.
    """
    from polyfactory.factories.pydantic_factory import ModelFactory

    if task.form == "text" and (phrase := _find_phrase(task, seed)) is not None:
        return phrase
    invented = task.tools[seed % len(task.tools)] if task.form == "calls" else task.Answer

    try:
        with blamed("none_found", task.schema_path):
            boxed = create_model("Text", text=(task.Answer, ...)) if task.form == "text" else invented
            factory: Any = ModelFactory.create_factory(boxed)
            factory.seed_random(seed)
            value = factory.build()
        wrapped = Reply(calls=(value,)) if task.form == "calls" else value
        return dump_answer(task, value.text if task.form == "text" else wrapped)
    except TaskFault:  # a validator of the task may refuse every random value
        return {"json": "{}", "text": "", "calls": compose_reply(PHRASES[0], ())}[task.form]


def _find_phrase(task: Task, seed: int) -> str | None:
    """A text that says nothing and fits the answer's bounds: one phrase, or several where it must be long."""
    order = random.Random(seed).sample(PHRASES, len(PHRASES))
    for count in (1, 2, len(PHRASES), 8 * len(PHRASES)):
        text = " ".join(order[at % len(order)] for at in range(count))
        try:
            read_answer(task, text)
        except (ValidationError, TaskFault):
            continue
        return text
    return None


def _kind(value: object) -> str:
    """What an author's function gave, for people."""
    if value is None or isinstance(value, bool | str | int | float):
        return f"{value!r:.80}"
    return type(value).__name__
