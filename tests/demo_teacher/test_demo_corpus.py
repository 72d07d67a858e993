"""The demo teacher's corpus: examples are what the factory sends and accepts, and training never meets evaluation."""

import json
import random
import shutil
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import pytest
from demo_support import shared_corpus, shared_tokenizer

from factory.demo_teacher.corpus import EVALUATION_ROWS, EVALUATION_SEED, Corpus, Example, encode, training_seed
from factory.demo_teacher.evaluate import evaluation_job
from factory.demo_teacher.recipe import TASK_WEIGHTS, TASKS, Draw, Recipe, draw_step, draw_tokenizer_examples
from factory.hashing import canonical_json, derive_seed
from factory.records import Sampling
from factory.runs.plan import make_plan
from factory.tasks.calls import read_answer
from factory.tasks.render import open_renderer
from factory.tasks.tasks import builtin_root, discover
from factory.teachers.prompt_ids import PromptEncoder
from factory.teachers.reasoning import find_markers
from factory.texts.calls import compose_reply, read_calls

MOST_ROWS = (EVALUATION_ROWS - Recipe().validation_examples) // 3  # of a task and level, in one evaluation


def draws_of_a_run() -> list[Draw]:
    """Every training example of the whole recipe, those of the tokenizer first."""
    recipe, levels = Recipe(), shared_corpus().levels
    steps = chain.from_iterable(draw_step(recipe, step, levels) for step in range(recipe.steps))
    return [*draw_tokenizer_examples(recipe, levels), *steps]


def evaluated(rows: int) -> list[tuple[str, str, int]]:
    """Task, level and seed of every row of an evaluation, as the plan makes them."""
    plan = make_plan(evaluation_job("demo", rows), discover(builtin_root()).tasks)
    planned = chain.from_iterable(plan.rows(shard) for shard in range(plan.shards))
    return [(row.task, row.level, row.seed) for row in planned]


def content(task: str, level: str, seed: int) -> str:
    """A scenario as canonical JSON."""
    known = TASKS_BY_NAME[task]
    assert known.sample is not None
    return canonical_json(known.sample(random.Random(seed), level).model_dump(mode="json"))


TASKS_BY_NAME = discover(builtin_root()).tasks


def test_no_seed_of_an_evaluation_is_one_of_training() -> None:
    # of 31 bits some meet: those of one task and level would be the same scenario, and are left out of training
    trained = {(draw.task, draw.level, training_seed(draw)) for draw in draws_of_a_run()}
    rows = evaluated(MOST_ROWS)
    recipe = Recipe()
    drawn = 3 * len(TASKS) * recipe.tokenizer_examples + recipe.steps * recipe.step_examples
    assert len(trained) >= drawn - 10
    assert len(rows) == MOST_ROWS * 3 * len(TASKS)
    assert trained.isdisjoint(rows)
    assert {seed for _, _, seed in rows} <= shared_corpus().evaluation_seeds


def test_no_validation_example_is_evaluated_or_trained_on() -> None:
    recipe = Recipe()
    numbers = range(EVALUATION_ROWS - recipe.validation_examples, EVALUATION_ROWS)
    levels = shared_corpus().levels
    cells = [(task, level, number) for task in TASKS for level in levels[task] for number in numbers]
    watched = {(task, level, derive_seed(EVALUATION_SEED, task, level, number)) for task, level, number in cells}
    assert len(watched) == 3 * len(TASKS) * recipe.validation_examples
    assert watched.isdisjoint(evaluated(MOST_ROWS))
    assert watched.isdisjoint((draw.task, draw.level, training_seed(draw)) for draw in draws_of_a_run())


def test_no_scenario_of_an_evaluation_says_the_same_as_one_of_training() -> None:
    draws = draws_of_a_run()
    sample = random.Random(0).sample(draws, 1200)
    trained = {content(draw.task, draw.level, training_seed(draw)) for draw in sample}
    assert len(trained) >= 1199
    assert [row for row in evaluated(50) if content(*row) in trained] == []


def test_a_training_example_whose_seed_is_evaluated_is_left_out() -> None:
    corpus = shared_corpus()
    draw = Draw("scheduling", "easy", 5)
    assert corpus.example(draw) is not None
    corpus.evaluation_seeds.add(training_seed(draw))
    try:
        assert corpus.example(draw) is None
        assert list(corpus.examples([draw])) == []
    finally:
        corpus.evaluation_seeds.remove(training_seed(draw))


def test_no_example_comes_twice_in_a_run_and_every_task_and_level_comes() -> None:
    draws = draws_of_a_run()
    assert len(set(draws)) == len(draws)
    assert {(d.task, d.level) for d in draws} == {(t, level) for t in TASKS for level in shared_corpus().levels[t]}


def test_easy_comes_first_and_then_tasks_and_levels_by_their_weights() -> None:
    recipe, levels = Recipe(steps=1000, easy_only=0.08), shared_corpus().levels
    easy = int(recipe.easy_only * recipe.steps)
    assert {draw.level for step in range(easy) for draw in draw_step(recipe, step, levels)} == {"easy"}
    seen = [draw for step in range(easy + 1, easy + 401) for draw in draw_step(recipe, step, levels)]
    tasks, drawn = Counter(draw.task for draw in seen), Counter(draw.level for draw in seen)
    assert {task: tasks[task] / len(seen) for task in TASKS} == pytest.approx(TASK_WEIGHTS, abs=0.02)
    shares = [drawn[level] / len(seen) for level in ("easy", "medium", "hard")]
    assert shares == pytest.approx(recipe.level_weights, abs=0.02)
    assert sum(TASK_WEIGHTS.values()) == pytest.approx(1)


def test_the_learning_rate_warms_up_holds_and_falls_to_zero() -> None:
    recipe = Recipe()
    rates = [recipe.learning_rate_at(step) for step in range(recipe.steps)]
    assert rates[0] == pytest.approx(recipe.learning_rate / recipe.warmup_steps)
    assert rates[recipe.warmup_steps : int(recipe.decay * recipe.steps)] == [recipe.learning_rate] * (
        int(recipe.decay * recipe.steps) - recipe.warmup_steps
    )
    falling = rates[int(recipe.decay * recipe.steps) :]
    assert falling == sorted(falling, reverse=True)
    assert 0 < falling[-1] < recipe.learning_rate / 100


def examples() -> list[Example]:
    corpus = shared_corpus()
    return [corpus.held_out(task, level, 0) for task in TASKS for level in corpus.levels[task]]


@pytest.mark.parametrize("with_system", [False, True])
def test_an_example_is_a_prompt_then_its_reasoning_and_answer(with_system: bool) -> None:
    tokenizer = shared_tokenizer()
    for example in examples():
        ids, prompt = encode(tokenizer, example, with_system)
        text = tokenizer.decode(ids[prompt:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert text == f"<think>{example.reasoning}</think>{example.answer}<|im_end|>"
        assert (example.system in tokenizer.decode(ids[:prompt])) == with_system


def test_the_prompt_of_an_example_is_what_the_teacher_will_be_sent() -> None:
    """With `<think>`, the first token that is learnt, it is the engine's prompt, id for id."""
    tokenizer = shared_tokenizer()
    encoder = PromptEncoder(tokenizer, find_markers(tokenizer, "auto"), {})
    for row in islice(make_plan(evaluation_job("demo", 2), TASKS_BY_NAME).rows(0), 6 * len(TASKS)):
        sent = open_renderer(TASKS_BY_NAME[row.task], Sampling()).render(row)
        ids, prompt = encode(tokenizer, shared_corpus().solve(row.task, row.level, row.seed), with_system=True)
        assert ids[: prompt + 1] == encoder.encode_prompt(sent.messages, sent.tools).ids
        tools = json.loads(sent.tools) if sent.tools else None
        rendered = tokenizer.apply_chat_template(
            list(sent.messages), tools=tools, tokenize=False, add_generation_prompt=True
        )
        assert ids[: prompt + 1] == tokenizer.encode(rendered, add_special_tokens=False)


def test_every_answer_that_is_learnt_is_right() -> None:
    for row in islice(make_plan(evaluation_job("demo", 3), TASKS_BY_NAME).rows(0), 9 * len(TASKS)):
        task = TASKS_BY_NAME[row.task]
        prompt = open_renderer(task, Sampling()).render(row)
        example = shared_corpus().solve(row.task, row.level, row.seed)
        text = example.answer
        if task.form == "calls":
            content, calls = read_calls(text)
            text = compose_reply(content, [(call.name, json.loads(call.arguments)) for call in calls])
        assert task.check(task.Scenario.model_validate_json(prompt.scenario), read_answer(task, text)) == []
        assert "</think>" not in example.reasoning


def test_the_digest_names_what_decides_an_example_and_no_more(tmp_path: Path) -> None:
    for name in ("prompts", "schemas"):
        shutil.copytree(builtin_root() / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = Corpus(tmp_path).digest()
    assert before == shared_corpus().digest()
    (tmp_path / "prompts/scheduling/judge.j2").write_text("Another rubric.")
    assert Corpus(tmp_path).digest() == before
    for name in ("_names.py", "scheduling.words.toml"):
        with (tmp_path / "schemas" / name).open("a") as file:
            file.write("\n")
        assert Corpus(tmp_path).digest() != before
        before = Corpus(tmp_path).digest()
    (tmp_path / "prompts/scheduling/user_note.j2").write_text("{{ scenario.topic }}")
    assert Corpus(tmp_path).digest() != before
