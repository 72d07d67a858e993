"""A model's tokenizer without transformers: what a plan and a preview see is what the engine will be given."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CASES, Case
from test_chat_template import RIGHT, USER, conversation, open_encoder

from factory.errors import TeacherError
from factory.job.teacher import TeacherConfig
from factory.records import Message
from factory.teachers.demo import demo_teacher
from factory.teachers.tokens import ExactCounter, LocalTokenizer, open_exact


def open_counter(case: Case, folder: Path) -> ExactCounter:
    tokenizer = case.tokenizer()
    tokenizer.save_pretrained(folder)
    teacher: dict[str, Any] = {"model": "demo", "reasoning": case.reasoning, "chat_template_kwargs": case.kwargs}
    ends = [tokenizer.convert_tokens_to_ids(token) for token in case.also_end]
    return ExactCounter(LocalTokenizer(folder), TeacherConfig.model_validate(teacher), ends)


@pytest.mark.parametrize("name", RIGHT)
def test_a_plan_sees_the_prompt_that_the_engine_is_given(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    ours, theirs = open_counter(case, tmp_path).encoder, open_encoder(case)
    hostile: list[Message] = [
        *conversation(case)[:-1],
        {"role": "user", "content": "a <think> b </s> c <|im_end|>\n\nd"},
    ]
    for messages in (conversation(case), hostile):
        assert ours.encode_prompt(messages) == theirs.encode_prompt(messages)
    assert (ours.turn_end, ours.end_ids, ours.control.ids) == (theirs.turn_end, theirs.end_ids, theirs.control.ids)


def test_what_a_file_says_of_cutting_and_filling_up_is_for_another_use(tmp_path: Path) -> None:
    case = CASES["Qwen2.5"]
    tokenizer = case.tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(case.template, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    assert len(LocalTokenizer(tmp_path).encode("seven words", add_special_tokens=False)) == len("seven words")


def test_a_template_of_the_jobs_own_is_the_one_that_is_counted_with(tmp_path: Path) -> None:
    CASES["Qwen2.5"].tokenizer().save_pretrained(tmp_path)
    teacher = TeacherConfig(
        model="demo", chat_template_kwargs={"chat_template": "<|im_start|>{{ messages[0].content }}!"}
    )
    counter = ExactCounter(LocalTokenizer(tmp_path), teacher)
    assert len(counter.prompt_ids([USER])) == len(USER["content"]) + 2


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("tokenizer.json", "{", "tokenizer.json: "),
        ("tokenizer.json", "[]", "tokenizer.json: "),
        ("tokenizer_config.json", '["eos_token"]', "tokenizer_config.json is no JSON object"),
        ("chat_template.jinja", "{% for %}", "Expected an expression"),
    ],
)
def test_a_broken_tokenizer_is_one_line(name: str, text: str, told: str, tmp_path: Path) -> None:
    for path in Path(demo_teacher()).glob("*.j*"):
        shutil.copy(path, tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(TeacherError, match=rf"its tokenizer cannot be used: .*{re.escape(told)}") as caught:
        open_exact(TeacherConfig(model=str(tmp_path)))
    assert "\n" not in str(caught.value)
