"""Capture on vLLM's second model runner, under Triton's interpreter: every kept number against a plain forward.

`make integration-v2` runs them, in an environment of its own. A few dozen tokens each, as the interpreter is slow.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.runner_v2
pytest.importorskip("triton")

import torch  # noqa: E402
from engines import Plain, answer, prompts, start, tiny_mixture  # noqa: E402
from random_teacher import random_teacher  # noqa: E402

from factory.records import Generation, Sampling  # noqa: E402

BRIEF = Sampling(temperature=1.0, max_tokens=30, thinking_tokens=10)
SURE = Sampling(temperature=0.0, max_tokens=24, thinking_tokens=10)
CHUNKED = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64}
# the cache has five blocks of 128 tokens: each of these prompts fits one, and its answer needs another
SMALL, CROSSING = 0.0016, (44, 46, 48, 50)
ALL = {"top_k": 5, "hidden_layers": [0, 2, -1]}


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain(random_teacher())


@pytest.fixture
def running_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asynchronous scheduling, as on GPUs: the next step begins before the last one's tokens are known."""
    from vllm.platforms.cpu import CpuPlatform

    inner = CpuPlatform.check_and_update_config

    def check(cls: Any, vllm_config: Any) -> None:
        inner(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(check))


def equal(ours: Generation, theirs: Generation) -> None:
    """The same tokens, and numbers within a rounding."""
    assert ours.completion_token_ids.tolist() == theirs.completion_token_ids.tolist()
    assert ours.logprobs is not None
    assert theirs.logprobs is not None
    pairs = zip(ours.logprobs.arrays().items(), theirs.logprobs.arrays().values(), strict=True)
    for (name, mine), other in pairs:
        if name == "draws_TK":  # random, and the same: drawn by the row's seed and the token's place
            assert np.array_equal(ours.logprobs.topk_ids_TK, theirs.logprobs.topk_ids_TK)
        if name != "topk_ids_TK":  # two that are alike may change places
            np.testing.assert_allclose(mine.astype(np.float64), other.astype(np.float64), atol=4e-3, err_msg=name)


def test_a_mixed_batch_under_a_grammar_in_chunks_is_right(tmp_path: Path, plain: Plain) -> None:
    """Prompts of 20 to 200 tokens, two samples each, in chunks of 64; a grammar and a thinking budget."""
    with start(tmp_path / "v2", ALL, CHUNKED) as engine:
        assert engine.info()["settings"]["model_runner"] == "v2"
        rows = answer(engine, prompts(6, BRIEF, samples=2))
    forced = sum(plain.check(made, layers=(0, 2, 4)) for made in rows.values())
    assert forced > 10  # the grammar was on, and the numbers are the teacher's own all the same
    assert max(len(made.prompt_token_ids) for made in rows.values()) > 128  # several chunks
    assert any(made.reasoning for made in rows.values())


def test_a_preempted_request_keeps_every_number(
    tmp_path: Path, plain: Plain, capfd: pytest.CaptureFixture[str]
) -> None:
    """A cache for about half of the requests."""
    long = Sampling(temperature=1.0, max_tokens=80, thinking_tokens=60)
    with start(tmp_path / "v2", ALL | {"final_norm": False}, CHUNKED, kv_cache_gb=SMALL) as engine:
        rows = answer(engine, prompts(6, long, words=CROSSING))
    assert "preempted" in capfd.readouterr().out
    for made in rows.values():
        plain.check(made, layers=(0, 2, 4), norm_at=None)


def test_prompts_positions_and_prefills_are_right(tmp_path: Path, plain: Plain) -> None:
    for capture in ("decode", "prefill"):
        signals = {"top_k": 5, "hidden_layers": [1], "positions": "all", "capture": capture}
        with start(tmp_path / capture, signals, CHUNKED) as engine:
            rows = answer(engine, prompts(4, BRIEF))
        for made in rows.values():
            assert made.prompt_logprobs is not None
            plain.check(made, layers=(1,))


def test_steps_that_run_ahead_of_their_tokens_are_right(tmp_path: Path, plain: Plain, running_ahead: None) -> None:
    with start(tmp_path / "v2", ALL, CHUNKED) as engine:
        assert engine.info()["settings"]["async_scheduling"] is True
        rows = answer(engine, prompts(6, BRIEF, samples=2))
    forced = sum(plain.check(made, layers=(0, 2, 4)) for made in rows.values())
    assert forced > 10


def test_a_step_ahead_survives_a_cache_that_is_too_small(
    tmp_path: Path, plain: Plain, running_ahead: None, capfd: pytest.CaptureFixture[str]
) -> None:
    long = Sampling(temperature=1.0, max_tokens=80, thinking_tokens=60)
    with start(tmp_path / "v2", ALL, CHUNKED, kv_cache_gb=SMALL) as engine:
        rows = answer(engine, prompts(6, long, words=CROSSING))
    assert "preempted" in capfd.readouterr().out
    for made in rows.values():
        plain.check(made, layers=(0, 2, 4))


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_scored_ids_and_their_candidates_are_right(
    tmp_path: Path, plain: Plain, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Rows of 25 to 97 ids, each scored from its fifth on, with none to 6 candidates a token."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1" if kind == "v2" else "0")
    rng, asked = np.random.default_rng(3), []
    for prompt, length in zip(prompts(4, SURE), (20, 44, 68, 92), strict=True):
        counts = rng.integers(0, 7, length)
        ids = [rng.choice(2048, count, replace=False).tolist() for count in counts]
        known = {"prompt_ids": [5, 6, 7, 8, 9], "completion_ids": rng.integers(0, 2048, length).tolist()}
        known |= {"candidate_ids": [one for few in ids for one in few], "candidate_counts": counts.tolist()}
        texts = dict.fromkeys(("prompt", "completion", "turn", "tools")) | {"mask": (), "scored": ()}
        asked.append(prompt | {"transcript": known | texts, "form": "text"})
    with start(tmp_path / kind, {"top_k": 5}, CHUNKED if kind == "v2" else {}, named=True) as engine:
        assert engine.info()["settings"]["model_runner"] == kind
        rows = answer(engine, asked)
    for prompt in asked:
        made, known = rows[prompt["id"]], prompt["transcript"]
        plain.check(made)
        assert made.candidates is not None
        assert made.candidates.ids_M.tolist() == known["candidate_ids"]
        ids = torch.tensor([known["prompt_ids"] + known["completion_ids"]])
        with torch.inference_mode():
            logprobs = torch.log_softmax(plain.model(ids).logits[0, 4:-1].double(), -1)
        at = np.repeat(np.arange(len(logprobs)), known["candidate_counts"])
        expected = logprobs[at, known["candidate_ids"]].numpy()
        np.testing.assert_allclose(made.candidates.logprobs_M.astype(np.float64), expected, atol=0.01)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_samples_share_the_prefill_of_their_prompt(
    tmp_path: Path, plain: Plain, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1" if kind == "v2" else "0")
    settings = {"enable_prefix_caching": True} | (CHUNKED if kind == "v2" else {})
    with start(tmp_path / kind, {"top_k": 5}, settings) as engine:
        assert engine.info()["settings"]["model_runner"] == kind
        rows = answer(engine, prompts(2, BRIEF, samples=4)) | answer(engine, prompts(4, BRIEF, samples=1))
        cached = engine.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching
    assert cached
    for made in rows.values():
        plain.check(made)


def test_experts_and_attention_of_a_mixture_are_right(tmp_path: Path) -> None:
    model = tiny_mixture(tmp_path / "model")
    inside = {"experts": True, "attention": {"layers": [1, 3], "share": 1.0, "max_tokens": 300}}
    with start(tmp_path / "v2", {"top_k": 5} | inside, CHUNKED, model=str(tmp_path / "model")) as engine:
        assert engine.info()["settings"]["model_runner"] == "v2"
        rows = answer(engine, prompts(4, BRIEF))
    for made in rows.values():
        ids = np.concatenate([made.prompt_token_ids, made.completion_token_ids])[:-1].astype(np.int64)
        with torch.inference_mode():
            plain = model(torch.from_numpy(ids)[None], output_attentions=True, output_router_logits=True)
        assert made.attention is not None
        maps = torch.cat([plain.attentions[0], plain.attentions[2]])
        np.testing.assert_allclose(made.attention.maps_LHNN, maps.numpy(), atol=5e-4)  # float16 at 1
        assert made.experts is not None
        for block, logits in enumerate(plain.router_logits):
            weights, chosen = logits.float().softmax(-1).topk(2)
            weights = weights / weights.sum(-1, keepdim=True) if model.config.norm_topk_prob else weights
            three = logits.topk(3).values
            clear = (torch.minimum(three[:, 0] - three[:, 1], three[:, 1] - three[:, 2]) > 1e-3).numpy()  # no ties
            assert clear.mean() > 0.9
            assert np.array_equal(made.experts.ids_NLE[clear, block], chosen.numpy()[clear])
            np.testing.assert_allclose(made.experts.weights_NLE[:, block], weights.numpy(), atol=1e-3)


@pytest.mark.parametrize("keep", ["top_k", "sampled"])
def test_the_two_runners_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    made = {}
    for kind in ("0", "1"):
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", kind)
        with start(tmp_path / kind, {"top_k": 5, "positions": "all", "keep": keep}, {}) as engine:
            assert engine.info()["settings"]["model_runner"] == ("v2" if kind == "1" else "v1")
            made[kind] = answer(engine, prompts(4, SURE))
    for name, ours in made["1"].items():
        equal(ours, made["0"][name])


def test_the_first_runner_may_run_ahead_too(
    tmp_path: Path, plain: Plain, running_ahead: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where vLLM takes it on a GPU: for what the second one does not support."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with start(tmp_path / "v1", ALL, {}, kv_cache_gb=SMALL) as engine:
        settings = engine.info()["settings"]
        assert (settings["model_runner"], settings["async_scheduling"]) == ("v1", True)
        rows = answer(engine, prompts(6, BRIEF, samples=2))
    forced = sum(plain.check(made, layers=(0, 2, 4)) for made in rows.values())
    assert forced > 10
