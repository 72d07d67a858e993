"""Replies: a task's tools, what they are called and told as, and what may not be one."""

import json
from pathlib import Path
from typing import Any

import pytest
import tool_task
from conftest import SCHEMA, write_task
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from factory.records import PlannedRow, Sampling
from factory.tasks.calls import UnknownTool, call_solve, invent_answer, read_answer
from factory.tasks.catalog import list_tasks
from factory.tasks.faults import TaskFault
from factory.tasks.render import open_renderer
from factory.tasks.replies import Reply, describe_tool, tool_name
from factory.tasks.tasks import Task, discover


class Place(BaseModel):
    title: str


class GetHTTPStatus(BaseModel):
    """Ask a server.

    Only once.
    """

    url: str = Field(description="where")
    title: str = Field(default="title", max_length=9)
    place: Place | None = None


class Renamed(BaseModel):
    model_config = ConfigDict(title="find-it")


def open_task(root: Path, schema: str = tool_task.SCHEMA) -> Task:
    write_task(
        root, "errands", schema=schema, task_toml=tool_task.TASK, user_j2=tool_task.USER, user_short_j2=tool_task.USER
    )
    found = discover(root)
    assert not found.problems, found.problems
    return found.tasks["errands"]


def problems(root: Path, schema: str) -> list[str]:
    write_task(
        root, "errands", schema=schema, task_toml=tool_task.TASK, user_j2=tool_task.USER, user_short_j2=tool_task.USER
    )
    return discover(root, ["errands"]).problems["errands"]


def test_a_tool_is_called_in_snake_case_or_by_its_title() -> None:
    assert [tool_name(tool) for tool in (GetHTTPStatus, Place, Renamed)] == ["get_http_status", "place", "find-it"]


def test_a_tool_is_told_as_transformers_tells_it() -> None:
    told = describe_tool(GetHTTPStatus)
    assert told.keys() == {"type", "function"}
    function = told["function"]
    assert function["name"] == "get_http_status"
    assert function["description"] == "Ask a server.\n\nOnly once."
    assert function["parameters"]["required"] == ["url"]
    # pydantic's titles are gone, a field of that name is not
    assert function["parameters"]["properties"]["url"] == {"description": "where", "type": "string"}
    assert function["parameters"]["properties"]["title"] == {"default": "title", "maxLength": 9, "type": "string"}
    assert list(function["parameters"]["$defs"]["Place"]["properties"]) == ["title"]
    assert describe_tool(Renamed)["function"]["parameters"]["properties"] == {}


def test_tools_are_part_of_the_prompt_and_of_its_id(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    assert [tool["function"]["name"] for tool in json.loads(task.tools_json)] == ["set_timer", "send_message"]
    assert task.grammar is None
    assert any("answer: text, calls of set_timer, send_message" in line for line in list_tasks(tmp_path)[0])
    row = PlannedRow(0, 0, "errands", "easy", 0, 3)
    one = open_renderer(task, Sampling()).render(row)
    assert (one.form, one.tools) == ("calls", task.tools_json)
    other = open_task(tmp_path, tool_task.SCHEMA.replace("Start a timer.", "Begin a timer."))
    two = open_renderer(other, Sampling()).render(row)
    assert one.messages == two.messages
    assert one.id != two.id


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"content": "", "tool_calls": [{"name": name, "arguments": arguments}]})


def test_calls_are_read_as_instances_of_the_tools(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    reply = read_answer(task, call("set_timer", minutes=5))
    assert isinstance(reply, Reply)
    assert isinstance(reply.calls[0], task.tools[0])
    assert reply.calls[0].minutes == 5
    for wrong in ({"minutes": "5"}, {"minutes": 0}, {}, {"minutes": 5, "loud": True}):
        with pytest.raises(ValidationError):
            read_answer(task, call("set_timer", **wrong))
    with pytest.raises(UnknownTool, match=r"'start' is no tool here \(has: set_timer, send_message\)"):
        read_answer(task, call("start"))


def test_a_solution_leaves_out_what_is_not_set(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    _, answer = call_solve(task, task.Scenario(name="Ada", minutes=5))
    assert json.loads(answer)["tool_calls"] == [
        {"name": "set_timer", "arguments": {"minutes": 5}},
        {"name": "send_message", "arguments": {"to": "Ada", "text": 'Started, "really".'}},
    ]
    assert json.loads(call_solve(task, task.Scenario(name="Ada", minutes=None))[1]) == {
        "content": "For how long?",
        "tool_calls": [],
    }
    strange = open_task(tmp_path, tool_task.SCHEMA.replace("Reply(calls=calls)", "Reply(calls=[scenario])"))
    with pytest.raises(TaskFault, match="solve must call what is in TOOLS, got Scenario"):
        call_solve(strange, strange.Scenario(name="Ada", minutes=5))


def test_an_invented_reply_calls_a_tool(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    names = {json.loads(invent_answer(task, seed))["tool_calls"][0]["name"] for seed in range(4)}
    assert names == {"set_timer", "send_message"}
    assert all(read_answer(task, invent_answer(task, seed)).calls for seed in range(4))


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (
            tool_task.SCHEMA.replace("TOOLS = [SetTimer, SendMessage]", ""),
            "Answer = Reply needs TOOLS, a list of models",
        ),
        (SCHEMA + "\nTOOLS = [Scenario]", "TOOLS need Answer = Reply"),
        (tool_task.SCHEMA.replace("[SetTimer, SendMessage]", "[]"), "TOOLS must be a list of pydantic models, got []"),
        (tool_task.SCHEMA.replace("[SetTimer, SendMessage]", "[SetTimer, len]"), "has <built-in function len>"),
        (
            tool_task.SCHEMA.replace("[SetTimer, SendMessage]", "[SetTimer, SetTimer]"),
            "two tools are called 'set_timer'",
        ),
        (
            tool_task.SCHEMA.replace("[SetTimer, SendMessage]", "[type('Ä', (SetTimer,), {})]"),
            "a tool is called 'ä'; use letters",
        ),
    ],
)
def test_what_is_no_tool_is_told(tmp_path: Path, schema: str, says: str) -> None:
    (problem,) = problems(tmp_path, schema)
    assert problem.startswith(f"{tmp_path}/schemas/errands.py: ")
    assert says in problem


def test_a_tool_without_a_word_about_it_is_warned_of(tmp_path: Path) -> None:
    bare = tool_task.SCHEMA.replace('    """Start a timer."""\n\n    model_config = ConfigDict(extra="forbid")\n', "")
    warnings = [line.partition("errands.py: ")[2] for line in open_task(tmp_path, bare).warnings]
    assert warnings == [
        'SetTimer: has no extra="forbid"; a teacher adds arguments that no check sees',
        "SetTimer: has no docstring; it is what tells a teacher what the tool does",
    ]
