"""What a dataset keeps of its origin: the job and the tasks in the manifest, the plan in the ledger, copies of both."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from factory import __version__
from factory.dataset.codec import BOUNDS
from factory.dataset.layouts import FORMAT_VERSION
from factory.dataset.ledger import Ledger
from factory.dataset.manifest import (
    COPIES,
    DIGEST,
    MANIFEST_VERSION,
    PUBLISH,
    digest_job,
    read_manifest,
    replace_section,
    write_atomically,
)
from factory.job.endpoint import forget_manner
from factory.job.job import Job
from factory.records import Sampling
from factory.runs.goals import GOAL_KEYS, budget
from factory.runs.parts import describe_part
from factory.runs.prepare import Prepared
from factory.tasks.digests import digest_bytes
from factory.tasks.tasks import Task
from factory.tasks.transcripts import TASK

ROUNDS = "rounds"  # of manifest and ledger: what was planned since a dataset was begun, where it has more than one
# how fast and how patiently a teacher works, not what it is: these may change when a job is resumed
HOW_NOT_WHAT = (
    "engine",  # what of it decides numbers is in the teacher's details
    "max_num_seqs",
    "in_flight",
    "replicas",
    "gpu_memory_utilization",
    "kv_cache_gb",
    "max_restarts",
    "start_timeout_s",
    "hang_timeout_s",
)


def describe_plan(prepared: Prepared, manifest: dict[str, Any]) -> dict[str, Any]:
    """The first line of the ledger."""
    plan, goals = prepared.plan, prepared.plan.rounds[-1].goals
    told = {
        "digest": manifest["digest"],
        "planned": plan.planned,
        "shards": plan.shards,
        "shard_rows": plan.shard_rows,
        "counts": plan.counts(),
    }
    wanted = {
        name: {"accepted": goal["accepted"], "rows": budget(goal, prepared.sources.get(name)) * plan.samples}
        for name, goal in goals.items()
        if "accepted" in goal
    }
    told |= {"goals": wanted} if wanted else {}
    told |= {ROUNDS: plan.records()} if len(plan.rounds) > 1 or prepared.job.teachers else {}
    return describe_part(prepared, told)


def describe_job(prepared: Prepared) -> dict[str, Any]:
    """The manifest's sections that are known before the teacher starts: all that decides which rows a job makes."""
    # the digest says which rows a job makes, so where they go, how, how fast and how well checked is not in it
    job = prepared.job.model_dump(mode="json", exclude={"out", "publish", "cluster", "store"})
    for task in job["tasks"]:
        # a dataset keeps the name of the job that began it: what it grows to stands in its rounds
        goal = (prepared.begun or {}).get(task["name"], task)
        said = {key: goal[key] for key in GOAL_KEYS if goal.get(key) is not None}
        for key in GOAL_KEYS:
            del task[key]
        task.update(said)
    # what most jobs do not have is left out, so that they are called as they always were
    for part in (job, *job["tasks"]):
        for key in ("teachers", "level_teachers"):
            if not part.get(key, True):
                del part[key]
    for task in job["tasks"]:
        if task["teacher"] is None:
            del task["teacher"]
    for teacher in filter(
        None, (job["teacher"], *job.get("teachers", {}).values(), (job["judge"] or {}).get("teacher"))
    ):
        for name in HOW_NOT_WHAT:
            del teacher[name]
        del teacher["scripted"]["tokens_per_second"]
        forget_manner(teacher)
        if teacher.get("tool_parser", "") is None:  # came later: a job without one is the job that it was
            del teacher["tool_parser"]
    del job["signals"]["verify_rows"]  # how much is checked, not what is made
    if (job["transcripts"] or {}).get("turns") == "last":  # as before there was a choice
        del job["transcripts"]["turns"]
    # what a task's rows are sampled and gated with stands in `tasks`, whichever of three places it was said in
    for said in (job, *job["tasks"]):
        del said["sampling"]
    for said in (job["validation"], *job["tasks"]):
        del said["gate"]
    tasks = {task.name: _describe_task(prepared, task) for task in prepared.tasks.values()}
    sources = {name: source.digest() for name, source in prepared.sources.items()}
    sources |= {} if prepared.transcripts is None else {TASK: prepared.transcripts.digest()}
    evaluation = prepared.evaluation.digests if prepared.evaluation is not None else {}
    sections: dict[str, Any] = {"job": job, "tasks": tasks, "sources": sources, "evaluation_files": evaluation}
    meaning = {"distribution": "before temperature and grammar mask", "logarithm": "natural", "entropy": "nats, exact"}
    meaning |= _meaning_of_endpoints(prepared.job)
    meaning |= {"topk_logprobs": "float16", "hidden_states": "bfloat16", "layers": "0 embeddings, i output of block i"}
    meaning |= BOUNDS if prepared.job.storage.logprobs == "compact" else {}
    meaning |= {"logprobs": prepared.job.storage.logprobs}
    versions = {"format": FORMAT_VERSION, "manifest": MANIFEST_VERSION, "factory": __version__}
    copies = {task.name: {path.name: digest_bytes(path) for path in task.sources} for task in prepared.tasks.values()}
    return sections | {DIGEST: digest_job(sections), "meaning": meaning, "versions": versions, COPIES: copies}


def _meaning_of_endpoints(job: Job) -> dict[str, str]:
    """What the numbers of teachers behind endpoints mean; of several teachers beside those of engines here."""
    remote = [job.of_teacher(name).teacher.remote for name in job.teacher_names]
    if not any(remote):
        return {}
    tail = {"tail": "one minus the kept ids, an upper bound where that is 1e-6"}
    if all(remote):
        told = "teacher.details says" if not job.teachers else "the details of each teacher say"
        return tail | {"distribution": f"the endpoint's own, as {told}", "entropy": "nats, a lower bound"}
    own = "of an engine here before temperature and grammar mask, of an endpoint its own, as that teacher's details say"
    return {
        "distribution": own,
        "entropy": "nats; of an engine here exact, of an endpoint a lower bound",
        "tail": f"of an engine here exact, of an endpoint {tail['tail']}",
    }


def _describe_task(prepared: Prepared, task: Task) -> dict[str, Any]:
    """What of a task decides its rows: not what it says of itself, nor a rubric that no judge reads."""
    judged = task.name in prepared.judges
    return {
        "version": task.version,
        "levels": list(task.levels),
        "style": task.style.model_dump(mode="json"),
        "gate": "check" if prepared.gates[task.name].check else "schema",
        "sampling": _describe_sampling(prepared.sampling[task.name]),
        "files": {name: digest for name, digest in task.digests.items() if judged or not task.is_of_rubric(name)},
    }


def _describe_sampling(sampling: Sampling) -> dict[str, Any]:
    """All of it; without what came later and is off, so that datasets begun before it go on."""
    told = asdict(sampling)
    return told if sampling.stop_repetition else {n: v for n, v in told.items() if n != "stop_repetition"}


def keep_provenance(prepared: Prepared, ledger: Ledger) -> None:
    """Copies of the job and of the tasks' sources, as they were when the dataset was begun."""
    out = ledger.out
    if not ledger.entries:  # a job without rows may have been corrected
        shutil.rmtree(out / "templates", ignore_errors=True)
    before = read_manifest(out)[COPIES]
    kept = {name: _keep_copies(out, task, before.get(name, {})) for name, task in prepared.tasks.items()}
    if kept != before:
        replace_section(out, COPIES, kept)
    said = prepared.job.publish
    # of the latest run that says anything: a licence may be settled when the rows are there
    if said is not None:
        replace_section(out, PUBLISH, said.model_dump(mode="json", exclude_none=True, exclude_defaults=True))
    # what may change between two runs of a job must not make the copy differ from what the first rows were made with
    if ledger.entries and (out / "job.toml").exists():
        return
    save_job(prepared, out)


def save_job(prepared: Prepared, out: Path) -> None:
    """A copy of the job beside its rows."""
    job = prepared.job.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    write_atomically(out / "job.toml", tomli_w.dumps(job).encode())


def _keep_copies(out: Path, task: Task, before: dict[str, str]) -> dict[str, str]:
    """Put back what is lost of a task's copies; digests of what lies there in the end.

    A copy that is whole stays, whatever its source has become: a comment may change, and the first rows were made with
    the first. One that is lost is made of the source as it is now, which decides the same rows, or given up with it.
    """
    target = out / "templates" / task.name
    target.mkdir(parents=True, exist_ok=True)
    sources, kept = {path.name: path for path in task.sources}, {}
    for name, digest in before.items():
        copy = target / name
        if copy.is_file() and digest_bytes(copy) == digest:
            kept[name] = digest
        elif name in sources:
            write_atomically(copy, sources[name].read_bytes())
            kept[name] = digest_bytes(copy)
        else:
            copy.unlink(missing_ok=True)
    return kept
