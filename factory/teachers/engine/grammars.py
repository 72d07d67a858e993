"""What vLLM does about a grammar that does not compile: it gives the request up and says why in its log alone.

vLLM compiles in threads of its own and tries little beforehand, and its guidance backend takes a matcher that is broken
from the start (one beyond llguidance's limits) for one that allows nothing but the end. Either is one request's matter.
"""

from collections.abc import Callable
from typing import Any

from factory.errors import one_line
from factory.teachers.engine.wrap import wrap


def watch_grammars() -> dict[str, str]:
    """Why grammars did not compile, by the engine's own name of the request: filled from now on, as it happens."""
    from vllm.v1.structured_output import StructuredOutputManager

    refused: dict[str, str] = {}

    def create(inner: Callable[..., Any], manager: Any, request: Any) -> Any:
        try:
            grammar = inner(manager, request)
            broken = grammar.ll_matcher.get_error()
            if broken:
                raise ValueError(broken)
        except Exception as error:  # of llguidance, bare ones
            refused[request.request_id] = f"grammar: {one_line(error)}"
            raise
        return grammar

    wrap(StructuredOutputManager, "_create_grammar", create)
    return refused
