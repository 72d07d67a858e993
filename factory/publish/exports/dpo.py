"""DPO (TRL and others): a prompt with a right and a wrong answer to it, as messages."""

from collections.abc import Sequence

from factory.dataset.tables import Field
from factory.publish.exports import chat
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Values
from factory.publish.exports.refusals import refuse_chat, refuse_untold_tools
from factory.publish.exports.source import Given, Source

DEFAULT = "apart"
SCRIPT = """import torch
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

rows = load_dataset("parquet", data_files="data/*.parquet", split="train")
cpu = not torch.accelerator.is_available()
# cut off at a length, a row would teach to break off
args = DPOConfig(output_dir="student", use_cpu=cpu, max_length=None)
trainer = DPOTrainer(model="STUDENT", args=args, train_dataset=rows)
trainer.train()
"""


def _refuse(source: Source, asked: Asked) -> str | None:
    if not source.signals.pairs:
        return 'there are no pairs: run with [samples] n = 4, keep = "pair", or export --to kto, which needs none'
    if not source.ledger.totals.pairs:
        return "there is no pair: no prompt has both a right and a wrong answer; `--to kto` needs no pairs"
    if source.stage:
        return "a stage holds right answers alone; leave --stage out"
    return refuse_untold_tools(source) or refuse_chat(source, asked)


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    turns = chat.turn_kind(source, asked, DEFAULT)
    prompt = Field("prompt", chat.prompt_kind(source, asked, DEFAULT))
    more = (*chat.tool_fields(source), *chat.picture_fields(source))
    return prompt, Field("chosen", turns), Field("rejected", turns), *more


def _convert(given: Given, source: Source, asked: Asked) -> Values:
    row = given.row
    sides = {name: chat.completion_of(row, name, source, asked, DEFAULT) for name in ("chosen", "rejected")}
    prompt = chat.prompt_of(row, source, asked, DEFAULT)
    more = {**chat.tools_of(row, source), **chat.pictures_of(row, source)}
    return {"prompt": prompt, **sides, **more, "_positions": 1}


FORMAT = Format(
    name="dpo",
    trainer="TRL DPOTrainer, and others of the same columns",
    kept="messages: a right and a wrong answer",
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    configs=("preferences",),
    columns=("prompt", "chosen", "rejected", "tools", "images"),
    arrays="none",
    options=("reasoning", "student"),
    writes_ids=False,
    beside=lambda written: {"train.py": SCRIPT},
    usage=lambda written: "python train.py            # after `pip install trl`, with your student in place of STUDENT",
)
