"""vLLM's own settings: what would make kept signals wrong is refused with its reason, all else goes through."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factory.errors import TeacherError
from factory.job.job import Job
from factory.teachers.given_up import engine_settings, list_given_up, table_of_kinds
from factory.teachers.models import ModelShape, resolve_signals
from factory.teachers.settings import (
    BRIEFLY_SPINNING,
    CORRUPTING,
    HARMLESS,
    OURS,
    SLEEPING_THREADS,
    is_busy,
    require_sound,
    wait_settings,
)

SHAPE = ModelShape(1000, 4, 64, window=2048, kv_values_per_token=64, dtype="bfloat16")
TOP_K = {"top_k": 5}
STATES = {"top_k": 0, "hidden_layers": [1]}
EXPERTS = {"top_k": 0, "experts": True}
ATTENTION = {"attention": {"layers": [1]}}
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
        ({"enforce_eager": False}, EXPERTS, "hooks do not fire.*keep no experts or attention.*signals.experts"),
        ({"enforce_eager": False}, STATES | ATTENTION, r"hooks do not fire.*\(here signals.attention\)"),
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
        ({"enforce_eager": False, "async_scheduling": True}, TOP_K | STATES),
        ({"max_num_batched_tokens": 512, "enable_chunked_prefill": True}, TOP_K | STATES),
        ({name: known.sound for name, known in CORRUPTING.items()}, TOP_K | STATES | EXPERTS),
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


NO_PREFIX = {"enable_prefix_caching": False}
ON_CPU = {"enforce_eager": True, "enable_chunked_prefill": False}


@pytest.mark.parametrize(
    ("signals", "on_gpu", "on_cpu"),
    [
        (NOTHING, {}, ON_CPU),
        (TOP_K, {}, ON_CPU | NO_PREFIX),
        (TOP_K | {"positions": "answer", "keep": "sampled"}, {}, ON_CPU | NO_PREFIX),
        (TOP_K | {"positions": "all"}, NO_PREFIX, ON_CPU | NO_PREFIX),
        (TOP_K | {"capture": "prefill"}, NO_PREFIX, ON_CPU | NO_PREFIX),
        (STATES, NO_PREFIX, ON_CPU | NO_PREFIX),
        (EXPERTS, NO_PREFIX | {"enforce_eager": True}, ON_CPU | NO_PREFIX),
        (TOP_K | ATTENTION, NO_PREFIX | {"enforce_eager": True}, ON_CPU | NO_PREFIX),
    ],
)
def test_only_what_the_kept_signals_need_is_given_up(
    signals: dict[str, Any], on_gpu: dict[str, Any], on_cpu: dict[str, Any]
) -> None:
    job = engine_job({}, signals)
    assert engine_settings(job, on_cpu=False) == on_gpu
    assert engine_settings(job, on_cpu=True) == on_cpu
    for settings in (on_gpu, on_cpu):  # none of them is refused when a job says it itself
        require_sound(engine_job(settings, signals), on_cpu=True)


def test_what_a_job_says_itself_is_not_given_up_for_it() -> None:
    job = engine_job({"enforce_eager": False, "enable_prefix_caching": False}, TOP_K)
    assert engine_settings(job, on_cpu=True) == ON_CPU | NO_PREFIX | {"enforce_eager": False}
    assert [one.setting for one in list_given_up(job, on_cpu=True)] == ["enable_chunked_prefill"]


def test_samples_of_one_prompt_share_its_prefill_where_nothing_of_it_is_kept() -> None:
    tasks = [{"name": "adding", "count": 1}]
    for signals, shares in ((TOP_K, True), (STATES, False)):
        job = Job.model_validate({"out": "o", "samples": {"n": 4}, "signals": signals, "tasks": tasks})
        assert ("enable_prefix_caching" not in engine_settings(job, on_cpu=True)) is shares


def test_each_default_that_is_given_up_names_the_reason_and_the_key_that_asks_for_it() -> None:
    told = [str(one) for one in list_given_up(engine_job({}, STATES | EXPERTS), on_cpu=False)]
    assert told == [
        "enforce_eager = True: hooks do not fire inside compiled code and captured graphs (signals.experts)",
        "enable_prefix_caching = False: a cached prefix is not computed again, so its positions have no hidden states "
        "and no logits (signals.hidden_layers, signals.experts)",
    ]


def test_the_docs_have_the_table_of_what_each_kind_of_job_gives_up() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    table = table_of_kinds()
    assert len(table) > 8
    assert "\n".join(table) in docs


@pytest.mark.engine  # imports vLLM: not for the fast tests
def test_every_name_is_one_of_the_engines_arguments() -> None:
    import dataclasses

    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    assert known >= HARMLESS | CORRUPTING.keys() | OURS.keys() | ON_CPU.keys()


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
