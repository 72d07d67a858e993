"""Token ids of prompts and answers without an engine, so that a plan can count them in a moment.

`tokenizers` and Jinja load in a tenth of a second, transformers takes several; so the model's own tokenizer.json and
chat template are read here, and `PromptEncoder` does with them what it does with a transformers tokenizer.
"""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from factory.errors import TeacherError, one_line
from factory.job.job import Job
from factory.job.teacher import Markers, TeacherConfig
from factory.messages import Message, text_of
from factory.teachers.models import locate_model, read_end_ids
from factory.teachers.prompt_ids import EncodedPrompt, PromptEncoder, TemplateRefusal
from factory.teachers.reasoning import find_markers

# about 3 characters a token: English has 4, JSON 3
GUESSED_PIECE = re.compile(r"\s?\w{1,4}|\s|[^\w\s]{1,2}")
# a tag of transformers' own, which plain Jinja does not know
GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
# of a chat template's own, for a prompt
GUESSED_TEMPLATE_TOKENS = 12
# guessed ids are spread as a tokenizer's are, because files are weighed compressed
GUESSED_VOCAB = 150_000


class Counter(Protocol):
    """What a plan needs of a tokenizer; `how` says for people where the numbers come from."""

    how: str

    def prompt_ids(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """The ids of a rendered prompt, the chat template's own and the reasoning's opening among them."""
        ...

    def completion_ids(self, reasoning: str, answer: str) -> tuple[list[int], list[int]]:
        """The ids of a reasoning with its end marker, and those of an answer with the token that stops."""
        ...


class LocalTokenizer:
    """As much of a transformers tokenizer as `PromptEncoder` and `find_markers` use, out of a model's folder."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self.backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # of no type of its own
            raise ValueError(f"tokenizer.json: {one_line(error)}") from None
        config = _read_json(folder / "tokenizer_config.json")
        self.backend.no_truncation()  # both may be kept in the file, and are for another use
        self.backend.no_padding()
        self.special = {
            name: _text_of(config[name])
            for name in config
            if name.endswith("_token") and isinstance(config[name], str | dict) and config[name]
        }
        self.chat_template = _chat_template(folder, config)
        self.template = _compile(self.chat_template)
        self.added_tokens_decoder: dict[int, Any] = self.backend.get_added_tokens_decoder()
        found = (self.backend.token_to_id(text) for text in self.special.values())
        self.all_special_ids = [number for number in found if number is not None]
        end = self.special.get("eos_token")
        self.eos_token_id: int | None = None if end is None else self.backend.token_to_id(end)

    @property
    def backend_tokenizer(self) -> Any:
        return self.backend

    def get_vocab(self) -> dict[str, int]:
        vocab: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return vocab

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(
        self, messages: list[Message], *, tokenize: bool, add_generation_prompt: bool, **values: Any
    ) -> str:
        """The conversation as the model's template renders it."""
        said = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        given = {"tools": None} | self.special | values | said  # as transformers says that there are none
        own = values.get("chat_template")
        return (self.template if own is None else _compile(own)).render(given)


class ExactCounter:
    """Counts as the engine does: its tokenizer, its chat template, its markers."""

    def __init__(
        self, tokenizer: LocalTokenizer, teacher: TeacherConfig, end_ids: Sequence[int] = (), strict: bool = True
    ) -> None:
        custom = teacher.reasoning.model_dump() if isinstance(teacher.reasoning, Markers) else None
        self.markers = (
            find_markers(tokenizer, "custom", **custom) if custom else find_markers(tokenizer, str(teacher.reasoning))
        )
        self.encoder = PromptEncoder(tokenizer, self.markers, teacher.chat_template_kwargs, end_ids)
        self.model, self.strict = teacher.model, strict
        self.how = "the model's own tokenizer"

    def encode_prompt(self, messages: Sequence[Message], tools: str = "") -> EncodedPrompt:
        """A prompt as the engine would be given it, but for pictures, which stand there as words.

        Raises TeacherError where the engine would not start.
        """
        messages = [message | {"content": text_of(message["content"])} for message in messages]
        try:
            self.encoder.showing(tools).require_header(tuple(message["role"] for message in messages))
            return self.encoder.encode_prompt(messages, tools)
        except TemplateRefusal as error:
            raise TeacherError(f"teacher.model {self.model!r}: its chat template and the prompts: {error}") from None

    def prompt_ids(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        try:
            return self.encode_prompt(messages, tools).ids
        except TeacherError:
            if self.strict:
                raise
            # a transcript that the template does not take is a rejected row, or has ids of its own
            text = "\n".join(text_of(message["content"]) for message in messages)
            return [0] * GUESSED_TEMPLATE_TOKENS + list(self.encoder.tokenizer.encode(text, False))

    def completion_ids(self, reasoning: str, answer: str) -> tuple[list[int], list[int]]:
        tokenizer = self.encoder.tokenizer
        think = f"{reasoning}{self.markers.end}" if self.markers else ""
        return tokenizer.encode(think, False), [*tokenizer.encode(answer, False), 0]  # any id stands for the stop


class GuessedCounter:
    """Counts pieces of up to four letters, where the model's tokenizer is not on this machine."""

    how = "a guess of 3 characters a token: the model's tokenizer is not on this machine"

    def prompt_ids(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        texts = [tools, *(text_of(message["content"]) for message in messages)]
        return [0] * GUESSED_TEMPLATE_TOKENS + _guess("\n".join(texts).strip())

    def completion_ids(self, reasoning: str, answer: str) -> tuple[list[int], list[int]]:
        return [*_guess(reasoning), 0], [*_guess(answer), 0]


def open_counter(job: Job) -> Counter:
    """The job's tokenizer where it is here, else a guess. Raises TeacherError where there is no such path."""
    if job.teacher.remote:
        return _open_remote(job.teacher)
    return open_exact(job.teacher, strict=job.transcripts is None) or GuessedCounter()


def _open_remote(teacher: TeacherConfig) -> Counter:
    """A counter with the tokenizer that is named for an endpoint's model; how its prompts are framed is a guess."""
    try:
        folder = None if teacher.tokenizer is None else folder_of(teacher.tokenizer, None)
    except ValueError:  # neither a folder nor a name of the hub's: the run will say so
        folder = None
    if folder is None or not (folder / "tokenizer.json").is_file():
        return GuessedCounter()
    return ExactCounter(LocalTokenizer(folder), teacher, strict=False)


def open_exact(teacher: TeacherConfig, strict: bool = True) -> ExactCounter | None:
    """A counter with the teacher's own tokenizer; None where that is not on this machine. Raises TeacherError."""
    model = locate_model(teacher)
    folder = folder_of(teacher.tokenizer or model, teacher.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        return ExactCounter(LocalTokenizer(folder), teacher, read_end_ids(model, teacher), strict)
    except (OSError, ValueError, TemplateError) as error:
        told = one_line(error, 200)
        raise TeacherError(f"teacher.model {teacher.model!r}: its tokenizer cannot be used: {told}") from None


def require_exact(teacher: TeacherConfig) -> ExactCounter:
    """Raises TeacherError where the teacher's tokenizer is not on this machine."""
    counter = open_exact(teacher)
    if counter is None:
        raise TeacherError(
            f"teacher.model {teacher.model!r}: no tokenizer.json of it on this machine; download it first or give a "
            f"local folder"
        )
    return counter


def folder_of(name: str, revision: str | None) -> Path | None:
    """A model's folder: a local one, or what the hub's cache holds of it; nothing is downloaded."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
    except HFValidationError:  # a mistyped path, or an address: no name that the hub could know
        return None
    return Path(found).parent if isinstance(found, str) else None


def _guess(text: str) -> list[int]:
    return [zlib.crc32(piece.encode("utf-8", "replace")) % GUESSED_VOCAB for piece in GUESSED_PIECE.findall(text)]


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The template named default, wherever a model keeps it; empty where it has none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    kept = _read_json(folder / "chat_template.json").get("chat_template") or config.get("chat_template") or ""
    named = {item["name"]: item["template"] for item in kept} if isinstance(kept, list) else {"default": kept}
    return str(named.get("default", ""))


def _compile(source: str) -> Template:
    """A chat template in the environment that transformers gives it; `generation` marks training masks, not text."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(GENERATION_TAG.sub("", source))


def _read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return value


def _text_of(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _refuse(message: str) -> None:
    raise TemplateError(message)
