"""Whether a row can be had at all: decided on token ids, before the teacher is asked anything."""

from factory.quality.parse import OVER_BUDGET

MIN_ANSWER_TOKENS = 16  # a prompt that leaves less room than this in the model's window is too long
ANSWER_SHARE = 4  # one in so many tokens of a completion is the answer's where nobody says how long to reason
Refusal = tuple[str, str]  # reason and detail


def refuse_prompt(tokens: int, window: int, student: int | None) -> Refusal | None:
    """Why a prompt of so many tokens leads to no row; `student` is the most that a student may be shown, if any."""
    if window - tokens < MIN_ANSWER_TOKENS:
        return "prompt_too_long", f"{tokens} tokens in a window of {window}; raise teacher.max_model_len or shorten it"
    return refuse_for_student(tokens, 0, student)


def refuse_transcript(prompt: int, completion: int, window: int, student: int | None) -> Refusal | None:
    """Why a transcript with so many tokens cannot be scored."""
    if not prompt or not completion:
        return "empty_transcript", f"{prompt} prompt and {completion} completion ids"
    if prompt + completion > window:
        detail = f"{prompt + completion} tokens in a window of {window}; raise teacher.max_model_len"
        return "transcript_too_long", detail
    return refuse_for_student(prompt, completion, student)


def refuse_for_student(prompt: int, completion: int, student: int | None) -> Refusal | None:
    """Why a row is too long for the student whatever the teacher writes: an answer has one token at least."""
    tokens = prompt + completion
    if student is None or tokens + (completion == 0) <= student:
        return None
    of = "" if completion else " before any answer"
    return OVER_BUDGET, f"{OVER_BUDGET}: {tokens} tokens{of}, student.max_tokens is {student}"


def reasoning_budget(thinking: int | None, total: int, closing: int) -> int:
    """The most tokens of a reasoning, so that its end of `closing` tokens and an answer fit in a completion of `total`.

    `thinking` is the job's own budget; without one a quarter of the completion is left for the answer.
    """
    left = MIN_ANSWER_TOKENS if thinking is not None else max(MIN_ANSWER_TOKENS, total // ANSWER_SHARE)
    most = max(0, total - closing - left)
    return most if thinking is None else min(thinking, most)
