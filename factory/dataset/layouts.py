"""Layouts: the configs of a dataset, the columns of each, and how its files are compressed and encoded.

Which configs there are follows from the signals alone, so every shard has the same ones, without rows where it has
none to hold. `hidden_states`, `experts` and `attention` have the rows of `default`, in its order: they are joined by
place, and the ids only prove it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from factory.dataset.columns import (
    REJECTED,
    REJECTED_MEASURES,
    Column,
    accepted_columns,
    identity_columns,
    preference_columns,
)
from factory.dataset.signal_columns import ATTENTION, EXPERTS, HIDDEN, POSITIONS, logprob_columns
from factory.hashing import canonical_json
from factory.records import Outcome
from factory.signals import SignalSpec

FORMAT_VERSION: Final = 1
# told in the schema only where they are not the default: a dataset that does without them has the bytes it always had
CHOICES: Final = (
    *("keep", "top_p", "positions", "min_entropy", "hidden_positions", "experts", "attention", "source", "masked"),
    "candidates",
)
NO_SIGNALS: Final = SignalSpec()
LABELS: Final = ("task", "level", "kind", "stage", "reason", "finish_reason")  # few values: a dictionary pays


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one config, and how its files are compressed and encoded."""

    config: str
    # "data" for the config "default", else of the same name.
    folder: str
    columns: tuple[Column, ...]
    signals: SignalSpec

    @property
    def schema(self) -> pa.Schema:
        meaning = {
            "format_version": FORMAT_VERSION,
            "config": self.config,
            "top_k": self.signals.top_k,
            "layers": list(self.signals.layers),
            "final_norm": self.signals.final_norm,
        }
        meaning |= {"logprobs": "compact"} if self.signals.compact else {}
        choices = {name: getattr(self.signals, name) for name in CHOICES}
        meaning |= {name: value for name, value in choices.items() if value != getattr(NO_SIGNALS, name)}
        schema = pa.schema([pa.field(column.name, column.type) for column in self.columns])
        return schema.with_metadata({"factory": canonical_json(meaning)} | picture_features(schema))

    def writer_options(self) -> dict[str, Any]:
        """How Parquet stores this config."""
        return writer_options(self.config, self.columns)

    def table(self, outcomes: Sequence[Any]) -> pa.Table:
        """One table with a row for each outcome."""
        # what several columns are taken from is made once; None is the outcomes themselves
        made: dict[Any, Sequence[Any]] = {None: outcomes}
        for of in {column.of for column in self.columns if column.of is not None}:
            made[of] = [of(outcome) for outcome in outcomes]
        arrays = [column.take(made[column.of]).cast(column.type) for column in self.columns]
        return pa.Table.from_arrays(arrays, schema=self.schema)


def writer_options(config: str, columns: Iterable[Any]) -> dict[str, Any]:
    """How Parquet stores columns, each with a `name` and a `type` (measured choices, see docs/decisions/0004, 0018)."""
    # where each page lies: readers of a few rows, the hub's viewer, skip to it
    common = {"write_page_index": True}
    if config == "hidden_states":
        # a page for each value: pyarrow copies each page, and small ones fit memory that was used before
        none = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        return common | none | {"write_batch_size": 1}
    columns = list(columns)
    lists = {f"{c.name}.list.element": c for c in columns if pa.types.is_list(c.type)}
    # bytes of the same weight side by side compress; a dictionary of numbers does not pay
    split = [leaf for leaf, c in lists.items() if c.type.value_type in SPLIT and c.name not in PLAIN]
    levels = {leaf: HALF_LEVEL for leaf, c in lists.items() if c.type.value_type == pa.float16()}
    return common | {
        "compression": "zstd",
        "compression_level": levels or 1,
        "use_dictionary": [c.name for c in columns if c.name in LABELS],
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
    }


def picture_features(schema: pa.Schema) -> dict[str, str]:
    """What `datasets` needs to be told of a file with pictures: that their bytes are images."""
    if "images" not in schema.names:
        return {}
    from datasets import Features, Image, List

    features = Features.from_arrow_schema(schema) | {"images": List(Image())}
    return {"huggingface": canonical_json({"info": {"features": Features(features).to_dict()}})}


# Byte planes halve signals, but not every reader knows them: DuckDB none of float16, fastparquet none at all. So what
# is no signal, text and token ids, has only encodings that all readers know, and float16 a higher level in their place.
SPLIT: Final = (pa.int32(), pa.int16(), pa.uint16(), pa.float32())
PLAIN: Final = ("prompt_token_ids", "completion_token_ids", "student_prompt_token_ids", "layers", "shape")
HALF_LEVEL: Final = 3


def layouts(signals: SignalSpec) -> dict[str, Layout]:
    """The configs of a dataset with these signals, by name."""
    identity = identity_columns(signals)
    accepted = (*identity, *accepted_columns(signals), *logprob_columns(signals))
    rejected = (*REJECTED, *REJECTED_MEASURES) if signals.rejected_measures else REJECTED
    configs = {
        "default": Layout("default", "data", accepted, signals),
        "rejected": Layout("rejected", "rejected", (*identity, *rejected), signals),
    }
    if signals.pairs:
        configs["preferences"] = Layout("preferences", "preferences", preference_columns(signals), signals)
    if signals.layers:
        hidden = HIDDEN if signals.hidden_positions == "all" else (*HIDDEN, POSITIONS)
        configs["hidden_states"] = Layout("hidden_states", "hidden_states", hidden, signals)
    if signals.experts:
        configs["experts"] = Layout("experts", "experts", EXPERTS, signals)
    if signals.attention:
        configs["attention"] = Layout("attention", "attention", ATTENTION, signals)
    return configs


def row_bytes(outcome: Outcome) -> int:
    """About how many bytes an outcome holds in all its configs."""
    return config_bytes(outcome, "default") + sum(_inside_bytes(outcome).values())


def config_bytes(outcome: Outcome, config: str) -> int:
    """About how many bytes an outcome holds in one config, to cut row groups of an even size."""
    inside, generation = _inside_bytes(outcome), outcome.generation
    if config in inside:
        return inside[config]
    # no measurement: row groups need only be about even, and 2000 stands for ids, messages and labels
    if generation is None:
        return 2000
    size = sum(map(len, outcome.prompt.images)) + 4 * len(generation.text) + 2000 + generation.prompt_token_ids.nbytes
    for logprobs in (generation.logprobs, generation.prompt_logprobs):
        size += sum(array.nbytes for array in logprobs.arrays().values()) if logprobs is not None else 0
    size += 6 * len(generation.candidates.ids_M) if generation.candidates is not None else 0
    return size


def _inside_bytes(outcome: Outcome) -> dict[str, int]:
    """Bytes of the configs beside the default one, which hold nothing else of a row."""
    sizes, generation = dict.fromkeys(("hidden_states", "experts", "attention"), 0), outcome.generation
    if generation is not None and generation.hidden_states is not None:
        sizes["hidden_states"] = generation.hidden_states.bits_NLH.nbytes
    if generation is not None and generation.experts is not None:
        sizes["experts"] = generation.experts.ids_NLE.nbytes + generation.experts.weights_NLE.nbytes
    if generation is not None and generation.attention is not None:
        sizes["attention"] = generation.attention.maps_LHNN.nbytes
    return sizes
