"""A real vLLM server on loopback, asked as an endpoint: the same rows as our own engine gives.

Both run the demo teacher in float32 at temperature 0, so that ids are equal and numbers differ by rounding alone.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration_support import Dataset

from factory.checks.verify import verify
from factory.errors import TeacherError
from factory.job.job import Job
from factory.runs.run import run
from factory.teachers.demo import demo_teacher
from factory.teachers.remote.purse import read_account

pytestmark = pytest.mark.engine

HERE = Path(__file__).parents[2]
K = 8
ENGINE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}
STRUCTURED = '{"backend": "guidance", "disable_any_whitespace": true}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server that serves the demo teacher as `demo`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", demo_teacher()]
    command += ["--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--dtype", "float32", "--reasoning-parser", "qwen3", "--structured-outputs-config", STRUCTURED]
    command += ["--max-logprobs", str(K + 1), "--max-num-seqs", "16"]
    with log.open("wb") as handle:
        process = subprocess.Popen(
            command, env=os.environ | ENGINE, stdout=handle, stderr=handle, start_new_session=True
        )
    try:
        await_health(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def make(folder: Path, teacher: dict[str, Any], constrain: bool, top_k: int = K) -> Dataset:
    job = Job.model_validate(
        {
            "out": "out",
            "seed": 7,
            "shard_rows": 4,
            "teacher": teacher,
            "sampling": {"temperature": 0.0},
            "signals": {"top_k": top_k, "verify_rows": 0},
            "validation": {"constrain": constrain, "gate": "schema"},
            "tasks": [
                {"name": "scheduling", "count": 4, "levels": {"easy": 1}},
                {"name": "summarization", "count": 4},
            ],
        }
    )
    return Dataset(folder, run(job, HERE, folder))


def remote(url: str, **more: Any) -> dict[str, Any]:
    return {"model": "demo", "backend": "openai", "base_url": url, "api_key_env": ""} | more


LOCAL = {"model": "demo", "dtype": "float32", "max_num_seqs": 16}


def by_id(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in dataset.rows()}


@pytest.mark.parametrize(
    "constrain", [False, pytest.param(True, marks=pytest.mark.sweep)], ids=["free", "under a grammar"]
)
def test_rows_equal_those_of_the_local_engine(tmp_path: Path, server: str, constrain: bool) -> None:
    here = make(tmp_path / "here", LOCAL, constrain)
    there = make(tmp_path / "there", remote(server), constrain)
    assert list(verify(there.out)) == []
    mine, theirs = by_id(here), by_id(there)
    assert mine.keys() == theirs.keys()
    assert len(mine) >= 6
    texts = ("reasoning", "answer", "text", "prompt_token_ids", "completion_token_ids", "answer_start")
    for row, other in ((mine[name], theirs[name]) for name in mine):
        # without a tokenizer here, the text is put together from what the server sent, and has no token that stops
        other["text"] += "<|im_end|>"
        assert {name: other[name] for name in texts} == {name: row[name] for name in texts}
        unmasked = slice(0, row["answer_start"] if constrain else None)
        ids, others = (np.reshape(r["topk_ids"], (-1, K))[unmasked] for r in (row, other))
        values, values_of = (np.reshape(r["topk_logprobs"], (-1, K)).astype(np.float32)[unmasked] for r in (row, other))
        assert np.abs(values - values_of).max() < 0.02  # float16 steps of numbers around -20
        # where two of the likeliest are equally likely, either may come first
        assert (ids == others).mean() > 0.98
        sampled, sampled_of = (np.array(r["sampled_logprobs"])[unmasked] for r in (row, other))
        assert np.abs(sampled - sampled_of).max() < 1e-3
        tail, tail_of = (np.exp(np.array(r["tail_logprobs"], np.float64))[unmasked] for r in (row, other))
        assert np.abs(tail - tail_of).max() < 1e-3
        # the endpoint's is a lower bound of the true one
        assert (np.array(other["entropy"])[unmasked] <= np.array(row["entropy"])[unmasked] + 1e-3).all()
    told = there.manifest["teacher"]["details"]["distribution"]
    assert "before temperature" in told
    assert ("no grammar is asked for" in told) != constrain


def test_a_named_tokenizer_decodes_the_servers_ids(tmp_path: Path, server: str) -> None:
    there = make(tmp_path / "there", remote(server, tokenizer=demo_teacher()), True, top_k=0)
    rows = there.rows()
    assert len(rows) >= 6
    for row in rows:
        assert row["text"].endswith("<|im_end|>")
        assert row["text"] == f"{row['reasoning']}</think>{row['answer']}<|im_end|>"
        assert 0 < row["answer_start"] < len(row["completion_token_ids"])
    account, _ = read_account(there.out / "usage.jsonl")
    assert account.requests >= len(rows)
    assert account.unanswered == 0


def test_more_logprobs_than_the_server_gives_are_refused(tmp_path: Path, server: str) -> None:
    with pytest.raises(TeacherError, match=rf"^signals\.top_k {K + 1}: .*--max-logprobs"):
        make(tmp_path / "there", remote(server), True, top_k=K + 1)
    with pytest.raises(TeacherError, match=r"'demos': not a model of .*has: demo.*did you mean 'demo'"):
        make(tmp_path / "other", remote(server, model="demos"), True)
