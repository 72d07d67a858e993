"""The driver of a cluster and its workers, in one process: what is leased, taken, decided and refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, write_task
from dataset_support import make_generation, read_tree
from inline_nodes import Call, InlineNodes, run_inline
from test_plan_parts import FAULTY, JOBS, TWICE, VARIABLE, as_job

from factory.checks.verify import verify
from factory.dataset.history import read_history
from factory.dataset.ledger import read_ledger
from factory.errors import FactoryError, JobError, TeacherError
from factory.job.job import Job
from factory.runs.hands import Hand, come_further, find_needs, require_job
from factory.runs.leases import Leases
from factory.runs.nodes import WorkerLost
from factory.runs.parts import Part, take_part
from factory.runs.prepare import prepare
from factory.runs.run import run
from factory.runs.worker import PULSE, WORKERS, Beating
from factory.teachers.spool import Spool, SpoolWriter

THREE = {"a": 1, "b": 2}
MORE: dict[str, dict[str, Any]] = {
    "wanted": {
        "teacher": {"backend": "scripted", "scripted": FAULTY},
        "tasks": [{"name": "adding", "accepted": 60, "at_most": 400}],
        "filters": {"duplicates": True},
        "samples": {"n": 2},
    },
    "wanted of two": {
        "teachers": {"big": {"backend": "scripted", "scripted": FAULTY}, "small": {"backend": "scripted"}},
        "tasks": [{"name": "adding", "accepted": 60, "at_most": 200, "teacher": {"big": 1, "small": 2}}],
    },
}


def compare(job: Job, workspace: Path, rooms: dict[str, int], seed: int = 0) -> None:
    whole = run(job, workspace, workspace / "alone")
    assert run_inline(prepare(job, workspace), workspace / "out", InlineNodes(rooms, seed=seed)) == whole
    assert read_tree(workspace / "out", but=VARIABLE) == read_tree(workspace / "alone", but=VARIABLE)


@pytest.mark.parametrize("name", ["pairs", "two teachers", *MORE])
def test_three_workers_make_the_bytes_of_one_machine(workspace: Path, name: str) -> None:
    compare(as_job((JOBS | MORE)[name]), workspace, THREE)


@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (8, 1)])
def test_any_number_of_workers_makes_the_same_bytes(workspace: Path, workers: int, seed: int) -> None:
    compare(as_job(TWICE), workspace, {"a": workers}, seed)


def test_workers_die_at_any_moment_and_a_driver_is_killed_between(workspace: Path) -> None:
    job = as_job(TWICE | {"cluster": {"max_restarts": 50}})
    run(job, workspace, workspace / "alone")
    left = [9]

    def die(call: Call) -> None:
        if call.method == "step" and nodes.random.random() < 0.4 and left[0]:
            left[0] -= 1
            raise WorkerLost("killed")

    nodes = InlineNodes(THREE, die, seed=3)
    with pytest.raises(KeyboardInterrupt):
        run_inline(prepare(job, workspace), workspace / "out", nodes, stop_at=4)
    assert len(read_ledger(workspace / "out").entries) == 4
    run_inline(prepare(job, workspace), workspace / "out", nodes)
    lost = 9 - left[0]
    assert lost > 3
    assert read_tree(workspace / "out", but=VARIABLE) == read_tree(workspace / "alone", but=VARIABLE)
    assert sum(line.get("outcome") == "lost" for line in read_history(workspace / "out")) == lost


def test_what_a_worker_delivers_that_was_given_up_changes_nothing(workspace: Path) -> None:
    """It is only cut off: it goes on, and writes shards that others have made by then."""
    job = as_job(TWICE)
    run(job, workspace, workspace / "alone")
    cut_off: list[Any] = []

    def cut(call: Call) -> None:
        for zombie in cut_off:
            for told in zombie.step([], []):
                (zombie.home / told.entry.files[0].path).write_bytes(b"late")
        if call.method == "step" and not cut_off and nodes.random.random() < 0.3:
            cut_off.append(call.actor)
            call.work()  # what it was asked it has done, and nobody hears
            raise WorkerLost("cut off")

    nodes = InlineNodes(THREE, lambda call: None, seed=5)
    nodes.kill = lambda actor: None  # type: ignore[method-assign]

    def once(call: Call) -> None:
        if not cut_off or call.actor not in cut_off:
            nodes.before = lambda call: None
            try:
                cut(call)
            finally:
                nodes.before = once

    nodes.before = once
    run_inline(prepare(job, workspace), workspace / "out", nodes)
    assert len(cut_off) == 1
    assert read_tree(workspace / "out", but=VARIABLE) == read_tree(workspace / "alone", but=VARIABLE)
    assert list(verify(workspace / "out")) == []


def test_who_takes_over_reads_what_the_lost_one_had_answered(workspace: Path) -> None:
    """The spool of a lost worker lies in the folder of the next one before that is greeted, and its shards go there."""
    job = as_job(TWICE)
    seen: list[tuple[str, bytes]] = []
    lost: list[str] = []

    def die(call: Call) -> None:
        home = call.actor.home
        if call.method == "step" and not lost:
            home.mkdir(parents=True, exist_ok=True)
            (home / ".spool").mkdir()
            (home / ".spool/000000-0.gen").write_bytes(b"answered")
            (home / "leases").write_text("3\n4\n")
            lost.append(call.actor.setup.name)
            raise WorkerLost("killed")
        if call.method == "greet" and lost and (home / ".spool/000000-0.gen").exists():
            seen.append((call.actor.setup.name, (home / ".spool/000000-0.gen").read_bytes()))

    nodes = InlineNodes({"a": 1}, die)
    run_inline(prepare(job, workspace), workspace / "out", nodes)
    assert [text for _, text in seen] == [b"answered"]
    assert not (workspace / "out" / WORKERS).exists()


def test_shards_are_delivered_once_and_only_by_who_holds_them() -> None:
    leases = Leases([4, 1, 2, 3])
    assert (leases.take("a", 2), leases.take("b", 1)) == ([1, 2], [3])
    assert leases.take("a", 2) == []
    assert leases.deliver("a", 1)
    assert not leases.deliver("a", 1)
    assert not leases.deliver("b", 2)
    assert leases.lose("a") == [2]
    assert not leases.deliver("a", 2)
    assert leases.left == 3
    leases.inherit("c", [4, 3])
    assert leases.take("c", 2) == [4, 2]
    assert (leases.lose("b"), leases.take("c", 3), leases.take("d", 1)) == ([3], [3], [])


def wrong_greeting(**told: Any) -> InlineNodes:
    nodes = InlineNodes({"a": 1})
    call = nodes.call

    def answer(actor: Any, method: str, *given: Any) -> Call:
        made = call(actor, method, *given)
        if method == "greet":
            work = made.work
            made.work = lambda: {**(seen := work()), **told, "versions": seen["versions"] | told.get("versions", {})}
        return made

    nodes.call = answer  # type: ignore[method-assign]
    return nodes


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"shared": False}, r"node \S+: does not see .*out as this machine does; put `out` on a file system"),
        ({"digest": "other"}, r"node \S+: finds another job there .*put the workspace on a file system"),
        ({"versions": {"python": "3.9.1"}}, r"node \S+: python is 3\.9\.1, elsewhere 3\.\d+\.\d+; install the same"),
        ({"fault": "/x: No such file"}, "run from a folder that all nodes share"),
    ],
    ids=["out", "workspace", "versions", "folder"],
)
def test_a_node_that_is_not_fit_is_told_of_before_anything_is_asked(
    workspace: Path, told: dict[str, Any], words: str
) -> None:
    with pytest.raises(JobError, match=words) as caught:
        run_inline(prepare(as_job(TWICE), workspace), workspace / "out", wrong_greeting(**told))
    assert "\n" not in str(caught.value)
    assert read_ledger(workspace / "out").entries == {}


def test_a_node_that_joins_later_and_is_not_fit_is_left_alone(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = as_job(TWICE)
    nodes = InlineNodes({"a": 1})
    original = nodes.start

    def start(setup: Any, node: str, needs: Any) -> Any:
        # as if the second node saw another directory
        other = replace(setup, token=(setup.token[0], "other")) if node == "late" else setup
        return original(other, node, needs)

    nodes.start = start  # type: ignore[method-assign]

    def join(call: Call) -> None:
        if call.method == "step":
            nodes.has["late"] = 1

    nodes.before = join
    monkeypatch.setattr("factory.runs.cluster.LOOK_S", 0.0)
    run_inline(prepare(job, workspace), workspace / "out", nodes)
    told = capsys.readouterr().err
    assert told.count("does not see") == 1
    assert "its workers are not used" in told
    assert read_ledger(workspace / "out").totals.complete


@pytest.mark.parametrize("seed", [0, 1])
def test_workers_join_and_die_between_rounds_and_turns(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whoever comes late is told of the plan and of whose turn it is as they are by then."""
    job = as_job(MORE["wanted of two"] | {"cluster": {"max_restarts": 50}})
    run(job, workspace, workspace / "alone")
    monkeypatch.setattr("factory.runs.cluster.LOOK_S", 0.0)

    def come_and_go(call: Call) -> None:
        if call.method == "step" and nodes.random.random() < 0.3:
            nodes.has[f"n{len(nodes.has)}"] = 1
            raise WorkerLost("killed")

    nodes = InlineNodes({"a": 1}, come_and_go, seed)
    run_inline(prepare(job, workspace), workspace / "out", nodes)
    assert len(nodes.started) > 5
    assert read_tree(workspace / "out", but=VARIABLE) == read_tree(workspace / "alone", but=VARIABLE)


def test_workers_that_die_one_after_another_end_the_run(workspace: Path) -> None:
    def die(call: Call) -> None:
        if call.method == "open":
            raise WorkerLost("out of memory")

    job = as_job(TWICE | {"cluster": {"max_restarts": 3}})
    told = r"4 workers were lost without a shard between them \(cluster\.max_restarts\), the last: out of memory"
    with pytest.raises(TeacherError, match=told):
        run_inline(prepare(job, workspace), workspace / "out", InlineNodes({"a": 1}, die))


def test_a_task_whose_first_rows_all_fail_stops_the_run(workspace: Path) -> None:
    write_task(workspace, schema=SCHEMA.replace("    most = 10", "    raise ValueError('no')\n    most = 10"))
    job = as_job({"tasks": [{"name": "adding", "count": 200}], "shard_rows": 100})
    with pytest.raises(FactoryError):
        run_inline(prepare(job, workspace), workspace / "out", InlineNodes({"a": 1}))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"cluster": {"workers": 9}},
            "cluster.workers: 9 workers of 1 CPUs each are asked for, and there is room for 3",
        ),
        (
            {"cluster": {"gpus_per_worker": 2}},
            "1 workers of 2 GPUs and 1 CPUs each are asked for, and there is room for 0",
        ),
    ],
)
def test_more_than_there_is_is_refused(workspace: Path, sections: dict[str, Any], words: str) -> None:
    nodes = InlineNodes(dict(THREE))
    rooms = nodes.rooms
    nodes.rooms = lambda needs: {"a": 0} if needs.gpus else rooms(needs)  # type: ignore[method-assign]
    with pytest.raises(JobError, match=words):
        run_inline(prepare(as_job(TWICE | sections), workspace), workspace / "out", nodes)


@pytest.mark.parametrize(
    ("teacher", "cluster", "totals", "gpus"),
    [
        ({"backend": "scripted"}, {}, {"GPU": 8, "CPU": 8}, 0),
        ({"backend": "vllm", "tensor_parallel_size": 2, "replicas": 2}, {}, {"GPU": 8, "CPU": 8}, 4),
        ({"backend": "vllm", "tensor_parallel_size": 2}, {}, {"GPU": 0, "CPU": 8}, 0),
        ({"backend": "vllm", "tensor_parallel_size": 2}, {"gpus_per_worker": 1}, {"GPU": 8, "CPU": 8}, 1),
    ],
)
def test_a_worker_takes_the_gpus_of_its_engines(
    teacher: dict[str, Any], cluster: dict[str, Any], totals: dict[str, float], gpus: int
) -> None:
    assert find_needs(as_job({"teacher": teacher, "cluster": cluster}), totals).gpus == gpus


def test_of_several_teachers_the_largest_says_what_a_worker_takes() -> None:
    teachers = {"big": {"backend": "vllm", "tensor_parallel_size": 4}, "small": {"backend": "vllm"}}
    tasks = [{"name": "adding", "count": 4, "teacher": {"big": 1, "small": 1}}]
    assert find_needs(as_job({"teachers": teachers, "tasks": tasks}), {"GPU": 8, "CPU": 8}).gpus == 4


def test_what_is_not_for_a_cluster_is_refused(workspace: Path) -> None:
    prepared = prepare(as_job(TWICE), workspace)
    with pytest.raises(JobError, match="--ray and --part"):
        require_job(take_part(prepared, Part(1, 2)))
    remote = as_job({"teacher": {"backend": "openai", "model": "m"}})
    with pytest.raises(JobError, match="an endpoint is asked by one machine"):
        require_job(replace(prepared, job=remote))


def test_where_and_how_it_runs_is_no_part_of_what_the_job_is(workspace: Path) -> None:
    from factory.runs.provenance import describe_job

    slow = {"backend": "scripted", "scripted": {"tokens_per_second": 5}}
    jobs = [as_job({"teacher": {"backend": "scripted"}}), as_job({"cluster": {"workers": 3}, "teacher": slow})]
    assert len({describe_job(prepare(job, workspace))["digest"] for job in jobs}) == 1


class StuckNodes(InlineNodes):
    """Now and then a worker lives and comes no further; a clock of its own tells how long."""

    def __init__(self, rooms: dict[str, int], stuck: int, seed: int) -> None:
        super().__init__(rooms, seed=seed)
        self.left, self.now = stuck, 0.0
        self.stuck: list[int] = []
        self.clock = lambda: self.now

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        self.now += seconds
        for call in calls:
            fit = call.method == "step" and id(call.actor) not in self.stuck
            if fit and self.left and self.random.random() < 0.3:
                self.left -= 1
                self.stuck.append(id(call.actor))
        return super().wait([call for call in calls if id(call.actor) not in self.stuck], seconds)


def test_a_worker_that_lives_and_comes_no_further_is_given_up(workspace: Path) -> None:
    job = as_job(TWICE | {"cluster": {"hang_s": 2000.0, "max_restarts": 50}})
    run(job, workspace, workspace / "alone")
    nodes = StuckNodes(THREE, 3, seed=5)
    run_inline(prepare(job, workspace), workspace / "out", nodes)
    assert nodes.left == 0
    assert read_tree(workspace / "out", but=VARIABLE) == read_tree(workspace / "alone", but=VARIABLE)
    assert sum(line.get("outcome") == "lost" for line in read_history(workspace / "out")) == 3
    assert nodes.now > 2000


def test_whoever_answers_comes_further(tmp_path: Path) -> None:
    hand = Hand("a", "node", None, stage="step", call="under way")
    beating = Beating(tmp_path / PULSE, 0)
    assert come_further(hand, tmp_path, 10.0) == 0
    assert come_further(hand, tmp_path, 50.0) == 40
    beating.answer(3)
    assert come_further(hand, tmp_path, 60.0) == 0
    # at most a beat a second: a file on a shared disk
    beating.answer(3)
    assert (tmp_path / PULSE).stat().st_size == 1
    assert come_further(hand, tmp_path, 75.0) == 15
    hand.shards += 1
    assert come_further(hand, tmp_path, 80.0) == 0
    # nobody waits for one that was asked nothing, or whose node has no place for it yet
    assert come_further(replace(hand, call=None), tmp_path, 900.0) == 0
    assert come_further(replace(hand, stage="greet"), tmp_path, 900.0) == 0


def test_a_bound_that_a_start_may_exceed_is_refused(workspace: Path) -> None:
    job = as_job(TWICE | {"cluster": {"hang_s": 600.0}})
    with pytest.raises(JobError, match=r"cluster.hang_s: 600 s, in which an engine may be starting \(teacher.start_"):
        require_job(prepare(job, workspace))


def test_two_workers_read_what_five_have_left(workspace: Path) -> None:
    """Their spools, and they go first for their shards."""
    job, out = as_job(TWICE), workspace / "out"
    run(job, workspace, workspace / "alone")
    left = [out / WORKERS / f"old{number}" for number in range(5)]

    def leave(call: Call) -> None:
        if call.method == "open":
            assert not any(folder.exists() for folder in left)

    nodes = InlineNodes({"a": 2}, leave)
    with pytest.raises(KeyboardInterrupt):
        run_inline(prepare(job, workspace), out, InlineNodes({"a": 1}), stop_at=1)
    pending = list(read_ledger(out).pending())
    for number, folder in enumerate(left):
        (folder / ".spool").mkdir(parents=True)
        (folder / "leases").write_text(f"{pending[number]}\n")
        writer = SpoolWriter(folder / ".spool")
        writer.append(make_generation(number))
        writer.handle.close()
    seen: dict[str, set[int]] = {}

    class Counting(InlineNodes):
        def call(self, actor: Any, method: str, *asked: Any) -> Call:
            if method == "open":
                spool = Spool(actor.home / ".spool").recover()
                seen[actor.setup.name] = {int(name.removeprefix("id")) for name, _ in spool}
            return super().call(actor, method, *asked)

    nodes = Counting({"a": 2}, leave)
    run_inline(prepare(job, workspace), out, nodes)
    assert sorted(number for numbers in seen.values() for number in numbers) == [0, 1, 2, 3, 4]
    assert sorted(map(len, seen.values())) == [2, 3]
    assert read_tree(out, but=VARIABLE) == read_tree(workspace / "alone", but=VARIABLE)


def test_what_another_has_answers_for_is_taken_last() -> None:
    leases = Leases(range(6))
    leases.inherit("a", [0, 1, 2])
    assert leases.take("b", 2) == [3, 4]
    assert leases.take("a", 2) == [0, 1]
    assert leases.take("b", 4) == [5, 2]
