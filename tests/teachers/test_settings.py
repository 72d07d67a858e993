"""vLLM's own settings: what would make kept signals wrong is refused with its reason, all else goes through."""

import os
import subprocess
import sys
from typing import Any

import pytest

from factory.errors import TeacherError
from factory.job.job import Job
from factory.teachers.models import ModelShape, resolve_signals
from factory.teachers.settings import (
    BRIEFLY_SPINNING,
    CORRUPTING,
    HARMLESS,
    OURS,
    SLEEPING_THREADS,
    SOUND,
    engine_settings,
    is_busy,
    require_sound,
    wait_settings,
)

SHAPE = ModelShape(1000, 4, 64, window=2048, kv_values_per_token=64, dtype="bfloat16")
TOP_K = {"top_k": 5}
STATES = {"top_k": 0, "hidden_layers": [1]}
NOTHING = {"top_k": 0}


def engine_job(engine: dict[str, Any], signals: dict[str, Any]) -> Job:
    tasks = [{"name": "adding", "count": 1}]
    return Job.model_validate({"out": "o", "teacher": {"engine": engine}, "signals": signals, "tasks": tasks})


@pytest.mark.parametrize(
    ("engine", "signals", "told"),
    [
        ({"enable_prefix_caching": True}, STATES, "a cached prefix is not computed again.*here signals.hidden_layers"),
        ({"enable_prefix_caching": True}, TOP_K | {"positions": "all"}, 'here signals.positions = "all"'),
        ({"enable_prefix_caching": True}, TOP_K | {"capture": "prefill"}, 'here signals.capture = "prefill"'),
        ({"enforce_eager": False}, STATES, "hooks do not fire.*keep no hidden states"),
        ({"async_scheduling": True}, TOP_K, "sampled ids are not known yet.*signals.top_k = 0"),
        ({"speculative_config": {"num_speculative_tokens": 2}}, TOP_K, "throws some away"),
        ({"pipeline_parallel_size": 2}, TOP_K, "use teacher.tensor_parallel_size"),
        ({"kv_sharing_fast_prefill": True}, STATES, "the last layers are skipped"),
        ({"model": "x"}, NOTHING, "teacher.engine.model: has a place of its own; set teacher.model"),
        ({"hf_token": "x"}, NOTHING, "HF_TOKEN"),
        ({"worker_cls": "mine.Worker"}, TOP_K, "not a setting that is known to leave signals right"),
        ({"max_num_batch_tokens": 5}, NOTHING, r"\(known: .*max_num_batched_tokens"),
    ],
)
def test_what_would_make_signals_wrong_is_refused(engine: dict[str, Any], signals: dict[str, Any], told: str) -> None:
    job = engine_job(engine, signals)
    with pytest.raises(TeacherError, match=told) as error:
        resolve_signals(job, SHAPE)
    assert "\n" not in str(error.value)
    assert next(iter(engine)) in str(error.value)


@pytest.mark.parametrize(
    ("engine", "signals"),
    [
        ({"enable_prefix_caching": True}, TOP_K),
        ({"enable_prefix_caching": False}, STATES),
        ({"enforce_eager": False}, TOP_K),
        ({"max_num_batched_tokens": 512, "enable_chunked_prefill": True}, TOP_K | STATES),
        ({name: known.sound for name, known in CORRUPTING.items()}, TOP_K | STATES),
        (dict.fromkeys(CORRUPTING, 1), NOTHING),
    ],
)
def test_what_leaves_them_right_goes_through(engine: dict[str, Any], signals: dict[str, Any]) -> None:
    require_sound(engine_job(engine, signals), on_cpu=False)


def test_transcripts_are_a_prefill_too() -> None:
    job = Job.model_validate(
        {"out": "o", "teacher": {"engine": {"enable_prefix_caching": True}}, "transcripts": {"path": "rows.jsonl"}}
    )
    with pytest.raises(TeacherError, match=r"here \[transcripts\]"):
        require_sound(job, on_cpu=True)


def test_a_processor_cannot_split_prompts_that_have_seeds() -> None:
    engine = {"enable_chunked_prefill": True}
    with pytest.raises(TeacherError, match="cannot split the prompt of a request that has a seed"):
        require_sound(engine_job(engine, TOP_K), on_cpu=True)
    transcripts = {"out": "o", "teacher": {"engine": engine}, "transcripts": {"path": "rows.jsonl"}}
    require_sound(Job.model_validate(transcripts), on_cpu=True)


def test_capture_gets_what_it_needs_and_a_plain_job_what_the_engine_likes() -> None:
    assert engine_settings({}, captures=True, on_cpu=False) == SOUND
    assert engine_settings({"enforce_eager": False}, captures=True, on_cpu=False)["enforce_eager"] is False
    assert engine_settings({}, captures=False, on_cpu=False) == {}
    assert engine_settings({}, captures=False, on_cpu=True) == {"enforce_eager": True, "enable_chunked_prefill": False}


@pytest.mark.engine  # imports vLLM: not for the fast tests
def test_every_name_is_one_of_the_engines_arguments() -> None:
    import dataclasses

    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    assert known >= HARMLESS | CORRUPTING.keys() | OURS.keys() | SOUND.keys()


def test_threads_sleep_where_the_machine_is_shared_and_spin_briefly_where_it_is_not_known_to_be() -> None:
    assert wait_settings(shares=True) == SLEEPING_THREADS
    assert wait_settings(shares=False) in (BRIEFLY_SPINNING, SLEEPING_THREADS)


def test_a_machine_that_others_work_on_is_busy() -> None:
    spin = "import os, time\nwhile os.getppid() != 1: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count() or 1)]
    try:
        assert any(is_busy() for _ in range(20)), "they take a while to start"
        assert wait_settings(shares=False) == SLEEPING_THREADS
    finally:
        for other in others:
            other.kill()
            other.wait()
