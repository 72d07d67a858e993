"""Grammars before an engine: which schemas compile, where one does not, and what a teacher under one could write."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from factory.quality.grammar import allows, find_grammar_problems
from factory.tasks.answers import describe_grammar

pytest.importorskip("llguidance")


class Point(BaseModel):
    model_config = ConfigDict(extra="forbid")
    x: Annotated[int, Field(ge=0, le=20)]
    kind: Literal["a", "b"]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    points: Annotated[list[Point], Field(max_length=2)]
    tags: Annotated[set[Annotated[str, Field(max_length=4)]], Field(max_length=2)] = set()


class Looks(BaseModel):
    code: Annotated[str, Field(pattern=r"^a\b b$")] = ""  # a word boundary, which the engine's patterns lack
    fine: int = 0


class Deep(BaseModel):
    inner: list[Looks] = []


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('{"points":[{"x":3,"kind":"a"}],"tags":["b"]}', True),
        ('{"points":[]}', True),
        ('{"points":[{"x":21,"kind":"a"}]}', False),
        ('{"points":[{"x":3,"kind":"c"}]}', False),
        ('{"points":[{"x":3,"kind":"a","y":1}]}', False),
        ('{"points":[{"kind":"a","x":3}]}', False),  # the order of keys is the schema's
        ('{"points": []}', False),  # without white space, as the engine has it
        ('{"points":[]', False),
        ('{"points":[]} ', False),
        ("", False),
    ],
)
def test_what_a_teacher_under_the_grammar_could_write(text: str, allowed: bool) -> None:
    assert allows(describe_grammar(Answer), text) is allowed


def test_a_schema_that_compiles_has_no_problem() -> None:
    assert find_grammar_problems(describe_grammar(Answer)) == []


@pytest.mark.parametrize(("answer", "place"), [(Looks, "Answer.code"), (Deep, "Answer.inner.*.code")])
def test_a_part_that_does_not_compile_is_named_and_nothing_around_it(answer: type[BaseModel], place: str) -> None:
    (told,) = find_grammar_problems(describe_grammar(answer))
    assert told.startswith(f"{place}: ")
    assert "\n" not in told


@pytest.mark.parametrize("schema", [{"type": "object", "propertyNames": {"pattern": "^x"}}, {"type": "nothing"}])
def test_words_that_the_engine_does_not_know_are_a_problem(schema: dict[str, Any]) -> None:
    assert find_grammar_problems(schema)
