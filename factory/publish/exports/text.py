"""Plain text columns, for whatever reads a table; pictures beside them, their places in the prompt told as [image]."""

from collections.abc import Sequence

from factory.dataset.tables import Field
from factory.messages import text_of
from factory.publish.exports import chat
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Values
from factory.publish.exports.refusals import nothing
from factory.publish.exports.source import Given, Source

TEXTS = ("id", "task", "level", "reasoning", "answer", "text", "scenario")


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    texts = [Field(name, "text") for name in TEXTS]
    return *texts, Field("prompt", "text"), Field("score", "float32"), *chat.picture_fields(source)


def _convert(given: Given, source: Source, asked: Asked) -> Values:
    row = given.row
    prompt = "\n\n".join(text_of(turn["content"]) for turn in row["prompt"] or [])
    values = {**{name: row[name] for name in TEXTS}, "prompt": prompt, "score": row["score"]}
    return {**values, **chat.pictures_of(row, source), "_positions": 1}


FORMAT = Format(
    name="parquet-text",
    trainer="anything that reads Parquet",
    kept="texts, and pictures where there are any",
    refuse=nothing,
    fields=_fields,
    convert=_convert,
    columns=(*TEXTS, "prompt", "score", "images"),
    arrays="none",
    writes_ids=False,
    pictures="`[image]` stands in the prompts where one is shown.",
    beside=lambda written: {},
    usage=lambda written: "python -c 'import pandas; print(pandas.read_parquet(\"data\"))'",
)
