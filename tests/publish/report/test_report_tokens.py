"""Tokens of a report: how sure the teacher is, and the strip of a row, held against the arrays themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_support import read_table
from report_support import make_record, unpack, write_dataset

from factory.dataset.ledger import read_ledger
from factory.dataset.manifest import read_manifest, read_signals
from factory.job.job import Job
from factory.publish.report import tokens as tokens_module
from factory.publish.report.payload import MOST, pack_row
from factory.publish.report.strip import NEVER, Limits, make_strip
from factory.publish.report.tokens import choose_shards, describe_tokens, list_sizes
from factory.runs.run import run
from factory.signals import SignalSpec
from factory.teachers.scripted import decode
from factory.teachers.spelling import open_decoder, spells

KEPT: dict[str, dict[str, Any]] = {
    "exact": {"signals": {"top_k": 4}},
    "compact": {"signals": {"top_k": 4}, "storage": {"logprobs": "compact"}},
    "answer": {"signals": {"top_k": 4, "positions": "answer"}},
    "unsure": {"signals": {"top_k": 4, "min_entropy": 2.0}},
    "sampled": {"signals": {"top_k": 4, "keep": "sampled"}},
    "top_p": {"signals": {"top_k": 4, "keep": "top_p", "top_p": 0.5}},
}


@pytest.mark.parametrize("kind", KEPT)
def test_sureness_is_counted_over_every_token_in_every_profile(
    kind: str, workspace: Path, make_job: Callable[..., Job]
) -> None:
    out = workspace / "out"
    run(make_job(**KEPT[kind]), workspace, out)
    ledger, signals = read_ledger(out), read_signals(read_manifest(out))
    assert signals is not None
    found = describe_tokens(ledger, signals)
    assert found is not None
    rows = read_table(out, "data")
    entropy = np.concatenate([row["entropy"] for row in rows])
    answer = np.concatenate([np.arange(len(row["entropy"])) >= row["answer_start"] for row in rows])
    assert (found["rows"], found["tokens"]) == (len(rows), len(entropy))
    for part, of in zip(found["parts"], (~answer, answer), strict=True):
        assert part["tokens"] == of.sum()
        assert part["sure"] == pytest.approx((entropy[of] < 0.1).mean())
        assert part["entropy"] == pytest.approx(entropy[of].mean(), rel=1e-3)
    assert sum(place["tokens"] for place in found["positions"]) == len(entropy)
    kept = np.concatenate([np.array(row.get("topk_counts") or [4] * len(row["entropy"])) > 0 for row in rows])
    assert found["savings"][0]["kept"] == pytest.approx(kept.mean())
    choices = {choice["choice"]: choice for choice in found["savings"]}
    assert ('positions = "answer"' in choices) == (kind != "answer")
    shares = [choice["kept"] for name, choice in choices.items() if name.startswith("min_entropy")]
    assert shares == sorted(shares, reverse=True)
    if kind == "exact":
        sizes = {tail["k"]: tail["mean"] for tail in found["tail"]}
        flat = np.concatenate([np.exp(np.array(row["topk_logprobs"])).reshape(-1, 4) for row in rows])
        assert sizes == {k: pytest.approx(1 - flat[:, :k].sum(1).mean(), abs=1e-6) for k in (1, 2, 4)}
        assert choices["min_entropy = 0.5"]["kept"] == pytest.approx((entropy >= 0.5).mean())
    if kind == "sampled":
        assert found["tail"] == []


def test_without_distributions_or_rows_there_is_nothing_to_say(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "out", [[make_record(0)]])
    assert describe_tokens(read_ledger(out), SignalSpec()) is None


def test_a_million_rows_are_read_in_as_many_pieces_as_a_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_dataset(tmp_path / "out", [[make_record(10 * s + n) for n in range(10)] for s in range(9)])
    monkeypatch.setattr(tokens_module, "MOST_SHARDS", 3)
    monkeypatch.setattr(tokens_module, "MOST_ROWS", 12)
    ledger, signals = read_ledger(out), read_signals(read_manifest(out))
    assert choose_shards(ledger) == [0, 3, 6]
    assert signals is not None
    found = describe_tokens(ledger, signals)
    assert found is not None
    assert found["rows"] == 15


def test_sizes_double_up_to_k() -> None:
    assert [list_sizes(k) for k in (1, 2, 20, 64)] == [
        [1],
        [1, 2],
        [1, 2, 4, 8, 16, 20],
        [1, 2, 4, 8, 16, 32, 64],
    ]


@pytest.mark.parametrize("kind", KEPT)
def test_a_strip_gives_back_every_token_its_candidates_and_all_their_mass(
    kind: str, workspace: Path, make_job: Callable[..., Job]
) -> None:
    out = workspace / "out"
    run(make_job(**KEPT[kind]), workspace, out)
    manifest = read_manifest(out)
    decode_ids = open_decoder(manifest)
    for row in read_table(out, "data")[:3]:
        assert decode_ids is not None
        assert spells(decode_ids, row)
        strip = make_strip(row, 4, decode_ids, Limits())
        assert strip is not None
        assert strip.ids == row["completion_token_ids"]
        assert [strip.texts[place] for place in strip.tokens] == [decode([i]) for i in row["completion_token_ids"]]
        counts = row.get("topk_counts") or [4] * len(strip.ids)
        assert [len(found) // 2 for found in strip.candidates] == counts
        for found, tail in zip(strip.candidates, strip.tail, strict=True):
            assert sum(found[1::2]) + tail == pytest.approx(10_000, abs=160 if kind == "compact" else 25)


def row_of(**changed: Any) -> dict[str, Any]:
    """Three tokens whose second the teacher would hardly have written, and whose third it could not have."""
    return {
        "completion_token_ids": [65, 66, 67],
        "text": "ABC",
        "answer_start": 1,
        "entropy": [0.0, 0.2, 1.5],
        "sampled_logprobs": [-0.01, -9.0, -1e30],
        "topk_ids": [65, 68, 68, 69, 70, 71],
        "topk_logprobs": [-0.01, -5.0, -0.1, -3.0, -0.5, -1.5],
        "tail_logprobs": [-8.0, -3.2, -1.8],
    } | changed


def test_forced_tokens_are_told_from_drawn_ones() -> None:
    strip = make_strip(row_of(), 2, decode, Limits())
    assert strip is not None
    assert strip.forced == [1, 2]
    assert strip.ranks == [1, 0, 0]
    assert strip.surprise == [1, 900, NEVER]
    assert strip.entropy == [0, 20, 150]


def test_what_is_left_out_of_the_candidates_goes_into_the_tail() -> None:
    strip = make_strip(row_of(), 2, decode, Limits(least=0.1))
    assert strip is not None
    assert [len(found) // 2 for found in strip.candidates] == [1, 1, 2]
    assert strip.tail[1] == round(1e4 * (np.exp(-3.2) + np.exp(-3.0)))


@pytest.mark.parametrize("changed", [{"topk_ids": [1, 2]}, {"entropy": [0.1]}, {"tail_logprobs": []}])
def test_arrays_that_do_not_fit_their_tokens_give_no_strip(changed: dict[str, Any]) -> None:
    assert make_strip(row_of(**changed), 2, decode, Limits()) is None


def test_a_row_of_another_tokenizer_is_shown_by_its_ids() -> None:
    row = row_of(text="nothing like it") | dict.fromkeys(("reasoning", "answer", "scenario"), "")
    row |= {"prompt": [], "findings": [], "prompt_token_ids": [1], "history": []}
    strip = unpack(pack_row(row, 2, decode))["strip"]
    assert strip["spelt"] is False
    assert [strip["texts"][place] for place in strip["tokens"]] == ["65", "66", "67"]


def test_a_long_row_keeps_to_its_bytes_and_says_what_is_left_out() -> None:
    rng, tokens, k = np.random.default_rng(0), 3_000, 20
    ids = rng.integers(0, 256, (tokens, k))
    logprobs = np.log(rng.dirichlet(np.full(k, 0.3), tokens) + 1e-9) - 0.1
    row = row_of(
        completion_token_ids=rng.integers(0, 256, tokens).tolist(),
        entropy=rng.random(tokens).tolist(),
        sampled_logprobs=(-rng.random(tokens)).tolist(),
        topk_ids=ids.ravel().tolist(),
        topk_logprobs=np.sort(logprobs)[:, ::-1].ravel().tolist(),
        tail_logprobs=[-2.4] * tokens,
    ) | dict.fromkeys(("reasoning", "answer", "scenario"), "x" * 200_000)
    row |= {"prompt": [{"role": "user", "content": "y" * 200_000}], "findings": ["z" * 5_000] * 99}
    row |= {"prompt_token_ids": [1], "history": []}
    packed = pack_row(row, k, decode)
    shown = unpack(packed)
    assert len(packed) <= MOST
    assert shown["strip"]["whole"] == tokens
    assert len(shown["strip"]["tokens"]) < tokens
    assert shown["least"] > 0
    text, left, _ = shown["answer"]
    assert len(text) + left == 200_000
