"""Showing a dataset: counts that add up, and a row that a person can read."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_task
from dataset_support import forge_text, held_ledger, make_prompt, read_table

from factory.dataset.entries import Totals
from factory.dataset.history import begin_run
from factory.errors import DatasetError, JobError
from factory.job.job import Job
from factory.publish.show import (
    WIDTH,
    Choice,
    accepted_rows,
    describe_prompt,
    describe_rows,
    describe_totals,
    read_totals,
)
from factory.runs.run import run
from factory.teachers.spelling import open_speller

MakeJob = Callable[..., Job]


def test_the_totals_are_shown_as_an_equation_with_reasons_below(workspace: Path, make_job: MakeJob) -> None:
    job = make_job(teacher={"backend": "scripted", "scripted": {"bad_json": 0.3, "truncated": 0.2}})
    totals = run(job, workspace, workspace / "out")
    lines = describe_totals(workspace / "out", read_totals(workspace / "out"))
    share = f"{totals.accepted / 20:.0%}"
    assert lines[0] == f"{workspace / 'out'}: complete"
    assert (
        lines[1]
        == f"  planned 20 = accepted {totals.accepted} ({share}) + rejected {totals.rejected} + errors 0 + left 0"
    )
    assert lines[2].startswith(f"  shards 3 of 3, {totals.completion_tokens:,} completion tokens, ")
    assert [line.split() for line in lines[5:]] == sorted(
        (["rejected", str(count), reason] for reason, count in totals.reasons.items()), key=lambda row: -int(row[1])
    )


def test_an_unfinished_dataset_says_what_is_left(tmp_path: Path) -> None:
    with held_ledger(tmp_path, {"planned": 2000, "shards": 2}, {}):
        pass
    lines = describe_totals(tmp_path, read_totals(tmp_path))
    assert lines[0] == f"{tmp_path}: 2,000 rows left; the same `factory run` goes on"
    assert lines[1] == "  planned 2,000 = accepted 0 + rejected 0 + errors 0 + left 2,000"


def test_large_counts_line_up() -> None:
    totals = Totals(planned=3, accepted=3, cells={"a/b": [1, 0, 0], "longer/b": [12345, 5, 0]})
    first, second = describe_totals(Path("out"), totals)[3:]
    assert first == "  a/b             1 accepted of 1"
    assert second == "  longer/b   12,345 accepted of 12,350"


def test_accepted_rows_come_in_order_and_only_with_the_columns_asked_for(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    rows = list(accepted_rows(workspace / "out", ["id", "level"]))
    assert rows == [{"id": row["id"], "level": row["level"]} for row in read_table(workspace / "out", "data")]


def test_a_row_is_shown_with_its_texts_and_its_signals_token_by_token(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    row = read_table(workspace / "out", "data")[0]
    shown = "\n".join(describe_rows(workspace / "out", 1))
    assert f"── adding · {row['level']} · row {row['id']} " in shown
    assert "user        " + row["prompt"][1]["content"] in shown
    assert "reasoning   " + row["reasoning"] in shown
    assert f'"total": {json.loads(row["answer"])["total"]}' in shown
    assert "hidden states of layers [2, 4]" in " ".join(shown.split())
    start = row["answer_start"]
    best = f'top {row["topk_ids"][start * 4]} "{{":{row["topk_logprobs"][start * 4]:.2f}'
    assert f"token {start}: {row['completion_token_ids'][start]}" in shown
    assert f"logprob {row['sampled_logprobs'][start]:7.2f}   {best}" in shown
    assert f"mean entropy {math.fsum(row['entropy']) / len(row['entropy']):.2f} nats" in shown


def test_as_many_rows_are_shown_as_asked_for(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    heads = [line for line in describe_rows(workspace / "out", 12) if line.startswith("──")]
    assert len(heads) == 12
    assert len({line for line in describe_rows(workspace / "out", 99) if line.startswith("──")}) == 20


def test_a_row_without_signals_is_shown_without_them(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(signals={"top_k": 0}), workspace, workspace / "out")
    shown = describe_rows(workspace / "out", 1)
    assert shown[-1].startswith("signals     ")
    assert "entropy" not in shown[-1]
    assert "hidden" not in shown[-1]


def test_a_long_text_is_cut_and_says_by_how_much(workspace: Path, make_job: MakeJob) -> None:
    write_task(workspace, user_j2="{% for i in range(50) %}line {{ i }}\n{% endfor %}", user_short_j2="x " * 4000)
    run(make_job(), workspace, workspace / "out")
    lines = describe_rows(workspace / "out", 20)
    assert any("37 lines more" in line for line in lines)
    assert max(map(len, lines)) <= WIDTH + 5


def test_findings_of_an_accepted_row_are_shown(workspace: Path, make_job: MakeJob) -> None:
    wrong = {"backend": "scripted", "scripted": {"wrong": 1}}
    run(make_job(validation={"gate": "schema"}, teacher=wrong), workspace, workspace / "out")
    assert any(line.startswith("findings    wrong_total: got ") for line in describe_rows(workspace / "out", 1))


def test_a_dataset_without_an_accepted_row_points_to_the_reasons(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(teacher={"backend": "scripted", "scripted": {"crash": 1}}), workspace, workspace / "out")
    (line,) = describe_rows(workspace / "out", 3)
    assert "no accepted row yet; `factory status" in line


def test_a_missing_shard_is_named(workspace: Path, make_job: MakeJob) -> None:
    run(make_job(), workspace, workspace / "out")
    (workspace / "out/data/train-00001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"data/train-00001\.parquet"):
        describe_rows(workspace / "out", 20)


def test_a_row_of_a_changed_file_is_shown_below_a_warning(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    run(make_job(), workspace, out)
    sound = describe_rows(out, 1)
    forge_text(out / "data/train-00000.parquet", "reasoning")
    warning, *shown = describe_rows(out, 1)
    assert warning.startswith(f"warning: {out}: data/train-00000.parquet: ")
    assert warning.endswith(f"; `factory verify {out}` tells what else is, `factory run JOB --repair` makes it again")
    assert len(shown) == len(sound)
    assert shown != sound
    # rows of other files are what they were
    other = read_table(out, "data")[-1]["id"]
    assert describe_rows(out, 1, Choice(id=other))[0].startswith("── ")


def test_a_file_that_cannot_be_read_names_what_verifies_it(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    run(make_job(), workspace, out)
    path = out / "data/train-00000.parquet"
    path.write_bytes(path.read_bytes()[:100])
    step = rf"; `factory verify {re.escape(str(out))}` tells what else is damaged, and what makes it whole$"
    with pytest.raises(DatasetError, match=rf"train-00000\.parquet: not readable as Parquet: .*{step}"):
        describe_rows(out, 1)
    path.unlink()
    with pytest.raises(DatasetError, match=rf"train-00000\.parquet: missing{step}"):
        describe_rows(out, 1)


def test_a_prompt_is_shown_for_people_or_as_one_json_line() -> None:
    prompt = make_prompt(3, messages=({"role": "system", "content": "é"}, {"role": "user", "content": "a\nb"}))
    text = describe_prompt(prompt, as_json=False)
    assert text.startswith("── adding · easy · id3 ")
    assert text.endswith("[system]\né\n\n[user]\na\nb\n")
    line = describe_prompt(prompt, as_json=True)
    assert "\n" not in line
    assert json.loads(line) == {
        "id": "id3",
        "task": "adding",
        "level": "easy",
        "messages": [{"role": "system", "content": "é"}, {"role": "user", "content": "a\nb"}],
        "scenario": '{"a":1}',
    }


def heads(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("── ")]


def test_rows_are_chosen_by_task_level_reason_and_id(workspace: Path, make_job: MakeJob) -> None:
    out = workspace / "out"
    run(make_job(teacher={"backend": "scripted", "scripted": {"wrong": 0.3, "bad_json": 0.2}}), workspace, out)
    accepted, rejected = read_table(out, "data"), read_table(out, "rejected")
    hard = [row["id"] for row in accepted if row["level"] == "hard"]
    assert [line.split()[6] for line in heads(describe_rows(out, 99, Choice(level="hard")))] == hard
    for reason in ("wrong_total", "check", "check/wrong_total"):
        shown = describe_rows(out, 99, Choice(reason=reason))
        wrong = [row["id"] for row in rejected if row["reason"] == "wrong_total"]
        assert [line.split()[6] for line in heads(shown)] == wrong
        assert any(line.startswith("rejected    check/wrong_total, attempt 1") for line in shown)
        assert any(line.startswith("findings    wrong_total: got ") for line in shown)
    assert len(heads(describe_rows(out, 99, Choice(rejected=True)))) == len(rejected)
    for row in (accepted[-1], rejected[-1]):
        assert [line.split()[6] for line in heads(describe_rows(out, 9, Choice(id=row["id"])))] == [row["id"]]
    with pytest.raises(JobError, match=rf"^--id zzz: no row .* begins so, nor its prompt, in {re.escape(str(out))}"):
        describe_rows(out, 9, Choice(id="zzz"))


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"task": "ading"}, r"^--task ading: .* has no such task \(has: adding\); did you mean 'adding'\?$"),
        ({"level": "hrad"}, r"^--level hrad: .* no such level \(has: easy, hard\); did you mean 'hard'\?$"),
        (
            {"reason": "check/wrong_totl"},
            r"no such reason \(has: check, check/wrong_total, wrong_total\); did you mean 'check/wrong_total'\?$",
        ),
    ],
)
def test_what_no_row_can_have_is_an_error_with_what_there_is(
    workspace: Path, make_job: MakeJob, choice: dict[str, str], told: str
) -> None:
    run(make_job(teacher={"backend": "scripted", "scripted": {"wrong": 0.5}}), workspace, workspace / "out")
    with pytest.raises(JobError, match=told):
        describe_rows(workspace / "out", 1, Choice(**choice))


def test_a_level_that_is_planned_and_has_no_row_is_no_error(workspace: Path, make_job: MakeJob) -> None:
    job = make_job(tasks=[{"name": "adding", "count": 4, "levels": {"easy": 1}}])
    run(job, workspace, workspace / "out")
    (line,) = describe_rows(workspace / "out", 9, Choice(level="hard"))
    assert "no such row; `factory status" in line


def test_a_choice_among_samples_is_told_by_prompts_and_pairs_and_not_as_a_share(
    workspace: Path, make_job: MakeJob
) -> None:
    out = workspace / "out"
    job = make_job(
        teacher={"backend": "scripted", "scripted": {"wrong": 0.4}},
        samples={"n": 4, "keep": "pair"},
        tasks=[{"name": "adding", "count": 10}],
    )
    totals = run(job, workspace, out)
    lines = describe_totals(out, totals)
    assert f"accepted {totals.accepted} + rejected" in lines[1]
    told = f"10 of 10 prompts decided, {totals.accepted} with a kept answer, {totals.pairs} preference pairs"
    assert lines[3] == f"  4 samples a prompt, keep pair: {told}"
    begin_run(out, 40)
    assert "  runs 2, of which 1 has told of no end: killed, or at work" in describe_totals(out, totals)


def test_tokens_have_their_text_beside_their_id_where_the_tokenizer_is_the_teachers(
    workspace: Path, make_job: MakeJob
) -> None:
    out = workspace / "out"
    run(make_job(), workspace, out)
    row, lines = read_table(out, "data")[0], describe_rows(out, 1)
    start = row["answer_start"]
    spelt = [line for line in lines if line.strip().startswith(f"token {start}: 123 ")]
    assert spelt[0].strip().startswith(f'token {start}: 123 "{{"'), "123 is an opening brace in ASCII"
    manifest = json.loads((out / "manifest.json").read_text())
    assert open_speller(manifest, row | {"text": "another tokenizer's"}) is None
    assert open_speller({"job": {"teacher": {"backend": "vllm", "model": "nobody/nothing"}}}, row) is None
