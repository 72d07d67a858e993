"""Stand-ins: outcomes as a teacher might give them, made without one, so that real files can be written and weighed.

Prompts are the job's own. A completion is the task's reference solution, or, where a scenario has none, words of the
prompt at the length that is known. What a pilot measured of a task's level (length, share accepted) is put on top.
"""

import math
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from factory.hashing import derive_seed
from factory.messages import text_of
from factory.records import Generation, Outcome, PlannedRow, Prompt, Record, Rejection, Transcript
from factory.runs.desk import Desk, gates_for
from factory.runs.prepare import Prepared
from factory.signals import Array, Attention, Candidates, Experts, HiddenStates, Logprobs, SignalSpec
from factory.tasks.calls import call_solve, invent_answer, read_scenario
from factory.tasks.faults import TaskFault
from factory.tasks.tasks import Task
from factory.teachers.chosen import choose_ids, keep_chosen
from factory.teachers.models import ModelShape
from factory.teachers.picture_tokens import PictureTokens
from factory.teachers.scripted import ScriptedTeacher
from factory.teachers.tokens import Counter
from factory.texts.calls import read_calls, spell_answer

Cell = tuple[str, str]  # task, level
ANY_LEVEL = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a pilot found of one task's level: the share accepted, completion tokens and attempts of a row."""

    rows: int
    accepted: float
    tokens: float
    attempts: float


@dataclass(slots=True)
class StandIns:
    """Makes outcomes of planned rows; hidden states have one number a layer, the rest of them is arithmetic."""

    prepared: Prepared
    shape: ModelShape
    signals: SignalSpec
    counter: Counter | None  # none with the scripted teacher, which answers itself
    measured: Mapping[Cell, Measured] = field(default_factory=dict)
    seen: Tally[Cell] = field(default_factory=Tally)
    unsolved: dict[str, str] = field(default_factory=dict)  # why `solve` failed first, by task
    pictures: PictureTokens = field(init=False)

    def __post_init__(self) -> None:
        self.pictures = PictureTokens(self.prepared.job.teacher)

    def outcomes(self, rows: Iterable[PlannedRow]) -> Iterator[Outcome]:
        """One outcome a row, the scripted teacher's own where that is the job's."""
        desk = self._open_desk() if self.counter is None else None
        for row in rows:
            prompt = self.prepared.render(row)
            if isinstance(prompt, Rejection):
                yield prompt
            else:
                yield self._stand_in(prompt, self.counter) if desk is None else desk.answer(prompt)

    def _open_desk(self) -> Desk:
        """The scripted teacher behind the desk of a real run: it answers for nothing, as its own judge too."""
        teacher = ScriptedTeacher(self.prepared.job, self.prepared.tasks)
        gates = gates_for(teacher, self.prepared.gates)
        return Desk(replace(self.prepared, gates=gates), teacher, teacher)

    def _stand_in(self, prompt: Prompt, counter: Counter | None) -> Outcome:
        assert counter is not None
        rng = np.random.default_rng(derive_seed(prompt.seed, prompt.sample))
        if prompt.transcript is not None:
            return Record(prompt, self._score(prompt, prompt.transcript, counter, rng), "", 1.0)
        reasoning, answer = self._texts(prompt, counter, rng)
        written = spell_answer(prompt.form, answer)
        prompt_ids = self.pictures.prompt_ids(counter, prompt)
        ids = prompt_ids, counter.completion_ids(reasoning, written)
        generation = self._generation(prompt, *ids, (reasoning, written), rng)
        if not self._is_accepted((prompt.task, prompt.level)):
            return Rejection(
                prompt, generation, "check", "not_accepted", ("not_accepted: as in the pilot",), answer=answer
            )
        return Record(prompt, generation, answer, 1.0)

    def _score(self, prompt: Prompt, known: Transcript, counter: Counter, rng: np.random.Generator) -> Generation:
        turn = known.turn or {"content": known.completion or ""}
        reasoning, answer = turn.get("reasoning_content") or "", turn["content"]
        # of several scored turns the completion begins with the first, and holds all that stands between
        first = known.scored[0] if known.scored else len(prompt.messages)
        answer = "\n".join([*(message["content"] for message in prompt.messages[first:]), answer])
        ids = list(known.prompt_ids) or counter.prompt_ids(prompt.messages[:first])
        completion = (
            ([], list(known.completion_ids)) if known.completion_ids else counter.completion_ids(reasoning, answer)
        )
        made = self._generation(prompt, ids, completion, (reasoning, answer), rng)
        return replace(made, candidates=draw_candidates(rng, known)) if self.signals.candidates else made

    def _known(self, task: str, level: str) -> Measured | None:
        """What a pilot measured of a level, or of its task where it had no row of the level."""
        return self.measured.get((task, level)) or self.measured.get((task, ANY_LEVEL))

    def _is_accepted(self, cell: Cell) -> bool:
        """Spread evenly over a cell's rows, so that the share holds for any number of them."""
        known = self._known(*cell)
        number, share = self.seen[cell], known.accepted if known else 1.0
        self.seen[cell] += 1
        # 1e-9, since 100 * 0.29 is a little less than 29 as floats
        return math.floor((number + 1) * share + 1e-9) > math.floor(number * share + 1e-9)

    def _texts(self, prompt: Prompt, counter: Counter, rng: np.random.Generator) -> tuple[str, str]:
        """Reasoning and answer, the reasoning cut or drawn out to the length that is known."""
        task = self.prepared.tasks[prompt.task]
        known = self._known(prompt.task, prompt.level)
        solved = self._solve(task, prompt)
        reasoning, answer = solved or (text_of(prompt.messages[-1]["content"]), invent_answer(task, prompt.seed))
        if known is None and solved:
            return (reasoning if not prompt.sample else _shuffle(reasoning, 1.0, rng)), answer
        target = known.tokens if known else prompt.sampling.max_tokens
        think, rest = counter.completion_ids(reasoning, spell_answer(prompt.form, answer))
        return _shuffle(reasoning, max(0.0, (target - len(rest)) / max(len(think), 1)), rng), answer

    def _solve(self, task: Task, prompt: Prompt) -> tuple[str, str] | None:
        """The reference solution, where there is one: some scenarios of a user's data have none."""
        if task.solve is None:
            return None
        try:
            return call_solve(task, read_scenario(task, prompt.scenario))
        except TaskFault as fault:
            self.unsolved.setdefault(task.name, str(fault))
            return None

    def _generation(
        self,
        prompt: Prompt,
        prompt_ids: list[int],
        completion: tuple[list[int], list[int]],
        texts: tuple[str, str],
        rng: np.random.Generator,
    ) -> Generation:
        (think, rest), (reasoning, answer) = completion, texts
        most = prompt.sampling.max_tokens
        ids_T = np.array([*think, *rest][:most], np.int32)
        inputs = len(prompt_ids) + len(ids_T) - 1
        # one number a layer in place of thousands: their bytes are known without writing them
        bits_NLH = np.zeros((inputs, len(self.signals.layers), 1), np.uint16)
        vocab, of_prompt = self.shape.vocab_size, np.array(prompt_ids[1:], np.int32)
        made = Generation(
            prompt_id=prompt.id,
            attempt=prompt.attempt,
            text=f"{reasoning}</think>{answer}<|im_end|>",
            reasoning=reasoning,
            answer_text=answer,
            prompt_token_ids=np.array(prompt_ids, np.int32),
            completion_token_ids=ids_T,
            answer_start=min(len(think), most),
            finish_reason="stop",
            calls=read_calls(answer)[1] if prompt.form == "calls" else (),
            logprobs=draw_logprobs(rng, ids_T, self.signals, vocab) if self.signals.top_k else None,
            prompt_logprobs=draw_logprobs(rng, of_prompt, self.signals, vocab) if self.signals.of_prompt else None,
            hidden_states=HiddenStates(self.signals.layers, bits_NLH) if self.signals.layers else None,
            experts=draw_experts(rng, inputs, self.shape) if self.signals.experts else None,
            completion_mask=np.ones(len(ids_T), np.uint8) if self.signals.masked else None,
            attention=draw_attention(rng, inputs, self.shape, self.signals)
            if self.signals.keeps_attention(prompt.id, inputs)
            else None,
        )
        return keep_chosen(made, self.signals)


def draw_experts(rng: np.random.Generator, inputs: int, shape: ModelShape) -> Experts:
    """Routes as if every block had experts, drawn evenly: a real router compresses a little better."""
    size = (inputs, shape.layers, shape.experts_per_token)
    ids_NLE = rng.integers(0, max(shape.experts, 1), size, np.int16)
    return Experts(tuple(range(1, shape.layers + 1)), ids_NLE, rng.random(size, np.float32).astype(np.float16))


def draw_attention(rng: np.random.Generator, inputs: int, shape: ModelShape, signals: SignalSpec) -> Attention:
    """Maps whose lower half is noise: real ones compress a little better."""
    maps_LHNN = np.tril(rng.random((len(signals.attention), shape.heads, inputs, inputs), np.float32))
    return Attention(signals.attention, maps_LHNN.astype(np.float16))


def draw_candidates(rng: np.random.Generator, known: Transcript) -> Candidates:
    """Logprobs of the ids that a transcript names: numbers of the size that they have, which hardly compress."""
    logprobs_M = -rng.exponential(8.0, len(known.candidate_ids))
    counts_T, ids_M = np.array(known.candidate_counts, np.int32), np.array(known.candidate_ids, np.int32)
    return Candidates(counts_T, ids_M, logprobs_M.astype(np.float16))


def draw_logprobs(rng: np.random.Generator, ids_T: Array, signals: SignalSpec, vocab: int) -> Logprobs:
    """Logprobs that compress about as a trained teacher's do.

    Measured with the columns' real encoding on 16 accepted rows of the demo teacher (2,623 tokens, mean entropy 0.02
    nats, vocabulary 4,096, k=20): 66 bytes a token, of which each of the k takes 1.61 (id) and 1.15 (logprob), and the
    sampled one, the tail and the entropy 3.66, 3.29 and 3.93. What is drawn here takes 71 bytes. Ids come from the
    whole vocabulary, as nearly all of the k do there; a teacher that is less sure needs up to 1.6 bytes a logprob.
    """
    tokens, k = len(ids_T), signals.top_k
    first_T = -np.exp(rng.normal(-7.0, 3.0, tokens)).astype(np.float32)
    gaps_TK = np.cumsum(rng.exponential(0.25, (tokens, k)), axis=1) + np.abs(rng.normal(8.0, 3.0, (tokens, 1)))
    topk_TK = np.concatenate([first_T[:, None], -gaps_TK[:, : k - 1]], axis=1)
    topk_ids_TK = rng.integers(0, vocab, (tokens, k), np.int32)
    topk_ids_TK[:, 0] = ids_T
    tail_T = (topk_TK[:, -1] + rng.normal(1.0, 0.5, tokens)).astype(np.float32)
    entropy_T = np.exp(rng.normal(-6.0, 2.5, tokens)).astype(np.float32)
    probs_TK = np.exp(topk_TK)
    entries_TK, draws_TK = choose_ids(probs_TK / probs_TK.sum(1, keepdims=True), signals, rng)
    topk_ids_TK = np.where(entries_TK < 0, -1, np.take_along_axis(topk_ids_TK, entries_TK, 1))
    topk_TK = np.where(entries_TK < 0, -np.inf, np.take_along_axis(topk_TK, entries_TK, 1)).astype(np.float16)
    return Logprobs(first_T, topk_ids_TK, topk_TK, tail_T, entropy_T, draws_TK)


def _shuffle(text: str, factor: float, rng: np.random.Generator) -> str:
    """The words of a text in another order, as many of them as the factor says."""
    words = text.split(" ")
    wanted = round(len(words) * factor)
    drawn: list[Any] = []
    while len(drawn) < wanted:
        drawn += [words[i] for i in rng.permutation(len(words))]
    return " ".join(drawn[:wanted])
