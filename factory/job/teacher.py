"""`[teacher]` and `[sampling]`: who answers, and how an answer is drawn."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from factory.job.config import Config, Fraction, number_or_auto
from factory.job.endpoint import REMOTE, EndpointConfig, PriceConfig, require_consistent
from factory.records import Repetition, Sampling

Replicas = Annotated[int | Literal["auto"], number_or_auto(256)]


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
    # as if it took time: it sleeps for so long as so many completion tokens a second take; 0: it does not
    tokens_per_second: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _shares_fit(self) -> "ScriptedFaults":
        # shares such as 0.1 and 0.7 add up to a little more than they say
        total = sum(self.shares().values())
        if total > 1 + 1e-9:
            raise ValueError(f"the shares add up to {total:g}, more than 1")
        return self

    def shares(self) -> dict[str, float]:
        """The share of each fault by its name."""
        return self.model_dump(exclude={"tokens_per_second"})


class Markers(Config):
    """The texts a model puts around its reasoning, where it uses others than the known ones."""

    start: Annotated[str, Field(min_length=1, max_length=64)]
    end: Annotated[str, Field(min_length=1, max_length=64)]


class TeacherConfig(Config):
    """`[teacher]`: which model answers, and how the engine is set up."""

    model: Annotated[str, Field(min_length=1)] = "demo"
    backend: Literal["vllm", "scripted", "openai", "gemini"] = "vllm"
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
    # engines, each on devices of its own; "auto": as many as there are GPUs for
    replicas: Replicas = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    # GiB of the key-value cache; None for 1 on a processor and what is free on a GPU
    kv_cache_gb: Annotated[float, Field(gt=0)] | None = None
    reasoning: Literal["auto", "prompted", "off"] | Markers = "auto"
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    # which of vLLM's parsers reads tool calls; None for the first that reads what the chat template writes
    tool_parser: str | None = None
    # further arguments of `vllm.LLM`: checked by factory.teachers.settings, which knows what each does to signals
    engine: dict[str, Any] = Field(default_factory=dict)
    # deaths in a row, without an answer between them
    max_restarts: Annotated[int, Field(ge=0, le=100)] = 3
    start_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    hang_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    scripted: ScriptedFaults = ScriptedFaults()
    # the rest is of remote backends alone (docs/teachers.md). None: the backend's own address and variable
    base_url: str | None = None
    # the name of an environment variable, never a key; "" for an endpoint that asks for none
    api_key_env: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] | None = None
    endpoint: EndpointConfig = EndpointConfig()
    price: PriceConfig | None = None
    # in the price's currency: nothing is asked that might pass it
    max_cost: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _keys_of_the_backend(self) -> "TeacherConfig":
        require_consistent(self.backend, self.model_fields_set, self.price is not None)
        return self

    @property
    def remote(self) -> bool:
        """Whether the teacher is behind an endpoint."""
        return self.backend in REMOTE

    @property
    def feed_depth(self) -> int:
        """Requests kept in flight: enough that the engine's batch never runs dry while a shard is written."""
        if self.remote:
            return self.in_flight or self.endpoint.feed_depth
        # a batch that runs, and another that takes its place while nobody feeds
        return self.in_flight or 2 * self.max_num_seqs


class RepetitionConfig(Config):
    """`stop_repetition` of `[sampling]`: the bounds of a `Repetition`; `max_pattern_size` 0 stops nothing.

    `true` stands for the defaults, `false` for none, in a job whose task stops loops itself.
    """

    max_pattern_size: Annotated[int, Field(ge=0, le=512)] = Repetition().max_pattern_size
    min_pattern_size: Annotated[int, Field(ge=1, le=512)] = Repetition().min_pattern_size
    min_count: Annotated[int, Field(ge=2, le=4096)] = Repetition().min_count

    @model_validator(mode="before")
    @classmethod
    def _read_switch(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {} if value else {"max_pattern_size": 0}
        return value

    @model_validator(mode="after")
    def _sizes_fit(self) -> "RepetitionConfig":
        if 0 < self.max_pattern_size < self.min_pattern_size:
            raise ValueError(
                f"max_pattern_size {self.max_pattern_size} is below min_pattern_size {self.min_pattern_size}; "
                f"raise the one or lower the other"
            )
        return self


class SamplingConfig(Config):
    """`[sampling]`, of a job or of one of its tasks; what is left out comes from task.toml, then from the defaults."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=5)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    thinking_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_repetition: RepetitionConfig | None = None

    def over(self, base: Sampling) -> Sampling:
        """`base` with every field that is set here replaced."""
        fields = {name: getattr(base, name) for name in Sampling.__slots__}
        asked = self.model_dump(exclude_none=True, exclude={"stop_repetition"})
        if (loop := self.stop_repetition) is not None:
            asked["stop_repetition"] = Repetition(**loop.model_dump()) if loop.max_pattern_size else None
        return Sampling(**(fields | asked))
