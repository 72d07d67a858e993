"""A model's config.json as its own configuration class reads it.

A file need not say what is the class's default, and many do not: Gemma 3's `text_config` leaves out most of its
numbers, GPT-2 calls them `n_head` and `n_layer`. transformers knows all that. It takes seconds to import, so a file
that says everything we ask for is read as it stands, and so is every file where transformers is not installed.
"""

import json
import math
from pathlib import Path
from typing import Any, Final

from factory.errors import TeacherError, one_line

Fields = dict[str, Any]
# what a shape is made of; a file with all of these leaves nothing to a class
NEEDED: Final = (
    "vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
# as vLLM looks for the window (transformers_utils/model_arch_config_convertor.py); the smallest counts
WINDOWS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# of these, `max_position_embeddings` has the factor in it already
SCALED: Final = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope")


def text_fields(model: str, raw: Any, overrides: Fields, load_own: bool) -> Fields:
    """The fields of a configuration's text part under transformers' usual names, with what a job overrides in it.

    `load_own`: the class may be one that comes with the model. Raises TeacherError where the class refuses the file.
    """
    if not isinstance(raw, dict):
        raise TeacherError(f"teacher.model {model!r}: config.json is not that of a decoder model: {one_line(raw, 100)}")
    merged = merge(raw, overrides)
    text = merged.get("text_config") or merged
    if not isinstance(text, dict):
        raise TeacherError(
            f"teacher.model {model!r}: config.json has a text_config that is no table: {one_line(text, 100)}"
        )
    dtype = text.get("dtype") or text.get("torch_dtype") or merged.get("dtype") or merged.get("torch_dtype")
    is_whole = all(text.get(name) is not None for name in NEEDED)
    found = text if is_whole else text | _from_class(model, merged, load_own)
    return found | {"dtype": str(dtype or found.get("dtype") or "bfloat16").removeprefix("torch.")}


def merge(fields: Fields, overrides: Fields) -> Fields:
    """As vLLM applies `hf_overrides`: a table goes into the part of that name, anything else takes a field's place."""
    merged = dict(fields)
    for name, value in overrides.items():
        is_part = name.endswith("_config") and isinstance(value, dict) and isinstance(fields.get(name), dict)
        merged[name] = merge(fields[name], value) if is_part else value
    return merged


def _from_class(model: str, raw: Fields, load_own: bool) -> Fields:
    """What the configuration's class makes of it; nothing where there is no such class."""
    kind = raw.get("model_type")
    if kind is None:
        return {}
    try:
        from transformers import AutoConfig
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError:
        return {}
    try:
        if "auto_map" in raw and load_own:
            config = AutoConfig.from_pretrained(model, trust_remote_code=True)
        elif kind in CONFIG_MAPPING:
            config = CONFIG_MAPPING[kind].from_dict(_plain_floats(raw))
        else:
            return {}
    except Exception as error:  # of many types: whatever it is, the file is not one of this class
        told = one_line(error, 300)
        raise TeacherError(f"teacher.model {model!r}: config.json is not that of a {kind!r}: {told}") from None
    text = config.get_text_config()
    fields = {name: value for name, value in text.to_dict().items() if value is not None}
    # a class that has names of its own answers to the usual ones as well
    usual = {name: getattr(text, name, None) for name in text.attribute_map}
    return fields | {name: value for name, value in usual.items() if value is not None}


def _plain_floats(value: Any) -> Any:
    """As transformers reads what JSON has no number for: `{"__float__": "Infinity"}`."""
    if isinstance(value, list):
        return [_plain_floats(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:
        return float(value["__float__"])
    return {name: _plain_floats(one) for name, one in value.items()}


def missing_note() -> str:
    """What to add where a number is not in a file: whether it could be had from transformers."""
    from importlib.util import find_spec

    if find_spec("transformers") is not None:
        return "not a decoder model?"
    return "its class may know it, and transformers, which has that, is not installed: `pip install transformers`"


def window_of(fields: Fields) -> tuple[int | None, int | None]:
    """The longest window and the one that is taken where a job names none, as vLLM derives them; None for no bound."""
    lengths = [fields[name] for name in WINDOWS if fields.get(name)]
    most = fields.get("model_max_length") or min(lengths, default=None)
    if most is None:
        return None, None
    ropes = _ropes(fields)
    kinds = {str(rope.get("rope_type") or rope.get("type") or "default") for rope in ropes}
    # gemma3's is scaled already, whatever its type says
    if "gemma3" not in str(fields.get("model_type", "")):
        factors = [rope["factor"] for rope in ropes if _is_scaled_yet(rope) and rope.get("factor")]
        most = math.floor(most * (factors[-1] if factors else 1))
    # vLLM keeps such a model to the window of its short factors unless it is asked for more
    original = fields.get("original_max_position_embeddings")
    return int(most), int(original) if "longrope" in kinds and original else int(most)


def _is_scaled_yet(rope: Fields) -> bool:
    return str(rope.get("rope_type") or rope.get("type") or "default") not in SCALED


def _ropes(fields: Fields) -> list[Fields]:
    """The scalings of positions: one, or one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        found = fields.get(name)
        if isinstance(found, dict) and found:
            nested = [value for value in found.values() if isinstance(value, dict)]
            return nested if len(nested) == len(found) else [found]
    return []


def read_json(path: Path, model: str) -> Any:
    """A model's file. Raises TeacherError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        told = one_line(error, 300)
        raise TeacherError(f"teacher.model {model!r}: its {path.name} cannot be read: {told}") from None
