"""Schemas in each dialect: what it cannot say is left out and named, what would change an answer's shape is refused."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from factory.tasks.tasks import discover
from factory.teachers.remote.schemas import FORMATS, SAYS, CannotSay, Dialect, compile_schema

BUILT_IN = discover(Path()).get(["scheduling", "travel_booking", "photo_edits", "summarization"])


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(Strict):
    kind: Literal["a"] = "a"
    size: int = Field(ge=0, lt=10)


class Other(Strict):
    kind: Literal["b"]
    name: str = Field(min_length=1, max_length=5, pattern="^[a-z]+$")


class Answer(Strict):
    parts: list[Part | Other] = Field(max_length=3)
    note: str | None = None
    extra: Part = Field(description="one more", default=Part(size=1))


def keywords(part: Any, named: bool = False) -> set[str]:
    """Every keyword of a schema; names of properties are none."""
    if isinstance(part, list):
        return set().union(*(keywords(item) for item in part))
    if not isinstance(part, dict):
        return set()
    found = set() if named else set(part)
    for key, value in part.items():
        if key not in ("enum", "required", "const", "default") or named:
            found |= keywords(value, key in ("properties", "$defs") and not named)
    return found


@pytest.mark.parametrize("dialect", ["openai", "gemini"])
@pytest.mark.parametrize("schema", [Answer.model_json_schema(), *(task.grammar for task in BUILT_IN)])
def test_only_what_the_dialect_says_is_sent(schema: dict[str, Any], dialect: Dialect) -> None:
    before = json.dumps(schema)
    made = compile_schema(schema, dialect)
    assert keywords(made.schema) <= SAYS[dialect]
    assert json.dumps(schema) == before  # the task's own is not touched


@pytest.mark.parametrize("schema", [Answer.model_json_schema(), *(task.grammar for task in BUILT_IN)])
def test_openais_objects_name_every_key_and_no_other(schema: dict[str, Any]) -> None:
    def objects(part: Any) -> list[dict[str, Any]]:
        if isinstance(part, list):
            return [found for item in part for found in objects(item)]
        if not isinstance(part, dict):
            return []
        return [part] * (part.get("type") == "object") + [f for value in part.values() for f in objects(value)]

    found = objects(compile_schema(schema, "openai").schema)
    assert found
    for one in found:
        assert one["additionalProperties"] is False
        assert one["required"] == list(one["properties"])


def test_what_is_left_out_is_counted() -> None:
    made = compile_schema(Answer.model_json_schema(), "openai")
    assert made.left_out["default"] >= 2
    assert made.left_out["minLength"] == made.left_out["maxLength"] == 1
    gemini = compile_schema(Answer.model_json_schema(), "gemini")
    assert gemini.left_out["pattern"] == 1
    assert gemini.left_out["exclusiveMaximum"] == 1
    assert "const" not in keywords(gemini.schema)
    assert gemini.schema["$defs"]["Part"]["properties"]["kind"]["enum"] == ["a"]


def test_a_reference_stands_alone() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A", "description": "said twice"}},
        "$defs": {"A": {"type": "string", "format": "ipv4"}},
    }
    for dialect in ("openai", "gemini"):
        made = compile_schema(schema, dialect)  # type: ignore[arg-type]
        assert made.schema["properties"]["a"] == {"$ref": "#/$defs/A"}
        assert ("format" in made.schema["$defs"]["A"]) == ("ipv4" in FORMATS[dialect])  # type: ignore[index]


def test_a_vllm_server_takes_the_schema_as_it_is() -> None:
    schema = Answer.model_json_schema()
    assert compile_schema(schema, "vllm").schema is schema


def test_a_property_may_be_named_like_a_keyword() -> None:
    schema = {
        "type": "object",
        "properties": {"pattern": {"type": "string"}, "not": {"type": "integer"}, "default": {"type": "null"}},
    }
    for dialect in ("openai", "gemini"):
        made = compile_schema(schema, dialect)  # type: ignore[arg-type]
        assert list(made.schema["properties"]) == ["pattern", "not", "default"]


class Mapped(Strict):
    counts: dict[str, int]


class Pair(Strict):
    pair: tuple[int, str]


@pytest.mark.parametrize("model", [Mapped, Pair])
def test_another_shape_is_refused_and_the_place_is_named(model: type[BaseModel]) -> None:
    with pytest.raises(CannotSay, match=r"^Answer\.(counts|pair): "):
        compile_schema(model.model_json_schema(), "openai")
    assert compile_schema(model.model_json_schema(), "gemini").schema["properties"]


def test_what_is_no_object_is_refused_by_openai() -> None:
    with pytest.raises(CannotSay, match="not one object"):
        compile_schema({"type": "array", "items": {"type": "integer"}}, "openai")


@pytest.mark.parametrize("word", ["not", "if", "patternProperties", "allOf"])
def test_words_that_shape_an_answer_are_refused_by_both(word: str) -> None:
    value = [{}, {}] if word == "allOf" else {}
    for dialect in ("openai", "gemini"):
        with pytest.raises(CannotSay, match=word):
            compile_schema({"type": "object", "properties": {}, word: value}, dialect)  # type: ignore[arg-type]
