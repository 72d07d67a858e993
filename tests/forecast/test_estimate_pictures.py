"""Estimates of jobs whose prompts show pictures: their bytes and tokens, or that these are not known."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SCHEMA, write_task

from factory.errors import TeacherError
from factory.forecast.estimate import estimate, upper_bound
from factory.forecast.forecast import make_forecast
from factory.job.job import Job
from factory.runs.prepare import prepare
from factory.runs.run import run

MakeJob = Callable[..., Job]
USER = "{% image scenario.draw() %}Add {{ scenario.a }} and {{ scenario.b }}."
DRAWN = SCHEMA.replace(
    "class Answer(",
    """    def draw(self):
        from PIL import Image

        rng = random.Random(self.a * 1000 + self.b)
        return Image.frombytes("RGB", (40, 30), rng.randbytes(3600))


class Answer(""",
)


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    write_task(tmp_path, schema=DRAWN, user_j2=USER, user_short_j2=USER)
    return tmp_path


def test_bytes_of_pictures_are_told_and_held_by_the_bound(pictured: Path, make_job: MakeJob) -> None:
    job = make_job(tasks=[{"name": "adding", "count": 16}])
    prepared = prepare(job, pictured)
    forecast = make_forecast(prepared, pictured / "elsewhere")
    assert forecast.groups["images"] > 12 * 3600  # noise does not compress; equal pictures are stored once
    assert any(line.strip().startswith("images ") for line in estimate(job, pictured, pictured / "elsewhere"))
    totals = run(job, pictured, pictured / "out")
    assert totals.accepted == 16
    written = sum(path.stat().st_size for path in (pictured / "out").glob("*/*.parquet"))
    assert forecast.bytes == pytest.approx(written, rel=0.2)
    assert written < upper_bound(prepared)


def test_an_endpoints_pictures_count_as_the_most_that_is_known(pictured: Path, make_job: MakeJob) -> None:
    teacher = {"backend": "openai", "model": "gpt-5", "price": {"prompt": 1.0, "completion": 4.0}}
    asked = {"teacher": teacher, "signals": {"top_k": 0}}
    lines = estimate(make_job(tasks=[{"name": "adding", "count": 16}], **asked), pictured, pictured / "out")
    plan = "\n".join(lines)
    assert "pictures taken at the most that an endpoint is known to count" in plan
    (tokens,) = [line for line in lines if line.startswith("  tokens: ")]
    assert 8_500 < int(tokens.split()[1].replace(",", "")) < 8_700


def test_a_plan_refuses_a_model_that_sees_nothing_and_a_student_without_pictures(
    pictured: Path, make_job: MakeJob
) -> None:
    job = make_job(tasks=[{"name": "adding", "count": 4}], teacher={"model": "demo"})
    with pytest.raises(TeacherError, match=r"'demo': a task shows pictures, and its config\.json names no vision part"):
        estimate(job, pictured, pictured / "out")
    (pictured / "prompts/adding/student.j2").write_text("Add {{ scenario.a }} and {{ scenario.b }}.")
    with pytest.raises(TeacherError, match=r"'adding': shows pictures and has a student\.j2"):
        estimate(job, pictured, pictured / "out")


def test_pictures_that_cannot_be_counted_are_told(pictured: Path, make_job: MakeJob) -> None:
    folder = pictured / "blind"
    folder.mkdir()
    text = {"vocab_size": 1000, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    config = {"model_type": "llava", "text_config": text | {"max_position_embeddings": 512}, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    job = make_job(tasks=[{"name": "adding", "count": 4}], teacher={"model": str(folder)}, signals={"top_k": 4})
    plan = "\n".join(estimate(job, pictured, pictured / "out"))
    assert "pictures not counted, their tokens come on top: no processor here" in plan
