"""Sources: rows of the user's own data become scenarios with the values that stand there, or the job is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_support import read_table
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from factory.checks.verify import verify
from factory.errors import JobError
from factory.forecast.estimate import estimate
from factory.job.data import SourceConfig
from factory.job.job import Job
from factory.records import Prompt, Rejection
from factory.runs.prepare import Prepared, prepare, preview_job
from factory.runs.run import run
from factory.tasks.sources import Source, open_source


class Anything(BaseModel):
    """A scenario that takes whatever a row gives."""

    model_config = ConfigDict(extra="allow")


ROWS = [{"a": 1, "b": 10}, {"a": 2, "b": 20}, {"a": 3, "b": 30}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepares stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def open_rows(path: Path, needed: Any = "all", seed: int = 0, **config: Any) -> Source:
    return open_source(SourceConfig(path=str(path), **config), "tasks.0.source", seed, needed, Anything)


def scenarios(source: Source) -> list[dict[str, Any]]:
    return [dict(source.scenario(number)) for number in range(len(source))]


def fault(path: Path, needed: Any = 1, **config: Any) -> str:
    with pytest.raises(JobError) as caught:
        open_rows(path, needed, **config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "odd [1] *.parquet", "odd [1] *.jsonl"])
def test_rows_come_in_their_order(tmp_path: Path, name: str) -> None:
    source = open_rows(write(tmp_path / name, ROWS), needed=3)
    assert len(source) == 3
    assert scenarios(source) == ROWS
    assert source.scenario(1) == ROWS[1]


def test_a_format_that_is_named_wins_over_the_file_s_ending(tmp_path: Path) -> None:
    assert scenarios(open_rows(write(tmp_path / "rows.txt", ROWS), format="jsonl")) == ROWS


def test_a_folder_that_datasets_can_load_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "train.parquet", ROWS)
    assert scenarios(open_rows(tmp_path / "mine")) == ROWS
    assert scenarios(open_rows(tmp_path / "mine", format="datasets", split="train[:2]")) == ROWS[:2]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_fields_map_columns_and_constants_fill_what_no_row_gives(tmp_path: Path, name: str) -> None:
    source = open_rows(write(tmp_path / name, ROWS), fields={"x": "b"}, constants={"y": "all", "x": 0})
    assert scenarios(source) == [{"x": 10, "y": "all"}, {"x": 20, "y": "all"}, {"x": 30, "y": "all"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_null_counts_as_absent_and_falls_back_to_a_constant(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"a": 1, "b": None}, {"a": None, "b": 2}])
    assert scenarios(open_rows(path)) == [{"a": 1}, {"b": 2}]
    assert scenarios(open_rows(path, constants={"b": 7})) == [{"a": 1, "b": 7}, {"b": 2}]
    assert scenarios(open_rows(path, fields={"n": "b"})) == [{}, {"n": 2}]


def test_a_column_that_only_later_rows_have_is_a_column(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"a": 1}, {"a": 2, "b": 3}])
    assert scenarios(open_rows(path, fields={"n": "b"})) == [{}, {"n": 3}]


def test_values_of_json_lines_stay_what_they_are(tmp_path: Path) -> None:
    rows = [
        {"day": "2025-06-17", "at": "2025-06-17T10:00:00", "big": 12345678901234567890123},
        {"day": "2025-06-18", "people": [{"name": "Ann"}, {"name": "Bo", "late": True}], "mixed": "1"},
        {"day": "x", "people": [], "mixed": 1, "text": "ü \u2028 日本 <|im_end|>"},
    ]
    assert scenarios(open_rows(write(tmp_path / "rows.jsonl", rows))) == rows


def test_empty_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert scenarios(open_rows(path, needed=2)) == [{"a": 1}, {"a": 2}]


def test_a_shuffled_source_gives_every_row_once_in_an_order_of_the_seed(tmp_path: Path) -> None:
    rows = [{"a": number} for number in range(50)]
    path = write(tmp_path / "rows.jsonl", rows)
    one, same, other = (scenarios(open_rows(path, seed=seed, shuffle=True)) for seed in (1, 1, 2))
    assert one == same
    assert one != rows
    assert one != other
    assert sorted(row["a"] for row in one) == list(range(50))


def test_too_few_rows_are_told_with_both_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    told = fault(path, needed=4)
    assert told.startswith(f"tasks.0.source: {path} has 3 rows, the task's count is 4; lower the count")
    (tmp_path / "none.jsonl").touch()
    assert "has 0 rows" in fault(tmp_path / "none.jsonl")


def test_a_missing_column_is_told_with_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    said = fault(path, fields={"x": "a", "y": "why", "z": "bee"})
    assert said == f"tasks.0.source.fields: no column bee, why in {path} (has: a, b)"


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet"])
def test_a_missing_file_is_told(tmp_path: Path, name: str) -> None:
    assert fault(tmp_path / name) == f"tasks.0.source.path: {tmp_path / name}: no such file"


def test_a_dataset_that_is_not_there_is_told(tmp_path: Path) -> None:
    said = fault(tmp_path / "nowhere", format="datasets")
    assert said.startswith(f"tasks.0.source.path: {tmp_path / 'nowhere'} cannot be loaded: ")


def test_a_mistyped_path_asks_no_hub(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    assert fault(tmp_path / "leters") == (
        f"tasks.0.source.path: {tmp_path}/leters: no such file or folder; did you mean '{tmp_path}/letters'?; "
        f'of the hub it needs format = "datasets"'
    )


def test_a_file_of_another_kind_asks_for_its_format(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a,b\n1,2\n")
    assert fault(tmp_path / "rows.txt") == (
        f"tasks.0.source.path: {tmp_path}/rows.txt: not a kind of file that is known here (has: .parquet, .jsonl, "
        f".ndjson, .json, .csv, .tsv; all but .parquet also with .gz); set format"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1}\n{"a": \n', "line 2 is not JSON: Expecting value"),
        ('{"a": 1}\n\n[1]\n', "line 3 is a JSON list; write one object a line"),
        ("1\n", "line 1 is a JSON int; write one object a line"),
        ("[" * 100_000, "line 1 is not JSON: maximum recursion depth exceeded"),
        ("PK\x03\x04", "line 1 is not JSON"),
    ],
)
def test_a_broken_line_is_told_with_its_number(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    assert fault(path).startswith(f"tasks.0.source.path: {path} cannot be loaded: {says}")


def test_a_file_that_is_no_parquet_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.parquet").write_text("no")
    assert "cannot be loaded: Parquet file size is 2 bytes" in fault(tmp_path / "rows.parquet")
    assert capfd.readouterr().err == ""


def test_a_job_makes_its_prompts_from_a_source_and_rejects_the_rows_that_do_not_fit(
    workspace: Path, make_job: Callable[..., Job]
) -> None:
    path = write(workspace / "rows.jsonl", [{"left": 4}, {"left": "many"}, {"left": 6}])
    source = {"path": str(path), "fields": {"a": "left"}, "constants": {"b": 5}, "on_bad_row": "skip"}
    prepared = prepare(make_job(tasks=[{"name": "adding", "count": 3, "source": source}]), workspace)
    made = {row.number: prepared.render(row) for row in prepared.plan.rows(0)}
    refused = made.pop(1)
    assert isinstance(refused, Rejection)
    assert (refused.stage, refused.reason, refused.kind) == ("prompt", "scenario_invalid", "rejected")
    assert refused.findings[0].startswith(f"{path} line 2: a: Input should be a valid integer")
    assert refused.prompt.source_row == "2"
    kept = {number: outcome.scenario for number, outcome in made.items() if isinstance(outcome, Prompt)}
    assert kept == {0: '{"a":4,"b":5}', 2: '{"a":6,"b":5}'}


THREAD = {
    "who": "jane@example.com",
    "thread": [{"to": "bob@example.com", "call": ["jane@example.com, (415) 555-2671"]}],
}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_personal_data_is_replaced_at_any_depth_and_counted(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [THREAD, {"who": "nobody", "thread": []}])
    source = open_rows(path, scrub=True, constants={"desk": "help@example.com"})
    assert scenarios(source) == [
        {
            "desk": "help@example.com",
            "who": "[EMAIL_1]",
            "thread": [{"to": "[EMAIL_2]", "call": ["[EMAIL_1], [PHONE_1]"]}],
        },
        {"desk": "help@example.com", "who": "nobody", "thread": []},
    ]
    assert [source.replaced(number) for number in range(2)] == [{"email": 3, "phone": 1}, {}]


def test_only_what_the_job_names_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [THREAD])
    assert scenarios(open_rows(path)) == [THREAD]
    assert open_rows(path).replaced(0) == {}
    phones = open_rows(path, scrub=["phone"], fields={"x": "thread"})
    assert scenarios(phones) == [{"x": [{"to": "bob@example.com", "call": ["jane@example.com, [PHONE_1]"]}]}]
    assert phones.replaced(0) == {"phone": 1}


def test_what_was_replaced_belongs_to_the_row_that_is_planned(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"a": "x " + "jane@example.com " * number} for number in range(20)])
    source = open_rows(path, scrub=True, shuffle=True, seed=3)
    counts = [source.replaced(number)["email"] for number in range(20)]
    assert counts == [source.scenario(number)["a"].count("[EMAIL_1]") for number in range(20)]
    assert counts != sorted(counts)
    assert sorted(counts) == list(range(20))


def test_what_a_row_is_called_is_scrubbed_too(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"a": "x", "who": "jane@example.com", "how": "(415) 555-2671"}])
    source = open_rows(path, scrub=True, id="who", level="how")
    assert (source.mark(0), source.level_fault(0)) == ("[EMAIL_1]", "how: '[PHONE_1]' is no level of the task")


class Letter(BaseModel):
    subject: str = ""
    body: str
    kind: str = Field(default="letter", alias="type")


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    body: str


class Named(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    body: str = Field(validation_alias=AliasChoices("text", "content"))


class FreeForm(BaseModel):
    body: str

    @model_validator(mode="before")
    @classmethod
    def _from_anything(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {"body": str(data)}


class Either(BaseModel):
    """Takes `total`, or the `parts` of it: no field, and read all the same."""

    total: int
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _add_up(cls, data: dict[str, Any]) -> dict[str, Any]:
        return data if "total" in data else data | {"total": sum(data["parts"])}


@pytest.mark.parametrize(
    ("fields", "constants", "says"),
    [
        ({"parts": "p", "note": "n"}, {}, None),
        ({"parts": "p"}, {"note": "x"}, None),
        ({"parts": "p", "nte": "n"}, {}, r"fields: Scenario does nothing with 'nte' .*did you mean 'note'\?$"),
        ({"parts": "p"}, {"colour": "red"}, r"constants: Scenario does nothing with 'colour' \(has: total, note\)$"),
        ({"total": "t", "parts": "p"}, {}, r"fields: Scenario does nothing with 'parts'"),
        ({"parts": "p", "nte": "empty"}, {}, None),  # no row has it, so nothing is lost
    ],
)
def test_what_a_scenario_with_a_validator_of_its_own_ignores_is_found_by_trying(
    tmp_path: Path, fields: dict[str, str], constants: dict[str, Any], says: str | None
) -> None:
    path = write(
        tmp_path / "rows.jsonl", [{"p": [1, 2], "n": "hi", "t": 4, "empty": None}, {"p": [3], "n": "ho", "t": 5}]
    )
    config = SourceConfig(path=str(path), fields=fields, constants=constants)
    if says is None:
        assert len(open_source(config, "tasks.0.source", 0, 2, Either)) == 2
        return
    with pytest.raises(JobError, match=says) as caught:
        open_source(config, "tasks.0.source", 0, 2, Either)
    assert "\n" not in str(caught.value)


def open_letters(path: Path, scenario: type[BaseModel], columns: list[str], **config: Any) -> Source:
    write(path, [dict.fromkeys(columns, "x")])
    return open_source(SourceConfig(path=str(path), **config), "tasks.0.source", 0, 1, scenario)


@pytest.mark.parametrize(
    ("scenario", "columns", "config", "says"),
    [
        (Letter, ["s", "b"], {"fields": {"subjct": "s", "body": "b"}}, r"fields: .* no field 'subjct' .*'subject'\?$"),
        (Letter, ["b"], {"fields": {"body": "b"}, "constants": {"tpye": "x"}}, r"constants: .*'tpye' .*'type'\?$"),
        (Letter, ["b"], {"fields": {"body": "b"}, "constants": {"kind": "x"}}, r"constants: .* no field 'kind' "),
        (
            Letter,
            ["b", "l"],
            {"fields": {"body": "b", "level": "l"}},
            r"'level' .*; the column that says a row's level is named beside `fields`: level = ",
        ),
        (Letter, ["body", "subjct"], {}, r"no field for the column 'subjct' .*'subject'\?; name the columns to take"),
        (Letter, ["subject"], {}, r"nothing fills Scenario.body \(.* has: subject\)"),
        (Letter, ["s"], {"fields": {"subject": "s"}}, r"nothing fills Scenario.body"),
        (Letter, ["body"], {"fields": {"body": "bdy"}}, r"no column bdy in .* \(has: body\); did you mean 'body'\?$"),
        (Closed, ["body", "other"], {}, r"no field for the column 'other'"),
        (
            Named,
            ["bdy"],
            {"fields": {"bdy": "bdy"}},
            r"no field 'bdy' \(has: text, content, body\); did you mean 'body'",
        ),
    ],
)
def test_a_name_that_a_scenario_does_not_have_is_refused_with_the_nearest(
    tmp_path: Path, scenario: type[BaseModel], columns: list[str], config: dict[str, Any], says: str
) -> None:
    with pytest.raises(JobError, match=says) as caught:
        open_letters(tmp_path / "rows.jsonl", scenario, columns, **config)
    assert all(line.startswith("tasks.0.source") for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("scenario", "columns", "config"),
    [
        (Letter, ["body", "unrelated", "id"], {}),
        (Letter, ["b"], {"fields": {"body": "b"}, "constants": {"type": "note", "subject": "s"}}),
        (Named, ["content"], {}),
        (Named, ["b"], {"fields": {"body": "b"}}),
        (Anything, ["whatever"], {"fields": {"one": "whatever"}, "constants": {"two": 2}}),
        (FreeForm, ["a", "b"], {}),
    ],
)
def test_names_that_a_scenario_takes_are_mapped(
    tmp_path: Path, scenario: type[BaseModel], columns: list[str], config: dict[str, Any]
) -> None:
    assert scenario.model_validate(open_letters(tmp_path / "rows.jsonl", scenario, columns, **config).scenario(0))


def test_all_unknown_names_of_a_source_are_told_at_once(tmp_path: Path) -> None:
    fields, constants = {"subjct": "b", "bdy": "b"}, {"knd": 1}
    with pytest.raises(JobError) as caught:
        open_letters(tmp_path / "rows.jsonl", Letter, ["b"], fields=fields, constants=constants)
    assert [line.split("'")[1] for line in str(caught.value).splitlines()[:3]] == ["subjct", "bdy", "knd"]


LEVELLED = [{"left": n, "how": how} for n, how in enumerate(["hard", "easy", "easy", "hard", "easy"])]


def prepare_rows(workspace: Path, make_job: Callable[..., Job], rows: list[Any], **source: Any) -> Prepared:
    path = write(workspace / "rows.jsonl", rows)
    task = {"name": "adding", "count": "all", "source": {"path": str(path), "fields": {"a": "left"}, **source}}
    return prepare(make_job(tasks=[task], shard_rows=2), workspace)


def made_of(prepared: Prepared) -> dict[str, tuple[str, Any]]:
    """By the name of the source's row: its level, and the scenario or why there is none."""
    rows = [row for shard in range(prepared.plan.shards) for row in prepared.plan.rows(shard)]
    outcomes = {row.number: prepared.render(row) for row in rows}
    assert sorted(outcomes) == list(range(len(rows)))
    return {
        str(made.source_row if isinstance(made, Prompt) else made.prompt.source_row): (
            (made.level, json.loads(made.scenario)["a"])
            if isinstance(made, Prompt)
            else (made.prompt.level, made.reason)
        )
        for made in outcomes.values()
    }


def test_all_rows_of_a_source_are_planned_before_anything_is_asked(
    workspace: Path, make_job: Callable[..., Job]
) -> None:
    prepared = prepare_rows(workspace, make_job, [{"left": n} for n in range(7)])
    assert prepared.plan.planned == 7
    assert {row: a for row, (_, a) in made_of(prepared).items()} == {str(n + 1): n for n in range(7)}


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_column_says_each_row_s_level(workspace: Path, make_job: Callable[..., Job], shuffle: bool) -> None:
    prepared = prepare_rows(workspace, make_job, LEVELLED, level="how", shuffle=shuffle)
    assert prepared.plan.counts() == {"adding": {"easy": 3, "hard": 2}}
    assert made_of(prepared) == {str(row["left"] + 1): (row["how"], row["left"]) for row in LEVELLED}
    again = prepare_rows(workspace, make_job, LEVELLED, level="how", shuffle=shuffle)
    assert again.plan == prepared.plan
    assert made_of(again) == made_of(prepared)


def test_bad_rows_stop_a_job_before_it_starts_each_told_with_its_line(
    workspace: Path, make_job: Callable[..., Job]
) -> None:
    rows = [*LEVELLED, {"left": "many", "how": "easy"}, {"left": 3, "how": "odd"}]
    with pytest.raises(JobError) as caught:
        prepare_rows(workspace, make_job, rows, level="how")
    told, path = str(caught.value), workspace / "rows.jsonl"
    assert told.startswith(f"tasks.0.source: 2 of 7 rows cannot be used: {path} line 6: a: Input should be a valid")
    assert f"{path} line 7: how: 'odd' is no level of the task" in told
    assert 'on_bad_row = "skip"' in told


def test_bad_rows_are_rejected_one_by_one_where_the_job_says_so(workspace: Path, make_job: Callable[..., Job]) -> None:
    rows = [*LEVELLED, {"left": "many", "how": "easy"}, {"left": 3, "how": "odd"}, {"left": 3}]
    path = write(workspace / "rows.jsonl", rows)
    path.write_text(path.read_text() + "broken\n")
    task = {
        "name": "adding",
        "count": "all",
        "source": {"path": str(path), "fields": {"a": "left"}, "level": "how", "on_bad_row": "skip"},
    }
    job = make_job(tasks=[task], shard_rows=2)
    reasons = {row: why for row, (_, why) in made_of(prepare(job, workspace)).items() if isinstance(why, str)}
    assert reasons == {"6": "scenario_invalid", "7": "level_unknown", "8": "level_unknown", "9": "row_unreadable"}
    totals = run(job, workspace, workspace / "out")
    assert totals.reasons["prompt/level_unknown"] == 2
    assert totals.planned == 9
    assert list(verify(workspace / "out")) == []
    lines = estimate(job, workspace, workspace / "other")
    assert any("9 rows in " in line and "4 of them cannot be used and will be rejected" in line for line in lines)


def test_all_and_levels_are_said_once(make_job: Callable[..., Job]) -> None:
    with pytest.raises(ValueError, match='count = "all" takes all rows of a source, and there is none'):
        make_job(tasks=[{"name": "adding", "count": "all"}])
    source = {"path": "rows.jsonl", "level": "how"}
    with pytest.raises(ValueError, match="leave one of them out"):
        make_job(tasks=[{"name": "adding", "count": 3, "levels": {"easy": 1}, "source": source}])


def test_columns_that_name_the_level_and_the_row_are_no_fields(workspace: Path, make_job: Callable[..., Job]) -> None:
    path = write(workspace / "rows.jsonl", [{"a": 4, "how": "easy", "key": "k1"}])
    source = {"path": str(path), "level": "how", "id": "key"}
    prepared = prepare(make_job(tasks=[{"name": "adding", "count": "all", "source": source}]), workspace)
    assert made_of(prepared) == {"k1": ("easy", 4)}


def test_a_job_s_prompts_are_shown_as_it_will_ask_them(workspace: Path, make_job: Callable[..., Job]) -> None:
    path = write(workspace / "rows.jsonl", LEVELLED)
    source = {"path": str(path), "fields": {"a": "left"}, "level": "how"}
    job = make_job(tasks=[{"name": "adding", "count": "all", "source": source}], samples={"n": 2})
    shown = [made for made in preview_job(job, workspace, None, None, 5) if isinstance(made, Prompt)]
    assert [made.level for made in shown] == ["easy", "hard", "easy", "hard", "easy"]
    run(job, workspace, workspace / "out")
    asked = {row["id"] for row in read_table(workspace / "out", "data") + read_table(workspace / "out", "rejected")}
    assert {made.id for made in shown} <= asked
    assert [made.level for made in preview_job(job, workspace, "adding", "hard", 9) if isinstance(made, Prompt)] == [
        "hard",
        "hard",
    ]
    with pytest.raises(JobError, match=r"task 'addng': not of this job \(has: adding\); did you mean 'adding'"):
        preview_job(job, workspace, "addng", None, 1)
    with pytest.raises(JobError, match=r"level 'odd': no row of this job has it \(has: easy, hard\)"):
        preview_job(job, workspace, None, "odd", 1)


@pytest.mark.parametrize("place", ["why", "more.0.deep"])
def test_half_a_character_stops_the_job_or_is_rejected_by_itself(
    workspace: Path, make_job: Callable[..., Job], place: str
) -> None:
    path = workspace / "schemas" / "adding.py"
    path.write_text(
        path.read_text(encoding="utf-8").replace(
            "class Scenario(BaseModel):", "class Scenario(BaseModel):\n    why: str = ''\n    more: list[dict] = []"
        ),
        encoding="utf-8",
    )
    odd = {"why": "lone \ud800"} if place == "why" else {"more": [{"deep": "\ud800"}]}
    rows = write(workspace / "mine.jsonl", [{"a": 1, "b": 2}, {"a": 3, "b": 4, **odd}])
    source = {"path": str(rows)}
    task: dict[str, Any] = {"name": "adding", "count": "all", "source": source}
    with pytest.raises(JobError) as caught:
        prepare(make_job(tasks=[task]), workspace)
    assert "1 of 2 rows cannot be used" in str(caught.value)
    assert f"line 2: {place}: holds \\ud800, half of a surrogate pair and no character" in str(caught.value)
    job = make_job(tasks=[task | {"source": source | {"on_bad_row": "skip"}}])
    totals = run(job, workspace, workspace / "out")
    assert (totals.accepted, totals.rejected + totals.errors) == (1, 1)


def test_a_scenario_that_cannot_be_read_back_stops_the_job(workspace: Path, make_job: Callable[..., Job]) -> None:
    path = workspace / "schemas" / "adding.py"
    text = path.read_text(encoding="utf-8").replace(
        "class Scenario(BaseModel):", "class Scenario(BaseModel):\n    x: object = 0"
    )
    path.write_text(text.replace("x: object = 0", "x: Annotated[str, BeforeValidator(once)] = 'q'"), encoding="utf-8")
    once = "from typing import Annotated\nfrom pydantic import BeforeValidator\n\n\ndef once(value):\n"
    once += "    if value.endswith('!'):\n        raise ValueError('was read before')\n    return value + '!'\n\n\n"
    path.write_text(once + path.read_text(encoding="utf-8"), encoding="utf-8")
    rows = write(workspace / "mine.jsonl", [{"a": 1, "b": 2}, {"a": 3, "b": 4, "x": "new"}])
    with pytest.raises(JobError, match=r"line 2: .*was read before"):
        prepare(make_job(tasks=[{"name": "adding", "count": 2, "source": {"path": str(rows)}}]), workspace)
