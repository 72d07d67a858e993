"""A task's JSON schema in what an endpoint's dialect can say: what it cannot is left out, and checked by us later.

An answer is validated by the task's own pydantic model whatever the endpoint was told, so leaving a bound out loosens
the endpoint's grammar and no gate. Only what would change an answer's shape is refused: a map with free keys has no
place in OpenAI's strict schemas, whose objects name all their keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Dialect = Literal["vllm", "openai", "gemini"]

COMMON: Final = (
    *("$defs", "$ref", "type", "title", "description", "enum", "items", "minItems", "maxItems", "minimum", "maximum"),
    *("anyOf", "properties", "required", "additionalProperties", "format"),
)
SAYS: Final[Mapping[Dialect, frozenset[str]]] = {
    "openai": frozenset({*COMMON, "const", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "pattern"}),
    "gemini": frozenset({*COMMON, "$id", "$anchor", "oneOf", "prefixItems", "propertyOrdering"}),
}
# of strings alone, as each documents them
FORMATS: Final[Mapping[Dialect, frozenset[str]]] = {
    "openai": frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}),
    "gemini": frozenset({"date-time", "date", "time"}),
}
NAMED: Final = ("properties", "$defs")  # keys whose values are maps of names to schemas
LISTED: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
# of what is left out those that say what an answer consists of: without them another shape would come
SHAPING: Final = ("allOf", "not", "if", "then", "else", "patternProperties", "prefixItems", "dependentRequired")
DEEPEST: Final = 10
MOST_PROPERTIES: Final = 5000


class CannotSay(Exception):
    """A schema that a dialect has no words for; the message names the place."""


@dataclass(slots=True)
class Compiled:
    """A schema as it is sent, and the keywords that were left out of it, each with how often."""

    schema: dict[str, Any]
    left_out: dict[str, int] = field(default_factory=dict)


def compile_schema(schema: dict[str, Any], dialect: Dialect) -> Compiled:
    """The schema in a dialect. Raises CannotSay where no schema of the dialect gives answers of this shape."""
    made = Compiled({})
    if dialect == "vllm":  # its grammars take what ours do
        made.schema = schema
        return made
    made.schema = _compile(schema, dialect, "Answer", made.left_out, 1)
    if dialect == "openai":
        if made.schema.get("type") != "object":
            raise CannotSay("Answer: not one object, and OpenAI's strict schemas begin with one")
        if (count := _count_properties(made.schema)) > MOST_PROPERTIES:
            raise CannotSay(f"Answer: {count:,} properties, OpenAI's strict schemas take {MOST_PROPERTIES:,}")
    return made


def _compile(part: Any, dialect: Dialect, where: str, out: dict[str, int], depth: int) -> Any:
    if not isinstance(part, dict):
        return part
    if dialect == "openai" and depth > 2 * DEEPEST:
        raise CannotSay(f"{where}: nested deeper than OpenAI's strict schemas go")
    part = _rename(part, dialect)
    made: dict[str, Any] = {}
    for key, value in part.items():
        if "$ref" in part and key not in ("$ref", "$defs"):  # both dialects want it alone
            _leave_out(key, out)
        elif key in SHAPING and key not in SAYS[dialect]:
            raise CannotSay(f"{where}: {key} is not in {dialect}'s schemas")
        elif key not in SAYS[dialect] or (key == "format" and value not in FORMATS[dialect]):
            _leave_out(key, out)
        elif key in NAMED:
            made[key] = {n: _compile(v, dialect, f"{where}.{n}", out, depth + 1) for n, v in value.items()}
        elif key in LISTED:
            made[key] = [_compile(v, dialect, f"{where}.{key}.{n}", out, depth + 1) for n, v in enumerate(value)]
        elif key in ("items", "additionalProperties"):
            made[key] = _compile(value, dialect, f"{where}.{key}", out, depth + 1)
        else:
            made[key] = value
    return _make_strict(made, where) if dialect == "openai" else made


def _rename(part: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The same said in words that the dialect has."""
    part = dict(part)
    if len(part.get("allOf", ())) == 1:  # as pydantic wraps a reference that has a description
        part |= part.pop("allOf")[0]
    if dialect == "openai" and "oneOf" in part:
        part["anyOf"] = part.pop("oneOf")
        part.pop("discriminator", None)
    if dialect == "gemini" and "const" in part:
        part["enum"] = [part.pop("const")]
    return part


def _make_strict(part: dict[str, Any], where: str) -> dict[str, Any]:
    """An object of OpenAI's: every key is required, and there are no others."""
    if part.get("type") != "object":
        return part
    if isinstance(part.get("additionalProperties"), dict) or "properties" not in part:
        raise CannotSay(f"{where}: a map with free keys, and OpenAI's strict schemas name every key")
    return part | {"additionalProperties": False, "required": list(part["properties"])}


def _count_properties(part: Any) -> int:
    if isinstance(part, list):
        return sum(map(_count_properties, part))
    if not isinstance(part, dict):
        return 0
    return len(part.get("properties", ())) + sum(map(_count_properties, part.values()))


def _leave_out(key: str, out: dict[str, int]) -> None:
    out[key] = out.get(key, 0) + 1
