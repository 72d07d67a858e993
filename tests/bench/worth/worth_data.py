"""The teacher, the tasks and the datasets of `make worth`: all made by `factory`, from the job files beside this one.

soften_teacher -> copy_tasks -> factory run data.toml -> factory score draws.toml -> factory curriculum stages.toml
"""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from safetensors.torch import load_file, save_file
from worth_settings import HERE, ROOT

from factory.errors import JobError
from factory.job.config import read_toml
from factory.load import load_rows
from factory.tasks.tasks import builtin_root

TASKS = ("photo_edits", "scheduling", "summarization")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def soften_teacher(source: Path, folder: Path, temperature: float) -> None:
    """The teacher with its logits divided by `temperature`, as a model of its own.

    So its own distribution, which is what the factory keeps, is the unsure one, and text drawn at temperature 1 is of
    it. The final norm is the last thing before the head: divided by the temperature there, logits are too.
    """
    if (folder / "model.safetensors").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] / temperature
    save_file(weights, folder / "model.tmp", metadata={"format": "pt"})
    (folder / "model.tmp").replace(folder / "model.safetensors")


def copy_tasks(workspace: Path) -> None:
    """The tasks without their system turn, which is the same in every row: 150 tokens a prompt where it were 560."""
    if (workspace / "prompts").is_dir():
        return
    shutil.rmtree(workspace, ignore_errors=True)
    partial = workspace.with_name(workspace.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(builtin_root() / "schemas", partial / "schemas", ignore=shutil.ignore_patterns("__pycache__"))
    for task in TASKS:
        shutil.copytree(builtin_root() / "prompts" / task, partial / "prompts" / task)
        (partial / "prompts" / task / "system.j2").unlink(missing_ok=True)
    partial.rename(workspace)


def scaled_job(name: str, work: Path, share: float = 1.0) -> dict[str, Any]:
    """A job file of this folder with `share` of its counts and all paths inside `work`."""
    job = read_toml(HERE / f"{name}.toml", "it is part of the repository")
    full = "build/worth/full"
    job["out"] = job["out"].replace(full, str(work))
    job["teacher"]["model"] = job["teacher"]["model"].replace(full, str(work))
    if "transcripts" in job:
        job["transcripts"]["path"] = job["transcripts"]["path"].replace(full, str(work))
    for task in job.get("tasks", ()):
        task |= {key: math.ceil(task[key] * share) for key in ("count", "accepted", "at_most") if key in task}
    return job


def factory(*arguments: object) -> None:
    """The program itself, as a user starts it. Raises JobError with its last word where it fails."""
    command = [sys.executable, "-m", "factory.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise JobError(f"factory {' '.join(map(str, arguments))}: ended with {done.returncode}: {last}")


def run_job(verb: str, job: dict[str, Any], work: Path) -> Path:
    """Run a job to its end, or go on with it; the folder of its dataset."""
    out = Path(job["out"])
    path = work / "jobs" / f"{out.name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(job), encoding="utf-8")
    factory("--workspace", work / "workspace", verb, path, "--allow-outside")
    return out


def make_datasets(work: Path, source: Path, temperature: float, share: float) -> None:
    """Everything that students learn from and are measured on; what is there is gone on with."""
    soften_teacher(source, work / "teacher", temperature)
    copy_tasks(work / "workspace")
    data = run_job("run", scaled_job("data", work, share), work)
    run_job("run", scaled_job("held_out", work), work)
    transcripts = work / "transcripts.jsonl"
    if not transcripts.is_file():
        write_transcripts(load_rows(data), transcripts)
    run_job("score", scaled_job("draws", work), work)
    if not (data / "curriculum" / "curriculum.json").is_file():
        factory("curriculum", data, HERE / "stages.toml")


def write_transcripts(rows: Any, path: Path) -> None:
    """The rows' exact ids, for `factory score`."""
    names = "prompt_token_ids", "completion_token_ids"
    write_lines(({"id": row["id"], **{name: row[name].tolist() for name in names}} for row in rows), path)


def write_lines(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """JSON lines, all of them or no file."""
    partial = path.with_suffix(".tmp")
    with partial.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
    partial.replace(path)


def without_taught(held_out: Sequence[Any], taught: Any) -> list[Any]:
    """The held-out rows whose scenario is none of those that students learn from."""
    seen = set(taught["scenario"])
    return [row for row in held_out if row["scenario"] not in seen]


def draw_ids(ids: Sequence[str], count: int, seed: int) -> list[str] | None:
    """`count` of these rows in an order that the seed decides alone: fewer are the first of more. None if too few."""
    order = np.random.default_rng([seed, 1]).permutation(len(ids))[:count]
    return [ids[place] for place in order] if len(order) == count else None
