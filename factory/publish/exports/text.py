"""Plain text columns, for whatever reads a table."""

from collections.abc import Sequence

from factory.dataset.tables import Field
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Values
from factory.publish.exports.refusals import nothing
from factory.publish.exports.source import Given, Source

TEXTS = ("id", "task", "level", "reasoning", "answer", "text", "scenario")


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    return *(Field(name, "text") for name in TEXTS), Field("prompt", "text"), Field("score", "float32")


def _convert(given: Given, source: Source, asked: Asked) -> Values:
    row = given.row
    prompt = "\n\n".join(turn["content"] for turn in row["prompt"] or [])
    return {**{name: row[name] for name in TEXTS}, "prompt": prompt, "score": row["score"], "_positions": 1}


FORMAT = Format(
    name="parquet-text",
    trainer="anything that reads Parquet",
    kept="text alone",
    refuse=nothing,
    fields=_fields,
    convert=_convert,
    columns=(*TEXTS, "prompt", "score"),
    arrays="none",
    writes_ids=False,
    beside=lambda written: {},
    usage=lambda written: "python -c 'import pandas; print(pandas.read_parquet(\"data\"))'",
)
