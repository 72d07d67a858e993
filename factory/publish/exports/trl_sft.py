"""TRL's SFTTrainer: exact token ids with a mask of the completion, so that nothing is tokenised again; or messages.

A dataset with `input_ids` counts as processed; labels are made of `completion_mask` where `completion_only_loss` is on.
Columns beside these would be copied through every `map`, so there are none. Pictures go with messages alone: rows of
ids are not given to the collator that makes pixels of `images`.
"""

from collections.abc import Sequence

import numpy as np

from factory.dataset.tables import Field
from factory.publish.exports import chat
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Left, Values
from factory.publish.exports.positions import all_ids, why_left
from factory.publish.exports.refusals import refuse_chat, refuse_untold_tools
from factory.publish.exports.source import Given, Source

DEFAULT = "apart"  # TRL hands reasoning_content to the student's chat template
SCRIPT = """import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

rows = load_dataset("parquet", data_files="data/*.parquet", split="train")
cpu = not torch.accelerator.is_available()
trainer = SFTTrainer(
    model="STUDENT",
    args=SFTConfig(output_dir="student", use_cpu=cpu, completion_only_loss=True, max_length={length}),
    train_dataset=rows,
)
trainer.train()
"""


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    if asked.rows == "messages":
        prompt = Field("prompt", chat.prompt_kind(source, asked, DEFAULT))
        more = (*chat.tool_fields(source), *chat.picture_fields(source))
        return prompt, Field("completion", chat.turn_kind(source, asked, DEFAULT)), *more
    return Field("input_ids", "int64[]"), Field("completion_mask", "int64[]")


def ids_and_mask(given: Given, asked: Asked) -> Values | Left:
    """Prompt and completion as one list of ids, and 1 where they are the completion's."""
    row = given.row
    if told := why_left(row, asked):
        return Left(told)
    mask = np.ones(len(row.prompt_token_ids) + len(row.completion_token_ids), np.int64)
    mask[: len(row.prompt_token_ids)] = 0
    return {"input_ids": all_ids(row), "completion_mask": mask, "_positions": len(row.completion_token_ids)}


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    if asked.rows != "messages":
        return ids_and_mask(given, asked)
    row = given.row
    completion = chat.completion_of(row, "completion", source, asked, DEFAULT)
    said = {"prompt": chat.prompt_of(row, source, asked, DEFAULT), "completion": completion}
    more = {**chat.tools_of(row, source), **chat.pictures_of(row, source)}
    return {**said, **more, "_positions": len(row.completion_token_ids)}


def _refuse(source: Source, asked: Asked) -> str | None:
    if asked.rows != "messages":
        if source.signals.images:
            return "some rows show pictures, which TRL takes with messages and not with token ids; give --rows messages"
        return "--reasoning means something for messages; give --rows messages too" if asked.reasoning else None
    if asked.length:
        return "--length counts the teacher's ids, and messages have none; leave it out"
    return refuse_untold_tools(source) or refuse_chat(source, asked)


def _tell_kept(source: Source, asked: Asked) -> str:
    return chat.tell_kept(source, asked, DEFAULT) if asked.rows == "messages" else "exact token ids"


FORMAT = Format(
    name="trl-sft",
    trainer="TRL SFTTrainer",
    kept=_tell_kept,
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    columns=("prompt", "completion", "tools", "images"),
    options=("student", "length", "rows", "reasoning"),
    beside=lambda written: {"train.py": SCRIPT.format(length=written.asked.length)},
    usage=lambda written: "python train.py            # after `pip install trl`, with your student in place of STUDENT",
)
