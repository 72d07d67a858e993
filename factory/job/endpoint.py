"""What a job says of a teacher behind an endpoint: `[teacher.endpoint]`, `[teacher.price]`, and which keys go together.

A key is named by its environment variable and never stands in a job file.
"""

from collections.abc import Collection
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from factory.job.config import Config

REMOTE: Final = ("openai", "gemini")
# keys of `[teacher]` that set up an engine of ours: an endpoint has chosen for itself
ENGINE_KEYS: Final = (
    "revision",
    "trust_remote_code",
    "dtype",
    "quantization",
    "max_num_seqs",
    "tensor_parallel_size",
    "replicas",
    "gpu_memory_utilization",
    "kv_cache_gb",
    "engine",
    "max_restarts",
    "start_timeout_s",
    "hang_timeout_s",
    "scripted",
)
REMOTE_KEYS: Final = ("base_url", "api_key_env", "endpoint", "price", "max_cost")
# of these the ones that decide which answers come; the rest is how patiently and for how much they are asked
DECIDING: Final = ("dialect", "body")
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Money = Annotated[float, Field(ge=0, le=1e6)]


class EndpointConfig(Config):
    """`[teacher.endpoint]`: how an endpoint is spoken to, and how fast.

    `dialect` "auto" is found out by asking which models there are. `body` goes into each request as it stands.
    """

    dialect: Literal["auto", "vllm", "openai"] = "auto"
    mode: Literal["online", "batch"] = "online"
    # requests under way at once, at most; how many there are in fact is found out by what the endpoint bears
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    # seconds for one whole answer
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    # tries of one request after the first, for faults of the way there; refusals for speed (429) do not count
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    # seconds without any answer, only faults, until the run is parked
    patience_s: Annotated[float, Field(gt=0)] = 900.0
    # rows in one file of a batch endpoint, and seconds between two looks at it
    batch_rows: Annotated[int, Field(ge=1, le=50_000)] = 10_000
    poll_s: Annotated[float, Field(gt=0)] = 60.0
    body: dict[str, Any] = Field(default_factory=dict)

    @property
    def feed_depth(self) -> int:
        """Prompts that the teacher holds: a file of them, or twice what is under way."""
        return self.batch_rows if self.mode == "batch" else 2 * self.concurrency


class PriceConfig(Config):
    """`[teacher.price]`: money for a million tokens.

    `cached` is for prompt tokens that the endpoint had already, `reasoning` for completion tokens that are reasoning;
    left out, they cost what the others do. A batch endpoint's price is for you to say.
    """

    prompt: Money
    completion: Money
    cached: Money | None = None
    reasoning: Money | None = None
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"


def require_consistent(backend: str, given: Collection[str], priced: bool) -> None:
    """Raise ValueError for keys that this backend does not have, and for a bound on money without a price."""
    remote = backend in REMOTE
    wrong = [name for name in (ENGINE_KEYS if remote else REMOTE_KEYS) if name in given]
    if wrong:
        why = "the endpoint decides that" if remote else 'only for backend = "openai" or "gemini"'
        raise ValueError(f"{', '.join(wrong)}: backend is {backend!r}: {why}; leave it out")
    if remote and "model" not in given:
        raise ValueError(f"model: backend is {backend!r}, so name the endpoint's model")
    if "max_cost" in given and not priced:
        raise ValueError("max_cost: nothing is known of what a token costs; add [teacher.price]")


def forget_manner(teacher: dict[str, Any]) -> None:
    """Leave of a dumped `[teacher]` only what decides its answers, so that a price or an address may change."""
    endpoint = teacher["endpoint"]
    for name in REMOTE_KEYS:
        del teacher[name]
    if teacher["backend"] in REMOTE:
        for name in ENGINE_KEYS:
            teacher.pop(name, None)
        teacher["endpoint"] = {name: endpoint[name] for name in DECIDING}
