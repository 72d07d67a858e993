"""What is measured without an engine: the driver's and the writer's processor time, bytes on disk, and reading back."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from bench_figures import Figure, tell
from bench_models import Model
from bench_others import PACKINGS, name_tokens, pack, write_distilabel, write_packed
from blake3 import blake3

from factory.dataset.layouts import layouts
from factory.dataset.shards import write_shard
from factory.load import load_rows
from factory.quality.validate import find_damage
from factory.records import Generation, Prompt, Record, Sampling
from factory.signals import HiddenStates, SignalSpec
from factory.teachers.spool import Spool

EXACT_BYTES, COMPACT_BYTES = 70.0, 60.0  # a position at k = 20
DRIVER_MICROSECONDS = 10.0
POSITIONS_A_SECOND = 1.0  # million
WRITE_OF_RAW, READ_GB_A_SECOND = 0.85, 0.6
CARD = """---
configs:
- config_name: default
  default: true
  data_files:
  - split: train
    path: data/train-*.parquet
"""
STATES_CARD = """- config_name: hidden_states
  data_files:
  - split: train
    path: hidden_states/train-*.parquet
"""


def read_spool(folder: Path) -> list[Generation]:
    """Every generation of a spool that is not a failure."""
    spool = Spool(folder)
    generations = [spool.read(place) for place in spool.recover().values()]
    return [generation for generation in generations if generation.failure is None]


def as_records(generations: Sequence[Generation], prompts: dict[str, Prompt]) -> list[Record]:
    return [Record(prompts[g.prompt_id], g, g.answer_text, 1.0) for g in generations]


def count_positions(generations: Sequence[Generation]) -> int:
    return sum(len(generation.completion_token_ids) for generation in generations)


# --- the driver's and the writer's processor time -------------------------------------------------------------------


def driver_time(on: str, spools: dict[int, list[Path]], prompts: list[Prompt], vocab: int, work: Path) -> list[Figure]:
    """Microseconds a token from the spool to Parquet, for each k; `spools` hold what an engine left, round by round."""
    known = {prompt.id: prompt for prompt in prompts}
    rounds = min(len(folders) for folders in spools.values())
    values: dict[int, list[float]] = {k: [] for k in spools}
    for number in range(-1, rounds):  # the first is to warm up
        for k, folders in spools.items():
            spent = write_from_spool(folders[max(number, 0)], known, SignalSpec(k), vocab, work / "driver")
            if number >= 0:
                values[k].append(spent)
    what = "processor time of spool, checks and Parquet, a token, k = "
    return [
        Figure(on, f"{what}{k}", tuple(times), DRIVER_MICROSECONDS, at_most=True, unit="µs")
        for k, times in values.items()
    ]


def write_from_spool(folder: Path, prompts: dict[str, Prompt], signals: SignalSpec, vocab: int, out: Path) -> float:
    places = list(Spool(folder).recover().values())
    spool, records, tokens = Spool(folder), [], 0
    started = time.process_time()
    for place in places:
        generation = spool.read(place)
        damage = find_damage(generation, signals, vocab)
        if damage:
            raise SystemExit(f"bench: a generation is damaged: {damage}")
        records.append(Record(prompts[generation.prompt_id], generation, generation.answer_text, 1.0))
        tokens += len(generation.completion_token_ids)
    write_shard(out, 0, records, signals)
    return (time.process_time() - started) * 1e6 / tokens


# --- bytes on disk --------------------------------------------------------------------------------------------------


def byte_figures(
    on: str, model: Model, generations: list[Generation], prompts: dict[str, Prompt], work: Path
) -> list[Figure]:
    """Bytes a position at k = 20: ours, distilabel's rows and DistillKit's packing of the same generations."""
    records, positions = as_records(generations, prompts), count_positions(generations)
    remark = f"{positions:,} positions"
    found = [_our_bytes(on, records, positions, compact=False, bar=EXACT_BYTES, out=work / "exact")]
    found.append(_our_bytes(on, records, positions, compact=True, bar=COMPACT_BYTES, out=work / "compact"))
    path = work / "distilabel.parquet"
    write_distilabel(
        path, [g.text for g in generations], name_tokens(Path(model.folder) / "tokenizer.json", generations)
    )
    size = column_bytes(path, {"logprobs"})
    found.append(Figure(on, "bytes a position: distilabel's rows of k = 20", (size / positions,), remark=remark))
    return found + list(_packed_bytes(on, model, generations, work))


def _our_bytes(on: str, records: list[Record], positions: int, compact: bool, bar: float, out: Path) -> Figure:
    signals = SignalSpec(20, compact=compact)
    path = out / write_shard(out, 0, records, signals)[0].path
    names = logprob_columns(signals)
    parts = {name: column_bytes(path, {name}) / positions for name in sorted(names)}
    profile = "compact" if compact else "exact"
    remark = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
    return Figure(on, f"bytes a position: ours, {profile}, k = 20", (sum(parts.values()),), bar, True, remark=remark)


def logprob_columns(signals: SignalSpec) -> set[str]:
    """Names of the columns that a dataset has for its logprobs alone."""
    with_them, without = (layouts(spec)["default"].columns for spec in (signals, SignalSpec()))
    return {column.name for column in with_them} - {column.name for column in without}


def _packed_bytes(on: str, model: Model, generations: list[Generation], work: Path) -> Iterator[Figure]:
    kept = [generation.logprobs for generation in generations if generation.logprobs is not None]
    values, ids = np.concatenate([k.topk_TK for k in kept]), np.concatenate([k.topk_ids_TK for k in kept])
    for packing in PACKINGS:
        logprob_bytes, id_bytes, error = pack(values, ids, model.vocab, packing)
        path = work / "packed.parquet"
        columns = {"compressed_logprobs": logprob_bytes, "bytepacked_indices": id_bytes}
        write_packed(path, [len(k.topk_TK) for k in kept], columns)
        size = column_bytes(path, set(columns)) / len(values)
        packed = logprob_bytes.shape[1] + id_bytes.shape[1]
        remark = f"{packed} before Parquet; mean error {tell(error)} nats; no tail, entropy or sampled token's logprob"
        yield Figure(on, f"bytes a position: DistillKit's layout, {packing.name}", (size,), remark=remark)


def column_bytes(path: Path, names: set[str]) -> int:
    """Compressed bytes of these columns of a Parquet file."""
    metadata = pq.read_metadata(path)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in names)


# --- reading back ---------------------------------------------------------------------------------------------------


def stream_figures(on: str, records: list[Record], positions: int, rounds: int, out: Path) -> list[Figure]:
    """Million positions a second of ids and logprobs into arrays: by `load_rows`, and by `datasets` alone."""
    first = out / write_shard(out, 0, records, SignalSpec(20))[0].path
    once = count_positions([record.generation for record in records])
    for shard in range(1, -(-positions // once)):
        shutil.copyfile(first, first.with_name(f"train-{shard:05d}.parquet"))
    (out / "README.md").write_text(CARD + "---\n", encoding="utf-8")
    ways = {"`load_rows(streaming=True)`": _stream_rows, "`datasets` in Arrow format": _stream_columns}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(-1, rounds):  # the first is to warm up
        for name, way in ways.items():
            rate = rate_of(way, out)
            if number >= 0:
                rates[name].append(rate)
    what = "million positions a second of top-k into arrays, k = 20: "
    return [rate_figure(on, what + name, found, 1e6, POSITIONS_A_SECOND) for name, found in rates.items()]


def rate_of(way: Callable[[Path], int], out: Path) -> tuple[float, float]:
    """What a way of reading reads in a second by the clock, and in a second of processor time."""
    started, cpu = time.perf_counter(), time.process_time()
    read = way(out)
    return read / (time.perf_counter() - started), read / (time.process_time() - cpu)


def rate_figure(
    on: str, what: str, rates: Sequence[tuple[float, float]], scale: float, bar: float, unit: str = ""
) -> Figure:
    by_cpu = median(rate / scale for _, rate in rates)
    remark = f"by processor time {tell(by_cpu)}"
    return Figure(on, what, tuple(rate / scale for rate, _ in rates), bar, unit=unit, remark=remark)


def _stream_rows(out: Path) -> int:
    positions = 0
    for row in load_rows(out, streaming=True):
        if row.topk_ids is not None and row.topk_logprobs is not None:
            positions += len(row.topk_logprobs)
    return positions


def _stream_columns(out: Path) -> int:
    from datasets import load_dataset

    rows = load_dataset(str(out), split="train", streaming=True).select_columns(["topk_ids", "topk_logprobs"])
    numbers = 0
    for batch in rows.with_format("arrow").iter(batch_size=64):
        columns = (batch[name].combine_chunks() for name in ("topk_ids", "topk_logprobs"))
        ids, logprobs = (column.values.to_numpy() for column in columns)
        assert ids.shape == logprobs.shape
        numbers += len(ids)
    return numbers // 20


# --- hidden states --------------------------------------------------------------------------------------------------


def state_figures(megabytes: int, rounds: int, work: Path) -> list[Figure]:
    """Writing hidden states beside a raw write of the same bytes, and streaming them into tensors."""
    records = state_records(megabytes)
    blocks = [record.generation.hidden_states.bits_NLH for record in records if record.generation.hidden_states]
    size = sum(block.nbytes for block in blocks)
    out, raw = work / "states", work / "raw"
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: write_shard(out, 0, records, SignalSpec(0, (14, 28))),
        "raw": lambda: write_raw(raw, blocks),
        "hashed": lambda: write_raw(raw, blocks, hashed=True),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    read = []
    for number in range(-1, rounds):  # the first is to warm up
        for name in list(ways)[:: 1 if number % 2 else -1]:
            seconds = time_of(ways[name], out if name == "ours" else raw)
            if number >= 0:
                times[name].append(seconds)
        (out / "README.md").write_text(CARD + STATES_CARD + "---\n", encoding="utf-8")
        rate = rate_of(_stream_states, out)
        if number >= 0:
            read.append(rate)
    on, what = f"{size / 1e6:.0f} MB of hidden states", "speed of writing over a raw write with fsync"
    over_raw, over_hashed = (
        tuple(base / ours for base, ours in zip(times[name], times["ours"], strict=True)) for name in ("raw", "hashed")
    )
    return [
        Figure(on, what, over_raw, WRITE_OF_RAW, remark=f"raw: {tell(size / 1e9 / median(times['raw']))} GB/s"),
        Figure(on, f"{what} and BLAKE3", over_hashed),
        rate_figure(on, "streamed into bfloat16 tensors", read, 1e9, READ_GB_A_SECOND, "GB/s"),
    ]


def time_of(way: Callable[[], object], folder: Path) -> float:
    """Seconds of a way to write into a folder, empty before: a job's files are new, none is replaced on the clock."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def _stream_states(out: Path) -> int:
    tensors = (row.hidden_states for row in load_rows(out, "hidden_states", streaming=True))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def state_records(megabytes: int) -> list[Record]:
    """Rows of 600 tokens with two layers of 2,048 values, 4.9 MB each."""
    rng, records = np.random.default_rng(0), []
    for number in range(max(1, round(megabytes / 4.9))):
        bits_NLH = rng.integers(1, 0x4000, (599, 2, 2048), np.uint16)
        prompt = Prompt(f"s{number}", 0, number, "none", "", (), "{}", number, Sampling())
        ids = np.arange(300, dtype=np.int32)
        states = HiddenStates((14, 28), bits_NLH)
        generation = Generation(prompt.id, 0, "", None, "", ids, ids, 0, "stop", hidden_states=states)
        records.append(Record(prompt, generation, "{}", 1.0))
    return records


def write_raw(folder: Path, blocks: Sequence[Any], hashed: bool = False) -> None:
    """The blocks in one file, with fsync; `hashed` has their BLAKE3 taken too, one after the other."""
    digest = blake3()
    with (folder / "states").open("wb") as handle:
        for block in blocks:
            handle.write(block.data)
            if hashed:
                digest.update(block.data.cast("B"))
        handle.flush()
        os.fsync(handle.fileno())
