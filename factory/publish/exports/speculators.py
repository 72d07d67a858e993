"""speculators (EAGLE-3, P-EAGLE, DFlash): ids, a loss mask, and the hidden states of each row in a file of its own.

The last slot of `hidden_states` [N, L, H] is the last layer's BEFORE the final norm: training applies the verifier's
norm itself. The others are the inner layers in their order. The last token of a row was never an input and has no
state, so a row has N = P + T - 1 tokens.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from factory.dataset.tables import Field, read_tables
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Files, Format, Left, Values, Written
from factory.publish.exports.positions import all_ids, why_left
from factory.publish.exports.refusals import last_layer, refuse_states
from factory.publish.exports.source import Given, Source
from factory.publish.exports.torch_files import bfloat16_tensor, int_tensor, safetensors_bytes, torch_bytes
from factory.signals import Array


def _refuse(source: Source, asked: Asked) -> str | None:
    if told := refuse_states(source, asked):
        return told
    if source.signals.final_norm:
        return (
            "its training applies the final norm, and the last layer's states here are after it: they would be "
            "normalised twice; run with [signals] final_norm = false"
        )
    return None


def inner_first(source: Source) -> list[int]:
    """Places of the kept layers: the inner ones in their order, then the last layer's."""
    last = source.signals.layers.index(last_layer(source) or 0)
    return [place for place in range(len(source.signals.layers)) if place != last] + [last]


def take_states(given: Given, source: Source) -> tuple[Array, Array, Array]:
    """Ids int64 [N] of what was an input, a mask int64 [N] of the completion, states [N, L, H], the last layer last."""
    assert given.states is not None
    ids = all_ids(given.row)[:-1].astype(np.int64)
    mask = (np.arange(len(ids)) >= len(given.row.prompt_token_ids)).astype(np.int64)
    return ids, mask, given.states.bits_NLH[:, inner_first(source)]


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    return Field("input_ids", "int64[]"), Field("loss_mask", "int64[]"), Field("seq_len", "int64")


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    if told := why_left(given.row, asked):
        return Left(told)
    ids, mask, bits_NLH = take_states(given, source)
    return {"input_ids": ids, "loss_mask": mask, "seq_len": len(ids), "_bits": bits_NLH, "_positions": int(mask.sum())}


def _row_files(number: int, values: Values) -> Files:
    tensors = {"token_ids": int_tensor(values["input_ids"]), "hidden_states": bfloat16_tensor(values["_bits"])}
    yield f"hidden_states/hs_{number}.safetensors", safetensors_bytes(tensors)


def _beside(written: Written) -> dict[str, str | bytes]:
    """How often each id is trained, which draft vocabularies are drawn from."""
    counts: Counter[int] = Counter()
    for batch in read_tables([written.out / file.path for file in written.files], ["input_ids", "loss_mask"]):
        ids, many = np.unique(batch["input_ids"][0][batch["loss_mask"][0] == 1], return_counts=True)
        counts.update(dict(zip(ids.tolist(), many.tolist(), strict=True)))
    # sorted, so that equal exports are equal bytes
    return {"token_freq.pt": torch_bytes(dict(sorted(counts.items())))}


def _usage(written: Written) -> str:
    source = written.source
    inner = " ".join(str(source.signals.layers[place]) for place in inner_first(source)[:-1])
    return (
        f"python scripts/train.py --verifier-name-or-path {source.model} --data-path . "
        f"--save-path draft --on-missing raise --target-layer-ids {inner} --speculator-type eagle3"
    )


FORMAT = Format(
    name="speculators",
    trainer="speculators (EAGLE-3 and others)",
    kept="ids, and hidden states before the final norm",
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    arrays="states",
    blind="its reader takes ids and states alone, and at a picture's places the ids are not what the teacher read",
    options=("student", "length"),
    form="arrow",
    row_files=_row_files,
    formatted="torch",
    beside=_beside,
    usage=_usage,
)
