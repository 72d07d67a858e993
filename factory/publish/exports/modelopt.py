"""Model-Optimizer's offline EAGLE-3: one torch file a conversation, which declares whether its states are normed."""

from collections.abc import Sequence

from factory.dataset.tables import Field
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Files, Format, Left, Values
from factory.publish.exports.positions import why_left
from factory.publish.exports.refusals import refuse_states
from factory.publish.exports.source import Given, Source
from factory.publish.exports.speculators import take_states
from factory.publish.exports.torch_files import bfloat16_tensor, int_tensor, torch_bytes

AUXILIARY = 3  # inner layers that EAGLE-3's first projection takes


def _refuse(source: Source, asked: Asked) -> str | None:
    if told := refuse_states(source, asked):
        return told
    if len(source.signals.layers) != AUXILIARY + 1:
        return (
            f"EAGLE-3 takes {AUXILIARY} inner layers beside the last, and layers {list(source.signals.layers)} are "
            "kept; run with hidden_layers = [2, n // 2, n - 3, -1]"
        )
    return None


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    return ()


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    if told := why_left(given.row, asked):
        return Left(told)
    ids, mask, bits_NLH = take_states(given, source)
    return {
        "_id": given.row["id"],
        "_ids": ids,
        "_mask": mask,
        "_last": bits_NLH[:, -1],
        "_inner": bits_NLH[:, :-1].reshape(len(ids), -1),
        "_prenorm": not source.signals.final_norm,
        "_positions": int(mask.sum()),
    }


def _row_files(number: int, values: Values) -> Files:
    content = {
        "input_ids": int_tensor(values["_ids"]),
        "hidden_states": bfloat16_tensor(values["_last"]),
        "aux_hidden_states": bfloat16_tensor(values["_inner"]),
        "loss_mask": int_tensor(values["_mask"]),
        "conversation_id": values["_id"],
        "hidden_states_prenorm": values["_prenorm"],
    }
    yield f"data/{values['_id']}.pt", torch_bytes(content)


FORMAT = Format(
    name="modelopt",
    trainer="Model-Optimizer (EAGLE-3, offline)",
    kept=lambda source, asked: (
        "ids, and hidden states of before the final norm"
        if not source.signals.final_norm
        else "ids, and hidden states, the last layer's after the final norm"
    ),
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    arrays="states",
    blind="its reader takes ids and states alone, and at a picture's places the ids are not what the teacher read",
    options=("student", "length"),
    row_files=_row_files,
    beside=lambda written: {},
    usage=lambda written: f"./launch_train.sh --model {written.source.model} --offline-data data",
)
