"""An answer's JSON schemas: pydantic's own, closed, for prompts; and the one that a grammar engine holds a teacher to.

A grammar says less than pydantic: it cannot count repeated items and knows few formats, and what it does not know ends
the engine. So the second schema has only words that every grammar engine here has (llguidance; its documentation lists
them), says with patterns what pydantic says with types, and leaves the rest to pydantic. Each value has one spelling in
it, the one that pydantic writes.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, RootModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from factory.job.gates import StyleConfig

Schema = dict[str, Any]

YEAR: Final = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
LEAP_YEAR: Final = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
LONG_MONTH: Final = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
SHORT_MONTH: Final = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
FEBRUARY: Final = "02-(?:0[1-9]|1[0-9]|2[0-8])"
DATE: Final = f"(?:{YEAR}-(?:{LONG_MONTH}|{SHORT_MONTH}|{FEBRUARY})|{LEAP_YEAR}-02-29)"
MICROSECONDS: Final = "|".join(f"[0-9]{{{5 - zeros}}}[1-9]0{{{zeros}}}" for zeros in range(6))  # any but six zeros
TIME: Final = rf"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.(?:{MICROSECONDS}))?"
ZONE: Final = "(?:Z|[+-](?:(?:0[1-9]|1[0-9]|2[0-3]):[0-5][0-9]|00:(?:0[1-9]|[1-5][0-9])))"
DAYS: Final = "(?:[1-9]|[1-9][0-9]|[12][0-9]{2}|3[0-5][0-9]|36[0-4])D"  # pydantic writes 365 days as a year
HOURS, MINUTES = "(?:[1-9]|1[0-9]|2[0-3])H", "(?:[1-9]|[1-5][0-9])M"
FRACTION: Final = r"\.[0-9]{0,5}[1-9]"
SECONDS: Final = rf"(?:(?:[1-9]|[1-5][0-9])(?:{FRACTION})?|0{FRACTION})S"
CLOCK: Final = f"T(?:{HOURS}(?:{MINUTES})?(?:{SECONDS})?|{MINUTES}(?:{SECONDS})?|{SECONDS})"
DURATION: Final = f"(?:PT0S|-?P(?:[1-9][0-9]{{0,5}}Y(?:{DAYS})?(?:{CLOCK})?|{DAYS}(?:{CLOCK})?|{CLOCK}))"

BOUNDED_FORMATS: Final = ("date", "time", "date-time", "uuid", "ipv4", "ipv6")
FORMATS: Final = (*BOUNDED_FORMATS, "duration", "email", "hostname", "uri")  # all that llguidance knows
END: Final = "bound it, or a weak teacher may never end it"


class GrammarSchema(GenerateJsonSchema):
    """Pydantic's JSON schema with patterns for what has a form, so that a teacher can write no impossible date."""

    def date_schema(self, schema: core_schema.DateSchema) -> Schema:
        return _text(DATE)

    def time_schema(self, schema: core_schema.TimeSchema) -> Schema:
        return _text(TIME + _zone(schema.get("tz_constraint")))

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> Schema:
        return _text(f"{DATE}T{TIME}{_zone(schema.get('tz_constraint'))}")

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> Schema:
        told = super().timedelta_schema(schema)
        return _text(DURATION) if told.get("type") == "string" else told

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> Schema:
        return _text(decimal_pattern(schema))


def _text(pattern: str) -> Schema:
    return {"type": "string", "pattern": f"^{pattern}$"}


def _zone(constraint: object) -> str:
    return {"naive": "", "aware": ZONE}.get(str(constraint), f"{ZONE}?")


def decimal_pattern(schema: core_schema.DecimalSchema) -> str:
    """Decimals as `str` writes most of them: no plus, no exponent, no zero too many in front.

    Digits are as many as max_digits and decimal_places allow, or as the bounds have; without any there is no end. The
    zero before a point is no digit to pydantic, and the one before nothing is. (`1E+3`, which pydantic takes from a
    teacher without a grammar, is left out: what `solve` writes so is told by `factory tasks`.)
    """
    most, places = schema.get("max_digits"), schema.get("decimal_places")
    low = next((schema[key] for key in ("ge", "gt") if schema.get(key) is not None), None)
    high = next((schema[key] for key in ("le", "lt") if schema.get(key) is not None), None)
    sign = "" if low is not None and low >= 0 else "-?"
    if most is not None and places is None:
        ends = ["0" + _fraction(most), *(_digits(whole) + _fraction(most - whole) for whole in range(1, most + 1))]
        return f"{sign}(?:{'|'.join(ends)})"
    before = most - places if most is not None and places is not None else None
    if before is not None and before < 1:
        return rf"{sign}0\.[0-9]{_times(1, most)}"
    if before is None and low is not None and high is not None:
        before = max(len(str(abs(int(bound)))) for bound in (low, high))
    return f"{sign}(?:0|[1-9][0-9]{_times(0, before)})" + _fraction(places)


def _times(least: int, most: int | None) -> str:
    return ("*" if least == 0 else "+") if most is None else f"{{{least},{max(least, most - (least == 0))}}}"


def _digits(count: int) -> str:
    return "[1-9]" if count == 1 else f"[1-9][0-9]{{{count - 1}}}"


def _fraction(places: int | None) -> str:
    return "" if places is not None and places < 1 else rf"(?:\.[0-9]{_times(1, places)})?"


def describe_answer(answer: type[BaseModel]) -> Schema:
    """Pydantic's JSON schema, closed: grammar engines and teachers invent keys wherever they are allowed."""
    return _close(answer.model_json_schema())


def describe_grammar(answer: type[BaseModel]) -> Schema:
    """The same for a grammar engine: what it cannot say is left out, and pydantic says it when the answer is there."""
    schema = _close(answer.model_json_schema(schema_generator=GrammarSchema))
    for part in _subschemas(schema):
        part.pop("uniqueItems", None)
        if part.get("type") == "string" and part.get("format") not in (None, *FORMATS):
            del part["format"]
        names = part.pop("propertyNames", None)
        if names is not None:
            _spell_out(schema, part, names)
    return schema


def _spell_out(root: Schema, part: Schema, names: Schema) -> None:
    """Keys that can be counted become properties; other rules for keys are pydantic's alone."""
    names = _resolve(root, names)
    keys = names.get("enum", [names["const"]] if "const" in names else [])
    if keys:
        part["properties"] = {key: part["additionalProperties"] for key in keys}
        part["additionalProperties"] = False
        part.pop("minProperties", None), part.pop("maxProperties", None)


def _subschemas(schema: Any) -> Iterator[Schema]:
    """Every object inside a JSON schema, the schema itself first."""
    if isinstance(schema, dict):
        yield schema
        for value in list(schema.values()):
            yield from _subschemas(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _subschemas(value)


def _close(schema: Schema) -> Schema:
    for part in _subschemas(schema):
        if part.get("type") == "object" and isinstance(part.get("properties"), dict):
            part.setdefault("additionalProperties", False)
    return schema


def _resolve(root: Schema, schema: Any) -> Schema:
    """A schema without its reference; {} for `true`."""
    if not isinstance(schema, dict):
        return {}
    if "$ref" in schema:
        return _resolve(root, root["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    return schema


def places(
    root: Schema, schema: Any, path: str = "Answer", above: tuple[str, ...] = ()
) -> Iterator[tuple[str, Schema]]:
    """Every part of a schema with its place in an answer (`Answer.points.*`); a part that holds itself once."""
    name = schema.get("$ref", "") if isinstance(schema, dict) else ""
    if name in above:
        yield path, {"holds": name.removeprefix("#/$defs/")}
        return
    above = (*above, name) if name else above
    part = _resolve(root, schema)
    yield path, part
    for key, inner in part.get("properties", {}).items():
        yield from places(root, inner, f"{path}.{key}", above)
    more = [*part.get("prefixItems", []), *part.get("patternProperties", {}).values()]
    more += [part[key] for key in ("items", "additionalProperties") if isinstance(part.get(key), dict)]
    for inner in more:
        yield from places(root, inner, f"{path}.*", above)
    for key in ("anyOf", "oneOf", "allOf"):
        for inner in part.get(key, []):
            yield from places(root, inner, path, above)


def find_problems(answer: type[BaseModel], schema: Schema, path: Path) -> Iterator[str]:
    """What keeps an answer from being written as it is read: no object, secrets, names that are not the same."""
    if issubclass(answer, RootModel):
        yield f"{path}: Answer is a RootModel, need a JSON object: make it a BaseModel with the value in a field"
        return
    for where, part in places(schema, schema):
        if part.get("writeOnly"):
            yield f"{path}: {where}: a secret is written as stars and can be no part of an answer; use str"
    written_schema = answer.model_json_schema(mode="serialization")
    written = dict.fromkeys(_keys(written_schema))
    for where in dict.fromkeys(_keys(schema)):
        if where not in written:
            told = "it has a validation alias of its own or is excluded; give it one `alias` for both, or none"
            yield f"{path}: {where}: is read under this name but not written under it: {told}"


def _keys(schema: Schema) -> Iterator[str]:
    return (f"{where}.{key}" for where, part in places(schema, schema) for key in part.get("properties", {}))


def find_warnings(answer: Schema, grammar: Schema, path: Path) -> Iterator[str]:
    """What a weak teacher may never end or may invent, each with its place in the answer."""
    told: dict[str, None] = {}
    for where, part in places(grammar, grammar):
        told |= dict.fromkeys(f"{path}: {where}: {line}" for line in _loose(part))
    for where, part in places(answer, answer):
        if part.get("type") == "string" and part.get("format") not in (None, *FORMATS):
            told[f"{path}: {where}: format {part['format']!r} is beyond a grammar; say it in the prompt"] = None
    yield from told


def _loose(part: Schema) -> Iterator[str]:
    if "holds" in part:
        yield f"holds {part['holds']} in itself without end; a weak teacher may never end it"
    elif not set(part) - {"title", "description", "default", "examples"}:
        yield "anything goes (Any); give it a type, or a weak teacher may never end it"
    kind = part.get("type")
    if kind == "string" and not _ends(part):
        yield f"string without max_length; {END}"
    if kind == "array" and "maxItems" not in part and "prefixItems" not in part:
        yield f"list without max_length; {END}"
    if kind == "object" and part.get("additionalProperties", True) is not False and "maxProperties" not in part:
        yield f"object with keys of the teacher's choice and without max_length; name its keys, or {END}"
    if kind == "integer" and not ({"enum", "const"} & set(part) or _bounded(part)):
        yield f"number without ge and le; {END}"
    if kind == "number" and not {"enum", "const"} & set(part):
        yield "float: a grammar cannot end its digits; use int, or Decimal with decimal_places"


def _bounded(part: Schema) -> bool:
    return bool({"minimum", "exclusiveMinimum"} & set(part)) and bool({"maximum", "exclusiveMaximum"} & set(part))


def _ends(part: Schema) -> bool:
    if {"maxLength", "enum", "const"} & set(part) or part.get("format") in BOUNDED_FORMATS:
        return True
    pattern = part.get("pattern", "")
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]", "x", pattern)  # what is escaped or in a class repeats nothing
    return pattern.startswith("^") and pattern.endswith("$") and not re.search(r"[*+]|\{\d*,\}", bare)


def repeats(schema: Schema, value: Any) -> Iterator[str]:
    """The places in an answer where an item stands again in what is a set; pydantic would drop it without a word."""
    for where, items in sets_in(schema, schema, value):
        seen: list[Any] = []
        for item in items:
            if item in seen:
                yield f"{where}: {str(item)[:80]!r} stands there more than once"
                break
            seen.append(item)


def sets_in(root: Schema, schema: Any, value: Any, path: str = "answer") -> Iterator[tuple[str, list[Any]]]:
    """Every list of a value whose schema says that its items are unique, with its place; inner ones first."""
    part = _resolve(root, schema)
    for inner in (one for key in ("anyOf", "oneOf", "allOf") for one in part.get(key, [])):
        yield from sets_in(root, inner, value, path)
    if isinstance(value, dict):
        for key, held in value.items():
            inner = part.get("properties", {}).get(key, part.get("additionalProperties"))
            yield from sets_in(root, inner, held, f"{path}.{key}")
    if isinstance(value, list):
        first = part.get("prefixItems", [])
        for number, item in enumerate(value):
            inner = first[number] if number < len(first) else part.get("items")
            yield from sets_in(root, inner, item, f"{path}.{number}")
        if part.get("uniqueItems"):
            yield path, value


def answer_keys(schema: Schema) -> list[str]:
    """The keys of an answer, by alias where it has one."""
    return list(_resolve(schema, schema).get("properties", {}))


def has_sets(schema: Schema) -> bool:
    return any(part.get("uniqueItems") is True for part in _subschemas(schema))


def check_style(style: StyleConfig, schema: Schema, path: Path) -> Iterator[str]:
    """A problem for each of the style's fields that no answer can have."""
    if style.max_words is not None and style.max_words < style.min_words:
        yield f"{path}: style.max_words {style.max_words}: less than style.min_words {style.min_words}; raise it"
    if style.fields and schema.get("type") == "string":
        yield f"{path}: style.fields: the answer is one text without fields, and style is of all of it; leave it out"
        return
    for field_path in style.fields:
        found = [schema]
        for key in field_path.split("."):
            found = [place for held in found for place in _step(schema, held, key)]
        if not found:
            has = ", ".join(answer_keys(schema))
            yield f"{path}: style.fields: no answer has {field_path!r} (keys: {has}; `*` for each item of a list)"


def _step(root: Schema, schema: Any, key: str) -> list[Any]:
    """The schemas under a key of an object, or under `*` of a list, whichever of its alternatives holds it."""
    part = _resolve(root, schema)
    found = [part.get("items"), *part.get("prefixItems", [])] if key == "*" else []
    found.append(part.get("properties", {}).get(key) or part.get("additionalProperties") or None)
    for name in ("anyOf", "oneOf", "allOf"):
        found += [place for one in part.get(name, []) for place in _step(root, one, key)]
    return [place for place in found if place is not None]
