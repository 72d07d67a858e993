"""Each thing that an endpoint cannot do, as a user meets it at the command line: one line, exit 2, no row asked."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import SCHEMA, write_task
from remote_support import demo_tokenizer, remote_job
from scripted_endpoint import ScriptedEndpoint, serving

from factory.cli import main
from factory.teachers.demo import demo_teacher

MAPPED = SCHEMA.replace("words: str = Field(max_length=20)", "words: dict[str, int]").replace(
    'words="done"', 'words={"done": 1}'
)
ANSWER = {"top_k": 4, "positions": "answer"}
# what of the job is changed, what of the endpoint, and how the line ends that says so
CASES: dict[str, tuple[dict[str, Any], bool, str]] = {
    "no key": ({"teacher": {"api_key_env": "NO_SUCH_KEY"}}, True, "'NO_SUCH_KEY': not set in the environment"),
    "wrong URL": ({"teacher": {"base_url": "http://127.0.0.1:9/v1"}}, True, "cannot be reached"),
    "no URL": ({"teacher": {"base_url": "127.0.0.1:9"}}, True, "teacher.base_url"),
    "unknown model": ({"teacher": {"model": "adder-l"}}, True, "not a model of"),
    "a schema": ({"signals": {"top_k": 0}}, False, "its schema cannot be said to this endpoint"),
    "top_k": ({"signals": {"top_k": 20}}, True, "signals.top_k 20"),
    "hidden layers": ({"signals": {"hidden_layers": [1]}}, True, "signals.hidden_layers"),
    "no tokenizer": ({"signals": ANSWER, "teacher": {"tokenizer": "/no/such"}}, False, "no tokenizer.json of it"),
    "another tokenizer": ({"signals": ANSWER, "teacher": {"tokenizer": "demo"}}, False, "does not fit the endpoint"),
}


def call(*arguments: str) -> int:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
    finally:
        signal.signal(signal.SIGTERM, handler)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_2(
    name: str, workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sections, vllm, told = CASES[name]
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    if name == "a schema":
        write_task(workspace, schema=MAPPED)
    endpoint = ScriptedEndpoint(vllm=vllm, tokenizer=None if vllm else demo_tokenizer())
    if name == "another tokenizer":
        count_by_characters(endpoint)
    teacher = dict(sections.get("teacher", {}))
    if teacher.get("tokenizer") == "demo":
        teacher["tokenizer"] = demo_teacher()
    with serving(endpoint):
        job = remote_job(endpoint, teacher=teacher, **{k: v for k, v in sections.items() if k != "teacher"})
        text = tomli_w.dumps(job.model_dump(mode="json", exclude_defaults=True, exclude_none=True))
        Path("job.toml").write_text(text)
        assert call("run", "job.toml") == 2
    printed, errors = capsys.readouterr()
    # where an endpoint is asked, a line says so before
    *before, line = errors.splitlines()
    assert told in line
    assert all(one.startswith("endpoint ") for one in before)
    assert len(before) <= 1
    assert printed == ""
    assert not [body for body in endpoint.bodies if "Add" in json.dumps(body) or " + " in json.dumps(body)]
    assert not list(Path("out").glob("data/*"))


def count_by_characters(endpoint: ScriptedEndpoint) -> None:
    """Have it count prompts as another tokenizer than the one that it spells its answers with."""
    complete = endpoint.complete

    def counted(body: dict[str, Any]) -> dict[str, Any]:
        made = complete(body)
        made["usage"]["prompt_tokens"] = sum(len(message["content"]) for message in body["messages"])
        return made

    endpoint.complete = counted  # type: ignore[method-assign]


def test_a_key_that_a_later_teacher_lacks_is_told_before_the_first_is_asked(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    task = {"name": "adding", "count": 8, "teacher": {"near": 1, "far": 1}}
    far = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY"}
    for first, changed in (("key", {}), ("address", {"base_url": "nowhere", "api_key_env": ""})):
        job = {"out": first, "signals": {"top_k": 4}, "tasks": [task]}
        job |= {"teachers": {"near": {"backend": "scripted"}, "far": far | changed}}
        Path("job.toml").write_text(tomli_w.dumps(job))
        assert call("run", "job.toml") == 2
        _, line = capsys.readouterr()
        assert line.startswith("error: teachers.far: teacher.")
        assert line.count("\n") == 1
        assert ("'NO_SUCH_KEY': not set in the environment" if first == "key" else "teacher.base_url") in line
        assert not list(Path(first).glob("data/*"))
