"""Pictures through vLLM: a tiny model that sees, whose rows a transformers forward over the same pixels confirms."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SCHEMA, write_task
from dataset_support import read_table
from integration_support import engine_job
from random_vlm import random_vlm

from factory.checks.fidelity import read_row
from factory.checks.verify import verify
from factory.dataset.manifest import read_manifest, read_signals
from factory.dataset.shards import shard_path
from factory.errors import TeacherError
from factory.forecast.estimate import estimate
from factory.job.job import Job
from factory.runs.run import run
from factory.teachers.agreement import exceeded
from factory.teachers.plain_forward import PlainModel, compare_row
from factory.teachers.reference import require_reference

pytestmark = pytest.mark.engine
USER = """{% image scenario.draw(scenario.a) %}Add {{ scenario.a }}, as <image> shows, and
{% if scenario.b % 2 %}{% image scenario.draw(scenario.b) %}{% endif %}{{ scenario.b }}."""
DRAWN = SCHEMA.replace(
    "class Answer(",
    """    def draw(self, red):
        from PIL import Image

        image = Image.new("RGB", (40 + red % 60, 30))
        for x in range(40):
            image.putpixel((x, x % 30), (red * x % 256, 255 - red % 256, 6 * x))
        return image


class Answer(""",
)


def seeing_job(**sections: Any) -> Job:
    teacher = {"model": random_vlm(), "reasoning": "off", "dtype": "float32", "max_model_len": 2048}
    more = {"teacher": teacher, "tasks": [{"name": "adding", "count": 8}], "shard_rows": 4}
    return engine_job(**(more | sections))


@pytest.fixture(scope="module", params=["decode", "prefill"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose signals come while it is generated, and one whose finished ids went through the engine again."""
    folder = tmp_path_factory.mktemp("seen")
    write_task(folder, schema=DRAWN, user_j2=USER, user_short_j2=USER)
    signals = {"top_k": 8, "hidden_layers": [0, 2, -1], "positions": "all", "verify_rows": 4}
    run(seeing_job(signals=signals | {"capture": request.param}), folder, folder / "out")
    return folder / "out"


def test_a_plan_counts_every_token_of_the_pictures(seen: Path) -> None:
    lengths = [len(row["prompt_token_ids"]) for row in read_table(seen, "data")]
    plan = "\n".join(estimate(seeing_job(), seen.parent, seen.parent / "elsewhere"))
    assert "pictures counted with its own processor" in plan
    assert f"tokens: {sum(lengths) / len(lengths):,.0f} prompt + " in plan
    assert "    images " in plan


def test_every_row_keeps_its_pictures_and_the_prompt_as_the_model_read_it(seen: Path) -> None:
    from transformers import AutoTokenizer

    assert list(verify(seen)) == []
    tokenizer: Any = AutoTokenizer.from_pretrained(random_vlm())
    image, first = tokenizer.convert_tokens_to_ids(["<image>", "<global-img>"])
    rows = read_table(seen, "data")
    assert len(rows) == 8
    assert {len(row["images"]) for row in rows} == {1, 2}
    for row in rows:
        ids = row["prompt_token_ids"]
        # the word that a user's text spells is no picture
        assert ids.count(first) == len(row["images"])
        assert ids.count(image) % 4 == 0
        assert ids.count(image) >= 4 * len(row["images"])
        assert "as <image> shows" in tokenizer.decode(ids)
        assert len(row["prompt_topk_ids"]) == 8 * (len(ids) - 1)
    (again, *_) = datasets.load_dataset(str(seen), split="train", streaming=True)
    assert again["images"][0].size[1] == 30


def test_the_self_test_has_looked_at_the_same_pictures_and_agrees(seen: Path) -> None:
    found = read_manifest(seen)["fidelity"]
    assert (found["verdict"], len(found["rows"])) == ("passed", 4)


def test_a_forward_that_sees_another_picture_does_not_agree(seen: Path) -> None:
    manifest = read_manifest(seen)
    signals = read_signals(manifest)
    assert signals is not None
    request = require_reference(manifest) | {"layers": list(signals.layers), "final_norm": signals.final_norm}
    model = PlainModel(request | {"longest": 600})
    name = next(row["id"] for row in read_table(seen, "data") if len(row["images"]) == 2)
    # ids tell nothing of their shard
    shard = next(n for n in (0, 1) if name in pq.read_table(seen / shard_path("data", n))["id"].to_pylist())
    row = read_row(seen, (shard, name), signals)
    right, wrong = dict(row.arrays()), dict(row.arrays())
    wrong["picture-0"], wrong["picture-1"] = right["picture-1"], right["picture-0"]
    with torch.inference_mode():
        good, bad = compare_row(model, right), compare_row(model, wrong)
    assert exceeded(good["logprobs"], "float32") == []
    assert all(exceeded(figures, "float32") == [] for figures in good["layers"].values())
    assert exceeded(bad["logprobs"], "float32")
    assert all(exceeded(figures, "float32") for figures in bad["layers"].values())


def test_a_model_that_sees_nothing_is_refused_before_the_engine_starts(tmp_path: Path) -> None:
    write_task(tmp_path, schema=DRAWN, user_j2=USER, user_short_j2=USER)
    with pytest.raises(TeacherError, match=r"a task shows pictures, and its config\.json names no vision part; name a"):
        run(engine_job(teacher={"model": "demo"}), tmp_path, tmp_path / "out")
