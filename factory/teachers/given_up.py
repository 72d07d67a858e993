"""Which of vLLM's own defaults a job runs without, why, and what of the job asks for it.

Only what a job keeps takes something away: a setting is given up where the kept numbers would be wrong with it, and
nowhere else. On a processor some are given up for every job.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from factory.job.job import Job
from factory.teachers.settings import CORRUPTING, kept_by

PROCESSOR: Final = "a processor"


@dataclass(frozen=True, slots=True)
class GivenUp:
    """One of vLLM's defaults that a job runs without: the setting and its value here, the reason, what asks for it.

    `sure` is false where the engine decides, when it knows the model.
    """

    setting: str
    value: Any
    reason: str
    asked_by: str
    sure: bool = True

    def __str__(self) -> str:
        return f"{self.setting} = {self.value}: {self.reason} ({self.asked_by})"


def list_given_up(job: Job, on_cpu: bool) -> list[GivenUp]:
    """All of them; what `[teacher.engine]` names the job has decided itself."""
    return [one for one in _of_machine_and_signals(job, on_cpu) if one.setting not in job.teacher.engine]


def engine_settings(job: Job, on_cpu: bool) -> dict[str, Any]:
    """The arguments of `vllm.LLM` that a job may change: without what it gives up, with what it says itself."""
    return {one.setting: one.value for one in list_given_up(job, on_cpu) if one.sure} | job.teacher.engine


def _of_machine_and_signals(job: Job, on_cpu: bool) -> Iterator[GivenUp]:
    kept = {part: keys.removeprefix("here ") for part, keys in kept_by(job).items()}
    inside, caching = CORRUPTING["enforce_eager"], CORRUPTING["enable_prefix_caching"]
    if on_cpu:
        yield GivenUp("enforce_eager", True, "compiling takes longer than most jobs", PROCESSOR)
        # vLLM sets a generator back that has no offset there
        split = "vLLM cannot split the prompt of a request that has a seed there"
        yield GivenUp("enable_chunked_prefill", False, split, PROCESSOR)
    elif "inside" in kept:
        yield GivenUp("enforce_eager", True, inside.reason, kept["inside"])
    elif job.signals.hidden_layers:
        unknown = "only where the model's code in vLLM hands out no layers, and hooks do not fire inside compiled code"
        yield GivenUp("enforce_eager", True, unknown, "signals.hidden_layers", sure=False)
    if "inputs" in kept:
        yield GivenUp("enable_prefix_caching", False, caching.reason, kept["inputs"])
    elif on_cpu and kept and job.samples.n == 1:
        # with several samples of a prompt their prefill is worth more
        yield GivenUp("enable_prefix_caching", False, "without it the same batches give the same bits", PROCESSOR)


# what stands in docs/operations.md and in the benchmarks: a kind of job, and the sections that make it one
KINDS: Final[dict[str, dict[str, Any]]] = {
    "nothing (`top_k = 0`)": {"signals": {"top_k": 0}},
    "logprobs of completions": {"signals": {"top_k": 20}},
    "the same, several samples of a prompt": {"signals": {"top_k": 20}, "samples": {"n": 4}},
    'logprobs of prompts too (`positions = "all"`)': {"signals": {"top_k": 20, "positions": "all"}},
    'logprobs by a prefill (`capture = "prefill"`)': {"signals": {"top_k": 20, "capture": "prefill"}},
    "hidden states": {"signals": {"top_k": 20, "hidden_layers": [-1]}},
    "experts": {"signals": {"top_k": 20, "experts": True}},
    "attention": {"signals": {"top_k": 20, "attention": {"layers": [1]}}},
    "signals of transcripts (`factory score`)": {"transcripts": {"path": "rows.jsonl"}},
}


def table_of_kinds() -> list[str]:
    """A Markdown table: what each kind of job runs without, on a GPU and on a processor."""
    lines = ["| a job keeps | on a GPU it runs without | on a processor it runs without |", "|---|---|---|"]
    names = {
        "enforce_eager": "compilation and graphs",
        "enable_chunked_prefill": "chunked prefill",
        "enable_prefix_caching": "a prefix cache",
    }
    for kind, sections in KINDS.items():
        tasks = {} if "transcripts" in sections else {"tasks": [{"name": "task", "count": 1}]}
        job = Job.model_validate({"out": "out"} | tasks | sections)
        cells = [
            [names[one.setting] + ("" if one.sure else ", if the model hands out no layers") for one in given_up]
            for given_up in (list_given_up(job, on_cpu=False), list_given_up(job, on_cpu=True))
        ]
        lines.append(f"| {kind} | {' | '.join('; '.join(cell) or 'nothing' for cell in cells)} |")
    return lines
