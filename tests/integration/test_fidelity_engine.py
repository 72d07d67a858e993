"""The self-test on a real run: it passes on what the engine kept, and every fault put into the files is caught.

The engine starts once. Faults are written into the Parquet files of copies, in the rows that the test will choose.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from integration_support import engine_job, make_dataset

from factory.checks.fidelity import choose_rows, describe, read_row, summarize
from factory.dataset.columns import flat_list
from factory.dataset.ledger import read_ledger, write_ledger
from factory.dataset.manifest import read_manifest, read_signals, replace_section
from factory.dataset.shards import ShardFile, file_digest
from factory.dataset.signal_columns import encode_states
from factory.errors import FidelityError
from factory.job.job import Job
from factory.runs.run import run
from factory.signals import Array, Logprobs
from factory.teachers.agreement import BOUNDS
from factory.teachers.plain_forward import PlainModel, compare_row
from factory.teachers.reference import KeptRow, require_reference

pytestmark = pytest.mark.engine
ROWS = 4


@dataclass(frozen=True)
class Made:
    """One run of the engine, and the model that checks it, loaded once for all tests of this file."""

    folder: Path
    job: Job
    model: PlainModel

    @property
    def out(self) -> Path:
        return self.folder / "dataset"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("fidelity")
    job = engine_job(
        signals={"top_k": 20, "hidden_layers": [2, -1], "verify_rows": ROWS},
        tasks=[{"name": "adding", "count": 8}],
        shard_rows=4,
    )
    dataset = make_dataset(folder, job)
    reference = require_reference(dataset.manifest)
    model = PlainModel(reference | {"layers": [2, 4], "final_norm": True, "longest": 4096})
    return Made(folder, job, model)


def check_here(made: Made, out: Path, dtype: str = "float32") -> dict[str, Any]:
    """The section of a dataset, with the forward in this process."""
    return summarize(rows := chosen(out), measure(made.model, rows), dtype)


def chosen(out: Path) -> list[KeptRow]:
    signals = read_signals(read_manifest(out))
    assert signals is not None
    return [read_row(out, choice, signals) for choice in choose_rows(read_ledger(out), ROWS)]


def measure(model: PlainModel, rows: list[KeptRow]) -> dict[str, Any]:
    with torch.inference_mode():
        return {
            "rows": [compare_row(model, row.arrays()) for row in rows],
            "device": "cpu",
            "versions": {"transformers": "?"},
        }


Fault = Callable[[Made, KeptRow], dict[str, Array]]


def damage(made: Made, copy: Path, fault: Fault, rows: int = ROWS) -> None:
    """Put a fault into `rows` of the chosen rows of a copy, in its Parquet files."""
    shutil.copytree(made.out, copy)
    changed = {row.id: fault(made, row) for row in chosen(copy)[:rows]}
    for path in [*copy.glob("data/*.parquet"), *copy.glob("hidden_states/*.parquet")]:
        table = pq.read_table(path)
        ids = table.column("id").to_pylist()
        for name in {name for arrays in changed.values() for name in arrays} & set(table.column_names):
            values = table.column(name).to_pylist()
            values = [
                changed[i].get(name, value) if i in changed else value for i, value in zip(ids, values, strict=True)
            ]
            at, field = table.schema.get_field_index(name), table.schema.field(name)
            table = table.set_column(at, field, column_of(values, field.type))
        pq.write_table(table, path)


def commit_again(copy: Path) -> None:
    """Let the ledger tell of the files as they now are."""

    def as_written(file: ShardFile) -> ShardFile:
        path = copy / file.path
        return replace(file, bytes=path.stat().st_size, blake3=file_digest(path))

    ledger = read_ledger(copy)
    told = {shard: tuple(map(as_written, entry.files)) for shard, entry in ledger.entries.items()}
    entries = {shard: replace(entry, files=told[shard]) for shard, entry in ledger.entries.items()}
    write_ledger(copy, ledger.plan, entries)


def column_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_large_binary(kind):
        return pa.array(
            [value if isinstance(value, bytes) else encode_states([value])[0].as_py() for value in values], kind
        )
    dtype = kind.value_type.to_pandas_dtype()
    return flat_list([np.asarray(value, dtype) for value in values], dtype).cast(kind)


def as_columns(logprobs: Logprobs) -> dict[str, Array]:
    names = ("sampled_logprobs", "topk_ids", "topk_logprobs", "tail_logprobs", "entropy")
    return dict(zip(names, logprobs.arrays().values(), strict=True))


def rolled(by: int) -> Fault:
    def fault(made: Made, row: KeptRow) -> dict[str, Array]:
        assert row.logprobs is not None
        return {name: np.roll(value, by, 0) for name, value in as_columns(row.logprobs).items()}

    return fault


def states_rolled(made: Made, row: KeptRow) -> dict[str, Array]:
    assert row.bits_NLH is not None
    return {"states": np.roll(row.bits_NLH, 1, 0)}


def layers_swapped(made: Made, row: KeptRow) -> dict[str, Array]:
    assert row.bits_NLH is not None
    return {"states": row.bits_NLH[:, ::-1]}


def states_of(made: Made, row: KeptRow, layers: list[int], final_norm: bool = True) -> dict[str, Array]:
    """What a capture of other layers, or of the last one without its norm, would have kept."""
    model = made.model
    model.layers, model.final_norm = layers, final_norm
    try:
        with torch.inference_mode():
            _, states_NLH, _ = model.recompute(np.concatenate([row.prompt_ids, row.completion_ids]), 1, None)
    finally:
        model.layers, model.final_norm = [2, 4], True
    assert states_NLH is not None
    return {"states": (states_NLH.view(np.uint32) >> 16).astype(np.uint16)}


def distribution_of(made: Made, row: KeptRow, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    """What capture would have kept of changed logits."""
    ids = torch.tensor(np.concatenate([row.prompt_ids, row.completion_ids]), dtype=torch.long)
    sampled_T = ids[len(row.prompt_ids) :]
    with torch.inference_mode():
        logits_TV = made.model.model(ids[None]).logits[0, len(row.prompt_ids) - 1 : -1].float()
    logprobs_TV = change(logits_TV, sampled_T).log_softmax(-1).clamp_min(-1e30)
    top = logprobs_TV.topk(20)
    tail_T = logprobs_TV.exp().scatter(1, top.indices, 0.0).sum(-1).log()
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    sampled = logprobs_TV.gather(1, sampled_T[:, None])[:, 0]
    parts = (sampled, top.indices, top.values.half(), tail_T, entropy_T)
    return as_columns(Logprobs(*(part.numpy() for part in parts)))


def masked(made: Made, row: KeptRow) -> dict[str, Array]:
    """As behind a grammar: of 2,048 ids 64 are allowed, the sampled one among them."""

    def mask(logits_TV: torch.Tensor, sampled_T: torch.Tensor) -> torch.Tensor:
        allowed = torch.zeros_like(logits_TV, dtype=torch.bool)
        allowed[:, ::32] = True
        return logits_TV.masked_fill(~allowed.scatter(1, sampled_T[:, None], True), -torch.inf)

    return distribution_of(made, row, mask)


def tempered(made: Made, row: KeptRow) -> dict[str, Array]:
    return distribution_of(made, row, lambda logits_TV, _: logits_TV / 0.7)


FAULTS: dict[str, tuple[Fault, str]] = {
    "distributions one token late": (rolled(1), "kl_mean"),
    "distributions one token early": (rolled(-1), "kl_mean"),
    "masked logits": (masked, "kl_mean"),
    "logits after temperature": (tempered, "kl_mean"),
    "states one position late": (states_rolled, "state_error_mean"),
    "two layers swapped": (layers_swapped, "state_error_mean"),
    "the layer before": (lambda made, row: states_of(made, row, [1, 4]), "state_error_mean"),
    "the layer after": (lambda made, row: states_of(made, row, [3, 4]), "state_error_mean"),
    "final norm left out": (lambda made, row: states_of(made, row, [2, 4], final_norm=False), "state_error_mean"),
}


def test_the_run_has_checked_itself(made: Made) -> None:
    section = read_manifest(made.out)["fidelity"]
    assert (section["verdict"], section["asked"], section["dtype"]) == ("passed", ROWS, "float32")
    assert len({row["id"] for row in section["rows"]}) == ROWS
    # a run names no candidates
    assert (
        set(section["figures"])
        == set(section["bounds"])
        == set(BOUNDS["float32"]) - {"candidate_mean", "candidate_max"}
    )
    assert set(section["layers"]) == {"2", "4"}
    assert section["versions"]["transformers"]
    assert "fidelity: passed: 4 rows agree with" in (made.out / "README.md").read_text(encoding="utf-8")


def test_two_right_engines_are_far_inside_the_bounds(made: Made) -> None:
    section = check_here(made, made.out)
    print(json.dumps(section["figures"]))
    assert section["figures"]["kl_max"] < 1e-4
    assert section["figures"]["logprob_max"] < 1e-4
    assert section["figures"]["state_error_max"] < 0.004
    assert section["figures"] == pytest.approx(read_manifest(made.out)["fidelity"]["figures"], abs=1e-5)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_caught_by_the_bounds_of_either_dtype(made: Made, tmp_path: Path, name: str) -> None:
    fault, figure = FAULTS[name]
    damage(made, tmp_path / "copy", fault)
    for dtype in BOUNDS:
        section = check_here(made, tmp_path / "copy", dtype)
        assert section["verdict"] == "failed", (dtype, section["figures"])
        assert figure in section["exceeded"], (dtype, section["figures"])
    print(name, json.dumps(section["figures"]))


@pytest.mark.parametrize("fault", [rolled(1), states_rolled], ids=["distributions", "states"])
def test_one_bad_row_among_good_ones_is_enough(made: Made, tmp_path: Path, fault: Fault) -> None:
    damage(made, tmp_path / "copy", fault, rows=1)
    section = check_here(made, tmp_path / "copy", "bfloat16")
    assert [bool(row["exceeded"]) for row in section["rows"]] == [True, False, False, False]
    assert "1 of 4 rows do not agree" in describe(section)


def test_a_run_over_damaged_files_fails_and_leaves_them(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    damage(made, copy, rolled(1))
    # as if it had been made so
    replace_section(copy, "fidelity", {})
    commit_again(copy)
    data = {path: path.read_bytes() for path in copy.glob("data/*")}
    with pytest.raises(FidelityError, match=r"fidelity: failed: 4 of 4 rows .*kl_mean .*, allowed at most 0.0001"):
        run(made.job, made.folder, copy)
    assert read_manifest(copy)["fidelity"]["verdict"] == "failed"
    assert "fidelity: failed" in (copy / "README.md").read_text(encoding="utf-8")
    assert {path: path.read_bytes() for path in copy.glob("data/*")} == data


def test_a_dataset_is_checked_on_request(made: Made) -> None:
    command = [sys.executable, "-m", "factory.cli", "verify", str(made.out), "--fidelity", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fidelity: passed: 2 rows agree" in done.stdout


def test_logits_in_chunks_are_those_of_one_forward(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    row = chosen(made.out)[0]
    with torch.inference_mode():
        whole = compare_row(made.model, row.arrays())
        monkeypatch.setattr("factory.teachers.plain_forward.CHUNK_VALUES", 3 * 2048)
        assert compare_row(made.model, row.arrays())["logprobs"] == pytest.approx(whole["logprobs"], abs=1e-5)
