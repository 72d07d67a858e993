"""Looking at tasks without a teacher: list them, preview their prompts, start a new one."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from factory.errors import TaskError, nearest
from factory.hashing import derive_seed
from factory.records import PlannedRow, Prompt, Sampling
from factory.tasks.faults import TaskFault
from factory.tasks.pictures import tell_missing
from factory.tasks.render import check_templates, open_renderer, require_whole
from factory.tasks.replies import tool_name
from factory.tasks.tasks import NAME_PATTERN, Task, builtin_names, builtin_root, discover, find_tasks, load_task

# what `factory new` begins with: JSON; a free text, with earlier turns; calls of tools
KINDS = {"json": "_template", "text": "_template_text", "tools": "_template_tools"}
REPLACES = "replaces the built-in one"


def list_tasks(workspace: Path, try_task: Callable[[Task], list[str]] = check_templates) -> tuple[list[str], list[str]]:
    """One readable block for each task in sight, and every problem of every broken one that `try_task` finds."""
    found = discover(workspace)
    lines: list[str] = []
    problems: list[str] = []
    for name in sorted({*found.tasks, *found.problems}):
        task, marked = found.tasks.get(name), f"  {REPLACES}" if name in found.replacing else ""
        # tried here, so that what is listed as whole is whole
        wrong = found.problems.get(name) or (try_task(task) if task else [])
        if wrong and all(line.endswith(tell_missing()) for line in wrong):  # whole, where Pillow is
            lines += [f"{name}  NOT INSTALLED{marked}", *(f"    {line}" for line in wrong)]
            continue
        problems += wrong
        if task is None or wrong:
            lines += [f"{name}  BROKEN{marked}", *(f"    {line}" for line in wrong)]
            continue
        judged = "  judge: yes" if task.judge is not None else ""
        lines.append(f"{name}  {task.version}  levels: {', '.join(task.levels)}  gate: {task.gate}{judged}{marked}")
        tools = ", ".join(map(tool_name, task.tools))
        fields = f"text, calls of {tools}" if tools else ", ".join(task.keys) or "free text"
        lines += [f"    {task.description}", f"    answer: {fields}  ({task.schema_path})"]
        lines += [f"    warning: {warning}" for warning in task.warnings]
    return lines, problems


def preview(workspace: Path, name: str, level: str | None, seed: int, count: int) -> Iterator[Prompt]:
    """Rendered prompts of a task, as a job with this seed would make them. Raises TaskError."""
    task = find_tasks(workspace, [name])[0]
    require_whole([task])
    if level is not None and level not in task.levels:
        raise TaskError(
            f"task {name!r}: unknown level {level!r} (has: {', '.join(task.levels)}){nearest(level, task.levels)}"
        )
    if task.sample is None:
        raise TaskError(
            f"task {name!r}: has no sample(), so only a job with a source has prompts: factory preview --job JOB.toml"
        )
    renderer = open_renderer(task, Sampling())
    for number in range(count):
        # each level in turn, so that a few prompts show them all
        drawn = level or task.levels[number % len(task.levels)]
        row = PlannedRow(0, number, name, drawn, number, derive_seed(seed, name, drawn, number))
        try:
            yield renderer.render(row)
        except TaskFault as error:
            raise TaskError(f"task {name!r}, level {drawn}, row {number + 1}: {error}") from None


def scaffold(workspace: Path, name: str, kind: str = "json", replace: bool = False) -> list[Path]:
    """Write a small whole task of that name into the workspace; it passes its own checks as it stands.

    `kind` is one of KINDS: what its answers are. `replace`: it may have the name of a built-in task. Raises TaskError.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise TaskError(f"task name {name!r}: use lower-case letters, digits and underscores, a letter first")
    taken = [path for path in (workspace / "prompts" / name, workspace / "schemas" / f"{name}.py") if path.exists()]
    if taken:
        raise TaskError(f"{taken[0]}: is there already; choose another name or remove it")
    if name in builtin_names() and not replace:
        raise TaskError(
            f"task name {name!r}: is a built-in task's, which yours would replace in the workspace {workspace}; choose "
            "another name, or say that you mean it with --replace"
        )
    root = builtin_root()
    template = KINDS[kind]
    sources = sorted((root / "prompts" / template).iterdir())
    targets = {source: workspace / "prompts" / name / source.name for source in sources}
    targets[root / "schemas" / f"{template}.py"] = workspace / "schemas" / f"{name}.py"
    for source, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8").replace(template, name), encoding="utf-8")
    # the template is ours: if it does not load, it is our fault and not the user's
    task, problems = load_task(workspace, name)
    assert task is not None, problems
    return sorted(targets.values())
