"""Streams: shared out without loss between ranks and workers, shuffled by a seed, and gone on with at any row."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig, SplitsConfig
from factory.errors import DatasetError
from factory.job.job import Job
from factory.load import Row, Rows, RowStream, load_rows
from factory.load.stream import Reader, Unit
from factory.runs.run import run


def ids_of(rows: list[Row]) -> list[str]:
    return [row["id"] for row in rows]


def ids(rows: Any) -> list[str]:
    return ids_of(list(rows))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows in 4 shards, two stages."""
    from conftest import write_task

    workspace = tmp_path_factory.mktemp("stream")
    write_task(workspace)
    job = {
        "out": "out",
        "shard_rows": 5,
        "teacher": {"backend": "scripted"},
        "tasks": [{"name": "adding", "count": 20}],
    }
    run(Job.model_validate(job | {"signals": {"top_k": 4, "hidden_layers": [2]}}), workspace, workspace / "out")
    make_curriculum(workspace / "out", CurriculumConfig(by="tokens", stages=2))
    return workspace / "out"


def stream(out: Path, config: str = "default", **options: Any) -> RowStream:
    rows = load_rows(out, config, streaming=True, **options)
    assert isinstance(rows, RowStream)
    return rows


MADE: dict[str, Callable[[RowStream], RowStream]] = {
    "plain": lambda rows: rows,
    "shuffled": lambda rows: rows.shuffle(3, buffer_size=7),
    "filtered": lambda rows: rows.filter(lambda row: int(row["id"], 16) % 3),
    "rank": lambda rows: rows.split_by_node(1, 2),
    "stride": lambda rows: rows.shuffle(3, buffer_size=7).split_by_node(1, 3),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("made", ["plain", "shuffled"])
@pytest.mark.parametrize("config", ["default", "stage-1"])
def test_a_data_loader_gives_every_row_once(out: Path, made: str, workers: int, config: str) -> None:
    rows = MADE[made](stream(out, config))
    assert isinstance(rows, IterableDataset)
    loader = DataLoader(rows, batch_size=3, num_workers=workers, collate_fn=ids_of)
    given = [name for batch in loader for name in batch]
    assert sorted(given) == sorted(ids(stream(out, config)))
    assert sorted(given) == sorted(ids(load_rows(out, config)))


@pytest.mark.parametrize("made", MADE)
def test_a_state_goes_on_with_the_next_row_wherever_it_was_told(out: Path, made: str) -> None:
    whole = ids(MADE[made](stream(out)))
    for cut in range(len(whole) + 1):
        first = MADE[made](stream(out))
        reading = iter(first)
        head = [next(reading)["id"] for _ in range(cut)]
        again = MADE[made](stream(out))
        again.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
        assert head + ids(again) == whole
        assert ids(again) == whole  # the state was for one iteration


def test_a_state_belongs_to_its_epoch(out: Path) -> None:
    rows = stream(out).shuffle(1, buffer_size=7)
    rows.set_epoch(2)
    whole, reading = ids(rows), iter(rows)
    head = [next(reading)["id"] for _ in range(9)]
    again = stream(out).shuffle(1, buffer_size=7)
    again.load_state_dict(rows.state_dict())
    assert head + ids(again) == whole


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("made", ["plain", "shuffled"])
def test_ranks_share_the_rows_without_loss_or_repeat(out: Path, made: str, world: int) -> None:
    parts = [ids(MADE[made](stream(out)).split_by_node(rank, world)) for rank in range(world)]
    assert sorted(name for part in parts for name in part) == sorted(ids(stream(out)))
    if 4 % world:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_ranks_and_workers_together_share_the_rows(out: Path) -> None:
    given = []
    for rank in range(2):
        rows = stream(out).shuffle(5, buffer_size=3).split_by_node(rank, 2)
        given += [name for batch in DataLoader(rows, batch_size=2, num_workers=2, collate_fn=ids_of) for name in batch]
    assert sorted(given) == sorted(ids(stream(out)))


def test_a_shuffle_is_decided_by_seed_and_epoch(out: Path) -> None:
    rows, same = (stream(out).shuffle(1, buffer_size=100) for _ in range(2))
    first = ids(rows)
    assert first == ids(same) == ids(rows)
    assert first != ids(stream(out).shuffle(2, buffer_size=100))
    assert first != ids(stream(out))
    rows.set_epoch(1)
    assert ids(rows) != first
    assert sorted(ids(rows)) == sorted(first)


def test_workers_that_live_on_see_a_new_epoch(out: Path) -> None:
    rows = stream(out).shuffle(1, buffer_size=100)
    loader = DataLoader(rows, batch_size=None, num_workers=1, persistent_workers=True, collate_fn=lambda row: row["id"])
    first = list(loader)
    rows.set_epoch(1)
    second = list(loader)
    assert (first != second, sorted(first)) == (True, sorted(second))


def test_a_stream_has_no_length_and_says_its_columns(out: Path) -> None:
    rows = stream(out, "stage-1", join_hidden_states=True)
    with pytest.raises(TypeError):
        len(rows)  # type: ignore[arg-type]
    row = next(iter(rows))
    assert {"id", "task", "hand_off", "topk_ids", "entropy"} <= set(rows.column_names) <= set(row.keys())
    assert row.hidden_states is not None


def test_a_rank_that_is_none_is_refused(out: Path) -> None:
    with pytest.raises(DatasetError, match=r"rank 2 of 2; ranks are 0 to 1"):
        stream(out).split_by_node(2, 2)


# --- by number --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["default", "stage-1"])
def test_rows_are_sliced_selected_filtered_and_shuffled_with_all_that_stands_beside_them(
    out: Path, config: str
) -> None:
    rows = load_rows(out, config, join_hidden_states=True)
    assert isinstance(rows, Rows)
    names = ids(rows)
    assert ids(rows[2:5]) == names[2:5]
    assert ids(rows[::-2]) == names[::-2]
    assert ids(rows[[3, -1, 3]]) == ids(rows.select([3, -1, 3])) == [names[3], names[-1], names[3]]
    assert ids(rows.filter(lambda row: row["id"] in names[4:6])) == names[4:6]
    assert ids(rows.shuffle(1)) == ids(rows.shuffle(1)) != names
    assert sorted(ids(rows.shuffle(1))) == sorted(names)
    assert rows["id"] == names
    assert ids(rows.shuffle(1)[1:4].shuffle(2)[:2]) == ids(rows.shuffle(1)[1:4].shuffle(2))[:2]
    for row in rows.shuffle(1)[:3]:
        assert row.hidden_states.shape[0] == len(row.prompt_token_ids) + len(row.completion_token_ids) - 1
    with pytest.raises(IndexError):
        rows.select([len(rows)])


def test_a_column_is_asked_for_by_its_name_arrays_too(out: Path) -> None:
    rows = load_rows(out)
    assert rows.keys() == rows.column_names
    assert {"task", "topk_ids", "completion_token_ids"} <= set(rows.keys())
    assert [len(entry) for entry in rows["entropy"]] == [len(row.completion_token_ids) for row in rows]
    assert dict(rows[0])["topk_ids"].tolist() == rows[0].topk_ids.tolist()
    with pytest.raises(DatasetError, match=r"no column 'nope' in these rows \(has: id, "):
        rows["nope"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_takes_rows_by_number(out: Path, workers: int) -> None:
    loader = DataLoader(load_rows(out), batch_size=3, num_workers=workers, collate_fn=ids_of, shuffle=True)
    assert sorted(name for batch in loader for name in batch) == sorted(ids(load_rows(out)))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_of_a_stage_that_has_no_row_is_empty(out: Path, streaming: bool) -> None:
    for stage in ("stage-1", "stage-2"):
        counts = {
            s: len(list(load_rows(out, stage, split=s, streaming=streaming))) for s in ("train", "validation", "test")
        }
        assert 0 < sum(counts.values()) < 20
    for split in ("train", "validation", "test"):
        list(load_rows(out, "hand-off", split=split, streaming=streaming))


def test_files_of_an_address_are_read_as_those_of_a_folder(out: Path) -> None:
    paths = [str(path) for path in sorted((out / "data").glob("*.parquet"))]
    near, far = (
        RowStream(Reader("x", 4), [Unit({"default": begin + p}) for p in paths], []) for begin in ("", "file://")
    )
    assert ids(near) == ids(far) == ids(stream(out))


def test_a_curriculum_says_which_splits_are_empty(out: Path) -> None:
    summary = make_curriculum(
        out, CurriculumConfig(by="tokens", stages=2, splits=SplitsConfig(validation=0.05, test=0))
    )
    empty = [stage["name"] for stage in summary["stages"] if not stage["rows"]["validation"]]
    told = [warning for warning in summary["warnings"] if "validation row" in warning]
    assert told == [f"{name} has no validation row, so `datasets` knows no such split" for name in empty]
    assert empty
    assert not any("test row" in warning for warning in summary["warnings"])
    assert list(load_rows(out, empty[0], split="validation")) == []
