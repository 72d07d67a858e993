"""Models, before any engine: what config.json says, and jobs that do not fit it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.errors import TeacherError
from factory.job.job import Job
from factory.job.teacher import TeacherConfig
from factory.signals import SignalSpec
from factory.teachers.models import locate_model, read_end_ids, read_shape, require_window, resolve_signals, shape_of

MakeJob = Callable[..., Job]
CONFIG: dict[str, Any] = {
    "vocab_size": 1000,
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def vllm_job(make_job: MakeJob, signals: dict[str, Any] | None = None, **teacher: Any) -> Job:
    return make_job(teacher={"backend": "vllm", "model": "demo"} | teacher, signals=signals or {})


def test_the_shape_is_read_from_config_json(model: Path) -> None:
    shape = read_shape(str(model), TeacherConfig())
    assert (shape.vocab_size, shape.layers, shape.hidden_size, shape.window) == (1000, 6, 64, 2048)
    assert shape.kv_values_per_token == 2 * 2 * 16 * 6


@pytest.mark.parametrize(
    ("config", "generation", "overrides", "ids"),
    [
        ({}, None, {}, []),
        ({"eos_token_id": 5}, {"eos_token_id": [1, 106]}, {}, [1, 5, 106]),
        ({"eos_token_id": [3], "text_config": {"eos_token_id": 4}}, None, {}, [3, 4]),
        ({"eos_token_id": 5}, None, {"eos_token_id": [6, 7]}, [6, 7]),
        # what is no id is none, and no class's default stands in for it: Llama's 2 is any word here
        ({"eos_token_id": None, "model_type": "llama"}, {"eos_token_id": "</s>"}, {}, []),
        ({"eos_token_id": [True, 8.0, 9], "text_config": []}, ["no", "table"], {}, [9]),
    ],
)
def test_the_ends_are_those_that_the_files_and_the_job_name(
    config: dict[str, Any], generation: Any, overrides: dict[str, Any], ids: list[int], model: Path
) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | config))
    if generation is not None:
        (model / "generation_config.json").write_text(json.dumps(generation))
    assert read_end_ids(str(model), TeacherConfig(engine={"hf_overrides": overrides})) == ids


def test_the_text_part_of_a_model_with_several_is_what_counts() -> None:
    several = {"model_type": "vision", "text_config": CONFIG | {"hidden_size": 128}, "vocab_size": 7}
    assert shape_of("m", several) == shape_of("m", CONFIG | {"hidden_size": 128})


def test_heads_of_their_own_size_and_heads_that_share_nothing_are_counted() -> None:
    assert shape_of("m", CONFIG | {"head_dim": 100}).kv_values_per_token == 2 * 2 * 100 * 6
    alone = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    assert shape_of("m", alone).kv_values_per_token == 2 * 4 * 16 * 6


@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads"])
def test_a_config_without_a_number_we_need_names_it(key: str) -> None:
    config = {name: value for name, value in CONFIG.items() if name != key}
    with pytest.raises(TeacherError, match=rf"teacher\.model 'm': config\.json has no '{key}'"):
        shape_of("m", config)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"text_config": 3}', json.dumps(CONFIG | {"hidden_size": None})])
def test_a_config_of_another_kind_is_refused_in_one_line(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(TeacherError, match=r"teacher\.model '.*': config\.json ") as told:
        read_shape(str(model), TeacherConfig())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b""])
def test_a_config_that_is_not_json_is_refused_in_one_line(model: Path, data: bytes) -> None:
    (model / "config.json").write_bytes(data)
    with pytest.raises(TeacherError, match=r"its config\.json cannot be read: ") as told:
        read_shape(str(model), TeacherConfig())
    assert "\n" not in str(told.value)


def test_a_local_folder_is_a_model_by_its_config(model: Path, make_job: MakeJob) -> None:
    assert locate_model(vllm_job(make_job, model=str(model)).teacher) == str(model)
    (model / "empty").mkdir()
    with pytest.raises(TeacherError, match=r"no config\.json in this folder; is it a model\?"):
        locate_model(vllm_job(make_job, model=str(model / "empty")).teacher)


@pytest.mark.parametrize("name", ["/nope", "./nope", "~/nope/none", "nonsense", "a/b/c", "../up"])
def test_what_looks_local_and_is_not_there_is_never_sought_on_the_hub(name: str, make_job: MakeJob) -> None:
    with pytest.raises(TeacherError, match=r"no such model folder \(allowed: a local folder, a hub id such as"):
        locate_model(vllm_job(make_job, model=name).teacher)


def test_a_file_is_no_model(model: Path, make_job: MakeJob) -> None:
    with pytest.raises(TeacherError, match="no such model folder"):
        locate_model(vllm_job(make_job, model=str(model / "config.json")).teacher)


def test_a_hub_id_stays_as_it_is_and_cannot_be_read_without_the_hub(make_job: MakeJob) -> None:
    name = locate_model(vllm_job(make_job, model="no-such-org/no-such-model").teacher)
    assert name == "no-such-org/no-such-model"
    with pytest.raises(TeacherError, match="not in the hub cache, and the hub cannot be reached; download it first"):
        read_shape(name, TeacherConfig())


@pytest.mark.parametrize(
    ("asked", "resolved"), [([], ()), ([0, 6], (0, 6)), ([-1, -7], (6, 0)), ([3, -2, 1], (3, 5, 1))]
)
def test_layers_are_counted_from_the_embeddings_and_from_the_end(
    asked: list[int], resolved: tuple[int, ...], make_job: MakeJob
) -> None:
    job = vllm_job(make_job, {"top_k": 9, "hidden_layers": asked, "final_norm": False})
    assert resolve_signals(job, shape_of("m", CONFIG)) == SignalSpec(
        9, resolved, final_norm=False, rejected_measures=True
    )


@pytest.mark.parametrize(
    ("signals", "told"),
    [
        ({"top_k": 1001}, r"signals\.top_k 1001: more than the model's vocabulary of 1000"),
        (
            {"hidden_layers": [7]},
            r"signals\.hidden_layers \[7\]: the model has 6 layers \(allowed: 0 for the embeddings",
        ),
        ({"hidden_layers": [1, -8, 9]}, r"signals\.hidden_layers \[-8, 9\]"),
        ({"hidden_layers": [6, -1]}, r"signals\.hidden_layers \[6, -1\]: a layer is named twice"),
    ],
)
def test_signals_the_model_does_not_have_are_refused(signals: dict[str, Any], told: str, make_job: MakeJob) -> None:
    with pytest.raises(TeacherError, match=told):
        resolve_signals(vllm_job(make_job, signals), shape_of("m", CONFIG))


def test_the_whole_vocabulary_may_be_kept(make_job: MakeJob) -> None:
    assert resolve_signals(vllm_job(make_job, {"top_k": 1000}), shape_of("m", CONFIG)).top_k == 1000


def test_the_window_is_the_jobs_or_else_the_models(make_job: MakeJob) -> None:
    shape = shape_of("m", CONFIG)
    assert require_window(vllm_job(make_job, kv_cache_gb=1), shape) == 2048
    assert require_window(vllm_job(make_job, kv_cache_gb=1, max_model_len=512), shape) == 512
    boundless = shape_of("m", {key: value for key, value in CONFIG.items() if key != "max_position_embeddings"})
    assert require_window(vllm_job(make_job, kv_cache_gb=1), boundless) is None


def test_a_window_above_the_models_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(TeacherError, match=r"max_model_len 2049: the model's window is 2048; lower it"):
        require_window(vllm_job(make_job, max_model_len=2049), shape_of("m", CONFIG))


def test_a_cache_too_small_for_one_request_is_refused_and_the_exact_size_is_enough(make_job: MakeJob) -> None:
    shape = shape_of("m", CONFIG)
    exact = 2048 * shape.kv_values_per_token * 2 / 2**30
    assert require_window(vllm_job(make_job, kv_cache_gb=exact), shape) == 2048
    with pytest.raises(TeacherError, match=r"one request needs a key-value cache of 0\.00146 GiB"):
        require_window(vllm_job(make_job, kv_cache_gb=exact * 0.99), shape)
    assert require_window(vllm_job(make_job, kv_cache_gb=exact * 0.5, max_model_len=1024), shape) == 1024


def test_wider_numbers_need_a_larger_cache(make_job: MakeJob) -> None:
    shape = shape_of("m", CONFIG)
    exact = 2048 * shape.kv_values_per_token * 2 / 2**30
    with pytest.raises(TeacherError, match="key-value cache"):
        require_window(vllm_job(make_job, kv_cache_gb=exact, dtype="float32"), shape)
