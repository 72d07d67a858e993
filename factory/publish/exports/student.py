"""The named student: its tokenizer must understand a format's ids, or its chat template a format's messages."""

from typing import Any, Final

from jinja2 import TemplateError

from factory.errors import JobError, one_line
from factory.publish.exports.asked import Asked
from factory.publish.exports.chat import inside
from factory.publish.exports.format import Format
from factory.publish.exports.source import Source
from factory.publish.vocabulary import Vocabulary, student_vocabulary, teacher_vocabulary

SENTINEL: Final = "Sentinelthought"


def require_student(source: Source, asked: Asked, form: Format) -> None:
    """Raise JobError where the student that is named would take ids or messages for something else."""
    if asked.student is None or not form.checks_student:
        return
    student = student_vocabulary(asked.student)
    if form.holds_ids(asked):
        _require_ids(source, asked, student)
        return
    apart = not inside(source, asked, "content" if form.name == "messages" else "apart")
    if source.signals.images:
        _require_pictures(asked, student)
    if apart:
        _require_reasoning(source, asked, student)
    if source.signals.tools:
        _require_tools(asked, student, calls=apart and form.name != "kto")


def _require_ids(source: Source, asked: Asked, student: Vocabulary) -> None:
    teacher = teacher_vocabulary(source.manifest)
    if teacher is None:
        told = "the teacher's tokenizer is not on this machine, so the two cannot be compared"
        raise JobError(f"--student {asked.student}: {told}; download it, or leave --student out")
    # what a student has beyond the teacher's ids is never asked of it
    for number, piece in enumerate(teacher.pieces):
        its = student.pieces[number] if number < len(student.pieces) else None
        if its != piece and (piece or its):
            meant = repr(its.decode("utf-8", "replace")) if its is not None else "nothing"
            raise JobError(
                f"--student {asked.student}: id {number} is {teacher.text(number)!r} to the teacher and {meant} to it: "
                f"another tokenizer; `factory align {source.root} --student {asked.student}` maps ids, or export text"
            )


def _require_reasoning(source: Source, asked: Asked, student: Vocabulary) -> None:
    """The template must show a reasoning that stands beside the content; many drop it without a word."""
    if source.markers is None or student.tokenizer is None:
        return
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": SENTINEL}]
    if SENTINEL not in _render(asked, student, turns):
        raise JobError(
            f"--student {asked.student}: its chat template drops reasoning_content, so no reasoning would be trained; "
            "give --reasoning content"
        )


def _require_pictures(asked: Asked, student: Vocabulary) -> None:
    """The template must show a picture's place, and the text beside it."""
    if student.tokenizer is None:
        return
    said = [{"type": "image", "text": None}, {"type": "text", "text": SENTINEL}]
    shown, blind = (_render(asked, student, [{"role": "user", "content": parts}]) for parts in (said, said[1:]))
    # a template of texts alone may print the parts as they are, or nothing
    if shown == blind or SENTINEL not in shown or "'type'" in shown:
        raise JobError(
            f"--student {asked.student}: its chat template shows no pictures, so it would learn to speak of what it "
            "never saw; name a model that sees, or leave --student out where the trainer brings a template of its own"
        )


def _require_tools(asked: Asked, student: Vocabulary, calls: bool) -> None:
    """The template must show what may be called, and the calls where they stand beside the content."""
    if student.tokenizer is None:
        return
    about = {"name": f"{SENTINEL}_tool", "description": "b", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "function": {"name": f"{SENTINEL}_call", "arguments": {}}}
    said: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    turns: list[dict[str, Any]] = [{"role": "user", "content": "a"}, said]
    text = _render(asked, student, turns, tools=[{"type": "function", "function": about}])
    if f"{SENTINEL}_tool" not in text:
        raise JobError(
            f"--student {asked.student}: its chat template shows no tools, so it would learn to call what it never "
            "saw; take a template that renders `tools`"
        )
    if calls and f"{SENTINEL}_call" not in text:
        raise JobError(
            f"--student {asked.student}: its chat template drops tool_calls, so no call would be trained; "
            "give --reasoning content, which puts calls into the content too"
        )


def _render(asked: Asked, student: Vocabulary, turns: list[dict[str, Any]], **given: Any) -> str:
    assert student.tokenizer is not None
    try:
        return str(student.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False, **given))
    except TemplateError as error:
        raise JobError(f"--student {asked.student}: its chat template fails: {one_line(error, 200)}") from error
