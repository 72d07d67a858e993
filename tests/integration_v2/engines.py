"""Engines in this very process, on either of vLLM's model runners, and a plain forward to hold them against."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import numpy as np
import torch
from random_teacher import random_teacher
from transformers import AutoModelForCausalLM

from factory.job.job import Job
from factory.records import Generation, Sampling
from factory.teachers.engine.engine import Engine
from factory.teachers.vllm import make_setup

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["total"],
    "additionalProperties": False,
}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def prompts(
    count: int, sampling: Sampling, samples: int = 1, task: str = "adding", words: Sequence[int] = (4, 29, 54, 79)
) -> list[dict[str, Any]]:
    """Prompts of very different lengths, each as often as it has samples; a word is about two tokens."""
    made = []
    for number in range(count):
        text = " ".join(WORDS[(number + place) % len(WORDS)] for place in range(words[number % len(words)]))
        for sample in range(samples):
            told = {"id": f"p{number}s{sample}", "attempt": 0, "task": task, "seed": 7 * number + sample, "keeps": True}
            messages = [{"role": "user", "content": f"Add {number}: {text}"}]
            told |= {
                "messages": messages,
                "sampling": asdict(sampling),
                "transcript": None,
                "form": "json",
                "tools": "",
            }
            made.append(told)
    return made


@contextmanager
def start(
    folder: Path, signals: dict[str, Any], settings: dict[str, Any], named: bool = False, **teacher: Any
) -> Iterator[Engine]:
    """An engine in this process; `settings` go to vLLM as they are, past what a job may say. `named`: rows to be scored
    name candidates."""
    known = {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 8, "max_model_len": 512}
    job = Job.model_validate(
        {
            "out": "out",
            "teacher": known | teacher,
            "signals": {"verify_rows": 0} | signals,
            "tasks": [{"name": "adding", "count": 1}],
        }
    )
    setup, _ = make_setup(job, {"adding": SCHEMA}, [], folder)
    setup["settings"] |= settings
    setup["signals"] |= {"candidates": named}
    # what a replica adds for itself
    setup |= {"replica": 0, "cores": []}
    setup["probes"] = [{"task": "adding", "messages": prompts(1, Sampling())[0]["messages"], "tools": ""}]
    (folder / ".spool").mkdir(parents=True)
    from vllm.distributed import cleanup_dist_env_and_memory

    # a mixture needs groups that a dense model before it has not made
    cleanup_dist_env_and_memory()
    engine = Engine(setup)
    try:
        yield engine
    finally:
        engine.llm.llm_engine.engine_core.shutdown()
        del engine.llm


def answer(engine: Engine, asked: list[dict[str, Any]]) -> dict[str, Generation]:
    """All generations, by prompt."""
    done = [made for prompt in asked if (made := engine.add(prompt)) is not None]
    while engine.requests:
        done += engine.step()
    assert len(done) == len(asked)
    return {made.prompt_id: made for made in done}


def tiny_mixture(folder: Path) -> Any:
    """A random mixture of experts with the random teacher's tokenizer, written to `folder`."""
    import transformers

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "moe_intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 4}
    ids = {"vocab_size": 2048, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    config = transformers.Qwen3MoeConfig(
        **sizes, **heads, **ids, num_experts_per_tok=2, max_position_embeddings=1024, initializer_range=0.1
    )
    torch.manual_seed(1)
    model = transformers.Qwen3MoeForCausalLM(config).to(torch.float32).eval()
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(random_teacher()).save_pretrained(folder)
    model.set_attn_implementation("eager")
    return model


class Plain:
    """The same model in plain transformers, float32."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def check(self, made: Generation, layers: tuple[int, ...] = (), norm_at: int | None = 4) -> int:
        """Hold every kept number of a row against it; how many tokens the grammar forced."""
        assert made.failure is None, made.failure
        ids = np.concatenate([made.prompt_token_ids, made.completion_token_ids])
        hooked: list[torch.Tensor] = []
        handle = self.model.model.layers[-1].register_forward_hook(lambda _, __, out: hooked.append(out))
        with torch.inference_mode():
            output = self.model(torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True)
        handle.remove()
        logprobs_NV = torch.log_softmax(output.logits[0, :-1].double(), -1)
        first = len(made.prompt_token_ids) - 1
        forced = 0
        if made.logprobs is not None:
            forced = self._check_logprobs(made.logprobs, logprobs_NV[first:], made.completion_token_ids)
        if made.prompt_logprobs is not None:
            self._check_logprobs(made.prompt_logprobs, logprobs_NV[:first], made.prompt_token_ids[1:])
        if layers:
            states = [hidden[0, :-1] for hidden in output.hidden_states]
            if norm_at is None:
                states[-1] = (hooked[0][0] if isinstance(hooked[0], tuple) else hooked[0])[0, :-1]
            expected = torch.stack([states[layer] for layer in layers], 1).numpy()
            assert made.hidden_states is not None
            kept = (made.hidden_states.bits_NLH.astype(np.uint32) << 16).view(np.float32)
            assert kept.shape == expected.shape
            norm = np.maximum(np.linalg.norm(expected, axis=-1), 1e-6)
            assert (np.linalg.norm(kept - expected, axis=-1) / norm).max() < 0.004  # bfloat16 keeps 8 bits
        return forced

    def _check_logprobs(self, kept: Any, logprobs_TV: torch.Tensor, ids_T: np.ndarray) -> int:
        assert len(kept.sampled_T) == len(logprobs_TV) == len(ids_T)
        topk = torch.from_numpy(kept.topk_ids_TK.astype(np.int64))
        sampled = logprobs_TV.gather(1, torch.from_numpy(ids_T.astype(np.int64))[:, None])[:, 0].numpy()
        np.testing.assert_allclose(kept.sampled_T, sampled, atol=1e-4)
        np.testing.assert_allclose(kept.topk_TK, logprobs_TV.gather(1, topk).numpy(), atol=4e-3)
        best = logprobs_TV.topk(topk.shape[1]).values
        np.testing.assert_allclose(kept.topk_TK[:, -1], best[:, -1].numpy(), atol=4e-3)
        probs = logprobs_TV.exp()
        np.testing.assert_allclose(kept.entropy_T, -(probs * logprobs_TV).sum(-1).numpy(), atol=1e-4)
        np.testing.assert_allclose(kept.tail_T, probs.scatter(1, topk, 0.0).sum(-1).log().numpy(), atol=1e-4)
        return int((kept.sampled_T < kept.topk_TK[:, -1]).sum())
