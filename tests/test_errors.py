"""Errors as people read them."""

import pytest

from factory.errors import FidelityError, JobError, report


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
