"""What a job will take, before anything is spent: rows by task and level, bytes a token, disk at most."""

import shutil
from itertools import islice
from pathlib import Path

from factory.job import Job
from factory.plan import Plan
from factory.prepare import Prepared, describe_job, prepare
from factory.records import Prompt
from factory.teachers.demo import demo_teacher
from factory.teachers.models import ModelShape, locate_model, read_shape, require_window, resolve_signals
from factory.teachers.scripted import SHAPE

CHARACTERS_A_TOKEN = 3.0  # a cautious guess: English is near 4, JSON near 3


def estimate(job: Job, workspace: Path, out: Path) -> list[str]:
    """Readable lines about a job. Raises a FactoryError for what `run` would refuse before it starts an engine."""
    prepared = prepare(job, workspace)
    plan, digest = prepared.plan, describe_job(prepared)["digest"]
    lines = [f"job {digest}: {plan.planned:,} rows in {plan.shards:,} shards of {plan.shard_prompts * plan.samples:,}"]
    for task, levels in plan.counts().items():
        gate = "check" if prepared.gates[task].check else "schema"
        told = ", ".join(f"{level} {count:,}" for level, count in levels.items())
        most = prepared.sampling[task].max_tokens
        lines.append(f"  {task}: {told}; gate {gate}; at most {most:,} completion tokens a row")
    return [*lines, *_disk_lines(prepared, plan, out)]


def _disk_lines(prepared: Prepared, plan: Plan, out: Path) -> list[str]:
    job = prepared.job
    logprobs = 4 + (6 * job.signals.top_k + 12 if job.signals.top_k else 0)
    states = state_bytes(job)
    prompt = _prompt_tokens(prepared, plan)
    completion = sum(count * prepared.sampling[task].max_tokens for task, _, _, count in plan.blocks) / max(
        len(plan.order), 1
    )
    row = prompt * (4 + states) + completion * (logprobs + states) + 6 * CHARACTERS_A_TOKEN * (prompt + completion)
    most, free = row * plan.planned, shutil.disk_usage(_existing(out)).free
    lines = [
        f"  bytes a completion token, before compression: {logprobs} ids and logprobs (k={job.signals.top_k})"
        f" + {states} hidden states",
        f"  prompts: about {prompt:,.0f} tokens each",
        f"  disk: at most {format_bytes(most)}, if every answer ran to max_tokens and compressed to nothing less; "
        f"free: {format_bytes(free)}",
    ]
    if most > free:
        lines.append("  warning: the disk may not hold it; fewer hidden layers or a smaller top_k save the most")
    return lines


def state_bytes(job: Job) -> int:
    """Bytes of hidden states a token. Raises TeacherError where the model's shape cannot be had."""
    shape = _shape(job)
    require_window(job, shape)
    return 2 * shape.hidden_size * len(resolve_signals(job, shape).layers)


def _shape(job: Job) -> ModelShape:
    if job.teacher.backend == "scripted":
        return SHAPE
    if job.teacher.model == "demo":
        return read_shape(demo_teacher(), None)
    return read_shape(locate_model(job.teacher), job.teacher.revision)


def _prompt_tokens(prepared: Prepared, plan: Plan) -> float:
    prompts = [prepared.render(row) for row in islice(plan.rows(0), 64)]
    lengths = [sum(len(m["content"]) for m in p.messages) for p in prompts if isinstance(p, Prompt)]
    a_token = 1.0 if prepared.job.teacher.backend == "scripted" else CHARACTERS_A_TOKEN
    return sum(lengths) / max(len(lengths), 1) / a_token


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.resolve().parent)


def format_bytes(size: float) -> str:
    """A size for people: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
