"""Plain conversations: one column `messages`, the reasoning inside the last turn's content, or beside it.

LLaMA-Factory, ms-swift and verl's SFT know no `reasoning_content`: beside the content it would be dropped, and Qwen's
templates would put an empty one in its place. TRL and others that hand it to a chat template take it apart.

Pictures are what all three read alike: `<image>` in a content, and a column `images` in the order of the places.
"""

import json
from collections.abc import Sequence

from factory.dataset.tables import Field
from factory.publish.exports import chat
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Left, Values, Written
from factory.publish.exports.refusals import refuse_chat
from factory.publish.exports.source import Given, Source

DEFAULT = "content"
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
}


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    # tools as text: these trainers parse it themselves
    more = (*chat.tool_fields(source, "text"), *chat.picture_fields(source))
    return Field("messages", chat.turn_kind(source, asked, DEFAULT)), *more


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    row = given.row
    prompt = chat.prompt_of(row, source, asked, DEFAULT)
    turns = [*prompt, *chat.completion_of(row, "completion", source, asked, DEFAULT)]
    if chat.is_taken(turns, source):
        return Left(chat.SPELT)
    more = {**chat.tools_of(row, source), **chat.pictures_of(row, source)}
    return {"messages": chat.placed(turns) if source.signals.images else turns, **more, "_positions": 1}


def _beside(written: Written) -> dict[str, str]:
    signals = written.source.signals
    columns = {"messages": "messages"} | ({"tools": "tools"} if signals.tools else {})
    columns |= {"images": "images"} if signals.images else {}
    entry = {"file_name": "data", "formatting": "sharegpt", "columns": columns, "tags": TAGS}
    return {"dataset_info.json": json.dumps({"distilled": entry}, indent=2) + "\n"}


def _usage(written: Written) -> str:
    return "\n".join(
        [
            "llamafactory-cli train ... dataset_dir=$PWD dataset=distilled",
            "swift sft --dataset $PWD/data ...",
            "python -m verl.trainer.sft_trainer data.train_files=$PWD/data/*.parquet data.messages_key=messages ...",
        ]
    )


FORMAT = Format(
    name="messages",
    trainer="LLaMA-Factory, ms-swift, verl SFT, and others",
    kept=lambda source, asked: chat.tell_kept(source, asked, DEFAULT),
    refuse=refuse_chat,
    fields=_fields,
    convert=_convert,
    columns=("prompt", "completion", "tools", "images"),
    arrays="none",
    options=("reasoning", "student"),
    writes_ids=False,
    pictures="`<image>` stands in the messages where LLaMA-Factory puts one (`dataset_info.json` names the columns); "
    "ms-swift and verl read the same.",
    beside=_beside,
    usage=_usage,
)
