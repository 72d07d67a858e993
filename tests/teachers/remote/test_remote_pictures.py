"""Pictures to an endpoint: it gets the same bytes as the dataset keeps, and one that is blind is told of at once."""

from pathlib import Path

import pytest
from conftest import SCHEMA, write_task
from remote_support import demo_tokenizer, remote_job, rows_of
from scripted_endpoint import ScriptedEndpoint, serving

from factory.checks.verify import verify
from factory.errors import TeacherError
from factory.runs.run import run
from factory.tasks.catalog import preview
from factory.teachers.data_urls import most_image_tokens
from factory.teachers.remote.loop import bound_of

USER = "{% image scenario.draw(scenario.a) %}Add {{ scenario.a }} and{% image scenario.draw(300) %}{{ scenario.b }}."
DRAWN = SCHEMA.replace(
    "class Answer(",
    """    def draw(self, red):
        from PIL import Image

        return Image.new("RGB", (16, 8), (red % 256, 0, 0))


class Answer(""",
)


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    write_task(tmp_path, schema=DRAWN, user_j2=USER, user_short_j2=USER)
    return tmp_path


@pytest.mark.parametrize("api", ["vllm", "openai", "gemini"])
def test_an_endpoint_gets_the_pictures_that_the_rows_keep(pictured: Path, api: str) -> None:
    out = pictured / "out"
    endpoint = ScriptedEndpoint(vllm=api == "vllm", tokenizer=None if api == "vllm" else demo_tokenizer())
    with serving(endpoint):
        teacher = {"backend": "gemini", "base_url": endpoint.gemini_url} if api == "gemini" else {}
        totals = run(remote_job(endpoint, 8, teacher=teacher, signals={"top_k": 0}), pictured, out)
    assert (totals.accepted, totals.rejected, totals.errors) == (8, 0, 0)
    assert list(verify(out)) == []
    for row in rows_of(out):
        content = row["prompt"][-1]["content"]
        assert [part["type"] for part in content] == ["image", "text", "image", "text"]
        asked = "\n".join(part["text"] for part in content if part["text"])
        assert endpoint.pictures[asked] == [image["bytes"] for image in row["images"]]
    bodies = [body for body in endpoint.bodies if "Add" in str(body)]
    turn = bodies[0]["contents"][-1]["parts"] if api == "gemini" else bodies[0]["messages"][-1]["content"]
    assert ["text" in part for part in turn] == [False, True, False, True]


@pytest.mark.parametrize("teacher", [{}, {"backend": "gemini"}])
def test_a_model_that_sees_nothing_is_refused_before_a_row_is_asked(pictured: Path, teacher: dict[str, str]) -> None:
    endpoint = ScriptedEndpoint(sees=False, tokenizer=demo_tokenizer() if teacher else None)
    with serving(endpoint):
        more = {"base_url": endpoint.gemini_url} if teacher else {}
        job = remote_job(endpoint, 8, teacher=teacher | more, signals={"top_k": 0})
        with pytest.raises(TeacherError, match=r"refuses a picture: .*not a multimodal model.*; name a"):
            run(job, pictured, pictured / "out")
    assert not any("Add" in str(body) for body in endpoint.bodies)


def test_pictures_are_not_put_into_batch_files(pictured: Path) -> None:
    with serving(ScriptedEndpoint(vllm=False)) as endpoint:
        job = remote_job(endpoint, 8, teacher={"endpoint": {"mode": "batch"}}, signals={"top_k": 0})
        with pytest.raises(TeacherError, match='mode "batch": a task'):
            run(job, pictured, pictured / "out")


def test_the_bound_of_a_request_counts_its_pictures(pictured: Path) -> None:
    prompt = next(preview(pictured, "adding", "easy", 0, 1))
    assert bound_of(prompt)[0] > 2 * 8_500
    sizes = {(1, 1): 8_500, (512, 512): 8_500, (513, 512): 14_167, (1024, 1024): 25_501, (9000, 4000): 48_169}
    for (width, height), most in sizes.items():
        header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")
        assert most_image_tokens(header) == most
