"""Paths that a job names stay inside, and the environment's secrets come out in no file and on no line."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SCHEMA, TASK_FILE, write_task
from dataset_support import FACTORY, read_table, read_tree, write_job

from factory.cli import main
from factory.errors import redact
from factory.tasks.tasks import discover

SECRETS = {
    "HF_TOKEN": "hf_secretsecret123",
    "OPENAI_API_KEY": "sk-proj-0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY",
    "DB_PASSWORD": "correct horse battery",
    "WANDB_APIKEY": "0123456789abcdef",
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def factory(workspace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in the workspace, with secrets in the environment; gives its exit code and what it printed."""
    monkeypatch.chdir(workspace)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed, told = capfd.readouterr()
        return int(ended.value.code or 0), printed, told

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, workspace: Path) -> Path:
    """A folder outside the workspace, with a source in it; `link` in the workspace leads there."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write_source(folder / "rows.jsonl")
    (workspace / "link").symlink_to(folder)
    return folder


def write_source(path: Path) -> None:
    path.write_text("".join(json.dumps({"a": number}) + "\n" for number in range(4)))


def write_job_with(workspace: Path, out: str = "out", source: str | None = None) -> Path:
    """A job of four rows; paths are put into it as they are given."""
    path = write_job(workspace, count=4, shard_rows=4)
    text = path.read_text().replace('out = "out"', f"out = {json.dumps(out)}")
    path.write_text(text + (f"[tasks.source]\npath = {json.dumps(source)}\n" if source else ""))
    return path


def require_one_line(told: str) -> str:
    assert told.startswith("error: "), told
    assert told.count("\n") == 1, told
    return told


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["{elsewhere}/out", "link/out", "link", "../{name}/out", "a/../../{name}", "link/.."])
def test_an_out_that_leads_out_is_refused_and_nothing_is_made(
    workspace: Path, elsewhere: Path, factory: Run, out: str
) -> None:
    up = Path(os.path.relpath(elsewhere, workspace))
    asked = out.format(elsewhere=elsewhere, name=Path(*up.parts[1:]))
    before = read_tree(elsewhere)
    write_job_with(workspace, out=asked)
    code, printed, told = factory("run", "job.toml")
    assert (code, printed) == (2, "")
    assert require_one_line(told).startswith(f"error: out: {asked} lies outside the workspace {workspace}; move it ")
    assert "--allow-outside or --out" in told
    assert read_tree(elsewhere) == before


@pytest.mark.parametrize("source", ["{elsewhere}/rows.jsonl", "link/rows.jsonl", "inside.jsonl", "link", "a/../link"])
def test_a_source_that_leads_out_is_refused_unless_it_is_meant(
    workspace: Path, elsewhere: Path, factory: Run, source: str
) -> None:
    (workspace / "a").mkdir()
    (workspace / "inside.jsonl").symlink_to(elsewhere / "rows.jsonl")
    asked = source.format(elsewhere=elsewhere)
    write_job_with(workspace, source=asked)
    for options in ((), ("--out", "out")):
        code, _, told = factory("run", "job.toml", *options)
        assert code == 2
        assert require_one_line(told).startswith(f"error: tasks.0.source.path: {asked} lies outside the workspace")
    assert not (workspace / "out").exists()


def test_what_is_meant_may_lie_outside(workspace: Path, elsewhere: Path, factory: Run) -> None:
    write_job_with(workspace, out="link/first", source="link/rows.jsonl")
    assert factory("run", "job.toml", "--allow-outside")[0] == 0
    assert len(read_table(elsewhere / "first", "data")) == 4
    write_job_with(workspace, out="link/never")
    assert factory("run", "job.toml", "--out", elsewhere / "second")[0] == 0
    assert len(read_table(elsewhere / "second", "data")) == 4
    assert not (elsewhere / "never").exists()


def test_paths_inside_are_no_fault_however_they_are_written(workspace: Path, factory: Run) -> None:
    write_source(workspace / "rows.jsonl")
    (workspace / "real").mkdir()
    (workspace / "inner").symlink_to(workspace / "real")
    for out in ("inner/../out1", str(workspace / "out2"), "./real/../out3/", "inner/out4"):
        write_job_with(workspace, out=out, source="inner/../rows.jsonl")
        assert factory("run", "job.toml")[0] == 0, out
    assert (workspace / "real" / "out4" / "README.md").is_file()


def test_a_job_elsewhere_may_name_what_lies_beside_it(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory, factory: Run
) -> None:
    beside = tmp_path_factory.mktemp("beside")
    write_source(beside / "rows.jsonl")
    job = write_job_with(beside, out=str(beside / "out"), source=str(beside / "rows.jsonl"))
    assert factory("run", job)[0] == 0
    assert len(read_table(beside / "out", "data")) == 4


@pytest.mark.parametrize(("out", "source"), [("loop/out", None), ("out", "loop/rows.jsonl")])
def test_a_link_that_leads_to_itself_is_one_line(workspace: Path, factory: Run, out: str, source: str | None) -> None:
    (workspace / "loop").symlink_to("loop")
    write_job_with(workspace, out=out, source=source)
    code, _, told = factory("run", "job.toml")
    assert code == 2
    require_one_line(told)


def test_a_workspace_that_leads_to_itself_holds_no_task(workspace: Path, factory: Run) -> None:
    (workspace / "loop").symlink_to("loop")
    write_job_with(workspace)
    code, _, told = factory("--workspace", "loop", "run", "job.toml")
    assert code == 2
    assert "task 'adding': not found in" in require_one_line(told)


@pytest.mark.parametrize("name", ["../adding", "a/b", "/etc", "..", "Adding", ""])
def test_a_task_s_name_is_no_path(workspace: Path, factory: Run, name: str) -> None:
    before = read_tree(workspace.parent)
    assert factory("new", name)[0] == 2
    assert factory("preview", name)[0] == 2
    write_job_with(workspace).write_text(write_job_with(workspace).read_text().replace('"adding"', json.dumps(name)))
    code, _, told = factory("run", "job.toml")
    assert code == 2
    require_one_line(told)
    (workspace / "job.toml").unlink()
    assert read_tree(workspace.parent) == before


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("{elsewhere}/rows.jsonl", "is a link out of its folder; put the file itself there"),
        ("../../link/rows.jsonl", "is a link out of its folder; put the file itself there"),
        ("../../schemas/adding.py", "is a link out of its folder; put the file itself there"),
        ("facts.j2", "cannot be read: "),
        ("gone.j2", "cannot be read: "),
    ],
)
def test_a_template_that_is_no_file_of_its_folder_breaks_its_task(
    workspace: Path, elsewhere: Path, factory: Run, target: str, says: str
) -> None:
    link = workspace / "prompts" / "adding" / "facts.j2"
    link.symlink_to(target.format(elsewhere=elsewhere))
    (problem,) = discover(workspace, ["adding"]).problems["adding"]
    assert problem.startswith(f"{link}: {says}")
    write_job_with(workspace)
    code, _, told = factory("run", "job.toml")
    assert code == 2
    assert says in require_one_line(told)
    assert not (workspace / "out").exists()


def test_a_whole_task_may_be_a_link(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    shared = tmp_path_factory.mktemp("shared")
    write_task(shared, "common")
    (workspace / "prompts" / "common").symlink_to(shared / "prompts" / "common")
    (workspace / "schemas" / "common.py").symlink_to(shared / "schemas" / "common.py")
    assert discover(workspace, ["common"]).tasks["common"].templates.keys() == {"system.j2", "user.j2", "user_short.j2"}


# --- secrets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _with_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_with_secrets")
def test_a_secret_is_replaced_by_its_name_wherever_it_stands() -> None:
    assert redact("401 for hf_secretsecret123, twice: hf_secretsecret123") == "401 for <HF_TOKEN>, twice: <HF_TOKEN>"
    told = " / ".join(SECRETS.values())
    assert redact(told) == " / ".join(f"<{name}>" for name in SECRETS)
    assert redact("nothing here") == "nothing here"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HUGGING_FACE_HUB_TOKEN", True),
        ("github_token", True),
        ("MY_SECRET", True),
        ("KEY", True),
        ("SSH_KEY_PATH", True),
        ("PGPASSWORD", True),
        ("MYSQL_PASSWD", True),
        ("GPG_PASSPHRASE", True),
        ("GH_PAT", True),
        ("AZURE_CREDENTIALS", True),
        ("HOME", False),
        ("MONKEY", False),
        ("KEYBOARD", True),  # begins like a key: struck out rather than told
        ("PATIENCE", False),
    ],
)
def test_a_secret_is_known_by_its_variable_s_name(monkeypatch: pytest.MonkeyPatch, name: str, secret: bool) -> None:
    monkeypatch.setenv(name, "value-of-many-letters")
    assert redact("got value-of-many-letters") == (f"got <{name}>" if secret else "got value-of-many-letters")


def test_of_two_secrets_that_begin_alike_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefghijkl")
    assert redact("abcdefghijkl abcdefgh") == "<B_TOKEN> <A_TOKEN>"


def test_a_secret_read_from_a_file_is_known_without_its_last_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", " abcdefgh\r\n")
    assert redact("got abcdefgh.") == "got <A_TOKEN>."


def test_a_short_or_empty_value_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert redact("false or not") == "false or not"


def require_no_secret(text: str) -> None:
    assert [name for name, value in SECRETS.items() if value in text] == []


def require_no_secret_in_files(folder: Path, but: tuple[str, ...] = ()) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in but]
    assert files
    for path in files:
        data = path.read_bytes()
        assert [(path, name) for name, value in SECRETS.items() if value.encode() in data] == []


TELLING_CHECK = """

import os


def check(scenario: Scenario, answer: Answer) -> list[str]:
    if scenario.a % 2:
        raise RuntimeError(f"401 for {os.environ['HF_TOKEN']}\\nand {os.environ['OPENAI_API_KEY']}")
    return []
"""
TELLING_SAMPLE = """

def sample(rng: random.Random, level: str) -> Scenario:
    a = rng.randrange(10)
    if a == 3:
        raise RuntimeError(f"401 for {os.environ['HF_TOKEN']}")
    return Scenario(a=a)
"""


def test_a_whole_run_with_secrets_in_its_environment_tells_none_of_them(workspace: Path) -> None:
    write_task(workspace, schema=SCHEMA + TELLING_CHECK + TELLING_SAMPLE)
    write_job(workspace, count=40, shard_rows=16, teacher="[teacher.scripted]\nbad_json = 0.2\ncrash = 0.1")
    for command in (["run", "job.toml"], ["run", "job.toml"], ["status", "out"], ["verify", "out"], ["show", "out"]):
        environment = os.environ | SECRETS
        done = subprocess.run([*FACTORY, *command], cwd=workspace, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        require_no_secret(done.stdout + done.stderr)
    require_no_secret_in_files(workspace / "out")
    told = [finding for row in read_table(workspace / "out", "rejected") for finding in row["findings"]]
    assert "RuntimeError: 401 for <HF_TOKEN> and <OPENAI_API_KEY> (adding.py, line 37)" in told
    assert "RuntimeError: 401 for <HF_TOKEN> (adding.py, line 44)" in told


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('backend = "scripted"', 'model = "./hf_secretsecret123"'),
        ('backend = "scripted"', 'model = "some/where/hf_secretsecret123"'),
        ('backend = "scripted"', 'backend = "hf_secretsecret123"'),
        ('backend = "scripted"', 'hf_secretsecret123 = "sk-proj-0123456789abcdef"'),
        ("count = 20", 'count = "sk-proj-0123456789abcdef"'),
        ('name = "adding"', 'name = "hf_secretsecret123"'),
        ('out = "out"', "out = hf_secretsecret123"),
        ('out = "out"', 'out = "/hf_secretsecret123"'),
        ("count = 20", 'count = 20\nsource = { path = "hf_secretsecret123.jsonl" }'),
        ("count = 20", "count = 20\nlevels = { hf_secretsecret123 = 1 }"),
    ],
)
def test_a_bad_job_that_holds_a_secret_is_refused_without_telling_it(
    workspace: Path, factory: Run, old: str, new: str
) -> None:
    path = write_job(workspace)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    code, printed, told = factory("run", "job.toml")
    assert code == 2
    assert "<" in require_one_line(told) or "TOML" in told
    require_no_secret(printed + told)
    if (workspace / "out").exists():
        copies = ("job.toml", "manifest.json")  # of the user's own text, which is kept as it is
        require_no_secret_in_files(workspace / "out", but=copies)


@pytest.mark.parametrize(
    "texts",
    [
        {"user_j2": "{{ hf_secretsecret123 }}"},
        {"user_j2": "{% include 'hf_secretsecret123' %}"},
        {"user_j2": "{{ scenario.hf_secretsecret123 }}"},
        {"user_j2": "{{ 1 | hf_secretsecret123 }}"},
        {"task_toml": TASK_FILE.replace('"adding"', '"hf_secretsecret123"')},
        {"schema": "import os\nraise RuntimeError(os.environ['HF_TOKEN'])"},
        {"schema": SCHEMA + TELLING_CHECK + TELLING_SAMPLE.replace("a == 3", "True")},
    ],
)
def test_a_broken_task_that_holds_a_secret_is_named_without_telling_it(
    workspace: Path, factory: Run, texts: dict[str, str]
) -> None:
    write_task(workspace, **texts)
    write_job(workspace)
    for arguments, expected in ((["tasks"], 1), (["preview", "adding"], 2), (["plan", "job.toml"], 2)):
        code, printed, told = factory(*arguments)
        assert code == expected
        assert "<HF_TOKEN>" in printed + told
        require_no_secret(printed + told)
