"""Reading a dataset back: what was written is what a trainer gets, aligned, by this package and by plain `datasets`."""

import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.dataset.shards import write_shard
from factory.errors import DatasetError
from factory.job.job import Job
from factory.load import Row, Rows, collate, load_rows
from factory.records import Generation, Outcome, Prompt, Record, Rejection, Sampling
from factory.runs.run import run
from factory.signals import HiddenStates, Logprobs, SignalSpec

FOLDERS = {"default": "data", "hidden_states": "hidden_states", "rejected": "rejected"}
SIGNALS = SignalSpec(top_k=3, layers=(2, 4))
PLAIN = SignalSpec()
HIDDEN = 8
Read = Callable[..., Rows]


def generation(number: int, signals: SignalSpec = SIGNALS, prompt_tokens: int | None = None) -> Generation:
    """What the teacher did with a row: 1 to 5 tokens, and 4 to 6 in the prompt unless told otherwise."""
    rng, tokens, prompt_tokens = np.random.default_rng(number), 1 + number % 5, prompt_tokens or 4 + number % 3
    bits = rng.integers(1, 2**14, (prompt_tokens + tokens - 1, len(signals.layers), HIDDEN)).astype(np.uint16)
    if number % 2:
        bits[-1:, -1:, -3:] = 0  # the bytes before the sentinel are NUL
    return Generation(
        prompt_id=f"id{number}",
        attempt=0,
        text=f"why</think>{{}} ünïcode {number}<|end|>",
        reasoning="why",
        answer_text="{}",
        prompt_token_ids=np.arange(prompt_tokens, dtype=np.int32) + number,
        completion_token_ids=np.arange(tokens, dtype=np.int32) + 100 * number,
        answer_start=2,
        finish_reason="stop",
        logprobs=draw_logprobs(rng, tokens, signals.top_k) if signals.top_k else None,
        hidden_states=HiddenStates(signals.layers, bits) if signals.layers else None,
    )


def draw_logprobs(rng: np.random.Generator, tokens: int, k: int) -> Logprobs:
    sampled, tail, entropy = rng.random((3, tokens), np.float32)
    topk = rng.random((tokens, k)).astype(np.float16)
    return Logprobs(-sampled, rng.integers(0, 1000, (tokens, k)).astype(np.int32), -topk, -tail, entropy)


def outcome(number: int, signals: SignalSpec = SIGNALS, rejected: bool = False, **generated: int) -> Outcome:
    messages = ({"role": "user", "content": f"question {number}"},)
    prompt = Prompt(f"id{number}", 0, number, "scheduling", "easy", messages, "{}", number, Sampling())
    made = generation(number, signals, **generated)
    refused = Rejection(prompt, made, "check", "overlap", ("overlap: at nine",))
    return refused if rejected else Record(prompt, made, "{}", 1.0)


def write_dataset(out: Path, shards: Sequence[Sequence[Outcome]], signals: SignalSpec = SIGNALS) -> Path:
    for shard, outcomes in enumerate(shards):
        write_shard(out, shard, outcomes, signals)
    names = [name for name in FOLDERS if name != "hidden_states" or signals.layers]
    (out / "README.md").write_text(card(names))
    return out


def card(configs: Sequence[str] = tuple(FOLDERS), ending: str = "parquet") -> str:
    file = "  data_files:\n  - split: train\n    path: {}/train-*.{}\n"
    parts = (f"- config_name: {name}\n" + file.format(FOLDERS[name], ending) for name in configs)
    return "---\nconfigs:\n" + "".join(parts) + "---\n"


def rewrite_shard(out: Path, number: int, outcomes: Sequence[Outcome], signals: SignalSpec, folder: str) -> None:
    """Replace one config's file of a shard by the one that other outcomes give."""
    write_shard(out.parent / "other", number, outcomes, signals)
    name = f"{folder}/train-{number:05d}.parquet"
    (out.parent / "other" / name).replace(out / name)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards: mixed, all rejected, mixed. Accepted ids are 0 1 2 3 and 20 21 22."""
    out = tmp_path_factory.mktemp("dataset") / "out"
    mixed = [*(outcome(i) for i in range(4)), *(outcome(i, rejected=True) for i in (4, 5))]
    return write_dataset(out, [mixed, [outcome(10, rejected=True)], [outcome(i) for i in (20, 21, 22)]])


ACCEPTED = (0, 1, 2, 3, 20, 21, 22)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    datasets.disable_progress_bars()
    return lambda *args, **kwargs: load_rows(*args, cache_dir=tmp_path / "cache", **kwargs)


def tiny_row(prompt: list[int], completion: list[int], k: int = 2, states: bool = False, layers: int = 1) -> Row:
    """A row whose signals tell where they come from: topk id 10 * token + j, state value = place of its token."""
    count, places = len(completion), len(prompt) + len(completion) - 1
    ids = np.array([[10 * token + j for j in range(k)] for token in completion], np.int32).reshape(count, k)
    tail = np.array([-0.1 * token for token in completion], np.float32)
    hidden = torch.arange(places, dtype=torch.bfloat16).reshape(places, 1, 1).repeat(1, layers, 2)
    return Row(
        columns={"id": "tiny"},
        prompt_token_ids=np.array(prompt, np.int32),
        completion_token_ids=np.array(completion, np.int32),
        topk_ids=ids if k else None,
        topk_logprobs=(ids / -100).astype(np.float32) if k else None,
        tail_logprobs=tail if k else None,
        hidden_states=hidden if states else None,
        layers=tuple(range(layers)) if states else (),
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_every_array_comes_back_as_it_was_written(dataset: Path, read: Read, streaming: bool) -> None:
    rows = list(read(dataset, streaming=streaming))
    assert [row["id"] for row in rows] == [f"id{number}" for number in ACCEPTED]
    for row, made in zip(rows, map(generation, ACCEPTED), strict=True):
        assert made.logprobs is not None
        pairs = [
            (row.prompt_token_ids, made.prompt_token_ids),
            (row.completion_token_ids, made.completion_token_ids),
            (row.topk_ids, made.logprobs.topk_ids_TK),
            (row.topk_logprobs, made.logprobs.topk_TK.astype(np.float32)),
            (row.sampled_logprobs, made.logprobs.sampled_T),
            (row.tail_logprobs, made.logprobs.tail_T),
            (row.entropy, made.logprobs.entropy_T),
        ]
        for got, written in pairs:
            np.testing.assert_array_equal(got, written, strict=True)  # values, shape and dtype
        assert row.hidden_states is None


def test_text_columns_stand_beside_the_arrays(dataset: Path, read: Read) -> None:
    row = read(dataset)[1]
    assert row["task"] == "scheduling"
    assert row["prompt"] == [{"role": "user", "content": "question 1"}]
    assert row["completion"] == [{"role": "assistant", "content": "{}", "reasoning_content": "why"}]
    assert row["text"] == "why</think>{} ünïcode 1<|end|>"


@pytest.mark.parametrize("streaming", [False, True])
def test_hidden_states_come_back_to_the_last_nul_byte(dataset: Path, read: Read, streaming: bool) -> None:
    rows = list(read(dataset, join_hidden_states=True, streaming=streaming))
    for row, made in zip(rows, map(generation, ACCEPTED), strict=True):
        assert made.hidden_states is not None
        assert row.layers == (2, 4)
        assert row.hidden_states is not None
        assert row.hidden_states.dtype == torch.bfloat16
        np.testing.assert_array_equal(row.hidden_states.view(torch.uint16).numpy(), made.hidden_states.bits_NLH)
        assert len(row.hidden_states) == len(row.prompt_token_ids) + len(row.completion_token_ids) - 1
    assert rows[0].hidden_states is not None
    rows[0].hidden_states.zero_()  # its own memory: may be written


def test_the_state_that_predicts_completion_token_t_is_at_place_p_minus_1_plus_t() -> None:
    row = tiny_row([1, 2, 3], [4, 5], states=True)
    assert row.predicting_states is not None
    assert row.predicting_states[:, 0, 0].tolist() == [2.0, 3.0]
    assert tiny_row([1], [2]).predicting_states is None


def test_rows_that_do_not_stream_have_a_length_and_an_index(dataset: Path, read: Read) -> None:
    rows = read(dataset)
    assert len(rows) == 7
    assert [rows[i]["id"] for i in (0, 6, -1)] == ["id0", "id22", "id22"]
    np.testing.assert_array_equal(rows[3].entropy, list(rows)[3].entropy)
    with pytest.raises(IndexError):
        rows[len(ACCEPTED)]
    with pytest.raises(TypeError):
        len(read(dataset, streaming=True))


def test_rows_can_be_read_twice_and_travel_between_processes(dataset: Path, read: Read) -> None:
    rows = read(dataset, streaming=True)
    assert [row["id"] for row in rows] == [row["id"] for row in rows]
    row = pickle.loads(pickle.dumps(next(iter(rows))))
    assert row["id"] == "id0"
    assert row.topk_ids.shape == (1, 3)


def test_a_torch_data_loader_takes_the_rows_and_collate(dataset: Path, read: Read) -> None:
    loader = DataLoader(read(dataset, "hidden_states"), batch_size=4, collate_fn=partial(collate, pad_token_id=0))
    sizes = [(tuple(batch["topk_ids"].shape), tuple(batch["hidden_states"].shape)) for batch in loader]
    assert sizes == [((4, 9, 3), (4, 9, 2, HIDDEN)), ((3, 8, 3), (3, 8, 2, HIDDEN))]


def test_rejected_rows_have_their_tokens_and_no_signals(dataset: Path, read: Read) -> None:
    rows = list(read(dataset, "rejected", streaming=True))
    assert [row["id"] for row in rows] == ["id4", "id5", "id10"]
    assert (rows[0]["stage"], rows[0]["reason"], rows[0]["kind"]) == ("check", "overlap", "rejected")
    assert rows[0].completion_token_ids.tolist() == [400, 401, 402, 403, 404]
    assert rows[0].topk_ids is None
    assert "topk_ids" not in collate(rows, 0)


def test_a_dataset_without_signals_loads_and_collates(tmp_path: Path, read: Read) -> None:
    out = write_dataset(tmp_path / "out", [[outcome(i, PLAIN) for i in range(3)]], PLAIN)
    rows = list(read(out))
    assert (rows[0].topk_ids, rows[0].entropy, rows[0].hidden_states) == (None, None, None)
    assert set(collate(rows, 0)) == {"input_ids", "attention_mask", "completion_mask", "labels", "row"}


def test_plain_datasets_reads_the_same_rows(dataset: Path, read: Read, tmp_path: Path) -> None:
    def plain(config: str) -> Any:
        return datasets.load_dataset(str(dataset), config, split="train", cache_dir=str(tmp_path / "cache"))

    table = plain("default")
    assert set(plain("rejected")["kind"]) == {"rejected"}
    states = plain("hidden_states")
    for mine, row, blob in zip(read(dataset, "hidden_states"), table, states, strict=True):
        assert mine.topk_ids is not None
        assert mine.topk_ids.reshape(-1).tolist() == row["topk_ids"]
        flat = torch.frombuffer(bytearray(blob["states"]), dtype=torch.bfloat16, count=math.prod(blob["shape"]))
        assert torch.equal(mine.hidden_states, flat.reshape(blob["shape"]))


def test_every_sample_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "out/demo", [[outcome(i) for i in range(5)], [outcome(9, rejected=True)]])
    text = (Path(__file__).parents[2] / "docs/dataset-format.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, Any] = {}
    for sample in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(sample, names)
    assert names["k"] == SIGNALS.top_k
    assert names["topk_ids_TK"].tolist() == names["rows"][0].topk_ids.tolist()
    torch.testing.assert_close(names["hidden_NLH"].float().numpy(), names["as_float32"])
    logits = torch.randn(*names["batch"]["input_ids"].shape, 1000)
    assert names["distillation_loss"](logits, names["batch"]).isfinite()


def test_k_is_found_without_the_schema_metadata(dataset: Path, read: Read, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "rows").mkdir(parents=True)
    (copy / "README.md").write_text(card(["default"]).replace("data/train", "rows/train"))
    for name in ("train-00000", "train-00002"):
        (copy / f"rows/{name}.parquet").write_bytes((dataset / f"data/{name}.parquet").read_bytes())
    shapes = [row.topk_ids.shape for row in read(copy, streaming=True) if row.topk_ids is not None]
    assert shapes == [(1 + number % 5, 3) for number in ACCEPTED]


def test_a_batch_is_aligned_so_that_each_position_holds_what_comes_next() -> None:
    batch = collate([tiny_row([1, 2, 3], [4, 5], states=True), tiny_row([6], [7], states=True)], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["completion_mask"].int().tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 4, 5], [-100, 7, -100, -100, -100]]
    # token 4 is predicted at position 2 and token 5 at position 3; nothing is known of what follows token 5
    assert batch["topk_mask"].int().tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert batch["topk_ids"][0].tolist() == [[0, 1], [0, 1], [40, 41], [50, 51], [0, 1]]
    assert batch["topk_logprobs"][0, 2].tolist() == pytest.approx([-0.40, -0.41])
    assert batch["tail_logprobs"][0].tolist() == pytest.approx([0.0, 0.0, -0.4, -0.5, 0.0])
    assert batch["hidden_mask"].int().tolist() == [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert batch["hidden_states"][0, :, 0, 0].tolist() == [0, 1, 2, 3, 0]
    assert batch["hidden_states"].dtype == torch.bfloat16
    assert batch["topk_ids"].dtype == torch.int64


def test_truncation_cuts_the_end_of_a_row_and_everything_that_goes_with_it() -> None:
    row = tiny_row([1, 2, 3], [4, 5, 6], states=True)
    batch = collate([row], pad_token_id=0, max_length=4)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 4]]
    assert batch["topk_ids"][0, 2:].tolist() == [[40, 41], [50, 51]]
    assert batch["hidden_states"][0, :, 0, 0].tolist() == [0, 1, 2, 3]
    assert collate([row], pad_token_id=0, max_length=100)["input_ids"].shape == (1, 6)


def test_rows_with_and_without_signals_share_a_batch() -> None:
    batch = collate([tiny_row([1, 2], [3], k=0), tiny_row([1, 2], [3], states=True)], pad_token_id=0)
    assert batch["topk_mask"].int().tolist() == [[0, 0, 0], [0, 1, 0]]
    assert batch["hidden_mask"].int().tolist() == [[0, 0, 0], [1, 1, 0]]


def test_a_kl_over_padding_and_impossible_tokens_is_finite() -> None:
    row = tiny_row([1, 2], [3])
    assert row.topk_logprobs is not None
    assert row.tail_logprobs is not None
    row.topk_logprobs[0, 1] = row.tail_logprobs[0] = -np.inf
    batch = collate([row, tiny_row([1], [2])], pad_token_id=0)
    student = torch.log_softmax(torch.randn(*batch["input_ids"].shape, 50), -1)
    kept = student.gather(-1, batch["topk_ids"])
    left = torch.log1p(-kept.exp().sum(-1))
    teacher, tail = batch["topk_logprobs"], batch["tail_logprobs"]
    kl = (teacher.exp() * (teacher - kept)).sum(-1) + tail.exp() * (tail - left)
    assert kl.half().isfinite().all()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (tiny_row([1], [2], k=3, states=True), r"row tiny: topk_ids is \(3,\) a token, \(2,\) in the rows before"),
        (tiny_row([1], [2], states=True, layers=2), r"hidden layers \(0,\) and \(0, 1\) in one batch"),
    ],
)
def test_rows_of_two_kinds_of_job_do_not_share_a_batch(row: Row, told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        collate([tiny_row([1], [2], states=True), row], pad_token_id=0)


@pytest.mark.parametrize("source", ["nowhere", "./a/nowhere", Path("a/nowhere")])
def test_a_missing_directory_is_told(read: Read, source: str | Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere: no such directory; give the directory of a dataset, or a Hub id"):
        read(source)


def test_a_hub_dataset_out_of_reach_is_told(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match=r"owner/name: config 'default', split 'train' cannot be loaded: .*Hub"):
        read("owner/name")


def test_a_directory_without_a_card_is_told(tmp_path: Path, read: Read) -> None:
    with pytest.raises(DatasetError, match=r"no README\.md"):
        read(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_config_or_split_names_those_that_exist(dataset: Path, read: Read, streaming: bool) -> None:
    with pytest.raises(DatasetError, match=r"'nope'.*'default', 'hidden_states', 'rejected'"):
        read(dataset, "nope", streaming=streaming)
    with pytest.raises(DatasetError, match=r"split 'test'.*'train'"):
        read(dataset, split="test", streaming=streaming)


def test_hidden_states_of_a_dataset_without_them_are_told(tmp_path: Path, read: Read) -> None:
    out = write_dataset(tmp_path / "out", [[outcome(1, PLAIN)]], PLAIN)
    with pytest.raises(DatasetError, match=r"config 'hidden_states'.*'default', 'rejected'"):
        read(out, join_hidden_states=True)


def test_a_dataset_of_another_maker_is_told(tmp_path: Path, read: Read) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-0.jsonl").write_text('{"id": "a", "text": "b"}\n')
    (tmp_path / "README.md").write_text(card(["default"], "jsonl"))
    with pytest.raises(DatasetError, match=r"config 'default' has train-0\.jsonl, no Parquet; it was not made by"):
        read(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_file_is_told(tmp_path: Path, read: Read, streaming: bool) -> None:
    out = write_dataset(tmp_path / "out", [[outcome(1)], [outcome(2)]])
    path = out / "data/train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=str(out)):
        list(read(out, streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_with_another_k_is_named(tmp_path: Path, read: Read, streaming: bool) -> None:
    out = write_dataset(tmp_path / "out", [[outcome(1)], [outcome(2)]])
    other = SignalSpec(top_k=5, layers=SIGNALS.layers)
    rewrite_shard(out, 1, [outcome(2, other)], other, "data")
    with pytest.raises(DatasetError, match=r"row id2: topk_ids has 15 values, expected 9 \(3 tokens, k = 3\)"):
        list(read(out, streaming=streaming))


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        ([outcome(2), outcome(1)], "id id2 where the other config has id1"),
        ([outcome(1)], "id None where the other config has id2"),
        ([outcome(1), outcome(2), outcome(3)], "id id3 where the other config has None"),
    ],
)
def test_states_of_other_rows_are_not_joined(tmp_path: Path, read: Read, theirs: list[Outcome], told: str) -> None:
    out = write_dataset(tmp_path / "out", [[outcome(1), outcome(2)]])
    rewrite_shard(out, 0, theirs, SIGNALS, "hidden_states")
    with pytest.raises(DatasetError, match=told):
        list(read(out, join_hidden_states=True, streaming=True))


def test_hidden_states_of_another_length_are_not_joined(tmp_path: Path, read: Read) -> None:
    out = write_dataset(tmp_path / "out", [[outcome(1)]])
    rewrite_shard(out, 0, [outcome(1, prompt_tokens=9)], SIGNALS, "hidden_states")
    with pytest.raises(DatasetError, match=r"row id1: .*\[10, 2, 8\].*expected bfloat16 \[6, 2, H\]"):
        read(out, join_hidden_states=True)[0]


WITHOUT_TORCH = """
import sys


class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, NoTorch())
from factory.errors import DatasetError
from factory.load import collate, load_rows

for options in ({}, {"streaming": True}):
    rows = load_rows(sys.argv[1], cache_dir=sys.argv[2], **options)
    print(*(row["id"] for row in rows))
    for act in (lambda: collate(list(rows), 0), lambda: list(load_rows(sys.argv[1], "hidden_states", **options))):
        try:
            act()
        except DatasetError as error:
            print(error)
assert "torch" not in sys.modules
"""


def test_a_missing_torch_is_told_and_rows_without_states_do_not_need_it(dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(dataset), str(tmp_path / "cache")]
    environment = os.environ | {"USE_TORCH": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    told = "tensors need torch, which is not installed; `pip install torch`"
    assert done.stdout.splitlines() == [" ".join(f"id{number}" for number in ACCEPTED), told, told] * 2, done.stderr


@pytest.fixture
def staged(workspace: Path, make_job: Callable[..., Job]) -> Path:
    """A dataset of three shards with two stages."""
    run(make_job(), workspace, workspace / "out")
    make_curriculum(workspace / "out", CurriculumConfig(by="tokens", stages=2, order="shuffled"))
    return workspace / "out"


def swap_rows(out: Path) -> None:
    """Two rows of the default config change places, as in another dataset under the same curriculum."""
    path = out / "data/train-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([1, 0, *range(2, table.num_rows)]), path)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stage_over_other_rows_is_told(staged: Path, read: Read, streaming: bool) -> None:
    swap_rows(staged)
    told = r"stage row \w+ points at \w+; the curriculum was made from other rows, `factory curriculum` makes it anew"
    with pytest.raises(DatasetError, match=told):
        [list(read(staged, stage, streaming=streaming)) for stage in ("stage-1", "stage-2")]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stage_that_points_past_the_end_is_told(staged: Path, read: Read, streaming: bool) -> None:
    for path in sorted((staged / "data").glob("*.parquet")):
        pq.write_table(pq.read_table(path).slice(0, 1), path)
    with pytest.raises(DatasetError, match=r"points at row \d+ of 3; the curriculum|has 1 rows, and row \d+ is asked"):
        list(read(staged, "stage-1", streaming=streaming))


def test_a_split_that_a_stage_does_not_have_is_told(staged: Path, read: Read) -> None:
    with pytest.raises(DatasetError, match=r"config 'stage-1', split 'dev' cannot be loaded"):
        read(staged, "stage-1", split="dev")


def test_rows_of_a_stage_make_batches(staged: Path, read: Read) -> None:
    rows = read(staged, "stage-2", join_hidden_states=True)
    loader = DataLoader(rows, batch_size=3, collate_fn=partial(collate, pad_token_id=0))
    assert sum(len(batch["input_ids"]) for batch in loader) == len(rows)


def test_a_dataset_of_the_layout_before_loads_as_it_did(dataset: Path, read: Read, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(dataset, old)
    for path in (old / "data").glob("*.parquet"):
        if not (table := pq.read_table(path)).num_rows:
            continue
        flat = [f.name for f in table.schema if str(f.type) in ("list<element: int32>", "list<element: halffloat>")]
        split = dict.fromkeys((f"{name}.list.element" for name in flat), "BYTE_STREAM_SPLIT")
        pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding=split)
    for row, before in zip(read(dataset), read(old), strict=True):
        assert row.columns == before.columns
        np.testing.assert_array_equal(row.topk_logprobs, before.topk_logprobs)
        np.testing.assert_array_equal(row.topk_ids, before.topk_ids)
