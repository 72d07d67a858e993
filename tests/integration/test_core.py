"""The core install, `pip install .`: commands that need no engine work without torch, the others say what to install.

The package is built as a user's is and installed from the index into an environment of its own, which this one lends
nothing: no PYTHONPATH, another folder.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.core
ROOT = Path(__file__).parents[2]
JOB = """
out = "out/{out}"
shard_rows = 8
[teacher]
model = "demo"
backend = "{backend}"
[signals]
hidden_layers = [-1]
[[tasks]]
name = "scheduling"
count = 24
"""
SCORE = """
out = "out/scored"
[teacher]
model = "demo"
[transcripts]
path = "transcripts.jsonl"
"""
TRANSCRIPT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
LOAD = """
from factory.errors import DatasetError
from factory.load import collate, load_rows
rows = load_rows("out/made")
print(len(rows), rows[0].topk_logprobs.shape[1], len(list(load_rows("out/made", "rejected"))))
try:
    collate([rows[0]], pad_token_id=0)
except DatasetError as error:
    print(error)
"""
STREAM = """
from factory.load import load_rows
print(sum(1 for _ in load_rows("out/made", streaming=True)))
"""
FORWARD = """
from factory.errors import TeacherError
from factory.teachers.reference import forward_rows
try:
    forward_rows({}, None, [])
except TeacherError as error:
    print(error)
"""
Ran = subprocess.CompletedProcess[str]
Core = Callable[..., Ran]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """Runs a program of the environment with the core install, in a workspace that has two jobs."""
    root = tmp_path_factory.mktemp("core")
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    uv, environment, workspace = Path(sys.executable).parent / "uv", root / "environment", root / "workspace"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True, env=own)
    python = environment / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, ROOT], check=True, env=own)
    workspace.mkdir()
    for out, backend in (("made", "scripted"), ("engine", "vllm")):
        (workspace / f"{out}.toml").write_text(JOB.format(out=out, backend=backend))
    (workspace / "score.toml").write_text(SCORE)
    (workspace / "transcripts.jsonl").write_text(json.dumps({"messages": TRANSCRIPT}) + "\n")

    def run(program: str, *arguments: str) -> Ran:
        command = [environment / "bin" / program, *arguments]
        return subprocess.run(command, cwd=workspace, env=own, capture_output=True, text=True)

    assert run("factory", "run", "made.toml").returncode == 0
    return run


def test_the_core_install_has_no_engine(core: Core) -> None:
    found = core("python", "-c", "import importlib.util as u; print([n for n in ('torch', 'vllm') if u.find_spec(n)])")
    assert found.stdout == "[]\n"


@pytest.mark.parametrize(
    "command",
    [
        "tasks",
        "test scheduling --seeds 1",
        "new shopping",
        "preview scheduling",
        "preview scheduling --model demo",
        "plan made.toml",
        "plan made.toml --pilot 2",
        "status out/made",
        "verify out/made",
        "verify out/made --fidelity 1",
        "show out/made",
        "show out/made --rejected",
        "curriculum out/made",
        "--help",
    ],
)
def test_what_needs_no_engine_works(core: Core, command: str) -> None:
    ran = core("factory", *command.split())
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_a_task_with_pictures_says_what_to_install(core: Core) -> None:
    ran = core("factory", "preview", "photo_edits_image")
    assert ran.returncode == 2
    assert re.search(r'pictures need Pillow: pip install "\S+\[images\]"$', ran.stderr.rstrip())
    assert "photo_edits_image  NOT INSTALLED" in core("factory", "tasks").stdout


@pytest.mark.parametrize("job", ["engine.toml", "score.toml"])
def test_a_plan_for_the_engine_counts_with_the_models_own_tokenizer(core: Core, job: str) -> None:
    ran = core("factory", "plan", job)
    assert ran.returncode == 0, ran.stderr
    assert "tokens counted with the model's own tokenizer" in ran.stdout


@pytest.mark.parametrize("command", ["run engine.toml", "plan engine.toml --pilot 2", "score score.toml"])
def test_what_needs_an_engine_says_what_to_install(core: Core, command: str) -> None:
    ran = core("factory", *command.split())
    assert ran.returncode == 2
    assert ran.stderr.startswith('error: teacher.backend "vllm": vLLM is not installed here; pip install ')
    assert ran.stderr.count("\n") == 1


def test_a_plain_forward_says_what_to_install(core: Core) -> None:
    ran = core("python", "-c", FORWARD)
    assert ran.stdout == (
        "fidelity: a plain forward needs torch and transformers, not installed here; pip install torch transformers\n"
    )


def test_a_dataset_is_loaded_as_arrays_and_tensors_say_what_to_install(core: Core) -> None:
    ran = core("python", "-c", LOAD)
    assert ran.returncode == 0, ran.stderr
    figures, told = ran.stdout.splitlines()
    accepted, k, rejected = map(int, figures.split())
    assert (accepted + rejected, k) == (24, 20)
    assert accepted
    assert "`pip install torch`" in told


def test_a_dataset_is_streamed(core: Core) -> None:
    ran = core("python", "-c", STREAM)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 0
