"""A reasoning parser for vLLM that knows only two markers, the end one by its id, so that one path serves every model.

vLLM asks it when the free reasoning is over and the grammar of the answer begins (vllm/reasoning/).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from vllm.reasoning import ReasoningParser, ReasoningParserManager

from factory.teachers.reasoning import Markers, decode, ends_open

PARSER_NAME = "factory_markers"
TAIL = 32  # tokens that surely hold a whole marker


def register_parser(markers: Markers, end_id: int) -> None:
    """Make the parser for these markers known to vLLM as `factory_markers`."""

    class MarkerParser(ReasoningParser):
        @property
        def reasoning_start_str(self) -> str:
            return markers.start

        @property
        def reasoning_end_str(self) -> str:
            return markers.end

        def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
            # asked of prompts: most of ours end inside the reasoning; where the template has closed it, the grammar
            # holds from the first token
            return not ends_open(decode(self.model_tokenizer, list(input_ids[-TAIL:])), markers)

        def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
            # asked after every token, with the ids it brought
            return end_id in delta_ids

        def extract_content_ids(self, input_ids: list[int]) -> list[int]:
            raise NotImplementedError("completions are split by factory.teachers.reasoning")

        def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
            raise NotImplementedError("completions are split by factory.teachers.reasoning")

        def extract_reasoning_streaming(self, *args: Any, **kwargs: Any) -> None:
            raise NotImplementedError("completions are split by factory.teachers.reasoning")

    # vLLM finds parsers by name, in this process; a second engine in it replaces the markers of the first
    ReasoningParserManager.register_module(PARSER_NAME, force=True, module=MarkerParser)
