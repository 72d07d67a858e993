"""Several engines of one teacher: the rows of one engine, and whoever of them dies is alone in it."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, write_task
from integration_support import Dataset, engine_job, make_dataset
from random_teacher import poisoned_teacher, random_teacher

from factory.checks.verify import verify
from factory.errors import TeacherError
from factory.job.job import Job
from factory.runs.prepare import prepare
from factory.runs.run import run_prepared
from factory.teachers.replica import Replica

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for each replica"),
]
TWO = {"model": random_teacher(), "dtype": "float32", "max_num_seqs": 4, "replicas": 2, "kv_cache_gb": 0.1}


def engines_of_this_process() -> list[int]:
    """Process ids of the engines that this process has started and that are alive."""
    children = Path(f"/proc/{os.getpid()}/task/{threading.main_thread().native_id}/children").read_text().split()
    found = []
    for child in map(int, children):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except FileNotFoundError:
            continue
        if b"factory.teachers.engine.process" in command:
            found.append(child)
    return found


def rows_by_id(dataset: Dataset) -> dict[str, Any]:
    names = ("text", "completion_token_ids", "prompt_token_ids", "topk_ids", "seed", "answer")
    return {row["id"]: [row[name] for name in names] for row in dataset.rows()}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """One job by one engine and by two."""
    signals = {"top_k": 5, "hidden_layers": [2, -1]}
    made = []
    for replicas in (1, 2):
        folder = tmp_path_factory.mktemp(f"replicas{replicas}")
        job = engine_job(teacher=TWO | {"replicas": replicas}, signals=signals, tasks=[{"name": "adding", "count": 20}])
        made.append(make_dataset(folder, job))
    return made[0], made[1]


def test_two_replicas_make_the_rows_of_one(both: Any) -> None:
    one, two = both
    assert one.totals.figures() | {"bytes": 0} == two.totals.figures() | {"bytes": 0}
    assert one.totals.accepted > 10
    assert rows_by_id(one) == rows_by_id(two)
    assert list(verify(two.out)) == []
    # nothing in it says how many engines made it, so it may go on with another number
    differing = [name for name in one.manifest if one.manifest[name] != two.manifest[name]]
    assert differing == []


def test_both_replicas_had_a_share_of_the_rows(both: Any) -> None:
    _, two = both
    for name in ("engine.log", "engine-1.log"):
        assert "Starting to load model" in (two.out / name).read_text(errors="replace")
    assert not (two.out / "engine-2.log").exists()


@pytest.mark.long
@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_a_replica_that_is_killed_or_hangs_is_started_again_while_the_other_goes_on(
    tmp_path: Path, harm: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path)
    teacher = TWO | {"hang_timeout_s": 8, "in_flight": 4}
    job = engine_job(teacher=teacher, signals={"top_k": 5}, tasks=[{"name": "adding", "count": 64}])
    harmed: list[int] = []
    answered: list[tuple[int, bool]] = []
    answer = Replica.answered

    def watched(self: Replica, key: Any) -> None:
        """Harm replica 1 once both have answered, and remember who answers while it is down."""
        answer(self, key)
        answered.append((self.number, bool(harmed)))
        if not harmed and {number for number, _ in answered} == {0, 1} and self.number == 1 and self.in_engine:
            assert self.engine is not None
            os.kill(self.engine.process.pid, harm)
            harmed.append(self.engine.process.pid)

    monkeypatch.setattr(Replica, "answered", watched)
    dataset = Dataset(tmp_path / "dataset", run_prepared(prepare(job, tmp_path), tmp_path / "dataset"))
    assert len(harmed) == 1
    assert not Path(f"/proc/{harmed[0]}").exists()
    assert (dataset.totals.done, dataset.totals.errors) == (64, 0)
    assert "teacher/engine_crash" not in dataset.totals.reasons  # the prompts in it were innocent
    assert answered.count((0, True)) > 4, "the other one went on"
    loads = [(dataset.out / name).read_text(errors="replace").count("Starting to load model") for name in LOGS]
    assert loads == [1, 2]
    assert list(verify(dataset.out)) == []


LOGS = ("engine.log", "engine-1.log")


@pytest.fixture(scope="module")
def poisoned_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poisoned_teacher(tmp_path_factory.mktemp("poisoned") / "model")


def poisoned_job(tmp_path: Path, model: Path, **teacher: Any) -> Job:
    """Sixteen rows, the tenth of which hangs its engine."""
    phrase = "{{ scenario.a }} {{ scenario.word }}"
    schema = SCHEMA.replace("    b: int = 1", "    b: int = 1\n    word: str = ''")
    write_task(tmp_path, schema=schema, user_j2=phrase, user_short_j2=phrase)
    words = [""] * 9 + ["POISON"] + [""] * 6
    rows = [json.dumps({"a": number, "word": word}) + "\n" for number, word in enumerate(words)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    settings = TWO | {"model": str(model), "max_num_seqs": 2, "in_flight": 2, "hang_timeout_s": 4} | teacher
    source = {"path": str(tmp_path / "rows.jsonl")}
    return engine_job(
        teacher=settings,
        signals={"top_k": 5},
        tasks=[{"name": "adding", "count": 16, "source": source}],
        shard_rows=16,
    )


@pytest.mark.long
def test_a_poisoned_prompt_is_one_rejected_row_and_one_replicas_affair(poisoned_model: Path, tmp_path: Path) -> None:
    dataset = make_from(tmp_path, poisoned_job(tmp_path, poisoned_model))
    assert dataset.totals.done == 16
    crashed = [row for row in dataset.rows("rejected") if row["reason"] == "engine_crash"]
    assert [json.loads(row["scenario"])["word"] for row in crashed] == ["POISON"]
    loads = [(dataset.out / name).read_text(errors="replace").count("Starting to load model") for name in LOGS]
    assert min(loads) == 1, "one replica never had to start again"


def make_from(folder: Path, job: Job) -> Dataset:
    return Dataset(folder / "dataset", run_prepared(prepare(job, folder), folder / "dataset"))


@pytest.mark.long
def test_a_replica_that_keeps_dying_is_given_up_and_the_other_makes_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(tmp_path)
    teacher = TWO | {"max_restarts": 0}
    job = engine_job(teacher=teacher, signals={"top_k": 5}, tasks=[{"name": "adding", "count": 24}])
    ask = Replica.ask

    def dying(self: Replica, prompt: Any) -> None:
        ask(self, prompt)
        if self.number == 1 and self.engine is not None:
            self.engine.process.kill()

    monkeypatch.setattr(Replica, "ask", dying)
    dataset = make_from(tmp_path, job)
    assert (dataset.totals.done, dataset.totals.errors) == (24, 0)
    assert "teacher/engine_crash" not in dataset.totals.reasons
    why = "teacher: the engine keeps dying without an answer between (exit code -9)"
    assert f"engine 1: given up, 1 left: {why}" in capsys.readouterr().err


@pytest.mark.long
def test_when_all_replicas_keep_dying_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path)
    job = engine_job(teacher=TWO | {"max_restarts": 0}, tasks=[{"name": "adding", "count": 8}])
    ask = Replica.ask

    def dying(self: Replica, prompt: Any) -> None:
        ask(self, prompt)
        if self.engine is not None:
            self.engine.process.kill()

    monkeypatch.setattr(Replica, "ask", dying)
    with pytest.raises(TeacherError, match="the engine keeps dying without an answer between"):
        make_from(tmp_path, job)
    deadline = time.monotonic() + 10
    while engines_of_this_process() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert engines_of_this_process() == []
