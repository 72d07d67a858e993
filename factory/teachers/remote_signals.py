"""What of a job's `[signals]` an endpoint can give at all: decided by the job file alone, before anybody is asked."""

from typing import Final

from factory.errors import TeacherError
from factory.job.job import Job
from factory.signals import SignalSpec

MOST_OF_STRINGS: Final = 20  # of top_logprobs, by OpenAI's and Gemini's own documents
GUESSED_VOCAB: Final = 150_000  # for a plan, where nobody has said


def resolve_remote_signals(job: Job, images: bool = False) -> SignalSpec:
    """The job's signals as an endpoint's; `images`: some of its tasks show pictures, which are a column.

    Raises TeacherError for what no endpoint gives.
    """
    asked = job.signals
    inside = [name for name in ("hidden_layers", "experts", "attention") if getattr(asked, name)]
    where = f'teacher.backend "{job.teacher.backend}"'
    if inside:
        told = ", ".join(f"signals.{name}" for name in inside)
        raise TeacherError(
            f"{told}: {where}: an endpoint shows nothing of a model's inside; leave it out, or run an open model with "
            f'backend = "vllm" (factory score does it for rows that exist)'
        )
    refused = {
        'positions = "all"': asked.positions == "all",
        'keep = "sampled"': asked.keep == "sampled",
        "min_entropy": asked.min_entropy > 0,
        'capture = "prefill"': asked.capture == "prefill",
    }
    wrong = [name for name, given in refused.items() if given and asked.top_k]
    if wrong:
        raise TeacherError(
            f"signals.{', '.join(wrong)}: {where}: needs whole distributions, and an endpoint gives the likeliest "
            f'tokens of a completion; leave it out (allowed: keep = "top_k" or "top_p", positions = "completion" or '
            f'"answer")'
        )
    if asked.top_k and job.teacher.backend == "gemini" and asked.positions != "answer":
        raise TeacherError(
            'signals.positions "completion": Gemini gives signals of the answer alone, none of its thoughts; '
            'say positions = "answer"'
        )
    if job.teacher.backend == "gemini" and asked.top_k > MOST_OF_STRINGS:
        raise TeacherError(f"signals.top_k {asked.top_k}: Gemini gives at most {MOST_OF_STRINGS}; lower it")
    if job.transcripts is not None:
        raise TeacherError(f'[transcripts]: {where}: an endpoint answers and does not score; use backend = "vllm"')
    return SignalSpec(
        asked.top_k,
        pairs=job.samples.keep == "pair",
        teachers=bool(job.teachers),
        rejected_measures=asked.top_k > 0,
        sourced=any(task.source is not None for task in job.tasks),
        compact=job.storage.logprobs == "compact",
        keep=asked.keep,
        top_p=asked.top_p or 1.0,
        positions=asked.positions,
        images=images,
        source="endpoint",
    )


def tell_remote_signals(job: Job) -> str:
    """What an endpoint's signals are, before it was asked: for a plan."""
    held = job.validation.constrain
    masked = "where answers are held to a schema its log-probabilities may be after that mask" if held else "unmasked"
    return (
        f"the endpoint's own top {job.signals.top_k}, entropy a lower bound, tail one minus the kept; {masked}; "
        f"before or after temperature is asked when the run starts; full ones: factory score with an open model"
    )
