"""The reference, seen from our process: rows go to a plain transformers forward, and its figures come back.

The forward runs in a child (`factory.teachers.plain_forward`), after the engine has gone: this process imports no
torch, and the child's memory, that of a GPU too, is free again when it ends.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from factory.errors import TeacherError
from factory.job.teacher import TeacherConfig
from factory.signals import CANDIDATE_ARRAYS, Array, Candidates, Logprobs, SignalSpec
from factory.teachers.agreement import BOUNDS, PICTURE
from factory.teachers.digest import digest_model
from factory.teachers.models import locate_model
from factory.teachers.settings import wait_settings

# a forward over a few rows that takes longer than an hour hangs
TIMEOUT_S = 3600.0


class NotChecked(Exception):
    """No comparison was possible, and why; no fault of the dataset."""


@dataclass(frozen=True, slots=True)
class KeptRow:
    """What a dataset's files hold of one row: ids, and the signals it keeps; None for what it does not."""

    id: str
    task: str
    # P and T ids
    prompt_ids: Array
    completion_ids: Array
    # T entries, or P - 1 + T: of the completion, after those of the prompt's tokens but the first where these are kept
    logprobs: Logprobs | None
    # uint16 [N, L, H], bits of bfloat16; N = P + T - 1 unless `positions_N` says which they are
    bits_NLH: Array | None
    positions_N: Array | None = None
    # PNG of each picture in its prompt
    images: tuple[bytes, ...] = ()
    # of ids that the data named, where it did
    candidates: Candidates | None = None

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    def arrays(self) -> dict[str, Array]:
        """By name, as the child takes them."""
        arrays = {"prompt_ids": self.prompt_ids, "completion_ids": self.completion_ids}
        arrays |= {} if self.logprobs is None else self.logprobs.arrays()
        if self.candidates is not None:
            arrays |= {name: getattr(self.candidates, name) for name in CANDIDATE_ARRAYS}
        arrays |= {f"{PICTURE}{at}": np.frombuffer(png, np.uint8) for at, png in enumerate(self.images)}
        states = {"bits_NLH": self.bits_NLH, "positions_N": self.positions_N}
        return arrays | {name: array for name, array in states.items() if array is not None}


def require_reference(manifest: dict[str, Any], trust_remote_code: bool = False) -> dict[str, Any]:
    """Which model to load and how, out of a dataset's manifest. Raises NotChecked where there can be no reference."""
    teacher, details = manifest["teacher"], manifest["teacher"].get("details", {})
    if teacher["backend"] != "vllm":
        raise NotChecked(f"the {teacher['backend']} teacher has no model")
    if details.get("dtype") not in BOUNDS:
        raise NotChecked(f"no bounds are known for dtype {details.get('dtype')}")
    # after a grammar's mask: a forward without the grammar must differ
    if "distribution" in details:
        raise NotChecked(f"the distributions are {details['distribution']}")
    try:
        config = TeacherConfig.model_validate(manifest["job"]["teacher"])
        model = locate_model(config)
    except ValidationError:
        raise NotChecked("another version of the factory wrote the manifest's job.teacher") from None
    except TeacherError as error:
        raise NotChecked(str(error)) from None
    if config.quantization is not None:
        raise NotChecked(f"the engine quantised the model ({config.quantization})")
    if digest_model(model) != details.get("model_sha256"):
        raise NotChecked(f"the model in {model} is not the one that made the rows")
    if config.engine.get("mm_processor_kwargs"):
        raise NotChecked("the engine shows pictures in a way of the job's own (teacher.engine.mm_processor_kwargs)")
    names = {"model": model, "revision": config.revision, "dtype": details["dtype"]}
    overrides = config.engine.get("hf_overrides") or {}
    return names | {"trust_remote_code": trust_remote_code, "overrides": overrides}


def forward_rows(reference: dict[str, Any], signals: SignalSpec, rows: Sequence[KeptRow]) -> dict[str, Any]:
    """`rows`: the figures of each; `device` and `versions`: of the forward.

    Raises NotChecked, or TeacherError where what computes it is not installed.
    """
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        told = " and ".join(missing)
        raise TeacherError(
            f"fidelity: a plain forward needs {told}, not installed here; pip install torch transformers"
        )
    request = reference | {"layers": list(signals.layers), "final_norm": signals.final_norm}
    request |= {"rows": len(rows), "longest": max(row.tokens for row in rows)}
    try:
        with tempfile.TemporaryDirectory(prefix="fidelity-") as name:
            folder = Path(name)
            (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
            for number, row in enumerate(rows):
                np.savez(folder / f"row-{number}.npz", **row.arrays())  # type: ignore[arg-type]
            answer = _run_child(folder, local=Path(reference["model"]).is_dir())
    except OSError as error:
        raise NotChecked(f"no room to work in {tempfile.gettempdir()}: {error.strerror or error}") from None
    if "not_checked" in answer:
        raise NotChecked(answer["not_checked"])
    return answer


def _run_child(folder: Path, local: bool) -> dict[str, Any]:
    """Wait for the child's answer; it and all it started are gone afterwards."""
    command = [sys.executable, "-m", "factory.teachers.plain_forward", str(folder)]
    offline = {"HF_HUB_OFFLINE": "1"} if local else {}  # nothing of a local model is on the hub
    environment = wait_settings(shares=False) | os.environ | {"TOKENIZERS_PARALLELISM": "false"} | offline
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # its input tells it when we are gone
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise NotChecked(f"no result after {TIMEOUT_S:g} s") from None
        finally:
            # the group, for what it has started; it may have ended by itself
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise NotChecked(f"the forward's process ended with code {code}: {_last_line(folder / 'log')}")
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    return answer


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")
