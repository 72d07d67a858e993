"""DistillKit, and the copy of it in open-instruct: raw rows of ids and logprobs, all of one length, no text column.

Entry i is the distribution of token i + 1; the loss's mask is `labels >= 0` at the same i. So `labels` are set where a
target stands, from the prompt's last token to the completion's last but one: the KL has exactly the completion's
targets. Its cross-entropy, which shifts labels once more, then teaches the prompt's last token and not the completion's
last: that one is taught by its distribution.

    index             0     1     2     3     4       P = 3, T = 2
    input_ids         p0    p1    p2    c0    c1
    labels           -100  -100   p2    c0   -100
    token_ids         .     .    [0]   [1]    .

Its `zero` renormalises the teacher over the k ids, and not the student: one equal to the teacher has a KL of -log of
the kept mass. Its `symmetric_uniform` would have none, but takes the log of 1 - 1 where the k ids hold all mass in
float32, and ends in NaN or infinity: a third of the positions of a sure teacher are such. So it is never asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from factory.dataset.tables import Field
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Left, Values, Written
from factory.publish.exports.positions import all_ids, cut_topk, spread, why_left
from factory.publish.exports.refusals import refuse_draws, refuse_gaps
from factory.publish.exports.source import Given, Source

OPEN_SEQUENCES = 16  # that packed rows are put into at a time: each holds all its distributions
YAML = """# a DistillKit configuration; `distillkit distillkit.yaml` trains with it
project_name: distilled
model: STUDENT
dataset:
  train_dataset:
    disk_path: .   # this folder
  prepacked: true
  seed: 42
teacher:
  kind: dataset
  logprob_compressor:   # must be given, though these rows are not compressed
    d: {vocab}
    k: {k}
    exact_k: {k}
    exact_dtype: float32
    polynomial_terms: null
    residual_bins: []
    delta_encoding: false
sequence_length: {length}
output_path: student
use_flash_attention: {flash}
functionary_packing: {flash}   # {packing}
loss_functions:
  - function: cross_entropy
    weight: 0.1
  - function: kl
    weight: 0.9
    temperature: 1.0
    missing_probability_handling: zero   # `symmetric_uniform` is NaN wherever the k ids hold all mass
training_args:
  num_train_epochs: 1
  per_device_train_batch_size: 1
  learning_rate: 2.0e-6
  remove_unused_columns: false
"""


def _refuse(source: Source, asked: Asked) -> str | None:
    if asked.mass == "tail":
        return (
            "--mass tail: its `symmetric_uniform`, which takes a tail, is NaN at positions whose k ids hold all mass; "
            "leave it out"
        )
    if told := refuse_draws(source, asked) or refuse_gaps(source):
        return told
    if not isinstance(source.details.get("vocab_size"), int):
        return "its configuration needs the size of the teacher's vocabulary, which the manifest does not tell"
    if asked.length is None:
        return "its rows must all have one length; give --length, and --pack to fill sequences with several rows"
    return None


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    return (
        Field("input_ids", "int64[]"),
        Field("attention_mask", "int64[]"),
        Field("labels", "int64[]"),
        Field("token_ids", "int32[][]"),
        Field("top_values", "float32[][]"),
    )


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    row = given.row
    if told := why_left(row, asked):
        return Left(told)
    ids = all_ids(row)
    ids_TK, logprobs_TK, kept_TK = cut_topk(row, asked.k)
    k = ids_TK.shape[1]
    some_T: Any = kept_TK.any(1)
    # positions without ids (`positions = "answer"`) are masked, and hold what all filler does. A position with fewer
    # than k has the others at probability 0: they weigh nothing in a sum over the teacher's probabilities
    ids_TK, logprobs_TK = _filled(ids_TK, some_T, np.arange(k)), _filled(logprobs_TK, some_T, -np.log(k))
    with_target = spread(some_T, row, False)
    return {
        "input_ids": ids,
        "attention_mask": np.ones(len(ids), np.int64),
        "labels": np.where(with_target, ids, -100),
        "token_ids": spread(ids_TK.astype(np.int32), row, np.arange(k)),
        "top_values": spread(logprobs_TK.astype(np.float32), row, -np.log(k)),
        "_positions": int(some_T.sum()),
    }


def _filled(values_TK: Any, some_T: Any, filler: Any) -> Any:
    return np.where(some_T[:, None], values_TK, filler)


def gather(rows: Iterator[Values], asked: Asked) -> Iterator[Values]:
    """Sequences of exactly `length` tokens: one row each, or, packed, as many as fit."""
    length, opened = asked.length or 0, list[list[Values]]()
    for row in rows:
        size = len(row["input_ids"])
        fitting = [held for held in opened if _size(held) + size <= length] if asked.pack else []
        if fitting:
            # the fullest that takes it, so that sequences fill up
            max(fitting, key=_size).append(row)
            continue
        opened.append([row])
        if len(opened) > (OPEN_SEQUENCES if asked.pack else 0):
            fullest = max(opened, key=_size)
            # by identity: rows hold arrays, which cannot be compared
            opened = [held for held in opened if held is not fullest]
            yield _join(fullest, length, asked.filler or 0)
    for held in opened:
        yield _join(held, length, asked.filler or 0)


def _size(held: Sequence[Values]) -> int:
    return sum(len(row["input_ids"]) for row in held)


def _join(held: Sequence[Values], length: int, pad_id: int) -> Values:
    """Rows one after another, numbered in the attention mask from 1, then padding that no loss sees."""
    joined = {name: np.concatenate([row[name] for row in held]) for name in held[0] if not name.startswith("_")}
    numbers = np.arange(1, len(held) + 1)
    joined["attention_mask"] = np.repeat(numbers, [len(row["input_ids"]) for row in held])
    k = joined["token_ids"].shape[1]
    filler = {"input_ids": pad_id, "attention_mask": 0, "labels": -100, "token_ids": np.arange(k)}
    filler["top_values"] = -np.log(k)
    padding = length - len(joined["input_ids"])
    for name, values in joined.items():
        pad = np.empty((padding, *values.shape[1:]), values.dtype)
        pad[:] = filler[name]
        joined[name] = np.concatenate([values, pad])
    return {**joined, "_positions": sum(row["_positions"] for row in held)}


def _beside(written: Written) -> dict[str, str]:
    asked, source = written.asked, written.source
    values = {"vocab": source.details["vocab_size"], "length": asked.length}
    k, flash = asked.k or source.signals.top_k, str(asked.pack).lower()
    packing = (
        "several rows are in a sequence, and do not see each other"
        if asked.pack
        else "a sequence is one row; true belongs to an export with --pack"
    )
    return {"distillkit.yaml": YAML.format(**values, k=k, flash=flash, packing=packing)}


FORMAT = Format(
    name="distillkit",
    trainer="DistillKit",
    kept="ids, and the k likeliest of each position",
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    arrays="logprobs",
    blind="its packed rows are token ids and distributions, without pixels beside them",
    options=("student", "k", "mass", "length", "pack", "filler"),
    form="arrow",
    gather=gather,
    beside=_beside,
    usage=lambda written: "distillkit distillkit.yaml    # with your student in place of STUDENT",
)
