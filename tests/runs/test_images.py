"""A job whose prompts show pictures: the columns, broken files of the user's, duplicates, and what endpoints get."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import SCHEMA, write_task
from dataset_support import read_table
from drawn_task import DRAWN, USER
from PIL import Image

from factory.checks.author import examine
from factory.checks.verify import verify
from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.errors import TeacherError
from factory.job.job import Job
from factory.publish.show import describe_prompt, describe_rows
from factory.runs.run import run
from factory.tasks.catalog import preview
from factory.teachers.data_urls import with_data_urls

MakeJob = Callable[..., Job]
FROM_FILE = SCHEMA.replace("    b: int = 1\n", "    b: int = 1\n    photo: str = ''\n")
TASKS = [{"name": "adding", "count": 16}, {"name": "plain", "count": 6}]


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    write_task(tmp_path, schema=DRAWN, user_j2=USER, user_short_j2=USER, judge_j2="{{ prompt }} {{ answer }}")
    write_task(tmp_path, "plain")
    return tmp_path


def test_every_config_shows_the_pictures(pictured: Path, make_job: MakeJob) -> None:
    out = pictured / "out"
    faults = {"backend": "scripted", "scripted": {"wrong": 0.3}}
    job = make_job(
        tasks=TASKS, teacher=faults, samples={"n": 3, "keep": "pair"}, judge={}, filters={"duplicates": True}
    )
    run(job, pictured, out)
    assert list(verify(out)) == []
    make_curriculum(out, CurriculumConfig())
    for config in ("default", "rejected", "preferences", "stage-1", "hand-off"):
        rows = datasets.load_dataset(str(out), config, split="train", cache_dir=str(pictured / "cache"))
        assert rows.features["images"] == datasets.List(datasets.Image()), config
        for row in rows:
            kinds = [part["type"] for message in row["prompt"] for part in message["content"]]
            assert kinds.count("image") == len(row["images"]) == (row["task"] == "adding")
            assert {message["role"] for message in row["prompt"]} >= {"system", "user"}
    first = next(
        row for row in datasets.load_dataset(str(out), split="train", streaming=True) if row["task"] == "adding"
    )
    scenario = json.loads(first["scenario"])
    assert first["images"][0].size == (8 + scenario["a"], 8)
    assert first["images"][0].getpixel((0, 0)) == (scenario["b"], 0, 0)
    assert "[image]" in "\n".join(describe_rows(out, 40))


def test_an_author_and_a_preview_see_pictures(pictured: Path) -> None:
    report = examine(pictured, "adding", 8, "demo")
    assert report.problems == []
    assert not any("changes no prompt" in line for line in report.lines())
    assert "Look:\n[image]\nAdd" in describe_prompt(next(preview(pictured, "adding", "easy", 0, 1)), as_json=False)


def test_another_picture_is_another_prompt_and_endpoints_get_it(pictured: Path) -> None:
    one, two = (next(preview(pictured, "adding", "hard", seed, 1)) for seed in (0, 1))
    assert one.messages == two.messages
    assert one.id != two.id
    (content,) = [m["content"] for m in with_data_urls(one) if m["role"] == "user"]
    assert [part["type"] for part in content] == ["text", "image_url", "text"]
    head, _, data = content[1]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == one.images[0]


def test_a_broken_file_of_the_user_is_one_rejected_row(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = io.BytesIO()
    Image.new("RGB", (3, 3)).save(told, "JPEG")
    (tmp_path / "whole.jpg").write_bytes(told.getvalue())
    (tmp_path / "broken.jpg").write_bytes(told.getvalue()[:60])
    names = ("whole.jpg", "broken.jpg", "/etc/hostname", "whole.jpg")
    rows = [{"a": number, "photo": name} for number, name in enumerate(names)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    user = "{% if scenario.photo %}{% image scenario.photo %}{% endif %}Add {{ scenario.a }} and {{ scenario.b }}."
    write_task(tmp_path, schema=FROM_FILE, user_j2=user, user_short_j2=user)
    run(make_job(tasks=[{"name": "adding", "count": 4, "source": {"path": "rows.jsonl"}}]), tmp_path, tmp_path / "out")
    assert [row["source_row"] for row in read_table(tmp_path / "out", "data")] == ["1", "4"]
    rejected = read_table(tmp_path / "out", "rejected")
    assert [(row["kind"], row["stage"], row["reason"]) for row in rejected] == [
        ("rejected", "prompt", "picture_unreadable")
    ] * 2
    told = {row["source_row"]: row["findings"][0] for row in rejected}
    assert "not a picture that Pillow reads" in told["2"]
    assert "/etc/hostname: is outside of" in told["3"]


def test_a_dataset_without_pictures_has_none_of_their_columns(pictured: Path, make_job: MakeJob) -> None:
    run(make_job(tasks=[{"name": "plain", "count": 4}]), pictured, pictured / "out")
    (row, *_) = read_table(pictured / "out", "data")
    assert "images" not in row
    assert isinstance(row["prompt"][0]["content"], str)


def test_a_model_that_sees_nothing_is_refused_before_its_engine_starts(pictured: Path, make_job: MakeJob) -> None:
    job: Any = make_job(tasks=TASKS, teacher={"model": "demo"}, signals={"top_k": 4})
    with pytest.raises(TeacherError, match=r"a task shows pictures, and its config\.json names no vision part"):
        run(job, pictured, pictured / "out")
