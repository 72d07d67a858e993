"""Task discovery: a folder `prompts/<task>/` and a file `schemas/<task>.py` are a task, with no registry beside them.

All that the Python file draws from and imports beside it is a part of the task (`modules.py`, `words.py`).

A broken task never vanishes: `discover` returns what is whole and, for what is not, every reason why.

    prompts/<name>/task.toml            name, version, levels, gate, sampling, style
                   user.j2, user_*.j2   phrasings of the user turn; the seed draws one
                   system.j2            the system turn, where there is one
                   student.j2           the user turn that the student is shown, where it is not the teacher's
                   judge.j2             the rubric, where there is one
    schemas/<name>.py                   Scenario, Answer, check; sample and solve where it has them

A `Task` is whole: each of its parts has been read, its answer's JSON schema is closed, and what it renders and checks
with is in memory. Whether its templates render is another question, and `factory.tasks.render` answers it.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from factory.errors import TaskError, nearest
from factory.job.config import Config
from factory.job.gates import StyleConfig
from factory.job.paths import real_path
from factory.job.teacher import SamplingConfig
from factory.records import Form, Sampling
from factory.tasks.answers import answer_keys, check_style
from factory.tasks.digests import digest_meaning
from factory.tasks.forms import ALLOWED, describe, form_of, is_model
from factory.tasks.golden_lines import FILE, GoldenLine, accepted_lines
from factory.tasks.modules import Loaded, load_module
from factory.tasks.replies import describe_tools
from factory.tasks.words import read_checked

NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
REQUIRED = ("Scenario", "Answer", "check")
FEW_SHOT = re.compile(r"\bfew_shot\b")  # a template that shows golden lines
SHARED = re.compile(r"""["'](_shared/[\w-]+\.j2)["']""")  # as {% include %} and {% import %} name one
STUDENT, STUDENT_SYSTEM = "student.j2", "student_system.j2"  # what the student is shown, where it is not the same
IMAGE_TAG = re.compile(r"\{%[-+]?\s*image\b")
JUDGE = "judge.j2"  # the rubric: a template of its own, with variables of its own


class TaskFile(Config):
    """task.toml."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[str, Field(min_length=1, max_length=32)]
    description: Annotated[str, Field(min_length=1, max_length=400)]
    levels: Annotated[list[Annotated[str, Field(pattern=NAME_PATTERN)]], Field(min_length=1, max_length=32)]
    gate: Literal["schema", "check"] = "check"
    sampling: SamplingConfig = SamplingConfig()
    style: StyleConfig = StyleConfig()


@dataclass(frozen=True, slots=True)
class Task:
    """One whole task: its texts, its types and its behaviour.

    `sources` are the files that it is made of, and `digests` names what of each decides rows. `judge` is the text of
    the rubric, None where the task has none; it is no phrasing and not among `templates`.
    `answer_schema` is what prompts show, `grammar` what an engine holds the teacher to; a free text has none.
    """

    name: str
    # part of every prompt's id: another version makes other rows
    version: str
    description: str
    # easiest first
    levels: tuple[str, ...]
    # what an answer must pass where the job does not say: its schema alone, or `check` too
    gate: Literal["schema", "check"]
    # task.toml's, over the defaults; a job's comes over this
    sampling: Sampling
    folder: Path
    schema_path: Path
    sources: tuple[Path, ...]
    # text of each .j2 file by its name, but for the rubric's
    templates: dict[str, str]
    Scenario: type[BaseModel]
    # a model, or str with or without bounds: see `factory.tasks.forms`
    Answer: Any
    form: Form
    # (scenario, answer) -> findings; none means right
    check: Callable[[Any, Any], list[str]]
    # (rng, level) -> scenario; None for a task that is made from a source alone
    sample: Callable[..., Any] | None
    # scenario -> (reasoning, answer); None for a task without reference solutions
    solve: Callable[[Any], tuple[str, Any]] | None
    # JSON schema of the answer, closed to extra keys: what templates show and the grammar is made of
    answer_schema: dict[str, Any]
    grammar: dict[str, Any] | None
    digests: dict[str, str]
    warnings: tuple[str, ...] = ()
    style: StyleConfig = field(default_factory=StyleConfig)
    # text of the rubric; None where the task has none
    judge: str | None = None
    # models of the tools that an answer may call
    tools: tuple[type[BaseModel], ...] = ()
    # JSON of them, as chat templates and trainers take it; empty where there are none
    tools_json: str = ""
    # those of prompts/_shared/ that the rubric includes, as `templates` has its own
    judge_parts: dict[str, str] = field(default_factory=dict)
    # accepted golden lines, where a template shows some
    golden: tuple[GoldenLine, ...] = ()

    @property
    def phrasings(self) -> list[str]:
        """Names of the user-turn templates, in the order in which the seed draws from them."""
        return sorted(name for name in self.templates if name == "user.j2" or name.startswith("user_"))

    def is_of_rubric(self, name: str) -> bool:
        """Whether a source, as `digests` names it, is read by a judge alone."""
        path = Path(name)
        key = f"_shared/{path.name}" if path.parent.name == "_shared" else path.name
        return key == JUDGE or (key in self.judge_parts and key not in self.templates)

    @property
    def has_student(self) -> bool:
        """Whether the student is shown another prompt than the teacher."""
        return STUDENT in self.templates

    @property
    def shows_images(self) -> bool:
        """Whether a template holds the tag of a picture."""
        return any(IMAGE_TAG.search(text) for text in self.templates.values())

    @property
    def keys(self) -> list[str]:
        """The keys of an answer, as a teacher writes them; none of a free text."""
        return answer_keys(self.answer_schema)


def held_in(tasks: Iterable[Task]) -> dict[str, bool]:
    """What rows of these tasks hold beside texts, and so need columns for: `tools`, `images`."""
    known = list(tasks)
    return {"tools": any(task.tools for task in known), "images": any(task.shows_images for task in known)}


@dataclass(frozen=True, slots=True)
class Discovery:
    """All tasks in sight: whole ones by name, and for each broken one the list of what is wrong."""

    tasks: dict[str, Task] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    roots: tuple[Path, ...] = ()
    # names of the workspace's tasks, whole or broken, that built-in ones have too
    replacing: set[str] = field(default_factory=set)
    # names of tasks that are there and were not asked for: nothing of them was read or run
    others: set[str] = field(default_factory=set)

    def get(self, names: Sequence[str]) -> list[Task]:
        """The named tasks; one TaskError tells of all that are unknown or broken."""
        lines = [line for name in names for line in self._complaints(name)]
        if lines:
            raise TaskError("\n".join(lines))
        return [self.tasks[name] for name in names]

    def _complaints(self, name: str) -> list[str]:
        if name in self.problems:
            return self.problems[name]
        if name in self.tasks:
            return []
        places = ", ".join(str(root / "prompts") for root in self.roots)
        names = {*self.tasks, *self.problems, *self.others}
        known, like = ", ".join(sorted(names)) or "none", nearest(name, names)
        return [f"task {name!r}: not found in {places} (known: {known}){like}; `factory new {name}` starts one"]


def builtin_root() -> Path:
    """The folder of the built-in prompts/ and schemas/: inside the wheel, or the checkout beside the package."""
    package = Path(__file__).parents[1]
    # where hatch's force-include puts them in a wheel; a checkout has no such folder
    packaged = package / "builtin"
    return packaged if packaged.is_dir() else package.parent


def builtin_names() -> list[str]:
    """Names of the built-in tasks."""
    return _task_names(builtin_root())


def discover(workspace: Path, names: Collection[str] | None = None) -> Discovery:
    """Every task in the workspace, then every built-in one that the workspace does not define itself; with `names`
    those alone: a task's Python is run to load it."""
    # the workspace may be the checkout itself: one root, not two
    roots = tuple(dict.fromkeys([real_path(workspace), real_path(builtin_root())]))
    found = Discovery(roots=roots)
    for root in roots:
        for name in _task_names(root):
            if names is not None and name not in names:
                found.others.add(name)
                continue
            # a broken task of the workspace hides a built-in one too: to run that in its place would be a surprise
            if name in found.tasks or name in found.problems:
                found.replacing.add(name)
                continue
            task, problems = load_task(root, name)
            if task is None:
                found.problems[name] = problems
            else:
                found.tasks[name] = task
    return found


def find_tasks(workspace: Path, names: Sequence[str]) -> list[Task]:
    """These tasks in their order, and nothing of any other. Raises TaskError for all that are unknown or broken."""
    return discover(workspace, names).get(names)


def _task_names(root: Path) -> list[str]:
    folder = root / "prompts"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))


def load_task(root: Path, name: str) -> tuple[Task | None, list[str]]:
    """One task and no problems, or no task and every problem that could be seen."""
    folder, schema_path = root / "prompts" / name, root / "schemas" / f"{name}.py"
    # each part is looked at however broken the others are: an author wants all of it at once
    problems: list[str] = []
    config = _read_task_file(folder / "task.toml", name, problems)
    templates = _read_templates(folder, problems)
    # it has variables of its own, so it is no phrasing and not to be checked as one
    rubric = {JUDGE: templates.pop(JUDGE)} if JUDGE in templates else {}
    shared = {*_add_shared(folder, templates, problems), *_add_shared(folder, rubric, problems)}
    loaded = _load_schema(schema_path, problems)
    module = loaded.module if loaded else None
    if module is not None:
        _check_contract(module, schema_path, problems)
    defined = _defined(module)
    described = describe(defined.get("Answer"), defined.get("TOOLS"), schema_path, problems)
    if config is not None and described is not None:
        problems += check_style(config.style, described.schema, folder / "task.toml")
    problems = list(dict.fromkeys(problems))  # of a partial that two kinds of templates include
    if problems or config is None or loaded is None or module is None or described is None:
        return None, problems
    golden = folder / FILE if any(map(FEW_SHOT.search, templates.values())) and (folder / FILE).is_file() else None
    beside = [*sorted(folder.glob("*.j2")), *([golden] if golden else []), *sorted(shared)]
    sources = (folder / "task.toml", *beside, *loaded.files)
    task = Task(
        name=name,
        version=config.version,
        description=config.description,
        levels=tuple(config.levels),
        gate=config.gate,
        sampling=config.sampling.over(Sampling()),
        folder=folder,
        schema_path=schema_path,
        sources=sources,
        templates=templates,
        Scenario=module.Scenario,
        Answer=module.Answer,
        form=described.form,
        tools=tuple(defined.get("TOOLS", ())),
        tools_json=describe_tools(defined.get("TOOLS", ())),
        check=module.check,
        sample=_defined(module).get("sample"),
        solve=_defined(module).get("solve"),
        answer_schema=described.schema,
        grammar=described.grammar,
        # task.toml is not among them: the manifest has its values, so that a refusal can name the key
        digests={str(p.relative_to(root)): digest_meaning(p) for p in sources[1:]},
        warnings=described.warnings,
        style=config.style,
        judge=rubric.pop(JUDGE, None),
        judge_parts=rubric,
        golden=accepted_lines(golden) if golden else (),
    )
    return task, []


def _read_task_file(path: Path, name: str, problems: list[str]) -> TaskFile | None:
    try:
        config = read_checked(path, TaskFile, "a task needs one with name, version, description and levels")
    except TaskError as error:
        problems.append(str(error))
        return None
    if config.name == name:
        return config
    problems.append(f"{path}: name is {config.name!r} but the folder is {name!r}; make them the same")
    return None


def _read_templates(folder: Path, problems: list[str]) -> dict[str, str]:
    templates: dict[str, str] = {}
    for path in sorted(folder.glob("*.j2")):
        # its text would come into prompts and, as a copy, into the dataset: no private file is to come there by a link
        if not real_path(path).is_relative_to(real_path(folder)):
            problems.append(f"{path}: is a link out of its folder; put the file itself there")
            continue
        try:
            templates[path.name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: cannot be read: {error}")
    if "user.j2" not in templates:
        problems.append(f"{folder / 'user.j2'}: missing; it is the user's turn")
    lonely = [name for name in templates if name.startswith("student_") and STUDENT not in templates]
    if lonely:
        problems.append(f"{folder / lonely[0]}: is of the student's prompt, and there is no {STUDENT}; write it")
    return templates


def _add_shared(folder: Path, templates: dict[str, str], problems: list[str]) -> list[Path]:
    """Add to `templates` those of `prompts/_shared/` that they include, under `_shared/NAME`; their files.

    No others: a partial that a task does not use may change without making the task another one.
    """
    texts, found = list(templates.values()), dict[str, Path]()
    while texts:
        for name in map(str, SHARED.findall(texts.pop())):
            path = folder.parent / name
            if name in found or not path.is_file():  # one that is missing is told where it is included
                continue
            if (folder / path.name).is_file():
                problems.append(f"{path}: {folder / path.name} has the same name; copies lie side by side, rename one")
            if not real_path(path).is_relative_to(real_path(path.parent)):
                problems.append(f"{path}: is a link out of its folder; put the file itself there")
                continue
            try:
                templates[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{path}: cannot be read: {error}")
                continue
            found[name] = path
            texts.append(templates[name])
    return [found[name] for name in sorted(found)]


def _load_schema(path: Path, problems: list[str]) -> Loaded | None:
    if not path.is_file():
        problems.append(f"{path}: missing; it must define {', '.join(REQUIRED)} and sample")
        return None
    try:
        return load_module(path)
    except TaskError as error:
        problems.append(str(error))
        return None


def _defined(module: ModuleType | None) -> dict[str, Any]:
    """What a module defines; None counts as nothing, as a name that is switched off."""
    return {name: value for name, value in vars(module).items() if value is not None} if module is not None else {}


def _check_contract(module: ModuleType, path: Path, problems: list[str]) -> None:
    defined = _defined(module)
    has = ", ".join(sorted(set(defined) & {*REQUIRED, "sample", "solve"})) or "none of them"
    for name in REQUIRED:
        if name not in defined:
            problems.append(f"{path}: {name} is missing (needs {', '.join(REQUIRED)}; has {has}); define it")
    scenario, answer = defined.get("Scenario"), defined.get("Answer")
    if scenario is not None and not is_model(scenario):
        problems.append(f"{path}: Scenario must be a pydantic BaseModel, got {scenario!r}")
    if answer is not None and form_of(answer) is None:
        problems.append(f"{path}: Answer must be {ALLOWED}, got {answer!r}")
    for name in ("check", "sample", "solve"):
        value = defined.get(name)
        if value is not None and not callable(value):
            problems.append(f"{path}: {name} must be a function, got {value!r}")
