"""Two engines side by side over one: the same prompts through the factory's own supervisor, in turn."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_figures import Figure, Run, between, ratios_of_speed, tell
from bench_models import WINDOW, Model, short_prompts
from bench_race import Scale

from factory.job.job import Job
from factory.records import Prompt
from factory.teachers.vllm import VllmTeacher, start_teacher

WHAT = "tokens/s of two engines, half of the cores each, over one with all of them, k = 20"


@contextmanager
def opened(model: Model, folder: Path, scale: Scale, replicas: int) -> Iterator[VllmTeacher]:
    """The teacher as a job starts it, with so many replicas."""
    teacher: dict[str, Any] = {"model": model.folder, "max_model_len": WINDOW, "max_num_seqs": scale.max_num_seqs}
    teacher |= {"kv_cache_gb": 0.5, "reasoning": "off", "replicas": replicas}
    job: dict[str, Any] = {"out": "out", "teacher": teacher, "validation": {"constrain": False}}
    job |= {"signals": {"top_k": 20, "verify_rows": 0}, "tasks": [{"name": "none", "count": 1}]}
    folder.mkdir(parents=True)
    with start_teacher(Job.model_validate(job), {}, probes(), folder, lambda *_, **__: None) as started:
        yield started


def probes() -> list[Prompt]:
    return short_prompts(1, 8)


def answer_all(teacher: VllmTeacher, prompts: list[Prompt]) -> Run:
    """Feed a teacher as a run does, until all is answered; and let go of the answers."""
    left, answers, tokens = list(prompts), 0, 0
    begin = time.perf_counter()
    while answers < len(prompts):
        while left and teacher.room():
            teacher.submit(left.pop())
        for generation in teacher.collect():
            answers += 1
            tokens += len(generation.completion_token_ids)
    seconds = time.perf_counter() - begin
    for prompt in prompts:
        teacher.release(prompt.id, prompt.attempt)
    return Run(seconds, tokens)


def replica_figures(model: Model, folder: Path, scale: Scale) -> list[Figure]:
    """One figure: of two engines over the mean of one before and after. None where there is no core for each."""
    prompts = short_prompts(scale.requests, scale.longest)
    pairs = []
    # both live at once, and one rests while the other works
    with opened(model, folder / "one", scale, 1) as one, opened(model, folder / "two", scale, 2) as two:
        for teacher in (one, two):
            answer_all(teacher, named(prompts[: scale.max_num_seqs], "warm"))
        before = answer_all(one, named(prompts, "first"))
        for number in range(scale.rounds):
            run = answer_all(two, named(prompts, f"two{number}"))
            after = answer_all(one, named(prompts, f"one{number}"))
            pairs.append((mean(before, after), run))
            ratio = run.speed / pairs[-1][0].speed
            print(
                f"{model.name}, two engines: {run.speed:.0f} tokens/s, ratio {ratio:.3f}", file=sys.stderr, flush=True
            )
            before = after
    speed = sorted(run.speed for _, run in pairs)
    return [Figure(model.name, WHAT, ratios_of_speed(pairs), remark=f"{tell(speed[len(speed) // 2])} tokens/s")]


def named(prompts: list[Prompt], name: str) -> list[Prompt]:
    """The same prompts under other ids: a teacher answers each id once."""
    return [replace(prompt, id=f"{name}-{prompt.id}") for prompt in prompts]


def mean(before: Run, after: Run) -> Run:
    """Two runs of the base as one; sampled lengths may differ a little, so speeds are what is averaged."""
    if before.tokens == after.tokens:
        return between(before, after)
    return Run(1.0, round((before.speed + after.speed) / 2))
