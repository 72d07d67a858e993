"""Exports: whole or gone on with, to the same bytes; every choice of signals is right in a format or refused."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_support import change_line, flip_byte, read_table, read_tree
from export_support import PAIRS, STATES, WRONG, MakeJob, export_to, make_dataset, read_export

from factory.dataset.shards import file_digest
from factory.errors import DatasetError, JobError
from factory.job.job import Job
from factory.publish import exporting
from factory.publish.exports import source as sources
from factory.publish.exports.formats import FORMATS
from factory.runs.run import run

LENGTH = {"distillkit": {"length": 512}}
# every choice of [signals] that changes what rows hold, and what each format makes of it: None where it is right
CHOICES: dict[str, dict[str, Any]] = {
    "none": {"top_k": 0},
    "top_k": {"top_k": 4},
    "one id": {"top_k": 1},
    "top_p": {"top_k": 8, "keep": "top_p", "top_p": 0.9},
    "sampled": {"top_k": 8, "keep": "sampled"},
    "answer": {"top_k": 4, "positions": "answer"},
    "prompt too": {"top_k": 4, "positions": "all"},
    "min_entropy": {"top_k": 4, "min_entropy": 0.05},
    "normed states": {"top_k": 0, "hidden_layers": [1, 2, 3, -1]},
    "states": {"top_k": 0, "hidden_layers": [1, 2, 3, -1], "final_norm": False},
    "states, last first": {"top_k": 0, "hidden_layers": [-1, 1, 2, 3], "final_norm": False},
    "last layer alone": {"top_k": 0, "hidden_layers": [-1], "final_norm": False},
    "inner layers alone": {"top_k": 0, "hidden_layers": [1, 2, 3], "final_norm": False},
    "some states": {"top_k": 0, "hidden_layers": [1, 2, 3, -1], "hidden_positions": "completion"},
    "experts": {"top_k": 4, "experts": True},
}
NO_TOPK = [name for name, signals in CHOICES.items() if not signals["top_k"]]
NO_DISTRIBUTIONS = dict.fromkeys(NO_TOPK, "keeps none .* top_k = 0")
NO_STATES = dict.fromkeys(set(CHOICES) - set(NO_TOPK) | {"none"}, "keeps none .* hidden_layers")
REFUSED: dict[str, dict[str, str]] = {
    "axolotl-kd": NO_DISTRIBUTIONS
    | {"one id": "over one id", "top_p": "k ids at every position", "sampled": "random draws"},
    "distillkit": NO_DISTRIBUTIONS | {"sampled": "random draws", "min_entropy": "never be taught"},
    "tinker": NO_DISTRIBUTIONS | {"one id": "over one id", "min_entropy": "never be taught"},
    "speculators": NO_STATES
    | {
        "normed states": "normalised twice",
        "last layer alone": "inner layers beside",
        "inner layers alone": "neither manifest nor job tells|last layer's states",
        "some states": "states of every token",
    },
    "modelopt": NO_STATES
    | {
        "last layer alone": "inner layers beside",
        "inner layers alone": "neither manifest nor job tells|last layer's states",
        "some states": "states of every token",
    },
    "dpo": dict.fromkeys(CHOICES, "no pairs"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_signals_is_right_in_every_format_or_refused(
    choice: str, workspace: Path, make_job: MakeJob
) -> None:
    root = make_dataset(workspace, make_job, teacher=WRONG, signals=CHOICES[choice])
    for name in FORMATS:
        out = workspace / name
        reason = REFUSED.get(name, {}).get(choice)
        if reason is not None:
            with pytest.raises(JobError, match=reason) as told:
                export_to(root, out, name, **LENGTH.get(name, {}))
            assert "\n" not in str(told.value)
            assert not out.exists()
            continue
        export_to(root, out, name, **LENGTH.get(name, {}))
        if name != "modelopt":
            _require_sound(read_export(out), name)


@pytest.mark.parametrize("choice", ["top_k", "answer", "min_entropy", "prompt too"])
def test_compact_logprobs_are_decoded(choice: str, workspace: Path, make_job: MakeJob) -> None:
    rows = {}
    for profile in ("exact", "compact"):
        root = make_dataset(workspace, make_job, profile, signals=CHOICES[choice], storage={"logprobs": profile})
        export_to(root, workspace / f"to-{profile}", "axolotl-kd")
        rows[profile] = read_export(workspace / f"to-{profile}")
    for exact, compact in zip(rows["exact"], rows["compact"], strict=True):
        assert exact["target_token_ids"] == compact["target_token_ids"]
        assert np.allclose(exact["target_logprobs"], compact["target_logprobs"], atol=0.07)


def _require_sound(rows: list[dict[str, Any]], name: str) -> None:
    """No infinity, no NaN, and lists of one length in each row."""
    assert rows
    for row in rows:
        lists = {key: np.array(value) for key, value in row.items() if isinstance(value, list) and key != "messages"}
        numbers = {key: value for key, value in lists.items() if value.dtype.kind in "if"}
        assert all(np.isfinite(value).all() for value in numbers.values()), name
        lengths = {len(value) for value in numbers.values()}
        assert len(lengths) <= 1, name
        for key in ("target_token_ids", "token_ids", "target_tokens", "input_ids", "model_input"):
            assert key not in numbers or numbers[key].min() >= 0, name


def torn_after(parts: int) -> Any:
    """The writing of parts, stopped as Ctrl-C stops it."""
    write, numbers = exporting._write_part, iter(range(99))

    def torn_write(*arguments: Any) -> Any:
        if next(numbers) == parts:
            raise KeyboardInterrupt
        return write(*arguments)

    return torn_write


def test_what_is_cut_off_goes_on_to_the_same_bytes(
    workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_dataset(workspace, make_job, **STATES)
    monkeypatch.setattr(sources, "PART_BYTES", 1)
    for name in ("axolotl-kd", "speculators", "modelopt", "distillkit"):
        whole, torn = workspace / f"{name}-whole", workspace / f"{name}-torn"
        export_to(root, whole, name, **LENGTH.get(name, {}))
        with monkeypatch.context() as patch:
            patch.setattr(exporting, "_write_part", torn_after(2))
            with pytest.raises(KeyboardInterrupt):
                export_to(root, torn, name, **LENGTH.get(name, {}))
        assert not (torn / "README.md").exists()
        with (torn / exporting.JOURNAL).open("a") as handle:
            handle.write('{"file": {"by')  # as a kill leaves a line
        export_to(root, torn, name, **LENGTH.get(name, {}))
        assert read_tree(torn) == read_tree(whole)
        assert len(read_tree(whole)) > 4


def test_the_same_command_again_changes_nothing_and_another_is_refused(workspace: Path, make_job: MakeJob) -> None:
    root, out = make_dataset(workspace, make_job), workspace / "out-x"
    export_to(root, out, "trl-sft")
    before = read_tree(out)
    assert "complete already" in export_to(root, out, "trl-sft")[0]
    assert read_tree(out) == before
    with pytest.raises(JobError, match="holds another export"):
        export_to(root, out, "trl-sft", length=64)
    flip_byte(out / "data/train-00000.parquet")
    with pytest.raises(DatasetError, match="its bytes have changed since it was exported"):
        export_to(root, out, "trl-sft")
    (workspace / "mine").mkdir()
    (workspace / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(JobError, match="not empty, and no export"):
        export_to(root, workspace / "mine", "trl-sft")
    assert (workspace / "mine/thesis.txt").read_text() == "all of it"


def test_a_damaged_shard_is_told_before_its_rows_are_read(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    flip_byte(root / "data/train-00001.parquet", 200)
    with pytest.raises(DatasetError, match=r"train-00001\.parquet: its bytes have changed"):
        export_to(root, workspace / "x", "trl-sft")
    assert not (workspace / "x/README.md").exists()


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_that_is_cut_or_gone_names_the_next_step(workspace: Path, make_job: MakeJob, cut: bool) -> None:
    root = make_dataset(workspace, make_job)
    path = root / "data/train-00000.parquet"
    data = path.read_bytes()
    path.unlink()
    if cut:
        path.write_bytes(data[:100])
    for to in ("trl-sft", "messages", "parquet-text"):
        with pytest.raises(DatasetError, match=r"train-00000\.parquet: .*`factory verify.*(--repair|makes it whole)"):
            export_to(root, workspace / "x", to)
        assert not (workspace / "x").exists()


@pytest.mark.parametrize(
    ("to", "options", "told"),
    [
        ("trl", {}, "no such format .*did you mean"),
        ("trl-sft", {"k": 3}, "--k means nothing for it"),
        ("messages", {"length": 9}, "--length means nothing"),
        ("trl-sft", {"reasoning": "content"}, "give --rows messages too"),
        ("trl-sft", {"rows": "messages", "length": 4}, "messages have none"),
        ("axolotl-kd", {"mass": "tail"}, "no place for the mass outside"),
        ("axolotl-kd", {"k": 1}, "over one id"),
        ("axolotl-kd", {"k": 5}, "keeps 4 ids"),
        ("distillkit", {"length": 64, "mass": "tail"}, "NaN at positions"),
        ("distillkit", {}, "give --length"),
        ("distillkit", {"length": 64, "filler": -1}, "0 or more"),
        ("trl-sft", {"stage": "stage-1"}, "no curriculum"),
        ("trl-sft", {"split": "test"}, "only stages have splits"),
        ("trl-sft", {"teacher": "big"}, "no column `teacher`"),
        ("trl-sft", {"student": "nowhere/none"}, "no tokenizer.json"),
        ("trl-sft", {"student": "demo"}, "another tokenizer"),
        ("axolotl-kd", {"length": 3}, "no row is left"),
    ],
)
def test_what_would_be_wrong_is_refused_in_one_line(
    to: str, options: dict[str, Any], told: str, workspace: Path, make_job: MakeJob
) -> None:
    root = make_dataset(workspace, make_job)
    with pytest.raises((JobError, DatasetError), match=told) as error:
        export_to(root, workspace / "x", to, **options)
    assert "\n" not in str(error.value)


def test_a_dataset_without_a_curriculum_is_its_split_train(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    export_to(root, workspace / "x", "trl-sft", split="train")
    assert len(read_export(workspace / "x")) == len(read_table(root, "data"))


def test_a_stage_comes_in_its_own_order_with_its_signals(workspace: Path, make_job: MakeJob) -> None:
    from factory.curriculum.build import make_curriculum
    from factory.curriculum.config import load_config

    root = make_dataset(workspace, make_job, signals=STATES["signals"])
    summary = make_curriculum(root, load_config(None), "curriculum")
    stage = summary["stages"][-1]["name"]
    files = sorted((root / f"curriculum/{stage}").glob("train-*"))
    split = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert split
    for to in ("axolotl-kd", "trl-sft"):
        export_to(root, workspace / to, to, stage=stage)
        ids = [row["prompt_token_ids"] + row["completion_token_ids"] for row in split]
        assert [row["input_ids"] for row in read_export(workspace / to)] == ids
    apart = Counter(name for one in summary["stages"] for name, rows in one["rows"].items() for _ in range(rows))
    kept = ", ".join(f"{apart[name]:,} of {name}" for name in ("validation", "test") if apart[name])
    told = f"  with the rows that the curriculum keeps apart ({kept}); stages leave them out"
    assert kept
    assert told in export_to(root, workspace / "all", "trl-sft")
    # of the dataset itself `train` is what is left, and all rows is what would go out
    with pytest.raises(JobError, match=r"--split train: only stages have splits, .* has a curriculum; name a stage"):
        export_to(root, workspace / "train", "trl-sft", split="train")
    assert not (workspace / "train").exists()
    # said or not, of a stage it is the same export
    again = export_to(root, workspace / "trl-sft", "trl-sft", stage=stage, split="train")
    assert "complete already" in again[0]
    # other rows under the same options are another export
    other = summary["stages"][0]["name"]
    with pytest.raises(JobError, match="holds another export"):
        export_to(root, workspace / "trl-sft", "trl-sft", stage=other)
    with pytest.raises(JobError, match=r"no such stage .*did you mean 'stage-1'"):
        export_to(root, workspace / "y", "trl-sft", stage="stage_1")
    for to in ("kto", "verl-rl"):
        with pytest.raises(JobError, match="leave --stage out"):
            export_to(root, workspace / "y", to, stage=stage)


def test_rows_of_several_teachers_need_one_named(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job, shard_rows=64)
    path = root / "data/train-00000.parquet"
    table = pq.read_table(path)
    names = ["big" if i % 3 else "small" for i in range(table.num_rows)]
    pq.write_table(table.append_column("teacher", pa.array(names)), path)

    def renew(line: dict[str, Any]) -> None:
        for file in line["files"]:
            if file["path"] == "data/train-00000.parquet":
                file |= {"bytes": path.stat().st_size, "blake3": file_digest(path)}

    change_line(root, 1, renew)
    with pytest.raises(JobError, match=r"rows of several teachers.*--teacher"):
        export_to(root, workspace / "x", "trl-sft")
    export_to(root, workspace / "x", "trl-sft", teacher="small")
    assert len(read_export(workspace / "x")) == names.count("small")
    export_to(root, workspace / "y", "messages")
    assert len(read_export(workspace / "y")) == len(names)


def test_transcripts_of_token_ids_have_no_messages(workspace: Path, make_job: MakeJob) -> None:
    rows = [{"prompt_token_ids": [65, 66], "completion_token_ids": [67, 68, 257]}] * 3
    (workspace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = make_job().model_dump(exclude_unset=True) | {"transcripts": {"path": str(workspace / "rows.jsonl")}}
    del job["tasks"]
    run(Job.model_validate(job), workspace, workspace / "data")
    for to in ("messages", "trl-sft"):
        options = {"rows": "messages"} if to == "trl-sft" else {}
        with pytest.raises(DatasetError, match="has no messages: it was scored from"):
            export_to(workspace / "data", workspace / to, to, **options)
    for to in ("kto", "verl-rl"):
        with pytest.raises(JobError, match="its rows are transcripts"):
            export_to(workspace / "data", workspace / to, to)
    export_to(workspace / "data", workspace / "ids", "axolotl-kd")
    assert [row["input_ids"] for row in read_export(workspace / "ids")] == [[65, 66, 67, 68, 257]] * 3


def test_rows_that_are_left_out_are_counted_and_told(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    lengths = [len(row["prompt_token_ids"]) + len(row["completion_token_ids"]) for row in read_table(root, "data")]
    middle = sorted(lengths)[len(lengths) // 2]
    lines = export_to(root, workspace / "x", "trl-sft", length=middle)
    kept = sum(length <= middle for length in lengths)
    assert len(read_export(workspace / "x")) == kept < len(lengths)
    assert re.fullmatch(rf"  left out +{len(lengths) - kept}  longer than {middle} tokens", lines[1])
    assert f"- left out: {len(lengths) - kept} rows" in (workspace / "x/README.md").read_text()


def test_datasets_loads_an_export_as_it_stands_and_never_one_of_before(workspace: Path, make_job: MakeJob) -> None:
    import shutil

    import datasets

    root, out = make_dataset(workspace, make_job), workspace / "x"
    for k in (4, 2):
        export_to(root, out, "axolotl-kd", k=k)
        rows = datasets.load_dataset(str(out), split="train", cache_dir=str(workspace / "cache"))
        assert len(rows[0]["target_token_ids"][0]) == k
        shutil.rmtree(out)


def test_pairs_and_labels_come_from_what_was_found_wrong(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job, **PAIRS)
    export_to(root, workspace / "dpo", "dpo")
    stored = read_table(root, "preferences")
    assert [row["chosen"] for row in read_export(workspace / "dpo")] == [row["chosen"] for row in stored]
    assert stored
    export_to(root, workspace / "kto", "kto")
    labels = [row["label"] for row in read_export(workspace / "kto")]
    wrong = [row for row in read_table(root, "rejected") if row["stage"] in ("check", "parse", "schema")]
    assert labels.count(True) == len(read_table(root, "data"))
    assert labels.count(False) == len(wrong) > 0


def test_a_teacher_that_is_none_of_the_dataset_is_refused_with_their_names(workspace: Path, make_job: MakeJob) -> None:
    sections = make_job().model_dump(mode="json", exclude_unset=True)
    del sections["teacher"]
    sections["tasks"] = [{"name": "adding", "count": 8, "teacher": {"big": 1, "small": 1}}]
    sections["teachers"] = {"big": {"backend": "scripted"}, "small": {"backend": "scripted", "model": "other"}}
    run(Job.model_validate(sections), workspace, workspace / "data")
    for path in (workspace / "data" / "data").iterdir():
        flip_byte(path)  # whoever reads a row finds it damaged
    with pytest.raises(JobError, match=r"--teacher bog: .* \(has: big, small\); did you mean 'big'\?$"):
        export_to(workspace / "data", workspace / "x", "trl-sft", teacher="bog")
    with pytest.raises(JobError, match=r"choose one with --teacher \(has: big, small\)$"):
        export_to(workspace / "data", workspace / "x", "trl-sft")
    assert not (workspace / "x").exists()


@pytest.mark.parametrize("form", ["distillkit", "trl-sft"])
@pytest.mark.parametrize("state", ["absent", "empty", "begun"])
def test_what_is_refused_leaves_nothing_of_its_own(
    workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, form: str, state: str
) -> None:
    root, out = make_dataset(workspace, make_job), workspace / "new" / "deep" / "x"
    monkeypatch.setattr(sources, "PART_BYTES", 1)  # several parts
    if state != "absent":
        out.mkdir(parents=True)
    if state == "begun":

        def cut(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(exporting, "_leave_nothing", cut)
        with pytest.raises(KeyboardInterrupt):
            export_to(root, out, form, length=2)
        assert (out / ".export.jsonl").is_file()
        monkeypatch.undo()
        monkeypatch.setattr(sources, "PART_BYTES", 1)
    with pytest.raises(DatasetError, match="no row is left"):
        export_to(root, out, form, length=2)
    if state == "absent":
        assert not (workspace / "new").exists()
    else:
        assert list(out.iterdir()) == []
    assert export_to(root, out, form, length=512)[0].startswith(f"{out}: 12 rows")


def test_a_file_that_is_damaged_from_the_first_leaves_nothing_and_later_what_is_finished(
    workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PART_BYTES", 1)
    root = make_dataset(workspace, make_job)
    first, *_, last = sorted((root / "data").iterdir())
    flip_byte(last)
    with pytest.raises(DatasetError, match=last.name):
        export_to(root, workspace / "x", "trl-sft")
    assert (workspace / "x" / ".export.jsonl").is_file()  # the same command goes on, once that is mended
    flip_byte(first)
    with pytest.raises(DatasetError, match=first.name):
        export_to(root, workspace / "y", "trl-sft")
    assert not (workspace / "y").exists()


def test_an_export_of_an_unfinished_dataset_says_so(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    assert not [line for line in export_to(root, workspace / "whole", "messages") if "planned" in line]
    lines = (root / "ledger.jsonl").read_text().splitlines(keepends=True)
    (root / "ledger.jsonl").write_text("".join(lines[:-1]))
    told = "  10 of 12 planned rows are there; `factory run` goes on"
    assert told in export_to(root, workspace / "x", "messages")
    assert told in export_to(root, workspace / "x", "messages")  # complete already
