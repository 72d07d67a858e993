"""Datasets as a run writes them, through TRL: conversations, free text, tools and pictures, two steps each.

Nothing is exported and no column is renamed: what `datasets.load_dataset` gives is what the trainer is given. For a
model that sees the columns are named: where there is one called `text`, TRL takes that alone, without the pictures.
"""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from random_vlm import random_vlm
from test_trainers import arguments, losses, tiny_student
from transformers import AutoTokenizer

from factory.job.job import Job
from factory.runs.run import run
from factory.tasks.tasks import builtin_root
from factory.teachers.demo import FOLDER

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]
FORMS = ("conversation_memory", "stories", "assistant_actions")


def make_rows(folder: Path, task: str, config: str = "default", **sections: Any) -> Any:
    """The rows of a finished run over a built-in task, as `datasets` loads them."""
    job = {
        "out": "out",
        "teacher": {"model": "demo", "backend": "scripted", "scripted": {"wrong": 0.5}},
        "tasks": [{"name": task, "count": 12}],
    }
    out = folder / task
    run(Job.model_validate(job | sections), builtin_root(), out)
    return datasets.load_dataset(str(out), config, split="train", cache_dir=str(folder / "cache"))


def trained_texts(trainer: Any, tokenizer: Any) -> list[str]:
    """What each row's loss is taken over, as text."""
    return [tokenizer.decode([token for token in row["labels"] if token != -100]) for row in trainer.train_dataset]


@pytest.mark.parametrize("task", FORMS)
def test_sft_learns_the_reasoning_and_the_answer_of_every_form(tmp_path: Path, task: str) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = make_rows(tmp_path, task)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    trainer = SFTTrainer(
        model=tiny_student(),
        args=SFTConfig(**arguments(tmp_path), completion_only_loss=True, max_length=None),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    learnt = trained_texts(trainer, tokenizer)
    assert len(learnt) == len(rows)
    # the shipped template opens the reasoning in the prompt, so `<think>` itself may stand on either side
    wanted = [row["text"].removeprefix("<think>").removesuffix("<|end|>") for row in rows]
    # the scripted teacher ends its turns in a mark of its own
    assert [text.removeprefix("<think>").removesuffix("<|im_end|>\n") for text in learnt] == wanted
    for row, seen in zip(rows, trainer.train_dataset, strict=True):
        asked = tokenizer.decode(seen["input_ids"])
        assert all(message["content"] in asked for message in row["prompt"])
        if row.get("tools") is not None:
            assert all(json.dumps(tool["function"]["name"]) in asked for tool in row["tools"])
    assert losses(trainer)[0] > 0


@pytest.mark.parametrize("task", FORMS)
def test_dpo_takes_the_pairs_of_every_form(tmp_path: Path, task: str) -> None:
    from trl import DPOConfig, DPOTrainer

    pairs = make_rows(tmp_path, task, "preferences", samples={"n": 4, "keep": "pair"})
    tiny_student().save_pretrained(tmp_path / "model")
    trainer = DPOTrainer(
        model=str(tmp_path / "model"),
        args=DPOConfig(**arguments(tmp_path), max_length=None),
        train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(FOLDER),
    )
    assert all(row["chosen_ids"] != row["rejected_ids"] for row in trainer.train_dataset)
    losses(trainer)


def test_sft_of_a_model_that_sees_takes_the_pictures(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    rows = make_rows(tmp_path, "photo_edits_image", teacher={"model": random_vlm(), "backend": "scripted"})
    processor = AutoProcessor.from_pretrained(random_vlm())
    trainer = SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(random_vlm(), dtype="float32"),
        args=SFTConfig(**arguments(tmp_path), completion_only_loss=True, max_length=None),
        train_dataset=rows.select_columns(["prompt", "completion", "images"]),
        processing_class=processor,
    )
    seen = trainer.train_dataset
    batch = trainer.data_collator([seen[0], seen[1]])
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert batch["pixel_values"].shape[0] == 2
    assert (batch["input_ids"] == image).any(dim=1).all()
    assert not (batch["labels"] == image).any()
    for row, labels in zip((rows[0], rows[1]), batch["labels"].tolist(), strict=True):
        assert row["answer"] in processor.decode([token for token in labels if token != -100])
    assert losses(trainer)[0] > 0
