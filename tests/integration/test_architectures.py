"""Every architecture is right within rounding, or refused in one line before the engine is asked for a row.

A few stand for all in `make test`; `make architectures` has all of them, in both dtypes, and prints the table of
docs/models.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from architectures import ARCHITECTURES, build
from conftest import write_task
from dataset_support import start_factory

from factory.teachers.vllm import ENGINE_ENVIRONMENT

ROOT = Path(__file__).parents[2]
# (branch, residual), (state, input), a cap on attention, and one that vLLM and transformers do not compute alike
REPRESENTATIVE = ("llama padded", "cohere", "gemma2", "gpt-neox")
# what vLLM 0.32 and transformers 5.19 do not agree on, or vLLM does not run on a processor without torchvision
REFUSED = {
    "gpt-neox": "its logits in vLLM are not those of transformers",
    "gemma3 multimodal": "the engine does not start",
    "phimoe": "the engine fails on a text of",
    "cohere2 past its window": "are not those of transformers",
}
# mean difference of a token's log-probability in nats, and of states relative to their norm: in 16 bits a mixture may
# route a token of a random model elsewhere
MOST = {"float32": (1e-4, 0.004), "bfloat16": (0.15, 0.3)}


def examine_all(folder: Path, dtype: str, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests"))
    environment = os.environ | ENGINE_ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    # running a class of transformers, vLLM changes it for the whole process, and a second model of it would meet that
    apart = [name for name in names if name.endswith("through transformers")]
    for group in ([name for name in names if name not in apart], *([name] for name in apart)):
        command = [sys.executable, str(Path(__file__).parent / "architectures.py"), str(folder), dtype, *group]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}


def require_right_or_refused(found: dict[str, dict[str, Any]], dtype: str) -> None:
    wrong = {}
    for name, answer in found.items():
        told = answer.get("refused")
        if told is not None:
            right = REFUSED.get(name, "nothing") in told and "\n" not in told
        else:
            # of 16 bits a small difference is within the bounds, and then it has to be within these
            most_nats, most_error = MOST[dtype]
            right = answer.get("logprob_mean", 1e9) < most_nats and answer["state_error"] < most_error
        wrong |= {} if right else {name: answer}
    assert wrong == {}


@pytest.mark.sweep
@pytest.mark.engine
def test_a_few_architectures_are_right_or_refused(tmp_path: Path) -> None:
    require_right_or_refused(examine_all(tmp_path, "float32", REPRESENTATIVE), "float32")


@pytest.mark.architectures
@pytest.mark.parametrize("dtype", MOST)
def test_every_architecture_is_right_or_refused(tmp_path: Path, dtype: str) -> None:
    found = examine_all(tmp_path, dtype, tuple(ARCHITECTURES))
    print()
    for name, answer in found.items():
        print(table_row(name, dtype, answer))
    require_right_or_refused(found, dtype)


def table_row(name: str, dtype: str, answer: dict[str, Any]) -> str:
    """A line of the table in docs/models.md."""
    if "class" not in answer:
        return f"| {name} | {dtype} | {' '.join(answer.values())} |"
    kinds = {"True": "branch, residual", "False": "state, input", "None": "?"}
    hands_on = ", ".join(kinds[kind] for kind in answer["hands_on"]) or "state"
    figures = (f"{answer[figure]:.2g}" for figure in ("logprob_mean", "logprob_max", "state_error"))
    return f"| {name} | {dtype} | {hands_on} | {' | '.join(figures)} |"


JOB = """
out = "out"
shard_rows = 4
[teacher]
model = "{model}"
dtype = "float32"
kv_cache_gb = 0.1
[sampling]
max_tokens = 120
thinking_tokens = 24
[signals]
top_k = 8
hidden_layers = [0, 1, -1]
verify_rows = {rows}
[validation]
gate = "schema"
[[tasks]]
name = "adding"
count = 4
"""


def run_job(folder: Path, name: str, rows: int) -> tuple[int, str]:
    build(folder / name, name)
    write_task(folder)
    (folder / "job.toml").write_text(JOB.format(model=folder / name, rows=rows), encoding="utf-8")
    process = start_factory("run", "job.toml", cwd=folder)
    told = process.communicate(timeout=600)[1]
    return process.returncode, told


@pytest.mark.engine
@pytest.mark.parametrize("name", ["cohere", "gemma2"])
def test_a_run_over_blocks_of_another_kind_passes_its_self_test(tmp_path: Path, name: str) -> None:
    code, told = run_job(tmp_path, name, rows=4)
    assert code == 0, told
    assert "fidelity: passed: 4 rows agree" in told


@pytest.mark.engine
def test_a_run_with_a_model_that_two_engines_compute_differently_ends_before_a_row(tmp_path: Path) -> None:
    code, told = run_job(tmp_path, "gpt-neox", rows=0)
    assert code == 2, told
    assert "its logits in vLLM are not those of transformers" in told.splitlines()[-1]
    assert not list((tmp_path / "out").glob("data/*.parquet"))
    assert not any(path.stat().st_size for path in (tmp_path / "out" / ".spool").glob("*.gen"))
