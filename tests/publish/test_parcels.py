"""Parcels: groups by size, names by content."""

from pathlib import Path

import pytest
from export_support import MakeJob, make_dataset

from factory.dataset.ledger import read_ledger
from factory.dataset.manifest import read_manifest, read_signals
from factory.publish import parcels
from factory.publish.about import generators
from factory.publish.parcels import Parcel, plan_parcels
from factory.signals import SignalSpec


def plan(root: Path, *without: str) -> list[Parcel]:
    manifest = read_manifest(root)
    signals = read_signals(manifest) or SignalSpec()
    return plan_parcels(read_ledger(root), signals, None, generators(manifest), without)


def test_every_row_is_in_one_file_of_each_config(
    workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_dataset(workspace, make_job, signals={"top_k": 4, "hidden_layers": [1]})
    sizes = [entry.files[0].bytes for entry in read_ledger(root).entries.values()]
    monkeypatch.setattr(parcels, "TEXT_BYTES", sizes[0] + sizes[1])  # so that the last of three is by itself
    found = plan(root)
    by_config = {name: [p for p in found if p.config == name] for name in ("default", "signals", "hidden_states")}
    names = {config: [p.path.rpartition("/")[2] for p in parts] for config, parts in by_config.items()}
    assert names["default"] == names["signals"] == names["hidden_states"]
    assert len(names["default"]) == 2
    for parts in by_config.values():
        assert sum(file.rows for part in parts for file in part.sources) == read_ledger(root).totals.accepted
    assert names["default"] == sorted(names["default"])


def test_a_name_says_what_the_file_is_made_of(workspace: Path, make_job: MakeJob) -> None:
    first, again = (make_dataset(workspace, make_job, name) for name in ("first", "again"))
    other = make_dataset(workspace, make_job, "other", seed=5)
    paths = [[parcel.path for parcel in plan(root)] for root in (first, again, other)]
    assert paths[0] == paths[1]
    assert not set(paths[0]) & set(paths[2])


def test_what_is_left_out_is_in_no_file(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job, signals={"top_k": 4, "hidden_layers": [1]})
    assert {parcel.config for parcel in plan(root, "hidden_states")} == {"default", "signals"}
