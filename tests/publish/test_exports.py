"""What each trainer reads of an export: its own checks and its own loss, written from what its reader does."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from dataset_support import read_table
from export_support import (
    STATES,
    WRONG,
    MakeJob,
    export_to,
    kl_renormalised,
    kl_zero,
    make_dataset,
    read_export,
    rewards,
    softmax_student,
)

from factory.job.job import Job
from factory.publish.exports import source
from factory.publish.exports.asked import Asked
from factory.publish.exports.distillkit import gather
from factory.runs.run import run
from factory.teachers.scripted import VOCAB

K = 4


def stored_rows(root: Path) -> list[dict[str, Any]]:
    """The rows as the files hold them, their distributions as [T, k]."""
    rows = read_table(root, "data")
    for row in rows:
        T = len(row["completion_token_ids"])
        for name, dtype in (("topk_ids", np.int64), ("topk_logprobs", np.float64)):
            row[name] = np.array(row[name], dtype).reshape(T, -1)
    return rows


def equal_student(row: dict[str, Any], length: int) -> np.ndarray[Any, Any]:
    """A student with the teacher's own distribution wherever it predicts a completion token, and some other elsewhere.

    The mass outside the k ids is spread evenly over all others, which no loss over the k can tell from the teacher's.
    """
    student_SV, first = softmax_student(1, length, VOCAB), len(row["prompt_token_ids"]) - 1
    ids, logprobs = row["topk_ids"], row["topk_logprobs"]
    outside = np.maximum(1 - np.exp(logprobs).sum(1), 1e-9) / (VOCAB - ids.shape[1])
    block = np.repeat(np.log(outside)[:, None], VOCAB, 1)
    np.put_along_axis(block, ids, logprobs, 1)
    student_SV[first : first + len(ids)] = block
    return student_SV


def test_axolotl_has_no_loss_for_a_student_equal_to_the_teacher_and_one_for_a_shift(
    workspace: Path, make_job: MakeJob
) -> None:
    root = make_dataset(workspace, make_job)
    export_to(root, workspace / "x", "axolotl-kd")
    for row, stored in zip(read_export(workspace / "x"), stored_rows(root), strict=True):
        P, T = len(stored["prompt_token_ids"]), len(stored["completion_token_ids"])
        student = equal_student(stored, P + T)
        assert abs(kl_renormalised(row, student)) < 1e-6
        assert kl_renormalised(row, student, shift=1) > 0.1
        assert kl_renormalised(row, student, shift=-1) > 0.1
        assert row["input_ids"] == stored["prompt_token_ids"] + stored["completion_token_ids"]
        assert row["labels"] == [-100] * P + stored["completion_token_ids"]
        assert np.array(row["target_mask"]).any(1).tolist() == [P - 1 <= i < P + T - 1 for i in range(P + T)]
        sums = np.exp(row["target_logprobs"]).sum(1)[P - 1 : P + T - 1]
        assert np.allclose(sums, 1, atol=1e-5)
    config = yaml.safe_load((workspace / "x/axolotl.yaml").read_text())
    assert (config["kd_normalize_topk"], config["skip_prepare_dataset"]) == (True, True)
    longest = max(len(row["input_ids"]) for row in read_export(workspace / "x"))
    assert config["sequence_len"] == longest


@pytest.mark.parametrize("k", [None, 2])
def test_distillkit_has_the_least_loss_for_a_student_equal_to_the_teacher(
    k: int | None, workspace: Path, make_job: MakeJob
) -> None:
    root = make_dataset(workspace, make_job)
    export_to(root, workspace / "x", "distillkit", length=512, k=k)
    rows = read_export(workspace / "x")
    # its reader stacks every column of a batch: only numbers, all of one length
    assert {name: np.array([row[name] for row in rows]).dtype.kind for name in rows[0]} == {
        "input_ids": "i",
        "attention_mask": "i",
        "labels": "i",
        "token_ids": "i",
        "top_values": "f",
    }
    for row, stored in zip(rows, stored_rows(root), strict=True):
        P, T = len(stored["prompt_token_ids"]), len(stored["completion_token_ids"])
        assert {len(row[name]) for name in row} == {512}
        student = equal_student(stored, 512)
        # what the k ids do not hold is all that is left: the teacher is renormalised, the student is not
        least = -np.log(np.exp(stored["topk_logprobs"][:, :k]).sum(1)).mean()
        assert kl_zero(row, student) == pytest.approx(least, abs=1e-5)
        shifted = row | {"token_ids": np.roll(row["token_ids"], 1, 0), "top_values": np.roll(row["top_values"], 1, 0)}
        assert kl_zero(shifted, student) > least + 0.1
        assert [i for i, label in enumerate(row["labels"]) if label >= 0] == list(range(P - 1, P + T - 1))
        assert row["attention_mask"] == [1] * (P + T) + [0] * (512 - P - T)
        # a loss that multiplies with its mask makes NaN of an infinity
        assert np.isfinite(row["top_values"]).all()
    config = yaml.safe_load((workspace / "x/distillkit.yaml").read_text())
    assert config["loss_functions"][1]["missing_probability_handling"] == "zero"
    assert config["teacher"]["logprob_compressor"]["k"] == (k or K)


def test_distillkit_packs_whole_rows_and_numbers_them(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    export_to(root, workspace / "x", "distillkit", length=1200, pack=True, filler=7)
    found = []
    for row in read_export(workspace / "x"):
        ids, numbers = np.array(row["input_ids"]), np.array(row["attention_mask"])
        assert (ids[numbers == 0] == 7).all()
        found += [ids[numbers == n].tolist() for n in range(1, numbers.max() + 1)]
    wanted = [row["prompt_token_ids"] + row["completion_token_ids"] for row in stored_rows(root)]
    assert sorted(found) == sorted(wanted)
    assert len(read_export(workspace / "x")) < len(wanted)
    text = (workspace / "x/distillkit.yaml").read_text()
    assert yaml.safe_load(text)["functionary_packing"] is True
    assert "functionary_packing: true   # several rows are in a sequence, and do not see each other\n" in text
    export_to(root, workspace / "y", "distillkit", length=1200)
    told = "functionary_packing: false   # a sequence is one row; true belongs to an export with --pack\n"
    assert told in (workspace / "y/distillkit.yaml").read_text()


def test_packing_holds_few_sequences_at_a_time_and_loses_none() -> None:
    rng, taken = np.random.default_rng(0), 0

    def rows() -> Any:
        nonlocal taken
        for number in range(400):
            taken += 1
            size = int(rng.integers(1, 30))
            names = ("input_ids", "labels")
            row = {name: np.full(size, number) for name in (*names, "attention_mask")}
            yield row | {"token_ids": np.zeros((size, 2), int), "top_values": np.zeros((size, 2)), "_positions": size}

    packed, seen = gather(rows(), Asked(to="distillkit", length=32, pack=True)), Counter[int]()
    for count, sequence in enumerate(packed):
        assert len(sequence["input_ids"]) == 32
        seen.update(set(sequence["input_ids"][sequence["attention_mask"] > 0].tolist()))
        assert taken <= 400
        assert count < 400
    assert seen == Counter(range(400))


def test_tinker_is_given_the_teachers_probabilities_for_the_token_after_each(
    workspace: Path, make_job: MakeJob
) -> None:
    root = make_dataset(workspace, make_job)
    for mass in ("renormalised", "tail"):
        export_to(root, workspace / mass, "tinker", mass=mass)
        for row, stored in zip(read_export(workspace / mass), stored_rows(root), strict=True):
            ids = stored["prompt_token_ids"] + stored["completion_token_ids"]
            P, N = len(stored["prompt_token_ids"]), len(ids) - 1
            weights, targets = np.array(row["weights"]), np.array(row["target_tokens"])
            assert row["model_input"] == ids[:-1]
            assert weights.shape == targets.shape == (N, K)
            probabilities = np.exp(stored["topk_logprobs"])
            if mass == "renormalised":
                probabilities /= probabilities.sum(1, keepdims=True)
            assert np.allclose(weights[P - 1 :], probabilities, atol=1e-6)
            assert (targets[P - 1 :] == stored["topk_ids"]).all()
            assert not weights[: P - 1].any()
            # at the gradient of a cross-entropy a student equal to the teacher stands still, renormalised or not
            assert (targets[: P - 1] == np.array(ids[1:P])[:, None]).all()


def test_tinkers_weights_of_random_draws_are_their_shares(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job, signals={"top_k": 8, "keep": "sampled"})
    export_to(root, workspace / "x", "tinker")
    for row, stored in zip(read_export(workspace / "x"), read_table(root, "data"), strict=True):
        P, weights = len(stored["prompt_token_ids"]), np.array(row["weights"])
        assert np.allclose(weights[P - 1 :].sum(1), 1)
        flat = weights[P - 1 :][weights[P - 1 :] > 0]
        assert np.allclose(flat * 8, stored["topk_draws"])


def test_where_no_distribution_is_kept_nothing_is_compared(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job, signals={"top_k": 4, "positions": "answer"})
    stored = read_table(root, "data")
    for to, options in (("axolotl-kd", {}), ("distillkit", {"length": 512}), ("tinker", {})):
        export_to(root, workspace / to, to, **options)
        for row, kept in zip(read_export(workspace / to), stored, strict=True):
            first = len(kept["prompt_token_ids"]) - 1 + kept["answer_start"]
            S = len(kept["prompt_token_ids"]) + len(kept["completion_token_ids"])
            wanted = list(range(first, S - 1))
            masks = {
                "axolotl-kd": lambda row: np.array(row["target_mask"]).any(1),
                "distillkit": lambda row: np.array(row["labels"]) >= 0,
                "tinker": lambda row: np.array(row["weights"]).any(1),
            }
            assert np.flatnonzero(masks[to](row)).tolist() == wanted


def test_trl_is_given_exact_ids_and_where_the_completion_begins(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    for to in ("trl-sft", "trl-gkd"):
        export_to(root, workspace / to, to)
        rows = read_export(workspace / to)
        # a column `prompt` would be taken for a text, others would be copied through every map
        names = {"input_ids", "completion_mask"} | ({"original_prompt_text"} if to == "trl-gkd" else set())
        assert set(rows[0]) == names
        for row, stored in zip(rows, stored_rows(root), strict=True):
            assert row["input_ids"] == stored["prompt_token_ids"] + stored["completion_token_ids"]
            assert row["completion_mask"].index(1) == len(stored["prompt_token_ids"])
            assert sum(row["completion_mask"]) == len(stored["completion_token_ids"])


def test_reasoning_stands_inside_the_content_or_beside_it(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    stored = read_table(root, "data")
    export_to(root, workspace / "in", "messages")
    export_to(root, workspace / "apart", "messages", reasoning="apart")
    export_to(root, workspace / "trl", "trl-sft", rows="messages")
    for inside, apart, trl, row in zip(
        *(read_export(workspace / name) for name in ("in", "apart", "trl")), stored, strict=True
    ):
        last = inside["messages"][-1]
        assert last["content"] == f"<think>{row['reasoning']}</think>{row['completion'][0]['content']}"
        assert "reasoning_content" not in last
        assert apart["messages"][-1] == row["completion"][0]
        assert [turn["content"] for turn in apart["messages"][:-1]] == [turn["content"] for turn in row["prompt"]]
        assert (trl["prompt"], trl["completion"]) == (row["prompt"], row["completion"])
    info = json.loads((workspace / "in/dataset_info.json").read_text())["distilled"]
    assert (workspace / "in" / info["file_name"]).is_dir()


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("So.</think>{}", ("", "", "")),
        ("So.\n</think>\n\n{}", ("\n", "\n", "\n\n")),  # the prompt has begun the line
        ("<think>\nSo.\n</think>\n\n{}", ("\n", "\n", "\n\n")),
        ("<think> So.</think>\n{}", (" ", "", "\n")),
    ],
)
def test_reasoning_is_put_back_as_the_teacher_writes_it(
    text: str, spelling: tuple[str, str, str], workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_dataset(workspace, make_job)
    told = pa.RecordBatch.from_pydict({"text": ["cut off", text, "Other.</think>  {}"]})
    monkeypatch.setattr(source, "read_batches", lambda path, columns: iter([told]))
    assert source.open_source(root, None, "train").spelling == spelling


def test_kto_takes_wrong_answers_as_they_were_said(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job, teacher=WRONG)
    export_to(root, workspace / "x", "kto")
    told = {(row["completion"][0]["content"], row["completion"][0]["reasoning_content"], row["label"])
            for row in read_export(workspace / "x")}  # fmt: skip
    for row in read_table(root, "rejected"):
        thought, _, answer = row["text"].partition("</think>")
        assert (answer.removesuffix("<|end|>"), thought, False) in told
    assert not any("<|end|>" in answer for answer, _, _ in told)
    args = (workspace / "x/train.py").read_text()
    counts = [len(read_table(root, name)) for name in ("data", "rejected")]
    assert f"{counts[0]} desirable rows, {counts[1]} undesirable" in args


def test_kto_leaves_out_what_was_rejected_for_another_reason(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job, teacher=WRONG, samples={"n": 4, "keep": "best"})
    lines = export_to(root, workspace / "x", "kto")
    stages = Counter(row["stage"] for row in read_table(root, "rejected"))
    assert stages["samples"] > 0
    assert any(f"{stages['samples']:,}  rejected, and not for a bad answer (samples)" in line for line in lines)


def test_verl_is_given_each_prompt_once_and_a_reward_that_knows_right_from_wrong(
    workspace: Path, make_job: MakeJob
) -> None:
    root = make_dataset(workspace, make_job, teacher=WRONG, samples={"n": 3, "keep": "best"})
    export_to(root, workspace / "x", "verl-rl")
    rows = read_export(workspace / "x")
    asked = {row["prompt_id"] for name in ("data", "rejected") for row in read_table(root, name)}
    assert sorted(row["extra_info"]["index"] for row in rows) == sorted(asked)
    assert rows[0]["reward_model"]["style"] == "rule"
    scenario = json.loads(rows[0]["reward_model"]["ground_truth"])
    right = json.dumps({"total": scenario["a"] + scenario["b"], "words": "x"})
    texts = [
        f"Two and two.</think>{right}",
        right.replace("x", "y"),
        f"{right}<|end|>",
        f"Hm.</think>\n```json\n{right}\n```",
        '{"total": 999, "words": ""}',
        "no JSON",
        right.replace('"words"', '"total": 1, "words"'),
        right.replace(f"{scenario['a'] + scenario['b']}", f'"{scenario["a"] + scenario["b"]}"'),
    ]
    # the folder may be moved, and its workspace be gone
    (workspace / "x").rename(workspace / "moved")
    shutil.rmtree(workspace / "schemas")
    assert rewards(workspace / "moved", rows[0], texts) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("layers", [[1, 2, 3, -1], [-1, 3, 1, 2]])
def test_speculators_reads_states_before_the_norm_with_the_last_layer_last(
    layers: list[int], workspace: Path, make_job: MakeJob
) -> None:
    import torch
    from datasets import load_from_disk
    from safetensors.torch import load_file

    from factory.load import load_rows

    signals = {"top_k": 0, "hidden_layers": layers, "final_norm": False}
    root = make_dataset(workspace, make_job, signals=signals)
    export_to(root, workspace / "x", "speculators")
    data = load_from_disk(workspace / "x")
    counts: Counter[int] = Counter()
    stored = list(load_rows(root, join_hidden_states=True, cache_dir=workspace / "cache"))
    assert len(data) == len(stored) == len(list((workspace / "x/hidden_states").iterdir()))
    for number, (row, kept) in enumerate(zip(data, stored, strict=True)):
        found = load_file(workspace / f"x/hidden_states/hs_{number}.safetensors")
        assert torch.equal(found["token_ids"], row["input_ids"])
        assert found["hidden_states"].dtype == torch.bfloat16
        inner = [kept.layers.index(layer) for layer in layers if layer != -1]
        assert torch.equal(found["hidden_states"][:, :-1], kept.hidden_states[:, inner])
        assert torch.equal(found["hidden_states"][:, -1], kept.hidden_states[:, kept.layers.index(4)])
        assert row["loss_mask"].tolist() == [int(i >= len(kept.prompt_token_ids)) for i in range(kept.inputs)]
        assert row["seq_len"] == kept.inputs
        counts.update(row["input_ids"][row["loss_mask"] == 1].tolist())
    assert torch.load(workspace / "x/token_freq.pt", weights_only=True) == dict(counts)
    assert "--target-layer-ids 1 2 3" in (workspace / "x/README.md").read_text() or layers[0] == -1


@pytest.mark.parametrize("final_norm", [True, False])
def test_modelopt_declares_whether_states_are_before_the_norm(
    final_norm: bool, workspace: Path, make_job: MakeJob
) -> None:
    import torch

    root = make_dataset(workspace, make_job, signals=STATES["signals"] | {"final_norm": final_norm})
    export_to(root, workspace / "x", "modelopt")
    stored = read_table(root, "data")
    for row in stored:
        found = torch.load(workspace / f"x/data/{row['id']}.pt", weights_only=True)
        ids = row["prompt_token_ids"] + row["completion_token_ids"]
        assert found["input_ids"].tolist() == ids[:-1]
        assert found["hidden_states"].shape == (len(ids) - 1, 16)
        assert found["aux_hidden_states"].shape == (len(ids) - 1, 48)
        assert found["hidden_states_prenorm"] is not final_norm
        assert int(found["loss_mask"].sum()) == len(row["completion_token_ids"]) - 1


def test_a_students_template_that_drops_the_reasoning_is_told(workspace: Path, make_job: MakeJob) -> None:
    from factory.errors import JobError
    from factory.teachers.demo import FOLDER

    root = make_dataset(workspace, make_job)
    student = workspace / "student"
    student.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (student / name).write_bytes((FOLDER / name).read_bytes())
    export_to(root, workspace / "a", "trl-sft", rows="messages", student=str(student))
    (student / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(JobError, match=r"drops reasoning_content.*--reasoning content"):
        export_to(root, workspace / "b", "trl-sft", rows="messages", student=str(student))
    export_to(root, workspace / "b", "trl-sft", rows="messages", student=str(student), reasoning="content")


def test_scored_messages_are_exported_as_they_were_given(workspace: Path, make_job: MakeJob) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    (workspace / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    job = make_job().model_dump(exclude_unset=True) | {"transcripts": {"path": str(workspace / "rows.jsonl")}}
    del job["tasks"]
    run(Job.model_validate(job), workspace, workspace / "data")
    export_to(workspace / "data", workspace / "x", "messages")
    assert read_export(workspace / "x")[0]["messages"] == turns
    export_to(workspace / "data", workspace / "t", "parquet-text")
    assert read_export(workspace / "t")[0]["answer"] == "It is 4."


@pytest.mark.parametrize(
    ("to", "options", "told"),
    [
        ("messages", {}, "messages, reasoning inside the content."),
        ("messages", {"reasoning": "apart"}, "messages, reasoning beside the content."),
        ("trl-sft", {}, "exact token ids."),
        ("trl-sft", {"rows": "messages"}, "messages, reasoning beside the content."),
        ("trl-sft", {"rows": "messages", "reasoning": "content"}, "messages, reasoning inside the content."),
    ],
)
def test_the_readme_says_which_of_a_formats_forms_this_folder_is(
    workspace: Path, make_job: MakeJob, to: str, options: dict[str, Any], told: str
) -> None:
    export_to(make_dataset(workspace, make_job), workspace / "x", to, **options)
    assert f" rows: {told}\n" in (workspace / "x/README.md").read_text()
