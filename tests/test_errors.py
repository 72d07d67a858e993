"""Errors as people read them."""

from pathlib import Path

import pytest

from factory.errors import FidelityError, JobError, one_line, pip_install
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


@pytest.mark.parametrize(
    ("told", "command"),
    [
        (None, 'pip install "distillation-factory[report]"'),
        ('{"url": "file:///w/f.whl", "archive_info": {}}', 'pip install "distillation-factory[report]"'),
        ('{"url": "https://host/f.git", "vcs_info": {}}', 'pip install "distillation-factory[report]"'),
        ('{"url": "file:///not%20there", "dir_info": {}}', 'pip install ".[report]"'),
        ('{"url": "file://HERE", "dir_info": {}}', 'pip install "HERE[report]"'),
        ('{"url": "file://HERE", "dir_info": {"editable": true}}', 'pip install -e "HERE[report]"'),
        ("nonsense", 'pip install "distillation-factory[report]"'),
    ],
)
def test_an_extra_is_installed_from_where_the_factory_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str | None, command: str
) -> None:
    info = tmp_path / "distillation_factory-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: distillation-factory\nVersion: 1\n")
    if told is not None:
        (info / "direct_url.json").write_text(told.replace("HERE", str(tmp_path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert pip_install("report") == command.replace("HERE", str(tmp_path))
