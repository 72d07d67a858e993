"""The student's prompt as ids, by the teacher's own tokenizer and chat template: the completion's ids follow it."""

from collections.abc import Callable, Sequence

from factory.errors import TeacherError
from factory.job.teacher import TeacherConfig
from factory.records import Message
from factory.teachers import scripted
from factory.teachers.tokens import require_exact

Encode = Callable[[Sequence[Message], str], list[int]]  # of messages, and of the tools that go with them


def open_student_encoder(teacher: TeacherConfig) -> Encode:
    """How this teacher would be given messages, as ids. Raises TeacherError where its tokenizer is not at hand."""
    if teacher.backend == "scripted":
        return lambda messages, _: scripted.encode("\n".join(message["content"] for message in messages))
    try:
        return require_exact(teacher).prompt_ids
    except TeacherError as error:
        raise TeacherError(f"{error}: a task has a student.j2, whose ids are made with it") from None
