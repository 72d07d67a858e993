"""The demo teacher as it is shipped: small, whole, and what its card says."""

import json
from pathlib import Path
from typing import Any

import pytest

from factory.dataset.shards import sha256_digest
from factory.demo_teacher.card import count_parameters
from factory.demo_teacher.recipe import MODEL, TASKS, Recipe
from factory.demo_teacher.tokenizer import CHAT_TEMPLATE
from factory.errors import TeacherError
from factory.teachers import demo
from factory.teachers.demo import FOLDER, demo_teacher


def read_json(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_an_installation_without_the_model_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "model")
    with pytest.raises(TeacherError, match=r"^teacher\.model 'demo': .*/model has no config\.json; ") as told:
        demo_teacher()
    assert "\n" not in str(told.value)


def test_the_demo_teacher_is_the_folder_inside_the_package() -> None:
    assert demo_teacher() == str(FOLDER)
    assert sorted(path.name for path in FOLDER.iterdir()) == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "pass_rates.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.jsonl",
    ]


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 20_000_000
    assert 3_000_000 <= count_parameters(FOLDER / "model.safetensors") <= 10_000_000


def test_its_weights_are_bfloat16_and_its_embeddings_are_tied() -> None:
    with (FOLDER / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
    assert "lm_head.weight" not in tensors
    assert read_json("config.json")["tie_word_embeddings"] is True


def test_its_sizes_and_its_template_are_those_of_the_recipe() -> None:
    config = read_json("config.json")
    assert {key: config[key] for key in MODEL} == MODEL
    assert config["dtype"] == "bfloat16"
    assert (FOLDER / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE


def test_nothing_in_it_tells_of_the_machine_it_was_made_on() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.iterdir() if path.suffix != ".safetensors"]
    assert not [text for text in texts if "/tmp/" in text or "/home/" in text or "/root/" in text or "/work/" in text]


def test_its_log_is_that_of_the_whole_recipe() -> None:
    log = [json.loads(line) for line in (FOLDER / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in log if "loss" in line]
    assert steps == list(range(10, Recipe().steps + 1, 10))
    assert "validation" in log[-1]


def test_its_pass_rates_were_measured_on_these_weights_and_cover_every_task_and_level() -> None:
    rates = read_json("pass_rates.json")
    assert rates["weights_sha256"] == sha256_digest(FOLDER / "model.safetensors")
    assert rates["settings"]["backend"] == "vllm"
    assert {(cell["task"], cell["level"]) for cell in rates["cells"]} == {
        (task, level) for task in TASKS for level in ("easy", "medium", "hard")
    }


def test_its_card_names_the_licence_and_shows_what_was_measured() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "Apache-2.0" in card
    for cell in read_json("pass_rates.json")["cells"]:
        low, high = cell["check_passes_interval"]
        assert f"{cell['check_passes_percent']:g} ({low:g} to {high:g})" in card
