"""`factory test TASK`: all that can be known of a task without a teacher, for its author.

Many seeds at every level: whether each scenario renders, has a solution that its own check takes, and fits the task's
budgets; whether scenarios differ, levels differ, prompts show what a scenario holds; and whether a seed gives the same
scenario again, here and in another process with another hash seed and time zone.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from pydantic import BaseModel

from factory.hashing import content_hash, derive_seed
from factory.job.job import Job
from factory.messages import text_of
from factory.quality.golden import count_golden
from factory.quality.trial import Fault, Faults, try_check, try_seed, try_task
from factory.records import PlannedRow, Prompt
from factory.tasks.calls import (
    call_sample,
    call_solve,
    dump_scenario,
    read_scenario,
)
from factory.tasks.faults import TaskFault, blamed
from factory.tasks.pictures import picture_digest
from factory.tasks.render import Renderer, open_renderer
from factory.tasks.tasks import Task, find_tasks
from factory.teachers.tokens import Counter, open_counter
from factory.terminal import say
from factory.texts.calls import spell_answer

LEAST_DISTINCT = 0.9  # of a level's scenarios
LEAST_GOLDEN = 6
PAIRS = 12  # of scenarios whose values of one field are exchanged
ELSEWHERE = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Kolkata"}


@dataclass(slots=True)
class Level:
    """What a level's scenarios came to; lengths are in tokens."""

    prompts: list[Prompt] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    reasoning: list[int] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)

    @property
    def distinct(self) -> int:
        return len({prompt.scenario for prompt in self.prompts})


@dataclass(slots=True)
class Report:
    """What is told of a task: facts, what looks wrong, and what is."""

    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        warnings = [f"  warning: {line}" for line in self.warnings]
        return [*self.facts, *warnings, *(f"  PROBLEM: {line}" for line in self.problems)]


def examine(workspace: Path, name: str, seeds: int, model: str) -> Report:
    """Everything about one task. Raises TaskError where there is none or it cannot be loaded."""
    task = find_tasks(workspace, [name])[0]
    report = Report([f"{task.name} {task.version}: {len(task.levels)} levels, {seeds} seeds each"], [*task.warnings])
    report.problems += try_task(task)
    if report.problems:
        return report
    if task.sample is None:
        report.facts.append("  no sample(): templates and schema are whole; its scenarios come from a job's source")
        return report
    job = Job.model_validate({"out": "out", "teacher": {"model": model}, "tasks": [{"name": name, "count": 1}]})
    counter = open_counter(job)
    failures = Faults(task)
    levels = {level: _measure(task, level, seeds, counter, report, failures) for level in task.levels}
    report.problems += failures.lines()
    report.facts.append(f"  tokens counted with {counter.how} ({model})")
    _look_at_scenarios(levels, report)
    _look_at_prompts(task, levels, report)
    _look_at_check(task, levels, report)
    _look_at_golden(task, report)
    report.problems += _find_changing(task, workspace, seeds)
    return report


def _measure(task: Task, level: str, seeds: int, counter: Counter, report: Report, failures: Faults) -> Level:
    """Draw, render, solve and weigh a level's scenarios."""
    found, renderer = Level(), open_renderer(task, task.sampling)
    for number in range(seeds):
        seed = derive_seed(0, task.name, level, number)
        faults = try_seed(task, level, seed)
        try:
            prompt = renderer.render(PlannedRow(0, number, task.name, level, number, seed))
        except TaskFault as fault:
            failures.add(level, seed, [*faults, Fault(fault.reason, f"{fault.reason}: {fault}")])
            continue
        failures.add(level, seed, faults)
        found.prompts.append(prompt)
        found.prompt_tokens.append(len(counter.prompt_ids(prompt.messages, prompt.tools)))
        _weigh_solution(task, prompt, counter, found)
    report.facts.append(_describe_level(task, level, seeds, found))
    report.problems += _find_over_budget(task, level, found)
    return found


def _weigh_solution(task: Task, prompt: Prompt, counter: Counter, found: Level) -> None:
    if task.solve is None:
        return
    try:
        reasoning, solved = call_solve(task, read_scenario(task, prompt.scenario))
        think, answer = counter.completion_ids(reasoning, spell_answer(task.form, solved))
    except TaskFault:  # it is told already
        return
    found.reasoning.append(len(think))
    found.whole.append(len(think) + len(answer))


def _describe_level(task: Task, level: str, seeds: int, found: Level) -> str:
    thinking = task.sampling.thinking_tokens
    parts = [f"{found.distinct} different scenarios of {seeds}", f"prompt {_range(found.prompt_tokens)} tokens"]
    if found.whole:
        parts.append(f"reasoning {_range(found.reasoning)}" + (f" of {thinking}" if thinking is not None else ""))
        parts.append(f"with answer {_range(found.whole)} of {task.sampling.max_tokens}")
    return f"  {level}: {', '.join(parts)}"


def _range(values: list[int]) -> str:
    return f"{min(values)} to {max(values)}" if values else "none"


def _find_over_budget(task: Task, level: str, found: Level) -> Iterator[str]:
    """Solutions that a teacher could not write in the tokens it is given."""
    budgets = (
        ("reasoning", found.reasoning, "thinking_tokens", task.sampling.thinking_tokens),
        ("solution", found.whole, "max_tokens", task.sampling.max_tokens),
    )
    for what, values, key, most in budgets:
        over = [value for value in values if most is not None and value > most]
        if over:
            told = f"the reference {what} of {len(over)} of {len(values)} scenarios has up to {max(over)} tokens"
            yield f"{task.folder / 'task.toml'}: level {level!r}: {told}, sampling.{key} is {most}; raise it"


def _look_at_scenarios(levels: dict[str, Level], report: Report) -> None:
    for name, level in levels.items():
        if level.prompts and level.distinct < LEAST_DISTINCT * len(level.prompts):
            told = f"{level.distinct} different scenarios in {len(level.prompts)}"
            report.warnings.append(f"level {name!r}: {told}; a long job repeats itself")
    for one, other in combinations(levels, 2):
        same = {prompt.scenario for prompt in levels[one].prompts} & {p.scenario for p in levels[other].prompts}
        if len(same) > (1 - LEAST_DISTINCT) * levels[one].distinct:
            report.warnings.append(f"levels {one!r} and {other!r}: {len(same)} scenarios are in both")


def _look_at_prompts(task: Task, levels: dict[str, Level], report: Report) -> None:
    """Fields whose value can be exchanged for another scenario's and no prompt changes; many derive from others."""
    for name in (name for name in task.Scenario.model_fields if _is_hidden(task, name, levels)):
        told = "changes no prompt: a teacher knows it only where it follows from what is shown"
        report.facts.append(f"  note: Scenario.{name} {told}")


def _is_hidden(task: Task, name: str, levels: dict[str, Level]) -> bool:
    renderer, tried = open_renderer(task, task.sampling), 0
    for level, found in levels.items():
        for one, other in list(zip(found.prompts, found.prompts[1:], strict=False))[:PAIRS]:
            try:
                scenario, giver = (read_scenario(task, prompt.scenario) for prompt in (one, other))
                if _value(task, scenario, name) == _value(task, giver, name):
                    continue
                changed = scenario.model_copy(update={name: getattr(giver, name)})
                if _texts(renderer, scenario, level) != _texts(renderer, changed, level):
                    return False
            except TaskFault:  # a template that looks at the field and breaks does look at it
                return False
            tried += 1
    return tried > 0


def _value(task: Task, scenario: BaseModel, name: str) -> object:
    with blamed("scenario_not_json", task.schema_path):
        return scenario.model_dump(mode="json", include={name})


def _texts(renderer: Renderer, scenario: BaseModel, level: str) -> list[str]:
    composed = [renderer.compose(scenario, level, phrasing) for phrasing in renderer.task.phrasings]
    texts = [text_of(message["content"]) for messages, _ in composed for message in messages]
    return texts + [picture_digest(picture) for _, pictures in composed for picture in pictures]


def _look_at_check(task: Task, levels: dict[str, Level], report: Report) -> None:
    """Whether check turns down answers that fit the form and know nothing of the scenario."""
    taken = asked = 0
    for prompt in [prompt for level in levels.values() for prompt in level.prompts]:
        try:
            findings = try_check(task, prompt.scenario, prompt.seed)
        except TaskFault:  # it is told already
            continue
        asked += findings is not None
        taken += findings == ()
    if asked:
        report.facts.append(f"  check takes {taken} of {asked} answers that fit the form and know nothing")
    if asked and taken > asked / 2:
        report.warnings.append(f"{task.schema_path}: check takes most answers that were made up; it tells little")
    if task.solve is None:
        report.warnings.append(f"{task.schema_path}: no solve(), so nothing shows that a scenario has a right answer")


def _look_at_golden(task: Task, report: Report) -> None:
    count = count_golden(task)
    report.facts.append(f"  {count} golden lines, each ends as it says")
    if count < LEAST_GOLDEN:
        report.warnings.append(f"{task.folder / 'golden.jsonl'}: {count} lines; write {LEAST_GOLDEN} or more")


def _find_changing(task: Task, workspace: Path, seeds: int) -> Iterator[str]:
    """Scenarios and solutions that a seed does not give again."""
    first, second = digests(task, seeds), digests(task, seeds)
    command = [sys.executable, "-m", "factory.checks.author", str(workspace), task.name, str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ELSEWHERE, check=False)
    told = "another process with another PYTHONHASHSEED and time zone"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        yield f"{task.schema_path}: cannot be tried in {told}: {last}"
        return
    for where, other in (("the same process", second), (told, json.loads(done.stdout.splitlines()[-1]))):
        changed = [key for key, digest in first.items() if other.get(key) != digest]
        if changed:
            times = f"{len(changed)} of {len(first)} seeds, first {changed[0]}"
            why = "take all chance from rng; no clock, no hash(), no order of a set"
            yield f"{task.schema_path}: a seed gives another scenario or solution in {where} ({times}); {why}"
            return


def digests(task: Task, seeds: int) -> dict[str, str]:
    """A hash of each scenario and its solution, by level and seed."""
    return {f"{level} {seed}": _digest(task, level, seed) for level in task.levels for seed in range(seeds)}


def _digest(task: Task, level: str, seed: int) -> str:
    try:
        scenario = call_sample(task, seed, level)
        solution = () if task.solve is None else call_solve(task, scenario)
        return content_hash([dump_scenario(task, scenario), *solution])
    except TaskFault as fault:
        return fault.reason


def main() -> None:
    """`python -m factory.checks.author WORKSPACE TASK SEEDS`: the digests, as another process has them."""
    workspace, name, seeds = sys.argv[1:]
    say(json.dumps(digests(find_tasks(Path(workspace), [name])[0], int(seeds))))


if __name__ == "__main__":
    main()
