"""The values that travel from a plan to a shard: Prompt -> Generation -> Record | Rejection.

All are immutable, and every stage makes a new value of what it was given:

    PlannedRow -> Prompt -> Generation -> Record        accepted
                     ^           |     \-> Rejection     turned down (at any stage, `Prompt` and all after it)
                     \-- Attempt-/                      asked again: the next Prompt holds the failed one in `history`

One PlannedRow ends as exactly one Record or Rejection, in its own `shard` and `position`, however often it was asked.
Token ids are the truth of a Generation: `text`, `reasoning` and `answer_text` were decoded from them and are never
encoded again. How the arrays of a Generation line up with its ids is drawn in `factory.signals`.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from factory.hashing import derive_seed
from factory.messages import Message, ToolCall
from factory.signals import Array, Attention, Candidates, Experts, HiddenStates, Logprobs
from factory.usage import Usage

Form = Literal["json", "text", "calls"]  # what an answer is: a JSON object, text as it stands, or text and tool calls
Stage = Literal["prompt", "teacher", "parse", "schema", "check", "signals", "judge", "filter", "samples"]


@dataclass(frozen=True, slots=True)
class Repetition:
    """An answer whose last tokens are one pattern `min_count` times is stopped: vLLM's `RepetitionDetectionParams`."""

    max_pattern_size: int = 24
    min_pattern_size: int = 1
    min_count: int = 16


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the teacher samples one answer; the names and meanings are vLLM's `SamplingParams` (`top_k` 0: all ids).

    `thinking_tokens` is ours: after so many tokens of reasoning its end is forced; None where it is not. So is
    `stop_repetition`, vLLM's `repetition_detection`: None where loops go on until `max_tokens`.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 1024
    thinking_tokens: int | None = None
    stop_repetition: Repetition | None = None


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row to make: answer `sample` (from 0) to prompt `number` of its task.

    `seed` draws scenario and phrasing, so all samples of a prompt share it. `position` is the row's place in its shard.
    """

    shard: int
    position: int
    task: str
    level: str
    number: int
    seed: int
    sample: int = 0
    # Who answers, where a job has several teachers.
    teacher: str = ""


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

    # The first way; empty in the other two.
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    mask: tuple[int, ...] = ()  # as many 0 and 1: which of them are scored; empty where all are
    candidate_ids: tuple[int, ...] = ()  # ids to be given log-probabilities too, one completion id after another
    candidate_counts: tuple[int, ...] = ()  # how many of them each completion id has; empty where none are named
    # The second: both, without a chat template.
    prompt: str | None = None
    completion: str | None = None
    # The third: what comes before it is the prompt's `messages`.
    turn: Message | None = None
    scored: tuple[int, ...] = ()  # places in these of assistant turns that are scored too
    tools: str | None = None  # what the template is shown, as JSON


@dataclass(frozen=True, slots=True)
class Prompt:
    """One planned row, rendered. Its `id` stays the same through all attempts; `seed` and messages do not."""

    # A hash of the content: equal rows have equal ids on every machine, and the row keeps it in the files.
    id: str
    shard: int
    position: int
    task: str
    level: str
    messages: tuple[Message, ...]
    # JSON of what the messages were made from.
    scenario: str
    # Of this attempt's sampling.
    seed: int
    sampling: Sampling
    # 0, then one more for each time it is asked again: as many as `history` holds, oldest first.
    attempt: int = 0
    history: tuple[Attempt, ...] = ()
    # Which sample of its prompt, and the id of the first of them, which they all share.
    sample: int = 0
    group: str = ""
    # The last two messages are an answer that was not accepted and what was wrong with it.
    repaired: bool = False
    # Nothing is asked where there is one: it is scored.
    transcript: Transcript | None = None
    # What the row of the user's data is called that it was made from; None where none was.
    source_row: str | None = None
    # Who is asked, where a job has several teachers.
    teacher: str = ""
    # What the student is shown in place of `messages`, where that is something else.
    student_messages: tuple[Message, ...] = ()
    # Whether signals are kept of it. Not of a judge's prompt: its answer becomes no row.
    keeps: bool = True
    # What an answer to it has to be.
    form: Form = "json"
    # JSON of the tools that an answer may call, as chat templates take them; empty where there are none.
    tools: str = ""
    # PNG of each picture, in the order of the parts of type "image" in the messages.
    images: tuple[bytes, ...] = ()

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation that asks for the answer, the user's request last; without the system turn."""
        # behind it a repaired prompt has two turns more
        asked = self.messages[:-2] if self.repaired else self.messages
        return tuple(message for message in asked if message["role"] != "system")

    def value(self, answer: str) -> object:
        """An answer as what it says: its JSON value, or the text itself; a transcript's may be either."""
        if self.form == "text":
            return answer
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            return answer

    def again(self, attempt: Attempt) -> "Prompt":
        """The same prompt with the next seed; the failed attempt is kept in its history."""
        number = self.attempt + 1
        return replace(self, attempt=number, seed=derive_seed(self.id, number), history=(*self.history, attempt))

    def repair(self, answer: Message, feedback: str) -> "Prompt":
        """The request itself, then the turn that was not accepted, then what is wrong with it."""
        # a second repair takes the place of the first, or every attempt would make the prompt longer
        asked = self.messages[:-2] if self.repaired else self.messages
        turns = (answer, {"role": "user", "content": feedback})
        return replace(self, messages=(*asked, *turns), repaired=True)


@dataclass(frozen=True, slots=True)
class Generation:
    """What the teacher did with one attempt at one prompt. Not trusted yet: the gate checks arrays against ids."""

    prompt_id: str
    attempt: int
    # The decoded completion as it stands, markers and stop tokens included.
    text: str
    # Cut out of it; None where the teacher does not reason.
    reasoning: str | None
    answer_text: str
    # int32 [P] and [T]: exactly what the teacher was given and what it sampled.
    prompt_token_ids: Array
    completion_token_ids: Array
    # Index into the completion's ids where the answer begins; T when no answer was begun.
    answer_start: int
    # "stop", "length" or "repetition"; "error" where there is a `failure`. A loop that was stopped has no arrays.
    finish_reason: str
    # T entries; None where the job keeps none, as all below.
    logprobs: Logprobs | None = None
    # P - 1 entries, where the job keeps the prompt's too: entry i is of prompt token i + 1.
    prompt_logprobs: Logprobs | None = None
    hidden_states: HiddenStates | None = None
    experts: Experts | None = None
    # None also for a row that is not among those drawn.
    attention: Attention | None = None
    # int32: the student's prompt, by the same tokenizer; None where it is the teacher's. The completion follows both.
    student_prompt_token_ids: Array | None = None
    # Of an answer with tools, which its teacher's own format was read for: what is said beside the calls, and these.
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    completion_mask: Array | None = None  # uint8, T: 1 where a token is scored, 0 between two scored turns
    candidates: Candidates | None = None  # of ids that a transcript names; None where the data names none
    # A code for why there is no usable completion; None where there is one.
    failure: str | None = None
    failure_detail: str = ""
    # What an endpoint has counted; None of our own engines, whose ids say it.
    usage: Usage | None = None
    # Why an endpoint's answer has no ids, and so no signals; empty where it has.
    without_ids: str = ""

    @classmethod
    def failed(
        cls, prompt_id: str, attempt: int, failure: str, detail: str, prompt_ids: Array | None = None
    ) -> "Generation":
        """A generation that never came to be."""
        none = np.zeros(0, np.int32)
        given = none if prompt_ids is None else prompt_ids
        return cls(prompt_id, attempt, "", None, "", given, none, 0, "error", failure=failure, failure_detail=detail)


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
    prompt's well-formed answers, after retries, that equal this one; of free texts, how much of their words they share
    with it in the mean.
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
    """An accepted row. `answer` is the text that validated (JSON, but for a free text).

    `score` is 1 where the check found nothing, else 0. `verdict` is None where nobody judged; `samples` and `measures`
    are filled in when the whole shard is known.
    """

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
    # None where nothing came of it: the prompt could not be made, or nobody was asked.
    generation: Generation | None
    stage: Stage
    reason: str
    findings: tuple[str, ...] = ()
    kind: Literal["rejected", "error"] = "rejected"
    # None where the text was no well-formed answer.
    answer: str | None = None
    verdict: Verdict | None = None
    samples: SampleStats = SampleStats()
    passed: bool | None = None
    # Filled in when the whole shard is known, as a record's; `difficulty` is None: nobody trains on the row.
    measures: Measures = Measures()

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
        light = replace(
            self.generation, prompt_logprobs=None, candidates=None, hidden_states=None, experts=None, attention=None
        )
        return replace(self, generation=light)


Outcome = Record | Rejection
Pair = tuple[Record, Outcome]  # a right and a wrong answer to one prompt


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """Everything about a teacher that gives its rows their meaning, for the manifest; compared again on resume."""

    backend: str
    model: str
    details: dict[str, Any] = field(default_factory=dict)
