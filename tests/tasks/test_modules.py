"""A task's Python side: its file, its parts and their word banks are its sources, and nobody else's."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, write_task

from factory.errors import TaskError
from factory.tasks.modules import load_module
from factory.tasks.render import check_templates
from factory.tasks.tasks import builtin_root, discover, load_task

WITH_PARTS = SCHEMA.replace("import random\n", "import random\nfrom ._drawing import draw\n").replace(
    "Scenario(a=rng.randrange(most), b=rng.randrange(most))", "Scenario(a=draw(rng), b=0)"
)
DRAWING = """
from factory.tasks.words import WordBank, read_words
from ._shared import twice

class Bank(WordBank):
    numbers: tuple[int, ...]

BANK = read_words(__file__, Bank)

def draw(rng):
    return twice(rng.choice(BANK.numbers))
"""
TWICE = "def twice(number):\n    return number * 2\n"


def write_parts(root: Path, name: str = "adding", numbers: str = "[5]", shared: str = TWICE) -> None:
    """A task whose file draws from a part with a word bank, which imports a part of its own."""
    write_task(root, name, schema=WITH_PARTS)
    (root / "schemas/_drawing.py").write_text(DRAWING)
    (root / "schemas/_drawing.words.toml").write_text(f"numbers = {numbers}\n")
    (root / "schemas/_shared.py").write_text(shared)


def drawn(root: Path, name: str = "adding") -> int:
    """The number that a task draws, as its files stand now."""
    task, said = load_task(root, name)
    assert task is not None, said
    assert task.sample is not None
    return int(task.sample(random.Random(0), "easy").a)


def said_of(root: Path, name: str = "adding") -> str:
    """The one problem of a task, without the root of its paths."""
    _, problems = load_task(root, name)
    (problem,) = problems
    assert "\n" not in problem
    return problem.replace(f"{root}/", "")


def test_parts_and_word_banks_are_sources_of_their_task(tmp_path: Path) -> None:
    write_parts(tmp_path)
    (tmp_path / "schemas/_nobody.py").write_text("1 / 0")
    (tmp_path / "schemas/other.words.toml").write_text("not read")
    task = discover(tmp_path, ["adding"]).tasks["adding"]
    assert drawn(tmp_path) == 10
    assert [path for path in task.digests if path.startswith("schemas/")] == [
        "schemas/adding.py",
        "schemas/_drawing.py",
        "schemas/_drawing.words.toml",
        "schemas/_shared.py",
    ]
    assert sorted(task.digests) == sorted(
        str(path.relative_to(tmp_path)) for path in task.sources if path.name != "task.toml"
    )


@pytest.mark.parametrize(
    ("changed", "now"), [({"numbers": "[6]"}, 12), ({"shared": TWICE.replace("2", "3")}, 15)], ids=["words", "part"]
)
def test_a_changed_part_or_word_bank_is_run_anew_and_changes_its_digest(
    tmp_path: Path, changed: dict[str, str], now: int
) -> None:
    # twice within a second and at the same size: by these a compiled file would count as unchanged
    write_parts(tmp_path)
    before = discover(tmp_path, ["adding"]).tasks["adding"].digests
    assert drawn(tmp_path) == 10
    write_parts(tmp_path, **changed)
    after = discover(tmp_path, ["adding"]).tasks["adding"].digests
    assert drawn(tmp_path) == now
    (path,) = [path for path in before if before[path] != after[path]]
    assert path == ("schemas/_drawing.words.toml" if "numbers" in changed else "schemas/_shared.py")


def test_two_workspaces_with_files_of_the_same_names_do_not_mix(tmp_path: Path) -> None:
    for root, numbers in ((tmp_path / "one", "[5]"), (tmp_path / "two", "[6]")):
        root.mkdir()
        write_parts(root, numbers=numbers)
    tasks = [discover(tmp_path / name, ["adding"]).tasks["adding"] for name in ("one", "two")]
    assert [task.sample(random.Random(0), "easy").a for task in tasks if task.sample] == [10, 12]


def test_two_tasks_may_share_a_part_which_is_run_for_each(tmp_path: Path) -> None:
    for name in ("adding", "summing"):
        write_parts(tmp_path, name)
    tasks = discover(tmp_path).tasks
    modules = [sys.modules[tasks[name].Scenario.__module__] for name in ("adding", "summing")]
    assert len({id(vars(module)["draw"]) for module in modules}) == 2
    assert all("schemas/_shared.py" in tasks[name].digests for name in ("adding", "summing"))


def test_a_task_in_place_of_a_built_in_takes_no_part_of_it(tmp_path: Path) -> None:
    schema = (builtin_root() / "schemas/scheduling.py").read_text()
    write_task(tmp_path, "scheduling", schema=schema)
    told = discover(tmp_path, ["scheduling"]).problems["scheduling"][0].replace(f"{tmp_path}/", "")
    assert "imports schemas/_names.py, which is missing" in told
    for name in ("_names.py", "_scheduling_clock.py"):
        (tmp_path / "schemas" / name).write_text((builtin_root() / "schemas" / name).read_text())
    assert said_of(tmp_path, "scheduling") == "schemas/scheduling.words.toml: missing; scheduling.py draws from it"
    words = (builtin_root() / "schemas/scheduling.words.toml").read_text()
    (tmp_path / "schemas/scheduling.words.toml").write_text(words.replace("budget review", "harvest plan"))
    found = discover(tmp_path).tasks
    assert found["scheduling"].sources[-1].parent == tmp_path / "schemas"
    topics = {
        found["scheduling"].sample(random.Random(n), "easy").topic for n in range(99) if found["scheduling"].sample
    }
    assert "harvest plan" in topics
    assert "budget review" not in topics
    assert found["photo_edits"].sources[-1].parent == builtin_root() / "schemas"


def test_no_two_sources_of_a_task_have_one_name_even_where_it_is_called_task(tmp_path: Path) -> None:
    schema = SCHEMA + "\nfrom factory.tasks.words import WordBank, read_words\nread_words(__file__, WordBank)\n"
    write_task(tmp_path, "task", schema=schema)
    (tmp_path / "schemas/task.words.toml").write_text("")
    task = discover(tmp_path, ["task"]).tasks["task"]
    names = [path.name for path in task.sources]
    assert len(set(names)) == len(names)
    assert {"task.toml", "task.words.toml", "task.py"} <= set(names)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"_drawing.py": None},
            "schemas/adding.py:3: imports schemas/_drawing.py, which is missing; a part lies beside",
        ),
        (
            {"_shared.py": None},
            "schemas/_drawing.py:3: imports schemas/_shared.py, which is missing; a part lies beside",
        ),
        ({"_shared.py": "x = 1\ny = 1 / 0\n"}, "schemas/_shared.py:2: ZeroDivisionError: division by zero"),
        ({"_shared.py": "x = 1\nif x\n"}, "schemas/_shared.py:2: SyntaxError: expected ':'"),
        (
            {"_shared.py": "import no_such_module\n"},
            "schemas/_shared.py:1: ModuleNotFoundError: No module named 'no_such",
        ),
        (
            {"_shared.py": "from . import _late"},
            "schemas/_shared.py:1: ImportError: cannot import name '_late', no such",
        ),
        ({"_shared.py": "def thrice(): ..."}, "schemas/_drawing.py:3: ImportError: cannot import name 'twice' from "),
        ({"_shared.py": "from .sub.deep import x"}, "schemas/_shared.py:1: imports schemas/sub.py, which is missing"),
        ({"_shared.py": "from ..sub import x"}, "schemas/_shared.py:1: ImportError: attempted relative import beyond"),
        ({"_drawing.words.toml": None}, "schemas/_drawing.words.toml: missing; _drawing.py draws from it"),
        ({"_drawing.words.toml": "numbers = "}, "schemas/_drawing.words.toml: not valid TOML: "),
        ({"_drawing.words.toml": "numbers = ['x']"}, "schemas/_drawing.words.toml: numbers.0: Input should be a valid"),
    ],
)
def test_a_fault_in_a_part_or_a_word_bank_is_named_where_it_is(
    tmp_path: Path, files: dict[str, str | None], says: str
) -> None:
    write_parts(tmp_path)
    (tmp_path / "schemas/sub").mkdir()
    (tmp_path / "schemas/sub/deep.py").write_text("x = 1\n")
    for name, text in files.items():
        if text is None:
            (tmp_path / "schemas" / name).unlink()
        else:
            (tmp_path / "schemas" / name).write_text(text)
    before = set(sys.modules)
    assert said_of(tmp_path).startswith(says)
    assert not [name for name in set(sys.modules) - before if name.startswith("factory_task_")]


def test_a_part_cannot_be_imported_later_without_being_known(tmp_path: Path) -> None:
    late = "return Scenario"
    write_task(tmp_path, schema=SCHEMA.replace(late, f"from ._late import x\n    {late}"))
    (tmp_path / "schemas/_late.py").write_text("x = 1\n")
    task = discover(tmp_path, ["adding"]).tasks["adding"]
    assert "schemas/_late.py" not in task.digests
    (problem, *_) = check_templates(task)
    assert "raised ModuleNotFoundError: No module named" in problem


def test_nothing_of_a_task_stays_on_the_import_path(tmp_path: Path) -> None:
    write_parts(tmp_path)
    before: list[Any] = [*sys.meta_path]
    load_module(tmp_path / "schemas/adding.py")
    (tmp_path / "schemas/adding.py").write_text("1 / 0")
    with pytest.raises(TaskError):
        load_module(tmp_path / "schemas/adding.py")
    assert sys.meta_path == before
    assert not list((tmp_path / "schemas").glob("__pycache__"))


def test_the_words_that_the_documentation_shows_are_drawn_from(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/add-a-task.md").read_text(encoding="utf-8")
    section = page.partition("### Words and parts\n")[2].partition("\n### ")[0]
    words, code = (section.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("toml", "python"))
    write_task(tmp_path, "gifts", schema=code + SCHEMA, words=words)
    task = discover(tmp_path, ["gifts"]).tasks["gifts"]
    bank = vars(sys.modules[task.Scenario.__module__])["BANK"]
    assert (bank.brands, bank.products) == (("Aldo", "Brio", "Corin"), {"tent": 99, "stove": 60})
    assert "schemas/gifts.words.toml" in task.digests
