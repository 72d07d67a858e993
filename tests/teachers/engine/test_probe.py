"""The start-up probe without an engine: which ids it takes, what it expects, and what it says of a difference."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from factory.signals import SignalSpec  # noqa: E402
from factory.teachers.engine.build import Unfit  # noqa: E402
from factory.teachers.engine.probe import (  # noqa: E402
    TOKENS,
    Expected,
    _name_some,
    choose_ids,
    compare,
    expect,
    require_agreement,
)

TEACHER: dict[str, Any] = {"revision": None, "trust_remote_code": False, "quantization": None, "engine": {}}
SPEC = SignalSpec(top_k=4, layers=(1, 2))
IDS = list(range(3, 40))


class Tokenizer:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def encode(self, text: str) -> list[int]:
        return self.ids


def refuse() -> list[int]:
    raise ValueError("no such role")


@pytest.mark.parametrize("window", [None, 2048, 20, 2])
def test_ids_are_the_beginning_of_a_prompt_that_fits(window: int | None) -> None:
    ids = choose_ids(Tokenizer([]), lambda: list(range(500)), 1000, window)
    assert ids == list(range(min(TOKENS, (window or 1000) - 1)))


def test_without_a_prompt_a_text_is_taken_and_else_any_ids_of_the_model() -> None:
    assert choose_ids(Tokenizer(IDS), refuse, 1000, None) == IDS
    # another tokenizer's ids are none of the model's
    ids = choose_ids(Tokenizer([5000] * 90), refuse, 1000, None)
    assert len(ids) == TOKENS
    assert 0 <= min(ids) <= max(ids) < 1000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def expected_of(model: Path, **teacher: Any) -> Expected:
    return expect(TEACHER | {"model": str(model), "dtype": "float32"} | teacher, SPEC, IDS)


def kept_of(expected: Expected) -> dict[str, Any]:
    """What an engine that agrees would keep."""
    assert expected.logits_NV is not None
    assert expected.states_NLH is not None
    logprobs_NV = expected.logits_NV.log_softmax(-1)
    top = logprobs_NV.topk(4)
    own = logprobs_NV.gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    tail = logprobs_NV.exp().scatter(1, top.indices, 0.0).sum(-1).log()
    entropy = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    arrays = {"topk_ids_TK": top.indices, "topk_TK": top.values, "sampled_T": own, "tail_T": tail, "entropy_T": entropy}
    bits = (expected.states_NLH.view(np.uint32) >> 16).astype(np.uint16)
    return {name: value.numpy() for name, value in arrays.items()} | {"bits_NLH": bits}


def test_an_engine_that_agrees_goes_through(model: Path) -> None:
    expected = expected_of(model)
    logprobs, layers = compare(expected, SPEC, kept_of(expected))
    require_agreement("m", logprobs, layers, "float32")
    assert layers.keys() == {"1", "2"}


def test_a_layer_that_is_off_is_named_and_the_others_are_not(model: Path) -> None:
    expected = expected_of(model)
    kept = kept_of(expected)
    kept["bits_NLH"][:, 1] = kept["bits_NLH"][:, 0]
    with pytest.raises(Unfit, match=r"hidden states of layer 2 are not .*no row.* leave \[2\] out of") as told:
        require_agreement("m", *compare(expected, SPEC, kept), "float32")
    assert "\n" not in str(told.value)


def test_of_a_mixture_in_16_bits_some_tokens_may_go_elsewhere_and_a_wrong_layer_is_still_found(model: Path) -> None:
    expected = expected_of(model)
    kept = kept_of(expected)
    kept["bits_NLH"][::3, 1] = 0
    with pytest.raises(Unfit, match="hidden states of layer 2"):
        require_agreement("m", *compare(expected, SPEC, kept), "bfloat16")
    require_agreement("m", *compare(expected, SPEC, kept, half=True), "bfloat16")
    kept["bits_NLH"][:, 1] = kept["bits_NLH"][:, 0]
    with pytest.raises(Unfit, match="hidden states of layer 2"):
        require_agreement("m", *compare(expected, SPEC, kept, half=True), "bfloat16")


def test_logits_that_are_off_are_told_before_any_layer(model: Path) -> None:
    expected = expected_of(model)
    kept = kept_of(expected)
    kept["bits_NLH"][:] = 0
    kept["sampled_T"] = np.roll(kept["sampled_T"], 1)
    with pytest.raises(Unfit, match=r"its logits in vLLM are not those of transformers \(logprob_max "):
        require_agreement("m", *compare(expected, SPEC, kept), "float32")


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        ({"quantization": "fp8"}, "the engine quantises the model (fp8)"),
        ({"model": "/nowhere"}, "transformers cannot read the model's configuration"),
    ],
)
def test_what_cannot_be_compared_says_why(model: Path, teacher: dict[str, Any], reason: str) -> None:
    base = TEACHER | {"model": str(model), "dtype": "float32"}
    expected = expect(base | teacher, SPEC, IDS)
    assert expected.reason.startswith(reason)
    assert expected.logits_NV is None


def test_weights_past_the_limit_are_not_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.teachers.engine.probe.MOST_GIB", 1e-6)
    assert "more than the 1e-06 that are compared" in expected_of(model).reason


def test_auto_is_what_the_engine_makes_of_it(model: Path, tmp_path: Path) -> None:
    # of float32 weights vLLM makes bfloat16 by itself
    assert expected_of(model, dtype="auto").dtype == "bfloat16"
    half = json.loads((model / "config.json").read_text()) | {"dtype": "float16"}
    for name in ("model.safetensors",):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(half))
    assert expected_of(tmp_path, dtype="auto").dtype == "float16"


def test_candidates_are_compared_where_a_job_keeps_them(model: Path) -> None:
    expected, keeps = expected_of(model), replace(SPEC, candidates=True)
    named = _name_some(keeps, IDS)
    assert named is not None
    assert len(named[1]) == len(IDS) - 1
    assert set(named[1]) == {1, 2, 3}
    assert _name_some(SPEC, IDS) is None
    assert expected.logits_NV is not None
    right = torch.log_softmax(expected.logits_NV, -1)[np.repeat(np.arange(len(named[1])), named[1]), named[0]].numpy()
    figures, _ = compare(expected, keeps, {"candidates_M": right})
    assert figures == {"candidate_mean": 0.0, "candidate_max": 0.0}
    # those of the token before: what a capture that is off by one would give
    figures, _ = compare(expected, keeps, {"candidates_M": np.roll(right, 1)})
    with pytest.raises(Unfit, match=r"its logits in vLLM are not those of transformers \(candidate_mean"):
        require_agreement("m", figures, {}, "float32")
