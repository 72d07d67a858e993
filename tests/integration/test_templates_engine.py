"""Templates and tokenizers on the real engine: several ends under a grammar, closed prompts, base models, ids that no
model has, and what is refused before an engine starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task
from integration_support import Dataset, engine_job, make_dataset
from random_teacher import CHAT_TEMPLATE, random_teacher, train_tokenizer

from factory.errors import TeacherError
from factory.job.job import Job
from factory.runs.run import run

pytestmark = pytest.mark.engine
TEACHER = {"dtype": "float32", "max_num_seqs": 16, "max_model_len": 2048}
BY_THE_TEXT = CHAT_TEMPLATE.replace("enable_thinking is false", "'+' in messages[-1].content")


def copy_teacher(folder: Path, template: str | None, eos: str) -> tuple[str, Any]:
    """The random teacher with another template and another token that its files name as the end; and its tokenizer."""
    shutil.copytree(random_teacher(), folder)
    tokenizer = train_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        config["eos_token_id"] = tokenizer.eos_token_id
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
    return str(folder), tokenizer


def score(folder: Path, model: str, rows: list[dict[str, Any]]) -> Dataset:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sections = {"out": "out", "teacher": TEACHER | {"model": model}, "signals": {"top_k": 4, "verify_rows": 0}}
    job = Job.model_validate(sections | {"transcripts": {"path": str(path), "on_bad_row": "skip"}})
    return Dataset(folder / "scored", run(job, folder, folder / "scored"))


def test_an_answer_ends_in_the_token_that_the_teacher_would_say(tmp_path: Path) -> None:
    """The files name one end, the template writes another: under the grammar the teacher takes the likelier one."""
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = copy_teacher(tmp_path / "model", CHAT_TEMPLATE, eos="<|endoftext|>")
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")]
    job = engine_job(teacher=TEACHER | {"model": model}, sampling={"temperature": 0.0})
    made = make_dataset(tmp_path, job)
    assert made.manifest["teacher"]["details"]["end_token_ids"] == sorted(ends)
    rows = made.rows()
    assert len(rows) > 12
    forward = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    seen = set()
    for row in rows:
        ids = [*row["prompt_token_ids"], *row["completion_token_ids"]]
        with torch.inference_mode():
            logits = forward(torch.tensor([ids[:-1]])).logits[0, -1]
        assert ids[-1] == ends[int(logits[ends].argmax())]
        assert row["answer"] == json.dumps(json.loads(row["answer"]), separators=(",", ":"), ensure_ascii=False)
        seen.add(ids[-1])
    assert seen == set(ends)  # else the test would hold for any


def test_a_prompt_that_the_template_closes_is_answered_at_once(tmp_path: Path) -> None:
    """In one run: the template decides by the text of the user's turn."""
    teacher = TEACHER | {"model": random_teacher(), "chat_template_kwargs": {"chat_template": BY_THE_TEXT}}
    made = make_dataset(tmp_path, engine_job(teacher=teacher))
    closed = [row for row in made.rows() if "+" in row["prompt"][-1]["content"]]
    opened = [row for row in made.rows() if "+" not in row["prompt"][-1]["content"]]
    assert min(len(closed), len(opened)) > 2
    assert {(row["answer_start"], row["reasoning"]) for row in closed} == {(0, None)}
    assert all(row["reasoning"] and row["answer_start"] > 1 for row in opened)
    assert made.totals.errors == 0


def test_a_base_model_scores_ids_and_refuses_those_it_does_not_have(tmp_path: Path) -> None:
    model, tokenizer = copy_teacher(tmp_path / "model", None, eos="<|endoftext|>")
    good = {"prompt_token_ids": tokenizer.encode("2 + 2 ="), "completion_token_ids": tokenizer.encode(" 4")}
    bad = [
        {"prompt_token_ids": [5, 6], "completion_token_ids": [8, 99_999, 9]},
        {"prompt_token_ids": [5, 6], "completion_token_ids": [8, 2048]},
        {"prompt_token_ids": [5, 2**31 - 1], "completion_token_ids": [8]},
        {"prompt_token_ids": [5, -1], "completion_token_ids": [8]},
        {"prompt_token_ids": [5, 2**40], "completion_token_ids": [8]},
    ]
    scored = score(tmp_path, model, [good, *bad, good | {"completion_token_ids": [2047]}])
    assert [row["completion_token_ids"] for row in scored.rows()] == [good["completion_token_ids"], [2047]]
    assert {row["stage"] for row in scored.rows("rejected")} == {"prompt"}
    assert scored.totals.rejected == len(bad)
    assert len(list(tmp_path.glob("scored/runs.jsonl"))) == 1
    assert "died" not in (tmp_path / "scored/engine.log").read_text(encoding="utf-8")


def test_a_base_model_scores_texts_as_they_stand(tmp_path: Path) -> None:
    model, tokenizer = copy_teacher(tmp_path / "model", None, eos="<|endoftext|>")
    scored = score(tmp_path, model, [{"prompt": "2 + 2 =", "completion": " 4\n"}])
    (row,) = scored.rows()
    assert (row["answer"], row["reasoning"], row["text"]) == (" 4\n", None, " 4\n")
    assert row["prompt_token_ids"] + row["completion_token_ids"] == tokenizer.encode("2 + 2 = 4\n")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            "{% for m in messages if m.role != 'system' %}" + CHAT_TEMPLATE[len("{% for message in messages %}") :],
            "drops",
        ),
        (CHAT_TEMPLATE.partition("{% if add_generation_prompt")[0], "ignores add_generation_prompt"),
        (None, "has no chat template"),
    ],
)
def test_a_template_that_would_make_wrong_prompts_is_refused_before_the_engine_starts(
    template: str | None, told: str, tmp_path: Path
) -> None:
    template = template and template.replace("message.", "m.").replace("for message in", "for m in")
    model, _ = copy_teacher(tmp_path / "model", template, eos="<|im_end|>")
    with pytest.raises(TeacherError, match=told) as error:
        make_dataset(tmp_path, engine_job(teacher=TEACHER | {"model": model}))
    assert "\n" not in str(error.value)
    assert "vllm" not in (tmp_path / "dataset/engine.log").read_text(encoding="utf-8").lower()


def test_a_judge_that_does_not_take_its_questions_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    """The teacher's tasks have a system turn and a judge's question has none."""
    needs_system = "{% if messages[0].role != 'system' %}{{ raise_exception('Begin with a system turn') }}{% endif %}"
    model, _ = copy_teacher(tmp_path / "model", needs_system + CHAT_TEMPLATE, eos="<|im_end|>")
    write_task(tmp_path, judge_j2="Grade {{ answer }}.")
    sections = {"teacher": {"backend": "scripted"}, "judge": {"teacher": TEACHER | {"model": model}}}
    with pytest.raises(TeacherError, match=r"^judge\.teacher\.model: .*adding\.judge: Begin with a system turn"):
        run(engine_job(**sections), tmp_path, tmp_path / "dataset")
    assert "vllm" not in (tmp_path / "dataset/.judge/engine.log").read_text(encoding="utf-8").lower()
    assert not (tmp_path / "dataset/data").exists()


def test_transcripts_that_no_template_takes_are_refused_before_the_engine_starts(tmp_path: Path) -> None:
    model, _ = copy_teacher(tmp_path / "model", "{{ raise_exception('No turns of users') }}", eos="<|im_end|>")
    row = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    with pytest.raises(TeacherError, match="No turns of users"):
        score(tmp_path, model, [row, row])
    assert "vllm" not in (tmp_path / "scored/engine.log").read_text(encoding="utf-8").lower()
