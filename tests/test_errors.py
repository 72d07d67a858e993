"""Errors as people read them."""

import pytest

from factory.errors import FidelityError, JobError, one_line
from factory.terminal import report


def test_every_problem_is_a_line_and_the_code_is_the_errors(capsys: pytest.CaptureFixture[str]) -> None:
    codes = [report(JobError("a: wrong\nb: wrong too")), report(FidelityError("c: found"))]
    assert codes == [2, 1]
    assert capsys.readouterr() == ("", "error: a: wrong\nerror: b: wrong too\nerror: c: found\n")


def test_no_secret_of_the_environment_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "abcdefgh-secret")
    report(JobError("no access with abcdefgh-secret"))
    assert capsys.readouterr().err == "error: no access with <SOME_API_TOKEN>\n"


def test_what_an_error_says_is_one_line_and_never_nothing() -> None:
    assert one_line(ValueError(" two\n  lines ")) == "two lines"
    assert one_line(ValueError("long " * 400), 7) == "long lo"
    assert one_line(MemoryError()) == "MemoryError"
