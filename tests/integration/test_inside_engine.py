"""Attention maps and expert routing taken in vLLM's worker, against transformers' eager forward over the same ids.

Run as a script, this file is the engine: several tiny models one after another, more prompts than fit a batch, some
tokens generated, so that prompts and single tokens meet in one step.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.teachers.vllm import ENGINE_ENVIRONMENT

pytestmark = pytest.mark.engine
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
GLM4 = {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("Glm4MoeConfig", EXPERTS | GLM4 | {"routed_scaling_factor": 2.5}),  # grouped, with a bias
    "sinks": ("GptOssConfig", {"num_experts_per_tok": 2, "num_local_experts": 8}),
    "capped": ("Gemma2Config", {"sliding_window": 8, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 32}),
    "through_transformers": ("Olmo2Config", {"hidden_size": 128}),  # vLLM calls `Attention.forward` directly
}
BLOCKS = {"sigmoid": [2, 3], "sinks": [1, 2, 3]}  # those with experts
MAPPED = ("sigmoid", "capped", "through_transformers")  # sinks are refused


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with every model, and what the worker has kept of its requests."""
    folder = tmp_path_factory.mktemp("inside")
    for name, (config_class, extra) in ARCHITECTURES.items():
        build(folder / name, config_class, extra)
    root = Path(__file__).parents[2]
    environment = os.environ | ENGINE_ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with torch.inference_mode():
        yield folder


def build(folder: Path, config_class: str, extra: dict[str, Any]) -> None:
    """A random model whose gates and biases tell experts well apart."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**(SIZES | extra))
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("gate.weight", "router.weight", "e_score_correction_bias")):
                tensor.normal_(0, 0.5)
    model.save_pretrained(folder)


def requests_of(folder: Path, name: str) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Of each request: what the worker kept, transformers' output, and what its routers gave in each block."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32, attn_implementation="eager")
    routed: list[Any] = []
    for part, module in model.named_modules():
        if part.endswith(("mlp.gate", "mlp.router")):
            module.register_forward_hook(lambda _module, _inputs, output: routed.append(output))
    paths = sorted((folder / name).glob("*.npz"))
    assert len(paths) == 6
    for path in paths:
        kept = np.load(path)
        routed.clear()
        yield kept, model(torch.from_numpy(kept["ids_N"])[None], output_attentions=True), list(routed)


@pytest.mark.parametrize("name", MAPPED)
def test_maps_are_those_of_transformers(name: str, taken: Path) -> None:
    for kept, output, _ in requests_of(taken, name):
        expected_LHNN = torch.cat(output.attentions).numpy()
        assert kept["maps_LHNN"].shape == expected_LHNN.shape == (3, 4, *2 * (len(kept["ids_N"]),))
        np.testing.assert_allclose(kept["maps_LHNN"], expected_LHNN, atol=5e-4)  # float16 at 1


def test_attention_with_sinks_is_refused(taken: Path) -> None:
    refusal = (taken / "sinks" / "refusal.txt").read_text()
    assert refusal == "the attention of block 1 cannot be kept: its heads have attention sinks"


def experts_of(kept: Any, routed: list[Any], at: int) -> tuple[Any, Any, Any, Any]:
    """Ids and weights of one block, kept and expected, experts in ascending order."""
    _, weights, chosen = routed[at]
    expected = chosen.numpy().argsort(1)
    order = kept["expert_ids_NLE"][:, at].argsort(1)
    keys = ("expert_ids_NLE", "expert_weights_NLE")
    ids, kept_weights = (np.take_along_axis(kept[key][:, at], order, 1) for key in keys)
    return ids, kept_weights, *(np.take_along_axis(part.numpy(), expected, 1) for part in (chosen, weights))


@pytest.mark.parametrize("name", BLOCKS)
def test_experts_are_those_of_transformers(name: str, taken: Path) -> None:
    for kept, _, routed in requests_of(taken, name):
        assert kept["blocks"].tolist() == BLOCKS[name]
        for at in range(len(BLOCKS[name])):
            ids, _, expected, _ = experts_of(kept, routed, at)
            assert np.array_equal(ids, expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_weights_are_what_the_block_multiplies_with(name: str, taken: Path) -> None:
    for kept, _, routed in requests_of(taken, name):
        for at in range(len(BLOCKS[name])):
            _, weights, _, expected = experts_of(kept, routed, at)
            np.testing.assert_allclose(weights, expected, atol=1e-3)


def take(folder: Path) -> None:
    """In the engine's process: generate, keep every step's rows by absolute position, save them by request."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        async_scheduling=False,
        kv_cache_memory_bytes=2**26,
        max_num_seqs=4,
    )
    keeper = Keeper(llm.llm_engine.collective_rpc(lambda worker: worker.model_runner)[0], folder)
    lengths = np.random.default_rng(0)
    prompts = [lengths.integers(3, 512, length).tolist() for length in (5, 40, 17, 3, 60, 9)]
    params = SamplingParams(temperature=1.0, max_tokens=25, ignore_eos=True, detokenize=False, seed=1)
    for number, output in enumerate(llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)):
        keeper.save(number, [*output.prompt_token_ids, *output.outputs[0].token_ids][:-1])


class Keeper:
    """What `factory.teachers.engine.capture` does with the two keepers, no more."""

    def __init__(self, runner: Any, folder: Path) -> None:
        from factory.teachers.engine.attention import AttentionKeeper, find_attention
        from factory.teachers.engine.routing import ExpertKeeper

        self.runner, self.folder = runner, folder
        self.keepers: list[Any] = []
        model = runner.get_model()
        try:
            self.keepers.append(AttentionKeeper(model, list(find_attention(model)), 4096, "cpu"))
        except ValueError as error:
            (folder / "refusal.txt").write_text(str(error))
        if folder.name in BLOCKS:
            self.keepers.append(ExpertKeeper(model))
        self.inner, runner.execute_model = runner.execute_model, self.step

    def step(self, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        from factory.teachers.engine.attention import AttentionKeeper
        from factory.teachers.engine.pages import StepRows

        result = self.inner(scheduled, *args, **kwargs)
        if scheduled.total_num_scheduled_tokens:
            names = self.runner.input_batch.req_ids
            counts = [scheduled.num_scheduled_tokens[name] for name in names]
            first = self.runner.input_batch.num_computed_tokens_cpu[: len(names)]
            slot_N = np.repeat([int(name.partition("-")[0]) for name in names], counts)
            place_N = np.concatenate([np.arange(a, a + count) for a, count in zip(first, counts, strict=True)])
            request_N = np.repeat(np.arange(len(names)), counts)
            rows = StepRows(np.arange(len(slot_N)), request_N, slot_N, place_N)
            for keeper in self.keepers:
                attends = (np.ones(len(names), np.bool_),) if isinstance(keeper, AttentionKeeper) else ()
                keeper.keep(rows, *attends)
        return result

    def save(self, number: int, ids: list[int]) -> None:
        arrays: dict[str, Any] = {"ids_N": np.array(ids)}
        for keeper in self.keepers:
            arrays |= keeper.take(number, len(ids))
        np.savez(self.folder / f"{number}.npz", **arrays)


if __name__ == "__main__":
    for model_name in ARCHITECTURES:
        take(Path(sys.argv[1]) / model_name)
