"""Replicas under a supervisor, with an engine's whole process but for the engine: who dies, hangs or is deaf is alone.

Every prompt comes out of `collect` once, whatever happens to whichever process.
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dataset_support import make_prompt

from factory.errors import TeacherError
from factory.job.job import Job
from factory.records import Generation, Prompt
from factory.signals import SignalSpec
from factory.teachers import settings
from factory.teachers.devices import Place
from factory.teachers.engine_process import EngineDied, EngineProcess
from factory.teachers.replica import Replica, differing, pause_after
from factory.teachers.vllm import VllmTeacher

Open = Callable[..., VllmTeacher]


@pytest.fixture
def told() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> Iterator[Open]:
    """Teachers over the stand-in; `how` says what a replica is, by its number: unfit, stillborn, deaf or of a dtype."""
    monkeypatch.setattr(EngineProcess, "module", "stand_in_engine")
    monkeypatch.setattr(settings, "LOOK_S", 0.001)
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    opened: list[VllmTeacher] = []

    def tell(event: str, text: str | None = None, **fields: Any) -> None:
        told.append((event, fields | {"text": text}))

    def start(replicas: int = 2, how: dict[str, str] | None = None, **fields: Any) -> VllmTeacher:
        teacher: dict[str, Any] = {"model": "stand-in", "max_num_seqs": 4, "hang_timeout_s": 2} | fields
        job = Job.model_validate({"out": "out", "teacher": teacher, "tasks": [{"name": "adding", "count": 1}]})
        setup = {
            "teacher": teacher | {"how": how or {}},
            "settings": {"enforce_eager": True},
            "shares": False,
            "spool": str(tmp_path / ".spool"),
        }
        opened.append(VllmTeacher(job, setup, [Place()] * replicas, tmp_path, SignalSpec(), tell))
        return opened[-1]

    yield start
    for teacher in opened:
        teacher.close()


def prompts_of(count: int, words: dict[int, str] | None = None) -> list[Prompt]:
    """Prompts, those at some places with a word in them."""
    words = words or {}
    texts = [({"role": "user", "content": f"{n} {words.get(n, '')}"},) for n in range(count)]
    return [make_prompt(number, id=f"p{number}", messages=text) for number, text in enumerate(texts)]


def answer_all(
    teacher: VllmTeacher, prompts: list[Prompt], disturb: Callable[[], None] = lambda: None
) -> list[Generation]:
    """Feed them as a run does, until each has its generation; `disturb` between two collections."""
    left, answers = list(reversed(prompts)), list[Generation]()
    while len(answers) < len(prompts):
        while left and teacher.room():
            teacher.submit(left.pop())
        came = teacher.collect()
        assert came, "nothing is under way and not all are answered"
        answers += came
        for generation in came:
            teacher.release(generation.prompt_id, generation.attempt)
        disturb()
    return answers


def require_each_once(prompts: list[Prompt], answers: list[Generation]) -> None:
    assert Counter(generation.prompt_id for generation in answers) == Counter(prompt.id for prompt in prompts)
    seeds = {prompt.id: prompt.seed for prompt in prompts}
    for generation in answers:
        if generation.failure is None:
            assert generation.text == f"{generation.prompt_id} {seeds[generation.prompt_id]}"


def test_all_replicas_have_a_share_and_each_prompt_is_answered_once(start: Open, tmp_path: Path) -> None:
    teacher, prompts = start(3), prompts_of(200)
    assert teacher.room() == 3 * 8
    require_each_once(prompts, answer_all(teacher, prompts))
    assert all(replica.rows > 20 for replica in teacher.replicas)
    assert teacher.collect() == []
    assert sorted(path.name for path in tmp_path.glob("*.log")) == ["engine-1.log", "engine-2.log", "engine.log"]


def test_a_small_job_is_shared_out_too(start: Open) -> None:
    teacher, prompts = start(2), prompts_of(8)
    require_each_once(prompts, answer_all(teacher, prompts))
    assert [replica.rows for replica in teacher.replicas] == [4, 4]


def test_a_poisoned_prompt_costs_one_replica_its_engines_and_no_other_prompt_its_row(start: Open) -> None:
    teacher, prompts = start(2), prompts_of(60, {17: "POISON"})
    answers = answer_all(teacher, prompts)
    require_each_once(prompts, answers)
    failed = [generation for generation in answers if generation.failure]
    assert [(g.prompt_id, g.failure) for g in failed] == [("p17", "engine_crash")]
    assert sorted(replica.deaths for replica in teacher.replicas) in ([0, 2], [0, 3])
    assert "twice with nothing but this prompt in it (exit code 3)" in failed[0].failure_detail


@pytest.mark.sweep
def test_a_prompt_that_hangs_an_engine_is_found_and_the_others_answers_go_on(start: Open) -> None:
    teacher, prompts = start(2, hang_timeout_s=1), prompts_of(40, {5: "FREEZE"})
    answers = answer_all(teacher, prompts)
    require_each_once(prompts, answers)
    assert [g.prompt_id for g in answers if g.failure] == ["p5"]
    assert 0 in [replica.deaths for replica in teacher.replicas]


def test_several_poisoned_prompts_are_all_found(start: Open) -> None:
    poison = {3: "POISON", 4: "POISON", 30: "POISON", 59: "POISON"}
    teacher, prompts = start(2), prompts_of(60, poison)
    answers = answer_all(teacher, prompts)
    require_each_once(prompts, answers)
    assert {g.prompt_id for g in answers if g.failure} == {f"p{number}" for number in poison}


def test_an_engine_that_does_not_read_keeps_nobody_from_the_others(start: Open) -> None:
    """Its prompts are more than a pipe holds: a supervisor that waited for it would wait for ever."""
    teacher = start(2, how={"1": "deaf"}, hang_timeout_s=1, max_restarts=1)
    prompts = prompts_of(60)
    wordy = [
        make_prompt(n, id=prompt.id, messages=({"role": "user", "content": "x" * 60_000},))
        for n, prompt in enumerate(prompts)
    ]
    require_each_once(wordy, answer_all(teacher, wordy))
    assert [replica.number for replica in teacher.replicas] == [0]


def test_a_replica_that_is_given_up_leaves_its_prompts_to_the_others(start: Open, told: list[Any]) -> None:
    teacher, prompts = start(2, max_restarts=1), prompts_of(80)

    def kill_second() -> None:
        for replica in teacher.replicas:
            if replica.number == 1 and replica.engine is not None:
                replica.engine.process.kill()
                replica.deaths_in_a_row = 1  # as if it had died before, without an answer

    require_each_once(prompts, answer_all(teacher, prompts, kill_second))
    assert [replica.number for replica in teacher.replicas] == [0]
    (fields,) = [fields for event, fields in told if event == "replica_given_up"]
    assert (fields["replica"], fields["left"]) == (1, 1)
    assert "keeps dying without an answer between (exit code -9)" in fields["why"]


def test_the_end_of_the_last_replica_is_the_end_of_the_run(start: Open) -> None:
    teacher = start(2, max_restarts=1)
    for replica in teacher.replicas:
        assert replica.engine is not None
        replica.engine.process.kill()
        replica.engine.process.wait()
        replica.setup["teacher"]["how"] = {"0": "stillborn", "1": "stillborn"}
    teacher.submit(prompts_of(1)[0])
    with pytest.raises(TeacherError, match=r"the engine's process dies while it starts \(exit code 4\); see .*log"):
        teacher.collect()


def test_an_engine_that_died_unseen_is_told_of_by_its_exit_code_when_a_prompt_breaks_its_pipe(start: Open) -> None:
    (replica,) = start(1).replicas
    assert replica.engine is not None
    replica.engine.process.kill()
    replica.engine.process.wait()
    with pytest.raises(EngineDied, match=r"^exit code -9$"):
        replica.engine.send({"id": "p0"})


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"1": "unfit"}, "teacher: not fit"),
        ({"0": "stillborn"}, r"dies while it starts \(exit code 4\); see .*engine\.log"),
        ({"1": "stillborn"}, r"dies while it starts \(exit code 4\); see .*engine-1\.log"),
        ({"1": "float16"}, r"replicas: replica 1 is not as the first one in dtype; are its devices of another kind"),
    ],
)
def test_a_replica_that_does_not_come_up_or_is_not_like_the_first_refuses_the_start(
    start: Open, how: dict[str, str], says: str
) -> None:
    before = children()
    with pytest.raises(TeacherError, match=says):
        start(2, how, max_restarts=0)
    assert children() == before, "none is left"


def test_what_an_earlier_run_had_answered_is_not_asked_again_whoever_answered_it(start: Open) -> None:
    prompts = prompts_of(40)
    first = start(3)
    for prompt in prompts[:24]:
        first.submit(prompt)
    came = list[Generation]()
    while len(came) < 24:
        came += first.collect()
    first.close()
    again = start(2)
    require_each_once(prompts, answer_all(again, prompts))
    assert sum(replica.rows for replica in again.replicas) == 16


@pytest.mark.parametrize("seed", range(3))
def test_kills_and_hangs_at_random_moments_leave_every_prompt_answered_once(
    start: Open, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines of both replicas, while they start, work and rest; as a run whose answers are written between."""
    monkeypatch.setenv("STAND_IN_STEP_S", "0.01")
    rng, prompts = random.Random(seed), prompts_of(300)
    teacher = start(2, hang_timeout_s=1, max_restarts=100)
    done = threading.Event()
    harmed = Counter[str]()

    def harm() -> None:
        # few enough that engines come up between, and now and then one that is just starting
        while not done.wait(rng.uniform(0.05, 0.5)) and harmed.total() < 15:
            replica = rng.choice(teacher.replicas)
            engine = replica.engine
            if engine is None or engine.process.returncode is not None or not (replica.live or rng.random() < 0.1):
                continue
            blow = rng.choices([signal.SIGKILL, signal.SIGSTOP], [4, 1])[0]
            with suppress(ProcessLookupError):
                os.kill(engine.process.pid, blow)
                harmed[blow.name] += 1

    thread = threading.Thread(target=harm)
    thread.start()
    try:
        answers = answer_all(teacher, prompts, lambda: time.sleep(rng.uniform(0, 0.02)))
    finally:
        done.set()
        thread.join()
    require_each_once(prompts, answers)
    assert harmed.total() >= 1
    # twice by chance alone with an innocent one is rare, and its row says so
    assert sum(generation.failure is not None for generation in answers) <= 3
    assert {generation.failure for generation in answers} <= {None, "engine_crash"}


def children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


def test_speeds_are_told_of_several_and_not_of_one(start: Open, told: list[Any]) -> None:
    teacher, prompts = start(2), prompts_of(20)
    answer_all(teacher, prompts)
    teacher.tell_speeds()
    (fields,) = [fields for event, fields in told if event == "replicas"]
    assert sum(figures["rows"] for figures in fields["replicas"]) == 20
    assert fields["text"].startswith("engine 0: ")
    assert fields["text"].endswith(" rows/s")
    start(1).tell_speeds()
    assert len([event for event, _ in told if event == "replicas"]) == 1


def test_pauses_grow_and_have_an_end() -> None:
    pauses = [pause_after(failures) for failures in (1, 2, 3, 20)]
    assert pauses == sorted(pauses)
    assert (pauses[0] >= 0.5, pauses[-1]) == (True, 60.0)


def test_what_two_engines_do_not_agree_in_is_named() -> None:
    assert differing({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}) == ["b", "d"]
    assert differing({"a": [1]}, {"a": [1]}) == []


def test_silence_counts_only_where_something_was_asked_and_somebody_listened(tmp_path: Path) -> None:
    job = Job.model_validate({"out": "o", "tasks": [{"name": "adding", "count": 1}], "teacher": {"hang_timeout_s": 5}})
    replica = Replica(0, {}, Place(), tmp_path / "log", job.teacher, lambda *_, **__: None)
    replica.engine, replica.info, replica.heard = object(), {}, 100.0  # type: ignore[assignment]
    assert replica.due(0.0) == float("inf")
    replica.in_engine["p", 0] = prompts_of(1)[0]
    assert replica.due(0.0) == 105.0
    assert replica.due(300.0) == 305.0
