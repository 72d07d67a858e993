"""Rendering: a task and a scenario become the messages of one prompt. Pure: same inputs, same text, on every machine.

Templates run in the sandbox of `factory.tasks.sandbox` over the task's own files only: they cannot reach the disk,
underscore attributes or a variable that does not exist, and they have so much time, memory and text.

    planned row (task, level, number, sample, seed)
        seed           -> the scenario that `sample` draws, and which phrasing asks for it
        content        -> group: one for all samples of a prompt;  id: group and number of the sample
        id and seed    -> the seed that the teacher samples this row with
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import DictLoader, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel

from factory.errors import TaskError, Terminated, nearest
from factory.hashing import content_hash, derive_seed
from factory.records import Message, PlannedRow, Prompt, Sampling
from factory.tasks.calls import adopt_scenario, call_sample, dump_scenario, read_scenario
from factory.tasks.faults import TaskFault, name_error
from factory.tasks.few_shot import Example, Shown, choose_examples, make_examples
from factory.tasks.sandbox import (
    MAX_BYTES,
    MAX_CHARACTERS,
    LoudUndefined,
    OutOfBounds,
    Stalled,
    TaskEnvironment,
    bounds,
)
from factory.tasks.tasks import JUDGE, STUDENT, STUDENT_SYSTEM, Task
from factory.tasks.turns import TurnError, TurnTag, find_tags, marking, spell

VARIABLES = ("scenario", "level", "answer_schema", "style", "few_shot")
JUDGE_VARIABLES = ("scenario", "level", "style", "prompt", "turns", "reasoning", "answer")
# for a teacher without reasoning of its own; the markers are those of `teacher.reasoning = "prompted"`
REASON_IN_WORDS = "First think step by step between <think> and </think>. Then give the answer, and nothing else."


@dataclass(frozen=True, slots=True)
class Renderer:
    """One task, its templates compiled once; `prompted_reasoning` adds the request for it to the system turn."""

    task: Task
    environment: ImmutableSandboxedEnvironment
    sampling: Sampling
    prompted_reasoning: bool = False
    examples: list[Shown] = field(default_factory=list)  # made when the first template shows one

    def render(self, row: PlannedRow, source: Mapping[str, Any] | None = None) -> Prompt:
        """The prompt of a planned row, from a sampled scenario or from one row of the user's `source`."""
        task = self.task
        scenario = call_sample(task, row.seed, row.level) if source is None else adopt_scenario(task, source)
        scenario_json = dump_scenario(task, scenario)  # before any template has had it: what `check` will be given
        phrasing = self._draw_phrasing(row.seed)
        messages = self.messages(scenario, row.level, phrasing, row.seed, scenario_json)
        student = self.student_messages(scenario, row.level, phrasing)
        identity = [self.task.name, self.task.version, row.level, row.number, messages, *([student] if student else [])]
        identity += [task.tools_json] if task.tools_json else []
        group = content_hash(identity)
        # the first sample is the one that the group is named after
        prompt_id = content_hash([group, row.sample]) if row.sample else group
        return Prompt(
            id=prompt_id,
            shard=row.shard,
            position=row.position,
            task=self.task.name,
            level=row.level,
            messages=tuple(messages),
            scenario=scenario_json,
            seed=derive_seed(prompt_id, row.seed),
            sampling=self.sampling,
            sample=row.sample,
            group=group,
            form=task.form,
            teacher=row.teacher,
            student_messages=tuple(student),
            tools=task.tools_json,
        )

    def messages(
        self, scenario: BaseModel, level: str, phrasing: str, seed: int = 0, scenario_json: str = ""
    ) -> list[Message]:
        """The system turn, where there is one, the turns before the request and the user's request.

        `seed` draws the examples that they show.
        """

        def few_shot(count: int) -> list[Example]:
            if not self.examples:
                self.examples.extend(make_examples(self.task, self._ask))
            return choose_examples(self.examples, count, level, scenario_json, seed)

        variables = self._variables(scenario, level) | {"few_shot": few_shot}
        system = fill(self.environment, "system.j2", variables) if "system.j2" in self.task.templates else ""
        if self.prompted_reasoning:
            system = f"{system}\n\n{REASON_IN_WORDS}".strip()
        turns = fill_turns(self.environment, phrasing, variables)
        return [{"role": "system", "content": system}, *turns] if system else turns

    def student_messages(self, scenario: BaseModel, level: str, phrasing: str) -> list[Message]:
        """What the student is shown in place of `messages`; empty where it is the same.

        `student_short.j2` stands for `user_short.j2`, and `student.j2` for all that have none of their own.
        """
        task = self.task
        if not task.has_student:
            return []
        # examples are for the teacher: the student is to do without
        variables = self._variables(scenario, level) | {"few_shot": _no_examples}
        own = STUDENT.replace("student", phrasing.removesuffix(".j2").replace("user", "student", 1))
        name = own if own in task.templates else STUDENT
        turns = fill_turns(self.environment, name, variables)
        if STUDENT_SYSTEM in task.templates:
            return [{"role": "system", "content": fill(self.environment, STUDENT_SYSTEM, variables)}, *turns]
        return turns

    def _ask(self, scenario: BaseModel, level: str) -> str:
        """What an example asks, as a judge is shown it: the plain phrasing, which shows no examples there."""
        variables = self._variables(scenario, level) | {"few_shot": _no_examples}
        return spell(fill_turns(self.environment, "user.j2", variables))

    def _variables(self, scenario: BaseModel, level: str) -> dict[str, Any]:
        task = self.task
        return {"scenario": scenario, "level": level, "answer_schema": task.answer_schema, "style": task.style}

    def _draw_phrasing(self, seed: int) -> str:
        names = self.task.phrasings
        return names[derive_seed(seed, "phrasing") % len(names)]


def _no_examples(count: int) -> list[Example]:
    return []


def fill(environment: ImmutableSandboxedEnvironment, name: str, variables: dict[str, Any]) -> str:
    """One template, filled within bounds of time, memory and text. Raises TaskFault."""
    try:
        with bounds():
            text = environment.get_template(name).render(variables)
    except Stalled as error:
        raise TaskFault("render_stalled", f"{name}: {error}") from None
    except OutOfBounds as error:
        raise TaskFault("render_too_long", f"{name}: {error}") from None
    except MemoryError:
        raise TaskFault("render_too_large", f"{name}: needs more than {MAX_BYTES:,} bytes of memory") from None
    except TaskFault as error:  # of an example
        raise TaskFault(error.reason, f"{name}: {error}") from None
    except Terminated:
        raise
    except TurnError as error:
        raise TaskFault("render_failed", f"{name}: {error}") from None
    except (Exception, SystemExit) as error:  # a template can raise anything its scenario's methods raise
        raise TaskFault("render_failed", f"{name}: {name_error(error)}") from error
    if len(text) > MAX_CHARACTERS:
        raise TaskFault("render_too_large", f"{name}: {len(text):,} characters (at most {MAX_CHARACTERS:,})")
    return text.strip()


def fill_turns(environment: ImmutableSandboxedEnvironment, name: str, variables: dict[str, Any]) -> list[Message]:
    """The turns of a user template, the request last. Raises TaskFault."""
    with marking() as marked:
        text = fill(environment, name, variables)
    if sum(len(turn["content"]) for turn in marked.turns) > MAX_CHARACTERS:
        raise TaskFault("render_too_large", f"{name}: turns of more than {MAX_CHARACTERS:,} characters")
    try:
        return marked.read(text)
    except TurnError as error:
        raise TaskFault("render_failed", f"{name}: {error}") from None


def open_renderer(task: Task, sampling: Sampling, prompted_reasoning: bool = False) -> Renderer:
    """Compile a task's templates."""
    return Renderer(task, open_environment(task.templates), sampling, prompted_reasoning)


def open_environment(templates: dict[str, str]) -> ImmutableSandboxedEnvironment:
    """The sandbox over these templates and no others."""
    environment = TaskEnvironment(
        loader=DictLoader(templates),
        undefined=LoudUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[TurnTag],
    )
    del environment.filters["random"], environment.globals["lipsum"]  # they draw from no seed
    return environment


def check_templates(task: Task) -> list[str]:
    """Everything wrong with a task's templates: read as text first, then rendered once for each level and phrasing."""
    # rendering waits until the texts are sound: its errors would only repeat theirs, less clearly
    names = sorted(task.templates)
    problems = [line for name in names for line in _read_template(task, task.templates, name, VARIABLES)]
    if task.judge is not None:
        rubric = {JUDGE: task.judge} | task.judge_parts
        problems += [line for name in rubric for line in _read_template(task, rubric, name, JUDGE_VARIABLES)]
    return problems or _try_templates(task)


def _read_template(task: Task, templates: dict[str, str], name: str, variables: tuple[str, ...]) -> list[str]:
    """Problems that show without rendering: syntax, unknown variables, underscore attributes, foreign files."""
    path, environment = (task.folder.parent if "/" in name else task.folder) / name, open_environment(templates)
    try:
        with bounds():  # constants are folded here, however large
            tree = environment.parse(templates[name])
            free = meta.find_undeclared_variables(tree)
    except TemplateSyntaxError as error:
        return [f"{path}:{error.lineno}: not valid Jinja: {error.message}"]
    except RecursionError:
        return [f"{path}: not valid Jinja: nested too deeply"]
    except (OutOfBounds, MemoryError) as error:
        return [f"{path}: holds a constant that is too large or takes too long: {str(error) or 'out of memory'}"]
    unknown = sorted(free - {*variables, *environment.globals})
    has = ", ".join(variables)
    problems = [f"{path}: unknown variable {name!r} (has: {has}){nearest(name, variables)}" for name in unknown]
    for node in tree.find_all(nodes.Getattr):
        if node.attr.startswith("_"):
            problems.append(f"{path}:{node.lineno}: {node.attr!r} is out of a template's reach (no underscore names)")
    for call in tree.find_all(nodes.Filter):
        if call.name not in environment.filters:
            problems.append(
                f"{path}:{call.lineno}: no filter named {call.name!r}; see Jinja's list of built-in filters"
            )
    for line in find_tags(tree) if name in ("system.j2", STUDENT_SYSTEM, JUDGE) else ():
        problems.append(f"{path}:{line}: holds a turn; turns stand in user templates alone")
    for other in meta.find_referenced_templates(tree):
        if other not in templates:
            has = ", ".join(sorted(templates))
            problems.append(
                f"{path}: cannot include {other!r}: only files of its own folder and of prompts/_shared/ (has: {has})"
            )
    return problems


def _try_templates(task: Task) -> list[str]:
    if task.sample is None:
        return []
    renderer = open_renderer(task, Sampling())
    # by all but the level's name: levels and phrasings often have the same fault
    problems: dict[str, str] = {}
    for level in task.levels:
        row = PlannedRow(0, 0, task.name, level, 0, seed=0)
        for phrasing in task.phrasings:
            problem = _try_one(renderer, row, phrasing)
            if problem:
                problems.setdefault(problem.replace(level, ""), problem)
    return list(problems.values())


def judge_messages(
    environment: ImmutableSandboxedEnvironment,
    task: Task,
    level: str,
    turns: Sequence[Message],
    texts: dict[str, str],
    scenario: BaseModel,
) -> list[Message]:
    """The prompt of a task's judge; `texts` are the `reasoning` and the `answer`, `turns` what was asked.

    `prompt` is the user's request; where turns stand before it, the whole conversation as text.
    """
    given = {"turns": [dict(turn) for turn in turns], "prompt": spell(turns)}
    variables = {"scenario": scenario, "level": level, "style": task.style, **given, **texts}
    return [{"role": "user", "content": fill(environment, JUDGE, variables)}]


def _try_judge(task: Task, level: str, scenario: BaseModel, turns: list[Message]) -> str | None:
    if task.judge is None:
        return None
    # an empty answer is enough: what is looked for is a rubric that cannot be filled
    texts = {"reasoning": "", "answer": "" if task.form == "text" else "{}"}
    try:
        environment = open_environment({JUDGE: task.judge} | task.judge_parts)
        judge_messages(environment, task, level, turns, texts, scenario)
    except TaskFault as error:
        return f"{task.folder}/{error}"
    return None


def _try_one(renderer: Renderer, row: PlannedRow, phrasing: str) -> str | None:
    task = renderer.task
    try:
        scenario = call_sample(task, row.seed, row.level)
    except TaskFault as error:
        return f"{task.schema_path}: sample(rng, {row.level!r}) raised {error}"
    try:
        read_scenario(task, dump_scenario(task, scenario))
    except TaskFault as error:
        return f"{task.schema_path}: a Scenario of level {row.level!r} cannot be read back from its JSON: {error}"
    try:
        messages = renderer.messages(scenario, row.level, phrasing)
        student = renderer.student_messages(scenario, row.level, phrasing)
    except TaskFault as error:
        return f"{task.folder}/{error}"
    if student and not student[-1]["content"]:
        return f"{task.folder / STUDENT}: renders to nothing at level {row.level}"
    if not messages[-1]["content"]:
        return f"{task.folder / phrasing}: renders to nothing at level {row.level}"
    return _try_judge(task, row.level, scenario, [turn for turn in messages if turn["role"] != "system"])


def require_whole(tasks: list[Task]) -> None:
    """Raise one TaskError with every problem of every given task's templates."""
    lines = [line for task in tasks for line in check_templates(task)]
    if lines:
        raise TaskError("\n".join(lines))
