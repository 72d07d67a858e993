"""Transcripts that name ids of their own: the teacher's logprobs of just these, from the data to a trainer's batch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from dataset_support import change_line, make_generation, read_table

from factory.checks.verify import verify
from factory.dataset.manifest import read_manifest, read_signals
from factory.dataset.shards import shard_path
from factory.errors import DatasetError, JobError
from factory.forecast.estimate import estimate
from factory.job.job import Job
from factory.load import collate, load_rows
from factory.quality.validate import find_damage
from factory.runs.run import run
from factory.signals import Candidates, SignalSpec
from factory.teachers.spool import Spool, SpoolWriter

ROWS: list[dict[str, Any]] = [
    {
        "prompt_token_ids": [50, 43, 50],
        "completion_token_ids": [84, 256, 52, 257],
        "candidate_ids": [[84, 1, 2], [256], [], [257, 9, 8, 7]],
    },
    {"prompt_token_ids": [50, 43], "completion_token_ids": [52, 257], "candidate_ids": [[52, 84], [1, 257]]},
]
PROFILES = pytest.mark.parametrize("profile", ["exact", "compact"])


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def score(folder: Path, rows: list[dict[str, Any]], profile: str = "exact", **sections: Any) -> Path:
    more = sections.pop("transcripts", {})
    job = {
        "out": "out",
        "teacher": {"backend": "scripted"},
        "signals": {"top_k": 4},
        "storage": {"logprobs": profile},
        "transcripts": {"path": str(write_rows(folder, rows))} | more,
    }
    out = folder / "out"
    run(Job.model_validate(job | sections), folder, out)
    return out


@PROFILES
def test_a_row_has_the_logprobs_of_just_the_ids_that_it_names(tmp_path: Path, profile: str) -> None:
    out = score(tmp_path, ROWS, profile, signals={"top_k": 258, "positions": "completion"})
    assert list(verify(out)) == []
    signals = read_signals(read_manifest(out))
    assert signals is not None
    assert signals.candidates
    for row, given in zip(load_rows(out), ROWS, strict=True):
        named = given["candidate_ids"]
        most = max(map(len, named))
        assert row.candidate_ids.tolist() == [ids + [-1] * (most - len(ids)) for ids in named]
        assert row.keys().count("candidate_logprobs") == 1
        for t, ids in enumerate(named):
            # the whole distribution but for two ids is kept beside it: both say the same
            kept = dict(zip(row.topk_ids[t].tolist(), row.topk_logprobs[t].tolist(), strict=True))
            for at, one in enumerate(ids):
                if one in kept:
                    assert row.candidate_logprobs[t, at] == pytest.approx(kept[one], abs=0.035)
            assert np.isneginf(row.candidate_logprobs[t, len(ids) :]).all()
    stored = read_table(out, "data")[0]
    assert stored["candidate_counts"] == [3, 1, 0, 4]
    assert ("candidate_id_table" in stored) == (profile == "compact")
    assert len(stored["candidate_logprobs"]) == 8


def test_a_batch_has_them_where_a_student_predicts_the_token(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rows = list(load_rows(score(tmp_path, ROWS)))
    batch = collate(rows, pad_token_id=0)
    assert batch["candidate_ids"].shape == batch["candidate_logprobs"].shape == (2, 7, 4)
    for place, row in enumerate(rows):
        first = len(row.prompt_token_ids) - 1
        kept = batch["candidate_kept"][place].numpy()
        assert kept.sum() == (row.candidate_ids >= 0).sum()
        assert not kept[:first].any()
        T, C = row.candidate_ids.shape
        at = batch["candidate_ids"][place].numpy()[first : first + T, :C]
        assert np.array_equal(at[row.candidate_ids >= 0], row.candidate_ids[row.candidate_ids >= 0])
        given = batch["candidate_logprobs"][place].numpy()[first : first + T, :C]
        assert np.array_equal(given[row.candidate_ids >= 0], row.candidate_logprobs[row.candidate_ids >= 0])
    # docs/signals.md: a loss over the candidates is finite, and 0 for a student that gives them what the teacher does
    logits = torch.zeros(2, 7, 260).scatter_(2, batch["candidate_ids"], batch["candidate_logprobs"])
    student = logits.gather(2, batch["candidate_ids"])
    loss = (student.exp() * (student - batch["candidate_logprobs"])).masked_fill(~batch["candidate_kept"], 0).sum(-1)
    assert torch.isfinite(loss).all()


def test_rows_of_ours_and_flat_ids_name_candidates_too(tmp_path: Path) -> None:
    """A student's own top k, as its dataset holds it: flat, and what was scored once can be scored again."""
    first = score(tmp_path, [{key: row[key] for key in row if key != "candidate_ids"} for row in ROWS])
    again = {"path": str(first), "columns": {"candidate_ids": "topk_ids"}, "keep": ["id"]}
    job = {"out": "o", "teacher": {"backend": "scripted"}, "signals": {"top_k": 4}, "transcripts": again}
    run(Job.model_validate(job), tmp_path, tmp_path / "second")
    (tmp_path / "third").mkdir()
    again = {"path": str(tmp_path / "second")}
    run(Job.model_validate(job | {"transcripts": again}), tmp_path, tmp_path / "third")
    student, second, third = (read_table(tmp_path / name, "data") for name in ("out", "second", "third"))
    for rows in zip(student, second, third, strict=True):
        assert rows[0]["topk_ids"] == rows[1]["candidate_ids"] == rows[2]["candidate_ids"]
        assert rows[1]["candidate_counts"] == [4] * len(rows[1]["completion_token_ids"])


def test_only_what_is_scored_keeps_what_it_names(tmp_path: Path) -> None:
    row = {
        "token_ids": [50, 43, 84, 257, 51, 52, 257],
        "token_mask": [0, 0, 1, 1, 0, 1, 1],
        "candidate_ids": [[1], [2], [3], [4, 5], [6], [7], [8]],
    }
    out = score(tmp_path, [row], transcripts={"turns": "masked"})
    (stored,) = read_table(out, "data")
    assert stored["candidate_ids"] == [3, 4, 5, 7, 8]
    assert stored["candidate_counts"] == [1, 2, 0, 1, 1]
    assert list(verify(out)) == []


def test_bad_candidates_are_rows_that_are_told_of(tmp_path: Path) -> None:
    bad = [
        ROWS[0],
        ROWS[1] | {"candidate_ids": [[52], [257], [1]]},
        ROWS[1] | {"candidate_ids": [[52], [-1]]},
        ROWS[1] | {"candidate_ids": None},
        ROWS[1] | {"candidate_ids": [[52], [260]]},
    ]
    out = score(tmp_path, bad, transcripts={"on_bad_row": "skip"})
    reasons = [(row["stage"], row["reason"], row["findings"][0]) for row in read_table(out, "rejected")]
    assert [reason[:2] for reason in reasons] == [("prompt", "bad_transcript")] * 3 + [("prompt", "bad_token_id")]
    assert "line 2: candidate_ids: 3 lists for 2 ids" in reasons[0][2]
    assert "line 3: candidate_ids: 1.0: Input should be greater than or equal to 0" in reasons[1][2]
    assert "line 4: has no candidate_ids" in reasons[2][2]
    assert "a candidate is below 0 or above 259" in reasons[3][2]


@pytest.mark.parametrize(
    ("rows", "sections", "told"),
    [
        (
            [{"prompt": "a", "completion": "b", "candidate_ids": [[1]]}],
            {},
            r"column 'candidate_ids' of .* rows of prompt and completion have none of their own .*give the ids too",
        ),
        (
            ROWS,
            {"signals": {"top_k": 0}},
            r"^signals\.top_k is 0, .* names candidates \(candidate_ids\); set top_k = 1",
        ),
        (
            [{key: row[key] for key in row if key != "candidate_ids"} for row in ROWS],
            {"transcripts": {"columns": {"candidate_counts": "prompt_token_ids"}}},
            r"candidate_counts 'prompt_token_ids' belong to candidate_ids; name both",
        ),
    ],
    ids=["texts", "no logprobs", "counts alone"],
)
def test_jobs_that_cannot_keep_them_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], sections: dict[str, Any], told: str
) -> None:
    with pytest.raises(JobError, match=told) as refused:
        score(tmp_path, rows, **sections)
    assert "\n" not in str(refused.value)


@PROFILES
def test_damage_to_what_is_stored_is_found(tmp_path: Path, profile: str) -> None:
    out = score(tmp_path, ROWS, profile)
    path = out / shard_path("data", 0)
    table = pq.read_table(path)
    lists = table.column("candidate_logprobs").to_pylist()
    lists[1] = lists[1][:-1]
    changed = pa.array(lists, table.schema.field("candidate_logprobs").type)
    at = table.schema.get_field_index("candidate_logprobs")
    pq.write_table(table.set_column(at, table.schema.field(at), changed), path)
    name, proof = shard_path("data", 0), {"bytes": path.stat().st_size, "blake3": blake3(path.read_bytes()).hexdigest()}
    # a fault of the writer's, not of the disk: the ledger proves what it wrote
    change_line(out, 1, lambda entry: next(f for f in entry["files"] if f["path"] == name).update(proof))
    told = "candidate_logprobs has 3 values, expected 4 by candidate_counts"
    assert told in "\n".join(verify(out))
    with pytest.raises(DatasetError, match=told):
        list(load_rows(out))


def test_a_plan_counts_them(tmp_path: Path) -> None:
    score(tmp_path, ROWS)
    many = [ROWS[0] | {"candidate_ids": [list(range(200))] * 4}] * 50
    few = [ROWS[0]] * 50
    told = []
    for number, rows in enumerate((few, many)):
        folder = tmp_path / str(number)
        folder.mkdir()
        job = {
            "out": "out",
            "teacher": {"backend": "scripted"},
            "signals": {"top_k": 4},
            "transcripts": {"path": str(write_rows(folder, rows))},
        }
        lines = estimate(Job.model_validate(job), tmp_path, folder / "new")
        told.append(next(float(line.split()[1]) for line in lines if line.split()[:1] == ["logprobs"]))
    assert told[1] > 5 * told[0]


def test_the_gate_finds_candidates_that_did_not_come_or_do_not_fit() -> None:
    asked = SignalSpec(top_k=3, layers=(1, 4), candidates=True)
    whole = make_generation(3)  # four completion tokens
    good = Candidates(np.array([1, 0, 2, 0]), np.array([5, 6, 7], np.int32), np.array([-1, -2, -3], np.float16))
    assert find_damage(replace(whole, candidates=good), asked, 100) is None
    for changed, reason in (
        (None, "missing"),
        (replace(good, counts_T=good.counts_T[:3]), "misaligned"),
        (replace(good, logprobs_M=good.logprobs_M[:2]), "misaligned"),
        (replace(good, ids_M=np.array([5, 6, 100], np.int32)), "bad_token_id"),
        (replace(good, logprobs_M=np.array([-1, np.nan, -3], np.float16)), "nonfinite"),
    ):
        damage = find_damage(replace(whole, candidates=changed), asked, 100)
        assert damage is not None
        assert damage[0] == reason


def test_the_spool_gives_them_back(tmp_path: Path) -> None:
    named = Candidates(np.array([1, 0, 2, 0]), np.array([5, 6, 7], np.int32), np.array([-1, -2, -3], np.float16))
    spool = Spool(tmp_path)
    place = SpoolWriter(tmp_path).append(make_generation(3, candidates=named))
    found = spool.read(place).candidates
    assert found is not None
    assert all(np.array_equal(getattr(found, name), getattr(named, name)) for name in Candidates.__slots__)
