"""Aligning: the same bytes in another tokenizer's ids, positions that correspond, and a top-k that keeps its mass."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from dataset_support import flip_byte, read_table
from export_support import MakeJob, make_dataset, read_export
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from factory.checks.verify import verify
from factory.errors import DatasetError, JobError
from factory.publish.aligning import Aligner, align
from factory.publish.vocabulary import ALPHABET, read_vocabulary, student_vocabulary, teacher_vocabulary
from factory.teachers.demo import FOLDER
from factory.teachers.scripted import STOP, THINK_END

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tokenizer(folder: Path, tokenizer: Tokenizer, template: str = "") -> Path:
    folder.mkdir()
    specials = [AddedToken(text, special=True) for text in ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")]
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "chat_template": template or None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_tokenizer(folder: Path, template: str = "") -> Path:
    """A token for each byte."""
    tokenizer = Tokenizer(models.BPE({letter: byte for letter, byte in ALPHABET.items()}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return save_tokenizer(folder, tokenizer, template)


def word_tokenizer(folder: Path) -> Path:
    """Merged pieces of the answers that the scripted teacher gives, digits by themselves, as SmolLM2 has them."""
    tokenizer = Tokenizer(models.BPE())
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=sorted(ALPHABET), show_progress=False)
    tokenizer.train_from_iterator(['{"total": 12, "words": "done"} 3 and 4 make 7. done make and total'] * 20, trainer)
    return save_tokenizer(folder, tokenizer)


def space_tokenizer(folder: Path) -> Path:
    """As SentencePiece's: spaces are a letter, one is put before a text, unknown letters become bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [
        "▁",
        *'abcdefghijklmnopqrstuvwxyz{}:,."0123456789',
        "▁and",
        "▁make",
    ]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁a", "n"), ("▁an", "d")]
    vocab |= {"▁a": len(vocab), "▁an": len(vocab) + 1}
    model = models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("▁"), " "), decoders.ByteFallback(), decoders.Fuse()])
    return save_tokenizer(folder, tokenizer)


MAKERS = {"bytes": byte_tokenizer, "words": word_tokenizer, "spaces": space_tokenizer}


@pytest.mark.parametrize("student", [*MAKERS, "demo"])
def test_bytes_are_the_same_on_both_sides_and_mass_is_kept(student: str, workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    folder = str(MAKERS[student](workspace / "student")) if student in MAKERS else student
    lines = align(root, folder, student)
    vocabulary = student_vocabulary(folder)
    rows, stored = read_export(root / f"aligned-{student}"), read_table(root, "data")
    shares, lacking = [], []
    for row, kept in zip(rows, stored, strict=True):
        assert row["id"] == kept["id"]
        ids, text = row["student_completion_token_ids"], kept["text"].removesuffix("<|end|>").encode()
        teacher_ends, student_ends = (np.array(row[f"{side}_byte_offsets"]) for side in ("teacher", "student"))
        assert len(teacher_ends) == len(kept["completion_token_ids"]) + 1
        assert len(student_ends) == len(ids) + 1
        assert teacher_ends[-1] == student_ends[-1] == len(text)
        pairs = list(zip(row["aligned_teacher"], row["aligned_student"], strict=True))
        assert pairs == sorted(set(pairs))
        for t, u in pairs:
            span = (teacher_ends[t], teacher_ends[t + 1])
            assert span == (student_ends[u], student_ends[u + 1])
            if ids[u] != vocabulary.end_ids[0]:
                assert vocabulary.pieces[ids[u]] == text[span[0] : span[1]]
        _require_mass(row, kept, vocabulary)
        shares.append(len(pairs) / len(ids))
        lacking.append(len(ids) - len(pairs))
    told = f"{sum(len(row['aligned_student']) for row in rows):,} positions correspond"
    assert told in lines[0]
    # a token for each byte is the scripted teacher's own vocabulary; the closing marker alone is none of the student's
    if student == "bytes":
        assert set(lacking) == {len("</think>")}
    assert 0.1 < np.mean(shares) < 1


def _require_mass(row: dict[str, Any], kept: dict[str, Any], vocabulary: Any) -> None:
    """What a position keeps and its tail are 1 together, and ids mean what they meant to the teacher."""
    ends = np.cumsum([0, *row["topk_counts"]])
    probabilities = np.exp(np.array(kept["topk_logprobs"], np.float64)).reshape(-1, 4)
    ids_TK = np.array(kept["topk_ids"]).reshape(-1, 4)
    for place, t in enumerate(row["aligned_teacher"]):
        ids = row["topk_ids"][ends[place] : ends[place + 1]]
        logprobs = np.array(row["topk_logprobs"][ends[place] : ends[place + 1]], np.float64)
        assert (np.diff(logprobs) <= 0).all()
        assert len(set(ids)) == len(ids)
        assert np.exp(logprobs).sum() + np.exp(row["tail_logprobs"][place]) == pytest.approx(1, abs=2e-3)
        # each id's bytes are the teacher's: the scripted teacher's ids are bytes
        theirs = {bytes([i]): p for i, p in zip(ids_TK[t].tolist(), probabilities[t], strict=True) if i < 256}
        for number, logprob in zip(ids, logprobs, strict=True):
            if vocabulary.pieces[number] in theirs and number not in vocabulary.control:
                assert np.exp(logprob) == pytest.approx(theirs[vocabulary.pieces[number]], rel=1e-4)
            else:
                assert number in vocabulary.control


def test_a_student_with_the_teachers_own_tokenizer_has_every_id_again(workspace: Path) -> None:
    vocabulary = read_vocabulary(FOLDER, "demo")
    aligner = Aligner(vocabulary, vocabulary, vocabulary.end_ids)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    text = 'Bernd has 3 free hours.\n</think>\n\n{"title": "Vendor call", "größe": "4 m²"}<|im_end|>'
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    student, first, second, pairs = aligner.align_completion(ids)
    assert student == ids
    assert first.tolist() == second.tolist()
    assert pairs.tolist() == [[i, i] for i in range(len(ids))]


def test_ids_that_are_one_to_the_student_add_up_and_lost_mass_goes_to_the_tail(workspace: Path) -> None:
    student = student_vocabulary(str(byte_tokenizer(workspace / "student")))
    teacher = teacher_vocabulary({"job": {"teacher": {"backend": "scripted"}}})
    assert teacher is not None
    aligner = Aligner(teacher, student, (STOP, 258))  # two ends of the teacher's, one of the student's
    probabilities = np.array([[0.4, 0.3, 0.2, 0.05]])
    ids = np.array([[STOP, 65, 258, THINK_END]])
    found, logprobs, tail = aligner.map_topk(ids, np.log(probabilities), np.log([0.05]))
    assert found[0].tolist() == [student.end_ids[0], student.by_bytes[b"A"]]
    assert np.exp(logprobs[0]) == pytest.approx([0.6, 0.3])
    assert np.exp(tail[0]) == pytest.approx(0.1)  # the closing marker is no token of the student's


def test_text_that_spells_a_control_token_of_the_student_stays_text(workspace: Path) -> None:
    student = student_vocabulary(str(byte_tokenizer(workspace / "student")))
    teacher = teacher_vocabulary({"job": {"teacher": {"backend": "scripted"}}})
    assert teacher is not None
    ids, _, _, pairs = Aligner(teacher, student, (STOP,)).align_completion([*b"say <|user|> now", STOP])
    assert [student.pieces[i] for i in ids[:-1]] == [bytes([b]) for b in b"say <|user|> now"]
    assert ids[-1] == student.end_ids[0]
    assert len(pairs) == len(ids)


def test_prompts_go_through_the_students_own_template(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    folder = byte_tokenizer(workspace / "student", TEMPLATE)
    align(root, str(folder), "chat")
    vocabulary = student_vocabulary(str(folder))
    for row, kept in zip(read_export(root / "aligned-chat"), read_table(root, "data"), strict=True):
        spelt = b"".join(vocabulary.pieces[i] for i in row["student_prompt_token_ids"]).decode()
        turns = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in kept["prompt"])
        # the student's template opens no reasoning: the teacher's marker stands there as text
        assert spelt == f"{turns}<|assistant|><think>\n"


def test_a_changed_byte_is_not_aligned(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job)
    flip_byte(root / "data/train-00000.parquet", 200)
    with pytest.raises(DatasetError, match=r"train-00000\.parquet: its bytes have changed since it was committed"):
        align(root, str(byte_tokenizer(workspace / "student")), "x")
    assert not (root / "aligned-x").exists()


def test_it_is_a_config_of_the_dataset_until_the_dataset_changes(workspace: Path, make_job: MakeJob) -> None:
    from factory.dataset.aligned import aligned_configs
    from factory.dataset.ledger import read_ledger

    root = make_dataset(workspace, make_job)
    align(root, str(byte_tokenizer(workspace / "student")), None)
    loaded = datasets.load_dataset(str(root), "aligned-student", split="train", cache_dir=str(workspace / "cache"))
    assert loaded["id"] == [row["id"] for row in read_table(root, "data")]
    assert list(verify(root)) == []
    before = (root / "README.md").read_text()
    assert "complete already" in align(root, str(workspace / "student"), None)[0]
    assert (root / "README.md").read_text() == before
    ledger = read_ledger(root)
    assert [name for name, _ in aligned_configs(ledger)] == ["aligned-student"]
    ledger.entries.pop(max(ledger.entries))
    assert list(aligned_configs(ledger)) == []


def test_without_distributions_ids_and_positions_are_there_alone(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job, signals={"top_k": 0})
    align(root, str(byte_tokenizer(workspace / "student")), None)
    assert "topk_ids" not in read_export(root / "aligned-student")[0]


@pytest.mark.parametrize(
    ("student", "name", "told"),
    [
        ("nowhere/none", None, "no tokenizer.json"),
        ("demo", "../x", "letters, digits"),
        ("demo", "", None),
    ],
)
def test_what_cannot_be_aligned_is_told(
    student: str, name: str | None, told: str | None, workspace: Path, make_job: MakeJob
) -> None:
    root = make_dataset(workspace, make_job)
    if told is None:
        assert "aligned-demo" in align(root, student, name)[-1]
        return
    with pytest.raises((JobError, DatasetError), match=told):
        align(root, student, name)


def test_random_draws_are_not_mapped(workspace: Path, make_job: MakeJob) -> None:
    root = make_dataset(workspace, make_job, signals={"top_k": 8, "keep": "sampled"})
    with pytest.raises(JobError, match="random draws"):
        align(root, "demo", None)


def test_what_the_docs_show_of_it_runs(workspace: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs/trainers.md").read_text(encoding="utf-8")
    root = make_dataset(workspace, make_job, "out/scripted")
    align(root, "demo", None)
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workspace / "cache")
    *_, code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    row = read_export(root / "aligned-demo")[0]
    S = len(row["student_prompt_token_ids"]) + len(row["student_completion_token_ids"])
    assert found["ids"] == row["topk_ids"][: row["topk_counts"][0]]
    assert 0 <= found["positions"].min() <= found["positions"].max() < S - 1
