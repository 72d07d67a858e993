"""The engine's process: one vLLM engine fed from standard input, its results on the spool and in one event line each.

Started as `python -m factory.teachers.engine.process EVENT_FD` by `factory.teachers.vllm`. Input is JSON lines: the
setup, then prompts. Events are JSON lines: `ready`, `done` (where a generation stands on the spool), `alive`, or
`unfit` (the job cannot be served, and why). When the input ends the process ends, so it never outlives the one that
started it.
"""

import hashlib
import json
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.errors import redact
from factory.records import LOGPROB_ARRAYS, Attention, Experts, Generation, HiddenStates, Logprobs, SignalSpec
from factory.teachers.chosen import keep_chosen
from factory.teachers.engine.flat import TOLD, read_flat, require_enough
from factory.teachers.fit import MIN_ANSWER_TOKENS, refuse_prompt, refuse_transcript
from factory.teachers.prompt_ids import PromptEncoder, TemplateRefusal
from factory.teachers.reasoning import Markers, find_markers, split_completion
from factory.teachers.spool import SpoolWriter

SIGN_OF_LIFE_S = 1.0
MAX_LOGPROBS = 20  # vLLM's own limit, which a job may exceed


class Unfit(Exception):
    """The job cannot be served by this model or engine; starting again would not help."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is in the engine: a prompt to answer, or, with `completion_ids`, a prefill that scores them."""

    inner: str  # the engine's own name for it
    prompt: dict[str, Any]
    prompt_ids: list[int]
    completion_ids: list[int] | None = None
    finish_reason: str = ""


class Engine:
    """A vLLM engine with capture installed, and what is needed to turn its outputs into generations."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.teacher = setup["teacher"]
        self.schemas = setup["schemas"]
        self.constrain = setup["constrain"]
        self.student = setup["student"]
        self.signals = SignalSpec(**setup["signals"] | {"layers": tuple(setup["signals"]["layers"])})
        self.tokenizer = load_tokenizer(self.teacher)
        self.markers = choose_markers(self.tokenizer, self.teacher["reasoning"])
        self.encoder = make_encoder(self.tokenizer, self.markers, self.teacher["chat_template_kwargs"])
        require_some_fit(self.encoder, setup["probes"], setup["window"])
        self.llm = build_llm(self.teacher, setup["settings"], self.markers, self.signals.top_k)
        self.window = int(self.llm.llm_engine.model_config.max_model_len)
        self.decoding = setup["capture"] == "decode"
        self.flat = self._install()
        self.spool = SpoolWriter(Path(setup["spool"]))
        self.requests: dict[str, Request] = {}

    def _install(self) -> bool:
        """Begin to capture; true where the engine's own logprobs must do. Raises Unfit where they would not."""
        try:
            answers = self._tell_worker("factory_install", self.signals, self.decoding)
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
            "vocab_size": config.get_vocab_size(),
            "tokenizer_sha256": tokenizer_hash(self.tokenizer),
            "settings": self._settings(),
            **({"distribution": TOLD} if self.flat else {}),
            "reasoning_markers": [self.markers.start, self.markers.end] if self.markers else None,
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
        ids: list[int] = []
        try:
            if prompt["transcript"] is not None:
                ids, completion_ids = self.encoder.encode_transcript(prompt["messages"], prompt["transcript"])
                return self._score(prompt, ids, completion_ids, "stop")
            ids = self.encoder.encode(prompt["messages"])
        except TemplateRefusal as error:
            return failed(prompt, ids, "refused_by_template", str(error))
        # a judge's prompt keeps nothing and is shown to no student
        refusal = refuse_prompt(len(ids), self.window, self.student if prompt["keeps"] else None)
        if refusal:
            return failed(prompt, ids, *refusal)
        return self._begin(prompt, ids, None, self._params(prompt, self.window - len(ids)))

    def _score(self, prompt: dict[str, Any], ids: list[int], completion_ids: list[int], why: str) -> Generation | None:
        """Begin a prefill over ids that exist. The last of them is never an input: nothing is predicted from it."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        student = self.student if prompt["transcript"] is not None else None
        refusal = refuse_transcript(len(ids), len(completion_ids), self.window, student)
        if refusal:
            return failed(prompt, ids, *refusal)
        params = SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        return self._begin(prompt, ids, completion_ids, params, why)

    def _begin(
        self, prompt: dict[str, Any], ids: list[int], completion_ids: list[int] | None, params: Any, why: str = ""
    ) -> Generation | None:
        name = f"{prompt['id']}.{prompt['attempt']}" + ("" if completion_ids is None else ".scored")
        inputs = ids if completion_ids is None else ids + completion_ids[:-1]
        try:
            inner = self.llm.llm_engine.add_request(name, {"prompt_token_ids": inputs}, params)
        except ValueError as error:
            return failed(prompt, ids, "refused_by_engine", " ".join(str(error).split()))
        keeps = prompt["keeps"]
        attends = keeps and self.signals.keeps_attention(prompt["id"], len(ids))
        if completion_ids is not None or self.signals.keep == "sampled" or attends or not keeps:
            last_id = None if completion_ids is None else int(completion_ids[-1])
            self._tell_worker("factory_begin", inner, len(ids), prompt["seed"], last_id, attends, keeps)
        self.requests[name] = Request(inner, prompt, ids, completion_ids, why)
        return None

    def _params(self, prompt: dict[str, Any], room: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = dict(prompt["sampling"])
        thinking = sampling.pop("thinking_tokens")
        # the budget needs an end marker of one token: any other could be spelt in several ways and be missed
        budget = thinking if self.markers is not None and self.markers.end_id is not None else None
        sampling["max_tokens"] = min(sampling["max_tokens"], room)
        own = {"logprobs": self.signals.top_k, "flat_logprobs": True} if self.flat and prompt["keeps"] else {}
        return SamplingParams(
            **sampling,
            **own,
            seed=prompt["seed"],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
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
        if completion.finish_reason not in ("stop", "length"):
            self._tell_worker("factory_drop", request.inner)
            return failed(prompt, request.prompt_ids, f"engine_{completion.finish_reason}", "see engine.log")
        if request.completion_ids is not None:
            return self._generation(request, request.completion_ids, request.finish_reason)
        if self.signals.any and not self.decoding and prompt["keeps"]:
            return self._score(prompt, request.prompt_ids, list(completion.token_ids), completion.finish_reason)
        flat = read_flat(completion.logprobs, self.signals) if self.flat and prompt["keeps"] else None
        return self._generation(request, completion.token_ids, completion.finish_reason, flat)

    def _generation(
        self, request: Request, completion_ids: Any, finish_reason: str, flat: Logprobs | None = None
    ) -> Generation:
        ids_T, prompt_ids = np.array(completion_ids, np.int32), np.array(request.prompt_ids, np.int32)
        split = split_completion(self.tokenizer, ids_T, self.markers)
        if request.prompt["transcript"] is not None and split.answer_start >= len(ids_T):
            split = split_completion(self.tokenizer, ids_T, None)  # it never reasoned, or never stopped to
        arrays = self._take(request.inner, len(ids_T), len(prompt_ids) + len(ids_T) - 1)
        found = {name: arrays[name] for name in LOGPROB_ARRAYS if name in arrays}
        all_logprobs = Logprobs(**found) if found else flat
        before = len(found["sampled_T"]) - len(ids_T) if found else 0  # of the prompt's tokens
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
            experts=_as_experts(arrays),
            attention=Attention(self.signals.attention, arrays["maps_LHNN"]) if "maps_LHNN" in arrays else None,
        )
        return keep_chosen(made, self.signals)

    def _take(self, inner: str, tokens: int, inputs: int) -> dict[str, Any]:
        answers = self._tell_worker("factory_take", inner, tokens, inputs) if self.signals.any else []
        return next((answer for answer in answers if answer), {})


def _as_experts(arrays: dict[str, Any]) -> Experts | None:
    if "blocks" not in arrays:
        return None
    return Experts(tuple(arrays["blocks"].tolist()), arrays["expert_ids_NLE"], arrays["expert_weights_NLE"])


def failed(prompt: dict[str, Any], ids: list[int], failure: str, detail: str) -> Generation:
    return Generation.failed(prompt["id"], prompt["attempt"], failure, detail, np.array(ids, np.int32))


def load_tokenizer(teacher: dict[str, Any]) -> Any:
    """The model's tokenizer. Raises Unfit where it cannot be loaded."""
    from transformers import AutoTokenizer

    name = teacher["tokenizer"] or teacher["model"]
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=teacher["revision"], trust_remote_code=teacher["trust_remote_code"]
        )
    except Exception as error:  # transformers raises many types here, and none is a fault of ours
        raise Unfit(f"teacher.model {name!r}: tokenizer cannot be loaded: {first_line(error)}") from error


def choose_markers(tokenizer: Any, reasoning: Any) -> Markers | None:
    if isinstance(reasoning, dict):
        return find_markers(tokenizer, "custom", **reasoning)
    return find_markers(tokenizer, reasoning)


def make_encoder(tokenizer: Any, markers: Markers | None, template_kwargs: dict[str, Any]) -> PromptEncoder:
    try:
        return PromptEncoder(tokenizer, markers, template_kwargs)
    except ValueError as error:
        raise Unfit(f"teacher.model: {error}") from None


def require_some_fit(encoder: PromptEncoder, probes: list[dict[str, Any]], window: int | None) -> None:
    """Raise Unfit where the chat template refuses a probe, or none of a task's leaves room for an answer."""
    if window is None:
        return
    shortest: dict[str, int] = {}
    for probe in probes:
        try:
            length = len(encoder.encode(probe["messages"]))
        except TemplateRefusal as error:
            raise Unfit(f"teacher.model: its chat template refuses the prompts of {probe['task']}: {error}") from error
        shortest[probe["task"]] = min(length, shortest.get(probe["task"], length))
    long = [f"{task} ({length} tokens)" for task, length in shortest.items() if length + MIN_ANSWER_TOKENS > window]
    if long:
        raise Unfit(f"teacher.max_model_len {window}: no prompt fits of {', '.join(long)}; raise it or drop the task")


def build_llm(teacher: dict[str, Any], settings: dict[str, Any], markers: Markers | None, top_k: int) -> Any:
    """The engine, with settings that leave capture right, and guidance grammars."""
    from vllm import LLM
    from vllm.config.reasoning import ReasoningConfig

    from factory.teachers.engine.parser import PARSER_NAME, register_parser

    extra: dict[str, Any] = {}
    if markers is not None:
        register_parser(markers)
        extra["reasoning_parser"] = PARSER_NAME
        extra["reasoning_config"] = ReasoningConfig(
            reasoning_parser=PARSER_NAME, reasoning_start_str=markers.start, reasoning_end_str=markers.end
        )
    extra["max_logprobs"] = max(MAX_LOGPROBS, top_k)
    if teacher["max_model_len"] is not None:
        extra["max_model_len"] = teacher["max_model_len"]
    if teacher["kv_cache_gb"] is not None:
        extra["kv_cache_memory_bytes"] = int(teacher["kv_cache_gb"] * 2**30)
    try:
        return LLM(
            model=teacher["model"],
            tokenizer=teacher["tokenizer"],
            revision=teacher["revision"],
            trust_remote_code=teacher["trust_remote_code"],
            dtype=teacher["dtype"],
            quantization=teacher["quantization"],
            max_num_seqs=teacher["max_num_seqs"],
            tensor_parallel_size=teacher["tensor_parallel_size"],
            gpu_memory_utilization=teacher["gpu_memory_utilization"],
            structured_outputs_config={
                "backend": "guidance",
                "disable_any_whitespace": True,
                **({"reasoning_parser": PARSER_NAME} if markers is not None else {}),
            },
            worker_extension_cls="factory.teachers.engine.capture.CaptureExtension",
            **extra,
            **settings,
        )
    except Exception as error:  # whatever vLLM raises while it starts, it would raise again
        raise Unfit(f"teacher: the engine does not start: {first_line(error)}") from error


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary, merges and chat template: what token ids mean."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256((body + str(tokenizer.chat_template)).encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """An error's most telling line: that of its innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 500 else text[:500] + "..."


def read_input(inbox: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Pass input lines on; at the end of input the process ends at once, whatever it is doing."""
    for line in sys.stdin:
        inbox.put(json.loads(line))
    os._exit(0)


def serve(engine: Engine, inbox: "queue.SimpleQueue[dict[str, Any]]", emit: Any) -> None:
    """Feed the engine and step it for ever; an `alive` event every second tells that it is at work."""
    last_sign = time.monotonic()
    while True:
        finished = []
        while not engine.requests or not inbox.empty():
            generation = engine.add(inbox.get())
            if generation is not None:
                finished.append(generation)
                break
        if engine.requests:
            finished += engine.step()
        for generation in finished:
            place = engine.spool.append(generation)
            emit({"event": "done", "segment": place.segment, "offset": place.offset})
        if time.monotonic() - last_sign > SIGN_OF_LIFE_S:
            last_sign = time.monotonic()
            emit({"event": "alive"})


def main() -> None:
    events = os.fdopen(int(sys.argv[1]), "w", buffering=1)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    setup = json.loads(sys.stdin.readline())
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=read_input, args=(inbox,), daemon=True).start()
    try:
        engine = Engine(setup)
    except Unfit as error:
        emit({"event": "unfit", "message": redact(str(error))})
        return
    emit({"event": "ready", "info": engine.info()})
    try:
        serve(engine, inbox, emit)
    except OSError as error:  # the spool's disk is full or gone: a new engine would meet the same
        emit({"event": "unfit", "message": f"{setup['spool']}: cannot be written: {error.strerror or error}"})


if __name__ == "__main__":
    main()
