"""The desk: what has been asked and is not decided yet, between the teachers on one side and the shards on the other.

One generation comes in, one outcome goes out, or none yet: where a judge is to read it, or the row is asked again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from factory.dataset.manifest import section
from factory.errors import TeacherError
from factory.job.gates import StudentConfig
from factory.job.job import Job
from factory.job.signals import SignalsConfig
from factory.quality.filters import RowFilters, apply
from factory.quality.judge import VERDICT_SCHEMA, judge_id, judge_name
from factory.quality.parse import count_tokens, parse
from factory.quality.retry import ask_again
from factory.quality.validate import Gate, validate
from factory.records import Generation, Outcome, Prompt, Record, Rejection
from factory.runs.prepare import Prepared
from factory.runs.probes import judge_probes, teacher_probes
from factory.runs.progress import Reporter
from factory.signals import Array, SignalSpec
from factory.teachers import Teacher, open_teacher, require_served, require_way
from factory.teachers.fit import refuse_for_student
from factory.teachers.student import Encode, open_student_encoder

JUDGE_FOLDER = ".judge"  # spool and log of a judge that is not the teacher


@dataclass(slots=True)
class Desk:
    """What has been asked and is not decided yet: prompts at the teacher, accepted answers at the judge."""

    prepared: Prepared
    teacher: Teacher
    judge: Teacher
    # the name of this teacher, where there are several
    turn: str = ""
    # what is kept of a row, and the ids of what the student is shown, where a task has a prompt of its own for it
    signals: SignalSpec = field(default_factory=SignalSpec)
    encode: Encode | None = None
    asked: dict[str, Prompt] = field(default_factory=dict)
    judged: dict[str, tuple[Record, Prompt]] = field(default_factory=dict)
    again: deque[Prompt] = field(default_factory=deque)
    # what teacher and judge say of themselves, for the manifest
    described: dict[str, Any] = field(default_factory=dict)

    def waiting(self) -> int:
        """How many prompts are asked and not decided."""
        return len(self.asked) + len(self.judged)

    def ask(self, prompt: Prompt) -> None:
        self.asked[prompt.id] = prompt
        self.teacher.submit(prompt)

    def collect(self) -> list[Generation]:
        """Wait for the next finished generations; a judge of its own is waited for when it has no room left."""
        # a full judge goes first, else the teacher would fill memory with answers that wait for a verdict
        if self.judge is not self.teacher and not self.judge.room():
            return self.judge.collect()
        return self.teacher.collect() or self.judge.collect()

    def conclude(self, generation: Generation) -> Outcome | None:
        """What becomes of one generation; None where it went to the judge or is asked for again."""
        # one teacher may be its own judge: whose generation this is, the id alone says
        if generation.prompt_id in self.judged:
            record, prompt = self.judged.pop(generation.prompt_id)
            return self._settle(self.prepared.judges[record.prompt.task].conclude(record, prompt, generation))
        prompt = self.asked.pop(generation.prompt_id)
        filters, gate = self.prepared.filters[prompt.task], self.prepared.gates[prompt.task]
        shown = self.show_student(prompt)
        if isinstance(shown, Rejection):
            return shown
        generation = replace(generation, student_prompt_token_ids=shown)
        outcome = decide(gate, prompt, generation, filters, self.prepared.job.student)
        judge = self.prepared.judges.get(prompt.task)
        if judge is None or isinstance(outcome, Rejection):
            return self._settle(outcome)
        # nobody judges what a check or a filter has turned down: it would cost a prompt and change nothing
        question = judge.ask(outcome)
        if isinstance(question, Rejection):
            return question
        self.judged[question.id] = (outcome, question)
        self.judge.submit(question)
        return None

    def show_student(self, prompt: Prompt) -> Array | Rejection | None:
        """The ids of the student's prompt, None where it is the teacher's; or why it leads to no row."""
        if not prompt.student_messages:
            return None
        assert self.encode is not None
        try:
            ids = np.array(self.encode(prompt.student_messages, prompt.tools), np.int32)
        except TeacherError as error:  # a template that refuses these turns
            return Rejection(prompt, None, "prompt", "student_prompt_refused", (str(error),))
        student = self.prepared.job.student
        refusal = None if student is None else refuse_for_student(len(ids), 0, student.max_tokens)
        return ids if refusal is None else Rejection(prompt, None, "filter", refusal[0], (refusal[1],))

    def _settle(self, outcome: Outcome) -> Outcome | None:
        prompt = ask_again(self.prepared.job, outcome) if isinstance(outcome, Rejection) else None
        if prompt is None:
            return outcome
        self.again.append(prompt)
        return None

    def answer(self, prompt: Prompt) -> Outcome:
        """The outcome of one prompt by itself, however often it is asked; nothing else may be waiting."""
        self.again.append(prompt)
        while True:
            if self.again:
                self.ask(self.again.popleft())
            for outcome in map(self.conclude, self.collect()):
                if outcome is not None:
                    return outcome

    def release(self, prompt: Prompt) -> None:
        """A row is committed: nobody needs to keep its generations."""
        self.teacher.release(prompt.id, prompt.attempt)
        if prompt.task in self.prepared.judges:
            for attempt in range(prompt.attempt + 1):
                self.judge.release(judge_id(prompt.id, attempt), 0)


def open_desk(prepared: Prepared, out: Path, stack: ExitStack, reporter: Reporter, turn: str = "") -> Desk:
    """The desk with teacher and judge ready behind it, which work in `out`.

    `turn` names the one of several teachers that is asked.
    """
    require_ways(prepared.job)
    verdicts = {judge_name(task): VERDICT_SCHEMA for task in prepared.judges}
    tasks, own = prepared.tasks.values(), prepared.of_teacher(turn) if turn else prepared
    encode = open_student_encoder(own.job.teacher) if own.has_student else None
    if encode is not None:
        # what the teacher is given may be longer than the student can take: that is what it is for
        own = replace(own, job=own.job.model_copy(update={"student": None}))
    probes = teacher_probes(own)
    teacher = stack.enter_context(open_teacher(own.job, tasks, probes, out, verdicts, reporter.tell))
    signals = replace(teacher.signals, students=encode is not None)
    judge = _open_judge(own, stack, out, verdicts, reporter)
    described = {section("teacher", turn): asdict(teacher.info), section("signals", turn): signals.as_manifest()}
    if prepared.judges:
        # one that judges beside its own rows is set up for these: it is described by itself
        name = "judge" if judge is not None else section("judge", turn)
        described[name] = asdict((judge or teacher).info)
    # only the teacher knows which layers `-1` is and how many ids there are; the gates hold rows against that
    gated = replace(prepared, gates=gates_for(teacher, prepared.gates))
    return Desk(gated, teacher, judge or teacher, turn, signals, encode, described=described)


def require_ways(job: Job, require: Callable[[Job], None] = require_way) -> None:
    """Raise TeacherError where a teacher of the job or its judge has no address, or no key; or what else is required.

    Before the first of them is asked: the others' turns may come hours later.
    """
    ways = {f"teachers.{name}: " if name else "": job.of_teacher(name) for name in job.teacher_names}
    if job.judge is not None and job.judge.teacher is not None:
        ways["judge."] = job.model_copy(update={"teacher": job.judge.teacher})
    _require_of(ways, require)


def require_later_served(job: Job, names: Iterable[str], out: Path) -> None:
    """Raise TeacherError where one of these teachers, whose turns come later, is an endpoint that lacks its model.

    The rows of the teachers before it may take hours, and cost.
    """
    _require_of({f"teachers.{name}: ": job.of_teacher(name) for name in names}, partial(require_served, out=out))


def _require_of(jobs: Mapping[str, Job], require: Callable[[Job], None]) -> None:
    """Require it of each teacher's job; what is told begins with whose it is."""
    for whose, own in jobs.items():
        try:
            require(own)
        except TeacherError as error:
            raise TeacherError(f"{whose}{error}") from None


def _open_judge(
    prepared: Prepared, stack: ExitStack, out: Path, verdicts: dict[str, Any], reporter: Reporter
) -> Teacher | None:
    """The judge's own teacher, where the job names one that does not answer now; it keeps no signals."""
    job = prepared.job
    if job.judge is None or job.judge.teacher is None or (prepared.turn and job.judge.teacher == job.teacher):
        return None
    folder = out / JUDGE_FOLDER
    folder.mkdir(exist_ok=True)
    own = job.model_copy(update={"teacher": job.judge.teacher, "signals": SignalsConfig(top_k=0)})
    try:
        return stack.enter_context(open_teacher(own, [], judge_probes(prepared), folder, verdicts, reporter.tell))
    except TeacherError as error:  # its keys are those of `judge.teacher`
        raise TeacherError(f"judge.{error}") from None


def gates_for(teacher: Teacher, gates: dict[str, Gate]) -> dict[str, Gate]:
    """The gates with what this teacher promises to keep of each row, and how many ids it knows."""
    vocab = teacher.info.details.get("vocab_size")
    return {name: replace(gate, signals=teacher.signals, vocab=vocab) for name, gate in gates.items()}


def decide(
    gate: Gate,
    prompt: Prompt,
    generation: Generation,
    filters: RowFilters = (),
    student: StudentConfig | None = None,
) -> Outcome:
    """What becomes of one generation, by itself."""
    answer = parse(prompt, generation)
    if isinstance(answer, Rejection):
        return answer
    outcome = validate(gate, prompt, generation, answer)
    if isinstance(outcome, Record) and student is not None:
        outcome = fit_student(student, outcome)
    return apply(filters, outcome) if isinstance(outcome, Record) else outcome


def fit_student(student: StudentConfig, record: Record) -> Outcome:
    """The record, or its rejection where it has more tokens than the student may be shown."""
    generation = record.generation
    shown = generation.student_prompt_token_ids
    prompt, completion = count_tokens(generation)
    refusal = refuse_for_student(prompt if shown is None else len(shown), completion, student.max_tokens)
    return record if refusal is None else record.reject("filter", refusal[0], (refusal[1],))
