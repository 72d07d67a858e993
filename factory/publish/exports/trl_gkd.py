"""TRL's GKDTrainer: exact token ids; with `lmbda=0` it is off-policy distillation over the whole vocabulary.

Its collator looks for a prompt's text before it looks at `input_ids` (`messages` otherwise, which it would tokenise
anew): `original_prompt_text` is there for that look alone, the boundary comes from `completion_mask`.
"""

from collections.abc import Sequence

from factory.dataset.tables import Field
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Left, Values
from factory.publish.exports.refusals import nothing
from factory.publish.exports.source import Given, Source
from factory.publish.exports.trl_sft import ids_and_mask

SCRIPT = """import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer

# a teacher of the same vocabulary answers beside the student; lmbda=0 trains on these rows, not on the student's own
rows = load_dataset("parquet", data_files="data/*.parquet", split="train")
tokenizer = AutoTokenizer.from_pretrained("STUDENT")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
trainer = GKDTrainer(
    model=AutoModelForCausalLM.from_pretrained("STUDENT"),
    teacher_model=AutoModelForCausalLM.from_pretrained("TEACHER"),
    args=GKDConfig(output_dir="student", use_cpu=not torch.accelerator.is_available(), lmbda=0.0, beta=0.0),
    processing_class=tokenizer,
    train_dataset=rows,
)
trainer.train()
"""


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    return Field("input_ids", "int64[]"), Field("completion_mask", "int64[]"), Field("original_prompt_text", "text")


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    made = ids_and_mask(given, asked)
    return made if isinstance(made, Left) else {**made, "original_prompt_text": ""}


FORMAT = Format(
    name="trl-gkd",
    trainer="TRL GKDTrainer",
    kept="exact token ids; the teacher answers beside the student",
    refuse=nothing,
    fields=_fields,
    convert=_convert,
    blind="its collator takes token ids alone, without pixels beside them",
    options=("student", "length"),
    beside=lambda written: {"train.py": SCRIPT},
    usage=lambda written: "python train.py            # after `pip install trl`, with your STUDENT and TEACHER",
)
