"""A compiled model: hooks hear nothing of it, and the hidden states that it hands out itself are the right ones."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integration_support import engine_job, make_dataset
from random_teacher import random_teacher
from transformers import AutoModelForCausalLM

from factory.errors import TeacherError

pytestmark = [pytest.mark.engine, pytest.mark.long]
COMPILED = {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 8, "engine": {"enforce_eager": False}}

HEARD = """
import sys
from vllm import LLM, SamplingParams

llm = LLM(sys.argv[1], dtype="float32", kv_cache_memory_bytes=2**26, max_num_seqs=2, max_model_len=256)
runner = llm.llm_engine.collective_rpc(lambda worker: worker.model_runner)[0]
heard = []
for block in runner.get_model().model.layers:
    block.register_forward_hook(lambda *_: heard.append(1))
llm.generate([{"prompt_token_ids": [5, 6, 7]}], SamplingParams(max_tokens=4, detokenize=False))
print("heard", len(heard))
"""


def test_hooks_hear_nothing_of_a_compiled_model(tmp_path: Path) -> None:

    script = tmp_path / "heard.py"
    script.write_text(HEARD)
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    environment.pop("TORCHDYNAMO_DISABLE", None)
    told = subprocess.run(
        [sys.executable, script, random_teacher()], env=environment, capture_output=True, text=True, timeout=600
    )
    assert "heard 0" in told.stdout, told.stdout[-2000:] + told.stderr[-2000:]


@pytest.mark.parametrize(("final_norm", "layers"), [(True, [0, 2, -1]), (False, [3, 1, 4])])
def test_a_compiled_model_hands_its_states_out(tmp_path: Path, final_norm: bool, layers: list[int]) -> None:
    signals = {"top_k": 5, "hidden_layers": layers, "final_norm": final_norm}
    tasks = [{"name": "adding", "count": 6}]
    dataset = make_dataset(tmp_path, engine_job(tasks=tasks, teacher=COMPILED, signals=signals))
    settings = dataset.manifest["teacher"]["details"]["settings"]
    assert (settings["eager"], settings["hidden_states"]) == (False, "the model's own")
    model = AutoModelForCausalLM.from_pretrained(random_teacher(), dtype=torch.float32)
    seen: list[Any] = []
    model.model.layers[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    states, rows = dataset.states(), dataset.rows()
    assert rows
    for row in rows:
        ids = row["prompt_token_ids"] + row["completion_token_ids"]
        with torch.inference_mode():
            hidden = list(model(torch.tensor([ids]), output_hidden_states=True).hidden_states)
        if not final_norm:
            hidden[-1] = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
        expected = torch.stack([hidden[layer].reshape(len(ids), -1)[:-1] for layer in layers], 1).numpy()
        kept = states[row["id"]]
        assert kept.shape == expected.shape
        norm = np.maximum(np.linalg.norm(expected, axis=-1), 1e-6)
        assert (np.linalg.norm(kept - expected, axis=-1) / norm).max() < 0.004  # bfloat16 keeps 8 bits


def test_layers_that_a_model_cannot_hand_out_are_refused_where_it_must_be_compiled(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(random_teacher())
    GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_layer=2, n_embd=64, n_head=2, n_positions=512)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    job = engine_job(
        teacher=COMPILED | {"model": str(folder)},
        tasks=[{"name": "adding", "count": 1}],
        signals={"hidden_layers": [1]},
    )
    with pytest.raises(TeacherError, match=r"enforce_eager = False: .* hands out no layers, so \[1\] need hooks"):
        make_dataset(tmp_path, job)
