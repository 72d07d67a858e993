"""runs.jsonl: a line when a run begins, one when it ends; a kill leaves the first alone."""

import json
from pathlib import Path

from factory.dataset.history import Runs, begin_run, count_runs, end_run, read_history


def test_a_run_that_was_killed_has_begun_and_not_ended(tmp_path: Path) -> None:
    assert count_runs(tmp_path) == Runs()
    end_run(tmp_path, begin_run(tmp_path, 0), "stopped", {"rows": 3})
    begin_run(tmp_path, 3)
    assert count_runs(tmp_path) == Runs(begun=2, ended=1)
    first, ended, second = read_history(tmp_path)
    assert (ended["outcome"], ended["rows"], ended["started"]) == ("stopped", 3, first["started"])
    assert second["rows_before"] == 3


def test_a_torn_line_is_left_out_and_swallows_no_other(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"event":"started"}\n{"event":"en')
    begin_run(tmp_path, 0)
    assert [line["event"] for line in read_history(tmp_path)] == ["started", "started"]


def test_lines_of_runs_that_told_of_their_end_alone_count_as_whole(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(json.dumps({"rows": 3}) + "\n")
    assert count_runs(tmp_path) == Runs(begun=1, ended=1)
