"""Verification: is a dataset exactly what was committed, and does every row's arrays belong to its tokens?

From what vouches to what is vouched for: manifest and ledger carry their own checksums, a ledger's line those of its
files, and only a shard whose bytes are those that were committed is read row by row. So a line names the first thing
that is wrong with a file, not what follows from it. Whether numbers are right, and not only sound, `fidelity` tells.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from factory.dataset.codec import CANDIDATES, STORED, Flat, find_candidate_damage, find_damage
from factory.dataset.columns import MASK, STUDENT_COLUMNS, TOKEN_IDS, list_lengths, read_list
from factory.dataset.entries import ShardEntry
from factory.dataset.late import without_late
from factory.dataset.layouts import Layout, layouts
from factory.dataset.ledger import LEDGER, read_ledger, require_no_copy
from factory.dataset.manifest import (
    COPIES,
    MANIFEST,
    no_dataset,
    of_teacher,
    read_manifest,
    read_signals,
    require_directory,
)
from factory.dataset.shards import find_file_damage, read_batches, read_schema, shard_path
from factory.dataset.signal_columns import PROMPT
from factory.dataset.sound import tell_repair
from factory.dataset.stages import check_curriculum
from factory.errors import DatasetError
from factory.signals import Array, SignalSpec
from factory.tasks.digests import digest_bytes


def verify(out: Path) -> Iterator[str]:
    """Everything that is wrong with a dataset, as lines that name the file; nothing when it is sound.

    Checks that manifest and ledger are as they were written, that every committed file is there with its size and
    digest, that accepted + rejected + errors = planned, that columns are as documented, that lengths agree row by row,
    that no id is there twice, that the tasks' sources are those that the rows were made with, and that a curriculum is
    whole and made from these rows. Raises DatasetError where there
    is no dataset at all.
    """
    require_directory(out)
    if not (out / MANIFEST).exists() and not (out / LEDGER).exists():
        raise no_dataset(out)
    require_no_copy(out)
    try:
        manifest, ledger = read_manifest(out), read_ledger(out)
        signals = read_signals(manifest)
    except DatasetError as error:
        yield f"{error}; {tell_repair(out)} mends it"
        return
    if not (out / LEDGER).read_bytes().endswith(b"\n"):
        yield f"{LEDGER}: its last line is torn; resume the job, which will write it again"
    if signals is None:
        if ledger.entries:
            yield "manifest.json: has no signals section, yet shards are committed"
        return
    rows = sum(entry.planned for entry in ledger.entries.values())
    if len(ledger.entries) == ledger.totals.shards and rows != ledger.plan["planned"]:
        yield f"ledger.jsonl: {rows} rows committed, {ledger.plan['planned']} planned"
    # the ids of the whole dataset, each with its shard: a row may be there twice in two of them
    seen: dict[str, int] = {}
    for shard, entry in sorted(ledger.entries.items()):
        damage = list(check_files(out, entry))
        yield from (f"{told}; {tell_repair(out)} makes it again" for told in damage)
        yield from _check_counts(entry)
        if not damage:
            # layers are of a model: those of the teacher that answered
            own = read_signals(of_teacher(manifest, ledger.teacher_of(shard))) or signals
            yield from _check_rows(out, shard, entry, own, seen)
    committed = {file.path for entry in ledger.entries.values() for file in entry.files}
    for layout in layouts(signals).values():
        for path in sorted((out / layout.folder).glob("*.parquet")):
            if f"{layout.folder}/{path.name}" not in committed:
                yield f"{layout.folder}/{path.name}: not in the ledger; resume the job, which will write it again"
    yield from check_sources(out, manifest)
    yield from check_curriculum(out, ledger)


def check_files(out: Path, entry: ShardEntry) -> Iterator[str]:
    """What is wrong with the files of one committed shard, by size and checksum alone."""
    found = (find_file_damage(out, file, "committed") for file in entry.files)
    yield from (f"{told} (shard {entry.shard})" for told in found if told)


def check_sources(out: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """The copies of templates and schemas beside the rows: what a reader takes for their origin."""
    for task, files in _copies(manifest).items():
        for file, digest in files.items():
            name = f"templates/{task}/{file}"
            if not (out / name).is_file():
                yield f"{name}: missing; resume the job, which will copy it again"
            elif digest_bytes(out / name) != digest:
                yield f"{name}: not what the rows were made with; resume the job, which will copy it again"


def _copies(manifest: dict[str, Any]) -> dict[str, dict[str, str]]:
    if COPIES in manifest:
        return dict(manifest[COPIES])
    # manifests of the first scheme had digests over bytes in `tasks`, by the source's path
    tasks = manifest.get("tasks", {})
    return {task: {Path(name).name: told for name, told in said["files"].items()} for task, said in tasks.items()}


def _check_counts(entry: ShardEntry) -> Iterator[str]:
    if entry.accepted + entry.rejected + entry.errors != entry.planned:
        yield f"ledger.jsonl: shard {entry.shard}: accepted + rejected + errors is not planned"
    cells = [sum(counts) for counts in zip(*entry.cells.values(), strict=True)]
    if cells != [entry.accepted, entry.rejected, entry.errors]:
        yield f"ledger.jsonl: shard {entry.shard}: its counts by task and level add up to {cells}"
    if sum(entry.reasons.values()) != entry.rejected + entry.errors:
        yield f"ledger.jsonl: shard {entry.shard}: its reasons do not add up to rejected + errors"
    rows = {file.path.split("/")[0]: file.rows for file in without_late(entry).files}
    expected = {"data": entry.accepted, "rejected": entry.rejected + entry.errors, "hidden_states": entry.accepted}
    # every accepted row is in each config beside the rows; one without attention maps has a null there
    expected |= {"experts": entry.accepted, "attention": entry.accepted}
    if rows.pop("preferences", 0) > entry.accepted:
        yield f"ledger.jsonl: shard {entry.shard}: more preference pairs than accepted rows"
    for folder, count in rows.items():
        if expected.get(folder) != count:
            yield f"ledger.jsonl: shard {entry.shard}: {folder} has {count} rows, expected {expected.get(folder)}"


def _check_rows(out: Path, shard: int, entry: ShardEntry, signals: SignalSpec, seen: dict[str, int]) -> Iterator[str]:
    configs = layouts(signals)
    for layout in configs.values():
        name = shard_path(layout.folder, shard)
        columns = {column.name: str(column.type) for column in layout.columns}
        # reading on would fail at the first column that is not there
        if read_schema(out / name) != columns:
            yield f"{name}: columns are not those of this format"
            return
    # N by id, in the order of the default config: what the configs beside it must have, in this order
    inputs: dict[str, int] = {}
    prompt_tokens = completion_tokens = 0
    for config in ("default", "rejected"):
        for name, batch in _batches(out, configs[config], shard):
            ids = batch.column("id").to_pylist()
            yield from (f"{name}: id {i} is there twice (also in shard {seen[i]})" for i in ids if i in seen)
            seen.update(dict.fromkeys(ids, shard))
            prompt_B, completion_B = _token_lengths(batch)
            prompt_tokens += int(prompt_B.sum())
            completion_tokens += int(completion_B.sum())
            if config == "default":
                yield from _check_alignment(name, batch, signals)
                inputs |= dict(zip(ids, (prompt_B + completion_B - 1).tolist(), strict=True))
    if (prompt_tokens, completion_tokens) != (entry.prompt_tokens, entry.completion_tokens):
        yield f"ledger.jsonl: shard {shard}: its rows have {prompt_tokens} + {completion_tokens} tokens, not as told"
    finders: dict[str, Callable[[Any], Iterator[tuple[str, str]]]] = {
        "hidden_states": lambda batch: _find_in_states(batch, inputs, signals),
        "experts": lambda batch: _find_in_experts(batch, inputs),
        "attention": lambda batch: _find_in_attention(batch, inputs, signals),
    }
    for config in (name for name in finders if name in configs):
        yield from _check_beside(out, configs[config], shard, inputs, finders[config])


def _batches(out: Path, layout: Layout, shard: int) -> Iterator[tuple[str, Any]]:
    name = shard_path(layout.folder, shard)
    skipped = ("states", "maps")  # as large as all else together, and already proved by their checksum
    columns = [column.name for column in layout.columns if column.name not in skipped]
    return ((name, batch) for batch in read_batches(out / name, columns))


def _token_lengths(batch: Any) -> tuple[Array, Array]:
    """How many prompt and completion tokens each row has."""
    prompt_B, completion_B = (list_lengths(batch.column(name)) for name in TOKEN_IDS)
    return prompt_B, completion_B


def _check_alignment(name: str, batch: Any, signals: SignalSpec) -> Iterator[str]:
    prompt_B, tokens = _token_lengths(batch)
    for prefix, lengths in (("", tokens), (PROMPT, prompt_B - 1)) if signals.of_prompt else (("", tokens),):
        for row, told in find_damage(_flat(batch, prefix), lengths, signals.top_k):
            yield f"{name}: row {batch.column('id')[row]}: {prefix}{told}"
    if signals.candidates:
        for row, told in find_candidate_damage(_flat(batch, "", CANDIDATES), tokens):
            yield f"{name}: row {batch.column('id')[row]}: {told}"
    if signals.students:
        for row in np.flatnonzero(list_lengths(batch.column(STUDENT_COLUMNS["prompt_token_ids"])) == 0):
            yield f"{name}: row {batch.column('id')[int(row)]}: its student's prompt has no ids"
    if signals.masked:
        values, offsets = read_list(batch.column(MASK))
        for row in np.flatnonzero(np.diff(offsets) != tokens):
            yield f"{name}: row {batch.column('id')[int(row)]}: {MASK} is not as long as its completion"
        if values.size and values.max() > 1:
            yield f"{name}: {MASK} has other numbers than 0 and 1"
    starts = batch.column("answer_start").to_numpy()
    # an endpoint's rows may have no ids, and say why
    outside = (starts < 0) | (starts >= tokens)
    outside &= (tokens > 0) if signals.source == "endpoint" else True
    for row in np.flatnonzero(outside):
        yield f"{name}: row {batch.column('id')[int(row)]}: answer_start {starts[row]} is outside its tokens"


def _flat(batch: Any, prefix: str, stored: Sequence[str] = STORED) -> Flat:
    """The columns of the distributions as they lie: values, and offsets [B + 1]."""
    return {name: read_list(batch.column(prefix + name)) for name in stored if prefix + name in batch.schema.names}


def _check_beside(
    out: Path, layout: Layout, shard: int, inputs: dict[str, int], find: Callable[[Any], Iterator[tuple[str, str]]]
) -> Iterator[str]:
    """What is wrong with a config beside the rows: `find` tells it of the rows of a batch, as ids and complaints."""
    ids: list[str] = []
    for name, batch in _batches(out, layout, shard):
        ids += batch.column("id").to_pylist()
        yield from (f"{name}: row {row}: {told}" for row, told in find(batch))
    if ids != list(inputs):
        yield f"{shard_path(layout.folder, shard)}: its ids are not those of the default config, in the same order"


def _find_in_states(batch: Any, inputs: dict[str, int], signals: SignalSpec) -> Iterator[tuple[str, str]]:
    for row in batch.to_pylist():
        count, positions = inputs.get(row["id"]), row.get("positions")
        if positions is not None and count is not None:
            if positions != sorted(set(positions) & set(range(count))):
                yield row["id"], f"positions are not ascending in 0 to {count - 1}"
            count = len(positions)
        if row["shape"][:2] != [count, len(signals.layers)]:
            yield row["id"], f"shape {row['shape']}, expected [{count}, {len(signals.layers)}, H]"


def _find_in_experts(batch: Any, inputs: dict[str, int]) -> Iterator[tuple[str, str]]:
    found = batch.select(["id", "layers", "shape"]).to_pylist()
    lengths = zip(
        *(list_lengths(batch.column(name)).tolist() for name in ("expert_ids", "expert_weights")), strict=True
    )
    for row, sizes in zip(found, lengths, strict=True):
        wanted, size = [inputs.get(row["id"]), len(row["layers"])], int(np.prod(row["shape"]))
        if row["shape"][:2] != wanted or sizes != (size, size):
            yield row["id"], f"shape {row['shape']} and {sizes[0]} ids, expected {wanted} and E"


def _find_in_attention(batch: Any, inputs: dict[str, int], signals: SignalSpec) -> Iterator[tuple[str, str]]:
    for row in batch.to_pylist():
        # a row without maps has an empty shape; which rows must have some follows from their ids
        count, (blocks, *_, second, third) = inputs.get(row["id"], 0), row["shape"] or (0, 0, 0)
        wanted = (len(signals.attention), count) if signals.keeps_attention(row["id"], count) else (0, 0)
        if (blocks, second) != wanted or second != third:
            yield row["id"], f"maps of shape {row['shape']}, expected of {wanted[1]} tokens"
