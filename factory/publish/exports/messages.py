"""Plain conversations: one column `messages`, the reasoning inside the last turn's content, or beside it.

LLaMA-Factory, ms-swift and verl's SFT know no `reasoning_content`: beside the content it would be dropped, and Qwen's
templates would put an empty one in its place. TRL and others that hand it to a chat template take it apart.
"""

import json
from collections.abc import Sequence

from factory.dataset.tables import Field
from factory.publish.exports import chat
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Values, Written
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
    return Field("messages", chat.turn_kind(source, asked, DEFAULT)), *chat.tool_fields(source, "text")


def _convert(given: Given, source: Source, asked: Asked) -> Values:
    row = given.row
    prompt = chat.prompt_of(row, source, asked, DEFAULT)
    turns = [*prompt, *chat.completion_of(row, "completion", source, asked, DEFAULT)]
    return {"messages": turns, **chat.tools_of(row, source), "_positions": 1}


def _beside(written: Written) -> dict[str, str]:
    columns = {"messages": "messages"} | ({"tools": "tools"} if written.source.signals.tools else {})
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
    kept="messages, the reasoning inside the content (or apart)",
    refuse=refuse_chat,
    fields=_fields,
    convert=_convert,
    columns=("prompt", "completion", "tools"),
    arrays="none",
    options=("reasoning", "student"),
    writes_ids=False,
    beside=_beside,
    usage=_usage,
)
