"""The second opinion is that of the model: attention computed as it asks, and the job's overrides in its config."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from factory.signals import Candidates  # noqa: E402
from factory.teachers.plain_forward import PlainModel, choose_attention, load_config, override  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.5,
}
CAPPED = [
    ("Gemma2Config", {}),
    ("VaultGemmaConfig", {}),
    ("Gemma3TextConfig", {"attn_logit_softcapping": 20.0}),
    ("Gemma3Config", {"text_config": {"attn_logit_softcapping": 20.0}}),
]
UNCAPPED = [
    ("LlamaConfig", {}),
    ("Gemma3TextConfig", {}),
    ("Gemma2Config", {"attn_logit_softcapping": None}),
    ("Qwen3Config", {}),
    ("FalconConfig", {"alibi": True}),
]


@pytest.mark.parametrize(("config_class", "extra"), CAPPED)
def test_a_cap_on_attention_is_not_left_to_sdpa(config_class: str, extra: dict[str, Any]) -> None:
    assert choose_attention(getattr(transformers, config_class)(**extra)) == "eager"


@pytest.mark.parametrize(("config_class", "extra"), UNCAPPED)
def test_any_other_attention_is_transformers_own_choice(config_class: str, extra: dict[str, Any]) -> None:
    assert choose_attention(getattr(transformers, config_class)(**extra)) is None


def test_sdpa_is_known_to_leave_out_nothing_else() -> None:
    """Every model of transformers: what its own eager attention takes beyond SDPA is a cap, or it refuses SDPA."""
    import ast
    import re

    root = Path(transformers.__file__).parent / "models"
    shared = {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "kwargs", "is_causal"}
    # a window that is in the mask as well
    shared |= {"position_bias", "sliding_window"}
    beyond: dict[str, set[str]] = {}
    for path in sorted(root.glob("*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        if "def eager_attention_forward" not in text or re.search(r"_supports_sdpa = False", text):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name == "eager_attention_forward":
                takes = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]} - shared
                takes |= {"sinks"} if "sinks" in ast.unparse(node) else set()
                beyond |= {path.parent.name: takes} if takes else {}
    assert {"gemma2", "vaultgemma"} <= beyond.keys()
    assert set.union(*beyond.values()) == {"softcap"}


def request(folder: Path, **extra: Any) -> dict[str, Any]:
    base = {"model": str(folder), "revision": None, "trust_remote_code": False, "dtype": "float32", "longest": 32}
    return base | {"layers": [1, 2], "final_norm": True} | extra


def test_a_capped_models_forward_has_the_cap(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(**SIZES, attn_logit_softcapping=1.0, query_pre_attn_scalar=16)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    ids = np.arange(3, 27)
    with torch.inference_mode():
        logits, states = PlainModel(request(tmp_path)).recompute_logits(ids)
        load = transformers.AutoModelForCausalLM.from_pretrained
        eager, sdpa = (
            load(tmp_path, attn_implementation=name)(torch.tensor(ids)[None], output_hidden_states=True)
            for name in ("eager", "sdpa")
        )
    assert states is not None
    assert torch.allclose(logits, eager.logits[0, :-1], atol=1e-4)
    assert np.allclose(states[:, 1], eager.hidden_states[2][0, :-1].numpy(), atol=1e-4)
    assert not torch.allclose(logits, sdpa.logits[0, :-1], atol=1e-2)


def test_overrides_change_the_forward_as_they_change_the_engines(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, max_position_embeddings=64)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    with torch.inference_mode():
        plain, scaled = (
            PlainModel(request(tmp_path, overrides=overrides)).recompute_logits(np.arange(3, 27))[0]
            for overrides in ({}, {"rope_parameters": rope, "max_position_embeddings": 256})
        )
    assert not torch.allclose(plain, scaled, atol=1e-3)
    names = {"revision": None, "trust_remote_code": False}
    assert load_config(str(tmp_path), names, {"max_position_embeddings": 256}).max_position_embeddings == 256


def test_an_override_of_a_part_goes_into_that_part() -> None:
    config = transformers.Gemma3Config()
    override(config, {"text_config": {"attn_logit_softcapping": 9.0}})
    assert config.get_text_config().attn_logit_softcapping == 9.0


def test_candidates_are_looked_up_at_their_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks too, of which some hold no candidate at all."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    ids, counts = np.arange(3, 27), np.array([0, 2, 0, 0, 0, 0, 3, 1])
    named = Candidates(counts, np.array([5, 127, 0, 9, 8, 7], np.int32), np.zeros(6, np.float16))
    monkeypatch.setattr("factory.teachers.plain_forward.CHUNK_VALUES", 3 * SIZES["vocab_size"])
    with torch.inference_mode():
        _, _, found = PlainModel(request(tmp_path)).recompute(ids, len(ids) - 8, None, candidates=named)
        logits = model.eval()(torch.tensor(ids)[None]).logits[0, -9:-1]
    expected = torch.log_softmax(logits, -1)[np.repeat(np.arange(8), counts), named.ids_M]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
