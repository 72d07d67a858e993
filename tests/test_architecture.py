"""The shape of the code: imports go down only, nothing grows too large, and the package is what pyproject says."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import factory
from factory.tasks.catalog import KINDS
from factory.tasks.tasks import discover

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "factory").rglob("*.py"))
SCHEMAS = sorted((ROOT / "schemas").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = PYPROJECT["tool"]["importlinter"]["contracts"]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_imports_go_down_only() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(rf"Contracts: {len(CONTRACTS)} kept, 0 broken", done.stdout)


@pytest.mark.parametrize("path", MODULES + SCHEMAS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_and_no_function_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert [(name, lines) for name, lines in functions(path) if lines > 60] == []


def test_functions_are_short_as_a_rule() -> None:
    lengths = sorted(lines for path in MODULES for _, lines in functions(path))
    assert lengths[len(lengths) // 2] <= 10
    assert lengths[len(lengths) * 9 // 10] <= 35


def test_every_module_says_what_it_is_for() -> None:
    modules = MODULES + SCHEMAS
    assert [str(path) for path in modules if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    names = {path.stem.strip("_") for path in MODULES + SCHEMAS}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def test_every_wing_has_layers_that_name_all_of_its_modules() -> None:
    layered = {c["containers"][0]: c for c in CONTRACTS if c["type"] == "layers"}
    wings = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES}
    assert set(layered) == wings - {"factory.demo_teacher"}  # scripts that made one model, nothing stands on them
    assert all(contract["exhaustive"] for contract in layered.values())


def test_the_top_of_the_package_holds_little_beside_the_wings() -> None:
    assert len(list((ROOT / "factory").glob("*.py"))) <= 8


def test_the_version_is_told_once_in_two_places() -> None:
    assert PYPROJECT["project"]["version"] == factory.__version__


def test_a_wheel_carries_the_built_in_tasks_inside_the_package() -> None:
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["factory"]
    assert wheel["force-include"] == {"prompts": "factory/builtin/prompts", "schemas": "factory/builtin/schemas"}


def test_every_built_in_task_has_its_two_halves_and_its_golden_file() -> None:
    prompts = {path.name for path in (ROOT / "prompts").iterdir() if path.is_dir()}
    parts = {path.stem for path in SCHEMAS if path.stem.startswith("_")} - {*KINDS.values()}
    assert prompts == {path.stem for path in SCHEMAS} - parts
    assert [name for name in sorted(prompts) if not (ROOT / "prompts" / name / "golden.jsonl").is_file()] == []


def test_every_file_of_the_schemas_is_a_source_of_a_task() -> None:
    sources = {path for task in discover(ROOT).tasks.values() for path in task.sources}
    files = {path for path in (ROOT / "schemas").rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    assert files - sources == {ROOT / "schemas" / f"{template}.py" for template in KINDS.values()}


def test_a_schema_knows_of_the_factory_no_more_than_word_banks_and_replies() -> None:
    nodes = [node for path in SCHEMAS for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    imports = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    imports |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    known = {"factory.tasks.words", "factory.tasks.replies"}
    assert {name for name in imports if name.split(".")[0] == "factory"} == known
