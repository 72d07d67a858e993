"""Shards: a file is whole or not there, and what is written is what was given."""

import errno
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from dataset_support import SIGNALS, make_record, make_rejection, outcomes_by_folder, read_tree, some_outcomes

from factory.dataset.layouts import layouts
from factory.dataset.shards import (
    PART_BYTES,
    READ_BYTES,
    ROW_GROUP_BYTES,
    SYNC_BYTES,
    FollowedFile,
    ShardFile,
    file_digest,
    find_file_damage,
    made_ahead,
    read_batches,
    read_schema,
    sha256_digest,
    write_shard,
)
from factory.dataset.signal_columns import decode_states
from factory.errors import DatasetError
from factory.records import Record
from factory.signals import HiddenStates, SignalSpec

WRITE_ON_SMALL_DISKS = """
import resource, sys, threading
from pathlib import Path
from dataset_support import SIGNALS, some_outcomes
from test_shards import long_records
from factory.errors import DatasetError
from factory.dataset.shards import write_shard

outcomes = {"short": some_outcomes, "long": long_records}[sys.argv[2]]()
for limit in sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        write_shard(Path(sys.argv[1]) / limit, 0, outcomes, SIGNALS)
    except DatasetError as error:
        print(error, threading.active_count())
"""


def long_records() -> list[Record]:
    """Nine rows with hidden states of 4 MiB: three row groups, and more than is brought to the disk at once."""
    rng = np.random.default_rng(0)
    states = [HiddenStates((1,), rng.integers(0, 2**16, (1024, 1, 2048), np.uint16)) for _ in range(9)]
    return [make_record(number, hidden_states=row) for number, row in enumerate(states)]


def test_a_shard_is_one_file_for_each_config_and_the_ledger_gets_their_proofs(tmp_path: Path) -> None:
    files = write_shard(tmp_path, 7, some_outcomes(), SIGNALS)
    paths = ["data/train-00007.parquet", "hidden_states/train-00007.parquet", "rejected/train-00007.parquet"]
    assert sorted(file.path for file in files) == paths
    assert {file.path.split("/")[0]: file.rows for file in files} == {"data": 3, "rejected": 2, "hidden_states": 3}
    for file in files:
        data = (tmp_path / file.path).read_bytes()
        assert (len(data), blake3(data).hexdigest()) == (file.bytes, file.blake3)
    assert [name for name in read_tree(tmp_path) if ".tmp-" in name] == []


def test_accepted_rows_and_their_states_are_in_the_same_order(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [make_record(3), make_rejection(9), make_record(1), make_record(2)], SIGNALS)
    for folder in ("data", "hidden_states"):
        assert pq.read_table(tmp_path / folder / "train-00000.parquet").column("id").to_pylist() == [
            "id3",
            "id1",
            "id2",
        ]


def test_a_config_without_rows_gets_a_file_without_rows(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [make_record(0)], SIGNALS)
    write_shard(tmp_path, 1, [make_rejection(0)], SIGNALS)
    assert dict(outcomes_by_folder(tmp_path)) == {"data": 1, "rejected": 1, "hidden_states": 1}
    empty = pq.read_schema(tmp_path / "data/train-00001.parquet")
    assert empty.names == layouts(SIGNALS)["default"].schema.names
    assert list(read_batches(tmp_path / "data/train-00001.parquet")) == []


def test_the_same_outcomes_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shard(tmp_path / name, 0, some_outcomes(), SIGNALS)
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")


def test_row_groups_are_cut_near_twelve_megabytes(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, long_records(), SignalSpec(top_k=3, layers=(1,)))
    file = pq.ParquetFile(tmp_path / "hidden_states/train-00000.parquet")
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [3, 3, 3]
    assert all(abs(group.total_byte_size - ROW_GROUP_BYTES) < 0.05 * ROW_GROUP_BYTES for group in groups)
    read = [
        i for b in read_batches(tmp_path / "hidden_states/train-00000.parquet", ["id"]) for i in b["id"].to_pylist()
    ]
    assert read == [f"id{number}" for number in range(9)]
    beside = pq.read_metadata(tmp_path / "data/train-00000.parquet")
    assert (beside.num_row_groups, beside.num_rows) == (1, 9), "states are not in this file and do not cut its groups"


def test_a_long_file_has_its_digest_and_every_number(tmp_path: Path) -> None:
    records, threads = long_records(), threading.active_count()
    (file,) = (f for f in write_shard(tmp_path, 0, records, SIGNALS) if f.path.startswith("hidden_states/"))
    data = (tmp_path / file.path).read_bytes()
    assert (len(data), blake3(data).hexdigest()) == (file.bytes, file.blake3)
    values = [
        value for batch in read_batches(tmp_path / file.path, ["states"]) for value in batch["states"].to_pylist()
    ]
    for record, value in zip(records, values, strict=True):
        states = record.generation.hidden_states
        assert states is not None
        np.testing.assert_array_equal(decode_states(value, states.bits_NLH.shape), states.bits_NLH)
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("outcomes", "limits"), [("short", ["0", "100", "2000", "5000"]), ("long", ["6000000", "14000000", "37500000"])]
)
def test_a_disk_that_fills_up_leaves_no_part_of_a_file_and_no_thread(
    tmp_path: Path, outcomes: str, limits: list[str]
) -> None:
    write_shard(tmp_path / "whole", 0, some_outcomes() if outcomes == "short" else long_records(), SIGNALS)
    complete = read_tree(tmp_path / "whole")
    command = [sys.executable, "-c", WRITE_ON_SMALL_DISKS, str(tmp_path), outcomes, *limits]
    here = Path(__file__).parent
    beside = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    done = subprocess.run(command, cwd=here, env=beside, capture_output=True, text=True, check=True)
    told = "shard 0 cannot be written: File too large; committed shards are whole"
    assert done.stdout.splitlines() == [f"{tmp_path / limit}: {told} 1" for limit in limits]
    for limit in limits:
        for name, digest in read_tree(tmp_path / limit).items():
            assert digest in ("", complete.get(name)), f"{limit}: {name} is there, and not whole"


def test_an_error_of_the_disk_behind_the_writer_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with FollowedFile(tmp_path / "file") as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", refuse)
            file.sink.write(bytes(SYNC_BYTES))
            file.follow()
            assert file.synced is not None
            assert isinstance(file.synced.exception(timeout=600), OSError)
        with pytest.raises(OSError, match="Input/output error"):  # though a later fsync succeeds
            file.finish()


def test_the_writer_holds_few_bytes_however_long_the_file(tmp_path: Path) -> None:
    part, digest = bytearray(PART_BYTES), blake3()
    with FollowedFile(tmp_path / "file") as file:
        tracemalloc.start()
        for number in range(20):
            part[:] = bytes([number]) * PART_BYTES
            digest.update(part)
            file.sink.write(part)
            file.follow()
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        file.finish()
    assert (file.size, file.digest) == (20 * PART_BYTES, digest.hexdigest())
    assert held < 3 * PART_BYTES  # most of it the test's own


def test_a_file_where_a_folder_belongs_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "rejected").write_text("mine")
    with pytest.raises(DatasetError, match=r"shard 3 cannot be written: File exists; committed shards are whole"):
        write_shard(tmp_path, 3, some_outcomes(), SIGNALS)
    assert (tmp_path / "rejected").read_text() == "mine"
    assert [name for name in read_tree(tmp_path) if ".tmp-" in name] == []


def test_a_folder_where_the_file_belongs_stops_the_rename_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "data/train-00000.parquet").mkdir(parents=True)
    with pytest.raises(DatasetError, match="shard 0 cannot be written: Is a directory"):
        write_shard(tmp_path, 0, some_outcomes(), SIGNALS)
    assert sorted(read_tree(tmp_path)) == ["data", "data/train-00000.parquet"]


def test_a_shard_written_again_replaces_its_files_in_one_step(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [make_record(1)], SIGNALS)
    with (tmp_path / "data/train-00000.parquet").open("rb") as reader:
        write_shard(tmp_path, 0, [make_record(2), make_record(3)], SIGNALS)
        assert pq.read_table(reader).column("id").to_pylist() == ["id1"], "who reads the old file reads it whole"
    assert pq.read_table(tmp_path / "data/train-00000.parquet").column("id").to_pylist() == ["id2", "id3"]


@pytest.mark.parametrize("cut", [0, 4, 300])
def test_a_file_that_is_not_whole_parquet_is_named(tmp_path: Path, cut: int) -> None:
    write_shard(tmp_path, 0, some_outcomes(), SIGNALS)
    path = tmp_path / "data/train-00000.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DatasetError, match=r"data/train-00000\.parquet: not readable as Parquet: \S") as one:
        list(read_batches(path))
    with pytest.raises(DatasetError, match=r"data/train-00000\.parquet: not readable as Parquet: \S"):
        read_schema(path)
    assert "\n" not in str(one.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent\.parquet: missing$"):
        list(read_batches(tmp_path / "absent.parquet"))
    (tmp_path / "ledger.jsonl").touch()  # of a dataset: then there is a next step
    with pytest.raises(DatasetError, match=r"absent\.parquet: missing; `factory verify .*` tells what else is damaged"):
        list(read_batches(tmp_path / "data" / "absent.parquet"))


def test_a_schema_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, some_outcomes(), SIGNALS)
    for name, layout in layouts(SIGNALS).items():
        types = {field.name: str(field.type) for field in layout.schema}
        assert read_schema(tmp_path / layout.folder / "train-00000.parquet") == types, name


def test_a_digest_is_blake3_and_that_of_a_users_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc") == "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    assert sha256_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("size", [0, 1, READ_BYTES - 1, READ_BYTES, 2 * READ_BYTES + 7])
def test_a_digest_is_of_every_byte_whatever_is_read_at_once(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(0).bytes(size)
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == blake3(data).hexdigest()
    with FollowedFile(tmp_path / "copy") as file:
        for first in range(0, size, 1_000_003):  # in pieces that fit no part
            file.sink.write(data[first : first + 1_000_003])
            file.follow()
        file.finish()
    assert (file.size, file.digest) == (size, blake3(data).hexdigest())
    assert (tmp_path / "copy").read_bytes() == data


def test_a_file_is_proved_by_the_hash_that_its_proof_names(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    new = ShardFile("file", 1, 3, blake3=file_digest(tmp_path / "file"))
    old = ShardFile("file", 1, 3, sha256=sha256_digest(tmp_path / "file"))
    assert new.told() == {"path": "file", "rows": 1, "bytes": 3, "blake3": new.blake3}
    assert old.told() == {"path": "file", "rows": 1, "bytes": 3, "sha256": old.sha256}
    assert [find_file_damage(tmp_path, file, "committed") for file in (new, old)] == [None, None]
    (tmp_path / "file").write_bytes(b"abd")
    told = "file: its bytes have changed since it was committed"
    assert [find_file_damage(tmp_path, file, "committed") for file in (new, old)] == [told, told]
    swapped = ShardFile("file", 1, 3, blake3=sha256_digest(tmp_path / "file"))
    assert find_file_damage(tmp_path, swapped, "committed") == told
    for proofs in ({}, {"blake3": "0" * 64, "sha256": "0" * 64}):
        with pytest.raises(ValueError, match="blake3 or sha256"):
            ShardFile("file", 1, 3, **proofs)


def test_what_the_hashing_thread_meets_is_raised_and_nothing_after_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FollowedFile(tmp_path / "file") as file:
        file.sink.write(bytes(PART_BYTES))
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", lambda *_: 0)  # what was written is not there
            file.follow()
            assert file.hashed is not None
            assert isinstance(file.hashed.exception(timeout=600), OSError)
        with pytest.raises(OSError, match="Input/output error"):
            file.follow()
        with pytest.raises(OSError, match="Input/output error"):
            file.finish()


def test_the_next_table_is_made_while_one_is_written_and_no_more(tmp_path: Path) -> None:
    made: list[int] = []
    tables = made_ahead(lambda group: made.append(group.start), [slice(at, at + 1) for at in range(5)])
    for written in range(5):
        next(tables)
        assert len(made) <= written + 2
    assert next(tables, "over") == "over"
    assert made == list(range(5))


def test_what_making_a_table_meets_is_raised(tmp_path: Path) -> None:
    def make(group: slice) -> None:
        raise ValueError(f"row {group.start}")

    threads = threading.active_count()
    with pytest.raises(ValueError, match="row 3"):
        list(made_ahead(make, [slice(3, 4), slice(4, 5)]))
    assert threading.active_count() == threads
