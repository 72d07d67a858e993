"""axolotl's knowledge distillation, by its door for data that is tokenised already.

Its loss compares entry i of `target_*` with the student at position i, unshifted, so entry i is the distribution of
token i + 1. Both sides are renormalised over the k ids, masked ones too (`kd_normalize_topk`), so each position needs
all k. Cross-entropy has labels of its own, and teaches tokens that have no distribution.
"""

from collections.abc import Sequence

import numpy as np

from factory.dataset.tables import Field
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Left, Values, Written
from factory.publish.exports.positions import FLOOR, all_ids, cut_topk, renormalise, spread, why_left
from factory.publish.exports.refusals import refuse_one_id, refuse_ragged
from factory.publish.exports.source import Given, Source

YAML = """# the part of an axolotl configuration that trains on these rows
plugins:
  - axolotl.integrations.kd.KDPlugin
base_model: STUDENT
datasets:
  - path: data
    ds_type: parquet
    data_files: data/*.parquet
    type: chat_template   # the rows are tokenised already: nothing is rendered
    split: train
skip_prepare_dataset: true
remove_unused_columns: false
kd_trainer: true
kd_ce_alpha: 0.1
kd_alpha: 0.9
kd_temperature: 1.0      # the stored distributions are those of temperature 1
kd_beta: 0.0
kd_normalize_topk: true  # the rows are renormalised over their ids: the student must be, too
sequence_len: {length}
"""


def _refuse(source: Source, asked: Asked) -> str | None:
    if asked.mass == "tail":
        return "--mass tail: its loss has no place for the mass outside the k ids; leave it out, or `--to distillkit`"
    return refuse_ragged(source, asked) or refuse_one_id(source, asked)


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    return (
        Field("input_ids", "int64[]"),
        Field("attention_mask", "int8[]"),
        Field("labels", "int64[]"),
        Field("target_token_ids", "int32[][]"),
        Field("target_logprobs", "float32[][]"),
        Field("target_mask", "int8[][]"),
    )


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    row = given.row
    if told := why_left(row, asked):
        return Left(told)
    ids = all_ids(row)
    labels = ids.astype(np.int64)
    labels[: len(row.prompt_token_ids)] = -100
    ids_TK, logprobs_TK, kept_TK = cut_topk(row, asked.k)
    filler = np.arange(ids_TK.shape[1])
    # filler's ids differ, so that a gather of them counts no id twice
    ids_TK = np.where(kept_TK, ids_TK, filler)
    return {
        "input_ids": ids,
        "attention_mask": np.ones(len(ids), np.int8),
        "labels": labels,
        "target_token_ids": spread(ids_TK.astype(np.int32), row, filler),
        "target_logprobs": spread(renormalise(logprobs_TK, kept_TK), row, FLOOR),
        "target_mask": spread(kept_TK.astype(np.int8), row, 0),
        "_positions": int(kept_TK.any(1).sum()),
        "_longest": len(ids),
    }


def _beside(written: Written) -> dict[str, str]:
    length = written.asked.length or written.longest
    return {"axolotl.yaml": YAML.format(length=length)}


FORMAT = Format(
    name="axolotl-kd",
    trainer="axolotl, KDPlugin",
    kept="ids, and the k likeliest of each position, renormalised",
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    arrays="logprobs",
    blind="its prepared rows are token ids and distributions, without pixels beside them",
    options=("student", "k", "mass", "length"),
    beside=_beside,
    usage=lambda written: "axolotl train axolotl.yaml    # with your student in place of STUDENT",
)
