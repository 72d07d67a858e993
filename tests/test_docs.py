"""Documentation: it names everything there is, and what it shows works as it is written."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from factory.cli import build_parser
from factory.curriculum.config import TabledConfig
from factory.job.job import Job, load_job
from factory.tasks.tasks import TaskFile

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.toml"))
COMMAND_WORDS = ("$", "#", "make ", "factory ", "git ", "cd ", "pip ", "uv ", "python", "from ", "import ")


def read_all() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every line inside a fenced block."""
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside:
            yield number, line


def factory_commands(page: Path) -> list[str]:
    """Arguments of every `factory ...` line in a page's code blocks, without what a shell does around them."""
    found = []
    for _, line in code_lines(page.read_text(encoding="utf-8")):
        match = re.match(r"\s*(?:\$ )?(?:\S*/)?factory (.*)", line)
        if match:
            found.append(re.split(r" [|>]|&&|;|\\$", match[1])[0])
    return found


def parses(line: str) -> bool:
    """Whether the program takes these arguments."""
    try:
        build_parser().parse_args(shlex.split(line, comments=True))
    except SystemExit as ended:
        return ended.code == 0  # --help and --version end there
    return True


def parsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.mark.parametrize("command", sorted(parsers()))
def test_every_command_and_every_option_of_it_is_documented(command: str) -> None:
    text = read_all()
    assert re.search(rf"factory {command}\b", text)
    options = [action.option_strings[-1] for action in parsers()[command]._actions if action.option_strings]
    missing = [option for option in options if option != "--help" and not re.search(rf"(?<![\w-]){option}\b", text)]
    assert missing == []


def test_every_option_of_the_program_itself_is_documented() -> None:
    options = [action.option_strings[-1] for action in build_parser()._actions if action.option_strings]
    assert [option for option in options if option not in read_all() and option != "--help"] == []


def keys_of(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[str, str]]:
    """Every key of a config model and of those inside it, with the model's name."""
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        yield model.__name__, field.alias or name
        for inner in models_in(field.annotation):
            yield from keys_of(inner, seen)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


CONFIGS = {
    Job: ["operations.md", "signals.md", "quality.md", "filters.md", "teachers.md", "publishing.md"],
    TaskFile: ["add-a-task.md", "filters.md"],
    TabledConfig: ["curriculum.md"],
}


@pytest.mark.parametrize("model", CONFIGS, ids=lambda model: model.__name__)
def test_every_key_of_every_config_file_is_documented(model: type[BaseModel]) -> None:
    """As code: as a key of a TOML block, as a [table], or between backquotes."""
    text = "\n".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in CONFIGS[model])
    found = set(keys_of(model, set()))
    assert len(found) >= 7
    missing = []
    for owner, key in sorted(found):
        shown = rf"^(# )?{key} = |[{{,] ?{key} = |^\[+([a-z]+\.)*{key}\]|`[^`\n]*(?<![\w-]){key}(?![\w-])[^`\n]*`"
        if not re.search(shown, text, re.M):
            missing.append(f"{owner}.{key}")
    assert missing == []


def test_the_readme_shows_commands() -> None:
    assert len(factory_commands(README)) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_that_is_shown_parses(page: Path) -> None:
    assert [line for line in factory_commands(page) if not parses(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_is_linked_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    paths = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert [path for path in paths if path and not (page.parent / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_heading_that_is_linked_exists(page: Path) -> None:
    for path, _, anchor in (
        link.partition("#") for link in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", page.read_text(encoding="utf-8"))
    ):
        if not re.match(r"[a-z]+:", path):
            target = (page.parent / path) if path else page
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name}: {path}#{anchor}"


def test_there_is_an_example_to_copy() -> None:
    assert (ROOT / "docs/examples/demo.toml") in EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_job(path: Path) -> None:
    job = load_job(path)
    assert job.tasks or job.transcripts


def test_the_readme_is_short_and_shows_output_early() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    early = [line.strip() for number, line in code_lines(text) if number <= 15 and line.strip()]
    assert [line for line in early if not line.startswith(COMMAND_WORDS)], "no output in the first 15 lines"
