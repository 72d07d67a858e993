"""Answers with sets, decimals, dates and moments on the real engine: under the grammar even a teacher that babbles
writes only what pydantic takes, in the one spelling that the grammar has."""

import json
import re
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from conftest import write_task
from integration_support import Dataset, engine_job

from factory.quality.grammar import allows
from factory.runs.run import run
from factory.tasks.tasks import load_task

pytestmark = pytest.mark.engine
SCHEMA = """
import random
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated
from pydantic import BaseModel, ConfigDict, Field


class Scenario(BaseModel):
    a: int
    b: int = 1


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tags: Annotated[set[Annotated[str, Field(pattern="^[a-c]$")]], Field(min_length=1, max_length=3)]
    price: Annotated[Decimal, Field(max_digits=4, decimal_places=2)]
    share: Annotated[Decimal, Field(max_digits=3, decimal_places=3)]
    day: date
    at: datetime


def sample(rng: random.Random, level: str) -> Scenario:
    return Scenario(a=rng.randrange(100))


def check(scenario: Scenario, answer: Answer) -> list[str]:
    return []
"""


def test_a_babbling_teacher_writes_only_what_pydantic_takes(tmp_path: Path) -> None:
    write_task(tmp_path, schema=SCHEMA)
    job = engine_job(
        sampling={"temperature": 1.0, "max_tokens": 160, "thinking_tokens": 8},
        signals={"top_k": 2},
        tasks=[{"name": "adding", "count": 32}],
    )
    made = Dataset(tmp_path / "dataset", run(job, tmp_path, tmp_path / "dataset"))
    reasons = Counter(f"{row['stage']}/{row['reason']}" for row in made.rows("rejected"))
    # what stands twice in a set is beyond a grammar; all else that pydantic could say is in it
    assert set(reasons) <= {"schema/not_unique", "teacher/truncated"}, reasons
    rows = made.rows()
    assert len(rows) >= 8
    task, _ = load_task(tmp_path, "adding")
    assert task is not None
    assert task.grammar is not None
    for row in rows:
        answer = json.loads(row["answer"])
        assert allows(task.grammar, row["answer"])
        assert len(answer["tags"]) == len(set(answer["tags"]))
        assert re.fullmatch(r"-?\d{1,2}(\.\d{1,2})?", answer["price"])
        assert abs(Decimal(answer["share"])) < 1
        assert date.fromisoformat(answer["day"]).isoformat() == answer["day"]
        assert datetime.fromisoformat(answer["at"])
