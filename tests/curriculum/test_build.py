"""Curricula: what is written holds what was decided, loads with `datasets`, and is whole or not there at all."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from conftest import write_task
from dataset_support import change_line, flip_byte, forge_text, held_ledger, read_tree, write_job

from factory.curriculum import build, regroup
from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig, TabledConfig
from factory.dataset.stages import SPLITS
from factory.errors import DatasetError, JobError
from factory.job.job import load_job
from factory.load import load_rows
from factory.runs.run import run

READING = """
import random
from pydantic import BaseModel, ConfigDict, Field


class Scenario(BaseModel):
    document: str
    question: int
    policy: str = ""


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    words: str = Field(max_length=20)


def sample(rng: random.Random, level: str) -> Scenario:
    number = rng.randrange(12)
    return Scenario(document=f"Report {number}. " + "Nothing happened. " * 20, question=rng.randrange(1000))


def check(scenario: Scenario, answer: Answer) -> list[str]:
    return []


def solve(scenario: Scenario) -> tuple[str, Answer]:
    return "I read it.", Answer(words="done")
"""
ASK = "{{ scenario.document }} Question {{ scenario.question }}?"
SECTIONS = '[[tasks]]\nname = "reading"\ncount = 40\n'
TEACHER = "scripted = { wrong = 0.15, bad_json = 0.05, crash = 0.05 }"
Change = Callable[[int], Any]


def set_columns(out: Path, **columns: Change) -> None:
    """Rewrite columns of the default config, each value from its row's number, and prove the files in the ledger."""
    first = 0
    for path in sorted((out / "data").glob("*.parquet")):
        table = pq.read_table(path)
        for name, value in columns.items():
            field = table.schema.field(name)
            values = pa.array([value(first + i) for i in range(table.num_rows)]).cast(field.type, safe=False)
            table = table.set_column(table.column_names.index(name), field, values)
        pq.write_table(table, path)
        prove(out, path)
        first += table.num_rows


def prove(out: Path, path: Path) -> None:
    proof = {"bytes": path.stat().st_size, "blake3": blake3(path.read_bytes()).hexdigest()}
    name = path.relative_to(out).as_posix()

    def change(entry: dict[str, Any]) -> None:
        next(file for file in entry["files"] if file["path"] == name).update(proof)

    change_line(out, int(name[-13:-8]) + 1, change)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two tasks, one over twelve documents, with wrong answers and crashes, and measures of every row."""
    root = tmp_path_factory.mktemp("made")
    write_task(root)
    write_task(root, "reading", schema=READING, user_j2=ASK, user_short_j2=ASK)
    run(load_job(write_job(root, count=60, shard_rows=16, teacher=TEACHER, sections=SECTIONS)), root, root / "out")
    rng = np.random.default_rng(5)
    numbers = {name: rng.random(100).tolist() for name in ("difficulty", "confidence", "entropy_mean")}
    columns: dict[str, Change] = {name: values.__getitem__ for name, values in numbers.items()}
    rates = rng.integers(0, 5, 100) / 4
    set_columns(root / "out", **columns, pass_rate=lambda i: float(rates[i]))
    return root / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def make(out: Path, **config: Any) -> dict[str, Any]:
    model = TabledConfig if isinstance(config.get("stages"), list) else CurriculumConfig
    return make_curriculum(out, model.model_validate(config))


def read_split(out: Path, config: str, split: str) -> list[dict[str, Any]]:
    paths = sorted((out / "curriculum" / config).glob(f"{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def read_config(out: Path, config: str) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in read_split(out, config, split)]


def read_default(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_the_default_is_three_stages_that_hold_every_accepted_row_once_and_rise(out: Path) -> None:
    summary = make(out)
    rows = {f"stage-{n}": read_config(out, f"stage-{n}") for n in (1, 2, 3)}
    accepted = read_default(out)
    assert sorted(row["id"] for part in rows.values() for row in part) == sorted(row["id"] for row in accepted)
    ends = [[(row["value"], row["id"]) for row in part] for part in rows.values()]
    assert max(ends[0]) < min(ends[1]) <= max(ends[1]) < min(ends[2])
    for number, (name, part) in enumerate(rows.items(), 1):
        stage = summary["stages"][number - 1]
        assert (stage["name"], {row["stage"] for row in part}) == (name, {number})
        assert (min(ends[number - 1]), max(ends[number - 1])) == (tuple(stage["easiest"]), tuple(stage["hardest"]))
        for split in SPLITS:
            mine = read_split(out, name, split)
            assert [row["position"] for row in mine] == list(range(len(mine)))
            assert [row["value"] for row in mine] == sorted(row["value"] for row in mine)
            assert stage["rows"][split] == len(mine)
            assert stage["tokens"][split] == sum(row["tokens"] for row in mine)


def test_a_row_of_a_stage_is_the_row_it_points_at(out: Path) -> None:
    make(out, order="shuffled", splits={"validation": 0.2, "test": 0.2})
    accepted = read_default(out)
    copied = ("id", "task", "level", "prompt", "completion", "reasoning", "answer", "prompt_token_ids", "answer_start")
    shards = [pq.read_table(path).to_pylist() for path in sorted((out / "data").glob("*.parquet"))]
    for row in [row for n in (1, 2, 3) for row in read_config(out, f"stage-{n}")]:
        source = accepted[row["index"]]
        assert shards[row["shard"]][row["row"]]["id"] == row["id"]
        for name in (*copied, "completion_token_ids", "pass_rate", "confidence", "difficulty", "prompt_id"):
            assert row[name] == source[name], name
        assert row["tokens"] == len(row["prompt_token_ids"]) + len(row["completion_token_ids"])
        assert row["hand_off"] == (row["pass_rate"] < 0.5) == (row["hand_off_reason"] == "pass_rate")
    assert "topk_ids" not in row


def test_plain_datasets_loads_every_stage_and_split(out: Path, tmp_path: Path) -> None:
    summary = make(out, splits={"validation": 0.2, "test": 0.2})

    def load(config: str) -> Any:
        return datasets.load_dataset(str(out), config, cache_dir=str(tmp_path / "cache"))

    for stage in [*summary["stages"], summary["hand_off"] | {"name": "hand-off"}]:
        found = {split: len(rows) for split, rows in load(stage["name"]).items()}
        assert found == {split: count for split, count in stage["rows"].items() if count}
    rows = datasets.load_dataset(str(out), "stage-1", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows[0]["completion"][0]["role"] == "assistant"
    everything = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert everything.select(rows["index"])["id"] == rows["id"]  # the join that needs nothing of ours


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stage_joins_the_very_arrays_of_the_default_config(out: Path, tmp_path: Path, streaming: bool) -> None:
    make(out, order="shuffled", stages=2)
    cache: dict[str, Any] = {"cache_dir": tmp_path / "cache", "join_hidden_states": True}
    by_id = {row["id"]: row for row in load_rows(out, **cache)}
    staged = load_rows(out, "stage-2", streaming=streaming, **cache)
    rows = list(staged)
    assert [row["id"] for row in rows] == [row["id"] for row in read_split(out, "stage-2", "train")]
    for row in rows:
        same = by_id[row["id"]]
        for name in (
            "prompt_token_ids",
            "completion_token_ids",
            "topk_ids",
            "topk_logprobs",
            "tail_logprobs",
            "entropy",
        ):
            np.testing.assert_array_equal(getattr(row, name), getattr(same, name), strict=True)
        assert row.hidden_states.equal(same.hidden_states)
        assert (row["stage"], row["text"]) == (2, same["text"])
    assert [row["position"] for row in rows] == list(range(len(rows)))
    if not streaming:
        assert len(staged) == len(rows)
        assert staged[3]["id"] == rows[3]["id"]
        assert staged[-1].topk_ids.tolist() == rows[-1].topk_ids.tolist()


def test_splits_of_a_dataset_share_no_document_prompt_or_scenario(out: Path) -> None:
    make(out, splits={"validation": 0.25, "test": 0.25})
    scenario = {row["id"]: row["scenario"] for row in read_default(out)}
    sides: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for row in [row for n in (1, 2, 3) for row in read_split(out, f"stage-{n}", split)]:
            document = json.loads(scenario[row["id"]]).get("document", "none")
            for text in (scenario[row["id"]], row["prompt_id"], document):
                sides[text].add(split)
        for row in read_split(out, "hand-off", split):
            assert row["split"] == split
            sides[row["id"]].add(split)
    del sides["none"]
    assert sum(text.startswith("Report") for text in sides) > 6
    assert set().union(*sides.values()) == set(SPLITS)
    assert all(len(found) == 1 for found in sides.values())


def test_the_hand_off_config_has_every_prompt_that_was_answered(out: Path) -> None:
    summary = make(out)
    rows = {row["id"]: row for row in read_config(out, "hand-off")}
    accepted = read_default(out)
    rejected = [r for p in sorted((out / "rejected").glob("*.parquet")) for r in pq.read_table(p).to_pylist()]
    wrong = {row["prompt_id"] for row in rejected if row["reason"] != "engine_crash"}
    right = {row["prompt_id"]: row for row in accepted}
    assert set(rows) == set(right) | wrong
    assert wrong - set(right)
    for prompt, row in rows.items():
        expected = ("pass_rate" if right[prompt]["pass_rate"] < 0.5 else None) if prompt in right else "never_right"
        assert (row["hand_off"], row["reason"]) == (expected is not None, expected)
        source = right.get(prompt) or next(r for r in rejected if r["prompt_id"] == prompt)
        assert (row["prompt"], row["task"]) == (source["prompt"], source["task"])
    assert summary["dropped"]["unanswered"] == len({row["prompt_id"] for row in rejected} - set(rows)) > 0
    assert sum(summary["hand_off"]["reasons"].values()) == sum(row["hand_off"] for row in rows.values())


def test_a_repaired_prompt_is_handed_off_as_it_was_first_asked(out: Path) -> None:
    path = next(path for path in sorted((out / "data").glob("*.parquet")) if pq.read_metadata(path).num_rows > 1)
    rows = pq.read_table(path).to_pylist()
    asked = rows[0]["prompt"]
    turns = [{"role": "assistant", "content": "{wrong"}, {"role": "user", "content": "not JSON"}]
    rows[0] |= {"prompt": [*asked, *turns], "repaired": True}
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    prove(out, path)
    make(out)
    (found,) = (row for row in read_config(out, "hand-off") if row["id"] == rows[0]["prompt_id"])
    assert found["prompt"] == asked
    (staged,) = (r for n in (1, 2, 3) for r in read_config(out, f"stage-{n}") if r["id"] == rows[0]["id"])
    assert (staged["prompt"], staged["repaired"]) == ([*asked, *turns], True)


def test_rows_too_long_for_the_student_are_dropped_counted_and_handed_off(out: Path) -> None:
    lengths = sorted(len(r["prompt_token_ids"]) + len(r["completion_token_ids"]) for r in read_default(out))
    most = lengths[len(lengths) // 2]
    summary = make(out, student={"max_tokens": most})
    rows = [row for n in (1, 2, 3) for row in read_config(out, f"stage-{n}")]
    assert max(row["tokens"] for row in rows) == most
    assert summary["dropped"]["too_long"] == len(lengths) - len(rows) == sum(n > most for n in lengths) > 0
    assert summary["hand_off"]["reasons"]["too_long"] == len(lengths) - len(rows)


def test_by_another_column_and_by_formula(out: Path) -> None:
    make(out, by="entropy_mean")
    accepted = {row["id"]: row for row in read_default(out)}
    assert all(row["value"] == accepted[row["id"]]["entropy_mean"] for row in read_config(out, "stage-1"))
    summary = make(out, by="pass_rate", stages=2)
    rates = [[row["pass_rate"] for row in read_split(out, f"stage-{n}", "train")] for n in (1, 2)]
    assert min(rates[0]) >= max(rates[1])
    assert rates[0] == sorted(rates[0], reverse=True)  # more is easier
    assert summary["stages"][0]["easiest"][0] == 1.0
    make(out, by="tokens", stages=2)
    assert [row["value"] for row in read_split(out, "stage-1", "train")] == [
        row["tokens"] for row in read_split(out, "stage-1", "train")
    ]


def test_a_formula_takes_the_place_of_the_difficulty(out: Path) -> None:
    pytest.importorskip("factory.quality.difficulty")
    accepted = {row["id"]: row for row in read_default(out)}
    summary = make(out, formula="1 - confidence * pass_rate")
    for row in read_config(out, "stage-2"):
        source = accepted[row["id"]]
        assert row["difficulty"] == row["value"]
        assert row["value"] == pytest.approx(1 - source["confidence"] * source["pass_rate"], abs=1e-6)
    assert summary["by"] == "formula"
    with pytest.raises(JobError, match=r"^curriculum: formula: .*speed"):
        make(out, formula="speed * 2")


def test_by_level_takes_the_order_of_the_task(out: Path) -> None:
    summary = make(out, by="level")
    assert [stage["name"] for stage in summary["stages"]] == ["stage-1", "stage-2"]
    assert {row["level"] for row in read_config(out, "stage-1")} == {"easy"}
    assert {row["level"] for row in read_config(out, "stage-2")} == {"hard"}
    (out / "templates/adding/task.toml").unlink()
    with pytest.raises(DatasetError, match=r"templates/adding/task\.toml: missing; resume the job"):
        make(out, by="level")


def test_an_order_of_levels_that_somebody_has_changed_is_refused(out: Path) -> None:
    path = out / "templates/adding/task.toml"
    path.write_text(path.read_text().replace('["easy", "hard"]', '["hard", "easy"]'))
    with pytest.raises(DatasetError, match=r"templates/adding/task\.toml: not what the rows were made with; resume"):
        make(out, by="level")
    assert not (out / "curriculum").exists()
    make(out)  # another `by` never reads it


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("data/train-00000.parquet", forge_text, r"\d+ bytes, committed with \d+"),
        (
            "data/train-00001.parquet",
            lambda path: flip_byte(path, 200),
            "its bytes have changed since it was committed",
        ),
        ("rejected/train-00001.parquet", lambda path: flip_byte(path, 200), "its bytes have changed since"),
        ("data/train-00002.parquet", Path.unlink, "missing"),
        ("data/train-00002.parquet", lambda path: os.truncate(path, 100), "100 bytes, committed with "),
    ],
)
def test_damage_is_never_copied_into_a_stage(out: Path, name: str, damage: Callable[[Path], Any], told: str) -> None:
    make(out)
    before = read_tree(out / "curriculum")
    damage(out / name)
    step = r"`factory verify .*/out` tells what else is, `factory run JOB --repair` makes it again"
    with pytest.raises(DatasetError, match=rf"out: {name}: {told}.*; {step}"):
        make(out, seed=5)
    assert read_tree(out / "curriculum") == before
    assert not list(out.glob(".tmp-*"))


def test_rows_without_a_difficulty_are_counted_and_last(out: Path) -> None:
    set_columns(out, difficulty=lambda i: None if i % 10 == 0 else i / 100)
    summary = make(out)
    unknown = [row for row in read_config(out, "stage-3") if row["value"] is None]
    assert summary["without_value"] == len(unknown) > 5
    mine = [row["value"] for row in read_split(out, "stage-3", "train")]
    known = [value for value in mine if value is not None]
    assert mine == sorted(known) + [None] * (len(mine) - len(known))


def test_a_dataset_without_any_difficulty_is_told(out: Path) -> None:
    set_columns(out, difficulty=lambda i: None)
    with pytest.raises(DatasetError, match=r"no row has a value for difficulty; set another `by`"):
        make(out)


def test_named_stages_with_mixture_and_budget(out: Path) -> None:
    stages = [
        {"name": "warm-up", "to": 0.5, "tasks": ["adding"]},
        {"name": "mixed", "mixture": {"adding": 2, "reading": 1}, "rows": 30},
    ]
    summary = make(out, stages=stages, order="interleaved")
    assert {row["task"] for row in read_config(out, "warm-up")} == {"adding"}
    counts = [row["task"] for row in read_split(out, "mixed", "train")]
    assert (counts.count("adding"), counts.count("reading")) == (20, 10)
    assert summary["stages"][1]["left_out"] > 0
    assert any("mixed" in warning for warning in summary["warnings"])
    with pytest.raises(
        JobError, match=r"curriculum: stage x: no accepted row of task cooking \(has: adding, reading\)"
    ):
        make(out, stages=[{"name": "x", "tasks": ["cooking"]}])


def test_the_same_dataset_and_config_give_the_same_bytes_however_memory_is_cut(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = {"order": "shuffled", "splits": {"validation": 0.2}}
    make(out, **config)
    first = read_tree(out)
    make(out, stages=5)
    assert read_tree(out)["curriculum/curriculum.json"] != first["curriculum/curriculum.json"]
    monkeypatch.setattr(regroup, "SPILL_BYTES", 10_000)
    make(out, **config)
    assert read_tree(out, (".lock",)) == {name: digest for name, digest in first.items() if name != ".lock"}


def test_large_stages_become_many_row_groups_and_files_with_the_same_rows(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(out)
    before = {n: read_config(out, f"stage-{n}") for n in (1, 2, 3)}
    monkeypatch.setattr(regroup, "ROW_GROUP_BYTES", 10_000)
    monkeypatch.setattr(regroup, "FILE_BYTES", 30_000)
    monkeypatch.setattr(regroup, "SPILL_BYTES", 25_000)
    make(out)
    assert {n: read_config(out, f"stage-{n}") for n in (1, 2, 3)} == before
    files = sorted((out / "curriculum/stage-1").glob("train-*"))
    assert len(files) > 1
    assert pq.read_metadata(files[0]).num_row_groups > 1


@pytest.mark.parametrize("moment", ["_scatter", "_write_file", "summary_text", "_install"])
@pytest.mark.parametrize("former", [True, False])
def test_a_run_that_is_cut_off_leaves_the_former_curriculum_or_none(
    out: Path, moment: str, former: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if former:
        make(out)
    before = read_tree(out / "curriculum") if former else {}

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    where = build if moment in ("summary_text", "_install") else regroup
    monkeypatch.setattr(where, moment, stop)
    with pytest.raises(KeyboardInterrupt):
        make(out, stages=4)
    assert (read_tree(out / "curriculum") if former else {}) == before
    assert [path.name for path in out.iterdir() if path.name.startswith(".tmp")] == []
    monkeypatch.undo()
    assert len(make(out, stages=4)["stages"]) == 4
    assert not (out / "curriculum/stage-9").exists()


def test_a_former_run_that_was_killed_leaves_nothing_in_the_way(out: Path) -> None:
    (out / ".tmp-curriculum/.spill").mkdir(parents=True)
    (out / ".tmp-curriculum-former").mkdir()
    make(out)
    assert [path.name for path in out.iterdir() if path.name.startswith(".tmp")] == []


def test_a_full_disk_is_one_line(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(out)
    before = read_tree(out, (".lock",))

    def fail(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(regroup, "_gather", fail)
    with pytest.raises(DatasetError, match=r"curriculum cannot be written: No space left on device"):
        make(out, stages=4)
    assert read_tree(out, (".lock",)) == before


def test_an_unfinished_dataset_one_in_use_and_one_without_rows_are_told(out: Path, tmp_path: Path) -> None:
    with held_ledger(tmp_path / "new", {"planned": 5, "shards": 1}, {"job": 1}):
        pass
    with pytest.raises(DatasetError, match=r"unfinished: 5 of 5 rows are still to come; let `factory run` finish"):
        make(tmp_path / "new")
    with pytest.raises(DatasetError, match=r"nowhere: no manifest\.json"):
        make(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with held_ledger(out, {}, {}), pytest.raises(DatasetError, match="at work here already"):
        make(out)
    for number, line in enumerate((out / "ledger.jsonl").read_text().splitlines()[1:], 1):
        assert line
        change_line(out, number, lambda e: e.update(rejected=e["rejected"] + e["accepted"], accepted=0))
    with pytest.raises(DatasetError, match=r"has no accepted row; `factory status"):
        make(out)


def test_a_dataset_of_an_older_format_is_told(out: Path) -> None:
    path = out / "data/train-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["difficulty", "pass_rate"]), path)
    prove(out, path)
    with pytest.raises(DatasetError, match=r"train-00000\.parquet: has no column difficulty, pass_rate; an older"):
        make(out)


def test_one_text_in_every_scenario_is_told_and_can_be_ignored(tmp_path: Path) -> None:
    schema = READING.replace('policy: str = ""', f"policy: str = {'Be kind. ' * 30!r}")
    write_task(tmp_path, "reading", schema=schema, user_j2=ASK, user_short_j2=ASK)
    text = (
        'out = "out"\n[teacher]\nbackend = "scripted"\n[signals]\ntop_k = 2\n[[tasks]]\nname = "reading"\ncount = 40\n'
    )
    (tmp_path / "job.toml").write_text(text)
    out = tmp_path / "out"
    run(load_job(tmp_path / "job.toml"), tmp_path, out)
    (warning, *_) = make(out, by="tokens")["warnings"]
    assert warning.startswith("40 of 40 rows share texts and so one split; if one is no document, name its field in ")
    assert warning.endswith("(long texts: document, policy)")
    summary = make(out, by="tokens", splits={"ignore": ["policy"]})
    assert not any("share" in warning for warning in summary["warnings"])
    assert summary["groups"] > 8
    with pytest.raises(
        JobError, match=r"splits\.ignore: no scenario has a text polcy \(long texts: document, policy\)"
    ):
        make(out, by="tokens", splits={"ignore": ["polcy"]})
