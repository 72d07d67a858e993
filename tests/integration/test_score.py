"""Scoring on the real engine: a prefill over stored ids gives the numbers that were taken while they were generated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration_support import Dataset, engine_job, make_dataset
from random_teacher import random_teacher

from factory.checks.fidelity import check_dataset
from factory.job.job import Job
from factory.runs.run import run

pytestmark = pytest.mark.engine
SIGNALS = {"top_k": 20, "hidden_layers": [0, 2, -1]}
TEACHER = {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 16, "max_model_len": 2048}
TASKS = [{"name": "adding", "count": 12}, {"name": "scheduling", "count": 4}]
SAMPLING = {"temperature": 1.0, "max_tokens": 300, "thinking_tokens": 60}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Signals taken while the rows were generated, grammar on."""
    # all in one shard, which is then scored: few answers of random weights are whole
    job = engine_job(tasks=TASKS, sampling=SAMPLING, signals=SIGNALS, teacher=TEACHER, shard_rows=16)
    return make_dataset(tmp_path_factory.mktemp("generated"), job)


def score(folder: Path, path: Path, **transcripts: Any) -> Dataset:
    teacher = TEACHER | {
        "engine": {"enable_chunked_prefill": True, "max_num_batched_tokens": 96}
    }  # long rows in pieces
    sections = {"out": "out", "shard_rows": 8, "teacher": teacher, "signals": SIGNALS}
    job = Job.model_validate(sections | {"transcripts": {"path": str(path), **transcripts}})
    return Dataset(folder / "scored", run(job, folder, folder / "scored"))


def require_same_numbers(row: dict[str, Any], other: dict[str, Any]) -> None:
    """Within what the order of additions does to float32, and float16's rounding of the kept log-probabilities."""
    assert row["prompt_token_ids"] == other["prompt_token_ids"]
    assert row["completion_token_ids"] == other["completion_token_ids"]
    assert (row["answer_start"], row["text"]) == (other["answer_start"], other["text"])
    bounds = {"sampled_logprobs": 1e-4, "entropy": 1e-4, "tail_logprobs": 1e-4, "topk_logprobs": 8e-3}
    for column, bound in bounds.items():
        np.testing.assert_allclose(row[column], other[column], atol=bound)
    assert np.mean(np.array(row["topk_ids"]) == np.array(other["topk_ids"])) > 0.999


def require_same_states(states: np.ndarray, others: np.ndarray) -> None:
    assert states.shape == others.shape
    norm = np.maximum(np.linalg.norm(others, axis=-1), 1e-6)
    assert (np.linalg.norm(states - others, axis=-1) / norm).max() < 0.008


def test_scored_ids_have_the_numbers_of_their_generation(generated: Dataset, tmp_path: Path) -> None:
    scored = score(tmp_path, generated.out / "data" / "train-00000.parquet", keep=["id"])
    rows = {row["id"]: row for row in generated.rows()}
    assert scored.totals.accepted == scored.totals.planned > 5
    for row in scored.rows():
        origin = rows[json.loads(row["scenario"])["id"]]
        require_same_numbers(row, origin)
        require_same_states(scored.states()[row["id"]], generated.states()[origin["id"]])
        assert (row["reasoning"], row["answer"]) == (origin["reasoning"], origin["answer"])


def test_capture_after_generating_gives_the_same_numbers(generated: Dataset, tmp_path: Path) -> None:
    job = engine_job(tasks=TASKS, sampling=SAMPLING, signals=SIGNALS | {"capture": "prefill"}, teacher=TEACHER)
    after = make_dataset(tmp_path, job)
    assert after.totals.errors == 0
    rows = {row["id"]: row for row in generated.rows()}
    same = [row for row in after.rows() if row["completion_token_ids"] == rows[row["id"]]["completion_token_ids"]]
    assert len(same) >= 0.9 * len(rows)  # another batch may draw another token now and then
    for row in same:
        require_same_numbers(row, rows[row["id"]])
        require_same_states(after.states()[row["id"]], generated.states()[row["id"]])


def test_messages_are_encoded_as_a_run_would_and_what_does_not_fit_is_told(tmp_path: Path, generated: Dataset) -> None:
    row = generated.rows()[0]
    turns = [*row["prompt"], {"role": "assistant", "content": "It is <|im_end|> 4.", "reasoning_content": "Well."}]
    bare = [*row["prompt"], {"role": "assistant", "content": "4."}]
    long = [{"role": "user", "content": "word " * 3000}, {"role": "assistant", "content": "4."}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (turns, bare, long)), encoding="utf-8")
    scored = score(tmp_path, path)
    first, second = scored.rows()
    assert first["prompt_token_ids"] == row["prompt_token_ids"]
    # a blank line is one token, as in the template's own text: it belongs to the turn, with the newline of the prompt
    assert second["prompt_token_ids"] == row["prompt_token_ids"][:-1]
    assert first["text"] == "Well.\n</think>\n\nIt is <|im_end|> 4.<|im_end|>"
    assert first["reasoning"] == "Well."
    assert second["text"] == "\n\n</think>\n\n4.<|im_end|>"
    # what is stored is what was given
    assert (first["answer"], second["answer"], second["reasoning"]) == ("It is <|im_end|> 4.", "4.", None)
    assert second["completion"] == [{"role": "assistant", "content": "4.", "reasoning_content": None}]
    end = first["completion_token_ids"][-1]
    assert first["completion_token_ids"].count(end) == 1  # the one in the text is ordinary characters
    (rejected,) = scored.rows("rejected")
    assert (rejected["stage"], rejected["reason"]) == ("prompt", "transcript_too_long")


def test_turns_scored_together_have_the_numbers_of_each_scored_alone(tmp_path: Path) -> None:
    """And what stands between two of them keeps no distribution; the self-test finds what the files hold right."""
    turns = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "It is 4."},
        {"role": "tool", "content": "Right: 4."},
        {"role": "assistant", "content": "So it is."},
        {"role": "user", "content": "Thank you <|im_end|> very much."},
        {"role": "assistant", "content": "Gladly."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    together = score(tmp_path, path, turns="masked")
    (row,) = together.rows()
    mask, ids = np.array(row["completion_mask"]), row["completion_token_ids"]
    starts = np.flatnonzero(np.diff([0, *mask]) == 1)
    ends = np.flatnonzero(np.diff([*mask, 0]) == -1) + 1
    assert len(starts) == 3
    counts = np.array(row["topk_counts"])
    assert ((counts > 0) == (mask > 0)).all()
    alone = [
        {"prompt_token_ids": row["prompt_token_ids"] + ids[:first], "completion_token_ids": ids[first:last]}
        for first, last in zip(starts, ends, strict=True)
    ]
    (tmp_path / "alone").mkdir()
    path = tmp_path / "alone.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in alone), encoding="utf-8")
    each = sorted(score(tmp_path / "alone", path).rows(), key=lambda one: len(one["prompt_token_ids"]))
    for first, last, one in zip(starts, ends, each, strict=True):
        np.testing.assert_allclose(row["sampled_logprobs"][first:last], one["sampled_logprobs"], atol=1e-4)
        np.testing.assert_allclose(row["entropy"][first:last], one["entropy"], atol=1e-4)
    assert row["answer"] == "Gladly."
    assert row["answer_start"] >= starts[-1]
    assert check_dataset(together.out, 1)["verdict"] == "passed"


def test_named_ids_have_the_logprobs_of_a_plain_forward(tmp_path: Path, generated: Dataset) -> None:
    """Ids from all over the vocabulary, none to 9 of a token, of rows of very different lengths that are scored in
    pieces; what else is kept is as without them, and the self-test looks at them too."""
    import torch
    from transformers import AutoModelForCausalLM

    rng, rows = np.random.default_rng(0), []
    for row in generated.rows():
        lists = [rng.choice(2048, rng.integers(0, 10), replace=False).tolist() for _ in row["completion_token_ids"]]
        lists[-1] = [row["completion_token_ids"][-1], 2047]
        known = {name: row[name] for name in ("id", "prompt_token_ids", "completion_token_ids")}
        rows.append(known | {"candidate_ids": lists})
    path = tmp_path / "rows.jsonl"
    foreign = rows[0] | {"id": "foreign", "candidate_ids": [[2048]] * len(rows[0]["completion_token_ids"])}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, foreign]), encoding="utf-8")
    scored = score(tmp_path, path, keep=["id"])
    (refused,) = scored.rows("rejected")
    assert (refused["reason"], json.loads(refused["scenario"])["id"]) == ("bad_token_id", "foreign")
    plain = AutoModelForCausalLM.from_pretrained(random_teacher(), dtype=torch.float32)
    origins = {row["id"]: row for row in generated.rows()}
    named = {row["id"]: row["candidate_ids"] for row in rows}
    assert scored.totals.accepted == len(rows)
    for row in scored.rows():
        name = json.loads(row["scenario"])["id"]
        require_same_numbers(row, origins[name])
        assert row["candidate_ids"] == [one for ids in named[name] for one in ids]
        assert row["candidate_counts"] == list(map(len, named[name]))
        ids = torch.tensor([row["prompt_token_ids"] + row["completion_token_ids"]])
        with torch.inference_mode():
            logprobs = torch.log_softmax(plain(ids).logits[0, len(row["prompt_token_ids"]) - 1 : -1].double(), -1)
        at = np.repeat(np.arange(len(logprobs)), row["candidate_counts"])
        expected = logprobs[at, row["candidate_ids"]].numpy()
        np.testing.assert_allclose(row["candidate_logprobs"], expected, atol=0.01)  # float16 steps of numbers near 16
    found = check_dataset(scored.out, 2)
    assert found["verdict"] == "passed"
    assert 0 < found["figures"]["candidate_max"] < 0.01
