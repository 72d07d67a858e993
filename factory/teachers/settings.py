"""vLLM's own settings (`[teacher.engine]`): which may be changed, and which would make the kept signals wrong.

What a job keeps is taken inside the worker, at places that some of the engine's ways of saving time leave out. Such a
combination is refused with its reason before anything starts; a job that keeps no signals may have them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from factory.errors import TeacherError
from factory.job.job import Job

# any at all; of every input token, so of prompts too; what only a hook inside the model sees
Keeps = Literal["signals", "inputs", "inside"]

# Threads of OpenMP that wait by spinning take the very cores that they wait for as soon as anything runs beside them:
# another engine, a judge's, a browser. Asleep they cost an engine that is alone two fifths of its speed. On two cores,
# the demo's tokens a second alone and as one of two that start together: as it comes 1,560 and 49, spinning briefly
# 1,500 and 293, asleep 910 and 550 (docs/operations.md).
BRIEFLY_SPINNING: Final = {"GOMP_SPINCOUNT": "20000"}
SLEEPING_THREADS: Final = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
BUSY_PERCENT: Final = 25.0  # of all cores, by others
LOOK_S: Final = 0.3


def wait_settings(shares: bool, cores: Sequence[int] = ()) -> dict[str, str]:
    """How the threads of a process that is about to start should wait for each other, as its environment says it.

    Asleep where it `shares` its cores (all, where none are named) by the job's own doing, or where others are at work
    on them now. Else they spin for a moment alone: others may come later, and of two that start together each finds a
    machine at rest.
    """
    return dict(SLEEPING_THREADS if shares or is_busy(cores) else BRIEFLY_SPINNING)


def is_busy(cores: Sequence[int] = ()) -> bool:
    """Whether others use the cores now: these, or all."""
    try:
        import psutil
    except ImportError:  # it comes with vLLM; a plain forward alone does without
        return False
    percents = psutil.cpu_percent(LOOK_S, percpu=True)
    # one that is numbered past the end is on a machine with cores taken out: then all speak for it
    own = [percents[core] for core in cores if core < len(percents)] or percents
    return bool(sum(own) / len(own) > BUSY_PERCENT)


@dataclass(frozen=True, slots=True)
class Corrupting:
    """A setting that a job which keeps something cannot have, and why; it may keep the value `sound`."""

    keeps: Keeps
    sound: Any
    reason: str


# each of these is right for what does not need the place it leaves out: so the reason names what a job keeps
CORRUPTING: Final = {
    "enable_prefix_caching": Corrupting(
        "inputs", False, "a cached prefix is not computed again, so its positions have no hidden states and no logits"
    ),
    "enforce_eager": Corrupting("inside", True, "hooks do not fire inside compiled code and captured graphs"),
    "speculative_config": Corrupting(
        "signals", None, "a step computes several tokens and throws some away, so rows do not belong to their tokens"
    ),
    "pipeline_parallel_size": Corrupting("signals", 1, "no worker has all layers; use teacher.tensor_parallel_size"),
    "kv_sharing_fast_prefill": Corrupting("inputs", False, "the last layers are skipped for most of a prompt"),
}
# known to leave every kept number right. A name that is on no list is refused, because vLLM gains settings with each
# version and one that corrupts in silence costs a whole dataset
HARMLESS: Final = frozenset(
    {
        "all2all_backend",
        "async_scheduling",
        "attention_backend",
        "block_size",
        "cpu_offload_gb",
        "disable_cascade_attn",
        "disable_custom_all_reduce",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_expert_parallel",
        "hf_overrides",
        "kv_cache_dtype",
        "limit_mm_per_prompt",
        "load_format",
        "long_prefill_token_threshold",
        "max_num_batched_tokens",
        "max_parallel_loading_workers",
        "model_impl",
        "moe_backend",
        "num_gpu_blocks_override",
        "safetensors_load_strategy",
        "scheduling_policy",
        "tokenizer_mode",
    }
)
# where the factory decides itself, or checks the value before the engine starts
OURS: Final = {
    "kv_cache_memory_bytes": "teacher.kv_cache_gb",
    "reasoning_parser": "teacher.reasoning",
    "hf_token": "the environment variable HF_TOKEN, which no manifest holds",
} | {
    name: f"teacher.{name}"
    for name in (
        "model",
        "tokenizer",
        "revision",
        "trust_remote_code",
        "dtype",
        "quantization",
        "max_model_len",
        "max_num_seqs",
        "tensor_parallel_size",
        "gpu_memory_utilization",
    )
}


def require_sound(job: Job, on_cpu: bool) -> None:
    """Raise TeacherError for the first setting of `[teacher.engine]` that does not go with what the job keeps."""
    keeps = kept_by(job)
    for name, value in job.teacher.engine.items():
        where, known = f"teacher.engine.{name}", CORRUPTING.get(name)
        if name in OURS:
            raise TeacherError(f"{where}: has a place of its own; set {OURS[name]}")
        if known is None and name not in HARMLESS:
            allowed = ", ".join(sorted(HARMLESS | CORRUPTING.keys()))
            raise TeacherError(f"{where}: not a setting that is known to leave signals right (known: {allowed})")
        if name == "enable_chunked_prefill" and value and on_cpu and job.transcripts is None:
            raise TeacherError(f"{where}: on a processor vLLM cannot split the prompt of a request that has a seed")
        if known is not None and known.keeps in keeps and value != known.sound:
            raise TeacherError(
                f"{where} = {value!r}: {known.reason}; leave it out, or keep no {_name(known.keeps)} "
                f"({keeps[known.keeps]})"
            )


def kept_by(job: Job) -> dict[Keeps, str]:
    """What a job keeps, and the keys that say so."""
    # "inputs" and "inside" only where something is asked that needs them; top-k of the completion alone needs neither
    signals, kept = job.signals, dict[Keeps, str]()
    inside = [name for name in ("hidden_layers", "experts", "attention") if getattr(signals, name)]
    if signals.top_k or inside:
        kept["signals"] = "signals.top_k = 0 and nothing else of [signals]"
    hooked = [name for name in inside if name != "hidden_layers"]
    if hooked:
        kept["inside"] = f"here {', '.join(f'signals.{name}' for name in hooked)}"
    whole = [
        *(f"signals.{name}" for name in inside),
        *(['signals.positions = "all"'] if signals.top_k and signals.positions == "all" else []),
        *(['signals.capture = "prefill"'] if signals.top_k and signals.capture == "prefill" else []),
        *(["[transcripts]"] if job.transcripts is not None else []),
    ]
    if whole:
        kept["inputs"] = f"here {', '.join(whole)}"
    return kept


def _name(keeps: Keeps) -> str:
    names: dict[Keeps, str] = {"signals": "signals", "inputs": "signals of every input token"}
    return names.get(keeps, "experts or attention")
