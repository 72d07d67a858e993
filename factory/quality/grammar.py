"""Grammars, tried before any engine starts: a schema that does not compile would end the engine at every request.

llguidance, which vLLM compiles them with, comes with the engine. Where it is not installed nothing is known and
nothing is said; the machine that runs the engine tries again.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from factory.tasks.answers import places


def find_grammar_problems(schema: dict[str, Any]) -> list[str]:
    """Each innermost place of a schema that cannot be compiled, and why; empty where all can."""
    why = _compile_error(_text(schema, schema))
    if not why:
        return []
    found = list(_innermost(schema))
    return found or [f"Answer: {why}"]


def _innermost(schema: dict[str, Any]) -> Iterator[str]:
    told: dict[str, str] = {}
    for where, part in places(schema, schema):
        if "holds" not in part and (why := _compile_error(_text(schema, part))):
            told[where] = why
    for where, why in told.items():
        if not any(other.startswith(f"{where}.") for other in told):
            yield f"{where}: {why}"


def allows(schema: dict[str, Any], text: str) -> bool | None:
    """Whether a teacher held to the grammar could write this text; None where nothing here can tell."""
    found = _open(_text(schema, schema))
    if found is None:
        return None
    matcher, tokenizer = found
    ids = tokenizer.tokenize_str(text)
    written = matcher.try_consume_tokens(ids)
    return bool(written == len(ids) and matcher.is_accepting())


def _text(root: dict[str, Any], part: dict[str, Any]) -> str:
    """A part as a schema of its own, with the definitions that it may refer to."""
    return json.dumps({**({"$defs": root["$defs"]} if "$defs" in root else {}), **part}, sort_keys=False)


@cache
def _compile_error(schema: str) -> str:
    """Why llguidance cannot compile a schema, as vLLM hands it over; empty where it can, or is not installed."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        return ""
    return " ".join(str(LLMatcher.validate_grammar(_grammar(schema))).split())


def _open(schema: str) -> Any:
    try:
        from llguidance import LLMatcher, LLTokenizer
    except ImportError:
        return None
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, _grammar(schema), log_level=0)
    return (matcher, tokenizer)


def _grammar(schema: str) -> str:
    from llguidance import LLMatcher

    # as vLLM's guidance backend has it with `disable_any_whitespace`
    return str(LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False}))
