"""Faults of a task's own code: whatever it does ends as one TaskFault, and what stops the factory goes through."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from factory.errors import Terminated
from factory.tasks import faults
from factory.tasks.faults import TaskFault, blamed, line_of, name_error

CODE = """
def divide():
    one = 1
    return one / 0


def outer():
    return divide()
"""


class Mute(Exception):
    """Fails to say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def fault_of(act: Callable[[], object], path: Path | None = None) -> TaskFault:
    with pytest.raises(TaskFault) as caught, blamed("check_raised", path):
        act()
    return caught.value


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (raising(KeyError("b")), "KeyError: 'b'"),
        (raising(ValueError("two\nlines")), "ValueError: two lines"),
        (raising(AssertionError()), "AssertionError"),
        (lambda: sys.exit(3), "SystemExit: 3"),
        (raising(Mute()), "Mute"),
        (raising(RecursionError("deep")), "RecursionError: deep"),
        (raising(MemoryError()), "MemoryError"),
    ],
)
def test_whatever_is_raised_is_one_line_with_its_type(act: Callable[[], object], told: str) -> None:
    fault = fault_of(act)
    assert (fault.reason, str(fault)) == ("check_raised", told)


def test_the_line_of_the_task_s_file_is_told(tmp_path: Path) -> None:
    path, values = tmp_path / "adding.py", dict[str, Callable[[], object]]()
    exec(compile(CODE, str(path), "exec"), values)
    assert str(fault_of(values["outer"], path)) == "ZeroDivisionError: division by zero (adding.py, line 4)"
    assert str(fault_of(values["outer"])) == "ZeroDivisionError: division by zero"
    assert str(fault_of(raising(KeyError(1)), path)) == "KeyError: 1"  # of elsewhere


def test_the_line_of_a_syntax_error_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "adding.py"
    with pytest.raises(SyntaxError) as caught:
        compile("x = 1\ny = (\n", str(path), "exec")
    assert line_of(caught.value, path) == 2
    assert line_of(caught.value, tmp_path / "other.py") is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated(143), BrokenPipeError()])
def test_what_stops_the_factory_is_no_fault(error: BaseException) -> None:
    kind = TaskFault if isinstance(error, OSError) else type(error)
    with pytest.raises(kind), blamed("check_raised"):
        raise error


def test_a_fault_inside_another_call_keeps_its_reason() -> None:
    with pytest.raises(TaskFault) as caught, blamed("outer"):
        raising(TaskFault("inner", "why"))()
    assert caught.value.reason == "inner"


def test_what_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MAX_SECONDS", 0.2)

    def spin() -> None:
        while True:
            pass

    assert "still not done after 0.2 s" in str(fault_of(spin))
    monkeypatch.setattr(faults, "MAX_WAIT_SECONDS", 0.2)
    assert "not done after 0.2 s on the clock" in str(fault_of(lambda: time.sleep(60)))


def test_secrets_of_the_environment_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    assert "hf_abc" not in str(fault_of(raising(ValueError("with hf_abcdefghijklmnop"))))


def test_an_error_without_words_is_its_type() -> None:
    assert name_error(Mute()) == "Mute"
