"""What many tests share: a workspace with one small task that no built-in knows, and jobs over it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from factory.job.job import Job

# how long an example takes depends on what else the machine does
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
# the same examples in every run: for a gate that must not waver
settings.register_profile("fixed", deadline=None, derandomize=True)

SCHEMA = """
import random
from pydantic import BaseModel, ConfigDict, Field


class Scenario(BaseModel):
    a: int
    b: int = 1


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    total: int = Field(ge=0, le=1000)
    words: str = Field(max_length=20)


def sample(rng: random.Random, level: str) -> Scenario:
    most = 10 if level == "easy" else 100
    return Scenario(a=rng.randrange(most), b=rng.randrange(most))


def check(scenario: Scenario, answer: Answer) -> list[str]:
    right = scenario.a + scenario.b
    return [] if answer.total == right else [f"wrong_total: got {answer.total}, expected {right}"]


def solve(scenario: Scenario) -> tuple[str, Answer]:
    total = scenario.a + scenario.b
    return f"{scenario.a} and {scenario.b} make {total}.", Answer(total=total, words="done")
"""
WITH_WORDS = (
    SCHEMA.replace('words="done"', "words=BANK.done[0]")
    + """
from factory.tasks.words import WordBank, Words, read_words


class Bank(WordBank):
    done: Words


BANK = read_words(__file__, Bank)
"""
)
TASK_FILE = """
name = "adding"
version = "1"
description = "Add two numbers."
levels = ["easy", "hard"]
[sampling]
max_tokens = 120
thinking_tokens = 24
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that install something, need another environment or take long run where a marker expression names them,
    never by the way."""
    apart = [name for name in ("core", "trainers", "runner_v2", "sweep", "long") if name not in config.option.markexpr]
    asked = [item for item in items if not any(item.get_closest_marker(name) for name in apart)]
    config.hook.pytest_deselected(items=[item for item in items if item not in asked])
    items[:] = asked


def write_task(root: Path, name: str = "adding", **replaced: str) -> None:
    """A small whole task; `replaced` gives other texts for its files (`schema`, `words`, `user_j2`, ...)."""
    folder = root / "prompts" / name
    folder.mkdir(parents=True, exist_ok=True)
    (root / "schemas").mkdir(exist_ok=True)
    texts = {
        "task_toml": TASK_FILE.replace('"adding"', f'"{name}"'),
        "user_j2": "Add {{ scenario.a }} and {{ scenario.b }}.",
        "user_short_j2": "{{ scenario.a }} + {{ scenario.b }} = ?",
        "system_j2": "Answer with one JSON object: {{ answer_schema | tojson }}",
        "schema": SCHEMA,
    } | replaced
    (root / "schemas" / f"{name}.py").write_text(texts.pop("schema"), encoding="utf-8")
    if "words" in texts:
        (root / "schemas" / f"{name}.words.toml").write_text(texts.pop("words"), encoding="utf-8")
    for key, text in texts.items():
        stem, _, suffix = key.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with the task `adding`."""
    write_task(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """An S3 server of this process's tests, behind a gate: see s3_support."""
    from s3_support import serve_s3

    with serve_s3() as gate:
        yield gate


@pytest.fixture
def gate(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The same, empty-handed, with the environment that leads there."""
    from s3_support import s3_environment

    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    s3_server.seen.clear()
    yield s3_server
    s3_server.rule = lambda method, key: ""


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """Jobs over `adding` with the scripted teacher; keyword arguments replace whole sections, None leaves one out."""

    def make(**sections: Any) -> Job:
        job: dict[str, Any] = {
            "out": "out",
            "shard_rows": 8,
            "teacher": {"backend": "scripted"},
            "signals": {"top_k": 4, "hidden_layers": [2, -1]},
            "tasks": [{"name": "adding", "count": 20}],
        }
        return Job.model_validate({name: part for name, part in (job | sections).items() if part is not None})

    return make
