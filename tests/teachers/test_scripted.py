"""The scripted teacher: deterministic, aligned, and consistent with a whole distribution at every position."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SCHEMA, write_task

from factory.errors import TeacherError
from factory.job.job import Job
from factory.quality.validate import find_damage
from factory.records import Attempt, Generation, Prompt, Repetition
from factory.runs.prepare import prepare
from factory.signals import Logprobs
from factory.tasks.tasks import load_task
from factory.teachers import open_teacher
from factory.teachers.scripted import (
    SHAPE,
    STOP,
    THINK_END,
    VOCAB,
    ScriptedTeacher,
    decode,
    encode,
    find_loop_end,
    invent_answer,
)

MakeJob = Callable[..., Job]


@pytest.fixture
def start(workspace: Path, make_job: MakeJob) -> Callable[..., tuple[ScriptedTeacher, list[Prompt]]]:
    """A scripted teacher for a job, and the job's prompts."""

    def start(faults: dict[str, float] | None = None, **sections: Any) -> tuple[ScriptedTeacher, list[Prompt]]:
        teacher = {"backend": "scripted", "scripted": faults or {}, "in_flight": 5}
        job = make_job(**{"teacher": teacher, "shard_rows": 100} | sections)
        prepared = prepare(job, workspace)
        prompts = [prepared.render(row) for row in prepared.plan.rows(0)]
        return ScriptedTeacher(job, prepared.tasks), [prompt for prompt in prompts if isinstance(prompt, Prompt)]

    return start


Start = Callable[..., tuple[ScriptedTeacher, list[Prompt]]]


def kept(generation: Generation) -> Logprobs:
    assert generation.logprobs is not None
    return generation.logprobs


def same(one: Generation, two: Generation) -> bool:
    arrays = [(kept(g).topk_TK, kept(g).entropy_T, g.completion_token_ids) for g in (one, two)]
    return all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))


def test_the_same_prompt_and_seed_get_the_same_generation(start: Start) -> None:
    (one, prompts), (two, _) = start(), start()
    assert all(same(one.answer(prompt), two.answer(prompt)) for prompt in reversed(prompts))


def test_another_attempt_draws_again(start: Start) -> None:
    teacher, prompts = start()
    first = teacher.answer(prompts[0])
    again = prompts[0].again(Attempt(prompts[0].seed, "parse", "invalid_json", (), ""))
    assert not same(first, teacher.answer(again))
    assert (teacher.answer(again).prompt_id, teacher.answer(again).attempt) == (prompts[0].id, 1)


def test_ids_decode_to_exactly_what_was_written(start: Start) -> None:
    teacher, prompts = start()
    for prompt in prompts:
        generation = teacher.answer(prompt)
        ids = generation.completion_token_ids.tolist()
        assert generation.text == decode(ids) == f"{generation.reasoning}</think>{generation.answer_text}<|end|>"
        assert ids[generation.answer_start - 1] == THINK_END
        assert ids[-1] == STOP
        assert decode(generation.prompt_token_ids.tolist()) == "\n".join(m["content"] for m in prompt.messages)


@pytest.mark.parametrize("text", ["", "plain", "né 日本 🛫", "\x00\x7f"])
def test_any_text_survives_its_ids(text: str) -> None:
    assert decode(encode(text)) == text


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert decode(encode("a\ud800b")) == "a?b"


@pytest.mark.parametrize("k", [1, 4, VOCAB])
def test_logprobs_belong_to_one_whole_distribution(start: Start, k: int) -> None:
    teacher, prompts = start(signals={"top_k": k, "hidden_layers": []})
    generation = teacher.answer(prompts[0])
    signals, ids_T = kept(generation), generation.completion_token_ids
    assert signals.topk_ids_TK.shape == signals.topk_TK.shape == (len(ids_T), k)
    mass_T = np.exp(signals.topk_TK.astype(np.float64)).sum(1) + np.exp(signals.tail_T.astype(np.float64))
    assert np.allclose(mass_T, 1, atol=2e-3)
    assert (np.diff(signals.topk_TK.astype(np.float32), axis=1) <= 0).all()
    assert ((signals.entropy_T > 0) & (signals.entropy_T < np.log(VOCAB))).all()
    for t, token in enumerate(ids_T):
        if token in signals.topk_ids_TK[t]:
            place = signals.topk_ids_TK[t].tolist().index(token)
            assert signals.topk_TK[t, place] == pytest.approx(signals.sampled_T[t], abs=0.02)
    assert find_damage(generation) is None


def test_hidden_states_have_a_row_for_each_input_token(start: Start) -> None:
    teacher, prompts = start(signals={"top_k": 0, "hidden_layers": [0, -1, 2]})
    generation = teacher.answer(prompts[0])
    states = generation.hidden_states
    assert states is not None
    inputs = len(generation.prompt_token_ids) + len(generation.completion_token_ids) - 1
    assert states.layers == (0, 4, 2)
    assert states.bits_NLH.shape == (inputs, 3, SHAPE.hidden_size)
    assert generation.logprobs is None
    assert find_damage(generation) is None


def test_the_right_answer_is_given_unless_it_is_told_to_be_wrong(start: Start) -> None:
    for faults, right in (({}, 20), ({"wrong": 1.0}, 0)):
        teacher, prompts = start(faults)
        answers = [(json.loads(p.scenario), json.loads(teacher.answer(p).answer_text)) for p in prompts]
        assert sum(s["a"] + s["b"] == answer["total"] for s, answer in answers) == right


def test_each_fault_looks_like_the_real_one(start: Start) -> None:
    def answer(fault: str) -> Generation:
        teacher, prompts = start({fault: 1.0})
        return teacher.answer(prompts[0])

    whole = answer("no_reasoning")
    assert (whole.reasoning, whole.answer_start, whole.finish_reason) == (None, 0, "stop")
    assert json.loads(whole.answer_text)
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer("bad_json").answer_text)
    cut = answer("truncated")
    assert cut.finish_reason == "length"
    assert STOP not in cut.completion_token_ids
    assert find_damage(cut) is None
    crash = answer("crash")
    assert (crash.failure, len(crash.completion_token_ids)) == ("engine_crash", 0)
    assert len(crash.prompt_token_ids) > 0


def test_an_answer_longer_than_max_tokens_is_cut_there(start: Start) -> None:
    teacher, prompts = start(sampling={"max_tokens": 9})
    for prompt in prompts:
        generation = teacher.answer(prompt)
        assert (len(generation.completion_token_ids), generation.finish_reason) == (9, "length")
        assert generation.answer_start <= 9


def test_it_answers_what_was_submitted_and_then_has_nothing_more(start: Start) -> None:
    teacher, prompts = start()
    assert teacher.collect() == []
    assert teacher.room() == 5
    for prompt in prompts[:5]:
        teacher.submit(prompt)
    assert teacher.room() == 0
    assert [teacher.collect()[0].prompt_id for _ in range(5)] == [prompt.id for prompt in prompts[:5]]
    assert teacher.collect() == []


def test_it_is_held_to_the_limits_of_its_own_shape(start: Start) -> None:
    with pytest.raises(TeacherError, match=rf"signals\.top_k {VOCAB + 1}: more than the model's vocabulary"):
        start(signals={"top_k": VOCAB + 1})
    with pytest.raises(TeacherError, match=r"signals\.hidden_layers \[5\]"):
        start(signals={"hidden_layers": [5]})


def test_it_opens_by_the_jobs_backend(workspace: Path, make_job: MakeJob) -> None:
    job = make_job()
    tasks = prepare(job, workspace).tasks
    with open_teacher(job, tasks.values(), [], workspace / "out") as teacher:
        assert teacher.info.backend == "scripted"
        assert teacher.signals.layers == (2, 4)


def test_invented_answers_fit_the_schema_and_follow_their_seed(workspace: Path) -> None:
    task, _ = load_task(workspace, "adding")
    assert task is not None
    texts = [invent_answer(task, seed) for seed in range(20)]
    assert len(set(texts)) == 20
    assert [invent_answer(task, seed) for seed in range(20)] == texts
    for text in texts:
        task.Answer.model_validate_json(text)


def test_an_answer_that_cannot_be_invented_is_an_empty_object(workspace: Path) -> None:
    impossible = SCHEMA.replace("    words: str", "    never: int = Field(ge=5, le=4)\n    words: str")
    write_task(workspace, schema=impossible)
    task, problems = load_task(workspace, "adding")
    assert task is not None, problems
    assert invent_answer(task, 1) == "{}"


@pytest.mark.parametrize(
    ("ids", "rule", "end"),
    [
        ([1] * 20, (4, 1, 16), 16),
        ([1] * 15, (4, 1, 16), None),
        ([5, 1, 2, 1, 2, 1, 2, 9], (4, 1, 3), 7),
        ([5, 1, 2, 1, 2, 1, 2, 9], (1, 1, 3), None),
        ([1, 1, 1, 1, 1, 1, 1, 1], (4, 2, 3), 6),
        ([1, 1, 2, 1, 1, 2, 1, 1, 2], (4, 2, 3), 9),
        ([], (4, 1, 2), None),
    ],
)
def test_a_loop_ends_where_vllms_own_rule_finds_it(ids: list[int], rule: tuple[int, int, int], end: int | None) -> None:
    assert find_loop_end(ids, Repetition(*rule)) == end
    assert find_loop_end(ids, None) is None


@pytest.mark.engine  # imports vLLM: not for the fast tests
def test_loops_are_found_exactly_as_by_vllm() -> None:
    from vllm.sampling_params import RepetitionDetectionParams
    from vllm.v1.core.sched.utils import check_sequence_repetition

    rng = random.Random(0)
    found = 0
    for _ in range(2000):
        ids = [rng.randrange(2) for _ in range(rng.randrange(60))]
        least = rng.randrange(1, 5)
        rule = Repetition(rng.randrange(least, 8), least, rng.randrange(2, 6))
        params = RepetitionDetectionParams(**asdict(rule))
        ends = (end for end in range(1, len(ids) + 1) if check_sequence_repetition(ids[:end], params))
        expected = next(ends, None)
        assert find_loop_end(ids, rule) == expected
        found += expected is not None
    assert 200 < found < 1900


def test_a_loop_is_stopped_where_the_job_says_so_and_has_no_arrays(start: Start) -> None:
    stop = {"max_pattern_size": 40, "min_count": 5}
    for sampling, why in (({}, "stop"), ({"stop_repetition": stop}, "repetition")):
        teacher, prompts = start({"loop": 1.0}, sampling=sampling | {"max_tokens": 4000})
        generations = [teacher.answer(prompt) for prompt in prompts]
        assert {generation.finish_reason for generation in generations} == {why}
        assert all((generation.logprobs is None) == (why == "repetition") for generation in generations)
    assert all(STOP not in generation.completion_token_ids for generation in generations)
