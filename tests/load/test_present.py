"""What is loaded is what is there: after a directory was made again or has grown, and whatever its name is."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from dataset_support import read_table, write_job
from pydantic import BaseModel, ConfigDict

from factory.curriculum.build import make_curriculum
from factory.curriculum.mixture import CurriculumConfig
from factory.errors import DatasetError, JobError
from factory.job.data import SourceConfig
from factory.job.job import Job
from factory.load import load_rows
from factory.runs.run import run
from factory.tasks.sources import open_source


def as_any_other(out: Path) -> None:
    """Leave what makes a directory one of ours, so that it is read as any directory with a card."""
    for name in ("ledger.jsonl", "manifest.json"):
        (out / name).unlink()


class Anything(BaseModel):
    """A scenario that takes whatever a row gives."""

    model_config = ConfigDict(extra="allow")


MakeJob = Callable[..., Job]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def on_disk(out: Path) -> list[str]:
    return [row["id"] for row in read_table(out, "data")]


def loaded(out: Path, config: str = "default") -> list[list[str]]:
    plain = datasets.load_dataset(str(out), config, split="train")
    return [
        [row["id"] for row in rows] for rows in (plain, load_rows(out, config), load_rows(out, config, streaming=True))
    ]


def test_a_directory_that_was_made_again_gives_its_new_rows(workspace: Path, make_job: MakeJob) -> None:
    out, seen = workspace / "out", []
    for seed in (1, 2, 1):
        shutil.rmtree(out, ignore_errors=True)
        run(make_job(seed=seed), workspace, out)
        assert loaded(out) == [on_disk(out)] * 3
        seen.append(on_disk(out))
    assert seen[0] == seen[2] != seen[1]


def test_a_directory_that_has_grown_gives_all_of_its_rows(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    run(make_job(), workspace, out)
    whole = {name: (out / name).read_bytes() for name in ("ledger.jsonl", "README.md")}
    late = [path for folder in ("data", "rejected", "hidden_states") for path in [out / folder / "train-00002.parquet"]]
    kept = {path: path.read_bytes() for path in late}
    for path in late:
        path.unlink()
    lines = whole["ledger.jsonl"].splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    run_card(out)
    assert loaded(out) == [on_disk(out)] * 3
    for path, content in kept.items():
        path.write_bytes(content)
    for name, text in whole.items():
        (out / name).write_bytes(text)
    assert len(on_disk(out)) == 20
    assert loaded(out) == [on_disk(out)] * 3


def run_card(out: Path) -> None:
    from factory.dataset.ledger import read_ledger
    from factory.publish.card import save_card

    save_card(read_ledger(out), None)


def test_a_stage_that_was_made_again_gives_its_new_rows(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    run(make_job(), workspace, out)
    for stages in (2, 4):
        make_curriculum(out, CurriculumConfig(by="tokens", stages=stages))
        paths = {"curriculum/stage-1": "stage-1", "curriculum/hand-off": "hand-off"}
        for folder, config in paths.items():
            ids = [row["id"] for row in read_table(out, folder)]
            found = loaded(out, config)
            assert found[0] == found[1] == found[2]
            assert set(found[0]) <= set(ids)


@pytest.mark.parametrize("name", ["set[1]", "set*", "set?", "set{1,2}"])
def test_a_directory_whose_name_is_a_pattern_gives_its_own_rows_or_is_refused(
    name: str, workspace: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    for seed, sibling in ((1, "good"), (2, "set1")):
        run(make_job(seed=seed), workspace, workspace / sibling)
    make_curriculum(workspace / "good", CurriculumConfig(by="tokens", stages=1))
    odd = workspace / name
    shutil.copytree(workspace / "good", odd)
    for streaming in (False, True):
        assert [row["id"] for row in load_rows(odd, streaming=streaming)] == on_disk(odd)
        assert list(load_rows(odd, "stage-1", streaming=streaming))
    told = r"which readers of datasets take for a wildcard; choose a path without any of"
    with pytest.raises(DatasetError, match=told):
        run(make_job(), workspace, workspace / f"new-{name}")
    assert not (workspace / f"new-{name}").exists()
    with pytest.raises(DatasetError, match=told):
        make_curriculum(odd, CurriculumConfig(by="tokens", stages=1))
    as_any_other(odd)
    with pytest.raises(JobError, match=r"wildcard"):
        open_source(SourceConfig(path=str(odd), format="datasets", split="train"), "tasks.0.source", 0, 1, Anything)
    job = write_job(workspace)
    command = [sys.executable, "-m", "factory.cli", "run", str(job), "--out", name + "/x"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, env=os.environ.copy(), check=False)
    assert (done.returncode, done.stderr.count("\n"), "wildcard" in done.stderr) == (2, 1, True)


def test_a_dataset_of_ours_that_was_made_again_gives_its_new_rows_and_another_digest(
    workspace: Path, make_job: MakeJob
) -> None:
    found: list[tuple[list[str], str]] = []
    for seed in (1, 2):
        shutil.rmtree(workspace / "out", ignore_errors=True)
        run(make_job(seed=seed), workspace, workspace / "out")
        config = SourceConfig(path=str(workspace / "out"), fields={"id": "id"})
        source = open_source(config, "tasks.0.source", 0, "all", Anything)
        found.append(([source.scenario(number)["id"] for number in range(len(source))], source.digest()))
        assert found[-1][0] == on_disk(workspace / "out")
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_a_source_that_was_made_again_gives_its_new_rows_and_another_digest(workspace: Path, make_job: MakeJob) -> None:
    found: list[tuple[Any, str]] = []
    for seed in (1, 2):
        shutil.rmtree(workspace / "out", ignore_errors=True)
        run(make_job(seed=seed), workspace, workspace / "out")
        (workspace / "out/README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data/*\n---\n")
        as_any_other(workspace / "out")
        config = SourceConfig(path=str(workspace / "out"), format="datasets", split="train")
        source = open_source(config, "tasks.0.source", 0, "all", Anything)
        assert [source.scenario(number)["id"] for number in range(len(source))] == on_disk(workspace / "out")
        found.append((source.scenario(0)["id"], source.digest()))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_reasoning_goes_inside_the_content_between_the_teachers_markers(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    run(make_job(), workspace, out)
    for row, inside in zip(load_rows(out), load_rows(out, reasoning="content"), strict=True):
        (turn,) = row["completion"]
        expected = f"<think>{turn['reasoning_content']}</think>{turn['content']}"
        assert inside["completion"] == [{"role": "assistant", "content": expected}]
        assert inside["reasoning"] == row["reasoning"]


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_and_hand_off_labels_are_rows_of_texts(workspace: Path, make_job: MakeJob, streaming: bool) -> None:
    teacher = {"backend": "scripted", "scripted": {"wrong": 0.5}}
    out = workspace / "out"
    run(make_job(teacher=teacher, samples={"n": 4, "keep": "pair"}), workspace, out)
    make_curriculum(out, CurriculumConfig(by="tokens", stages=1))
    for config, column in (("preferences", "chosen"), ("hand-off", "hand_off")):
        folder = "preferences" if config == "preferences" else "curriculum/hand-off"
        rows = list(load_rows(out, config, streaming=streaming))
        assert rows
        assert {row["id"] for row in rows} <= {row["id"] for row in read_table(out, folder)}
        assert all(column in row.keys() and not len(row.completion_token_ids) for row in rows)  # noqa: SIM118
        with pytest.raises(DatasetError, match=r"has no tokens that hidden_states could belong to"):
            load_rows(out, config, join_hidden_states=True)
