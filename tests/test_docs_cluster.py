"""What the documentation shows for clusters works as it is written."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")


def write_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_slurm_script_is_short_passes_its_part_on_and_comes_back_when_it_is_told_to_end(tmp_path: Path) -> None:
    (script,) = (block for block in re.findall(r"```bash\n(.*?)```", OPERATIONS, re.S) if "#SBATCH" in block)
    assert len(script.splitlines()) <= 15
    write_script(tmp_path / "job.sh", script)
    # Slurm's own commands, as far as the script sees them: `srun` waits for its program and hands a signal on
    write_script(tmp_path / "srun", 'exec "$@"')
    write_script(tmp_path / "factory", 'trap "echo ended >> told; exit 143" TERM; echo "$@" > told; sleep 60 & wait')
    write_script(tmp_path / "scontrol", 'echo "$@" >> told')
    slurm = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "32"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # a group of its own, for the `sleep` that its program leaves behind
    process = subprocess.Popen([tmp_path / "job.sh"], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        while not (tmp_path / "told").exists() or not (tmp_path / "told").read_text():
            assert process.poll() is None
            time.sleep(0.02)
        # it waits for its program: before that it does not know whom to hand a signal on to
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
        assert told == ["run job.toml --part 3/32", "ended", "requeue 77_3"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def kuberay_job() -> Any:
    (text,) = (block for block in re.findall(r"```yaml\n(.*?)```", OPERATIONS, re.S) if "kind: RayJob" in block)
    return yaml.safe_load(text)


# names and types of ray.io/v1 RayJob, of KubeRay's own CRD (helm-chart/kuberay-operator/crds, 2026-08), as far as the
# job of the documentation goes into it; unknown keys are errors, as they are to the server
SCHEMA = json.loads((Path(__file__).parent / "kuberay_rayjob_v1.json").read_text(encoding="utf-8"))


def test_the_kuberay_job_fits_the_operators_schema() -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(kuberay_job())


@pytest.mark.parametrize(
    "at", [("spec",), ("spec", "rayClusterSpec"), ("spec", "rayClusterSpec", "workerGroupSpecs", 0)]
)
def test_the_schema_tells_a_key_that_is_none(at: tuple[Any, ...]) -> None:
    job = kuberay_job()
    part = job
    for key in at:
        part = part[key]
    part["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.Draft202012Validator(SCHEMA).validate(job)
