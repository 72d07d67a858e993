"""The values that travel from a plan to a shard: Prompt -> Generation -> Record | Rejection.

All are immutable. Arrays carry their shape in their name: T completion tokens, k kept ids, N input tokens (prompt and
completion but for the last sampled token, which was never an input), L layers, H hidden size.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Message = dict[str, str]
Keep = Literal["top_k", "top_p", "sampled"]
Positions = Literal["all", "completion", "answer"]
HiddenPositions = Literal["all", "completion", "kept"]
Stage = Literal["prompt", "teacher", "parse", "schema", "check", "signals", "judge", "filter", "samples"]


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no escapes, so that it can be hashed and compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: object, length: int = 24) -> str:
    """Hex digest of a JSON-able value, the same on every machine and under every hash seed."""
    return hashlib.blake2b(canonical_json(value).encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()[:length]


def derive_seed(*parts: object) -> int:
    """A seed of 31 bits (what every engine takes) from anything JSON-able."""
    return int(content_hash(parts, 16), 16) & 0x7FFF_FFFF


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the teacher samples one answer; the names and meanings are vLLM's `SamplingParams`."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 1024
    thinking_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row to make: answer `sample` to prompt `number` of its task; `seed` draws its scenario and its phrasing."""

    shard: int
    position: int
    task: str
    level: str
    number: int
    seed: int
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """An answer that was not accepted and was asked for again.

    `right` is what its check said, None where the answer never got so far through no fault of the teacher's. `outcome`
    is the whole rejection, where the job makes pairs of right and wrong answers; neither is stored.
    """

    seed: int
    stage: str
    reason: str
    findings: tuple[str, ...]
    text: str
    right: bool | None = None
    outcome: "Rejection | None" = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Transcript:
    """A completion that exists already and is only scored: exact token ids, texts that are encoded as they stand, or
    an assistant turn (`role`, `content`, perhaps `reasoning_content`) for the teacher's chat template."""

    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    prompt: str | None = None
    completion: str | None = None
    turn: Message | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """One planned row, rendered. `id` is a hash of its content; `seed` is the one of this attempt.

    All samples of one prompt share `group`, the id of the first. `repaired` says that the last two messages are an
    answer that was not accepted and what was wrong with it. Nothing is asked where there is a `transcript`. Without
    `keeps` no signals are kept of it: it is a judge's, whose answer becomes no row.
    """

    id: str
    shard: int
    position: int
    task: str
    level: str
    messages: tuple[Message, ...]
    scenario: str
    seed: int
    sampling: Sampling
    attempt: int = 0
    history: tuple[Attempt, ...] = ()
    sample: int = 0
    group: str = ""
    repaired: bool = False
    transcript: Transcript | None = None
    keeps: bool = True

    @property
    def request(self) -> Message:
        """The user turn that asks for the answer."""
        return self.messages[-3 if self.repaired else -1]

    def again(self, attempt: Attempt) -> "Prompt":
        """The same prompt with the next seed; the failed attempt is kept in its history."""
        number = self.attempt + 1
        return replace(self, attempt=number, seed=derive_seed(self.id, number), history=(*self.history, attempt))

    def repair(self, answer: str, feedback: str) -> "Prompt":
        """The request itself, then an answer that was not accepted, then what is wrong with it."""
        asked = self.messages[:-2] if self.repaired else self.messages
        turns = ({"role": "assistant", "content": answer}, {"role": "user", "content": feedback})
        return replace(self, messages=(*asked, *turns), repaired=True)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The teacher's own distribution (natural log, before temperature and grammar mask) at each of T tokens.

    Where fewer than k ids are kept, the others are -1 and their log-probabilities -inf; a position that is not kept has
    none at all, and its tail is 0: all mass is outside. `draws_TK` is how often each id was drawn, where ids are drawn.
    """

    sampled_T: Array
    topk_ids_TK: Array
    topk_TK: Array
    tail_T: Array
    entropy_T: Array
    draws_TK: Array | None = None

    @property
    def kept_TK(self) -> Array:
        """Which entries hold an id, bool [T, k]."""
        kept: Array = self.topk_ids_TK >= 0
        return kept

    def part(self, rows: slice | Array) -> "Logprobs":
        """The same of some of the tokens."""
        return Logprobs(**{name: array[rows] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, Array]:
        """Every array that is there, by name."""
        named = {name: getattr(self, name) for name in LOGPROB_ARRAYS}
        return {name: array for name, array in named.items() if array is not None}


LOGPROB_ARRAYS = Logprobs.__slots__


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Hidden states as raw little-endian bfloat16 bits, uint16 [N, L, H]; `layers` as in docs/signals.md.

    `positions_N` are the tokens they were taken at, where only some are kept.
    """

    layers: tuple[int, ...]
    bits_NLH: Array
    positions_N: Array | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """Which E experts each of N input tokens went to in each of L blocks, int16 [N, L, E], and their weights, float16.

    `blocks` are the decoder blocks that have experts, counted from 1 as hidden layers are.
    """

    blocks: tuple[int, ...]
    ids_NLE: Array
    weights_NLE: Array


@dataclass(frozen=True, slots=True)
class Attention:
    """How much each of N input tokens looks at those up to itself: float16 [L, H, N, N], L blocks, H query heads."""

    blocks: tuple[int, ...]
    maps_LHNN: Array


def is_drawn(row_id: str, share: float) -> bool:
    """Whether a row is among a share of all, by its id alone (a hash)."""
    return int(content_hash(row_id, 8), 16) < share * 2**32


@dataclass(frozen=True, slots=True)
class Generation:
    """What the teacher did with one attempt at one prompt.

    `text` is the decoded completion as it stands, markers and stop tokens included. `answer_start` is the index into
    `completion_token_ids` of the first token of the answer (equal to its length when no answer was begun). `reasoning`
    is None where the teacher does not reason. Entry i of `prompt_logprobs` belongs to prompt token i + 1: nothing
    predicts the first. `failure` names why there is no usable completion at all.
    """

    prompt_id: str
    attempt: int
    text: str
    reasoning: str | None
    answer_text: str
    prompt_token_ids: Array
    completion_token_ids: Array
    answer_start: int
    finish_reason: str
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    hidden_states: HiddenStates | None = None
    experts: Experts | None = None
    attention: Attention | None = None
    failure: str | None = None
    failure_detail: str = ""

    @classmethod
    def failed(
        cls, prompt_id: str, attempt: int, failure: str, detail: str, prompt_ids: Array | None = None
    ) -> "Generation":
        """A generation that never came to be."""
        return cls(
            prompt_id=prompt_id,
            attempt=attempt,
            text="",
            reasoning=None,
            answer_text="",
            prompt_token_ids=np.zeros(0, np.int32) if prompt_ids is None else prompt_ids,
            completion_token_ids=np.zeros(0, np.int32),
            answer_start=0,
            finish_reason="error",
            failure=failure,
            failure_detail=detail,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of an answer: a score in [0, 1], None where it gave none, and why."""

    score: float | None
    reasoning: str


@dataclass(frozen=True, slots=True)
class SampleStats:
    """What the samples of a prompt say together; None where a row has no share in it.

    `pass_rate` is the share of the first attempts whose check found nothing, among those that came to a verdict (see
    `Rejection.right`): retries do not raise it, filters and judges do not lower it. `agreement` is the share of the
    prompt's well-formed answers, after retries, that equal this one.
    """

    pass_rate: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, slots=True)
class Measures:
    """How hard a row was for the teacher, by its own signals; None where a job does not keep what a measure needs.

    Entropies and `surprise` (mean of -sampled_logprobs) are in nats over the whole completion, `confidence` is the
    geometric mean of the sampled tokens' probabilities over the answer, `difficulty` the value of the job's formula.
    """

    entropy_mean: float | None = None
    entropy_max: float | None = None
    surprise: float | None = None
    confidence: float | None = None
    reasoning_tokens: int | None = None
    difficulty: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """An accepted row."""

    prompt: Prompt
    generation: Generation
    answer: str
    score: float
    findings: tuple[str, ...] = ()
    verdict: Verdict | None = None
    samples: SampleStats = SampleStats()
    measures: Measures = Measures()

    @property
    def right(self) -> bool:
        """Whether the check found nothing: under the gate `schema` a record may be wrong."""
        return self.score == 1.0 and not self.findings

    def reject(
        self, stage: Stage, reason: str, findings: tuple[str, ...], kind: Literal["rejected", "error"] = "rejected"
    ) -> "Rejection":
        """The same row, turned down at a later stage."""
        return Rejection(
            self.prompt,
            self.generation,
            stage,
            reason,
            findings,
            kind,
            answer=self.answer,
            verdict=self.verdict,
            samples=self.samples,
            passed=self.right,
        )


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that was not accepted. `kind` is "error" where the factory or a task's own code is to blame.

    `passed` is what the check had said of an answer that a later stage turned down, None where there was none.
    """

    prompt: Prompt
    generation: Generation | None
    stage: Stage
    reason: str
    findings: tuple[str, ...] = ()
    kind: Literal["rejected", "error"] = "rejected"
    answer: str | None = None
    verdict: Verdict | None = None
    samples: SampleStats = SampleStats()
    passed: bool | None = None

    @property
    def right(self) -> bool | None:
        """Whether the check found nothing; an answer that cannot be read or breaks its schema is wrong without one.

        None where nothing can be said of the teacher: it was not asked, its engine failed, or our own or the task's
        code did.
        """
        if self.passed is not None:
            return self.passed
        asked = self.stage != "prompt" and self.generation is not None and self.generation.failure is None
        return False if asked and self.kind != "error" else None

    def as_attempt(self, whole: bool = False) -> Attempt:
        """What is remembered of this answer while the row is asked again; `whole` keeps it as one side of a pair."""
        text = self.generation.text if self.generation else ""
        outcome = self._without_signals() if whole else None
        return Attempt(self.prompt.seed, self.stage, self.reason, self.findings, text, self.right, outcome)

    def _without_signals(self) -> "Rejection":
        """All but the arrays that weigh; a pair is chosen by the logprobs of its completion."""
        if self.generation is None:
            return self
        light = replace(self.generation, prompt_logprobs=None, hidden_states=None, experts=None, attention=None)
        return replace(self, generation=light)


Outcome = Record | Rejection
Pair = tuple[Record, Outcome]  # a right and a wrong answer to one prompt


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """What a dataset keeps beside its texts. `layers` are resolved (no negative index); `pairs`: preference pairs.

    `compact`: logprobs are stored in fewer bytes, within the bounds of `factory.dataset.codec`. What `keep`, `top_p`,
    `positions`, `min_entropy` and `hidden_positions` mean is told in docs/signals.md.
    """

    top_k: int = 0
    layers: tuple[int, ...] = ()
    final_norm: bool = True
    pairs: bool = False
    compact: bool = False
    keep: Keep = "top_k"
    top_p: float = 1.0
    positions: Positions = "completion"
    min_entropy: float = 0.0
    hidden_positions: HiddenPositions = "all"
    experts: bool = False
    attention: tuple[int, ...] = ()
    attention_share: float = 0.0
    attention_tokens: int = 0

    @property
    def any(self) -> bool:
        """Whether anything is kept beside the texts."""
        return bool(self.top_k or self.layers or self.experts or self.attention)

    @property
    def ragged(self) -> bool:
        """Whether positions may have fewer than k ids."""
        return self.keep != "top_k" or self.positions == "answer" or self.min_entropy > 0

    def keeps_attention(self, row_id: str, inputs: int) -> bool:
        """Whether a row of so many input tokens has attention maps."""
        return bool(self.attention) and inputs <= self.attention_tokens and is_drawn(row_id, self.attention_share)

    @property
    def of_prompt(self) -> bool:
        """Whether there are distributions at the prompt's tokens too."""
        return self.top_k > 0 and self.positions == "all"


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """Everything about a teacher that gives its rows their meaning, for the manifest; compared again on resume."""

    backend: str
    model: str
    details: dict[str, Any] = field(default_factory=dict)
