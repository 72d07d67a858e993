"""Configurations that leave numbers to their class, name them otherwise, or have them changed by the job."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factory.errors import TeacherError
from factory.job.teacher import TeacherConfig
from factory.teachers.models import read_shape, shape_of

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 32768,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
# as on the hub: what is Gemma3TextConfig's default is left out
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "num_hidden_layers": 27},
}
GPT2 = {"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}
FALCON_7B = {"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32}
FALCON_7B |= {"multi_query": True, "new_decoder_architecture": False, "alibi": False, "vocab_size": 65024}


def test_what_a_multimodal_config_leaves_out_is_its_class_default() -> None:
    shape = shape_of("m", GEMMA3_4B)
    assert (shape.vocab_size, shape.layers, shape.hidden_size, shape.window) == (262208, 34, 2560, 131072)
    assert (shape.heads, shape.kv_values_per_token, shape.dtype) == (8, 2 * 4 * 256 * 34, "bfloat16")


def test_a_class_with_names_of_its_own_is_read_by_the_usual_ones() -> None:
    shape = shape_of("m", GPT2 | {"vocab_size": 50257})
    assert (shape.vocab_size, shape.layers, shape.hidden_size, shape.window, shape.heads) == (50257, 12, 768, 1024, 12)
    assert shape.kv_values_per_token == 2 * 768 * 12


def test_heads_that_all_share_one_key_are_counted_as_one() -> None:
    assert shape_of("m", FALCON_7B).kv_values_per_token == 2 * 64 * 32


def test_a_head_size_that_is_only_the_class_default_counts() -> None:
    # Qwen3's heads are of 128, whatever hidden size and number of heads are
    short = {name: value for name, value in LLAMA.items() if name != "head_dim"}
    assert shape_of("m", short | {"model_type": "qwen3"}).kv_values_per_token == 2 * 2 * 128 * 6
    assert shape_of("m", short).kv_values_per_token == 2 * 2 * 16 * 6


@pytest.mark.parametrize(
    ("overrides", "window", "usual"),
    [
        ({}, 32768, 32768),
        # vLLM takes YaRN's window as it is named, with the factor in it
        ({"rope_parameters": YARN}, 32768, 32768),
        ({"rope_parameters": YARN, "max_position_embeddings": 131072}, 131072, 131072),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, 65536, 65536),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 65536, 65536),
        ({"rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 4096}, 32768, 4096),
        ({"model_max_length": 65536}, 65536, 65536),
    ],
)
def test_the_window_is_what_vllm_makes_of_it(overrides: dict[str, Any], window: int, usual: int) -> None:
    shape = shape_of("m", LLAMA, overrides)
    assert (shape.window, shape.usual_window) == (window, usual)


def test_an_override_of_a_part_goes_into_that_part() -> None:
    assert shape_of("m", GEMMA3_4B, {"text_config": {"max_position_embeddings": 4096}}).window == 4096


def test_the_job_reads_its_model_with_what_it_overrides(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    engine = {"hf_overrides": {"rope_parameters": YARN, "max_position_embeddings": 131072}}
    assert read_shape(str(tmp_path), TeacherConfig()).window == 32768
    assert read_shape(str(tmp_path), TeacherConfig(engine=engine)).window == 131072


def test_layers_that_keep_no_keys_take_no_room_in_the_cache() -> None:
    kinds = ["linear_attention", "linear_attention", "full_attention"] * 2
    assert shape_of("m", LLAMA | {"layer_types": kinds}).kv_values_per_token == 2 * 2 * 16 * 2


def test_what_json_has_no_number_for_is_read_as_transformers_writes_it() -> None:
    limit = {"time_step_limit": [0.0, {"__float__": "Infinity"}]}
    hybrid = {name: value for name, value in LLAMA.items() if name != "head_dim"} | limit
    assert shape_of("m", hybrid | {"model_type": "granitemoehybrid"}).layers == 6


def test_a_value_that_its_class_refuses_is_told_in_one_line() -> None:
    with pytest.raises(TeacherError, match=r"config\.json is not that of a 'gpt2': ") as told:
        shape_of("m", GPT2 | {"n_layer": "many"})
    assert "\n" not in str(told.value)


WITHOUT = """
import sys
sys.modules["transformers"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "transformers" else found(name, *rest)
import json
from factory.errors import TeacherError
from factory.teachers.models import shape_of
for config in json.loads(sys.argv[1]):
    try:
        print(shape_of("m", config).layers)
    except TeacherError as error:
        print(error)
"""


def test_without_transformers_whole_files_are_read_and_others_say_what_is_missing() -> None:
    command = [sys.executable, "-c", WITHOUT, json.dumps([LLAMA, GPT2])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    whole, short = done.stdout.splitlines()
    assert whole == "6"
    assert short.startswith("teacher.model 'm': config.json has no 'vocab_size'; its class may know it, and trans")
