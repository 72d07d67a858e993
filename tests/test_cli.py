"""The command line: every command does its work, and bad input is one clear line, exit 2 and nothing touched."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SCHEMA, TASK_FILE, WITH_WORDS, write_task
from dataset_support import FACTORY, MADE_AGAIN, flip_byte, read_tree, start_factory, write_job

from factory import __version__
from factory.cli import build_parser, main
from factory.teachers.demo import FOLDER

HEAVY = ("torch", "vllm", "datasets", "pyarrow", "pydantic", "transformers", "numpy", "jinja2")
COMMANDS = [
    "align",
    "curriculum",
    "export",
    "merge",
    "new",
    "plan",
    "preview",
    "push",
    "report",
    "run",
    "score",
    "show",
    "status",
    "tasks",
    "test",
    "verify",
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def factory(workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in the workspace; gives its exit code and what it printed."""
    monkeypatch.chdir(workspace)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed, told = capsys.readouterr()
        return int(ended.value.code or 0), printed, told

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def out(workspace: Path, factory: Run) -> Path:
    """The dataset of a small job, `job.toml`."""
    write_job(workspace)
    assert factory("run", "job.toml")[0] == 0
    return workspace / "out"


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def require_one_line(told: str) -> str:
    """The single line of a refusal."""
    assert told.startswith("error: "), told
    assert told.count("\n") == 1, told
    assert "Traceback" not in told
    return told


# --- commands that work ---------------------------------------------------------------------------------------------


def test_the_commands_are_those_that_are_documented() -> None:
    assert sorted(subparsers()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_names_its_arguments(command: str, factory: Run) -> None:
    code, printed, told = factory(command, "--help")
    assert (code, told) == (0, "")
    assert printed.startswith(f"usage: factory {command}")
    for action in subparsers()[command]._actions:
        assert (action.option_strings or [action.dest])[-1] in printed


def test_help_names_every_command_with_a_line_about_it(factory: Run) -> None:
    code, printed, _ = factory("--help")
    assert code == 0
    for command in COMMANDS:
        assert any(line.split()[:1] == [command] and len(line.split()) > 4 for line in printed.splitlines()), command


def test_the_version_is_the_packages(factory: Run) -> None:
    assert factory("--version") == (0, f"factory {__version__}\n", "")


@pytest.mark.parametrize("code", ["import factory", "import factory.cli; factory.cli.build_parser().format_help()"])
def test_nothing_heavy_is_imported_before_a_command_needs_it(code: str) -> None:
    command = [sys.executable, "-c", f"import sys; {code}; print(*sorted(sys.modules))"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "factory" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_a_job_is_run_shown_checked_and_found_complete(out: Path, factory: Run) -> None:
    code, printed, told = factory("run", "job.toml")
    assert (code, told) == (0, "")
    assert printed.startswith("out: complete\n  planned 20 = accepted 20 (100%) + rejected 0 + errors 0 + left 0\n")
    assert factory("status", out)[1].splitlines()[1:] == printed.splitlines()[1:]
    assert factory("verify", out) == (0, f"{out}: sound: 3 of 3 shards, 20 rows\n", "")
    code, printed, _ = factory("show", out, "-n", 2)
    assert (code, printed.count("── adding ·")) == (0, 2)


def test_status_as_json_has_every_total(out: Path, factory: Run) -> None:
    code, printed, _ = factory("status", out, "--json")
    totals = json.loads(printed)
    assert code == 0
    assert (totals["planned"], totals["accepted"], totals["left"], totals["reasons"]) == (20, 20, 0, {})


def test_status_as_json_counts_rejected_rows_by_reason(workspace: Path, factory: Run) -> None:
    write_job(workspace, teacher="scripted = { bad_json = 1.0 }")
    code, _, told = factory("run", "job.toml")
    last = "error: no row of 20 was accepted; all for one reason, parse/invalid_json: "
    assert (code, told.splitlines()[-1].startswith(last)) == (1, True)
    totals = json.loads(factory("status", "out", "--json")[1])
    assert (totals["rejected"], totals["reasons"]) == (20, {"parse/invalid_json": 20})


def test_an_out_of_its_own_goes_before_the_jobs(workspace: Path, factory: Run) -> None:
    write_job(workspace)
    assert factory("run", "job.toml", "--out", "elsewhere")[0] == 0
    assert not (workspace / "out").exists()
    assert factory("verify", "elsewhere")[0] == 0


def test_a_workspace_elsewhere_can_be_named(workspace: Path, factory: Run) -> None:
    write_job(workspace)
    (workspace / "far").mkdir()
    os.chdir(workspace / "far")
    assert factory("run", "../job.toml")[0] == 2
    assert factory("--workspace", "..", "run", "../job.toml")[0] == 0
    assert (workspace / "far/out/manifest.json").exists()


def test_verify_exits_with_1_and_names_the_bad_file(out: Path, factory: Run) -> None:
    (out / "data/train-00001.parquet").unlink()
    assert factory("verify", out) == (1, f"data/train-00001.parquet: missing (shard 1){MADE_AGAIN}\n", "")


def test_a_file_that_is_gone_or_cut_is_told_by_run_and_status(out: Path, factory: Run) -> None:
    assert json.loads(factory("status", out, "--json")[1])["damage"] == []
    path = out / "data/train-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    (out / "hidden_states/train-00002.parquet").unlink()
    fault = f"data/train-00001.parquet: 50 bytes, committed with {len(whole)}"
    step = "`factory verify {} tells what else is, `factory run JOB --repair` makes it again"
    refused = factory("run", "job.toml")
    assert refused == (2, "", f"error: out: {fault}, and 1 more; {step.format('out`')}\n")
    code, printed, _ = factory("status", out)
    assert code == 0
    told = f"{out}: damaged: {fault}, and 1 more; {step.format(f'{out}`')}; by the ledger complete"
    assert printed.splitlines()[0] == told
    gone = ["hidden_states/train-00002.parquet: missing"]
    assert json.loads(factory("status", out, "--json")[1])["damage"] == [fault, *gone]
    assert factory("run", "job.toml", "--repair")[0] == 0
    assert json.loads(factory("status", out, "--json")[1])["damage"] == []


def test_tasks_lists_what_is_whole_and_what_is_broken_with_the_reason(workspace: Path, factory: Run) -> None:
    code, printed, _ = factory("tasks")
    assert code == 0
    assert "adding  1  levels: easy, hard  gate: check" in printed
    write_task(workspace, "wrecked", schema="import nothing_of_this_name")
    code, printed, told = factory("tasks")
    assert (code, told) == (1, "")
    assert "wrecked  BROKEN" in printed
    assert "schemas/wrecked.py:1: ModuleNotFoundError" in printed
    assert "adding  1  levels" in printed


def test_preview_shows_prompts_for_people_and_as_json(factory: Run) -> None:
    code, printed, _ = factory("preview", "adding", "-n", 3)
    assert (code, printed.count("── adding ·")) == (0, 3)
    code, printed, _ = factory("preview", "adding", "-n", 2, "--level", "hard", "--seed", 4, "--json")
    prompts = [json.loads(line) for line in printed.splitlines()]
    assert [prompt["level"] for prompt in prompts] == ["hard", "hard"]
    assert factory("preview", "adding", "-n", 2, "--level", "hard", "--seed", 4, "--json")[1] == printed
    assert factory("preview", "adding", "-n", 2, "--level", "hard", "--seed", 5, "--json")[1] != printed


def test_preview_shows_the_prompts_of_a_job_and_why_a_row_has_none(workspace: Path, factory: Run) -> None:
    (workspace / "rows.csv").write_text("a,how\n41,easy\nmany,easy\n43,hard\n")
    source = '[tasks.source]\npath = "rows.csv"\nlevel = "how"\non_bad_row = "skip"\n'
    job = f'out = "out"\nshard_rows = 2\n[[tasks]]\nname = "adding"\ncount = "all"\n{source}'
    (workspace / "job.toml").write_text(job)
    code, printed, told = factory("preview", "--job", "job.toml", "-n", 9, "--json")
    assert (code, told) == (0, "")
    made = {line["source_row"]: line for line in map(json.loads, printed.splitlines())}
    assert {row: line["level"] for row, line in made.items()} == {"2": "easy", "3": "easy", "4": "hard"}
    assert "41" in made["2"]["messages"][-1]["content"]
    assert made["3"]["reason"] == "scenario_invalid"
    assert "· source 4 ·" in factory("preview", "adding", "--job", "job.toml", "--level", "hard")[1]
    assert not (workspace / "out").exists()
    code, printed, _ = factory("preview", "--job", "job.toml", "--model", "demo", "-n", 9)
    assert (code, printed.count(" ids, "), printed.count("no prompt: prompt/scenario_invalid")) == (0, 2, 1)
    assert "leave it out" in require_one_line(factory("preview", "--job", "job.toml", "--seed", 1)[2])
    assert "name a task" in require_one_line(factory("preview")[2])


def test_preview_shows_exactly_what_a_model_is_given(workspace: Path, factory: Run) -> None:
    code, printed, _ = factory("preview", "adding", "--model", "demo")
    assert code == 0
    assert "<|im_start|>system\nAnswer with one JSON object" in printed
    assert printed.splitlines()[-2] == "<think>"
    assert "its reasoning follows" in printed.splitlines()[-1]
    given = json.loads(factory("preview", "adding", "--model", "demo", "--json")[1])
    assert given["prompt_text"].endswith("<|im_start|>assistant\n<think>")
    assert f" {given['prompt_tokens']} ids, " in printed
    folder = workspace / "model"
    shutil.copytree(FOLDER, folder)
    template = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    code, printed, told = factory("preview", "adding", "--model", folder)
    assert (code, printed) == (2, "")
    assert "it drops the system turn" in require_one_line(told)
    assert "download it first" in require_one_line(factory("preview", "adding", "--model", "nobody/nothing")[2])


def test_plan_refuses_a_chat_template_that_would_make_wrong_prompts(workspace: Path, factory: Run) -> None:
    folder = workspace / "model"
    shutil.copytree(FOLDER, folder)
    job = 'out = "out"\n[teacher]\nmodel = "model"\nreasoning = "off"\n[[tasks]]\nname = "adding"\ncount = 1\n'
    (workspace / "job.toml").write_text(job, encoding="utf-8")
    assert factory("plan", "job.toml")[0] == 0
    template = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    opening = template.replace("{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}", "")
    (folder / "chat_template.jinja").write_text(opening, encoding="utf-8")
    for command in ("plan", "run"):
        code, _, told = factory(command, "job.toml")
        assert code == 2
        assert "it opens a reasoning (<think>) and teacher.reasoning expects none" in told.splitlines()[-1]
        # before its error a run may have told what its engine was at
        assert all(line.startswith("engine of model: ") for line in told.splitlines()[:-1])
        require_one_line(told.splitlines()[-1] + "\n")


def test_plan_spends_and_writes_nothing(workspace: Path, factory: Run) -> None:
    write_job(workspace)
    before = read_tree(workspace)
    code, printed, told = factory("plan", "job.toml")
    assert (code, told) == (0, "")
    assert "20 rows in 3 shards of 8" in printed
    assert {name: d for name, d in read_tree(workspace).items() if "__pycache__" not in name} == before


def test_a_new_task_passes_as_it_is(workspace: Path, factory: Run) -> None:
    code, printed, _ = factory("new", "fresh")
    assert code == 0
    assert "prompts/fresh/user.j2" in printed
    assert factory("preview", "fresh")[0] == 0
    text = write_job(workspace).read_text().replace('"adding"', '"fresh"')
    (workspace / "job.toml").write_text(text)
    assert factory("run", "job.toml")[0] == 0
    assert factory("verify", "out")[0] == 0


def test_output_into_a_closed_pipe_is_no_error(workspace: Path) -> None:
    with start_factory("preview", "adding", "-n", 3000, cwd=workspace) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("── adding")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


# --- bad input ------------------------------------------------------------------------------------------------------

CONFIG = {
    "vocab_size": 100,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "torch_dtype": "float16",
}
BAD_JOBS = {
    "broken TOML": ("out = ", r"job.toml: not valid TOML: "),
    "negative count": ("count = -3", "job.toml: tasks.0.count: Input should be greater than or equal to 1, got -3"),
    "no count": ('count = "many"', "job.toml: tasks.0.count: need a whole number, or "),
    "unknown key": ("cuont = 3\ncount = 3", "job.toml: tasks.0.cuont: unknown key (known here: accepted, at_most, "),
    "unknown level": (
        "count = 3\nlevels = { trivial = 1 }",
        "tasks.adding.levels: unknown level trivial (has: easy, hard)",
    ),
    "unknown task": ('count = 3\n[[tasks]]\nname = "nothere"\ncount = 1', "task 'nothere': not found in "),
    "task twice": ('count = 3\n[[tasks]]\nname = "adding"\ncount = 1', "job.toml: file: task named twice: adding"),
    "missing source": (
        'count = 3\nsource = { path = "absent.jsonl" }',
        "tasks.0.source.path: absent.jsonl: no such file",
    ),
}
BAD_TEACHERS = {
    "no such folder": ('model = "/nope"', "", "teacher.model '/nope': no such model folder (allowed: "),
    "nonsense": ('model = "nonsense"', "", "teacher.model 'nonsense': no such model folder (allowed: "),
    "no config": ('model = "prompts"', "", "teacher.model 'prompts': no config.json in this folder; is it a model?"),
    "top_k": ('model = "model"', "top_k = 101", "signals.top_k 101: more than the model's vocabulary of 100"),
    "layer": ('model = "model"', "hidden_layers = [3]", "signals.hidden_layers [3]: the model has 2 layers (allowed: "),
    "negative layer": ('model = "model"', "hidden_layers = [-4]", "signals.hidden_layers [-4]: the model has 2 layers"),
    "layer twice": (
        'model = "model"',
        "hidden_layers = [2, -1]",
        "signals.hidden_layers [2, -1]: a layer is named twice",
    ),
    "window": ('model = "model"\nmax_model_len = 4096', "", "teacher.max_model_len 4096: the model's window is 2048"),
    "cache": (
        'model = "model"\nkv_cache_gb = 0.0001',
        "",
        "teacher.max_model_len 2048: one request needs a key-value ",
    ),
    "unknown backend": ('model = "model"\nbackend = "tgi"', "", "job.toml: teacher.backend: Input should be 'vllm', "),
}
BAD_TASKS = {
    "broken Jinja": ({"user_j2": "{% if %}"}, "prompts/adding/user.j2:1: not valid Jinja: "),
    "unknown variable": ({"user_j2": "\n{{ scenari.a }}"}, "prompts/adding/user.j2: unknown variable 'scenari' (has: "),
    "unknown field": ({"user_short_j2": "{{ scenario.zzz }}"}, "prompts/adding/user_short.j2: UndefinedError: "),
    "reaching for a class": (
        {"user_j2": "{{ scenario.__class__ }}"},
        "prompts/adding/user.j2:1: '__class__' is out of ",
    ),
    "reaching by attr": ({"user_j2": "{{ scenario|attr('__class__') }}"}, "prompts/adding/user.j2: SecurityError: "),
    "reaching by item": ({"user_j2": "{{ scenario['__class__'] }}"}, "prompts/adding/user.j2: SecurityError: "),
    "reading a file": (
        {"user_j2": "{% include '/etc/passwd' %}"},
        "prompts/adding/user.j2: cannot include '/etc/passwd'",
    ),
    "reading above": ({"user_j2": "{% include '../../job.toml' %}"}, "prompts/adding/user.j2: cannot include '../.."),
    "no Answer": ({"schema": SCHEMA.replace("class Answer", "class Reply")}, "NameError: name 'Answer' is not defined"),
    "no Answer at all": (
        {"schema": SCHEMA.partition("class Answer")[0] + "def check(s, a): return []"},
        "schemas/adding.py: Answer is missing (needs Scenario, Answer, check; has Scenario, check); define it",
    ),
    "broken Python": ({"schema": "def check(:"}, "schemas/adding.py:1: SyntaxError: "),
    "no word bank": ({"schema": WITH_WORDS}, "schemas/adding.words.toml: missing; adding.py draws from it"),
    "broken word bank": (
        {"schema": WITH_WORDS, "words": "done = ["},
        "schemas/adding.words.toml: not valid TOML: Invalid value",
    ),
    "empty word bank": ({"schema": WITH_WORDS, "words": "done = []"}, "schemas/adding.words.toml: done: Tuple should"),
    "no part": ({"schema": "from ._parts import x\n" + SCHEMA}, "schemas/adding.py:1: imports "),
    "broken task.toml": ({"task_toml": "name = "}, "prompts/adding/task.toml: not valid TOML: "),
    "another name": (
        {"task_toml": TASK_FILE.replace('"adding"', '"adder"')},
        "task.toml: name is 'adder' but the folder ",
    ),
}


def refuse(factory: Run, workspace: Path, *arguments: object) -> str:
    """The one line of a command that is refused and changes nothing."""
    before = {name: d for name, d in read_tree(workspace).items() if "__pycache__" not in name}
    code, printed, told = factory(*arguments)
    assert (code, printed) == (2, "")
    after = {name: d for name, d in read_tree(workspace).items() if "__pycache__" not in name}
    assert after == before
    return require_one_line(told)


@pytest.mark.parametrize("case", BAD_JOBS)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_bad_job_is_one_line(case: str, command: str, workspace: Path, factory: Run) -> None:
    text, expected = BAD_JOBS[case]
    write_job(workspace).write_text(write_job(workspace).read_text().replace("count = 20", text))
    assert expected in refuse(factory, workspace, command, "job.toml")


@pytest.mark.parametrize("case", BAD_TEACHERS)
def test_a_model_that_cannot_serve_the_job_is_one_line_before_any_engine_starts(
    case: str, workspace: Path, factory: Run
) -> None:
    teacher, signals, expected = BAD_TEACHERS[case]
    (workspace / "model").mkdir()
    (workspace / "model/config.json").write_text(json.dumps(CONFIG))
    job = f'out = "out"\n[teacher]\n{teacher}\n[signals]\n{signals}\n[[tasks]]\nname = "adding"\ncount = 5\n'
    (workspace / "job.toml").write_text(job)
    assert expected in refuse(factory, workspace, "plan", "job.toml")
    code, printed, told = factory("run", "job.toml")
    assert (code, printed) == (2, "")
    assert expected in require_one_line(told)
    assert not (workspace / "out/engine.log").exists()


@pytest.mark.parametrize("case", BAD_TASKS)
def test_a_broken_task_is_one_line_before_anything_is_written(case: str, workspace: Path, factory: Run) -> None:
    replaced, expected = BAD_TASKS[case]
    write_task(workspace, **replaced)
    write_job(workspace)
    assert expected in refuse(factory, workspace, "run", "job.toml")
    assert expected in refuse(factory, workspace, "preview", "adding", "--level", "easy")


@pytest.mark.parametrize("case", ["broken Jinja", "no Answer at all"])
def test_a_task_broken_later_touches_nothing_that_is_written(
    case: str, out: Path, workspace: Path, factory: Run
) -> None:
    write_task(workspace, **BAD_TASKS[case][0])
    refuse(factory, workspace, "run", "job.toml")


def test_a_changed_job_is_a_line_for_each_change_and_touches_nothing_that_is_written(
    out: Path, workspace: Path, factory: Run
) -> None:
    write_job(workspace, shard_rows=9, teacher="scripted = { wrong = 0.5 }")
    (out / ".lock").write_text(str(os.getpid()))
    before = read_tree(out)
    code, printed, told = factory("run", "job.toml")
    assert (code, printed) == (2, "")
    assert told == (
        "error: out: made by another job, cannot resume; undo this, or choose another `out`:\n"
        "error:   job.shard_rows: was 8, is 9\n"
        "error:   job.teacher.scripted.wrong: was 0.0, is 0.5\n"
    )
    assert read_tree(out) == before
    code, printed, _ = factory("plan", "job.toml")
    assert code == 0
    assert printed.splitlines()[1:4] == [
        "  a run would be refused: out: made by another job, cannot resume; undo this, or choose another `out`:",
        "    job.shard_rows: was 8, is 9",
        "    job.teacher.scripted.wrong: was 0.0, is 0.5",
    ]
    assert read_tree(out) == before


def test_a_plan_into_something_else_says_that_a_run_would_be_refused(workspace: Path, factory: Run) -> None:
    write_job(workspace)
    assert "refused" not in factory("plan", "job.toml")[1]
    _, printed, _ = factory("plan", "job.toml", "--out", "prompts")
    assert "  a run would be refused: prompts: not empty and not a dataset of the factory" in printed


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_job_that_is_no_file_is_one_line(command: str, workspace: Path, factory: Run) -> None:
    assert "prompts: is a directory; give a job file" in refuse(factory, workspace, command, "prompts")
    assert "absent.toml: no such job file" in refuse(factory, workspace, command, "absent.toml")
    (workspace / "blob.toml").write_bytes(b"\xff\xfe\x00")
    assert "blob.toml: cannot be read: 'utf-8'" in refuse(factory, workspace, command, "blob.toml")


@pytest.mark.parametrize(("out", "told"), [("file", "File exists"), ("file/below", "Not a directory")])
def test_an_out_that_cannot_be_written_is_one_line(out: str, told: str, workspace: Path, factory: Run) -> None:
    write_job(workspace)
    (workspace / "file").write_text("mine")
    assert f"{out}: cannot be written: {told}; " in refuse(factory, workspace, "run", "job.toml", "--out", out)


def test_an_out_that_is_something_else_is_one_line(workspace: Path, factory: Run) -> None:
    write_job(workspace)
    assert "prompts: not empty and not a dataset" in refuse(factory, workspace, "run", "job.toml", "--out", "prompts")


@pytest.mark.parametrize("command", ["status", "verify", "show"])
def test_a_directory_without_a_dataset_is_one_line(command: str, workspace: Path, factory: Run) -> None:
    for place in ("prompts", "absent", "job.toml"):
        assert f"{place}" in refuse(factory, workspace, command, place)


def test_an_empty_folder_is_told_in_the_same_words_by_all(workspace: Path, factory: Run) -> None:
    (workspace / "empty").mkdir()
    told = "empty: no manifest.json, so not a dataset of the factory; `factory run` makes one"
    commands = ["status", "verify", "show", "report", "curriculum", "export", "align", "push"]
    more = {"export": ["x", "--to", "messages"], "align": ["--student", "demo"], "push": ["a/b"]}
    for command in commands:
        assert refuse(factory, workspace, command, "empty", *more.get(command, ())) == f"error: {told}\n", command
    assert not list((workspace / "empty").iterdir())


@pytest.mark.parametrize("command", ["status", "show", "run"])
@pytest.mark.parametrize(
    ("line", "told"), [("nonsense", "Expecting value"), ('{"shard": 0}', "changed since it was written")]
)
def test_a_damaged_ledger_is_one_line(
    command: str, line: str, told: str, out: Path, workspace: Path, factory: Run
) -> None:
    plan = (out / "ledger.jsonl").read_text().splitlines()[0]
    (out / "ledger.jsonl").write_text(f"{plan}\n{line}\n")
    (out / ".lock").write_text(str(os.getpid()))
    target = "job.toml" if command == "run" else "out"
    assert f"ledger.jsonl:2: damaged: {told}" in refuse(factory, workspace, command, target)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ledger.jsonl", "out/ledger.jsonl:1: damaged: changed since it was written"),
        ("manifest.json", "out/manifest.json: damaged: changed since it was written"),
    ],
)
def test_verify_names_a_damaged_ledger_or_manifest_and_what_mends_it(
    name: str, told: str, out: Path, factory: Run
) -> None:
    text = (out / name).read_text()
    (out / name).write_text(text.replace('"digest":', '"digest" :', 1))
    assert factory("verify", "out") == (1, f"{told}; `factory run JOB --repair` mends it\n", "")


# --- repair and machines --------------------------------------------------------------------------------------------


def test_repair_makes_what_is_damaged_again_and_says_so(out: Path, workspace: Path, factory: Run) -> None:
    before = read_tree(out, but=("runs.jsonl", ".lock"))
    flip_byte(out / "data/train-00001.parquet")
    assert factory("verify", "out")[0] == 1
    assert factory("run", "job.toml")[0] == 0, "a run without --repair reads no shard again"
    assert factory("verify", "out")[0] == 1
    code, printed, told = factory("run", "job.toml", "--repair")
    assert (code, printed.splitlines()[0]) == (0, "out: complete")
    lines = told.splitlines()
    fault = "data/train-00001.parquet: its bytes have changed since it was committed (shard 1)"
    assert lines[0].endswith(f"to be made again: {fault}")
    assert factory("verify", "out") == (0, "out: sound: 3 of 3 shards, 20 rows\n", "")
    assert read_tree(out, but=("runs.jsonl", ".lock")) == before


def test_repair_of_a_sound_dataset_says_and_does_nothing(out: Path, factory: Run) -> None:
    before = read_tree(out)
    (out / ".lock").write_text(str(os.getpid()))
    code, printed, told = factory("run", "job.toml", "--repair")
    assert (code, told) == (0, "")
    assert printed.startswith("out: complete\n")
    assert read_tree(out, but=(".lock",)) == {name: d for name, d in before.items() if name != ".lock"}


def test_repair_begins_a_dataset_that_is_not_there(workspace: Path, factory: Run) -> None:
    write_job(workspace)
    assert factory("run", "job.toml", "--repair")[0] == 0
    assert factory("verify", "out")[0] == 0


def test_a_log_for_machines_is_json_on_every_line_of_standard_error(workspace: Path, factory: Run) -> None:
    write_job(workspace, teacher="scripted = { wrong = 0.5 }")
    code, printed, told = factory("run", "job.toml", "--log-json")
    assert (code, printed.startswith("out: complete\n")) == (0, True)
    events = [json.loads(line) for line in told.splitlines()]
    names = ["started", "shard", "shard", "shard", "progress", "finished"]
    assert [event["event"] for event in events] == names
    totals = json.loads(factory("status", "out", "--json")[1])
    last = events[-2]
    assert (last["rows"], last["planned"], last["accepted"]) == (20, 20, totals["accepted"])
    assert sum(event["accepted"] for event in events if event["event"] == "shard") == totals["accepted"]
    assert {name: value for name, value in totals.items() if name in events[-1]} == {
        name: value for name, value in events[-1].items() if name not in ("event", "time")
    }
    assert totals["runs"] == {"begun": 1, "ended": 1}
    again = [json.loads(line)["event"] for line in factory("run", "job.toml", "--log-json")[2].splitlines()]
    assert again == ["started", "finished"], "nothing was left to do"


def test_a_log_for_machines_stays_json_when_something_is_repaired(out: Path, factory: Run) -> None:
    flip_byte(out / "data/train-00001.parquet")
    code, _, told = factory("run", "job.toml", "--repair", "--log-json")
    assert code == 0
    events = [json.loads(line)["event"] for line in told.splitlines()]
    assert events[:2] == ["repair", "started"]
    assert events[-2:] == ["progress", "finished"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["preview", "nothere"], "task 'nothere': not found in "),
        (["preview", "adding", "--level", "absurd"], "task 'adding': unknown level 'absurd' (has: easy, hard)"),
        (["new", "Not A Name"], "task name 'Not A Name': use lower-case letters"),
        (["new", "../escape"], "task name '../escape': use lower-case letters"),
        (["new", "adding"], "is there already; choose another name or remove it"),
    ],
)
def test_a_bad_argument_is_one_line(arguments: list[str], told: str, workspace: Path, factory: Run) -> None:
    assert told in refuse(factory, workspace, *arguments)


PLACES = [
    (
        ["report", "out", "--to", "prompts"],
        "prompts: is a directory, and a report is one file; give prompts/report.html",
    ),
    (
        ["report", "out", "--to", "no/dir/a.html"],
        "no/dir/a.html: cannot be written: there is no directory no/dir; make",
    ),
    (
        ["report", "out", "--to", "job.toml/a.html"],
        "job.toml/a.html: cannot be written: job.toml is a file; name a place",
    ),
    (["report", "out", "--to", "/proc/a.html"], "/proc/a.html: cannot be written: "),
    (
        ["report", "out/manifest.json"],
        "out/manifest.json: is a file, and a dataset is a directory; give the directory: out",
    ),
    (["show", "out/ledger.jsonl"], "is a file, and a dataset is a directory; give the directory: out"),
    (["status", "out/ledger.jsonl"], "is a file, and a dataset is a directory; give the directory: out"),
    (["verify", "out/ledger.jsonl"], "is a file, and a dataset is a directory; give the directory: out"),
    (["export", "out/job.toml", "to", "--to", "messages"], "is a file, and a dataset is a directory"),
    (["push", "out/job.toml", "me/x"], "is a file, and a dataset is a directory"),
    (["curriculum", "out/job.toml"], "is a file, and a dataset is a directory"),
    (["align", "out/job.toml", "--student", "demo"], "is a file, and a dataset is a directory"),
    (["export", "out", "job.toml", "--to", "messages"], "job.toml: is a file, and an export is a folder; name a new"),
    (["export", "out", "job.toml/a/b", "--to", "messages"], "job.toml/a/b: cannot be made: job.toml is a file; name"),
    (["export", "out", "/proc/a/b", "--to", "messages"], "/proc/a/b: cannot be "),
    (["export", "out", "prompts", "--to", "messages"], "prompts: not empty, and no export; choose another folder"),
    (["push", "out", "job.toml", "--local"], "job.toml: is there already; name a new folder"),
    (["push", "out", "job.toml/a", "--local"], "job.toml/a: cannot be made: job.toml is a file"),
    (["push", "out", "/proc/a", "--local"], "/proc/a: cannot be "),
]


@pytest.mark.parametrize(("arguments", "told"), PLACES, ids=[" ".join(arguments) for arguments, _ in PLACES])
def test_a_place_that_cannot_be_is_one_line_and_nothing_is_left_there(
    arguments: list[str], told: str, workspace: Path, factory: Run
) -> None:
    write_job(workspace, sections='[publish]\nlicense = "apache-2.0"\noutput_terms = "those of the weights"\n')
    assert factory("run", "job.toml")[0] == 0
    (workspace / "out/.lock").unlink()
    before = set(workspace.rglob("*"))
    code, printed, line = factory(*arguments)
    assert (code, printed) == (2, "")
    assert told in require_one_line(line)
    assert ".tmp-" not in line
    assert {path for path in set(workspace.rglob("*")) - before if path.name != ".lock"} == set()


STORE, COPIED = "s3://bucket/demo", "copy first `aws s3 sync s3://bucket/demo DIR`, then give DIR"
READS = "is an address, and this command reads a file; copy it to a disk"
WRITES = "is an address, and this command writes to a disk; give a PATH, and copy it afterwards"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        *((command.split(), COPIED) for command in ("report S", "report out S", "show S", "verify S", "curriculum S")),
        *((f"{command} S".split(), COPIED) for command in ("merge whole", "--workspace")),
        (["push", STORE, "me/x"], COPIED),
        (["export", STORE, "to", "--to", "messages"], COPIED),
        (["align", STORE, "--student", "demo"], COPIED),
        (["push", "out", STORE, "--local"], WRITES),
        (["push", "out", STORE], "not the name of a repository"),
        (["export", "out", STORE, "--to", "messages"], WRITES),
        (["report", "out", "--to", STORE], WRITES),
        (["report", "out", "--to", "hf://datasets/me/x"], WRITES),
        (["merge", STORE, "a", "b"], WRITES),
        (["score", "job.toml", "--traces", STORE], WRITES),
        (["curriculum", "out", STORE], READS),
        (["run", STORE], READS),
        (["plan", STORE], READS),
        (["preview", "--job", STORE], READS),
        (["show", "hf://datasets/me/x"], "`load_rows` reads what was pushed"),
        (["run", "job.toml", "--out", "hf://datasets/me/x"], "is an address (hf://)"),
        (["align", "out", "--student", STORE], "s3://bucket/demo"),
        (["export", "out", "to", "--to", "trl-sft", "--student", STORE], "s3://bucket/demo"),
    ],
)
def test_an_address_is_one_line_as_it_was_typed_and_makes_no_folder(
    arguments: list[str], told: str, out: Path, workspace: Path, factory: Run
) -> None:
    given = [{"S": STORE}.get(argument, argument) for argument in arguments]
    given += ["tasks"] if "--workspace" in given else []
    line = refuse(factory, workspace, *given)
    assert told in line
    assert next(argument for argument in given if "://" in argument) in line


@pytest.mark.parametrize("command", ["show S", "export out S --to messages", "run S"])
def test_what_an_address_holds_of_a_password_is_not_repeated(command: str, out: Path, factory: Run) -> None:
    code, _, told = factory(*command.replace("S", "s3://AKIA:secret@bucket/x").split())
    assert (code, "s3://…@bucket/x: is an address" in told, "secret" in told) == (2, True, False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "the following arguments are required: job"),
        (["preview", "adding", "-n", "0"], "argument -n: must be a whole number of at least 1, got '0'"),
        (["show", "out", "-n", "three"], "argument -n: must be a whole number of at least 1, got 'three'"),
        (["run", "job.toml", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_command_line_that_does_not_parse_exits_with_2_and_its_usage(
    arguments: list[str], told: str, factory: Run
) -> None:
    code, printed, complaint = factory(*arguments)
    assert (code, printed) == (2, "")
    assert complaint.startswith("usage: factory")
    assert told in complaint.splitlines()[-1]


def test_a_second_run_beside_the_first_is_one_line(workspace: Path, factory: Run) -> None:
    write_job(workspace, count=4000)
    with start_factory("run", "job.toml", cwd=workspace) as process:
        while not (workspace / "out/ledger.jsonl").exists():
            assert process.poll() is None
        code, _, told = factory("run", "job.toml")
        process.kill()
    assert code == 2
    assert f"out: a run is at work here already (process {process.pid}); wait or stop it" in require_one_line(told)


def test_the_module_and_the_script_are_one_program() -> None:
    script = Path(sys.executable).with_name("factory")
    for command in ([*FACTORY, "--version"], [str(script), "--version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"factory {__version__}\n"


# --- curriculum -------------------------------------------------------------------------------------------------------


def test_a_curriculum_is_made_told_and_checked(out: Path, workspace: Path, factory: Run) -> None:
    (workspace / "c.toml").write_text('by = "tokens"\nstages = 2\n')
    code, printed, told = factory("curriculum", out, "c.toml")
    lines = printed.splitlines()
    assert (code, told, lines[0]) == (0, "", f"{out}: 2 stages by tokens of 20 accepted rows")
    assert " ".join(lines[1].split()) == "stage tokens train validation test train tokens hand off adding"
    assert [line.split()[0] for line in lines[2:4]] == ["stage-1", "stage-2"]
    assert [line.split()[-1] for line in lines[2:4]] == ["10", "10"]
    assert len({len(line) for line in lines[1:4]}) == 1, "the columns stand under each other"
    assert lines[4].startswith("  hand-off: ")
    assert lines[-1] == f'  load_dataset("{out}", "stage-1")'
    assert factory("verify", out)[0] == 0
    flip_byte(out / "curriculum/stage-1/train-00000.parquet")
    assert factory("verify", out)[0] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('by = "hardness"', "error: c.toml: by: Input should be 'difficulty', "),
        (
            "[[stages]]\nname = 'x'\ntasks = ['cooking']",
            "error: c.toml: stage x: no accepted row of task cooking (has: ",
        ),
        ("[student]\nmax_tokens = 1", "error: {out}: no row falls into any stage; "),
    ],
)
def test_a_curriculum_that_cannot_be_made_is_one_line(
    text: str, told: str, out: Path, workspace: Path, factory: Run
) -> None:
    (workspace / "c.toml").write_text(text if "by" in text else f'by = "tokens"\n{text}')
    before = read_tree(out, (".lock",))
    code, printed, line = factory("curriculum", out, "c.toml")
    assert (code, printed) == (2, "")
    assert require_one_line(line).startswith(told.format(out=out))
    assert read_tree(out, (".lock",)) == before


def test_a_curriculum_of_nothing_is_one_line_and_makes_nothing(workspace: Path, factory: Run) -> None:
    code, _, told = factory("curriculum", "nowhere")
    assert (code, require_one_line(told).startswith("error: nowhere: no manifest.json")) == (2, True)
    assert not (workspace / "nowhere").exists()
