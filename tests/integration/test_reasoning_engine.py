"""Every row ends in an answer, whatever its markers are and wherever its reasoning stops: on the real engine, with
every kept number against a plain transformers forward over the row's ids."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integration_support import Dataset, engine_job, make_dataset
from random_teacher import random_teacher, train_tokenizer

from factory.dataset.entries import Totals

pytestmark = pytest.mark.engine
BUDGET, MOST, ROWS = 24, 160, 16
SPELT = {"start": "<reason>", "end": "</reason>\n"}
SAMPLING = {"temperature": 1.0, "max_tokens": MOST, "thinking_tokens": BUDGET}


def open_forward(dataset: Dataset) -> Callable[[dict[str, Any]], tuple[torch.Tensor, list[torch.Tensor]]]:
    """Log-probabilities [T, V] of a row's completion and its hidden states [N, H], by plain transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(dataset.manifest["teacher"]["model"], dtype=torch.float32)

    @torch.inference_mode()
    def forward(row: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        ids = row["prompt_token_ids"] + row["completion_token_ids"]
        output = model(torch.tensor([ids]), output_hidden_states=True)
        logits = output.logits[0, len(row["prompt_token_ids"]) - 1 : -1]
        return torch.log_softmax(logits, -1), [h[0, :-1] for h in output.hidden_states]

    return forward


def stopping_teacher(folder: Path) -> str:
    """The random teacher, only that it often says the token that ends a turn."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(random_teacher(), folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][train_tokenizer().eos_token_id] *= 3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def unmarked_teacher(folder: Path) -> str:
    """The random teacher under a tokenizer that has no reasoning markers, ending as above."""
    stopping_teacher(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        text = text.replace("<think>", "<unused1>").replace("</think>", "<unused2>")
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


def ask(folder: Path, teacher: dict[str, Any], **sections: Any) -> Dataset:
    job = {"sampling": SAMPLING, "tasks": [{"name": "adding", "count": ROWS}]} | sections
    teacher = {"dtype": "float32", "max_num_seqs": 8} | teacher
    return make_dataset(folder, engine_job(teacher=teacher, **job))


KINDS: dict[str, tuple[Any, Any]] = {
    # how the model is made, and its markers
    "spelt": (lambda _: random_teacher(), SPELT),
    "prompted": (unmarked_teacher, "prompted"),
    "own": (stopping_teacher, "auto"),
    # in the prompt its first letter is in one token with the space before: vLLM does not find where it counts from
    "half": (lambda _: random_teacher(), {"start": " <reason>\n", "end": "</think>"}),
}


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Dataset]:
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    build, reasoning = KINDS[kind]
    return kind, ask(folder, {"model": build(folder / "model"), "reasoning": reasoning})


def all_rows(dataset: Dataset) -> list[dict[str, Any]]:
    return dataset.rows() + dataset.rows("rejected")


def closing_of(dataset: Dataset) -> list[int]:
    details = dataset.manifest["teacher"]["details"]
    one = train_tokenizer().convert_tokens_to_ids("</think>")
    closing: list[int] = details.get("reasoning_closing_ids", [one])
    return closing


def test_every_row_ends_in_an_answer_after_the_end_marker(made: tuple[str, Dataset]) -> None:
    kind, dataset = made
    tokenizer, closing = train_tokenizer(), closing_of(dataset)
    assert dataset.totals.accepted >= ROWS - 2  # a number or a word may be cut off by max_tokens
    assert dataset.totals.accepted + dataset.totals.rejected == ROWS
    assert tokenizer.decode(closing) == ("</reason>\n" if kind == "spelt" else "</think>")
    assert set(dataset.totals.reasons) <= {"teacher/truncated"}
    for row in dataset.rows():
        ids, start = row["completion_token_ids"], row["answer_start"]
        assert ids[start - len(closing) : start] == closing
        assert len(closing) <= start <= BUDGET + len(closing)
        assert len(ids) <= MOST
        answer = json.loads(row["completion"][0]["content"])
        assert set(answer) == {"total", "words"}
        assert row["finish_reason"] == "stop"


def test_ids_decode_to_the_texts_of_every_row(made: tuple[str, Dataset]) -> None:
    _, dataset = made
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dataset.manifest["teacher"]["model"])
    closing = closing_of(dataset)
    reasons = []
    for row in dataset.rows():
        ids, start = row["completion_token_ids"], row["answer_start"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == row["text"]
        assert tokenizer.decode(ids[: start - len(closing)], skip_special_tokens=False).strip("\n") == row["reasoning"]
        assert tokenizer.decode(ids[start:-1], skip_special_tokens=False) == row["answer"]
        reasons.append(start - len(closing))
    assert len(set(reasons)) > 1 or set(reasons) == {BUDGET}


def test_numbers_are_those_of_a_plain_forward_over_the_ids(made: tuple[str, Dataset]) -> None:
    _, dataset = made
    states, forward = dataset.states(), open_forward(dataset)
    assert dataset.rows()
    for row in dataset.rows():
        logprobs, hidden = forward(row)
        ids = torch.tensor(row["completion_token_ids"])
        np.testing.assert_allclose(row["sampled_logprobs"], logprobs.gather(1, ids[:, None])[:, 0], atol=1e-4)
        probs = logprobs.double().exp()
        np.testing.assert_allclose(row["entropy"], -(probs * logprobs.double()).sum(-1), atol=1e-4)
        top = np.array(row["topk_logprobs"], np.float32).reshape(len(ids), 20)
        np.testing.assert_allclose(top, logprobs.topk(20).values, atol=4e-3)
        kept = states[row["id"]]
        assert len(kept) == len(row["prompt_token_ids"]) + len(ids) - 1
        for layer, expected in enumerate((hidden[0], hidden[2], hidden[-1])):
            np.testing.assert_allclose(kept[:, layer], expected, rtol=2e-2, atol=2e-2)


def test_a_row_does_not_depend_on_its_batch_and_samples_differ(tmp_path: Path) -> None:
    ids: list[dict[str, Any]] = []
    for slots in (1, 8):
        folder = tmp_path / str(slots)
        folder.mkdir()
        teacher = {"model": random_teacher(), "max_num_seqs": slots, "reasoning": SPELT}
        tasks = [{"name": "adding", "count": 3}]
        dataset = ask(folder, teacher, tasks=tasks, samples={"n": 2}, signals={"top_k": 0, "hidden_layers": []})
        ids.append({row["id"]: row["completion_token_ids"] for row in all_rows(dataset)})
    assert ids[0] == ids[1]
    assert len({tuple(row) for row in ids[0].values()}) == 6


@pytest.mark.parametrize(("most", "thinking", "reasons"), [(24, 2, True), (40, 0, False), (8, None, False)])
def test_an_answer_has_room_whatever_the_budget_is(
    tmp_path: Path, most: int, thinking: int | None, reasons: bool
) -> None:
    sampling = {"temperature": 1.0, "max_tokens": most} | ({} if thinking is None else {"thinking_tokens": thinking})
    dataset = ask(tmp_path, {"model": random_teacher(), "reasoning": SPELT}, sampling=sampling)
    rows = all_rows(dataset)
    closing = closing_of(dataset)
    assert len(rows) == ROWS
    for row in rows:
        start = row.get("answer_start", len(closing) + (thinking or 0))
        assert start == len(closing) + (thinking or 0)
        assert (start > len(closing)) == reasons
        assert start < len(row["completion_token_ids"]) <= most


def test_a_row_in_parts_has_all_its_signals_where_prefixes_are_cached(tmp_path: Path) -> None:
    teacher = {"model": random_teacher(), "reasoning": SPELT, "engine": {"enable_prefix_caching": True}}
    dataset = ask(tmp_path, teacher, signals={"top_k": 20, "hidden_layers": []})
    forward = open_forward(dataset)
    assert len(dataset.rows()) >= ROWS - 2
    for row in dataset.rows():
        ids = torch.tensor(row["completion_token_ids"])
        expected = forward(row)[0].gather(1, ids[:, None])[:, 0]
        np.testing.assert_allclose(row["sampled_logprobs"], expected, atol=1e-4)


LONG_LIST = """
import random
from pydantic import BaseModel, Field

class Scenario(BaseModel):
    a: int = 1
    b: int = 1

class Answer(BaseModel):
    numbers: list[int] = Field(min_length=100_000, max_length=200_000)

def sample(rng: random.Random, level: str) -> Scenario:
    return Scenario(a=rng.randrange(99))

def check(scenario: Scenario, answer: Answer) -> list[str]:
    return []
"""


@pytest.mark.long
def test_a_grammar_that_the_engine_cannot_compile_costs_its_own_rows_alone(tmp_path: Path) -> None:
    """It is beyond llguidance's limits, which show only together with a tokenizer."""
    from conftest import write_task

    write_task(tmp_path, "listing", schema=LONG_LIST, system_j2="Count.")
    tasks = [{"name": "adding", "count": 4}, {"name": "listing", "count": 1}]
    dataset = make_dataset(tmp_path, engine_job(sampling=SAMPLING, tasks=tasks))
    totals: Totals = dataset.totals
    assert totals.accepted + totals.rejected == 5
    assert totals.reasons["teacher/refused_by_engine"] == 1
    refused = [row for row in dataset.rows("rejected") if row["reason"] == "refused_by_engine"]
    assert {row["task"] for row in refused} == {"listing"}
    assert all("grammar" in row["findings"][0] for row in refused)
    log = (dataset.out / "engine.log").read_text(errors="replace")
    assert log.count("Starting to load model") == 1
