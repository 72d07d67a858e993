"""Two teachers of the real engine take turns in one job: the demo model under two names, with a prompt for students."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import write_task
from integration_support import Dataset

from factory.checks.verify import verify
from factory.job.job import Job
from factory.load import collate, load_rows
from factory.runs.run import run
from factory.teachers.tokens import require_exact

pytestmark = pytest.mark.engine


def test_the_demo_model_under_two_names_answers_in_turn(tmp_path: Path) -> None:
    write_task(tmp_path, student_j2="{{ scenario.a }} plus {{ scenario.b }}?")
    teacher = {"model": "demo", "max_num_seqs": 4}
    job = Job.model_validate(
        {
            "out": "out",
            "shard_rows": 4,
            "teachers": {"one": teacher | {"dtype": "float32"}, "two": teacher},
            "sampling": {"max_tokens": 64, "thinking_tokens": 16, "temperature": 1.0},
            "signals": {"top_k": 5, "hidden_layers": [1, -1], "verify_rows": 2},
            "validation": {"gate": "schema"},
            "tasks": [{"name": "adding", "accepted": 8, "at_most": 40, "teacher": {"one": 1, "two": 1}}],
        }
    )
    made = Dataset(tmp_path / "out", run(job, tmp_path, tmp_path / "out"))
    rows, manifest = made.rows(), made.manifest
    assert Counter(row["teacher"] for row in rows) == {"one": 4, "two": 4}
    assert manifest["teacher.one"]["details"]["dtype"] == "float32"
    assert manifest["teacher.two"]["details"]["dtype"] == "bfloat16"
    # each held against a forward in its own precision
    assert manifest["fidelity.one"]["verdict"] == manifest["fidelity.two"]["verdict"] == "passed"
    assert (manifest["fidelity.one"]["dtype"], manifest["fidelity.two"]["dtype"]) == ("float32", "bfloat16")
    counter = require_exact(job.teachers["one"])
    for row in rows:
        assert row["student_prompt_token_ids"] == counter.prompt_ids(row["student_prompt"])
        assert row["prompt_token_ids"] == counter.prompt_ids(row["prompt"])
    assert list(verify(made.out)) == []
    # one tokenizer, whatever its teachers are called
    batch = collate(list(load_rows(made.out, streaming=True, prompt="student")), 0)
    assert batch["input_ids"].shape[0] == 8
