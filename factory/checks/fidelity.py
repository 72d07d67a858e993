"""Fidelity: do the signals in a dataset's files agree with a plain transformers forward over the stored token ids?

A few committed rows are read back from Parquet, as any user would read them, and run again by
`factory.teachers.reference`. What comes of it is a section of the manifest: the rows, the worst figures, the bounds, a
verdict. A model that transformers cannot hold is no fault: the section then says `not checked`, and why.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from factory.dataset.codec import (
    CANDIDATE_COUNTS,
    CANDIDATES,
    SCALARS,
    STORED,
    find_candidate_damage,
    find_damage,
    read_candidates,
    read_topk,
)
from factory.dataset.columns import TOKEN_IDS, list_lengths
from factory.dataset.ledger import Ledger, read_ledger
from factory.dataset.manifest import of_teacher, read_manifest, read_signals, replace_section, section, teachers_of
from factory.dataset.shards import read_batches, shard_path
from factory.dataset.signal_columns import PROMPT, decode_states, logprob_columns
from factory.errors import DatasetError, FidelityError
from factory.hashing import content_hash
from factory.job.job import Job
from factory.signals import Array, Candidates, Logprobs, SignalSpec
from factory.teachers.agreement import BOUNDS, LEAST, Figures, exceeded, worst_of
from factory.teachers.reference import KeptRow, NotChecked, forward_rows, require_reference

SECTION: Final = "fidelity"
DEFAULT_ROWS: Final = 4
Choice = tuple[int, str]  # shard, id of a row


def rows_to_verify(job: Job) -> int:
    """How many rows the job wants checked; a scripted teacher has no model to check them with."""
    asked = job.signals.verify_rows
    return asked if asked is not None else DEFAULT_ROWS if job.teacher.backend == "vllm" else 0


def check_run(ledger: Ledger, job: Job) -> str | None:
    """Check a run's dataset, unless these files have passed before, and keep the result in the manifest.

    The line for the terminal, of several teachers one each; None where nothing was to be done.
    """
    told = [line for name in job.teacher_names if (line := _check_teacher(ledger, job.of_teacher(name), name))]
    return "\n".join(told) or None


def _check_teacher(ledger: Ledger, job: Job, name: str) -> str | None:
    # a resumed run that added nothing need not load the model again
    count, manifest, own = rows_to_verify(job), read_manifest(ledger.out), ledger.of_teacher(name)
    kept = section(SECTION, name)
    before = manifest.get(kept, {})
    passed = before.get("verdict") == "passed" and before["asked"] >= count
    if not count or (passed and before["files"] == digest_files(own)):
        return None
    found = check(own, of_teacher(manifest, name), count, job.teacher.trust_remote_code)
    replace_section(ledger.out, kept, found)
    return tell_of(name, found)


def tell_of(name: str, found: dict[str, Any]) -> str:
    return f"{name}: {describe(found)}" if name else describe(found)


def require_passed(out: Path) -> None:
    """Raise FidelityError where the check of a dataset failed."""
    manifest = read_manifest(out)
    for name in teachers_of(manifest):
        found = manifest.get(section(SECTION, name), {})
        if found.get("verdict") == "failed":
            raise FidelityError(
                f"{out}: {tell_of(name, found)}; committed shards stay as they are, but do not train on these "
                f"signals: `factory verify {out} --fidelity 16` checks more rows, docs/signals.md says what each "
                f"figure tells"
            )


def check_dataset(out: Path, count: int, teacher: str = "") -> dict[str, Any]:
    """The section of `count` rows of a finished or unfinished dataset, of one of its teachers; it stays as it is.

    Code that comes with a model is not run here, whatever the manifest says: a dataset may be anyone's.
    Raises DatasetError where there is no dataset or it cannot be read.
    """
    return check(read_ledger(out).of_teacher(teacher), of_teacher(read_manifest(out), teacher), count)


def check(ledger: Ledger, manifest: dict[str, Any], count: int, trust_remote_code: bool = False) -> dict[str, Any]:
    """The section of up to `count` rows of a dataset. Raises DatasetError where its files cannot be read."""
    begun: dict[str, Any] = {"asked": count, "files": digest_files(ledger)}
    signals = read_signals(manifest)
    try:
        if signals is None or not signals.any:
            raise NotChecked("the dataset keeps no signals")
        reference = require_reference(manifest, trust_remote_code)
        with ledger.here(spread_shards(ledger, count), "data", "hidden_states"):
            choices = choose_rows(ledger, count)
            rows = [read_row(ledger.out, choice, signals) for choice in choices]
        if not choices:
            raise NotChecked("no row was accepted")
        answer = forward_rows(reference, signals, rows)
    except NotChecked as reason:
        return begun | {"verdict": "not checked", "reason": " ".join(str(reason).split())}
    return begun | summarize(rows, answer, reference["dtype"])


def digest_files(ledger: Ledger) -> str:
    """One name for all committed files, so that a result is known to be about them."""
    return content_hash([[f.path, f.digest] for _, entry in sorted(ledger.entries.items()) for f in entry.files])


def spread_shards(ledger: Ledger, count: int) -> list[int]:
    """Up to `count` shards with accepted rows: the ends and what lies evenly between, as a fault may begin in the
    middle of a run."""
    shards = [shard for shard, entry in sorted(ledger.entries.items()) if entry.accepted]
    return sorted({shards[i * (len(shards) - 1) // max(1, count - 1)] for i in range(count)}) if shards else []


def choose_rows(ledger: Ledger, count: int) -> list[Choice]:
    """Up to `count` accepted rows, the same every time: spread over the shards, the tasks and the lengths."""
    spread = spread_shards(ledger, count)
    left = {shard: list(_list_rows(ledger.out, shard)) for shard in spread}
    seen: Counter[str] = Counter()
    chosen: list[Choice] = []
    while len(chosen) < count and any(left.values()):
        for shard in [shard for shard in spread if left[shard]][: count - len(chosen)]:
            # no random draw: the same files give the same rows, so a result can be looked at again
            rarest = min(seen[task] for _, task, _ in left[shard])
            rows = sorted(row for row in left[shard] if seen[row[1]] == rarest)
            row = rows[len(chosen) * (len(rows) - 1) // max(1, count - 1)]  # from short to long
            left[shard].remove(row)
            seen[row[1]] += 1
            chosen.append((shard, row[2]))
    return chosen


def _list_rows(out: Path, shard: int) -> Iterator[tuple[int, str, str]]:
    """Tokens, task and id of a shard's accepted rows."""
    for batch in read_batches(_data(out, shard), ["id", "task", *TOKEN_IDS]):
        lengths = [list_lengths(batch.column(name)) for name in TOKEN_IDS]
        names = (batch.column(name).to_pylist() for name in ("task", "id"))
        yield from zip((lengths[0] + lengths[1]).tolist(), *names, strict=True)


def _data(out: Path, shard: int, folder: str = "data") -> Path:
    return out / shard_path(folder, shard)


def read_row(out: Path, choice: Choice, signals: SignalSpec) -> KeptRow:
    """One row as the files hold it. Raises DatasetError where its arrays do not fit its tokens."""
    columns = [*TOKEN_IDS, *(column.name for column in logprob_columns(signals))]
    shown = ["images"] if signals.images else []
    row = _find(_data(out, choice[0]), choice[1], ["task", *columns, *shown])
    images = tuple(image["bytes"] for image in row["images"].as_py()) if shown else ()
    arrays = {name: row[name].values.to_numpy() for name in columns}
    prompt, completion = (arrays[name] for name in TOKEN_IDS)
    try:
        logprobs = _read_logprobs(arrays, "", len(completion), signals) if signals.top_k else None
        if logprobs is not None and signals.of_prompt:
            # entry n of both together is predicted at input n, as a forward over all tokens gives them
            logprobs = _join(_read_logprobs(arrays, PROMPT, len(prompt) - 1, signals), logprobs)
        candidates = _read_candidates(arrays, len(completion)) if signals.candidates else None
        inputs = len(prompt) + len(completion) - 1
        bits, positions = _read_states(out, choice, inputs, signals) if signals.layers else (None, None)
    except ValueError as error:
        told = f"row {choice[1]}: its signals do not fit its tokens ({error})"
        raise DatasetError(f"{_data(out, choice[0])}: {told}; run `factory verify {out}`") from None
    return KeptRow(choice[1], row["task"].as_py(), prompt, completion, logprobs, bits, positions, images, candidates)


def _find(path: Path, name: str, columns: list[str]) -> dict[str, Any]:
    """The values of one row, as Arrow scalars."""
    for batch in read_batches(path, ["id", *columns]):
        ids = batch.column("id").to_pylist()
        if name in ids:
            return {column: batch.column(column)[ids.index(name)] for column in columns}
    raise DatasetError(f"{path}: has no row {name}; run `factory verify {path.parent.parent}`")


def _read_candidates(arrays: dict[str, Array], tokens: int) -> Candidates:
    """The candidates of a row. Raises ValueError where they do not fit."""
    names: list[str] = [name for name in CANDIDATES if name in arrays]
    flat = {name: (arrays[name], np.array([0, len(arrays[name])])) for name in names}
    for _, told in find_candidate_damage(flat, np.array([tokens])):
        raise ValueError(told)
    return Candidates(flat[CANDIDATE_COUNTS][0], *read_candidates(flat))


def _read_logprobs(arrays: dict[str, Array], prefix: str, tokens: int, signals: SignalSpec) -> Logprobs:
    """The distributions of a row, out of its columns that begin so. Raises ValueError where they do not fit."""
    names = [name for name in STORED if prefix + name in arrays]
    flat = {name: (arrays[prefix + name], np.array([0, len(arrays[prefix + name])])) for name in names}
    # a reader of one row has no batch: offsets of one list that is all of it
    for _, told in find_damage(flat, np.array([tokens]), signals.top_k):
        raise ValueError(prefix + told)
    topk = read_topk(flat, signals.top_k)
    sampled, tail, entropy = (flat[name][0] for name in SCALARS)
    return Logprobs(sampled, topk["topk_ids"], topk["topk_logprobs"], tail, entropy)


def _join(prompt: Logprobs, completion: Logprobs) -> Logprobs:
    parts = prompt.arrays(), completion.arrays()
    return Logprobs(**{name: np.concatenate([part[name] for part in parts]) for name in parts[1]})


def _read_states(out: Path, choice: Choice, inputs: int, signals: SignalSpec) -> tuple[Array, Array | None]:
    """uint16 [N, L, H], and the positions where only some are kept. Raises ValueError where N or L is another."""
    columns = ["shape", "states", *(["positions"] if signals.hidden_positions != "all" else [])]
    row = _find(_data(out, choice[0], "hidden_states"), choice[1], columns)
    positions = row["positions"].values.to_numpy() if "positions" in row else None
    if positions is not None:
        if len(positions) and not 0 <= positions.min() <= positions.max() < inputs:
            raise ValueError(f"hidden states at positions up to {positions.max()} of {inputs}")
        inputs = len(positions)
    shape, layers = row["shape"].as_py(), len(signals.layers)
    if shape[:2] != [inputs, layers]:
        raise ValueError(f"hidden states are {shape}, expected [{inputs}, {layers}, H]")
    return decode_states(row["states"].as_py(), shape), positions


def summarize(rows: list[KeptRow], answer: dict[str, Any], dtype: str) -> dict[str, Any]:
    """What the manifest keeps: every figure is that of the worst row (and layer), so one bad row is not averaged away.

    `layers` has the same of each kept layer by itself.
    """
    parts: list[dict[str, Any]] = answer["rows"]
    layers = {name: worst_of(part["layers"][name] for part in parts) for name in parts[0]["layers"]}
    each = [worst_of([part["logprobs"], *part["layers"].values()]) for part in parts]
    figures = worst_of(each)
    # bounds are of the precision that the reference ran in
    past = exceeded(figures, dtype)
    return {
        "verdict": "failed" if past else "passed",
        "exceeded": past,
        "rows": [
            {"id": row.id, "task": row.task, "tokens": row.tokens, "exceeded": exceeded(own, dtype)}
            for row, own in zip(rows, each, strict=True)
        ],
        "figures": _round(figures),
        "layers": {name: _round(one) for name, one in layers.items()},
        "bounds": {name: bound for name, bound in BOUNDS[dtype].items() if name in figures},
        "dtype": dtype,
        "device": answer["device"],
        "versions": answer["versions"],
    }


def _round(figures: Figures) -> Figures:
    """Four digits that mean something; a cosine's are those of its distance from 1."""
    return {
        name: 1 - float(f"{1 - value:.4g}") if name in LEAST else float(f"{value:.4g}")
        for name, value in figures.items()
    }


def describe(section: dict[str, Any]) -> str:
    """One line of a section: for the terminal, the card and an error."""
    if section["verdict"] == "not checked":
        return f"fidelity: not checked: {section['reason']}"
    rows, figures, bounds = section["rows"], section["figures"], section["bounds"]
    engine = f"a plain transformers {section['versions']['transformers']} forward in {section['dtype']}"
    if section["verdict"] == "passed":
        told = ", ".join(_tell(name, figures[name]) for name in bounds if name not in LEAST or name.endswith("min"))
        return f"fidelity: passed: {len(rows)} rows agree with {engine} ({told})"
    name = section["exceeded"][0]
    bad = sum(bool(row["exceeded"]) for row in rows)
    allowed = f"{'at least' if name in LEAST else 'at most'} {bounds[name]:g}"
    others = f", and so for {len(section['exceeded']) - 1} more figures" if section["exceeded"][1:] else ""
    told = f"{_tell(name, figures[name])}, allowed {allowed}{others}"
    return f"fidelity: failed: {bad} of {len(rows)} rows do not agree with {engine}: {told}"


def _tell(name: str, value: float) -> str:
    return f"{name} {value:.6g}" if name in LEAST else f"{name} {value:.2g}"
