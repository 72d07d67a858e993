"""Repair: whatever is damaged is named, made again byte for byte, and nothing that is sound is written again."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_task
from dataset_support import MADE_AGAIN, flip_byte, read_tree, write_job

from factory.checks.verify import verify
from factory.errors import DatasetError
from factory.job.job import Job, load_job
from factory.runs.run import run

VARIABLE = ("runs.jsonl", ".lock")
FOLDERS = ("data", "rejected", "hidden_states")
SHARDS = 6
LONG = pytest.mark.long
FILES = [f"{folder}/train-{shard:05d}.parquet" for folder in FOLDERS for shard in range(SHARDS)]
# the plan, the first shard and the last; `make long` has the others
SOME_LINES = [0, *(pytest.param(n, marks=LONG) if 1 < n < SHARDS else n for n in range(1, SHARDS + 1))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of six shards with accepted rows, rejected ones and errors, beside its job."""
    root = tmp_path_factory.mktemp("whole")
    write_task(root)
    path = write_job(root, count=48, teacher="scripted = { wrong = 0.2, crash = 0.1 }")
    totals = run(load_job(path), root, root / "out")
    assert (totals.committed_shards, totals.left) == (SHARDS, 0)
    assert totals.rejected > 0
    return root / "out"


@pytest.fixture
def job(whole: Path) -> Job:
    return load_job(whole.parent / "job.toml")


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def identities(out: Path) -> dict[str, tuple[int, int]]:
    """What changes when a Parquet file is written again, by path: inode and time."""
    stats = {str(path.relative_to(out)): path.stat() for path in out.rglob("*.parquet")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def mend(out: Path, whole: Path, job: Job) -> set[int]:
    """Repair a copy and require that it is as it was; the shards that were written again."""
    before = identities(out)
    run(job, whole.parent, out, mend=True)
    assert list(verify(out)) == []
    assert read_tree(out, but=VARIABLE) == read_tree(whole, but=VARIABLE)
    return {int(name[-13:-8]) for name, identity in identities(out).items() if before.get(name) != identity}


def flip_bits(path: Path, offset: int, rng: random.Random) -> None:
    """Another byte in place of the one at this offset."""
    data = bytearray(path.read_bytes())
    data[offset] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def require_refusal(out: Path, whole: Path, job: Job) -> str:
    """What a repair is refused with, a line for each difference; nothing is touched."""
    before, times = read_tree(out, but=(".lock",)), identities(out)
    with pytest.raises(DatasetError) as told:
        run(job, whole.parent, out, mend=True)
    assert (read_tree(out, but=(".lock",)), identities(out)) == (before, times)
    assert all(line.startswith("  ") for line in str(told.value).splitlines()[1:])
    return str(told.value)


# --- shards ---------------------------------------------------------------------------------------------------------


# each shard and each folder in turn; `make long` has every file
@pytest.mark.parametrize(
    "name", [name if place % (SHARDS + 1) == 0 else pytest.param(name, marks=LONG) for place, name in enumerate(FILES)]
)
def test_a_changed_byte_anywhere_in_a_file_is_named_and_mended(name: str, out: Path, whole: Path, job: Job) -> None:
    path, rng, shard = out / name, random.Random(name), int(name[-13:-8])
    data = path.read_bytes()
    for offset in [0, len(data) - 1, *rng.sample(range(len(data)), 10)]:
        flip_bits(path, offset, rng)
        told = f"{name}: its bytes have changed since it was committed (shard {shard})"
        assert list(verify(out)) == [told + MADE_AGAIN]
        if offset % 4:
            path.write_bytes(data)
        else:
            assert mend(out, whole, job) == {shard}
    flip_bits(path, rng.randrange(len(data)), rng)
    assert mend(out, whole, job) == {shard}


@pytest.mark.parametrize("name", FILES[::3])
def test_a_missing_file_is_named_and_mended(name: str, out: Path, whole: Path, job: Job) -> None:
    shard = int(name[-13:-8])
    (out / name).unlink()
    assert list(verify(out)) == [f"{name}: missing (shard {shard}){MADE_AGAIN}"]
    assert mend(out, whole, job) == {shard}


@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_truncated_file_is_named_and_mended(folder: str, left: float, out: Path, whole: Path, job: Job) -> None:
    path = out / folder / "train-00004.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * left)])
    (fault,) = verify(out)
    assert fault.startswith(f"{folder}/train-00004.parquet: ")
    assert fault.endswith(f" bytes, committed with {len(data)} (shard 4){MADE_AGAIN}")
    assert mend(out, whole, job) == {4}


def test_a_file_with_bytes_after_its_end_is_named_and_mended(out: Path, whole: Path, job: Job) -> None:
    with (out / FILES[2]).open("ab") as handle:
        handle.write(b"\x00")
    assert [fault.partition(":")[0] for fault in verify(out)] == [FILES[2]]
    assert mend(out, whole, job) == {2}


def test_a_whole_folder_that_is_gone_is_mended(out: Path, whole: Path, job: Job) -> None:
    shutil.rmtree(out / "hidden_states")
    assert len(list(verify(out))) == SHARDS
    assert mend(out, whole, job) == set(range(SHARDS))


# --- ledger ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SOME_LINES)
def test_a_changed_byte_in_a_ledger_line_is_named_and_its_shard_made_again(
    number: int, out: Path, whole: Path, job: Job
) -> None:
    path, rng = out / "ledger.jsonl", random.Random(number)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    first = sum(map(len, lines[:number]))
    offsets = range(first, first + len(lines[number]) - 1)  # not the newline
    for offset in [offsets[0], offsets[-1], *rng.sample(offsets, 20)]:
        flip_bits(path, offset, rng)
        if path.read_bytes()[offset] == ord("\n"):  # then one line has become two
            path.write_bytes(data)
            continue
        (fault,) = verify(out)
        assert f"ledger.jsonl:{number + 1}: damaged: " in fault
        if offset % 5 == 0:
            assert mend(out, whole, job) == ({number - 1} if number else set())
        path.write_bytes(data)
    flip_byte(path, rng.choice(offsets))
    assert mend(out, whole, job) == ({number - 1} if number else set())


@pytest.mark.parametrize("byte", [b"\r", b"\x00", pytest.param(b" ", marks=LONG), pytest.param(b"}", marks=LONG)])
@pytest.mark.parametrize("number", SOME_LINES)
def test_a_changed_newline_in_the_ledger_is_named_and_costs_its_neighbours_at_most(
    number: int, byte: bytes, out: Path, whole: Path, job: Job
) -> None:
    path = out / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number][:-1] + byte
    path.write_bytes(b"".join(lines))
    assert any("ledger.jsonl" in fault for fault in verify(out))
    assert mend(out, whole, job) == {shard for shard in (number - 1, number) if 0 <= shard < SHARDS}


@pytest.mark.parametrize("number", SOME_LINES[1:])
def test_a_ledger_line_that_is_gone_is_named_by_its_files_and_its_shard_made_again(
    number: int, out: Path, whole: Path, job: Job
) -> None:
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join([*lines[:number], *lines[number + 1 :]]))
    named = {fault.partition(":")[0] for fault in verify(out)}
    assert named == {f"{folder}/train-{number - 1:05d}.parquet" for folder in FOLDERS}
    assert mend(out, whole, job) == {number - 1}


@pytest.mark.parametrize("left", [1, 40, 300, 900])
def test_a_truncated_ledger_is_named_and_mended(left: int, out: Path, whole: Path, job: Job) -> None:
    data = (out / "ledger.jsonl").read_bytes()
    (out / "ledger.jsonl").write_bytes(data[:-left])
    assert list(verify(out))
    lost = len(data.splitlines()) - data[:-left].count(b"\n")
    assert mend(out, whole, job) == set(range(SHARDS - lost, SHARDS))


@pytest.mark.parametrize("text", ["", "nonsense\n", "torn"])
def test_a_ledger_that_tells_nothing_costs_every_shard_and_no_more(text: str, out: Path, whole: Path, job: Job) -> None:
    (out / "ledger.jsonl").write_text(text)
    assert len(list(verify(out))) == 1
    assert mend(out, whole, job) == set(range(SHARDS))


def test_a_ledger_that_is_gone_is_named_and_mended(out: Path, whole: Path, job: Job) -> None:
    (out / "ledger.jsonl").unlink()
    (fault,) = verify(out)
    assert "ledger.jsonl: No such file or directory" in fault
    assert mend(out, whole, job) == set(range(SHARDS))


def test_a_plan_line_that_is_gone_is_named_and_mended(out: Path, whole: Path, job: Job) -> None:
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join(lines[1:]))
    (fault,) = verify(out)
    assert "ledger.jsonl:1: damaged: not a plan" in fault
    assert mend(out, whole, job) == {0}, "the line where the plan should be is given up"


# --- manifest -------------------------------------------------------------------------------------------------------


def test_a_changed_byte_anywhere_in_the_manifest_is_named_and_mended(out: Path, whole: Path, job: Job) -> None:
    path, rng = out / "manifest.json", random.Random(0)
    data = path.read_bytes()
    for offset in [0, len(data) - 1, *rng.sample(range(len(data)), 60)]:
        flip_bits(path, offset, rng)
        (fault,) = verify(out)
        assert fault.startswith(f"{path}: damaged: ")
        if offset % 6 == 0:
            assert mend(out, whole, job) == set()
        path.write_bytes(data)
    flip_byte(path, rng.randrange(len(data)))
    assert mend(out, whole, job) == set()


def test_another_kind_of_newline_in_the_manifest_is_named_and_mended(out: Path, whole: Path, job: Job) -> None:
    data = (out / "manifest.json").read_bytes()
    for changed in (data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r", 1), data[:-1], b"", b"{}"):
        (out / "manifest.json").write_bytes(changed)
        (fault,) = verify(out)
        assert fault.startswith(f"{out}/manifest.json: damaged: ")
        assert mend(out, whole, job) == set()


def test_a_manifest_that_is_gone_is_named_and_mended(out: Path, whole: Path, job: Job) -> None:
    (out / "manifest.json").unlink()
    (fault,) = verify(out)
    assert "no manifest.json" in fault
    with pytest.raises(DatasetError, match=r"manifest\.json is gone; `factory run JOB --repair` writes it"):
        run(job, whole.parent, out)
    assert not (out / "manifest.json").exists(), "only --repair writes it again"
    assert mend(out, whole, job) == set()


# --- all at once, and nothing at all --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=LONG) for seed in range(2, 6))])
def test_many_damages_at_once_are_mended_in_one_run(seed: int, out: Path, whole: Path, job: Job) -> None:
    rng = random.Random(seed)
    hurt = set(rng.sample(range(SHARDS), 3))
    for shard in hurt:
        path = out / rng.choice(FOLDERS) / f"train-{shard:05d}.parquet"
        flip_bits(path, rng.randrange(path.stat().st_size), rng)
    number = rng.randrange(1, SHARDS + 1)
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"accepted":', b'"accepted":1', 1)
    (out / "ledger.jsonl").write_bytes(b"".join(lines))
    flip_byte(out / "manifest.json", rng.randrange(500))
    assert list(verify(out))
    assert mend(out, whole, job) == hurt | {number - 1}


def test_a_sound_dataset_is_left_alone(out: Path, whole: Path, job: Job) -> None:
    def look() -> dict[Path, tuple[int, int]]:
        stats = {path: path.stat() for path in out.rglob("*") if path.name != ".lock"}
        return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}

    before = look()
    assert mend(out, whole, job) == set()
    assert look() == before


def test_an_unfinished_dataset_is_mended_and_finished(out: Path, whole: Path, job: Job) -> None:
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join(lines[:4]))
    for folder in FOLDERS:
        for shard in (3, 4, 5):
            (out / folder / f"train-{shard:05d}.parquet").unlink()
    flip_byte(out / "data/train-00001.parquet")
    assert mend(out, whole, job) == {1, 3, 4, 5}


def test_a_repair_that_was_stopped_is_finished_by_a_plain_run(out: Path, whole: Path, job: Job) -> None:
    flip_byte(out / "data/train-00001.parquet")
    (out / "rejected/train-00004.parquet").unlink()
    (out / "rejected/train-00004.parquet").mkdir()
    with pytest.raises(DatasetError, match="shard 4 cannot be written: Is a directory"):
        run(job, whole.parent, out, mend=True)
    (out / "rejected/train-00004.parquet").rmdir()
    run(job, whole.parent, out)
    assert list(verify(out)) == []
    assert read_tree(out, but=VARIABLE) == read_tree(whole, but=VARIABLE)


# --- whose rows are these? ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", ["damaged", "gone"])
def test_without_a_plan_and_a_manifest_nothing_is_touched(manifest: str, out: Path, whole: Path, job: Job) -> None:
    flip_byte(out / "ledger.jsonl", 30)
    if manifest == "gone":
        (out / "manifest.json").unlink()
    else:
        flip_byte(out / "manifest.json", 30)
    flip_byte(out / "data/train-00002.parquet")
    (fault,) = verify(out)
    assert "manifest.json" in fault
    assert "cannot be repaired" in require_refusal(out, whole, job)


@pytest.mark.parametrize("damage", ["shard", "entry", "plan", "manifest", "nothing"])
def test_another_job_repairs_nothing(damage: str, out: Path, whole: Path, make_job: Callable[..., Job]) -> None:
    """A smaller one, which would have no place for most shards."""
    paths = {"shard": out / "data/train-00000.parquet", "manifest": out / "manifest.json"}
    if damage in ("entry", "plan"):
        flip_byte(out / "ledger.jsonl", 30 if damage == "plan" else -30)
    elif damage in paths:
        flip_byte(paths[damage], 30)
    other = make_job(tasks=[{"name": "adding", "count": 8}])
    told = require_refusal(out, whole, other)
    assert "made by another job" in told or "not this job's" in told
