"""An answer's schemas: closed for prompts, and a grammar that fits what pydantic takes, in one spelling a value."""

import itertools
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr, TypeAdapter, ValidationError

from factory.job.data import SourceConfig
from factory.tasks.answers import (
    GrammarSchema,
    answer_keys,
    describe_answer,
    describe_grammar,
    find_problems,
    find_warnings,
    has_sets,
    repeats,
    sets_in,
)

PATH = Path("schemas/x.py")


class Node(BaseModel):
    name: str = Field(max_length=5)
    inner: "list[Node]" = []


class Everything(BaseModel):
    tags: Annotated[set[Annotated[str, Field(max_length=5)]], Field(max_length=3)]
    by_size: dict[Literal["small", "large"], int]
    price: Annotated[Decimal, Field(max_digits=5, decimal_places=2)]
    day: date
    at: datetime
    loose: str
    count: int
    share: float
    anything: Any
    items: list[int]
    node: Node


def grammar_of(kind: Any) -> tuple[re.Pattern[str], TypeAdapter[Any]]:
    adapter = TypeAdapter(kind)
    return re.compile(adapter.json_schema(schema_generator=GrammarSchema)["pattern"]), adapter


def is_taken(adapter: TypeAdapter[Any], text: str) -> bool:
    try:
        adapter.validate_json(f'"{text}"', strict=True)
    except ValidationError:
        return False
    return True


def decimals() -> list[str]:
    wholes = ["0", *map(str, range(1, 10)), "10", "19", "99", "100", "123", "999", "1000", "9999", "10000"]
    fractions = ["", *("." + "".join(d) for n in range(1, 5) for d in itertools.product("019", repeat=n))]
    return [sign + whole + fraction for sign in ("", "-") for whole in wholes for fraction in fractions]


@pytest.mark.parametrize(
    "limits",
    [
        {"max_digits": 4},
        {"max_digits": 1},
        {"max_digits": 2, "decimal_places": 2},
        {"max_digits": 1, "decimal_places": 1},
        {"max_digits": 2, "decimal_places": 3},
        {"max_digits": 3, "decimal_places": 1},
        {"max_digits": 3, "decimal_places": 0},
        {"decimal_places": 2},
        {"decimal_places": 0},
        {},
    ],
    ids=str,
)
def test_a_decimals_grammar_allows_each_value_that_pydantic_takes_and_no_other(limits: dict[str, int]) -> None:
    pattern, adapter = grammar_of(Annotated[Decimal, Field(**limits)])
    allowed = {text for text in decimals() if pattern.match(text)}
    assert [text for text in allowed if not is_taken(adapter, text)] == []
    # a value may be spelt with more zeros behind it than the grammar allows, as long as one spelling is left
    taken = {Decimal(text) for text in decimals() if is_taken(adapter, text)}
    assert {Decimal(text) for text in allowed} == taken
    assert all(str(Decimal(text)) == text for text in allowed)


@pytest.mark.parametrize("text", ["+1", "01", ".5", "1.", "1E+3", "1e3", "NaN", "Infinity", "", "-", "€4", " 1"])
def test_a_decimal_has_no_other_spelling(text: str) -> None:
    assert not grammar_of(Decimal)[0].match(text)


@pytest.mark.parametrize(("low", "text", "allowed"), [(0, "-1", False), (0, "1", True), (-1, "-1", True)])
def test_a_decimal_that_is_never_negative_has_no_minus(low: int, text: str, allowed: bool) -> None:
    assert bool(grammar_of(Annotated[Decimal, Field(ge=low, decimal_places=1)])[0].match(text)) is allowed


@given(st.dates())
def test_every_date_is_allowed_as_pydantic_writes_it(day: date) -> None:
    assert grammar_of(date)[0].match(day.isoformat())


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_every_moment_is_allowed_as_pydantic_writes_it(at: datetime) -> None:
    pattern, adapter = grammar_of(datetime)
    text = adapter.dump_json(at).decode().strip('"')
    assert bool(pattern.match(text)) is is_taken(adapter, text)


@given(st.timedeltas(-timedelta(days=364_999_999), timedelta(days=364_999_999)))  # within a million years
def test_every_duration_is_allowed_as_pydantic_writes_it(span: timedelta) -> None:
    pattern, adapter = grammar_of(timedelta)
    assert pattern.match(adapter.dump_json(span).decode().strip('"'))


@pytest.mark.parametrize("text", ["0000-06-05", "2025-02-29", "1900-02-29", "2025-04-31", "2025-13-01", "2025-1-1"])
def test_an_impossible_date_is_not_allowed(text: str) -> None:
    assert not grammar_of(date)[0].match(text)
    assert not grammar_of(datetime)[0].match(f"{text}T10:00:00")


@pytest.mark.parametrize("text", ["2000-02-29", "2024-02-29", "0004-02-29"])
def test_a_leap_day_is_allowed(text: str) -> None:
    assert grammar_of(date)[0].match(text)


@pytest.mark.parametrize("text", ["24:00:00", "10:00:60", "10:00", "10:00:00.000000", "10:00:00.1"])
def test_a_time_has_one_spelling(text: str) -> None:
    assert not grammar_of(time)[0].match(text)


def test_the_grammar_says_only_what_an_engine_knows() -> None:
    plain, grammar = describe_answer(Everything), describe_grammar(Everything)
    assert (plain["additionalProperties"], grammar["additionalProperties"]) == (False, False)
    assert plain["$defs"]["Node"]["additionalProperties"] is False
    assert (plain["properties"]["tags"]["uniqueItems"], grammar["properties"]["tags"].get("uniqueItems")) == (
        True,
        None,
    )
    assert "propertyNames" in plain["properties"]["by_size"]
    assert list(grammar["properties"]["by_size"]["properties"]) == ["small", "large"]
    assert grammar["properties"]["by_size"]["additionalProperties"] is False
    assert answer_keys(plain) == list(Everything.model_fields)
    assert (has_sets(plain), has_sets(grammar)) == (True, False)


def test_what_a_weak_teacher_may_never_end_is_told_with_its_place() -> None:
    told = list(find_warnings(describe_answer(Everything), describe_grammar(Everything), PATH))
    places = {line.removeprefix(f"{PATH}: ").partition(": ")[0]: line for line in told}
    assert set(places) == {
        "Answer.by_size.small",
        "Answer.by_size.large",
        "Answer.loose",
        "Answer.count",
        "Answer.share",
        "Answer.anything",
        "Answer.items",
        "Answer.items.*",
        "Answer.node.inner",
        "Answer.node.inner.*",
    }
    assert "without max_length" in places["Answer.loose"]
    assert "Node in itself without end" in places["Answer.node.inner.*"]


class Secret(BaseModel):
    key: SecretStr


class OneWay(BaseModel):
    price: int = Field(validation_alias="cost")


class Wrapped(RootModel[list[int]]):
    pass


class Both(BaseModel):
    model_config = ConfigDict(extra="forbid")
    price: int = Field(alias="cost", ge=0, le=9)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Secret, "Answer.key: a secret is written as stars"),
        (OneWay, "Answer.cost: is read under this name but not written under it"),
        (Wrapped, "Answer is a RootModel"),
        (Both, None),
    ],
)
def test_an_answer_that_is_not_written_as_it_is_read_is_a_problem(answer: type[BaseModel], says: str | None) -> None:
    told = list(find_problems(answer, describe_answer(answer), PATH))
    assert [line.startswith(f"{PATH}: {says}") for line in told] == ([] if says is None else [True])


def test_sets_are_found_wherever_they_are_and_so_is_what_stands_twice_in_them() -> None:
    schema = describe_answer(Everything)
    value = {"tags": ["a", "b", "a"], "items": [1, 1]}
    assert [where for where, _ in sets_in(schema, schema, value)] == ["answer.tags"]
    assert list(repeats(schema, value)) == ["answer.tags: 'a' stands there more than once"]
    assert list(repeats(schema, value | {"tags": ["a", "b"]})) == []
    assert list(repeats(describe_answer(SourceConfig), {"fields": {"a": "b"}})) == []
