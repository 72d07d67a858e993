"""Tool calls through vLLM: a parser is found by what a chat template writes, and what it cannot read is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import tool_task
from chat_templates import CHATML, HEADER, make_tokenizer
from conftest import write_task
from dataset_support import read_table

from factory.job.job import Job
from factory.records import ToolCall, as_turn
from factory.runs.run import run
from factory.teachers.chat_template import ChatTemplate

pytestmark = pytest.mark.engine

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_timer",
            "description": "Start a timer.",
            "parameters": {
                "type": "object",
                "properties": {"minutes": {"type": "integer"}, "label": {"type": "string"}},
            },
        },
    }
]
SHOWN = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
OPEN = "<|im_start|>{{ m.role }}\n{{ m.content }}"
HERMES = (
    SHOWN
    + "{% for m in messages %}"
    + OPEN
    + '{% for c in m.tool_calls or [] %}\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    + "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    + HEADER
)
LLAMA = (
    SHOWN
    + "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    + "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at once') }}{% endif %}"
    + '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    + "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    + HEADER
)
CODER = (
    SHOWN
    + "{% for m in messages %}"
    + OPEN
    + "{% for c in m.tool_calls or [] %}\n<tool_call>\n<function={{ c.function.name }}>\n"
    + "{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n"
    + "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
    + "<|im_end|>\n{% endfor %}"
    + HEADER
)
STRANGE = HERMES.replace("<tool_call>", "(((").replace("</tool_call>", ")))").replace('"name"', '"which"')
CALL = ToolCall("set_timer", '{"minutes": 5, "label": "tea"}')


def open_reader(template: str, name: str | None = None) -> Any:
    from factory.teachers.engine.calls import CallReader

    tokenizer = make_tokenizer(template, None, "<|im_end|>", ("<tool_call>", "</tool_call>", "<|python_tag|>"))
    return CallReader(tokenizer, ChatTemplate(tokenizer, None, {}, TOOLS), name)


@pytest.mark.parametrize("template", [HERMES, LLAMA, CODER], ids=["hermes", "llama", "coder"])
def test_a_parser_is_found_by_what_the_template_writes(template: str) -> None:
    reader = open_reader(template)
    text = reader.template.write_turn([{"role": "user", "content": "Go."}], as_turn("", (CALL,)))
    tools = json.dumps(TOOLS)
    content, (call,) = reader.read(text, tools)
    assert (content, call.name, json.loads(call.arguments)) == ("", "set_timer", json.loads(CALL.arguments))
    assert reader.read("For how long?", tools) == ("For how long?", ())


def test_what_a_parser_would_drop_or_cannot_read_is_no_call() -> None:
    reader, tools = open_reader(HERMES), json.dumps(TOOLS)
    right = '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": 5, "label": "caf\\u00e9"}}\n</tool_call>'
    assert reader.name == "hermes"
    content, (call,) = reader.read(f"Right away.\n{right}", tools)
    assert (content, json.loads(call.arguments)) == ("Right away.", {"minutes": 5, "label": "café"})
    for text in (f"{right}\nAnything else?", f"{right} and {right}", right.replace("}}", "}"), "<tool_call>"):
        content, calls = reader.read(text, tools)
        assert content == ""
        assert [call.name for call in calls] == [""], text


def test_a_format_that_nobody_reads_and_a_parser_that_is_not_there_are_refused() -> None:
    from factory.teachers.engine.build import Unfit

    with pytest.raises(Unfit, match="no parser of vLLM's reads the tool calls that its chat template writes"):
        open_reader(STRANGE)
    with pytest.raises(Unfit, match=r"teacher\.tool_parser 'hermez': vLLM has no such parser \(has: .*hermes"):
        open_reader(HERMES, "hermez")
    with pytest.raises(Unfit, match=r"teacher\.tool_parser 'pythonic' does not read the tool calls"):
        open_reader(HERMES, "pythonic")
    silent = SHOWN + CHATML + HEADER
    with pytest.raises(Unfit, match="its chat template writes no tool calls"):
        open_reader(silent)
    assert open_reader(silent, "hermes").name == "hermes"


def test_the_demo_teacher_is_asked_with_tools_and_read(tmp_path: Path) -> None:
    """It was never taught any, so what counts is that every row ends, with the tools in its exact prompt."""
    texts = {"schema": tool_task.SCHEMA, "task_toml": tool_task.TASK, "system_j2": "Use the tools."}
    write_task(tmp_path, "errands", user_j2=tool_task.USER, user_short_j2=tool_task.USER, **texts)
    job = Job.model_validate(
        {
            "out": "out",
            "signals": {"top_k": 4, "hidden_layers": [-1]},
            "sampling": {"max_tokens": 48, "thinking_tokens": 16},
            "tasks": [{"name": "errands", "count": 6}],
        }
    )
    totals = run(job, tmp_path, tmp_path / "out")
    assert (totals.done, totals.errors) == (6, 0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["teacher"]["details"]["tool_parser"] == "hermes"
    assert manifest["signals"]["tools"] is True
    from transformers import AutoTokenizer

    from factory.teachers.demo import demo_teacher

    tokenizer = AutoTokenizer.from_pretrained(demo_teacher())
    for row in [*read_table(tmp_path / "out", "data"), *read_table(tmp_path / "out", "rejected")]:
        text = tokenizer.decode(row["prompt_token_ids"])
        assert all(f'"name": "{name}"' in text for name in ("set_timer", "send_message"))
