"""Places of replicas: devices or cores that no two of them share, or one line of why there are too few."""

import os
from pathlib import Path
from typing import Any

import pytest

from factory.errors import TeacherError
from factory.job.teacher import TeacherConfig
from factory.teachers.devices import DEVICES, Place, count_replicas, share_out, visible_devices

SMI = """#!/bin/sh
printf '0\\n1\\n2\\n3\\n'
"""


def teacher(**fields: Any) -> TeacherConfig:
    return TeacherConfig.model_validate(fields)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_one_replica_is_told_nothing(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICES, "3,1")
    assert share_out(teacher(), on_cpu) == [Place()]


@pytest.mark.parametrize(
    ("visible", "fields", "groups"),
    [
        ("0,1,2,3", {"replicas": 2}, ["0", "1"]),
        ("0,1,2,3", {"replicas": "auto"}, ["0", "1", "2", "3"]),
        ("0,1,2,3", {"replicas": "auto", "tensor_parallel_size": 2}, ["0,1", "2,3"]),
        ("7, 5 ,3", {"replicas": "auto"}, ["7", "5", "3"]),
        ("0,1,2,3", {"replicas": 2, "engine": {"pipeline_parallel_size": 2}}, ["0,1", "2,3"]),
        ("GPU-a,MIG-b", {"replicas": 2}, ["GPU-a", "MIG-b"]),
        ("0,1,-1,2", {"replicas": "auto"}, ["0", "1"]),
    ],
)
def test_each_replica_has_gpus_of_its_own(
    visible: str, fields: dict[str, Any], groups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICES, visible)
    places = share_out(teacher(**fields), on_cpu=False)
    assert places == [Place({DEVICES: group}) for group in groups]


@pytest.mark.parametrize(
    ("visible", "fields", "told"),
    [
        ("0,1", {"replicas": 3}, "replicas 3: needs 3 GPUs, and 2 are seen here"),
        ("0,1,2", {"replicas": 2, "tensor_parallel_size": 2}, "needs 4 GPUs, 2 each, and 3 are seen here"),
        ("", {"replicas": 2}, 'and 0 are seen here; lower it, or say "auto" for as many as fit'),
        ("-1", {"replicas": 2}, "and 0 are seen here"),
    ],
)
def test_more_replicas_than_gpus_are_refused(
    visible: str, fields: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICES, visible)
    with pytest.raises(TeacherError, match=told):
        share_out(teacher(**fields), on_cpu=False)


@pytest.mark.parametrize(("visible", "size"), [("", 1), ("0", 1), ("0,1,2", 2), ("0", 2)])
def test_auto_with_devices_for_one_leaves_them_to_the_engine(
    visible: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICES, visible)
    assert share_out(teacher(replicas="auto", tensor_parallel_size=size), on_cpu=False) == [Place()]


def test_gpus_that_nobody_names_are_asked_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICES, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == []
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI.replace("printf", "/usr/bin/printf"))
    program.chmod(0o755)
    assert visible_devices() == ["0", "1", "2", "3"]
    program.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(TeacherError, match=r"nvidia-smi does not say which GPUs .*; name them in CUDA_VISIBLE_DEVICES"):
        visible_devices()


def test_on_a_processor_all_cores_are_shared_out_and_none_twice() -> None:
    allowed = os.sched_getaffinity(0)
    for count in range(2, len(allowed) + 1):
        places = share_out(teacher(replicas=count), on_cpu=True)
        cores = [core for place in places for core in place.cores]
        assert (len(places), sorted(cores)) == (count, sorted(allowed))
        assert max(len(p.cores) for p in places) - min(len(p.cores) for p in places) <= 1
    assert share_out(teacher(replicas="auto"), on_cpu=True) == [Place()]


def test_on_a_processor_more_replicas_than_cores_or_with_tensor_parallel_are_refused() -> None:
    with pytest.raises(TeacherError, match=r"replicas 256: there are \d+ cores here, and each replica needs one"):
        share_out(teacher(replicas=256), on_cpu=True)
    with pytest.raises(TeacherError, match="tensor_parallel_size 2 shares them out too; set one of the two to 1"):
        share_out(teacher(replicas=2, tensor_parallel_size=2), on_cpu=True)


@pytest.mark.parametrize(
    ("fields", "count"),
    [({}, 1), ({"replicas": 200}, 200), ({"replicas": "auto"}, 3), ({"replicas": 2, "backend": "scripted"}, 1)],
)
def test_engines_are_counted_without_being_refused(
    fields: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICES, "0,1,2")
    assert count_replicas(teacher(**fields), on_cpu=False) == count
