"""Samples: what the first prompts of a job say of all of them, without a teacher: tokens, pictures, candidates."""

from itertools import islice
from typing import Final

from factory.messages import text_of
from factory.records import Prompt
from factory.runs.prepare import Prepared
from factory.teachers.data_urls import most_image_tokens

CHARACTERS_A_TOKEN: Final = 3.0  # a cautious guess: English is near 4, JSON near 3


def prompt_tokens(prepared: Prepared) -> float:
    """Tokens of a row's prompt, in the mean, by its characters."""
    prompts = _some_prompts(prepared)
    lengths = [sum(len(text_of(m["content"])) for m in prompt.messages) for prompt in prompts]
    scripted = prepared.job.teacher.backend == "scripted"
    pictures = 0 if scripted else sum(most_image_tokens(png) for prompt in prompts for png in prompt.images)
    return (sum(lengths) / (1.0 if scripted else CHARACTERS_A_TOKEN) + pictures) / max(len(lengths), 1)


def image_bytes(prepared: Prepared) -> float:
    """Bytes of a row's pictures, in the mean."""
    prompts = _some_prompts(prepared)
    return sum(len(png) for prompt in prompts for png in prompt.images) / max(len(prompts), 1)


def candidate_bytes(prepared: Prepared) -> float:
    """Bytes of the ids that a row's data names, their logprobs and counts, in the mean."""
    known = [prompt.transcript for prompt in _some_prompts(prepared) if prompt.transcript is not None]
    return sum(6 * len(one.candidate_ids) + 2 * len(one.candidate_counts) for one in known) / max(len(known), 1)


def _some_prompts(prepared: Prepared) -> list[Prompt]:
    prompts = map(prepared.render, islice(prepared.plan.rows(0), 64))
    return [prompt for prompt in prompts if isinstance(prompt, Prompt)]
