"""Every kept number against a plain transformers forward over the same token ids."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integration_support import Dataset, engine_job, make_dataset
from random_teacher import SIZES, random_teacher

from factory.checks.verify import verify
from factory.load import load_rows

pytestmark = pytest.mark.engine
BUILTIN = ("scheduling", "photo_edits", "summarization", "travel_booking")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five tasks at once, short and long prompts, grammar on, temperature 1, more rows than fit a batch."""
    tasks = [{"name": name, "count": 6} for name in BUILTIN] + [{"name": "adding", "count": 24}]
    sampling = {"temperature": 1.0, "max_tokens": 400, "thinking_tokens": 40}
    return make_dataset(tmp_path_factory.mktemp("mixed"), engine_job(tasks=tasks, sampling=sampling))


@pytest.fixture(scope="module")
def reference(mixed: Dataset) -> Iterator[tuple[Any, Any]]:
    """The random teacher and its tokenizer in plain transformers, float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = random_teacher()
    with torch.inference_mode():
        yield AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def forward(reference: tuple[Any, Any], row: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probabilities [T, V] at the completion's tokens, and all hidden states [N, H] (embeddings first)."""
    model, _ = reference
    ids = row["prompt_token_ids"] + row["completion_token_ids"]
    output = model(torch.tensor([ids]), output_hidden_states=True)
    first = len(row["prompt_token_ids"]) - 1
    return torch.log_softmax(output.logits[0, first:-1], -1), [h[0, :-1] for h in output.hidden_states]


def topk_of(row: dict[str, Any], k: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(row["completion_token_ids"]), k)
    return np.array(row["topk_ids"]).reshape(shape), np.array(row["topk_logprobs"], np.float32).reshape(shape)


def test_the_run_mixed_prompt_lengths_answers_and_shards(mixed: Dataset) -> None:
    rows = mixed.rows()
    prompts = [len(row["prompt_token_ids"]) for row in rows]
    assert max(prompts) > 5 * min(prompts)
    assert len({len(row["completion_token_ids"]) for row in rows}) > 10
    assert len({row["task"] for row in rows}) == 5
    assert mixed.totals.committed_shards == 6


def test_every_planned_row_ended_as_exactly_one_outcome(mixed: Dataset) -> None:
    totals = mixed.totals
    assert totals.accepted + totals.rejected + totals.errors == totals.planned == 48
    assert totals.errors == 0
    assert len({row["id"] for row in mixed.rows() + mixed.rows("rejected")}) == 48


def test_token_ids_decode_to_the_text_of_every_row(mixed: Dataset, reference: tuple[Any, Any]) -> None:
    _, tokenizer = reference
    for row in mixed.rows() + mixed.rows("rejected"):
        assert tokenizer.decode(row["completion_token_ids"], skip_special_tokens=False) == row["text"]
    for row in mixed.rows():
        before, after = (
            row["completion_token_ids"][: row["answer_start"]],
            row["completion_token_ids"][row["answer_start"] :],
        )
        assert tokenizer.decode(before).removesuffix("</think>").strip("\n") == row["reasoning"]
        assert tokenizer.decode(after).removesuffix("<|im_end|>") == row["answer"] == row["completion"][0]["content"]


def test_prompts_are_the_messages_by_the_models_own_template(mixed: Dataset, reference: tuple[Any, Any]) -> None:
    _, tokenizer = reference
    for row in mixed.rows():
        expected = (
            tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) + "<think>\n"
        )
        assert tokenizer.decode(row["prompt_token_ids"], skip_special_tokens=False) == expected


def test_sampled_and_topk_logprobs_are_those_of_the_unmasked_distribution(
    mixed: Dataset, reference: tuple[Any, Any]
) -> None:
    masked = 0
    for row in mixed.rows():
        logprobs, _ = forward(reference, row)
        ids, values = topk_of(row, 20)
        sampled = logprobs.gather(1, torch.tensor(row["completion_token_ids"])[:, None])[:, 0].numpy()
        np.testing.assert_allclose(row["sampled_logprobs"], sampled, atol=1e-4)
        np.testing.assert_allclose(values, logprobs.gather(1, torch.tensor(ids)).numpy(), atol=4e-3)  # float16 near 8
        np.testing.assert_allclose(values[:, -1], logprobs.topk(20).values[:, -1].numpy(), atol=4e-3)
        assert (np.diff(values, axis=1) <= 0).all()
        # under the grammar of the answer, what was sampled is mostly not what the teacher itself would have said
        masked += int(
            (np.array(row["sampled_logprobs"])[row["answer_start"] :] < values[row["answer_start"] :, -1]).sum()
        )
    assert masked > 100


def test_tail_mass_and_entropy_are_exact(mixed: Dataset, reference: tuple[Any, Any]) -> None:
    for row in mixed.rows():
        logprobs, _ = forward(reference, row)
        probs = logprobs.double().exp()
        entropy = -(probs * logprobs.double()).sum(-1)
        ids, _ = topk_of(row, 20)
        tail = probs.scatter(1, torch.tensor(ids), 0.0).sum(-1).log()
        np.testing.assert_allclose(row["entropy"], entropy.numpy(), atol=1e-4)
        np.testing.assert_allclose(row["tail_logprobs"], tail.numpy(), atol=1e-4)


def test_hidden_states_match_for_prompt_and_completion(mixed: Dataset, reference: tuple[Any, Any]) -> None:
    states = mixed.states()
    assert mixed.manifest["signals"]["layers"] == [0, 2, 4]
    for row in mixed.rows():
        _, hidden = forward(reference, row)
        expected = torch.stack([hidden[layer] for layer in (0, 2, 4)], 1).numpy()
        assert states[row["id"]].shape == expected.shape
        norm = np.maximum(np.linalg.norm(expected, axis=-1), 1e-6)  # the padding token's embedding is zero
        error = np.linalg.norm(states[row["id"]] - expected, axis=-1) / norm
        assert error.max() < 0.004  # bfloat16 keeps 8 bits


def test_signals_stay_right_when_the_engine_preempts(tmp_path: Any, reference: tuple[Any, Any]) -> None:
    """With a cache for about three requests the engine evicts and computes again; nothing may shift or be lost."""
    teacher = {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 16}
    teacher |= {"max_model_len": 640, "kv_cache_gb": 0.005}
    sampling = {"temperature": 1.0, "max_tokens": 300, "thinking_tokens": 220}
    job = engine_job(
        teacher=teacher, sampling=sampling, signals={"top_k": 5, "hidden_layers": [1], "final_norm": False}
    )
    dataset = make_dataset(tmp_path, job)
    assert dataset.totals.accepted >= 20
    assert dataset.totals.errors == 0
    states = dataset.states()
    for row in dataset.rows():
        logprobs, hidden = forward(reference, row)
        sampled = logprobs.gather(1, torch.tensor(row["completion_token_ids"])[:, None])[:, 0].numpy()
        np.testing.assert_allclose(row["sampled_logprobs"], sampled, atol=1e-4)
        error = np.abs(states[row["id"]][:, 0] - hidden[1].numpy()).max()
        assert error < 0.02 * np.abs(hidden[1].numpy()).max()
    assert "preempted" in (dataset.out / "engine.log").read_text(errors="replace")


def test_the_final_norm_can_be_left_out(tmp_path: Any, reference: tuple[Any, Any]) -> None:
    """The last layer before its norm is what the norm turns into transformers' last hidden state."""
    model, _ = reference
    job = engine_job(
        signals={"top_k": 0, "hidden_layers": [-1], "final_norm": False}, tasks=[{"name": "adding", "count": 4}]
    )
    dataset = make_dataset(tmp_path, job)
    assert "topk_ids" not in dataset.rows()[0]
    for row in dataset.rows():
        _, hidden = forward(reference, row)
        raw = torch.tensor(dataset.states()[row["id"]][:, 0])
        assert (model.model.norm(raw) - hidden[-1]).abs().max() < 0.05
        assert (raw - hidden[-1]).abs().max() > 0.5


INSIDE = {"experts": True, "attention": {"layers": [1, -1], "share": 1.0, "max_tokens": 230}}
ARCHITECTURES = {
    "llama": ("LlamaConfig", {"head_dim": 32}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "olmo2": ("Olmo2Config", {}),  # vLLM runs it through transformers' own code
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_signals_are_right_for_models_built_otherwise(name: str, tmp_path: Path) -> None:
    model = tiny_model(name, tmp_path / "model")
    job = engine_job(
        teacher={"model": str(tmp_path / "model"), "dtype": "float32"},
        signals={"top_k": 5, "hidden_layers": [0, 1, -1]} | (INSIDE if name.endswith("moe") else {}),
        tasks=[{"name": "adding", "count": 6}],
    )
    dataset = make_dataset(tmp_path, job)
    assert dataset.totals.accepted > 2
    states = dataset.states()
    for row in dataset.rows():
        with torch.inference_mode():
            logprobs, hidden = forward((model, None), row)
        sampled = logprobs.gather(1, torch.tensor(row["completion_token_ids"])[:, None])[:, 0].numpy()
        np.testing.assert_allclose(row["sampled_logprobs"], sampled, atol=1e-4)
        expected = torch.stack([hidden[layer] for layer in (0, 1, 3)], 1).numpy()
        norm = np.maximum(np.linalg.norm(expected, axis=-1), 1e-6)  # the padding token's embedding is zero
        error = np.linalg.norm(states[row["id"]] - expected, axis=-1) / norm
        assert error.max() < 0.004
    if name.endswith("moe"):
        require_right_experts(model, dataset)
        require_right_attention(model, dataset)


def require_right_attention(model: Any, dataset: Dataset) -> None:
    """The maps of two blocks, of the rows that are not too long, against a plain forward."""
    model.set_attn_implementation("eager")
    rows = list(load_rows(dataset.out, streaming=True, join_attention=True))
    assert any(row.attention is not None for row in rows)
    for row in (row for row in rows if row.attention is not None):
        ids = np.concatenate([row.prompt_token_ids, row.completion_token_ids])[:-1].astype(np.int64)
        with torch.inference_mode():
            maps = model(torch.from_numpy(ids)[None], output_attentions=True).attentions
        assert row.attention_layers == (1, 3)
        np.testing.assert_allclose(row.attention, torch.cat([maps[0], maps[2]]).numpy(), atol=5e-4)  # float16 at 1


def require_right_experts(model: Any, dataset: Dataset) -> None:
    """Each token's experts and weights in every block, against the router logits of a plain forward."""
    assert list(verify(dataset.out)) == []
    for row in load_rows(dataset.out, streaming=True, join_experts=True):
        ids = np.concatenate([row.prompt_token_ids, row.completion_token_ids])[:-1].astype(np.int64)
        with torch.inference_mode():
            router_logits = model(torch.from_numpy(ids)[None], output_router_logits=True).router_logits
        assert row.expert_layers == (1, 2, 3)
        for at, logits in enumerate(router_logits):
            weights, chosen = logits.float().softmax(-1).topk(2)
            if model.config.norm_topk_prob:
                weights /= weights.sum(-1, keepdim=True)
            assert row.expert_ids is not None
            order = np.argsort(-row.expert_weights[:, at], axis=1)
            kept = np.take_along_axis(row.expert_weights[:, at], order, 1)
            clear = (
                logits.topk(3).values[:, 1] - logits.topk(3).values[:, 2]
            ).numpy() > 1e-4  # no tie for the last place
            assert np.array_equal(np.take_along_axis(row.expert_ids[:, at], order, 1)[clear], chosen.numpy()[clear])
            np.testing.assert_allclose(kept, weights.numpy(), atol=1e-3)
            assert clear.mean() > 0.95


def tiny_model(name: str, folder: Path) -> Any:
    """A random model of three layers with the random teacher's tokenizer, written to `folder`."""
    import shutil

    import transformers

    config_class, extra = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(
        vocab_size=SIZES["vocab_size"],
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
        **extra,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    model.save_pretrained(folder)
    for path in Path(random_teacher()).iterdir():
        if path.name.startswith(("token", "chat")):
            shutil.copy(path, folder)
    return model
