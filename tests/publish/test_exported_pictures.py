"""Exports of rows that show pictures: their bytes and places reach each trainer that takes them, and no other."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import tool_task
from conftest import write_task
from dataset_support import read_table, read_tree
from drawn_task import DRAWN, USER
from export_support import WRONG, MakeJob, export_to, make_dataset, read_export
from PIL import Image
from publish.test_exported_forms import student_with
from publish.test_exporting import torn_after

from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.dataset import tables
from factory.errors import JobError
from factory.job.job import Job
from factory.publish import exporting
from factory.publish.exports import source as sources
from factory.publish.exports.formats import FORMATS
from factory.runs.run import run
from factory.tasks.tasks import builtin_root

TASKS = [{"name": "adding", "count": 14}, {"name": "plain", "count": 4}]
# what each format that carries pictures is asked for with, and where it shows them
CARRIED: dict[str, dict[str, Any]] = {
    "trl-sft": {"rows": "messages"},
    "dpo": {},
    "kto": {},
    "messages": {},
    "verl-rl": {},
    "parquet-text": {},
}
PAIRED: dict[str, Any] = {"teacher": WRONG, "samples": {"n": 4, "keep": "pair"}, "tasks": TASKS}
SEEING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
)
BLIND = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """A workspace with a task that shows a picture, and one that shows none."""
    write_task(tmp_path, schema=DRAWN, user_j2=USER, user_short_j2=USER)
    write_task(tmp_path, "plain")
    return tmp_path


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of both tasks, with pairs and with answers that are wrong."""
    workspace = tmp_path_factory.mktemp("pictured")
    write_task(workspace, schema=DRAWN, user_j2=USER, user_short_j2=USER)
    write_task(workspace, "plain")
    job = {"out": "out", "shard_rows": 5, "signals": {"top_k": 4}, **PAIRED}
    run(Job.model_validate(job), workspace, workspace / "data")
    return workspace / "data"


def load(out: Path) -> Any:
    return datasets.load_dataset(str(out), split="train", cache_dir=str(out.parent / "cache"))


def places(content: Any) -> int:
    """How many pictures a content shows."""
    if isinstance(content, str):
        return content.count("<image>") + content.count("[image]")
    return sum(part["type"] == "image" for part in content)


@pytest.mark.parametrize("to", CARRIED)
def test_pictures_and_their_places_reach_the_trainer(to: str, paired: Path, tmp_path: Path) -> None:
    export_to(paired, tmp_path / "x", to, **CARRIED[to])
    rows = load(tmp_path / "x")
    assert rows.features["images"] == datasets.List(datasets.Image())
    kept = {png for row in (*read_table(paired, "data"), *read_table(paired, "rejected")) for png in _bytes_of(row)}
    seen = 0
    for row, raw in zip(rows, read_export(tmp_path / "x"), strict=True):
        said = row.get("messages") or row["prompt"]
        found = places(said) if isinstance(said, str) else sum(places(turn["content"]) for turn in said)
        assert found == len(row["images"])
        # the files are the dataset's own, byte for byte, and whole pictures to `datasets`
        assert set(_bytes_of(raw)) <= kept
        assert all(image.size[1] == 8 for image in row["images"])
        seen += len(row["images"])
        if scenario := row.get("scenario") or (row.get("reward_model") or {}).get("ground_truth"):
            numbers = json.loads(scenario)
            assert [image.size for image in row["images"]] in ([], [(8 + numbers["a"], 8)])
            assert [image.getpixel((0, 0)) for image in row["images"]] in ([], [(numbers["b"], 0, 0)])
    assert 0 < seen < len(rows)  # some rows show none
    assert "column `images`" in (tmp_path / "x/README.md").read_text()


def _bytes_of(row: dict[str, Any]) -> list[bytes]:
    return [picture["bytes"] for picture in row["images"]]


def test_a_row_is_shown_its_own_picture(paired: Path, tmp_path: Path) -> None:
    export_to(paired, tmp_path / "parts", "trl-sft", rows="messages")
    export_to(paired, tmp_path / "places", "messages")
    for row, parts, places_ in zip(
        read_table(paired, "data"), read_export(tmp_path / "parts"), read_export(tmp_path / "places"), strict=True
    ):
        assert parts["images"] == places_["images"] == row["images"]
        assert parts["prompt"] == row["prompt"]
        # the reasoning goes inside: beside the content most templates of models that see would drop it
        assert parts["completion"] == [{"role": "assistant", "content": places_["messages"][-1]["content"]}]
        assert places_["messages"][-1]["content"] == f"<think>{row['text'].removesuffix('<|end|>')}"
        if row["task"] == "adding":
            request = places_["messages"][-2]
            assert request == {"role": "user", "content": "Look:<image>Add its width less 8 and its red."}
            width = Image.open(io.BytesIO(row["images"][0]["bytes"])).width
            assert width == 8 + json.loads(row["scenario"])["a"]
    told = json.loads((tmp_path / "places/dataset_info.json").read_text())
    assert told["distilled"]["columns"] == {"messages": "messages", "images": "images"}


@pytest.mark.parametrize("to", [*(name for name, form in FORMATS.items() if form.blind), "trl-sft"])
def test_every_other_format_says_why_not_and_which_do(to: str, paired: Path, tmp_path: Path) -> None:
    reason = FORMATS[to].blind or "which TRL takes with messages and not with token ids; give --rows messages"
    with pytest.raises(JobError, match="some rows show pictures") as told:
        export_to(paired, tmp_path / "x", to, **({"length": 512} if to == "distillkit" else {}))
    assert reason in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "x").exists()
    if to != "trl-sft":
        assert "they go with trl-sft --rows messages, dpo, kto, messages, verl-rl, parquet-text" in str(told.value)


def test_no_format_is_forgotten() -> None:
    assert {name for name, form in FORMATS.items() if not form.blind} == set(CARRIED)


@pytest.mark.parametrize("to", ["dpo", "messages"])
def test_an_export_with_pictures_goes_on_to_the_same_bytes(
    to: str, paired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PART_BYTES", 1)
    export_to(paired, tmp_path / "whole", to)
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "_write_part", torn_after(2))
        with pytest.raises(KeyboardInterrupt):
            export_to(paired, tmp_path / "torn", to)
    assert not (tmp_path / "torn/README.md").exists()
    export_to(paired, tmp_path / "torn", to)
    assert read_tree(tmp_path / "torn") == read_tree(tmp_path / "whole")


def test_a_stage_shows_each_row_its_own_picture(pictured: Path, make_job: MakeJob) -> None:
    root = make_dataset(pictured, make_job, tasks=TASKS)
    make_curriculum(root, CurriculumConfig())
    export_to(root, pictured / "x", "parquet-text", stage="stage-1")
    stored = {row["id"]: row["images"] for row in read_table(root, "data")}
    rows = read_export(pictured / "x")
    assert rows
    assert {row["id"]: row["images"] for row in rows} == {row["id"]: stored[row["id"]] for row in rows}


def test_row_groups_are_cut_by_the_bytes_of_pictures(
    paired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(len(png) for row in read_table(paired, "data") for png in _bytes_of(row))
    # 200 bytes stand for a number, and there are 3 such values beside a picture
    monkeypatch.setattr(tables, "ROW_GROUP_BYTES", 2000 + longest)
    export_to(paired, tmp_path / "x", "messages")
    (path,) = (tmp_path / "x/data").glob("*.parquet")
    assert pq.ParquetFile(path).num_row_groups > 2


@pytest.mark.parametrize("spelt", ["<image>", "<video>"])
def test_a_text_that_spells_a_place_is_left_out_where_it_would_be_taken_for_one(
    spelt: str, pictured: Path, make_job: MakeJob
) -> None:
    user = USER + "{% if scenario.b > 40 %} Say nothing of " + spelt + ".{% endif %}"
    write_task(pictured, schema=DRAWN, user_j2=user, user_short_j2=user)
    root = make_dataset(pictured, make_job, tasks=TASKS)
    spelling = [row for row in read_table(root, "data") if spelt in row["prompt"][-1]["content"][-1]["text"]]
    assert spelling
    for to in ("messages", "verl-rl"):
        lines = export_to(root, pictured / to, to)
        assert any(f"left out  {len(spelling):>7}  a text spells <image>, <video> or <audio>" in line for line in lines)
        assert len(read_export(pictured / to)) == len(read_table(root, "data")) - len(spelling)
    # parts say which is a picture, whatever a text spells
    export_to(root, pictured / "sft", "trl-sft", rows="messages")
    assert len(read_export(pictured / "sft")) == len(read_table(root, "data"))


def test_a_student_whose_template_shows_no_pictures_is_told(paired: Path, tmp_path: Path) -> None:
    sees, blind = student_with(tmp_path / "sees", SEEING), student_with(tmp_path / "blind", BLIND)
    checking = [to for to in CARRIED if FORMATS[to].checks_student and "student" in FORMATS[to].options]
    assert checking == ["trl-sft", "dpo", "kto", "messages"]
    for to in checking:
        for student in (blind, "demo"):
            with pytest.raises(JobError, match="its chat template shows no pictures"):
                export_to(paired, tmp_path / "x", to, student=student, **CARRIED[to])
        assert not (tmp_path / "x").exists()
        with pytest.raises(JobError, match="drops reasoning_content"):
            export_to(paired, tmp_path / "x", to, student=sees, reasoning="apart", **CARRIED[to])
        export_to(paired, tmp_path / to, to, student=sees, **CARRIED[to])


def test_pictures_beside_tools_go_where_both_are_shown(pictured: Path, make_job: MakeJob) -> None:
    schema = tool_task.SCHEMA.replace(
        "    minutes: int | None\n",
        "    minutes: int | None\n\n    def draw(self):\n        from PIL import Image\n\n"
        "        return Image.new('RGB', (9, 9))\n",
    )
    user = "{% image scenario.draw() %}" + tool_task.USER
    write_task(pictured, "errands", schema=schema, task_toml=tool_task.TASK, user_j2=user, user_short_j2=user)
    root = make_dataset(pictured, make_job, **PAIRED | {"tasks": [{"name": "errands", "count": 12}]})
    for to in ("trl-sft", "dpo", "kto"):
        with pytest.raises(JobError, match=r"no tools where it shows pictures.*`--to messages` carries both"):
            export_to(root, pictured / "x", to, **CARRIED[to])
    export_to(root, pictured / "m", "messages")
    rows = read_export(pictured / "m")
    assert all(row["tools"] and row["messages"][-2]["content"].startswith("<image>") for row in rows)
    assert any("<tool_call>" in row["messages"][-1]["content"] for row in rows)


def test_a_built_in_task_of_photos_is_exported(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(tasks=[{"name": "photo_edits_image", "count": 6}], signals={"top_k": 4})
    run(job, builtin_root(), tmp_path / "photos")
    export_to(tmp_path / "photos", tmp_path / "x", "messages")
    rows = load(tmp_path / "x")
    assert len(rows) == 6
    assert all(row["images"][0].mode == "RGB" and row["messages"][-2]["content"].count("<image>") == 1 for row in rows)
