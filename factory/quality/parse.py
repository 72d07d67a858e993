"""Parsing: what the teacher wrote becomes the text of an answer, or the reason why it cannot.

Pure text and id work on a finished generation; whether the JSON is the right shape is for `validate` to say.
"""

import json
from collections import Counter
from typing import Any, Literal

from factory.messages import KNOWN_MARKERS, ToolCall
from factory.records import Generation, Prompt, Rejection, Stage
from factory.texts.calls import compose_reply

UNFIT_PROMPTS = ("prompt_too_long", "transcript_too_long", "empty_transcript", "bad_token_id")
OVER_BUDGET = "over_budget"  # of the student: decided before the teacher is asked where the prompt alone is too long
REASONING_MARKERS = tuple(marker for pair in KNOWN_MARKERS for marker in pair)
TASK_FAULTS = ("solve_raised", "answer_not_json", "scenario_not_json")  # the scripted teacher asks the task's own code


class ParseError(Exception):
    """No answer can be read; `reason` is what the rejected row will say."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def count_tokens(generation: Generation) -> tuple[int, int]:
    """Prompt and completion tokens: by the ids, by the endpoint's own count where it gives none."""
    prompt, completion, usage = len(generation.prompt_token_ids), len(generation.completion_token_ids), generation.usage
    if usage is None:
        return prompt, completion
    return prompt or usage.prompt, usage.completion if generation.without_ids else completion


def parse(prompt: Prompt, generation: Generation) -> str | Rejection:
    """The answer of a generation as it was written, or the rejection that says why there is none.

    Where the task's answer is JSON, that is the text of one object; where it has tools, JSON of its text and its calls;
    else all that follows the reasoning.

    Stage `prompt` where the prompt was too long to be asked, `filter` where it is too long for the student, `teacher`
    where the engine gave no whole completion (its own failure, `empty`, `truncated`, `repetition`), `parse` where the
    text is no answer (`reasoning_not_closed`, `no_answer`, `marker_in_answer`; of JSON `invalid_json`,
    `duplicate_keys`, `not_an_object`; of calls `malformed_call`).
    """
    tokens = len(generation.completion_token_ids)
    texts = bool(generation.without_ids and generation.text)  # an endpoint's, which gave no ids
    if generation.failure:
        return _reject_failed(prompt, generation, generation.failure)
    if not tokens and not texts:
        return Rejection(prompt, generation, "teacher", "empty", ("the completion has no tokens",))
    if prompt.transcript is not None:  # it is scored as it stands
        return generation.answer_text
    if generation.finish_reason == "repetition":
        finding = f"stopped after {tokens} tokens: it repeated itself as sampling.stop_repetition says"
        return Rejection(prompt, generation, "teacher", "repetition", (finding,))
    if generation.finish_reason == "length":
        told = f"cut off after {count_tokens(generation)[1]} tokens"
        finding = f"{told}; raise sampling.max_tokens or lower sampling.thinking_tokens"
        return Rejection(prompt, generation, "teacher", "truncated", (finding,))
    begun = generation.answer_start < tokens or (texts and bool(generation.answer_text))
    if generation.reasoning is not None and not begun:
        return Rejection(prompt, generation, "parse", "reasoning_not_closed", ("the reasoning never ends",))
    try:
        if prompt.form == "calls":
            return read_reply(generation)
        return read_text(generation.answer_text) if prompt.form == "text" else parse_answer(generation.answer_text)
    except ParseError as error:
        return Rejection(prompt, generation, "parse", error.reason, (str(error),))


def _reject_failed(prompt: Prompt, generation: Generation, failure: str) -> Rejection:
    stage: Stage = "prompt" if failure in UNFIT_PROMPTS else "filter" if failure == OVER_BUDGET else "teacher"
    kind: Literal["rejected", "error"] = "error" if failure in TASK_FAULTS else "rejected"
    return Rejection(prompt, generation, stage, failure, (generation.failure_detail,), kind)


def read_text(text: str) -> str:
    """A free text without the white space around it. Raises ParseError."""
    body = text.strip()
    if not body:
        raise ParseError("no_answer", "nothing follows the reasoning")
    # no grammar forbids a second reasoning, and no check expects one: a student would learn to show it
    said = next((marker for marker in REASONING_MARKERS if marker in body), None)
    if said is not None:
        raise ParseError("marker_in_answer", f"the answer holds the reasoning marker {said}")
    return body


def read_reply(generation: Generation) -> str:
    """The JSON of what an answer with tools says and calls. Raises ParseError."""
    content = read_text(generation.content) if generation.content.strip() or not generation.calls else ""
    return compose_reply(content, [(call.name, _read_arguments(call)) for call in generation.calls])


def _read_arguments(call: ToolCall) -> Any:
    if not call.name:
        raise ParseError("malformed_call", f"cannot be read as a call: {call.arguments[:200]}")
    try:
        return json.loads(parse_answer(call.arguments))
    except ParseError as error:
        raise ParseError("malformed_call", f"the arguments of {call.name[:80]}: {error}") from None


def parse_answer(text: str) -> str:
    """The one JSON object in a text: bare, or inside a single Markdown code fence. Raises ParseError."""
    body = _strip_fence(text.strip())
    if not body:
        raise ParseError("no_answer", "nothing follows the reasoning")
    try:
        # Python reads NaN and lets the last of two equal keys win; readers of the dataset would not
        value = json.loads(body, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError:
        raise ParseError("invalid_json", "nested too deeply") from None
    except ValueError as error:
        raise ParseError("invalid_json", str(error)) from None
    if not isinstance(value, dict):
        raise ParseError("not_an_object", f"got a JSON {type(value).__name__}, need an object")
    return body


def _strip_fence(text: str) -> str:
    if not (text.startswith("```") and text.endswith("```") and len(text) > 6):
        return text
    return text[3:-3].removeprefix("json").strip()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ParseError("duplicate_keys", f"key {twice[:200]!r} stands more than once")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
