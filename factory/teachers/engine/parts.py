"""The parts that a row goes through the engine in, and what is asked of the engine for each.

    part         goes in                                     comes out
    whole        prompt                                      reasoning, its end marker, answer
    reasoning    prompt                                      reasoning, until its marker, the turn's end or its budget
    answer       prompt + reasoning + the marker's own ids   answer
    scored       prompt + all but the last id of the rest    nothing but signals

    most rows           whole
    the others          reasoning -> answer -> scored
    a turn that ends
    in its reasoning    whole -> answer -> scored

The others are those whose end marker is several tokens, or whose budget vLLM could not keep. A row of several parts has
its signals from the last one, taken over the ids that it has in the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from factory.hashing import derive_seed
from factory.teachers.fit import reasoning_budget
from factory.teachers.prompt_ids import PromptEncoder

Part = Literal["whole", "reasoning", "answer", "scored"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is in the engine: a part of a row."""

    # a line of the input: the fields of a `Prompt` that `factory.teachers.vllm` sends
    prompt: dict[str, Any]
    # P ids, as they went in
    prompt_ids: list[int]
    part: Part = "whole"
    # of the completion those that exist already: all T that are scored, all before an answer
    completion_ids: list[int] = field(default_factory=list)
    # why the generation that is scored had ended; empty while there is none
    finish_reason: str = ""
    # whether the prompt ends inside an open reasoning
    reasons: bool = True
    # where the answer begins in the completion; None where its ids must tell
    answer_start: int | None = None
    # of the completion 1 where an id is of a turn that is scored; empty where all are
    mask: tuple[int, ...] = ()
    # of a prompt with pictures what the processor has made of them, with the prompt's ids; see `pictures`
    vision: dict[str, Any] | None = None
    # the engine's own name for it: vLLM adds random letters to ours, and the worker sees only the result
    inner: str = ""

    @property
    def name(self) -> str:
        return f"{self.prompt['id']}.{self.prompt['attempt']}.{self.part}"

    @property
    def inputs(self) -> list[int]:
        # the last of the ids that are scored is never an input: nothing is predicted from it
        return self.prompt_ids + (self.completion_ids[:-1] if self.part == "scored" else self.completion_ids)

    @property
    def candidates(self) -> tuple[list[int], list[int]] | None:
        """Of a transcript that names some: ids, and how many each id of the completion has."""
        known = self.prompt["transcript"]
        return (known["candidate_ids"], known["candidate_counts"]) if known and known["candidate_counts"] else None

    @property
    def given(self) -> dict[str, Any]:
        """What the engine is given: the ids that go in and, beside them, the pictures."""
        return (self.vision or {}) | {"prompt_token_ids": self.inputs}

    @property
    def keeps(self) -> bool:
        """Whether signals may be taken of this part: of all ids of a row, or none."""
        return self.prompt["keeps"] and self.part in ("whole", "scored")


class Parts:
    """Chooses and describes the parts of rows. `schemas` are the grammars of the tasks, None where answers are free;
    `flat_k`: so many of vLLM's own logprobs must do, as the worker lacks the places for capture; 0 where it has them.
    """

    def __init__(self, encoder: PromptEncoder, window: int, schemas: Mapping[str, Any] | None, flat_k: int) -> None:
        self.encoder = encoder
        self.markers = encoder.markers
        self.window = window
        self.schemas = schemas
        self.flat_k = flat_k

    def first(self, whole: Request) -> Part:
        """What a row begins with: its reasoning alone where vLLM could not end it or keep its budget."""
        if self.markers is None or not whole.reasons:
            return "whole"
        budget = self.budget(whole)
        # vLLM finds both markers by their ids, and counts from the first of them
        counts = budget is None or self.encoder.shows_opening(whole.prompt_ids)
        if self.markers.end_id is not None and (counts or self._is_flat(whole)):
            return "whole"
        return "reasoning" if budget else "answer"

    def stopped_inside(self, request: Request, ids: list[int]) -> bool:
        """Whether a row that has stopped did so inside its reasoning, and there is room for an answer."""
        end = None if self.markers is None or not request.reasons else self.markers.end_id
        if request.part != "whole" or end is None or end in ids:
            return False
        return len(ids) < self.total(request) and not self._is_flat(request)

    def _is_flat(self, request: Request) -> bool:
        """Whether a row has the engine's own logprobs: those of ids that were given would be missing."""
        return bool(self.flat_k) and request.keeps

    def total(self, request: Request) -> int:
        """The most tokens of a completion: one that fills the window is cut there, as at its max_tokens."""
        return min(int(request.prompt["sampling"]["max_tokens"]), self.window - len(request.prompt_ids))

    def budget(self, request: Request) -> int | None:
        """The most tokens of the reasoning; None where only the completion's end ends it."""
        thinking: int | None = request.prompt["sampling"]["thinking_tokens"]
        if self.markers is None or not request.reasons:
            return None
        # a model with markers of its own ends its reasoning itself; one that was asked for it in words often does not
        if self.markers.end_id is not None and not self.markers.asked:
            return thinking
        return reasoning_budget(thinking, self.total(request), len(self.encoder.closing_ids))

    def params(self, request: Request) -> Any:
        """vLLM's sampling parameters for a part."""
        from vllm import SamplingParams
        from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

        prompt, scored = request.prompt, request.part == "scored"
        sampling = prompt["sampling"] | {"seed": prompt["seed"]}  # its own: no row depends on who shares its batch
        del sampling["thinking_tokens"]
        if loop := sampling.pop("stop_repetition"):
            sampling["repetition_detection"] = RepetitionDetectionParams(**loop)
        # vLLM has to sample one token after those that are scored, and it is thrown away. Of a cached prefix (a job may
        # have one that keeps the logprobs of completions alone) nothing would be computed
        prefill = {"max_tokens": 1, "temperature": 0.0, "skip_reading_prefix_cache": True}
        asked = prefill if scored else sampling | self._special(request)
        # ids are what counts; their text is made once, when all are there
        return SamplingParams(**{"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY} | asked)

    def _special(self, request: Request) -> dict[str, Any]:
        """What a part that is generated has beside the sampling of its task."""
        from vllm.sampling_params import StructuredOutputsParams

        prompt = request.prompt
        if request.part == "reasoning":
            return {"max_tokens": self.budget(request)} | self._reasoning_stops()
        special: dict[str, Any] = {
            "max_tokens": self.total(request) - len(request.completion_ids),
            # those of the model's configuration vLLM knows; not the one that only the chat template writes
            "stop_token_ids": sorted(self.encoder.end_ids),
        }
        if request.part == "answer":  # with the seed of its reasoning it would repeat that one's draws
            special["seed"] = derive_seed(prompt["seed"], "answer")
        elif self.markers is not None and self.markers.end_id is not None:
            special["thinking_token_budget"] = self.budget(request)
        if self._is_flat(request):
            special |= {"logprobs": self.flat_k, "flat_logprobs": True}
        schema = (self.schemas or {}).get(prompt["task"])  # a task whose answer is a free text has none
        if schema is not None:
            special["structured_outputs"] = StructuredOutputsParams(json=schema)
        return special

    def _reasoning_stops(self) -> dict[str, Any]:
        """What ends a reasoning that is generated alone."""
        assert self.markers is not None
        ends = sorted(self.encoder.end_ids)
        if self.markers.end_id is not None:
            return {"stop_token_ids": [*ends, self.markers.end_id]}
        # an end marker of several tokens may be spelt in others than its own encoding, so it is looked for in text
        return {
            "stop_token_ids": ends,
            "stop": [self.markers.end],
            "include_stop_str_in_output": True,
            "detokenize": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
