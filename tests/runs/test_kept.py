"""What is kept is a choice: every choice from the teacher through Parquet to arrays, beside a run that keeps all.

The scripted teacher draws the same distributions whatever is kept of them.
"""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import write_task

from factory.checks.verify import verify
from factory.dataset.manifest import read_manifest, read_signals
from factory.errors import DatasetError, JobError
from factory.hashing import canonical_json
from factory.job.job import Job
from factory.load import Row, collate, load_rows
from factory.publish.show import describe_rows
from factory.runs.run import run
from factory.signals import SignalSpec

K = 12
CHOICES: dict[str, dict[str, Any]] = {
    "top_p": {"keep": "top_p", "top_p": 0.97},
    "sampled": {"keep": "sampled"},
    "answer": {"positions": "answer"},
    "entropy": {"min_entropy": 0.5},
    "prompt": {"positions": "all"},
    "prompt and more": {"positions": "all", "keep": "top_p", "top_p": 0.9, "min_entropy": 0.1},
    "drawn answer": {"positions": "answer", "keep": "sampled", "min_entropy": 0.3},
}


def kept_job(signals: dict[str, Any], **sections: Any) -> Job:
    job: dict[str, Any] = {"out": "out", "seed": 5, "shard_rows": 6, "teacher": {"backend": "scripted"}}
    job |= {"signals": {"top_k": K, "hidden_layers": [1, -1]} | signals}
    job |= {"tasks": [{"name": "adding", "count": 10}, {"name": "photo_edits", "count": 4}]}
    return Job.model_validate(job | sections)


def make(folder: Path, signals: dict[str, Any], profile: str = "exact") -> list[Row]:
    write_task(folder)
    out = folder / "out"
    run(kept_job(signals, storage={"logprobs": profile}), folder, out)
    assert list(verify(out)) == []
    return list(load_rows(out, join_hidden_states=True, cache_dir=folder / "cache"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Everything of the same rows: the whole vocabulary at every position, prompt included."""
    return make(tmp_path_factory.mktemp("whole"), {"top_k": 260, "positions": "all"})


def probabilities(part: Any) -> np.ndarray:
    """[T, V] by id, from a row that keeps all of them."""
    probs = np.zeros(part.topk_ids.shape)
    np.put_along_axis(probs, part.topk_ids, np.exp(part.topk_logprobs.astype(np.float64)), 1)
    return probs


@pytest.mark.parametrize("profile", ["exact", "compact"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_keeps_what_it_says_and_all_else_is_as_in_the_whole(
    whole: list[Row], tmp_path: Path, name: str, profile: str
) -> None:
    signals, bound = CHOICES[name], {"exact": 5e-3, "compact": 0.04}[profile]
    rows = make(tmp_path, signals, profile)
    assert [row["id"] for row in rows] == [row["id"] for row in whole]
    for row, full in zip(rows, whole, strict=True):
        start = row["answer_start"] if signals.get("positions") == "answer" else 0
        parts = [(row, full, start)] + ([(row.prompt, full.prompt, 0)] if signals.get("positions") == "all" else [])
        assert (row.prompt is not None) == (signals.get("positions") == "all")
        for part, other, first in parts:
            for scalar in ("sampled_logprobs", "entropy"):
                np.testing.assert_allclose(getattr(part, scalar), getattr(other, scalar), rtol=1e-3, atol=1e-6)
            require_kept(signals, part, other, first, bound)


def require_kept(signals: dict[str, Any], part: Any, full: Any, start: int, bound: float) -> None:
    probs, kept = probabilities(full), part.topk_ids >= 0
    held = kept[:, 0]
    wanted = (np.arange(len(kept)) >= start) & (full.entropy >= signals.get("min_entropy", 0.0))
    clear = np.abs(full.entropy - signals.get("min_entropy", -1.0)) > 1e-6
    assert np.array_equal(held[clear], wanted[clear])
    assert (kept[:, 1:] <= kept[:, :-1]).all()
    assert np.isneginf(part.topk_logprobs[~kept]).all()
    mass = np.where(kept, np.take_along_axis(probs, np.maximum(part.topk_ids, 0), 1), 0)
    np.testing.assert_allclose(part.topk_logprobs[kept], np.log(mass[kept]), atol=bound)
    np.testing.assert_allclose(np.exp(part.tail_logprobs), 1 - mass.sum(1), atol=3e-3)
    if signals.get("keep") == "sampled":
        assert part.topk_draws is not None
        assert np.array_equal(part.topk_draws.sum(1), np.where(held, K, 0))
        assert np.array_equal(part.topk_draws > 0, kept)
        return
    assert part.topk_draws is None
    assert np.array_equal(part.topk_ids[held, 0], full.topk_ids[held, 0])
    if signals.get("keep") == "top_p":
        reached = mass.sum(1)
        before = reached - np.where(kept, mass, np.inf).min(1)
        assert (reached[held] >= signals["top_p"] - 2e-3)[kept[held].sum(1) < K].all()
        assert (before[held] < signals["top_p"] + 2e-3).all()
    else:
        assert kept[held].all()


@pytest.mark.parametrize("where", ["completion", "kept"])
def test_hidden_states_of_chosen_positions(whole: list[Row], tmp_path: Path, where: str) -> None:
    rows = make(tmp_path, {"hidden_positions": where, "positions": "answer", "min_entropy": 0.4})
    for row, full in zip(rows, whole, strict=True):
        assert row.positions is not None
        assert full.hidden_states is not None
        first, tokens = len(row.prompt_token_ids) - 1, np.arange(len(row.completion_token_ids))
        predicted = tokens if where == "completion" else tokens[row.topk_ids[:, 0] >= 0]
        assert np.array_equal(row.positions, first + predicted)
        assert torch.equal(row.hidden_states, full.hidden_states[torch.from_numpy(row.positions.astype(np.int64))])
        assert torch.equal(row.predicting_states, row.hidden_states)


def test_states_that_predict_the_kept_tokens_of_a_prompt(tmp_path: Path) -> None:
    for row in make(tmp_path, {"positions": "all", "hidden_positions": "kept", "min_entropy": 0.3}):
        held = np.concatenate([row.prompt.topk_ids[:, 0], row.topk_ids[:, 0]]) >= 0
        assert np.array_equal(row.positions, np.flatnonzero(held))
        assert len(row.predicting_states) == (row.topk_ids[:, 0] >= 0).sum()


def test_a_batch_tells_which_entries_hold_an_id(tmp_path: Path) -> None:
    rows = make(tmp_path, {"keep": "sampled", "positions": "all", "min_entropy": 0.2, "hidden_positions": "kept"})
    batch = collate(rows, pad_token_id=0)
    for i, row in enumerate(rows):
        end, first = len(row.prompt_token_ids) + len(row.completion_token_ids) - 1, len(row.prompt_token_ids) - 1
        ids = np.concatenate([row.prompt.topk_ids, row.topk_ids])
        kept, mask = batch["topk_kept"][i].numpy(), batch["topk_mask"][i].numpy()
        assert np.array_equal(kept[:end], ids >= 0)
        assert not kept[end:].any()
        assert np.array_equal(mask[:end], ids[:, 0] >= 0)
        assert np.array_equal(batch["topk_ids"][i, :end].numpy()[ids >= 0], ids[ids >= 0])
        weights = batch["topk_weights"][i, :end].numpy()
        np.testing.assert_allclose(weights.sum(1), mask[:end], atol=1e-6)
        np.testing.assert_allclose(weights[first:] * K, row.topk_draws, atol=1e-5)
        taken = batch["hidden_mask"][i].numpy()
        assert np.array_equal(np.flatnonzero(taken), row.positions)
        assert torch.equal(batch["hidden_states"][i][torch.from_numpy(taken)], row.hidden_states)
    assert torch.isfinite(batch["topk_logprobs"]).all()


def test_what_draws_say_in_the_mean_is_the_distribution(tmp_path: Path, whole: list[Row]) -> None:
    """The shares of the draws over all rows, against the probabilities they were drawn from: no id is favoured."""
    rows = make(tmp_path, {"keep": "sampled", "top_k": 200})
    error = [np.zeros(260), np.zeros(260)]
    for row, full in zip(rows, whole, strict=True):
        shares = np.zeros((len(row.topk_ids), 260))
        np.put_along_axis(shares, np.maximum(row.topk_ids, 0), row.topk_draws / 200, 1)
        shares[:, 0] = np.where(row.topk_ids == 0, row.topk_draws, 0).sum(1) / 200
        probs = probabilities(full)
        error[0] += (shares - probs).sum(0)
        error[1] += (probs * (1 - probs)).sum(0) / 200
    assert np.abs(error[0] / np.sqrt(error[1])).max() < 5  # standard deviations, over 260 ids


def test_plain_datasets_reads_the_columns(tmp_path: Path) -> None:
    make(tmp_path, CHOICES["drawn answer"])
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    for row in table:
        assert len(row["topk_counts"]) == len(row["completion_token_ids"])
        assert sum(row["topk_counts"]) == len(row["topk_ids"]) == len(row["topk_draws"])
        assert row["topk_counts"][: row["answer_start"]] == [0] * row["answer_start"]


def test_streaming_and_show_know_the_choice(tmp_path: Path) -> None:
    rows = make(tmp_path, CHOICES["drawn answer"])
    streamed = list(load_rows(tmp_path / "out", streaming=True))
    assert all(np.array_equal(one.topk_ids, other.topk_ids) for one, other in zip(rows, streamed, strict=True))
    shown = "\n".join(describe_rows(tmp_path / "out", 2))
    assert "not kept" in shown or "… of" in shown


def test_the_manifest_the_card_and_the_files_tell_the_choice(tmp_path: Path) -> None:
    make(tmp_path, CHOICES["prompt and more"])
    signals = read_signals(read_manifest(tmp_path / "out"))
    assert signals == SignalSpec(
        K, (1, 4), keep="top_p", top_p=0.9, positions="all", min_entropy=0.1, rejected_measures=True
    )
    card = (tmp_path / "out" / "README.md").read_text()
    for told in ("topk_counts", "0.9", "prompt_topk_ids", "0.1 nats"):
        assert told in card
    resumed = kept_job(CHOICES["prompt and more"] | {"min_entropy": 0.2})
    with pytest.raises(DatasetError, match="min_entropy"):
        run(resumed, tmp_path, tmp_path / "out")


def test_signals_of_older_datasets_are_plain() -> None:
    told = {"top_k": 3, "layers": [1], "final_norm": True, "pairs": False}
    assert read_signals({"signals": told}) == SignalSpec(3, (1,))


@pytest.mark.parametrize(
    ("signals", "told"),
    [
        ({"keep": "top_p"}, "belong together"),
        ({"top_p": 0.9}, "belong together"),
        ({"keep": "top_p", "top_p": 1.5}, "less than 1"),
        ({"keep": "best"}, "'top_k', 'top_p' or 'sampled'"),
        ({"positions": "prompt"}, "'all', 'completion' or 'answer'"),
        ({"top_k": 0, "keep": "sampled", "min_entropy": 0.1}, "keep, min_entropy: top_k is 0"),
        ({"top_k": 0, "hidden_positions": "kept"}, "follows the kept logprobs"),
        ({"hidden_layers": [], "hidden_positions": "kept"}, "no hidden_layers"),
        ({"min_entropy": -1}, "greater than or equal to 0"),
    ],
)
def test_choices_that_do_not_fit_are_named(tmp_path: Path, signals: dict[str, Any], told: str) -> None:
    from factory.job.job import load_job

    path = tmp_path / "job.toml"
    lines = [
        f"{name} = {canonical_json(value)}" for name, value in ({"top_k": 4, "hidden_layers": [1]} | signals).items()
    ]
    path.write_text('out = "o"\n[signals]\n' + "\n".join(lines) + '\n[[tasks]]\nname = "adding"\ncount = 1\n')
    with pytest.raises(JobError, match=told):
        load_job(path)
