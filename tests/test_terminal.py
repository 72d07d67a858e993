"""The terminal: nothing that data holds reaches it raw, by whatever command or error it is shown."""

import ast
import io
import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_task
from dataset_support import start_factory
from hypothesis import given
from hypothesis import strategies as st

from factory.job.job import Job
from factory.publish.show import describe_rows
from factory.runs.run import run
from factory.terminal import printable, say

BAD = "\x1b[31mred\x1b[0m \x9b2J \r\x08\x07 \u202eright to left\u2066 \u2028 \x7f \x0b\x0c\x85 end"
DIRECTIONS = {"\u061c", "\u200e", "\u200f", *map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))}


def is_safe(text: str) -> bool:
    return not any(
        c in DIRECTIONS or (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t") for c in text
    )


@given(st.text(st.characters(exclude_categories=())) | st.text(st.sampled_from(BAD)))
def test_no_control_character_is_left_and_all_else_stays(text: str) -> None:
    shown = printable(text)
    assert is_safe(shown)
    if is_safe(text):
        assert shown == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_line_of_json_keeps_its_meaning(text: str) -> None:
    assert json.loads(printable(json.dumps({"text": text}, ensure_ascii=False))) == {"text": text}


def test_layout_and_letters_of_every_script_stay() -> None:
    assert printable("a\n\tnaïve 日本 👩‍🚀 שלום") == "a\n\tnaïve 日本 👩‍🚀 שלום"
    assert printable("\x1b[2J\r") == "\\u001b[2J\\u000d"


def test_show_and_preview_print_what_data_holds_escaped(workspace: Path, make_job: Callable[..., Job]) -> None:
    write_task(workspace, user_j2=BAD + "{{ scenario.a }}", user_short_j2=BAD + "{{ scenario.b }}")
    run(make_job(), workspace, workspace / "out")
    assert all(map(is_safe, describe_rows(workspace / "out", 20)))
    for command in (["show", "out", "-n", "20"], ["preview", "adding"], ["preview", "adding", "--json"]):
        printed, told = start_factory(*command, cwd=workspace).communicate()
        assert (is_safe(printed), told, "u001b[31mred" in printed) == (True, "", True), command
    assert json.loads(printed)["messages"][-1]["content"].startswith("\x1b[31mred")


@pytest.mark.parametrize(
    "command",
    [
        ["show", BAD.replace("\n", "")],
        ["preview", BAD],
        ["run", BAD],
        ["show", "x", BAD],
        [BAD],
        ["show", "x", "-n", BAD],
    ],
)
def test_errors_repeat_what_was_typed_escaped(command: list[str], tmp_path: Path) -> None:
    process = start_factory(*command, cwd=tmp_path)
    printed, told = process.communicate()
    assert (process.returncode, printed, is_safe(told)) == (2, "", True)
    assert "Traceback" not in told


def prints(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print" for node in ast.walk(tree))


def test_every_print_of_the_program_goes_the_one_way() -> None:
    root = Path(sys.modules["factory"].__file__ or "").parent
    bare = [
        str(path.relative_to(root))
        for folder in ("publish", "runs", "curriculum", "checks", "dataset", "load", "forecast", "tasks")
        for path in (root / folder).rglob("*.py")
        # a call, not a word of a text: exports write lines of Python that print
        if prints(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert bare == []


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_colours_and_nothing_else_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen, pipe, plain = Screen(), io.StringIO(), Screen()
    told = "── a · b ──\nanswer      {}\nerror: no\n  rejected  3  check/wrong\x1b[2J\nother"
    say(told, screen)
    say(told, pipe)
    monkeypatch.setenv("NO_COLOR", "1")
    say(told, plain)
    assert pipe.getvalue() == plain.getvalue() == printable(told) + "\n"
    assert "\x1b[1m── a · b ──\x1b[0m\n\x1b[36manswer      \x1b[0m{}\n\x1b[31merror: no\x1b[0m\n" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue(), "what data holds is escaped before anything is painted"
