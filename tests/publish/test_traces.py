"""Traces written back: the teacher's logprobs stand at the nodes whose tokens they are of."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task
from dataset_support import flip_byte

from factory.cli import main
from factory.load import load_rows
from factory.publish.traces import write_traces

NODES: list[dict[str, Any]] = [
    {"parent": None, "token_ids": [50, 43], "mask": [False, False], "message": {"role": "user", "content": "2+2"}},
    {"parent": 0, "token_ids": [7, 84, 257], "mask": [False, True, True], "logprobs": [-0.1, -0.2], "sampled": True},
    {"parent": 1, "token_ids": [51], "mask": [False], "message": {"role": "tool", "content": [{"type": "text"}]}},
    {"parent": 2, "token_ids": [52, 257], "mask": [True, True], "sampled": True},
    {"parent": 0, "token_ids": [7, 85, 257], "mask": [False, True, True], "sampled": True},
]
JOB = """
out = "out"
[teacher]
backend = "scripted"
[signals]
top_k = {top_k}
[transcripts]
path = "traces.jsonl"
turns = "masked"
on_bad_row = "skip"
"""


def code_of(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    broken = [NODES[0] | {"mask": [False]}]
    traces = [
        {"id": "one", "nodes": NODES, "reward": 1.0},
        {"id": "two", "nodes": broken},
        {"id": "three", "nodes": NODES[:2]},
    ]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in traces), encoding="utf-8")
    (tmp_path / "job.toml").write_text(JOB.format(top_k=3), encoding="utf-8")
    return tmp_path


def test_each_sampled_token_has_the_logprob_of_its_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["score", "job.toml", "--traces", "scored.jsonl"]) == 0
    assert "scored.jsonl: 4 nodes have reference_logprobs" in capsys.readouterr().out
    one, two, three = map(json.loads, (folder / "scored.jsonl").read_text(encoding="utf-8").splitlines())
    before = json.loads((folder / "traces.jsonl").read_text(encoding="utf-8").splitlines()[0])
    stripped = one | {"nodes": [{k: v for k, v in node.items() if k != "reference_logprobs"} for node in one["nodes"]]}
    assert stripped == before
    assert two == {"id": "two", "nodes": [NODES[0] | {"mask": [False]}]}
    rows = {
        (json.loads(row["scenario"])["row"], json.loads(row["scenario"])["branch"]): row for row in load_rows("out")
    }
    long, short, third = (rows[key].sampled_logprobs for key in (("1", 3), ("1", 4), ("3", 1)))
    assert long is not None
    assert short is not None
    assert third is not None
    told = [node["reference_logprobs"] for node in one["nodes"]]
    assert told == [
        [],
        pytest.approx(long[:2].tolist()),
        [],
        pytest.approx(long[3:].tolist()),
        pytest.approx(short.tolist()),
    ]
    assert [node["reference_logprobs"] for node in three["nodes"]] == [[], pytest.approx(third.tolist())]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (JOB.format(top_k=0), "signals.top_k is 0, so no logprobs are kept"),
        (JOB.format(top_k=3).replace("traces.jsonl", "rows.jsonl"), "rows.jsonl is no file of traces"),
    ],
)
def test_what_can_have_no_logprobs_is_refused_before_anything_is_scored(
    folder: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "rows.jsonl").write_text('{"token_ids": [1, 2], "token_mask": [0, 1]}\n', encoding="utf-8")
    (folder / "job.toml").write_text(text, encoding="utf-8")
    assert code_of(["score", "job.toml", "--traces", "scored.jsonl"]) == 2
    assert told in capsys.readouterr().err
    assert not (folder / "out").exists()
    assert not (folder / "scored.jsonl").exists()


def test_a_file_that_cannot_be_written_leaves_nothing_beside_it(folder: Path) -> None:
    from factory.errors import DatasetError

    assert code_of(["score", "job.toml"]) == 0
    (folder / "taken").mkdir()
    with pytest.raises(DatasetError, match="taken: cannot be written"):
        write_traces(folder / "out", folder / "traces.jsonl", folder / "taken", dict.fromkeys(_ids(folder), (0, 1)))
    assert not (folder / ".tmp-taken").exists()


def test_logprobs_of_a_changed_shard_are_not_handed_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["score", "job.toml"]) == 0
    flip_byte(folder / "out/data/train-00000.parquet", 200)
    assert code_of(["score", "job.toml", "--traces", "scored.jsonl"]) == 2
    told = capsys.readouterr().err
    assert "out: data/train-00000.parquet: its bytes have changed since it was committed" in told
    assert "`factory score JOB --repair` makes it again" in told
    assert not (folder / "scored.jsonl").exists()
    assert code_of(["verify", "out"]) == 1
    assert "`factory score JOB --repair` makes it again" in capsys.readouterr().out
    text = (folder / "out/ledger.jsonl").read_text()
    (folder / "out/ledger.jsonl").write_text(text.replace("accepted", "accepte", 1))
    assert code_of(["verify", "out"]) == 1
    assert "`factory score JOB --repair` mends it" in capsys.readouterr().out


def _ids(folder: Path) -> list[str]:
    return [row["id"] for row in load_rows(folder / "out")]
