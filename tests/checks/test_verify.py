"""Verification: a sound dataset is found sound, and whatever is done to it is named."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from conftest import WITH_WORDS, write_task
from dataset_support import MADE_AGAIN, change_line, flip_byte, held_ledger, read_ledger_lines, write_job

from factory.checks.verify import verify
from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.dataset.manifest import read_manifest, seal
from factory.errors import DatasetError
from factory.job.job import Job, load_job
from factory.runs.run import run

FOLDERS = ("data", "rejected", "hidden_states")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three shards with accepted rows, rejected ones and errors."""
    root = tmp_path_factory.mktemp("sound")
    write_task(root)
    path = write_job(root, count=24, teacher="scripted = { wrong = 0.2, crash = 0.1 }")
    totals = run(load_job(path), root, root / "out")
    assert totals.rejected >= 2
    return root / "out"


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "out"))


def rewrite(out: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace a file by a changed one and prove it in the ledger, as only a bug of ours could."""
    path = out / name
    table = change(pq.read_table(path))
    pq.write_table(table, path, compression="zstd")
    proof = {"bytes": path.stat().st_size, "blake3": blake3(path.read_bytes()).hexdigest()}
    shard = int(name[-13:-8])
    proof["rows"] = table.num_rows

    def prove(entry: dict[str, Any]) -> None:
        for file in entry["files"]:
            if file["path"] == name:
                file.update(proof)

    change_line(out, shard + 1, prove)


def set_value(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table.column(column).to_pylist()
    values[row] = value
    index = table.column_names.index(column)
    return table.set_column(index, table.schema.field(column), pa.array(values, table.schema.field(column).type))


def test_a_sound_dataset_has_nothing_to_tell(sound: Path) -> None:
    assert list(verify(sound)) == []


def test_looking_changes_nothing(out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    list(verify(out))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_unfinished_dataset_is_sound_as_far_as_it_goes(out: Path) -> None:
    lines = (out / "ledger.jsonl").read_text().splitlines(keepends=True)
    (out / "ledger.jsonl").write_text("".join(lines[:3]))
    for folder in FOLDERS:
        (out / folder / "train-00002.parquet").unlink()
    assert list(verify(out)) == []


def test_a_dataset_that_has_only_been_begun_is_sound(tmp_path: Path) -> None:
    with held_ledger(tmp_path, {"planned": 5, "shards": 1}, {"job": 1}):
        pass
    assert list(verify(tmp_path)) == []


@pytest.mark.parametrize("offset", [0, 100, -1])
@pytest.mark.parametrize("folder", FOLDERS)
def test_one_flipped_bit_in_a_file_is_named(out: Path, folder: str, offset: int) -> None:
    name = f"{folder}/train-00001.parquet"
    flip_byte(out / name, offset)
    assert list(verify(out)) == [f"{name}: its bytes have changed since it was committed (shard 1){MADE_AGAIN}"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_missing_file_is_named(out: Path, folder: str) -> None:
    (out / folder / "train-00000.parquet").unlink()
    assert list(verify(out)) == [f"{folder}/train-00000.parquet: missing (shard 0){MADE_AGAIN}"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_truncated_file_is_named_with_its_sizes(out: Path, folder: str) -> None:
    path = out / folder / "train-00002.parquet"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    told = f"{folder}/train-00002.parquet: {size - 7} bytes, committed with {size} (shard 2){MADE_AGAIN}"
    assert list(verify(out)) == [told]


def test_every_damage_is_told_and_not_only_the_first(out: Path) -> None:
    (out / "data/train-00000.parquet").unlink()
    flip_byte(out / "rejected/train-00001.parquet")
    (out / "data/train-00009.parquet").write_bytes(b"x")
    assert len(list(verify(out))) == 3


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_the_ledger_does_not_know_is_named(out: Path, folder: str) -> None:
    shutil.copyfile(out / folder / "train-00000.parquet", out / folder / "train-00003.parquet")
    (fault,) = verify(out)
    assert fault.startswith(f"{folder}/train-00003.parquet: not in the ledger; ")


@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        ("accepted", 1, "ledger.jsonl: shard 0: accepted + rejected + errors is not planned"),
        ("planned", -1, "ledger.jsonl: shard 0: accepted + rejected + errors is not planned"),
        ("errors", 1, "ledger.jsonl: shard 0: its reasons do not add up to rejected + errors"),
        ("completion_tokens", 1, "ledger.jsonl: shard 0: its rows have"),
        ("prompt_tokens", -5, "ledger.jsonl: shard 0: its rows have"),
    ],
)
def test_an_altered_count_is_named(out: Path, key: str, change: int, told: str) -> None:
    change_line(out, 1, lambda entry: entry.update({key: entry[key] + change}))
    faults = list(verify(out))
    assert any(fault.startswith(told) for fault in faults), faults


def test_counts_that_were_moved_between_kinds_are_named(out: Path) -> None:
    change_line(out, 1, lambda entry: entry.update(accepted=entry["accepted"] - 1, errors=entry["errors"] + 1))
    faults = list(verify(out))
    assert any("data has" in fault and "expected" in fault for fault in faults)
    assert any("its counts by task and level add up to" in fault for fault in faults)


def test_counts_by_task_and_by_reason_must_add_up(out: Path) -> None:
    change_line(out, 2, lambda entry: entry["cells"].update({"adding/easy": [0, 0, 0]}))
    change_line(out, 3, lambda entry: entry["reasons"].update({"parse/invalid_json": 3}))
    faults = list(verify(out))
    assert faults[0].startswith("ledger.jsonl: shard 1: its counts by task and level add up to [")
    assert faults[1:] == ["ledger.jsonl: shard 2: its reasons do not add up to rejected + errors"]


def test_a_plan_of_other_size_is_named(out: Path) -> None:
    change_line(out, 0, lambda plan: plan.update(planned=25))
    assert list(verify(out)) == ["ledger.jsonl: 24 rows committed, 25 planned"]


MENDS = "; `factory run JOB --repair` mends it"


def write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """A manifest with the right checksum, whatever it says."""
    text = json.dumps(seal(manifest), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")


def test_a_flipped_bit_in_the_ledger_never_passes(out: Path) -> None:
    path = out / "ledger.jsonl"
    data = path.read_bytes()
    for offset in [*range(0, len(data), 41), len(data) - 1]:
        flip_byte(path, offset)
        fault, *others = verify(out)
        number = data[:offset].count(b"\n") + 1
        torn = "ledger.jsonl: its last line is torn; "
        assert fault.startswith(torn if offset == len(data) - 1 else f"{path}:{number}: damaged: "), (offset, fault)
        assert fault.endswith(MENDS) or others, "the files of a torn line are not in the ledger"
        path.write_bytes(data)


def test_a_changed_manifest_is_named(out: Path) -> None:
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace('"temperature": 0.7', '"temperature": 0.8'))
    assert list(verify(out)) == [f"{out}/manifest.json: damaged: changed since it was written{MENDS}"]


def test_a_manifest_without_signals_is_named(out: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["signals"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert list(verify(out)) == [f"{out}/manifest.json: damaged: changed since it was written{MENDS}"]


def test_a_manifest_that_was_sealed_without_signals_is_named(out: Path) -> None:
    manifest = read_manifest(out)
    del manifest["signals"]
    write_manifest(out, manifest)
    assert list(verify(out)) == ["manifest.json: has no signals section, yet shards are committed"]


def test_a_manifest_sealed_with_other_signals_is_named(out: Path) -> None:
    for signals in ({"top_k": "many"}, {"top_k": 3, "layers": [2, 4], "final_norm": True}):
        write_manifest(out, read_manifest(out) | {"signals": signals})
        assert list(verify(out)), signals


@pytest.mark.parametrize("name", ["manifest.json", "ledger.jsonl"])
def test_a_manifest_or_a_ledger_that_is_gone_is_named(out: Path, name: str) -> None:
    (out / name).unlink()
    (fault,) = verify(out)
    assert f"{name}" in fault
    assert fault.endswith(MENDS)


def test_an_id_that_is_there_twice_is_named_with_both_shards(out: Path) -> None:
    first = pq.read_table(out / "data/train-00000.parquet").column("id")[0].as_py()
    for folder in ("data", "hidden_states"):
        rewrite(out, f"{folder}/train-00002.parquet", lambda table: set_value(table, "id", 0, first))
    assert list(verify(out)) == [f"data/train-00002.parquet: id {first} is there twice (also in shard 0)"]


def test_a_rejected_row_that_is_also_accepted_is_named(out: Path) -> None:
    first = pq.read_table(out / "data/train-00000.parquet").column("id")[0].as_py()
    shard = next(s for s in range(3) if pq.read_metadata(out / f"rejected/train-{s:05d}.parquet").num_rows)
    rewrite(out, f"rejected/train-{shard:05d}.parquet", lambda table: set_value(table, "id", 0, first))
    assert any(f"id {first} is there twice" in fault for fault in verify(out))


@pytest.mark.parametrize("column", ["sampled_logprobs", "topk_ids", "topk_logprobs", "tail_logprobs", "entropy"])
def test_an_array_of_another_length_than_its_tokens_is_named(out: Path, column: str) -> None:
    name = "data/train-00001.parquet"
    table = pq.read_table(out / name)
    values = table.column(column)[1].as_py()
    rewrite(out, name, lambda table: set_value(table, column, 1, values[:-1]))
    row, tokens = table.column("id")[1].as_py(), len(table.column("completion_token_ids")[1])
    wide = 4 if column.startswith("topk") else 1
    told = f"{column} has {len(values) - 1} values, expected {tokens * wide} ({tokens} tokens, k = 4)"
    assert list(verify(out)) == [f"{name}: row {row}: {told}"]


@pytest.mark.parametrize("start", [-1, 10_000])
def test_an_answer_that_starts_outside_its_tokens_is_named(out: Path, start: int) -> None:
    rewrite(out, "data/train-00000.parquet", lambda table: set_value(table, "answer_start", 0, start))
    (fault,) = verify(out)
    assert fault.endswith(f": answer_start {start} is outside its tokens")


def test_states_of_another_shape_than_their_tokens_are_named(out: Path) -> None:
    rewrite(out, "hidden_states/train-00000.parquet", lambda table: set_value(table, "shape", 2, [3, 2, 16]))
    (fault,) = verify(out)
    assert "shape [3, 2, 16], expected [" in fault


def test_states_in_another_order_than_their_rows_are_named(out: Path) -> None:
    name = "hidden_states/train-00000.parquet"
    rewrite(out, name, lambda table: table.take(list(reversed(range(table.num_rows)))))
    assert f"{name}: its ids are not those of the default config, in the same order" in list(verify(out))


def test_columns_of_another_format_are_named(out: Path) -> None:
    rewrite(out, "data/train-00000.parquet", lambda table: table.drop_columns(["entropy"]))
    assert list(verify(out)) == ["data/train-00000.parquet: columns are not those of this format"]


def test_an_empty_rejected_file_is_sound(workspace: Path, make_job: Callable[..., Job]) -> None:
    run(make_job(signals={"top_k": 0}), workspace, workspace / "out")
    assert list(verify(workspace / "out")) == []
    assert len(read_ledger_lines(workspace / "out")) == 4


@pytest.mark.parametrize("source", ["user.j2", "task.toml", "adding.py"])
def test_a_source_that_was_changed_or_lost_is_named_and_comes_back_with_the_job(
    sound: Path, out: Path, source: str
) -> None:
    name, next_step = f"templates/adding/{source}", "resume the job, which will copy it again"
    (out / name).write_text("other", encoding="utf-8")
    assert list(verify(out)) == [f"{name}: not what the rows were made with; {next_step}"]
    (out / name).unlink()
    assert list(verify(out)) == [f"{name}: missing; {next_step}"]
    run(load_job(sound.parent / "job.toml"), sound.parent, out)
    assert list(verify(out)) == []


@pytest.mark.parametrize("source", ["adding.words.toml", "_parts.py"])
def test_a_changed_or_lost_copy_of_a_word_bank_or_a_part_is_named(
    workspace: Path, make_job: Callable[..., Job], source: str
) -> None:
    write_task(workspace, schema="from . import _parts\n" + WITH_WORDS, words='done = ["ready"]')
    (workspace / "schemas/_parts.py").write_text("x = 1\n")
    run(make_job(), workspace, workspace / "out")
    copy = workspace / "out/templates/adding" / source
    assert list(verify(workspace / "out")) == []
    copy.write_text('done = ["set"]')
    (fault,) = verify(workspace / "out")
    assert fault.startswith(f"templates/adding/{source}: not what the rows were made with")
    copy.unlink()
    (fault,) = verify(workspace / "out")
    assert fault.startswith(f"templates/adding/{source}: missing")


def test_what_is_no_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        list(verify(tmp_path))


# --- a curriculum -----------------------------------------------------------------------------------------------------

STAGE = "curriculum/stage-1/train-00000.parquet"
AGAIN = "`factory curriculum` makes it anew"


@pytest.fixture
def staged(out: Path) -> Path:
    """A dataset with a curriculum."""
    make_curriculum(out, CurriculumConfig(by="tokens"))
    return out


def test_a_sound_curriculum_has_nothing_to_tell(staged: Path) -> None:
    assert list(verify(staged)) == []


@pytest.mark.parametrize("offset", [0, 100, -1])
def test_one_flipped_bit_in_a_stage_is_named(staged: Path, offset: int) -> None:
    flip_byte(staged / STAGE, offset)
    assert list(verify(staged)) == [f"{STAGE}: its bytes have changed since it was written; {AGAIN}"]


def test_missing_short_and_unknown_files_of_a_curriculum_are_named(staged: Path) -> None:
    (staged / STAGE).unlink()
    path = staged / "curriculum/stage-2/train-00000.parquet"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    shutil.copyfile(path, path.with_name("train-00001.parquet"))
    assert list(verify(staged)) == [
        f"{STAGE}: missing; {AGAIN}",
        f"curriculum/stage-2/train-00000.parquet: {size - 7} bytes, written with {size}; {AGAIN}",
        f"curriculum/stage-2/train-00001.parquet: not in curriculum.json; {AGAIN}",
    ]


def test_a_curriculum_of_an_older_state_is_told(staged: Path) -> None:
    rewrite(staged, "rejected/train-00000.parquet", lambda table: table)
    assert list(verify(staged)) == [f"curriculum/curriculum.json: made from an older state of the dataset; {AGAIN}"]
    make_curriculum(staged, CurriculumConfig(by="tokens"))
    assert list(verify(staged)) == []


def test_a_changed_or_missing_curriculum_json_is_named(staged: Path) -> None:
    path = staged / "curriculum/curriculum.json"
    for offset in range(0, path.stat().st_size, 97):
        flip_byte(path, offset)
        (fault,) = verify(staged)
        assert fault.startswith(f"{path}: damaged: "), offset
        assert fault.endswith(AGAIN)
        flip_byte(path, offset)
    path.unlink()
    assert list(verify(staged)) == [f"curriculum: has no curriculum.json; {AGAIN}"]


def test_counts_of_a_stage_that_are_not_those_of_its_files_are_named(staged: Path) -> None:
    path = staged / "curriculum/curriculum.json"
    summary = json.loads(path.read_text())
    rows = summary["stages"][0]["rows"]["train"]
    summary["stages"][0]["rows"]["train"] += 1
    path.write_text(json.dumps(seal(summary), indent=2, sort_keys=True) + "\n")
    told = f"curriculum/curriculum.json: stage-1 has {rows + 1} train rows, its files {rows}; {AGAIN}"
    assert list(verify(staged)) == [told]


def test_a_compact_row_that_cannot_be_decoded_is_named(workspace: Path, make_job: Callable[..., Job]) -> None:
    out = workspace / "compact"
    run(make_job(storage={"logprobs": "compact"}), workspace, out)
    assert list(verify(out)) == []

    def point_outside(table: pa.Table) -> pa.Table:
        places = table.column("topk_id_places")[0].as_py()
        return set_value(table, "topk_id_places", 0, [10_000, *places[1:]])

    rewrite(out, "data/train-00000.parquet", point_outside)
    assert any("topk_id_places points outside its table" in fault for fault in verify(out))


def prove_as_before(out: Path) -> None:
    """Give every committed file the proof that releases before BLAKE3 gave."""
    for number in range(1, len(read_ledger_lines(out))):

        def prove(entry: dict[str, Any]) -> None:
            for file in entry["files"]:
                del file["blake3"]
                file["sha256"] = hashlib.sha256((out / file["path"]).read_bytes()).hexdigest()

        change_line(out, number, prove)


def test_a_dataset_with_the_digests_of_earlier_releases_is_sound_and_its_damage_is_found(out: Path) -> None:
    prove_as_before(out)
    assert list(verify(out)) == []
    flip_byte(out / "data/train-00001.parquet")
    told = f"data/train-00001.parquet: its bytes have changed since it was committed (shard 1){MADE_AGAIN}"
    assert list(verify(out)) == [told]


def test_a_dataset_with_the_digests_of_earlier_releases_goes_on_and_keeps_their_lines(tmp_path: Path) -> None:
    write_task(tmp_path)
    job = load_job(write_job(tmp_path, count=20, shard_rows=8))
    out = tmp_path / "out"
    run(job, tmp_path, out)
    prove_as_before(out)
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join(lines[:-1]))
    assert run(job, tmp_path, out).left == 0
    assert (out / "ledger.jsonl").read_bytes().startswith(b"".join(lines[:-1]))
    digests = [entry["files"][0].keys() & {"blake3", "sha256"} for entry in read_ledger_lines(out)[1:]]
    assert digests == [{"sha256"}, {"sha256"}, {"blake3"}]
    assert list(verify(out)) == []


def test_a_file_without_a_digest_or_with_two_is_no_entry(out: Path) -> None:
    change_line(out, 1, lambda entry: entry["files"][0].update(sha256="0" * 64))
    assert "not a shard's entry (data/train-00000.parquet: needs blake3 or sha256, one of them)" in next(verify(out))
