"""Tinker: soft targets as its `cross_entropy` takes them, so that no teacher answers while a student trains.

Of S = P + T tokens the first N = S - 1 are the input; entry i of targets and weights is for token i + 1. Weights are
probabilities (or shares of draws: an unbiased target), 0 where nothing is trained.
"""

from collections.abc import Sequence

import numpy as np

from factory.dataset.tables import Field
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Left, Values
from factory.publish.exports.positions import all_ids, cut_topk, renormalise, spread, why_left
from factory.publish.exports.refusals import refuse_distributions, refuse_gaps, refuse_one_id
from factory.publish.exports.source import Given, Source

SCRIPT = '''"""Datums of these rows: `for datum in datums(): ...`, then `forward_backward(batch, "cross_entropy")`."""

import numpy as np
import tinker
from datasets import load_dataset


def datums(files="data/*.parquet"):
    for row in load_dataset("parquet", data_files=files, split="train", streaming=True):
        targets, weights = np.array(row["target_tokens"], np.int64), np.array(row["weights"], np.float32)
        yield tinker.Datum(
            model_input=tinker.ModelInput.from_ints(row["model_input"]),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_numpy(targets),
                "weights": tinker.TensorData.from_numpy(weights),
            },
        )


if __name__ == "__main__":
    print(next(datums()).model_input.length)
'''


def _refuse(source: Source, asked: Asked) -> str | None:
    if told := refuse_distributions(source, asked) or refuse_gaps(source):
        return told
    if source.signals.keep == "sampled":
        if asked.mass == "tail":
            return '--mass tail: random draws (keep = "sampled") stand for the whole distribution, tail and all'
        return None
    return refuse_one_id(source, asked) if asked.mass != "tail" else None


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    return Field("model_input", "int32[]"), Field("target_tokens", "int64[][]"), Field("weights", "float32[][]")


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    row = given.row
    if told := why_left(row, asked):
        return Left(told)
    ids_TK, logprobs_TK, kept_TK = cut_topk(row, asked.k)
    if row.topk_draws is not None:
        draws_TK = np.where(kept_TK, row.topk_draws, 0).astype(np.float64)
        weights_TK = draws_TK / np.maximum(draws_TK.sum(1, keepdims=True), 1)
    else:
        kept = renormalise(logprobs_TK, kept_TK) if asked.mass != "tail" else logprobs_TK
        weights_TK = np.where(kept_TK, np.exp(kept), 0)
    # what is lacking repeats the first id; where there is none, the token that comes next: the weight is 0
    ids_TK = np.where(kept_TK, ids_TK, np.where(kept_TK[:, :1], ids_TK[:, :1], row.completion_token_ids[:, None]))
    ids = all_ids(row)
    targets = np.repeat(np.append(ids[1:], 0)[:, None], ids_TK.shape[1], 1)
    first = len(row.prompt_token_ids) - 1
    targets[first : len(ids) - 1] = ids_TK
    return {
        "model_input": ids[:-1],
        "target_tokens": targets[:-1],
        "weights": spread(weights_TK.astype(np.float32), row, 0)[:-1],
        "_positions": int(kept_TK.any(1).sum()),
    }


FORMAT = Format(
    name="tinker",
    trainer="Tinker, off-policy distillation",
    kept="ids, and weights of the kept ids",
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    arrays="logprobs",
    blind="its datums are made of token ids here, without pixels beside them",
    options=("student", "k", "mass", "length"),
    beside=lambda written: {"datums.py": SCRIPT},
    usage=lambda written: "python datums.py             # after `pip install tinker`; your training loop imports it",
)
