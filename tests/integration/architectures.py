"""Tiny random models of many architectures, each put before an engine and compared with transformers' eager forward.

Run as a script (`architectures.py FOLDER DTYPE NAME...`), this file is the engines, one after another in one process.
For each it writes NAME.json: `refused`, the line its start ended with, or how far states and logits are off.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from random_teacher import train_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": None,
}
HEADS = {"head_dim": 32}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
CAPPED = HEADS | {"sliding_window": 32, "query_pre_attn_scalar": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}
GPT2 = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 2048, "vocab_size": 2048, "initializer_range": 0.1}
GEMMA3_TEXT = SIZES | CAPPED | {"model_type": "gemma3_text"}
VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.1}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_expand": 2}
COHERE2 = HEADS | {"logit_scale": 0.25, "sliding_window": 1024, "tie_word_embeddings": True}
# configuration class, and what is not as in SIZES
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama padded": ("LlamaConfig", {"vocab_size": 2112}),
    "llama yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2 moe": ("Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 64}),
    "qwen3": ("Qwen3Config", HEADS),
    "qwen3 moe": ("Qwen3MoeConfig", HEADS | EXPERTS | {"norm_topk_prob": True}),
    "gemma": ("GemmaConfig", HEADS | {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", CAPPED | {"attn_logit_softcapping": 5.0, "tie_word_embeddings": True}),
    "gemma3 text": ("Gemma3TextConfig", CAPPED | {"tie_word_embeddings": True}),
    "gemma3 multimodal": ("Gemma3Config", {"text_config": GEMMA3_TEXT, "vision_config": VISION}),
    "phi": ("PhiConfig", {"num_key_value_heads": 4}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
    "phimoe": ("PhimoeConfig", {"num_local_experts": 4}),
    "mistral": ("MistralConfig", HEADS | {"sliding_window": 32}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": None}),
    "granite": ("GraniteConfig", GRANITE),
    "granite moe": ("GraniteMoeConfig", GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite hybrid": (
        "GraniteMoeHybridConfig",
        GRANITE
        | MAMBA
        | {"num_local_experts": 0, "shared_intermediate_size": 128, "layer_types": ["mamba", "attention"] * 2},
    ),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 32}),
    "starcoder2": ("Starcoder2Config", {}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25, "tie_word_embeddings": True}),
    "cohere2": ("Cohere2Config", COHERE2),
    # vLLM sees one token more than transformers, and says that the models were trained so (commandr.py)
    "cohere2 past its window": ("Cohere2Config", COHERE2 | {"sliding_window": 32}),
    "stablelm": ("StableLmConfig", {}),
    "exaone4": ("Exaone4Config", {"sliding_window": 32, "sliding_window_pattern": 2}),
    "hyperclovax": ("HyperCLOVAXConfig", GRANITE),
    "glm4": ("Glm4Config", HEADS),
    "nemotron": ("NemotronConfig", {}),
    "smollm3": ("SmolLM3Config", {"pad_token_id": 0}),
    "gpt-oss": ("GptOssConfig", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "gpt2": ("GPT2Config", GPT2),
    "falcon": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "opt": ("OPTConfig", {"ffn_dim": 256, "word_embed_proj_dim": 128, "init_std": 0.1}),
    "olmo2 through transformers": ("Olmo2Config", {}),
    "cohere through transformers": ("CohereConfig", {"logit_scale": 0.25, "tie_word_embeddings": True}),
}
NO_SIZES = ("GPT2Config", "Gemma3Config")
LAYERS = [0, 1, 2, 3, 4]


def build(folder: Path, name: str) -> None:
    """Write model and tokenizer."""
    import torch
    import transformers

    config_class, extra = ARCHITECTURES[name]
    tokenizer = train_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {} if config_class in NO_SIZES else SIZES
    config = getattr(transformers, config_class)(**(sizes | ends | extra))
    kind = transformers.AutoModelForCausalLM
    if config_class == "Gemma3Config":
        kind = transformers.AutoModelForImageTextToText
        config.mm_tokens_per_image, config.image_token_index = 4, 2040
    torch.manual_seed(0)
    model = kind.from_config(config).float()
    with torch.no_grad():
        # one vector for all norms, and zeros for all biases, would leave what they do unseen
        for part, tensor in model.named_parameters():
            if tensor.ndim == 1 and ("norm" in part or "ln_" in part or part.endswith("bias")):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def engine_setup(folder: Path, name: str, dtype: str, layers: list[int]) -> dict[str, Any]:
    from factory.job.job import Job
    from factory.teachers.vllm import make_setup

    teacher = {"backend": "vllm", "model": str(folder / name), "dtype": dtype, "max_num_seqs": 4, "kv_cache_gb": 0.1}
    engine = {"model_impl": "transformers"} if name.endswith("through transformers") else {}
    signals = {"top_k": 20, "hidden_layers": layers, "final_norm": False}
    job = {"out": "out", "teacher": teacher | {"engine": engine}, "signals": signals}
    setup, _ = make_setup(Job.model_validate(job | {"tasks": [{"name": "adding", "count": 1}]}), {}, [], folder)
    return setup | {"replica": 0, "cores": []}


def examine(folder: Path, name: str, dtype: str) -> dict[str, Any]:
    """Start an engine, and what it keeps of a long text against transformers; or why it does not start."""
    import torch
    import transformers

    from factory.errors import FactoryError
    from factory.teachers.engine import probe
    from factory.teachers.engine.build import Unfit
    from factory.teachers.engine.engine import Engine

    build(folder / name, name)
    (folder / ".spool").mkdir(exist_ok=True)
    ids = [int(number) for number in np.random.default_rng(0).integers(10, 2000, 200)]
    # first: vLLM changes classes of transformers that it runs itself
    kind = transformers.AutoModelForImageTextToText if "multimodal" in name else transformers.AutoModelForCausalLM
    plain = kind.from_pretrained(folder / name, dtype=getattr(torch, dtype), attn_implementation="eager")
    with torch.inference_mode():
        output = plain(torch.tensor([ids]), output_hidden_states=True)
    try:
        engine = Engine(engine_setup(folder, name, dtype, LAYERS))
    except (Unfit, FactoryError) as error:
        return {"refused": str(error)}
    arrays = probe.score(engine.llm, engine._tell_worker, "all", ids)
    sums = engine.llm.llm_engine.collective_rpc(lambda worker: worker.factory_capture.states.sums)[0]
    logprobs_TV = output.logits[0, :-1].float().log_softmax(-1)
    own_T = logprobs_TV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    states = (arrays["bits_NLH"].astype(np.uint32) << 16).view(np.float32)
    # the last of transformers' is after the final norm
    errors = []
    for layer in LAYERS[:-1]:
        again = output.hidden_states[layer][0, :-1].float().numpy()
        errors.append(float(np.linalg.norm(states[:, layer] - again) / np.linalg.norm(again)))
    return {
        "class": engine.llm.llm_engine.model_config.architectures[0],
        "hands_on": sorted({str(value) for value in sums.values()}),
        "logprob_mean": float(np.abs(arrays["sampled_T"] - own_T).mean()),
        "logprob_max": float(np.abs(arrays["sampled_T"] - own_T).max()),
        "state_error": max(errors),
    }


def main() -> None:
    folder, dtype = Path(sys.argv[1]), sys.argv[2]
    for name in sys.argv[3:]:
        try:
            answer = examine(folder, name, dtype)
        except Exception as error:  # told, and the next one
            import traceback

            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {error}"}
        (folder / f"{name}.json").write_text(json.dumps(answer), encoding="utf-8")
        print("RESULT", name, json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
