"""What an engine is built from: tokenizer, markers, encoder and vLLM itself, each as the job asks or refused as unfit.

Runs once, while the process starts. Whatever goes wrong here would go wrong again, so it ends as `Unfit` with its
reason, never as a death that somebody would answer with another start.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from typing import Any

from factory.errors import one_line, root_cause
from factory.signals import SignalSpec
from factory.teachers.engine.handing_out import KEY, can_hand_out, inner_layers
from factory.teachers.engine.wrap import wrap
from factory.teachers.fit import MIN_ANSWER_TOKENS
from factory.teachers.prompt_ids import PromptEncoder, TemplateRefusal
from factory.teachers.reasoning import Markers, find_markers

MAX_LOGPROBS = 20  # vLLM's own limit, which a job may exceed


class Unfit(Exception):
    """The job cannot be served by this model or engine; starting again would not help."""


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


def make_encoder(tokenizer: Any, markers: Markers | None, setup: dict[str, Any]) -> PromptEncoder:
    """Raises Unfit where there is no chat template and somebody has to be asked."""
    try:
        encoder = PromptEncoder(tokenizer, markers, setup["teacher"]["chat_template_kwargs"], setup["end_ids"])
        # what is scored may be texts or ids, which need none
        if not encoder.has_template and not setup["scores"]:
            encoder.template.render([])
    except (TemplateRefusal, ValueError) as error:
        raise Unfit(f"teacher.model: {one_line(error)}") from None
    return encoder


def require_some_fit(encoder: PromptEncoder, setup: dict[str, Any]) -> None:
    """Raise Unfit where the chat template refuses a probe, or none of a task's leaves room for an answer.

    Of transcripts all probes must be refused: one that is none of the template's business is a row of its own.
    """
    # before the engine is built: loading a large model takes minutes
    shortest: dict[str, int] = {}
    scores, window = setup["scores"], setup["window"]
    for number, probe in enumerate(setup["probes"], 1):
        try:
            if not scores:
                encoder.showing(probe["tools"]).require_header(tuple(m["role"] for m in probe["messages"]))
            length = len(encoder.encode(probe["messages"], probe["tools"]))
        except TemplateRefusal as error:
            if scores and (shortest or number < len(setup["probes"])):
                continue
            raise Unfit(f"teacher.model: its chat template and the prompts of {probe['task']}: {error}") from error
        shortest[probe["task"]] = min(length, shortest.get(probe["task"], length))
    if scores or window is None:
        return
    long = [f"{task} ({length} tokens)" for task, length in shortest.items() if length + MIN_ANSWER_TOKENS > window]
    if long:
        raise Unfit(f"teacher.max_model_len {window}: no prompt fits of {', '.join(long)}; raise it or drop the task")


def end_grammars_in(end_ids: Collection[int]) -> None:
    """Let an answer under a grammar end in any of these tokens: vLLM knows the tokenizer's own only, and that may be
    one that the teacher never says."""
    from llguidance import hf
    from vllm.v1.structured_output.backend_guidance import GuidanceBackend

    def build(tokenizer: Any, vocab_size: int) -> Any:
        size = max(vocab_size, len(tokenizer))
        return hf.from_tokenizer(tokenizer, size, eos_token=[number for number in end_ids if number < size] or None)

    GuidanceBackend._build_ll_tokenizer = staticmethod(build)


def tell_loading(tell: Callable[[str], None]) -> None:
    """Have the worker of this process say when it loads weights, and when it is done with that.

    Workers of tensor parallelism are processes of their own and say nothing.
    """
    from vllm.v1.worker.gpu_worker import Worker

    def load(inner: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        tell("loading the weights")
        inner(*args, **kwargs)
        tell("warming up")

    # of the class: the worker is made, and loads, inside the constructor of the engine
    wrap(Worker, "load_model", load)


def choose_way(teacher: dict[str, Any], settings: dict[str, Any], signals: SignalSpec, last: int) -> dict[str, Any]:
    """The settings that hidden states are taken with: by the model itself, or by hooks, which need it uncompiled.

    `last` is the number of the model's layers. Raises Unfit where the job asks for what the model does not have.
    """
    if not signals.layers or settings.get("enforce_eager"):
        return settings
    inner = inner_layers(signals.layers, signals.final_norm, last)
    # what it puts out anyway any model has; the class is looked up before a single weight is loaded
    if not inner or can_hand_out(_model_class(teacher, settings)):
        return settings | {"additional_config": {KEY: inner}}
    told = f"the model's code in vLLM hands out no layers, so {inner} need hooks, which need it uncompiled"
    if settings.get("enforce_eager") is False:
        raise Unfit(f"teacher.engine.enforce_eager = False: {told}; leave it out, or those layers")
    print(f"{told}: enforce_eager = True", flush=True)
    return settings | {"enforce_eager": True}


def _model_class(teacher: dict[str, Any], settings: dict[str, Any]) -> Any:
    """The class that vLLM runs the model with."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import get_model_architecture

    names = ("model", "tokenizer", "revision", "trust_remote_code", "dtype", "quantization", "max_model_len")
    asked = {name: teacher[name] for name in names if teacher[name] is not None}
    asked |= {name: settings[name] for name in ("hf_overrides", "model_impl") if name in settings}
    try:
        return get_model_architecture(EngineArgs(**asked).create_model_config())[0]
    except Exception as error:  # whatever vLLM raises while it starts, it would raise again
        raise Unfit(f"teacher: the engine does not start: {first_line(error)}") from error


def build_llm(
    teacher: dict[str, Any],
    settings: dict[str, Any],
    markers: Markers | None,
    top_k: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Any:
    """The engine, with settings that leave capture right, and guidance grammars; `tell` hears what it does."""
    from vllm import LLM
    from vllm.config.reasoning import ReasoningConfig

    from factory.teachers.engine.parser import PARSER_NAME, register_parser

    extra: dict[str, Any] = {}
    # an end marker of several tokens would be looked for in its own spelling alone: `parts` ends such a reasoning
    parses = markers is not None and markers.end_id is not None
    if markers is not None and markers.end_id is not None:
        # the parser tells where the grammar begins, the config what is forced when the thinking budget is spent
        register_parser(markers, markers.end_id)
        extra["reasoning_parser"] = PARSER_NAME
        extra["reasoning_config"] = ReasoningConfig(
            reasoning_parser=PARSER_NAME, reasoning_start_str=markers.start, reasoning_end_str=markers.end
        )
    # only the way out without capture asks vLLM for logprobs at all; the limit is fixed when the engine starts
    extra["max_logprobs"] = max(MAX_LOGPROBS, top_k)
    if teacher["max_model_len"] is not None:
        extra["max_model_len"] = teacher["max_model_len"]
    if teacher["kv_cache_gb"] is not None:
        extra["kv_cache_memory_bytes"] = int(teacher["kv_cache_gb"] * 2**30)
    tell_loading(tell)
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
            # guidance held 63 of 64 hard schemas where xgrammar held 43; without white space, which can be forbidden
            # engine-wide only, an answer begins right after the end marker
            structured_outputs_config={
                "backend": "guidance",
                "disable_any_whitespace": True,
                **({"reasoning_parser": PARSER_NAME} if parses else {}),
            },
            worker_extension_cls="factory.teachers.engine.capture.CaptureExtension",
            **extra,
            **settings,
        )
    except Exception as error:  # whatever vLLM raises while it starts, it would raise again
        raise Unfit(f"teacher: the engine does not start: {first_line(error)}") from error


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary, merges and chat template: what token ids mean."""
    # a fast tokenizer's whole pipeline, normaliser and merges included; a slow one has no such text
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256((body + str(tokenizer.chat_template)).encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """An error's most telling line: that of its innermost cause."""
    return one_line(root_cause(error))
