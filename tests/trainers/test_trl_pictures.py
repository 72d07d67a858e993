"""Exports with pictures through TRL's own collators and losses: SFT, DPO and KTO, two steps of a tiny model."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from export_support import export_to
from random_vlm import random_vlm
from test_trainers import arguments, load, losses
from transformers import AutoModelForImageTextToText, AutoProcessor

from factory.job.job import Job
from factory.runs.run import run
from factory.tasks.tasks import builtin_root

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]
TO: dict[str, dict[str, Any]] = {"trl-sft": {"rows": "messages"}, "dpo": {}, "kto": {}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, right and wrong answers over photos, and rows of another task that show none."""
    out = tmp_path_factory.mktemp("rows") / "photos"
    tasks = [{"name": "photo_edits_image", "count": 8}, {"name": "scheduling", "count": 4}]
    teacher = {"model": random_vlm(), "backend": "scripted", "scripted": {"wrong": 0.5}}
    job = {"out": "out", "teacher": teacher, "tasks": tasks, "samples": {"n": 4, "keep": "pair"}}
    run(Job.model_validate(job), builtin_root(), out)
    return out


@pytest.fixture
def processor() -> Any:
    return AutoProcessor.from_pretrained(random_vlm())


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The tiny model in float32, as CPUs train it."""
    AutoModelForImageTextToText.from_pretrained(random_vlm(), dtype="float32").save_pretrained(tmp_path / "model")
    AutoProcessor.from_pretrained(random_vlm()).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def said(batch: Any, processor: Any, name: str) -> list[str]:
    """What each row's loss is taken over, as text."""
    kept = batch["labels"] != -100 if name == "labels" else batch["completion_mask"] == 1
    return [processor.decode(ids[mask]) for ids, mask in zip(batch["input_ids"], kept, strict=True)]


def require_pictures(batch: Any, rows: list[Any], processor: Any, times: int = 1) -> None:
    """Every row's own pixels are in the batch, with places for them in its ids, and none where it shows none."""
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    wanted = [len(row["images"]) for row in rows] * times
    assert batch["pixel_values"].shape[0] == len(rows) * times
    found = (batch["input_ids"] == image).sum(dim=1).tolist()
    assert [number > 0 for number in found] == [number > 0 for number in wanted]
    alone = processor(images=rows[0]["images"], text="<image>", return_tensors="pt")["pixel_values"][0]
    assert (batch["pixel_values"][0][: len(alone)] == alone).all()


def test_sft_learns_reasoning_and_answer_beside_the_pictures(
    root: Path, model: str, tmp_path: Path, processor: Any
) -> None:
    from trl import SFTConfig, SFTTrainer

    export_to(root, tmp_path / "x", "trl-sft", student=model, rows="messages")
    rows = load(tmp_path / "x")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(tmp_path), completion_only_loss=True, max_length=None),
        train_dataset=rows,
        processing_class=processor,
    )
    pictured = [row for row in rows if row["images"]]
    blind = next(row for row in rows if not row["images"])
    for chosen in (pictured[:2], [pictured[0], blind]):
        batch = trainer.data_collator([dict(row) for row in chosen])
        require_pictures(batch, chosen, processor)
        for row, text in zip(chosen, said(batch, processor, "labels"), strict=True):
            assert row["completion"][0]["content"] in text
            assert row["completion"][0]["content"].startswith("<think>")
    assert losses(trainer)[0] > 0


def test_dpo_compares_two_answers_to_one_picture(root: Path, model: str, tmp_path: Path, processor: Any) -> None:
    from trl import DPOConfig, DPOTrainer

    export_to(root, tmp_path / "x", "dpo", student=model)
    rows = load(tmp_path / "x")
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**arguments(tmp_path), max_length=None),
        train_dataset=rows,
        processing_class=processor,
    )
    chosen = [row for row in rows if row["images"]][:2]
    batch = trainer.data_collator([dict(row) for row in chosen])
    require_pictures(batch, chosen, processor, times=2)
    texts = [row[side][0]["content"] for side in ("chosen", "rejected") for row in chosen]
    for wanted, text in zip(texts, said(batch, processor, "completion_mask"), strict=True):
        assert wanted in text
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-2)


def test_kto_learns_from_right_and_wrong_answers_to_pictures(
    root: Path, model: str, tmp_path: Path, processor: Any
) -> None:
    from trl import KTOConfig, KTOTrainer

    export_to(root, tmp_path / "x", "kto", student=model)
    rows = load(tmp_path / "x")
    assert set(rows["label"]) == {True, False}
    trainer = KTOTrainer(
        model=model,
        args=KTOConfig(**arguments(tmp_path), max_length=None),
        train_dataset=rows,
        processing_class=processor,
    )
    chosen = [row for row in rows if row["images"]][:2]
    batch = trainer.data_collator([dict(row) for row in chosen])
    require_pictures(batch, chosen, processor)
    assert losses(trainer)[0] == pytest.approx(0.5, abs=2e-2)


@pytest.mark.parametrize("to", TO)
def test_the_script_beside_the_data_runs(to: str, root: Path, model: str, tmp_path: Path) -> None:
    export_to(root, tmp_path / to, to, **TO[to])
    script = (tmp_path / to / "train.py").read_text().replace('"STUDENT"', repr(model))
    more = "max_steps=1, bf16=False, per_device_train_batch_size=2, report_to=[], output_dir="
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", script.replace("output_dir=", more)]
    done = subprocess.run(command, cwd=tmp_path / to, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
