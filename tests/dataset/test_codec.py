"""The compact profile: ids come back exactly, logprobs within their bounds, in few bytes; damage is named."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_support import make_prompt, make_record
from hypothesis import given
from hypothesis import strategies as st

from factory.checks.verify import verify
from factory.dataset.codec import COLUMNS, GRID, NOWHERE, Packed, find_damage, pack, read_topk, to_grid
from factory.dataset.layouts import layouts
from factory.dataset.manifest import read_manifest, read_signals
from factory.dataset.shards import write_shard
from factory.errors import DatasetError
from factory.job.job import Job
from factory.load import load_rows
from factory.publish.card import DECODER
from factory.publish.show import describe_rows
from factory.records import Record
from factory.runs.run import run
from factory.signals import Array, Logprobs, SignalSpec

BYTES, KL = 60, 1e-5  # the bars at k = 20: bytes a position, mean nats
COMPACT, EXACT = SignalSpec(top_k=20, compact=True), SignalSpec(top_k=20)
NUMBERS = (
    "sampled_logprobs",
    "topk_id_table",
    "topk_id_places",
    "topk_first",
    "topk_steps",
    "tail_logprobs",
    "entropy",
)
Flat = dict[str, tuple[Array, Array]]


def lay_flat(rows: list[Packed]) -> Flat:
    """The columns of rows as they lie in a batch."""
    parts = [[row.table_D, row.places, row.first_T, row.steps] for row in rows]
    columns = zip(COLUMNS, zip(*parts, strict=True), strict=True)
    return {
        name: (np.concatenate([one.reshape(-1) for one in arrays]), np.cumsum([0, *(one.size for one in arrays)]))
        for name, arrays in columns
    }


def draw_rows(seed: int, spread: float, vocab: int, rows: int = 12, tokens: int = 250, k: int = 20) -> list[Logprobs]:
    """Distributions as a language model's: Zipf in the vocabulary, a few ids that the context favours, many shapes.

    The mass outside the candidates is spread over the rest of the vocabulary. `spread` scales the entropy.
    """
    rng = np.random.default_rng(seed)
    return [_draw_row(rng, spread, vocab, tokens, k) for _ in range(rows)]


def _draw_row(rng: np.random.Generator, spread: float, vocab: int, tokens: int, k: int) -> Logprobs:
    count = 8 * k
    ids = (np.exp(rng.random((tokens, count)) * np.log(vocab)) - 1).astype(np.int64)
    scores = rng.standard_normal((tokens, count)) * 1.5 - 0.6 * np.log(1 + rng.random((tokens, count)) * vocab)
    scores[:, :6] += rng.gamma(2.0, 3.0, (tokens, 6))
    scores *= rng.gamma(8, 1 / 8, (tokens, 1)) * spread
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    by_id = np.argsort(ids, axis=1, kind="stable")
    again = np.diff(np.take_along_axis(ids, by_id, 1), axis=1, prepend=-1) == 0
    scores[np.take_along_axis(again, np.argsort(by_id, axis=1), 1)] = -np.inf  # an id is there once
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    order = np.argsort(-scores, axis=1, kind="stable")
    sorted_ids, sorted_scores = (np.take_along_axis(one, order, 1) for one in (ids, scores))
    p = np.exp(sorted_scores)
    entropy = -(p * np.where(p > 0, sorted_scores, 0)).sum(1)
    return Logprobs(
        sampled_T=sorted_scores[np.arange(tokens), rng.integers(0, 3, tokens)].astype(np.float32),
        topk_ids_TK=sorted_ids[:, :k].astype(np.int32),
        topk_TK=sorted_scores[:, :k].astype(np.float16),
        tail_T=np.log(p[:, k:].sum(1)).astype(np.float32),
        entropy_T=entropy.astype(np.float32),
    )


def divergence(exact: Logprobs, decoded_TK: Array) -> Array:
    """KL(exact || decoded) at each position over the top k and the tail, nothing renormalised."""
    p_log = np.column_stack([exact.topk_TK, exact.tail_T]).astype(np.float64)
    q_log = np.column_stack([decoded_TK, exact.tail_T.astype(np.float16)]).astype(np.float64)
    p = np.exp(p_log)
    with np.errstate(invalid="ignore"):
        kl: Array = np.where(p > 0, p * (p_log - q_log), 0).sum(1)
    return kl


def records_of(rows: list[Logprobs]) -> list[Record]:
    made = []
    for number, row in enumerate(rows):
        ids = np.resize(row.topk_ids_TK[:, :1].reshape(-1), len(row.sampled_T)).astype(np.int32)
        record = make_record(number, COMPACT, logprobs=row, completion_token_ids=ids)
        made.append(replace(record, prompt=make_prompt(number)))
    return made


def stored_bytes(path: Path, names: tuple[str, ...]) -> int:
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] in names)


MODELS = pytest.mark.parametrize(("spread", "vocab"), [(1.3, 4096), (1.0, 151_936), (0.7, 151_936), (0.4, 151_936)])


@MODELS
def test_a_position_takes_few_bytes_and_loses_little(tmp_path: Path, spread: float, vocab: int) -> None:
    most = BYTES if vocab < 2**16 else 63  # ids that are nearly independent, short rows: worse than a trained teacher
    rows = draw_rows(0, spread, vocab)
    (file, *_) = write_shard(tmp_path, 0, list(records_of(rows)), COMPACT)
    positions = sum(len(row.sampled_T) for row in rows)
    assert stored_bytes(tmp_path / file.path, NUMBERS) / positions <= most
    flat = lay_flat([pack(row) for row in rows])
    assert not list(find_damage(flat, np.array([len(row.sampled_T) for row in rows]), 20))
    ids, logprobs = read_topk(flat, 20).values()
    assert np.array_equal(ids, np.concatenate([row.topk_ids_TK for row in rows]))
    cuts = np.split(logprobs, np.cumsum([len(row.sampled_T) for row in rows])[:-1])
    kl = np.concatenate([divergence(row, decoded) for row, decoded in zip(rows, cuts, strict=True)])
    assert abs(kl.mean()) <= np.abs(kl).mean() <= KL


@MODELS
def test_every_logprob_is_within_its_bound_and_the_order_stays(spread: float, vocab: int) -> None:
    for row in draw_rows(1, spread, vocab, rows=4):
        _, decoded = read_topk(lay_flat([pack(row)]), 20).values()
        given_TK = np.maximum(row.topk_TK.astype(np.float64), -4000)
        error = np.abs(decoded - given_TK)[np.isfinite(row.topk_TK)]
        assert error.max() <= 0.032
        fine = np.abs(decoded - given_TK)[:, 1:] <= np.maximum(0.0011 / np.sqrt(np.exp(given_TK[:, 1:])), 1e-6)
        assert fine[np.isfinite(row.topk_TK[:, 1:])].all()
        with np.errstate(invalid="ignore"):
            assert not (np.diff(decoded, axis=1) > 1e-5).any()


@given(st.data())
def test_ids_and_lengths_come_back_whatever_they_are(data: Any) -> None:
    k, seed = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 2**32 - 1))
    rng, vocab = np.random.default_rng(seed), data.draw(st.sampled_from([1, 7, 300, 2**31 - 1]))
    rows = [
        Logprobs(
            sampled_T=np.zeros(tokens, np.float32),
            topk_ids_TK=rng.integers(0, vocab, (tokens, k)).astype(np.int32),
            topk_TK=(-rng.exponential(data.draw(st.sampled_from([0.01, 3.0, 1000.0])), (tokens, k))).astype(np.float16),
            tail_T=-rng.random(tokens, np.float32),
            entropy_T=np.zeros(tokens, np.float32),
        )
        for tokens in data.draw(st.lists(st.integers(0, 4), max_size=4))
    ]
    flat = lay_flat([pack(row) for row in rows]) if rows else lay_flat([pack(empty(k))])
    assert not list(find_damage(flat, np.array([len(row.sampled_T) for row in rows] or [0]), k))
    ids, logprobs = read_topk(flat, k).values()
    assert np.array_equal(ids, np.concatenate([np.zeros((0, k), np.int32), *(row.topk_ids_TK for row in rows)]))
    given_TK = np.concatenate([np.zeros((0, k)), *(row.topk_TK.astype(np.float64) for row in rows)])
    assert (np.abs(logprobs - given_TK) <= 0.032)[given_TK > -4000].all()


def empty(k: int) -> Logprobs:
    nothing = np.zeros(0, np.float32)
    return Logprobs(nothing, np.zeros((0, k), np.int32), np.zeros((0, k), np.float16), nothing, nothing)


def test_what_has_no_probability_stays_so() -> None:
    topk_TK = np.array(
        [[0, -np.inf, -np.inf], [-1e30, -1e30, -1e30], [-0.5, -1, -5000], [-1e-8, -17, -65504]], np.float32
    )
    with np.errstate(over="ignore"):
        halves = topk_TK.astype(np.float16)
    tail_T = np.array([-np.inf, 0, -4, -np.inf], np.float32)
    row = Logprobs(np.zeros(4, np.float32), np.arange(12, dtype=np.int32).reshape(4, 3), halves, tail_T, tail_T)
    _, decoded = read_topk(lay_flat([pack(row)]), 3).values()
    nowhere = [[False, True, True], [True] * 3, [False, False, True], [False, False, True]]
    assert np.isneginf(decoded).tolist() == nowhere
    assert decoded[0, 0] == 0
    assert np.isneginf(pack(row).first_T.astype(np.float32)).sum() == 0


def test_every_grid_place_is_its_own_nearest() -> None:
    places = np.arange(NOWHERE + 1)
    finite = GRID[: places[-1]]
    assert (np.diff(finite) < 0).all()
    assert np.array_equal(to_grid(GRID), places)


def write_dataset(out: Path, rows: list[Logprobs], signals: SignalSpec = COMPACT) -> Path:
    write_shard(out, 0, list(records_of(rows)), signals)
    head = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n---\n"
    )
    (out / "README.md").write_text(head)
    return out


def test_loading_gives_the_same_arrays_in_both_profiles(tmp_path: Path) -> None:
    rows = [*draw_rows(2, 1.0, 4096, rows=3, tokens=9), empty(20)]
    loaded = [
        list(load_rows(write_dataset(tmp_path / name, rows, signals), cache_dir=tmp_path / "cache"))
        for name, signals in (("compact", COMPACT), ("exact", EXACT))
    ]
    for mine, exact in zip(*loaded, strict=True):
        assert mine.columns == exact.columns
        assert mine.topk_ids is not None
        assert exact.topk_logprobs is not None
        assert np.array_equal(mine.topk_ids, exact.topk_ids)
        assert mine.topk_logprobs.dtype == exact.topk_logprobs.dtype
        np.testing.assert_allclose(mine.topk_logprobs, exact.topk_logprobs, atol=0.032)
        for name in ("sampled_logprobs", "tail_logprobs", "entropy"):
            assert getattr(mine, name).dtype == np.float32
            np.testing.assert_allclose(getattr(mine, name), getattr(exact, name), rtol=1 / 2048, atol=1e-7)


def test_the_decoder_in_the_documentation_and_in_the_card_reads_plain_rows(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent.parent / "docs/dataset-format.md").read_text(encoding="utf-8")
    (sample,) = (part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def decode_topk" in part)
    assert DECODER.strip() in sample
    out = write_dataset(tmp_path / "out", [*draw_rows(3, 0.8, 151_936, rows=2, tokens=30), empty(20)])
    plain = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    for row, mine in zip(plain, load_rows(out, cache_dir=tmp_path / "cache"), strict=True):
        names: dict[str, Any] = {"row": row}
        exec(sample, names)
        assert np.array_equal(names["topk_ids_TK"].reshape(-1), mine.topk_ids.reshape(-1))
        np.testing.assert_allclose(
            names["topk_logprobs_TK"].reshape(-1), mine.topk_logprobs.reshape(-1), rtol=1e-6, atol=1e-9
        )


DAMAGES: dict[str, tuple[str, Callable[[list[int]], list[int]]]] = {
    "a table cut short": ("topk_id_table", lambda values: values[:-1]),
    "no table": ("topk_id_table", lambda values: []),
    "an id below 0": ("topk_id_table", lambda values: [-5, *values[1:]]),
    "an id too large": ("topk_id_table", lambda values: [2**31 - 1, 2**31 - 1, *values[2:]]),
    "a place too far": ("topk_id_places", lambda values: [len(values) + 1, *values[1:]]),
    "a place below 0": ("topk_id_places", lambda values: [-1, *values[1:]]),
    "places cut short": ("topk_id_places", lambda values: values[:-1]),
    "a first too many": ("topk_first", lambda values: [*values, 1]),
    "a first below 0": ("topk_first", lambda values: [-1, *values[1:]]),
    "steps cut short": ("topk_steps", lambda values: values[:-3]),
    "no steps": ("topk_steps", lambda values: []),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_and_names_its_row(tmp_path: Path, name: str) -> None:
    column, change = DAMAGES[name]
    out = write_dataset(tmp_path / "out", draw_rows(4, 1.0, 4096, rows=3, tokens=6))
    path = out / "data/train-00000.parquet"
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[1] = change(values[1])
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)
    with pytest.raises(DatasetError, match=r"^[^\n]*row id1: topk_[^\n]*; damaged$"):
        list(load_rows(out, streaming=True))


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    return make_job(storage={"logprobs": "compact"})


def test_a_run_makes_a_compact_dataset_that_loads_and_verifies(workspace: Path, job: Job, tmp_path: Path) -> None:
    out = workspace / "out"
    run(job, workspace, out)
    assert list(verify(out)) == []
    signals = read_signals(read_manifest(out))
    assert signals is not None
    assert signals.compact
    assert read_manifest(out)["meaning"]["topk_ids"] == "exact"
    assert "def decode_topk" in (out / "README.md").read_text()
    assert any("top" in line for line in describe_rows(out, 1))
    plain = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert plain.column_names == layouts(signals)["default"].schema.names
    rows = list(load_rows(out, cache_dir=tmp_path / "cache"))
    assert len(rows) == len(plain) > 0
    for row in rows:
        assert row.topk_ids is not None
        assert row.topk_ids.shape == row.topk_logprobs.shape == (len(row.completion_token_ids), signals.top_k)
        assert (np.diff(row.topk_logprobs, axis=1) <= 1e-5).all()


def test_a_compact_run_has_the_ids_of_an_exact_one(
    workspace: Path, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    loaded = []
    for profile in ("exact", "compact"):
        run(make_job(storage={"logprobs": profile}), workspace, workspace / profile)
        loaded.append(list(load_rows(workspace / profile, cache_dir=tmp_path / "cache")))
    for exact, compact in zip(*loaded, strict=True):
        assert exact["id"] == compact["id"]
        assert np.array_equal(exact.topk_ids, compact.topk_ids)
        np.testing.assert_allclose(exact.topk_logprobs, compact.topk_logprobs, atol=0.032)
