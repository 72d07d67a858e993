"""The engine between prompts and generations: what is in it, how each is begun, and what its end is made into.

A prompt is answered, and, where signals are taken by a prefill, its finished ids go through the engine once more; a
transcript goes through it once, as it stands. Whatever way, each prompt that was added comes out as one generation.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from factory.errors import one_line
from factory.records import Generation
from factory.signals import Array, Attention, HiddenStates, Logprobs, SignalSpec
from factory.teachers.chosen import keep_chosen
from factory.teachers.engine.build import (
    Unfit,
    build_llm,
    choose_markers,
    end_grammars_in,
    load_tokenizer,
    make_encoder,
    require_some_fit,
    tokenizer_hash,
)
from factory.teachers.engine.flat import TOLD, read_flat, require_enough
from factory.teachers.fit import refuse_prompt, refuse_transcript
from factory.teachers.prompt_ids import TemplateRefusal
from factory.teachers.reasoning import SplitCompletion, split_completion
from factory.teachers.spool import SpoolWriter, as_experts, as_logprobs


@dataclass(frozen=True, slots=True)
class Request:
    """What is in the engine: a prompt to answer, or, with `completion_ids`, a prefill that scores them."""

    # the engine's own name for it: vLLM adds random letters to ours, and the worker sees only the result
    inner: str
    # a line of the input: the fields of a `Prompt` that `factory.teachers.vllm` sends
    prompt: dict[str, Any]
    # P ids, as they went in
    prompt_ids: list[int]
    # T ids that are scored; None while they are still to be generated
    completion_ids: list[int] | None = None
    # why the generation that is scored had ended; empty while there is none
    finish_reason: str = ""
    # whether the prompt ends inside an open reasoning
    reasons: bool = True


class Engine:
    """A vLLM engine with capture installed, and what is needed to turn its outputs into generations.

    `requests` are those in the engine now, by the name we gave them. `decoding`: signals are taken while it generates,
    not by a prefill afterwards. `flat`: the worker lacks the places for capture, and vLLM's own logprobs must do.
    """

    def __init__(self, setup: dict[str, Any], tell: Callable[[str], None] = lambda _: None) -> None:
        self.teacher = setup["teacher"]
        self.schemas = setup["schemas"]
        self.constrain = setup["constrain"]
        self.student = setup["student"]
        self.signals = SignalSpec(**setup["signals"] | {"layers": tuple(setup["signals"]["layers"])})
        tell("reading the tokenizer")
        self.tokenizer = load_tokenizer(self.teacher)
        self.markers = choose_markers(self.tokenizer, self.teacher["reasoning"])
        self.encoder = make_encoder(self.tokenizer, self.markers, setup)
        # all that can be found unfit without the engine is found before it is started
        require_some_fit(self.encoder, setup)
        tell("importing vLLM")
        end_grammars_in(sorted(self.encoder.end_ids))
        self.llm = build_llm(self.teacher, setup["settings"], self.markers, self.signals.top_k, tell)
        self.window = int(self.llm.llm_engine.model_config.max_model_len)
        self.vocab = int(self.llm.llm_engine.model_config.get_vocab_size())
        self.decoding = setup["capture"] == "decode"
        self.flat = self._install()
        self.spool = SpoolWriter(Path(setup["spool"]))
        self.requests: dict[str, Request] = {}

    def _install(self) -> bool:
        """Begin to capture; true where the engine's own logprobs must do. Raises Unfit where they would not."""
        try:
            answers = self._tell_worker("factory_install", self.signals, self.decoding)
            # one answer a worker; all run the same code, so whichever lacks something speaks for all
            missing: list[str] = next(filter(None, answers), [])
            if self.signals.any and missing:
                require_enough(self.signals, self.decoding, missing)
                print(f"the worker has no {', '.join(missing)}: {TOLD}", flush=True)
        except ValueError as error:  # neither worker nor model have such a place
            raise Unfit(f"teacher.model: {error}") from None
        return bool(self.signals.any and missing)

    def _tell_worker(self, method: str, *args: Any) -> list[Any]:
        answers: list[Any] = self.llm.llm_engine.collective_rpc(method, args=args)
        return answers

    def info(self) -> dict[str, Any]:
        """What gives the rows their meaning, for the manifest."""
        import torch
        import transformers
        import vllm

        config = self.llm.llm_engine.model_config
        return {
            "engine": {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
            "dtype": str(config.dtype).removeprefix("torch."),
            "max_model_len": self.window,
            "vocab_size": self.vocab,
            "tokenizer_sha256": tokenizer_hash(self.tokenizer),
            "settings": self._settings(),
            **({"distribution": TOLD} if self.flat else {}),
            "reasoning_markers": [self.markers.start, self.markers.end] if self.markers else None,
            "end_token_ids": sorted(self.encoder.end_ids),
        }

    def _settings(self) -> dict[str, Any]:
        """What the engine ended up with of the settings that decide which numbers come out."""
        config = self.llm.llm_engine.vllm_config
        return {
            "eager": config.model_config.enforce_eager,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "speculative": config.speculative_config is not None,
            "kv_cache_dtype": str(config.cache_config.cache_dtype),
            "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        }

    def add(self, prompt: dict[str, Any]) -> Generation | None:
        """Begin a prompt; a prompt that cannot be begun comes back as a failed generation."""
        try:
            if prompt["transcript"] is not None:
                ids, completion_ids = self.encoder.encode_transcript(prompt["messages"], prompt["transcript"])
                return self._score(prompt, ids, completion_ids, "stop", self.markers is not None)
            encoded = self.encoder.encode_prompt(prompt["messages"])
        except TemplateRefusal as error:
            return failed(prompt, [], "refused_by_template", str(error))
        ids = encoded.ids
        if not self._are_known(ids):
            return self._unknown_ids(prompt)
        # a judge's prompt keeps nothing and is shown to no student
        refusal = refuse_prompt(len(ids), self.window, self.student if prompt["keeps"] else None)
        if refusal:
            return failed(prompt, ids, *refusal)
        params = self._params(prompt, self.window - len(ids), encoded.reasons)
        return self._begin(prompt, ids, None, params, reasons=encoded.reasons)

    def _are_known(self, ids: list[int]) -> bool:
        """Whether all ids are the model's: one that is not would end the engine's process."""
        return not ids or 0 <= min(ids) <= max(ids) < self.vocab

    def _unknown_ids(self, prompt: dict[str, Any]) -> Generation:
        detail = f"an id is below 0 or above {self.vocab - 1}, the model's last; was another tokenizer used?"
        return failed(prompt, [], "bad_token_id", detail)

    def _score(
        self, prompt: dict[str, Any], ids: list[int], completion_ids: list[int], why: str, reasons: bool
    ) -> Generation | None:
        """Begin a prefill over ids that exist. The last of them is never an input: nothing is predicted from it."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if not self._are_known(ids) or not self._are_known(completion_ids):
            return self._unknown_ids(prompt)
        # all ids but the last are inputs, and vLLM has to sample one token after them
        student = self.student if prompt["transcript"] is not None else None
        refusal = refuse_transcript(len(ids), len(completion_ids), self.window, student)
        if refusal:
            return failed(prompt, ids, *refusal)
        # that one token is thrown away
        params = SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        return self._begin(prompt, ids, completion_ids, params, why, reasons)

    def _begin(
        self,
        prompt: dict[str, Any],
        ids: list[int],
        completion_ids: list[int] | None,
        params: Any,
        why: str = "",
        reasons: bool = True,
    ) -> Generation | None:
        name = f"{prompt['id']}.{prompt['attempt']}" + ("" if completion_ids is None else ".scored")
        inputs = ids if completion_ids is None else ids + completion_ids[:-1]
        try:
            inner = self.llm.llm_engine.add_request(name, {"prompt_token_ids": inputs}, params)
        except Exception as error:
            # of many types, few of them ValueErrors: whatever it is, it is this request's alone
            return failed(prompt, ids, "refused_by_engine", one_line(error))
        keeps = prompt["keeps"]
        # the worker is told only of what is not as usual, which saves most requests a call to it
        attends = keeps and self.signals.keeps_attention(prompt["id"], len(ids))
        if completion_ids is not None or self.signals.keep == "sampled" or attends or not keeps:
            last_id = None if completion_ids is None else int(completion_ids[-1])
            self._tell_worker("factory_begin", inner, len(ids), prompt["seed"], last_id, attends, keeps)
        self.requests[name] = Request(inner, prompt, ids, completion_ids, why, reasons)
        return None

    def _params(self, prompt: dict[str, Any], room: int, reasons: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = dict(prompt["sampling"])
        thinking = sampling.pop("thinking_tokens")
        # the budget needs an end marker of one token: any other could be spelt in several ways and be missed
        budget = thinking if reasons and self.markers is not None and self.markers.end_id is not None else None
        # a completion that fills the window is cut there, as one that reaches its max_tokens
        sampling["max_tokens"] = min(sampling["max_tokens"], room)
        own = {"logprobs": self.signals.top_k, "flat_logprobs": True} if self.flat and prompt["keeps"] else {}
        return SamplingParams(
            **sampling,
            **own,
            # of its own, so that a row does not depend on who shares its batch
            seed=prompt["seed"],
            # ids are what counts; their text is made once, when all are there
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # those of the model's configuration vLLM knows; not the one that only the chat template writes
            stop_token_ids=sorted(self.encoder.end_ids),
            thinking_token_budget=budget,
            structured_outputs=StructuredOutputsParams(json=self.schemas[prompt["task"]]) if self.constrain else None,
        )

    def step(self) -> list[Generation]:
        """One step of the engine; the generations that finished in it."""
        outputs = self.llm.llm_engine.step()
        finished = (self._finish(output) for output in outputs if output.finished)
        return [generation for generation in finished if generation is not None]

    def _finish(self, output: Any) -> Generation | None:
        request = self.requests.pop(output.request_id)
        prompt, completion = request.prompt, output.outputs[0]
        # vLLM gave it up itself (an abort, an error): what capture has of it belongs to no row
        if completion.finish_reason not in ("stop", "length"):
            self._tell_worker("factory_drop", request.inner)
            return failed(prompt, request.prompt_ids, f"engine_{completion.finish_reason}", "see engine.log")
        if request.completion_ids is not None:
            return self._generation(request, request.completion_ids, request.finish_reason)
        # its second way through the engine, over the exact ids it was given and has produced
        if self.signals.any and not self.decoding and prompt["keeps"]:
            ids = list(completion.token_ids)
            return self._score(prompt, request.prompt_ids, ids, completion.finish_reason, request.reasons)
        flat = read_flat(completion.logprobs, self.signals) if self.flat and prompt["keeps"] else None
        return self._generation(request, completion.token_ids, completion.finish_reason, flat)

    def _generation(
        self, request: Request, completion_ids: Any, finish_reason: str, flat: Logprobs | None = None
    ) -> Generation:
        ids_T, prompt_ids = np.array(completion_ids, np.int32), np.array(request.prompt_ids, np.int32)
        split = self._split(request, ids_T)
        arrays = self._take(request.inner, len(ids_T), len(prompt_ids) + len(ids_T) - 1)
        # those of the prompt come first, where they are kept; the completion's are the last T
        captured = as_logprobs(arrays)
        before = len(captured.sampled_T) - len(ids_T) if captured else 0  # of the prompt's tokens
        all_logprobs = captured or flat
        made = Generation(
            prompt_id=request.prompt["id"],
            attempt=request.prompt["attempt"],
            text=split.text,
            reasoning=split.reasoning,
            answer_text=split.answer,
            prompt_token_ids=prompt_ids,
            completion_token_ids=ids_T,
            answer_start=split.answer_start,
            finish_reason=finish_reason,
            logprobs=all_logprobs and all_logprobs.part(slice(before, None)),
            prompt_logprobs=all_logprobs.part(slice(before)) if all_logprobs and self.signals.of_prompt else None,
            hidden_states=HiddenStates(self.signals.layers, arrays["bits_NLH"]) if "bits_NLH" in arrays else None,
            experts=as_experts(arrays["blocks"].tolist(), arrays) if "blocks" in arrays else None,
            attention=Attention(self.signals.attention, arrays["maps_LHNN"]) if "maps_LHNN" in arrays else None,
        )
        return keep_chosen(made, self.signals)

    def _split(self, request: Request, ids_T: Array) -> SplitCompletion:
        """Reasoning and answer of a completion; those of a transcript's turn as they were given."""
        stops = self.encoder.stop_ids
        split = split_completion(self.tokenizer, ids_T, self.markers if request.reasons else None, stops)
        transcript = request.prompt["transcript"]
        if transcript is None:
            return split
        if split.answer_start >= len(ids_T):  # it never reasoned, or never stopped to
            split = split_completion(self.tokenizer, ids_T, None, stops)
        turn = transcript["turn"]
        if turn is None:
            return split
        return replace(split, reasoning=turn.get("reasoning_content"), answer=turn["content"])

    def _take(self, inner: str, tokens: int, inputs: int) -> dict[str, Any]:
        answers = self._tell_worker("factory_take", inner, tokens, inputs) if self.signals.any else []
        # of several workers only the first keeps anything
        return next((answer for answer in answers if answer), {})


def failed(prompt: dict[str, Any], ids: list[int], failure: str, detail: str) -> Generation:
    return Generation.failed(prompt["id"], prompt["attempt"], failure, detail, np.array(ids, np.int32))
