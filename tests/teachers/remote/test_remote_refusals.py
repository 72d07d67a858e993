"""What an endpoint cannot do is told in one line before any row is asked; and a key is told nowhere."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import SCHEMA, write_task
from remote_support import demo_tokenizer, remote_job
from scripted_endpoint import MODEL, ScriptedEndpoint, serving

from factory.errors import FactoryError, TeacherError
from factory.job.endpoint import forget_manner
from factory.job.job import Job
from factory.runs.run import run
from factory.teachers.demo import demo_teacher
from factory.teachers.remote.transport import read_key, require_url

KEY = "sk-very-secret-0123456789"
ANSWER = {"top_k": 4, "positions": "answer"}


def refusal(endpoint: ScriptedEndpoint, workspace: Path, make: Callable[[ScriptedEndpoint], Job]) -> str:
    """The one line that a job is answered with; no row was asked."""
    with serving(endpoint), pytest.raises(FactoryError) as caught:
        run(make(endpoint), workspace, workspace / "out")
    message = str(caught.value)
    assert "\n" not in message
    asked = [body for body in endpoint.bodies if "Add" in json.dumps(body) or " + " in json.dumps(body)]
    assert asked == []
    return message


def strings(**changed: Any) -> ScriptedEndpoint:
    return ScriptedEndpoint(vllm=False, tokenizer=demo_tokenizer(), **changed)


CASES: list[tuple[str, ScriptedEndpoint, dict[str, Any], str]] = [
    (
        "no key",
        ScriptedEndpoint(),
        {"teacher": {"api_key_env": "NO_SUCH_KEY"}},
        "teacher.api_key_env 'NO_SUCH_KEY': not",
    ),
    ("bad key", ScriptedEndpoint(key=KEY), {"teacher": {"api_key_env": "SOME_KEY"}}, "refuses the key (SOME_KEY)"),
    ("key left out", ScriptedEndpoint(key=KEY), {}, "refuses the key (none was sent: name its variable"),
    ("other model", ScriptedEndpoint(), {"teacher": {"model": "adder-l"}}, "'adder-l': not a model of"),
    (
        "other path",
        ScriptedEndpoint(),
        {"teacher": {"base_url": "{url}/deeper"}},
        "mend the address or the model's name",
    ),
    ("no server", ScriptedEndpoint(), {"teacher": {"base_url": "http://127.0.0.1:9/v1"}}, "cannot be reached: no conn"),
    ("too many", ScriptedEndpoint(), {"signals": {"top_k": 20}}, "signals.top_k 20: "),
    ("inside", ScriptedEndpoint(), {"signals": {"hidden_layers": [1]}}, "signals.hidden_layers: "),
    ("experts", ScriptedEndpoint(), {"signals": {"experts": True}}, "signals.experts: "),
    ("attention", ScriptedEndpoint(), {"signals": {"attention": {"layers": [1]}}}, "signals.attention: "),
    ("prompts", ScriptedEndpoint(), {"signals": {"positions": "all"}}, 'signals.positions = "all": '),
    ("drawn", ScriptedEndpoint(), {"signals": {"keep": "sampled"}}, 'signals.keep = "sampled": '),
    ("unsure", ScriptedEndpoint(), {"signals": {"min_entropy": 0.5}}, "signals.min_entropy: "),
    ("no tokenizer", strings(), {"signals": ANSWER}, "name the model's tokenizer in teacher.tokenizer"),
    ("reasoning", strings(), {"teacher": {"tokenizer": "demo"}}, 'say positions = "answer"'),
    ("over twenty", strings(), {"signals": {"top_k": 21, "positions": "answer"}}, "at most 20"),
    ("no such file", strings(), {"teacher": {"tokenizer": "/no/such"}, "signals": ANSWER}, "no tokenizer.json of it"),
    ("min_p", strings(), {"sampling": {"min_p": 0.1}, "signals": {"top_k": 0}}, "sampling.min_p: "),
    ("template", strings(), {"teacher": {"chat_template_kwargs": {"a": 1}}, "signals": {"top_k": 0}}, "chat_template"),
]


@pytest.mark.parametrize(
    ("endpoint", "sections", "told"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_cannot_be_had_is_refused_in_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, endpoint: ScriptedEndpoint, sections: dict[str, Any], told: str
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-not-the-right-one")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    teacher = dict(sections.get("teacher", {}))

    def make(endpoint: ScriptedEndpoint) -> Job:
        given = {name: v.format(url=endpoint.url) if isinstance(v, str) else v for name, v in teacher.items()}
        given |= {"tokenizer": demo_teacher()} if given.get("tokenizer") == "demo" else {}
        return remote_job(endpoint, teacher=given, **{k: v for k, v in sections.items() if k != "teacher"})

    assert told in refusal(endpoint, workspace, make)


def test_a_tokenizer_that_counts_otherwise_is_refused(workspace: Path) -> None:
    class Other:
        """A tokenizer with a token for each character."""

        def encode(self, text: str, add_special_tokens: bool) -> Any:
            return type("Ids", (), {"ids": list(range(len(text)))})()

        def id_to_token(self, token: int) -> str:
            return "a"

        def get_vocab_size(self) -> int:
            return 4096

    endpoint = strings()
    message = refusal_of_counts(endpoint, workspace, Other())
    assert "does not fit the endpoint" in message


def refusal_of_counts(endpoint: ScriptedEndpoint, workspace: Path, other: Any) -> str:
    """The endpoint spells its answers as the demo teacher's tokenizer does, and counts prompts by another."""
    complete = endpoint.complete

    def counted(body: dict[str, Any]) -> dict[str, Any]:
        made = complete(body)
        texts = "".join(message["content"] for message in body["messages"])
        made["usage"]["prompt_tokens"] = len(other.encode(texts, False).ids)
        return made

    endpoint.complete = counted  # type: ignore[method-assign]
    return refusal(endpoint, workspace, lambda e: remote_job(e, teacher={"tokenizer": demo_teacher()}, signals=ANSWER))


def test_a_schema_that_the_dialect_cannot_say_is_refused(tmp_path: Path) -> None:
    mapped = SCHEMA.replace("words: str = Field(max_length=20)", "words: dict[str, int]").replace(
        'words="done"', 'words={"done": 1}'
    )
    write_task(tmp_path, schema=mapped)
    message = refusal(strings(), tmp_path, lambda e: remote_job(e, signals={"top_k": 0}))
    assert message.startswith(
        "task 'adding': its schema cannot be said to this endpoint: Answer.words: a map with free"
    )
    assert "validation.constrain = false" in message


def test_gemini_says_what_a_model_does_not_do(workspace: Path) -> None:
    def job(endpoint: ScriptedEndpoint, **signals: Any) -> Job:
        teacher = {"backend": "gemini", "base_url": endpoint.gemini_url}
        return remote_job(endpoint, teacher=teacher, signals=ANSWER | signals)

    mute = ScriptedEndpoint(tokenizer=demo_tokenizer(), most_logprobs=0)
    assert "signals.top_k 4: " in refusal(mute, workspace, job)
    plain = ScriptedEndpoint(tokenizer=demo_tokenizer(), thinks=False)
    assert 'say reasoning = "off"' in refusal(plain, workspace, job)
    whole = ScriptedEndpoint(tokenizer=demo_tokenizer())
    assert 'say positions = "answer"' in refusal(whole, workspace, lambda e: job(e, positions="completion"))
    assert "at most 20" in refusal(whole, workspace, lambda e: job(e, top_k=21))


def test_a_job_that_scores_needs_an_open_model(workspace: Path) -> None:
    (workspace / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    job = {"out": "out", "transcripts": {"path": str(workspace / "rows.jsonl")}}
    job |= {"teacher": {"backend": "openai", "model": "x", "api_key_env": ""}}
    with pytest.raises(TeacherError, match="an endpoint answers and does not score"):
        run(Job.model_validate(job), workspace, workspace / "out")


@pytest.mark.parametrize(
    "url", ["http://", "ftp://host/v1", "host:8000", "https://user:secret@host/v1", "https://host/v1?key=secret"]
)
def test_an_address_that_is_none_is_refused_without_repeating_a_secret(url: str) -> None:
    with pytest.raises(TeacherError, match=r"^teacher\.base_url") as caught:
        require_url(url)
    assert "secret" not in str(caught.value)


def test_a_key_with_characters_that_no_key_has_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("sk-one\nsk-two", "sk-ö", "sk one"):
        monkeypatch.setenv("SOME_KEY", value)
        with pytest.raises(TeacherError, match="SOME_KEY") as caught:
            read_key("SOME_KEY")
        assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ({"backend": "openai"}, "name the endpoint's model"),
        ({"backend": "openai", "model": "x", "dtype": "float16"}, "dtype: backend is 'openai'"),
        ({"backend": "vllm", "model": "x", "base_url": "http://x"}, "base_url: backend is 'vllm'"),
        ({"backend": "openai", "model": "x", "max_cost": 1.0}, "add [teacher.price]"),
        ({"backend": "openai", "model": "x", "api_key_env": "sk-abc def"}, "api_key_env"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(teacher: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=r"teacher") as caught:
        Job.model_validate({"out": "o", "teacher": teacher, "tasks": [{"name": "adding", "count": 1}]})
    assert told in str(caught.value)


def test_a_price_or_an_address_is_no_other_job() -> None:
    one = Job.model_validate(
        {"out": "o", "teacher": {"backend": "openai", "model": "x"}, "tasks": [{"name": "adding", "count": 1}]}
    )
    two = one.model_copy(
        update={
            "teacher": one.teacher.model_copy(
                update={"base_url": "http://elsewhere/v1", "max_cost": 3.0, "api_key_env": "OTHER"}
            )
        }
    )
    dumps = [job.teacher.model_dump(mode="json") for job in (one, two)]
    for dump in dumps:
        forget_manner(dump)
    assert dumps[0] == dumps[1]
    assert dumps[0]["endpoint"] == {"dialect": "auto", "body": {}}


def test_a_key_stands_in_no_file_log_error_or_traceback(workspace: Path) -> None:
    """Over whole runs as a user starts them: one that ends well, one that is refused, one that is parked."""
    with serving(ScriptedEndpoint(key=KEY)) as endpoint:
        job = remote_job(endpoint, 4, teacher={"api_key_env": "MY_ACCESS"}).model_dump(
            mode="json", exclude_defaults=True, exclude_none=True
        )
        (workspace / "job.toml").write_text(tomli_w.dumps(job))
        good = start(workspace, MY_ACCESS=KEY)
        assert good.returncode == 0, good.stderr
        wrong = start(workspace, MY_ACCESS=KEY + "0", out="other")
        assert wrong.returncode == 2
        # the endpoint repeats the key it was given in its error; we do not
        assert "refuses the key (MY_ACCESS): HTTP 401: Incorrect API key provided: <MY_ACCESS>" in wrong.stderr
    told = "".join((good.stdout, good.stderr, wrong.stdout, wrong.stderr))
    assert KEY not in told
    assert KEY.lower() not in told
    for path in workspace.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def start(workspace: Path, out: str = "out", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "factory.cli", "run", "job.toml", "--out", out, "--log-json"]
    return subprocess.run(
        command, cwd=workspace, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_what_holds_a_key_does_not_print_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_ACCESS", KEY)
    key = read_key("MY_ACCESS")
    assert KEY not in repr(key) + str(key)
    assert key.clean(f"you sent {KEY}\nand that is wrong") == "you sent <MY_ACCESS> and that is wrong"
    try:
        raise ValueError(key)
    except ValueError:
        assert KEY not in traceback.format_exc()
    assert MODEL
