"""The engine between prompts and generations: what is in it, how each is begun, and what its end is made into.

A prompt is answered, and, where signals are taken by a prefill, its finished ids go through the engine once more; a
transcript goes through it once, as it stands. Whatever way, each prompt that was added comes out as one generation.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from factory.errors import one_line
from factory.messages import ToolCall, text_of
from factory.records import Generation
from factory.signals import Array, Attention, Candidates, HiddenStates, Logprobs, SignalSpec
from factory.teachers.chosen import keep_chosen
from factory.teachers.engine.build import (
    Unfit,
    build_llm,
    choose_markers,
    choose_way,
    end_grammars_in,
    load_tokenizer,
    make_encoder,
    require_some_fit,
    tokenizer_hash,
)
from factory.teachers.engine.calls import CallReader
from factory.teachers.engine.candidates import as_float16
from factory.teachers.engine.flat import TOLD, read_flat, require_enough
from factory.teachers.engine.grammars import watch_grammars
from factory.teachers.engine.handing_out import KEY
from factory.teachers.engine.parts import Parts, Request
from factory.teachers.engine.pictures import PictureRefusal, expand
from factory.teachers.engine.probe import Expected, choose_ids, expect, probe_engine
from factory.teachers.engine.reserve import open_reserve
from factory.teachers.fit import refuse_prompt, refuse_transcript
from factory.teachers.prompt_ids import TemplateRefusal
from factory.teachers.reasoning import SplitCompletion, cut_reasoning, split_completion
from factory.teachers.spool import SpoolWriter, as_experts, as_logprobs
from factory.teachers.turns import last_run


class Engine:
    """A vLLM engine with capture installed, and what is needed to turn its outputs into generations.

    `requests` are those in the engine now, by the name we gave them; `refused` has why grammars did not compile, by the
    engine's own name. `decoding`: signals are taken while it generates, not by a prefill afterwards. `flat`: the worker
    lacks the places for capture, and vLLM's own logprobs must do.
    """

    def __init__(self, setup: dict[str, Any], tell: Callable[[str], None] = lambda _: None) -> None:
        self.teacher = setup["teacher"]
        self.student = setup["student"]
        self.signals = SignalSpec(**setup["signals"] | {"layers": tuple(setup["signals"]["layers"])})
        tell("reading the tokenizer")
        self.tokenizer = load_tokenizer(self.teacher)
        self.markers = choose_markers(self.tokenizer, self.teacher["reasoning"])
        self.encoder = make_encoder(self.tokenizer, self.markers, setup)
        # all that can be found unfit without the engine is found before it is started
        require_some_fit(self.encoder, setup)
        expected = self._expect(setup, tell)
        tell("importing vLLM")
        end_grammars_in(sorted(self.encoder.end_ids))
        self.refused = watch_grammars()
        self.reader = self._open_reader(setup)
        settings = choose_way(self.teacher, setup["settings"], self.signals, setup["layers"])
        self.llm = build_llm(self.teacher, settings, self.markers, self.signals.top_k, tell)
        self.window = int(self.llm.llm_engine.model_config.max_model_len)
        self.vocab = int(self.llm.llm_engine.model_config.get_vocab_size())
        self.decoding = setup["capture"] == "decode"
        self.flat = self._install()
        schemas = setup["schemas"] if setup["constrain"] else None
        flat_k = self.signals.top_k if self.flat else 0
        self.parts = Parts(self.encoder, self.window, schemas, flat_k)
        self.spool = SpoolWriter(Path(setup["spool"]), setup["replica"])
        self.requests: dict[str, Request] = {}
        self.reserve = open_reserve(self.signals, self.llm.llm_engine.model_config, self.teacher["replicas"])
        # the engine's own logprobs are masked by the grammar: a forward without one would differ
        if expected is not None and not self.flat:
            tell("probing it with a short text")
            probe_engine(self.llm, self._tell_worker, self.signals, self.teacher["model"], expected)

    def _expect(self, setup: dict[str, Any], tell: Callable[[str], None]) -> Expected | None:
        """What transformers says of a short text, before vLLM is imported; None where nothing is kept to compare."""
        if not (self.signals.top_k or self.signals.layers):
            return None
        tell("a plain forward of a short text")
        probes, vocab, window = setup["probes"], setup["vocab"], setup["window"]
        # a picture as a word: the probe is of the model's text part
        words = (
            [message | {"content": text_of(message["content"])} for message in probes[0]["messages"]] if probes else []
        )
        ids = choose_ids(self.tokenizer, lambda: self.encoder.encode(words, probes[0]["tools"]), vocab, window)
        return expect(self.teacher, self.signals, ids, setup["routes"])

    def _open_reader(self, setup: dict[str, Any]) -> CallReader | None:
        """What reads tool calls, where some prompt has tools. Raises Unfit."""
        shown = next((probe["tools"] for probe in setup["probes"] if probe["tools"]), "")
        if not shown:
            return None
        return CallReader(self.tokenizer, self.encoder.showing(shown), self.teacher["tool_parser"])

    def _install(self) -> bool:
        """Begin to capture; true where the engine's own logprobs must do. Raises Unfit where they would not."""
        try:
            answers = self._tell_worker("factory_install", self.signals, self.decoding)
            # one answer a worker; all run the same code, so whichever lacks something speaks for all
            missing: list[str] = next(filter(None, answers), [])
            if self.signals.any and missing:
                require_enough(self.signals, self.decoding, self._is_spelt(), missing)
                print(f"the worker has no {', '.join(missing)}: {TOLD}", flush=True)
        except ValueError as error:  # neither worker nor model have such a place
            raise Unfit(f"teacher.model: {error}") from None
        return bool(self.signals.any and missing)

    def _is_spelt(self) -> bool:
        """Whether the reasoning's end is no token of its own."""
        return self.markers is not None and self.markers.end_id is None

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
            **({"tool_parser": self.reader.name} if self.reader is not None else {}),
            "reasoning_markers": [self.markers.start, self.markers.end] if self.markers else None,
            **({"reasoning_closing_ids": self.encoder.closing_ids} if self._is_spelt() else {}),
            "end_token_ids": sorted(self.encoder.end_ids),
        }

    def _settings(self) -> dict[str, Any]:
        """What the engine ended up with of the settings that decide which numbers come out."""
        config, states = self.llm.llm_engine.vllm_config, bool(self.signals.layers)
        return {
            "model_runner": "v2" if config.use_v2_model_runner else "v1",
            "eager": config.model_config.enforce_eager,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            **({"hidden_states": "the model's own" if KEY in config.additional_config else "hooks"} if states else {}),
            "speculative": config.speculative_config is not None,
            "kv_cache_dtype": str(config.cache_config.cache_dtype),
            "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        }

    def add(self, prompt: dict[str, Any]) -> Generation | None:
        """Begin a prompt; a prompt that cannot be begun comes back as a failed generation."""
        try:
            if prompt["transcript"] is not None:
                ids, completion_ids, mask = self.encoder.encode_conversation(prompt["messages"], prompt["transcript"])
                row = Request(
                    prompt, ids, "scored", completion_ids, "stop", reasons=self.markers is not None, mask=mask
                )
                if not self._are_known(prompt["transcript"]["candidate_ids"]):
                    return self._unknown_ids(prompt, "a candidate")
                return self._score(row)
            encoded = self.encoder.encode_prompt(prompt["messages"], prompt["tools"])
        except TemplateRefusal as error:
            return failed(prompt, [], "refused_by_template", str(error))
        ids, vision = encoded.ids, None
        if prompt.get("images"):
            try:
                vision = expand(self.llm, ids, prompt["images"])
            except PictureRefusal as error:
                return failed(prompt, [], "refused_by_engine", str(error))
            ids = list(vision["prompt_token_ids"])
        if not self._are_known(ids):
            return self._unknown_ids(prompt)
        # a judge's prompt keeps nothing and is shown to no student
        refusal = refuse_prompt(len(ids), self.window, self.student if prompt["keeps"] else None)
        if refusal:
            return failed(prompt, ids, *refusal)
        whole = Request(prompt, ids, reasons=encoded.reasons, vision=vision)
        part = self.parts.first(whole)
        return self._answer(whole, []) if part == "answer" else self._begin(replace(whole, part=part))

    def _are_known(self, ids: list[int]) -> bool:
        """Whether all ids are the model's: one that is not would end the engine's process."""
        return not ids or 0 <= min(ids) <= max(ids) < self.vocab

    def _unknown_ids(self, prompt: dict[str, Any], which: str = "an id") -> Generation:
        detail = f"{which} is below 0 or above {self.vocab - 1}, the model's last; was another tokenizer used?"
        return failed(prompt, [], "bad_token_id", detail)

    def _score(self, row: Request) -> Generation | None:
        """Begin a prefill over ids that exist."""
        prompt, ids = row.prompt, row.completion_ids
        if not self._are_known(row.prompt_ids) or not self._are_known(ids):
            return self._unknown_ids(prompt)
        # all ids but the last are inputs, and vLLM has to sample one token after them
        student = self.student if prompt["transcript"] is not None else None
        refusal = refuse_transcript(len(row.prompt_ids), len(ids), self.window, student)
        if refusal:
            return failed(prompt, row.prompt_ids, *refusal)
        return self._begin(replace(row, part="scored"))

    def _answer(self, row: Request, reasoning_ids: list[int]) -> Generation | None:
        """Begin the answer after a reasoning that is closed with the end marker's own ids."""
        closing, total = self.encoder.closing_ids, self.parts.total(row)
        before = [*reasoning_ids, *closing]
        if not self._are_known(closing):
            return self._unknown_ids(row.prompt)
        if len(before) >= total:
            detail = f"the reasoning's end marker has {len(closing)} of {total} tokens; raise sampling.max_tokens"
            return failed(row.prompt, row.prompt_ids, "truncated", detail)
        return self._begin(replace(row, part="answer", completion_ids=before, answer_start=len(before)))

    def _begin(self, request: Request) -> Generation | None:
        prompt, part = request.prompt, request.part
        try:
            params = self.parts.params(request)
            inner = self.llm.llm_engine.add_request(request.name, request.given, params)
        except Exception as error:
            # of many types, few of them ValueErrors: whatever it is, it is this request's alone
            return failed(prompt, request.prompt_ids, "refused_by_engine", one_line(error))
        scored, keeps, length = part == "scored", request.keeps, len(request.prompt_ids)
        # the worker is told only of what is not as usual, which saves most requests a call to it
        attends = keeps and self.signals.keeps_attention(prompt["id"], length)
        if scored or self.signals.keep == "sampled" or attends or not keeps:
            last_id = int(request.completion_ids[-1]) if scored else None
            told = inner, length, prompt["seed"], last_id, attends, keeps, request.candidates
            self._tell_worker("factory_begin", *told)
        self.requests[request.name] = replace(request, inner=inner)
        self.reserve.take(request.name, len(request.inputs) + int(params.max_tokens) if prompt["keeps"] else 0)
        return None

    def step(self) -> list[Generation]:
        """One step of the engine; the generations that finished in it."""
        outputs = self.llm.llm_engine.step()
        finished = (self._finish(output) for output in outputs if output.finished)
        return [generation for generation in finished if generation is not None]

    def _finish(self, output: Any) -> Generation | None:
        request = self.requests.pop(output.request_id)
        self.reserve.free(request.name)
        prompt, completion = request.prompt, output.outputs[0]
        if completion.finish_reason == "repetition":
            # a row that is turned down, in whichever part of it: nothing is kept of it, and nothing more is asked
            self._tell_worker("factory_drop", request.inner)
            ids = request.completion_ids + list(completion.token_ids)
            return self._make(replace(request, completion_ids=ids, finish_reason="repetition"), {})
        # vLLM gave it up itself (an abort, an error): what capture has of it belongs to no row
        if completion.finish_reason not in ("stop", "length"):
            self._tell_worker("factory_drop", request.inner)
            refusal = self.refused.pop(request.inner, None)
            if refusal is not None:
                return failed(prompt, request.prompt_ids, "refused_by_engine", refusal)
            return failed(prompt, request.prompt_ids, f"engine_{completion.finish_reason}", "see engine.log")
        if request.part == "scored":
            return self._generation(request)
        ids, why = list(completion.token_ids), completion.finish_reason
        if request.part == "reasoning" or (why == "stop" and self.parts.stopped_inside(request, ids)):
            self._tell_worker("factory_drop", request.inner)
            assert self.markers is not None
            return self._answer(request, cut_reasoning(self.tokenizer, ids, self.markers, self.encoder.stop_ids))
        row = replace(request, completion_ids=request.completion_ids + ids, finish_reason=why)
        # once more through the engine, over the exact ids it was given and has produced
        if self.signals.any and prompt["keeps"] and (request.part == "answer" or not self.decoding):
            return self._score(row)
        flat = read_flat(completion.logprobs, self.signals) if self.flat and request.keeps else None
        return self._generation(row, flat)

    def _generation(self, request: Request, flat: Logprobs | None = None) -> Generation:
        tokens = len(request.completion_ids)
        arrays = self._take(request.inner, tokens, len(request.prompt_ids) + tokens - 1)
        return keep_chosen(self._make(request, arrays, flat), self.signals)

    def _make(self, request: Request, arrays: dict[str, Any], flat: Logprobs | None = None) -> Generation:
        """The generation of a row's ids, with what these arrays hold."""
        ids_T, prompt_ids = np.array(request.completion_ids, np.int32), np.array(request.prompt_ids, np.int32)
        split = self._split(request, ids_T)
        content, calls = "", tuple[ToolCall, ...]()
        if request.prompt["form"] == "calls" and self.reader is not None:
            content, calls = self.reader.read(split.answer, request.prompt["tools"])
        # those of the prompt come first, where they are kept; the completion's are the last T
        captured = as_logprobs(arrays)
        before = len(captured.sampled_T) - len(ids_T) if captured else 0  # of the prompt's tokens
        all_logprobs = captured or flat
        return Generation(
            prompt_id=request.prompt["id"],
            attempt=request.prompt["attempt"],
            text=split.text,
            reasoning=split.reasoning,
            answer_text=split.answer,
            prompt_token_ids=prompt_ids,
            completion_token_ids=ids_T,
            answer_start=split.answer_start,
            finish_reason=request.finish_reason,
            content=content,
            calls=calls,
            logprobs=all_logprobs and all_logprobs.part(slice(before, None)),
            prompt_logprobs=all_logprobs.part(slice(before)) if all_logprobs and self.signals.of_prompt else None,
            hidden_states=HiddenStates(self.signals.layers, arrays["bits_NLH"]) if "bits_NLH" in arrays else None,
            experts=as_experts(arrays["blocks"].tolist(), arrays) if "blocks" in arrays else None,
            attention=Attention(self.signals.attention, arrays["maps_LHNN"]) if "maps_LHNN" in arrays else None,
            completion_mask=_mask_of(request, len(ids_T)) if self.signals.masked else None,
            candidates=_candidates_of(request, arrays),
        )

    def _split(self, request: Request, ids_T: Array) -> SplitCompletion:
        """Reasoning and answer of a completion; those of a transcript's turn as they were given."""
        stops = self.encoder.stop_ids
        markers = self.markers if request.reasons else None
        transcript = request.prompt["transcript"]
        if transcript is None:
            return split_completion(self.tokenizer, ids_T, markers, stops, request.answer_start)
        # of several turns the last one answers
        first = last_run(request.mask)
        split = split_completion(self.tokenizer, ids_T[first:], markers, stops)
        if split.answer_start >= len(ids_T) - first:  # it never reasoned, or never stopped to
            split = split_completion(self.tokenizer, ids_T[first:], None, stops)
        if first:
            whole = split_completion(self.tokenizer, ids_T, None, stops).text
            split = replace(split, text=whole, answer_start=first + split.answer_start)
        turn = transcript["turn"]
        if turn is None:
            return split
        return replace(split, reasoning=turn.get("reasoning_content"), answer=turn["content"])

    def _take(self, inner: str, tokens: int, inputs: int) -> dict[str, Any]:
        answers = self._tell_worker("factory_take", inner, tokens, inputs) if self.signals.any else []
        # of several workers only the first keeps anything
        return next((answer for answer in answers if answer), {})


def _candidates_of(request: Request, arrays: dict[str, Any]) -> Candidates | None:
    if request.candidates is None or "candidates_M" not in arrays:
        return None
    ids, counts = request.candidates
    return Candidates(np.array(counts, np.int32), np.array(ids, np.int32), as_float16(arrays["candidates_M"]))


def _mask_of(request: Request, tokens: int) -> Array:
    return np.array(request.mask, np.uint8) if request.mask else np.ones(tokens, np.uint8)


def failed(prompt: dict[str, Any], ids: list[int], failure: str, detail: str) -> Generation:
    return Generation.failed(prompt["id"], prompt["attempt"], failure, detail, np.array(ids, np.int32))
