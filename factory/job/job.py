"""The job file: what to make, with which teacher, how much. TOML, checked by pydantic, nothing unknown allowed.

Here a file is checked against itself alone. What needs a model (layers, window, experts) is checked in `teachers`, what
needs the tasks in `runs`: a `Job` that loads may still ask for something that cannot be had.

A default is what a user gets who says nothing. None means that somebody else decides: the model, vLLM, task.toml or
another key. Values that decide what comes out are part of the job's digest, defaults too: another default makes another
job of an old file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from factory.errors import JobError
from factory.job.config import Config, Count, describe_problems, read_toml
from factory.job.data import PersonalKind, SourceConfig, TranscriptsConfig
from factory.job.paths import named_files
from factory.records import Sampling
from factory.signals import HiddenPositions, Keep, Positions

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e9)]


class ScriptedFaults(Config):
    """Shares of the scripted teacher's answers that go wrong on purpose, in [0, 1]; what is left is right."""

    bad_json: Fraction = 0.0
    truncated: Fraction = 0.0
    wrong: Fraction = 0.0
    no_reasoning: Fraction = 0.0
    crash: Fraction = 0.0
    refusal: Fraction = 0.0
    loop: Fraction = 0.0
    pii: Fraction = 0.0

    @model_validator(mode="after")
    def _shares_fit(self) -> "ScriptedFaults":
        # shares such as 0.1 and 0.7 add up to a little more than they say
        total = sum(self.model_dump().values())
        if total > 1 + 1e-9:
            raise ValueError(f"the shares add up to {total:g}, more than 1")
        return self


class Markers(Config):
    """The texts a model puts around its reasoning, where it uses others than the known ones."""

    start: Annotated[str, Field(min_length=1, max_length=64)]
    end: Annotated[str, Field(min_length=1, max_length=64)]


class TeacherConfig(Config):
    """`[teacher]`: which model answers, and how the engine is set up."""

    model: Annotated[str, Field(min_length=1)] = "demo"
    backend: Literal["vllm", "scripted"] = "vllm"
    # of a hub id: branch, tag or commit; None for its main branch
    revision: str | None = None
    # None for the model's own
    tokenizer: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: str | None = None
    # tokens of prompt and completion together; None for the model's own window
    max_model_len: Annotated[int, Field(ge=64)] | None = None
    # requests in one batch of the engine
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] = 64
    # requests handed to the engine and not answered; None for `feed_depth`'s choice
    in_flight: Annotated[int, Field(ge=1, le=65536)] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    # GiB of the key-value cache; None for 1 on a processor and what is free on a GPU
    kv_cache_gb: Annotated[float, Field(gt=0)] | None = None
    reasoning: Literal["auto", "prompted", "off"] | Markers = "auto"
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    # further arguments of `vllm.LLM`: checked by factory.teachers.settings, which knows what each does to signals
    engine: dict[str, Any] = Field(default_factory=dict)
    # deaths in a row, without an answer between them
    max_restarts: Annotated[int, Field(ge=0, le=100)] = 3
    start_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    hang_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    scripted: ScriptedFaults = ScriptedFaults()

    @property
    def feed_depth(self) -> int:
        """Requests kept in flight: enough that the engine's batch never runs dry while a shard is written."""
        # a batch that runs, and another that takes its place while nobody feeds
        return self.in_flight or 2 * self.max_num_seqs


class SamplingConfig(Config):
    """`[sampling]`, of a job or of one of its tasks; what is left out comes from task.toml, then from the defaults."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=5)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    thinking_tokens: Annotated[int, Field(ge=0)] | None = None

    def over(self, base: Sampling) -> Sampling:
        """`base` with every field that is set here replaced."""
        fields = {name: getattr(base, name) for name in Sampling.__slots__}
        return Sampling(**(fields | self.model_dump(exclude_none=True)))


class StyleConfig(Config):
    """`[style]` of a task.toml: how the texts that a user reads must sound.

    `fields` are the answer's keys that hold such texts (dotted, `*` for each item of a list); all its strings when none
    is named. Bounds are words of one text. `tone` is for templates and judges, the rest is checked by code.
    """

    tone: Annotated[str, Field(max_length=400)] = ""
    fields: Annotated[list[Annotated[str, Field(pattern=r"^[\w*]+(\.[\w*]+)*$")]], Field(max_length=64)] = Field(
        default_factory=list
    )
    min_words: Annotated[int, Field(ge=0)] = 0
    max_words: Annotated[int, Field(ge=1)] | None = None
    markdown: bool = False
    emoji: bool = False
    phone: bool = True


class AttentionConfig(Config):
    """`[signals.attention]`: whole attention maps of these decoder blocks (1 is the first, -1 the last).

    Of a `share` of the rows, drawn by their ids, and of these the ones of at most `max_tokens` input tokens: a map has
    as many numbers as tokens squared.
    """

    layers: Annotated[list[int], Field(min_length=1, max_length=256)]
    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    max_tokens: Annotated[int, Field(ge=2, le=8192)] = 512


class SignalsConfig(Config):
    """`[signals]`: what is kept of the teacher's distribution and of its inside.

    `keep`: the `top_k` likeliest ids at each position; of these as many as reach the mass `top_p`; or the ids that
    `top_k` random draws from the distribution give. `positions` and `min_entropy` (nats) say where, `hidden_positions`
    the same of hidden states ("kept": those that predict a token whose distribution is kept). `experts`: the routing
    of a mixture-of-experts teacher.
    `verify_rows`: how many rows are run again through transformers at the end (0: none; left out: 4 with vLLM).
    `capture`: taken while the teacher generates, or by a prefill over the finished ids afterwards.
    """

    top_k: Annotated[int, Field(ge=0, le=1024)] = 20
    keep: Keep = "top_k"
    top_p: Annotated[float, Field(gt=0, lt=1)] | None = None
    positions: Positions = "completion"
    min_entropy: Annotated[float, Field(ge=0, le=20)] = 0.0
    hidden_positions: HiddenPositions = "all"
    experts: bool = False
    attention: AttentionConfig | None = None
    hidden_layers: Annotated[list[int], Field(max_length=256)] = Field(default_factory=list)
    final_norm: bool = True
    capture: Literal["decode", "prefill"] = "decode"
    verify_rows: Annotated[int, Field(ge=0, le=1024)] | None = None

    @model_validator(mode="after")
    def _choices_fit(self) -> "SignalsConfig":
        if (self.keep == "top_p") != (self.top_p is not None):
            raise ValueError('keep = "top_p" and top_p (a mass, such as 0.98) belong together; give both or neither')
        fields = type(self).model_fields
        asked = [name for name in ("keep", "positions", "min_entropy") if getattr(self, name) != fields[name].default]
        if not self.top_k and asked:
            raise ValueError(f"{', '.join(asked)}: top_k is 0, so no logprobs are kept; set top_k or leave it out")
        if not self.top_k and self.hidden_positions == "kept":
            raise ValueError('hidden_positions = "kept" follows the kept logprobs, and top_k is 0; say "completion"')
        if not self.hidden_layers and self.hidden_positions != "all":
            raise ValueError("hidden_positions: no hidden_layers are kept; name some or leave it out")
        return self


class StorageConfig(Config):
    """`[storage]`: how the kept signals are written.

    `logprobs`: `exact` keeps every number as it came, `compact` the ids exactly and the others within stated bounds.
    """

    logprobs: Literal["exact", "compact"] = "exact"


class ValidationConfig(Config):
    """`[validation]`: what gates a row, and how often and how an invalid answer is asked for again.

    `resample` asks the same prompt with another seed; `repair` shows the teacher its answer and what is wrong with it.
    """

    gate: Literal["schema", "check"] | None = None
    retries: Annotated[int, Field(ge=0, le=20)] = 0
    retry: Literal["resample", "repair"] = "resample"
    constrain: bool = True


class SamplesConfig(Config):
    """`[samples]`: rejection sampling. `n` answers to each prompt, and which of the accepted ones are kept."""

    n: Annotated[int, Field(ge=1, le=256)] = 1
    keep: Literal["all", "best", "shortest", "pair"] = "all"


class JudgeConfig(Config):
    """`[judge]`: a model reads every accepted answer of a task that has a rubric (`judge.j2`) and scores it.

    Without `teacher` the job's own teacher judges. Answers scored below `threshold` (0 to 1) are rejected.
    """

    threshold: Fraction = 0.0
    teacher: TeacherConfig | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 512


class LengthConfig(Config):
    """Bounds on the tokens of a completion, reasoning included."""

    min_tokens: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class ContaminationConfig(Config):
    """Rows that share `n` words in a row with a text of these files (your evaluation sets) are rejected."""

    files: Annotated[list[str], Field(min_length=1, max_length=256)]
    columns: list[str] = Field(default_factory=list)
    n: Annotated[int, Field(ge=3, le=64)] = 13


class FiltersConfig(Config):
    """`[filters]`: what else an accepted answer must pass; each is off until it is named."""

    duplicates: bool = False
    near_duplicates: Annotated[float, Field(gt=0.3, lt=1)] | None = None
    language: Annotated[list[Annotated[str, Field(pattern="^[a-z]{2}$")]], Field(max_length=64)] = Field(
        default_factory=list
    )
    length: LengthConfig | None = None
    repetition: bool = False
    refusals: bool = False
    pii: bool | list[PersonalKind] = False
    # personal data in what is not accepted: as it came, with placeholders, or such texts not at all
    rejected_pii: Literal["kept", "redacted", "dropped"] = "kept"
    style: bool = False
    contamination: ContaminationConfig | None = None

    @model_validator(mode="after")
    def _something_is_looked_for(self) -> "FiltersConfig":
        if self.rejected_pii != "kept" and not self.pii:
            raise ValueError(f"rejected_pii = {self.rejected_pii!r} covers what pii looks for, and pii is off; set it")
        return self


class StudentConfig(Config):
    """`[student]`: tokens a row may have in all (prompt and completion, by the teacher's tokenizer).

    A longer row is dropped, or asked again with half the thinking tokens for as long as retries are left.
    """

    max_tokens: Annotated[int, Field(ge=16)]
    over: Literal["drop", "shorten"] = "drop"


class DifficultyConfig(Config):
    """`[difficulty]`: the expression that makes one number of a row's measures; docs/curriculum.md names them."""

    formula: Annotated[str, Field(min_length=1, max_length=1000)] = (
        "mean(uncertainty, surprisal, effort, failure, disagreement, doubt)"
    )


class TaskConfig(Config):
    """`[[tasks]]`: one task's share of the job."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    count: Count
    levels: dict[str, Weight] = Field(default_factory=dict)
    gate: Literal["schema", "check"] | None = None
    sampling: SamplingConfig = SamplingConfig()
    source: SourceConfig | None = None

    @model_validator(mode="after")
    def _some_level_weighs(self) -> "TaskConfig":
        if self.levels and not sum(self.levels.values()) > 0:
            raise ValueError("levels: every weight is 0; give at least one level a positive weight")
        return self

    @model_validator(mode="after")
    def _rows_of_a_source(self) -> "TaskConfig":
        if self.count == "all" and self.source is None:
            raise ValueError('count = "all" takes all rows of a source, and there is none; give a number')
        if self.levels and self.source is not None and self.source.level is not None:
            raise ValueError("levels: source.level names the column that says each row's; leave one of them out")
        return self


class Job(Config):
    """A whole job file: it has `tasks` to run, or `transcripts` to score."""

    out: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    teacher: TeacherConfig = TeacherConfig()
    sampling: SamplingConfig = SamplingConfig()
    signals: SignalsConfig = SignalsConfig()
    storage: StorageConfig = StorageConfig()
    validation: ValidationConfig = ValidationConfig()
    samples: SamplesConfig = SamplesConfig()
    judge: JudgeConfig | None = None
    filters: FiltersConfig = FiltersConfig()
    student: StudentConfig | None = None
    difficulty: DifficultyConfig = DifficultyConfig()
    tasks: list[TaskConfig] = Field(default_factory=list)
    transcripts: TranscriptsConfig | None = None

    @model_validator(mode="after")
    def _tasks_or_transcripts(self) -> "Job":
        if self.transcripts is None and not self.tasks:
            raise ValueError("no [[tasks]] table; add one, or [transcripts] for factory score")
        # named at all is enough: a section at its defaults was written by somebody who expects it to do something
        asks = {"tasks", "sampling", "validation", "samples", "judge"} & self.model_fields_set
        if self.transcripts is not None and asks:
            told = ", ".join(sorted(asks))
            raise ValueError(f"{told}: nothing is asked where transcripts are scored; leave it out")
        return self

    @model_validator(mode="after")
    def _a_choice_needs_samples(self) -> "Job":
        if self.samples.keep != "all" and self.samples.n < 2:
            raise ValueError(f"samples.keep = {self.samples.keep!r} chooses among answers; set samples.n to 2 or more")
        return self

    @model_validator(mode="after")
    def _each_task_once(self) -> "Job":
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"task named twice: {', '.join(twice)}; give each task one [[tasks]] table")
        return self


def load_job(path: Path) -> Job:
    """Read and check a job file; every problem in it is named in one JobError."""
    if path.is_dir():
        raise JobError(f"{path}: is a directory; give a job file such as {path / 'job.toml'}")
    data = read_toml(path, "no such job file; see docs/examples/ for one to copy")
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        raise JobError(f"{path}: {describe_problems(error, Job)}") from None


def source_paths(job: Job) -> list[tuple[str, Path]]:
    """The local files and folders that a job reads, each with the key that names it."""
    paths = {f"tasks.{n}.source.path": Path(t.source.path) for n, t in enumerate(job.tasks) if t.source is not None}
    paths |= {} if job.transcripts is None else {"transcripts.path": Path(job.transcripts.path)}
    sets = job.filters.contamination.files if job.filters.contamination is not None else []
    paths |= {f"filters.contamination.files.{number}": Path(name) for number, name in enumerate(sets)}
    # files of a folder too: a link among them may lead anywhere
    files = [(key, file) for key, path in paths.items() for file in (path, *named_files(str(path)).values())]
    # what is not here may be the name of a dataset on the hub
    return [(key, path) for key, path in files if path.exists()]
