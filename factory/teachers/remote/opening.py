"""From a job to a remote teacher: everything that can be refused is refused here, before a row is asked."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory import __version__
from factory.errors import TeacherError
from factory.job.job import Job
from factory.records import Generation, Prompt, Sampling, TeacherInfo
from factory.signals import SignalSpec
from factory.teachers.reasoning import find_markers
from factory.teachers.remote.batches import BatchAsking, GeminiFiles, OpenAIFiles
from factory.teachers.remote.gemini import GeminiWire
from factory.teachers.remote.loop import Asking
from factory.teachers.remote.openai import OpenAIWire
from factory.teachers.remote.probe import SAMPLE, Models, Prober, read_gemini_model, read_models, require_count
from factory.teachers.remote.purse import Purse, account_of, usage_path
from factory.teachers.remote.read import text_markers
from factory.teachers.remote.schemas import CannotSay, Dialect, compile_schema
from factory.teachers.remote.spelling import open_spelling
from factory.teachers.remote.teacher import RemoteTeacher
from factory.teachers.remote.transport import Endpoint, Key, read_key, require_url
from factory.teachers.remote.wire import Said, Wire
from factory.teachers.remote_signals import MOST_OF_STRINGS, resolve_remote_signals
from factory.teachers.tokens import LocalTokenizer, folder_of

URLS = {"openai": "https://api.openai.com/v1", "gemini": "https://generativelanguage.googleapis.com/v1beta"}
KEYS = {"openai": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY"}
VERTEX = "aiplatform.googleapis.com"  # takes a bearer's token, where the developer API takes a key
# of `Sampling`, what only a vLLM server takes of an OpenAI-compatible endpoint
VLLM_ONLY = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class Way:
    """How an endpoint is reached; a client is opened in each event loop that asks."""

    url: str
    key: Key
    headers: dict[str, str]
    timeout_s: float
    most: int

    def open(self) -> Endpoint:
        return Endpoint(self.url, self.headers, self.key, self.timeout_s, self.most)


@contextmanager
def start_remote(
    job: Job,
    schemas: Mapping[str, dict[str, Any]],
    probes: list[Prompt],
    out: Path,
    tell: Callable[..., None],
    images: bool = False,
) -> Iterator[RemoteTeacher]:
    """Probe the endpoint, begin to ask, and end with the context; `images`: some rows show pictures.

    Raises TeacherError for what it cannot serve.
    """
    signals, way = resolve_remote_signals(job, images), find_way(job)
    teacher = job.teacher
    account = account_of(job)
    purse = Purse(usage_path(out), account, teacher.price, teacher.max_cost)
    tell("endpoint", f"endpoint {way.url}: asking what {teacher.model} can do", model=teacher.model, url=way.url)
    try:
        _require_askable(job, probes)
        wire, details = asyncio.run(_probe(job, way, signals, schemas, probes, purse))
    except BaseException:
        purse.close()
        raise
    info = TeacherInfo(teacher.backend, teacher.model, details)

    def make(finish: Callable[..., None]) -> Asking | BatchAsking:
        if teacher.endpoint.mode == "online":
            return Asking(teacher, wire, way.open, purse, details["answers_as"], finish)
        files = GeminiFiles(teacher.model) if teacher.backend == "gemini" else OpenAIFiles()
        path = usage_path(out).with_name(usage_path(out).name.replace("usage", "batches"))
        return BatchAsking(teacher, wire, files, way.open, purse, details["answers_as"], finish, path, account)

    remote = RemoteTeacher(job, signals, info, out, purse, make)
    try:
        yield remote
    finally:
        remote.close()


def _require_askable(job: Job, probes: list[Prompt]) -> None:
    """Raise TeacherError for what no endpoint is asked."""
    if any(probe.tools for probe in probes):
        raise TeacherError(
            f'teacher.backend "{job.teacher.backend}": a task has tools, which an endpoint is not told of; leave it '
            f'out, or run an open model with backend = "vllm"'
        )
    if job.teacher.endpoint.mode != "online" and any(probe.images for probe in probes):
        raise TeacherError(
            f'teacher.endpoint.mode "{job.teacher.endpoint.mode}": a task shows pictures, which would make the files '
            f'too large; say mode = "online", or leave the task out'
        )


def find_way(job: Job) -> Way:
    """Address and key. Raises TeacherError where either is missing or is none."""
    teacher = job.teacher
    url = require_url(teacher.base_url or URLS[teacher.backend])
    key = read_key(KEYS[teacher.backend] if teacher.api_key_env is None else teacher.api_key_env)
    headers = {"user-agent": f"distillation-factory/{__version__}"}
    if key.value and teacher.backend == "gemini" and VERTEX not in url:
        headers["x-goog-api-key"] = key.value
    elif key.value:
        headers["authorization"] = f"Bearer {key.value}"
    return Way(url, key, headers, teacher.endpoint.timeout_s, teacher.endpoint.concurrency)


async def _probe(
    job: Job,
    way: Way,
    signals: SignalSpec,
    schemas: Mapping[str, dict[str, Any]],
    probes: list[Prompt],
    purse: Purse,
) -> tuple[Wire, dict[str, Any]]:
    samplings = [probe.sampling for probe in probes] or [Sampling()]
    endpoint, sampling = way.open(), samplings[0]
    try:
        models = await _find_model(job, endpoint, purse, sampling)
        dialect = _dialect(job, models)
        _require_sayable(job, signals, dialect, samplings)
        compiled, left_out = _compile(job, schemas, dialect)
        wire = _open_wire(job, signals, dialect, compiled)
        prober = Prober(endpoint, wire, purse, sampling, getattr(wire, "thinks", False))
        found = [await prober.find(task) for task in (compiled or {"": {}})]
        if showing := next((probe for probe in probes if probe.images), None):
            await prober.require_pictures(showing.images[0])
        _require_ids(job, found[0].generation)
        await _require_tokenizer(job, wire, prober)
        temper = await prober.find_temper() if signals.top_k else "unknown"
        described = _describe(job, wire, models, dialect, found[0].answers_as, left_out, temper)
        return wire, described | _tell_unsent(dialect, samplings)
    finally:
        await endpoint.close()


async def _find_model(job: Job, endpoint: Endpoint, purse: Purse, sampling: Sampling) -> Models:
    """What the endpoint says of the job's model. Raises TeacherError where it lacks it, or cannot be reached."""
    read = read_gemini_model if job.teacher.backend == "gemini" else read_models
    models = await read(endpoint, job.teacher.model)
    if not models.known:  # nothing has answered yet: a wrong address must not be told as anything else
        bare = OpenAIWire(Said(job.teacher.model, SignalSpec(), {}, ()), vllm=False)
        await Prober(endpoint, bare, purse, sampling, thinks=False).find("")
    return models


def require_served(job: Job, out: Path) -> None:
    """Raise TeacherError where the job's endpoint, asked later, lacks the model or cannot be reached now."""
    purse = Purse(usage_path(out), account_of(job), job.teacher.price, job.teacher.max_cost)
    way = find_way(job)

    async def look() -> None:
        endpoint = way.open()
        try:
            await _find_model(job, endpoint, purse, Sampling())
        finally:
            await endpoint.close()

    try:
        asyncio.run(look())
    finally:
        purse.close()


def _dialect(job: Job, models: Models) -> Dialect:
    if job.teacher.backend == "gemini":
        return "gemini"
    said = job.teacher.endpoint.dialect
    return said if said != "auto" else "vllm" if models.vllm else "openai"


def _require_sayable(job: Job, signals: SignalSpec, dialect: Dialect, samplings: list[Sampling]) -> None:
    """Raise TeacherError for what this dialect has no words for."""
    if job.teacher.reasoning == "prompted" and job.validation.constrain:
        raise TeacherError(
            'teacher.reasoning "prompted": an endpoint holds an answer to its schema from the first token, so nothing '
            "could be reasoned; say validation.constrain = false"
        )
    if dialect == "vllm":
        return
    takes = {"top_k"} if dialect == "gemini" else set()
    known = [(name, usual) for name, usual in VLLM_ONLY.items() if name not in takes]
    wrong = {name for name, usual in known for each in samplings if getattr(each, name) != usual}
    if wrong:
        told = ", ".join(f"sampling.{name}" for name in sorted(wrong))
        raise TeacherError(f"{told}: not in this endpoint's requests (a vLLM server takes it); leave it out")
    if job.teacher.chat_template_kwargs:
        raise TeacherError("teacher.chat_template_kwargs: only a vLLM server takes them; leave them out")
    if dialect == "gemini":  # the rest was decided with the job
        return
    if signals.top_k > MOST_OF_STRINGS:
        raise TeacherError(f"signals.top_k {signals.top_k}: this endpoint gives at most {MOST_OF_STRINGS}; lower it")
    if signals.top_k and job.teacher.tokenizer is None:
        raise TeacherError(
            f"signals.top_k {signals.top_k}: this endpoint names tokens by their text, and rows hold ids; name the "
            f"model's tokenizer in teacher.tokenizer, or keep none with top_k = 0"
        )
    if signals.top_k and signals.positions != "answer":
        raise TeacherError(
            'signals.positions "completion": this endpoint gives signals of the answer alone, none of its reasoning; '
            'say positions = "answer"'
        )


def _compile(
    job: Job, schemas: Mapping[str, dict[str, Any]], dialect: Dialect
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, int]]]:
    """The schemas as they are sent, and what was left out of each. Raises TeacherError."""
    if not job.validation.constrain:
        return {}, {}
    compiled: dict[str, dict[str, Any]] = {}
    left_out: dict[str, dict[str, int]] = {}
    for task, schema in schemas.items():
        try:
            made = compile_schema(schema, dialect)
        except CannotSay as error:
            raise TeacherError(
                f"task {task!r}: its schema cannot be said to this endpoint: {error}; change it, or say "
                f"validation.constrain = false, which asks in words alone"
            ) from None
        compiled[task] = made.schema
        left_out |= {task: made.left_out} if made.left_out else {}
    return compiled, left_out


def _open_wire(job: Job, signals: SignalSpec, dialect: Dialect, compiled: dict[str, dict[str, Any]]) -> Wire:
    teacher = job.teacher
    tokenizer = _open_tokenizer(teacher.tokenizer)
    vllm = dialect == "vllm"
    said = Said(
        model=teacher.model,
        signals=signals,
        schemas=compiled,
        markers=text_markers(teacher.reasoning),
        body=teacher.endpoint.body,
        chat_template_kwargs=teacher.chat_template_kwargs,
        spelling=open_spelling(tokenizer.backend) if tokenizer is not None and not vllm else None,
    )
    if dialect == "gemini":
        return GeminiWire(said, thinks=teacher.reasoning != "off")
    own = None
    if tokenizer is not None and vllm:
        custom = {} if isinstance(teacher.reasoning, str) else teacher.reasoning.model_dump()
        own = find_markers(tokenizer, "custom" if custom else str(teacher.reasoning), **custom)
    return OpenAIWire(said, vllm, tokenizer if vllm else None, own)


def _open_tokenizer(name: str | None) -> LocalTokenizer | None:
    if name is None:
        return None
    try:
        folder = folder_of(name, None)
    except ValueError:  # the hub's client: no folder of that name, and no name of the hub's either
        folder = None
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise TeacherError(
            f"teacher.tokenizer {name!r}: no tokenizer.json of it on this machine; download it first or give a folder"
        )
    return LocalTokenizer(folder)


def _require_ids(job: Job, answer: Generation) -> None:
    """Raise TeacherError where a job keeps distributions and the endpoint's first answer has no ids."""
    # an answer that thinking left no room for tells nothing
    if job.signals.top_k and answer.without_ids and answer.answer_text:
        raise TeacherError(
            f"signals.top_k {job.signals.top_k}: an answer of this endpoint has no token ids: {answer.without_ids}; "
            f"keep none with top_k = 0"
        )


async def _require_tokenizer(job: Job, wire: Wire, prober: Prober) -> None:
    name = job.teacher.tokenizer
    tokenizer = _open_tokenizer(name)
    if name is None or tokenizer is None:
        return
    mine = len(tokenizer.encode(f"\n{SAMPLE}", False)) - len(tokenizer.encode("\n", False))
    require_count(await prober.count_sample(), mine, name)


def _tell_unsent(dialect: Dialect, samplings: list[Sampling]) -> dict[str, Any]:
    """What of the tasks' sampling has no place in the requests: it bounds an answer, and answers come without."""
    unsent = {"vllm": (), "gemini": ("stop_repetition",), "openai": ("thinking_tokens", "stop_repetition")}[dialect]
    asked = [name for name in unsent if any(getattr(sampling, name) is not None for sampling in samplings)]
    return {"not_sent": [f"sampling.{name}" for name in asked]} if asked else {}


def _tell_ids(job: Job, dialect: Dialect, wire: Wire) -> str:
    if dialect == "vllm":
        return "the server's own, of prompt and completion"
    if dialect == "gemini" and job.signals.top_k:
        return "the endpoint's own, of the answer alone: none of prompt and reasoning, nor of the token that stops"
    if wire.said.spelling is None:
        return "none"
    return "found by the tokens' bytes, of the answer alone: none of prompt and reasoning, nor of the token that stops"


def _describe(
    job: Job,
    wire: Wire,
    models: Models,
    dialect: Dialect,
    answers_as: str,
    left_out: dict[str, dict[str, int]],
    temper: str,
) -> dict[str, Any]:
    """What gives the rows their meaning, for the manifest; nothing of it changes between two runs of a job."""
    exact = dialect == "vllm"
    temperature = {
        "before": "before temperature",
        "after": "after temperature",
        "unknown": "before or after temperature is not known",
    }[temper]
    mask = "no grammar is asked for"
    if wire.said.schemas:
        mask = "after the grammar's mask" if exact else "before or after the grammar's mask is not known"
    described: dict[str, Any] = {
        "answers_as": answers_as,
        "dialect": dialect,
        "ids": _tell_ids(job, dialect, wire),
    }
    if job.signals.top_k:
        described |= {
            "distribution": f"the endpoint's own log-probabilities: {temperature}, {mask}",
            "entropy": "a lower bound: of the likeliest ids and all others as one",
            "tail": "one minus the kept ids; an upper bound where that is 1e-6, which is as close as it comes",
        }
    described |= {"vocab_size": wire.said.spelling.vocab} if wire.said.spelling is not None else {}
    described |= {"max_model_len": models.window} if models.window is not None else {}
    described |= {"schema_left_out": left_out} if left_out else {}
    return described
