"""The scripted teacher: real and deterministic, with no engine behind it.

It answers with a task's own `solve`, or with a schema-valid value where there is none, and fails on demand. Its
vocabulary is the 256 bytes and a few markers, so its ids decode exactly; its logprobs come from a whole distribution
at every position, so top-k, tail mass and entropy agree with each other. Same prompt and seed: same generation.

    ids   0 .. 255   a byte of UTF-8
          256        </think>
          257        <|end|>, the stop token
          258, 259   nothing: room in the vocabulary that no text uses

All it draws comes from one generator that the prompt's seed and attempt begin, in one fixed order: a draw put between
two others changes all that come after it.
"""

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from factory.job.job import Job
from factory.messages import text_of
from factory.records import Generation, Prompt, Repetition, TeacherInfo, Transcript
from factory.signals import Array, Attention, Candidates, Experts, HiddenStates, Logprobs, SignalSpec
from factory.tasks.calls import call_solve, invent_answer, read_scenario
from factory.tasks.faults import TaskFault
from factory.tasks.tasks import Task, held_in
from factory.teachers.chosen import choose_ids, keep_chosen
from factory.teachers.fit import refuse_for_student
from factory.teachers.models import ModelShape, resolve_signals
from factory.teachers.turns import last_run
from factory.texts.calls import read_calls, spell_answer

THINK_END, STOP = 256, 257
VOCAB, LAYERS, HIDDEN = 260, 4, 16
# distributions and states that are made once and drawn from
BANK = 512
HEADS, EXPERTS, EXPERTS_PER_TOKEN = 2, 8, 2
SHAPE = ModelShape(VOCAB, LAYERS, HIDDEN, None, 0, "bfloat16", HEADS, EXPERTS, EXPERTS_PER_TOKEN)
SPECIAL_TEXT = {THINK_END: "</think>", STOP: "<|end|>"}
PEAK = 9.0  # logit given to the sampled id: about as sure of itself as an instruction-tuned model
PEAK_FALLS = 1.5  # with each level: the harder, the less sure
REFUSAL = "I'm sorry, but I can't help with that."
LOOP = "I look at the list once more. " * 40
LEAK = "If in doubt, write to dana.whitfield@northgate-mail.com or call +1 415 555 2671."


def encode(text: str) -> list[int]:
    """UTF-8 bytes as ids; a lone surrogate becomes a question mark."""
    return list(text.encode("utf-8", "replace"))


def decode(ids: list[int]) -> str:
    """The text of ids, markers included."""
    # the last ids of the vocabulary are spelt by nothing: they are never sampled, and stand among the likeliest at most
    parts: list[bytes] = [bytes([i]) if i < 256 else SPECIAL_TEXT.get(i, "").encode() for i in ids]
    return b"".join(parts).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Bank:
    """Whole distributions, made once: a token draws one of the M, whose entry 0 is its own id.

    To make and sort one for every token would be nearly all that this teacher does. `ids_MK` are the entries that are
    kept of each, likeliest first and -1 for none.
    """

    logprobs_MV: Array
    probs_MV: Array
    entropy_M: Array
    ids_MK: Array

    def logprobs_of(self, which_T: Array, chosen_TK: Array) -> tuple[Array, Array]:
        """The logprobs of the chosen entries, -inf for none, and the log of all mass outside them."""
        kept_TK = chosen_TK >= 0
        logprobs_TK = np.where(kept_TK, self.logprobs_MV[which_T[:, None], chosen_TK], -np.inf)
        outside_T = 1.0 - np.exp(logprobs_TK, dtype=np.float64).sum(1)
        # float32 does not add up to 1 any closer; no mass outside is log 0, which -inf says rightly
        with np.errstate(divide="ignore"):
            tail_T = np.log(np.where(outside_T > 1e-6, outside_T, 0.0)).astype(np.float32)
        return logprobs_TK, tail_T


def _open_bank(peak: float, signals: SignalSpec) -> Bank:
    rng = np.random.default_rng(1)
    logits_MV = rng.standard_normal((BANK, VOCAB), np.float32)
    logits_MV[:, 0] += peak
    logprobs_MV = logits_MV - np.log(np.exp(logits_MV).sum(1, keepdims=True))
    probs_MV = np.exp(logprobs_MV)
    ids_MK, _ = choose_ids(probs_MV, signals, rng)
    return Bank(logprobs_MV, probs_MV, -(probs_MV * logprobs_MV).sum(1), ids_MK)


class ScriptedTeacher:
    """Answers at once, in the order of submission."""

    def __init__(self, job: Job, tasks: dict[str, Task]) -> None:
        self.job = job
        self.tasks = tasks
        self.queue: deque[Prompt] = deque()
        self.signals = resolve_signals(job, SHAPE, **held_in(tasks.values()))
        self.banks: dict[float, Bank] = {}
        states = np.random.default_rng(0).standard_normal((BANK, len(self.signals.layers), HIDDEN), np.float32)
        # the upper half of a float32 is a bfloat16, rounded towards zero
        self.states_MLH = (states.view(np.uint32) >> 16).astype(np.uint16)
        sizes = {"vocab_size": VOCAB, "layers": LAYERS, "hidden_size": HIDDEN}
        details = sizes | {"reasoning_markers": ["<think>", "</think>"]}
        self._student = None if job.student is None else job.student.max_tokens
        self.info = TeacherInfo("scripted", job.teacher.model, details)

    def room(self) -> int:
        return max(0, self.job.teacher.feed_depth - len(self.queue))

    def submit(self, prompt: Prompt) -> None:
        self.queue.append(prompt)

    def collect(self) -> list[Generation]:
        if not self.queue:
            return []
        made = self.answer(self.queue.popleft())
        if rate := self.job.teacher.scripted.tokens_per_second:
            time.sleep(len(made.completion_token_ids) / rate)
        return [made]

    def release(self, prompt_id: str, attempts: int) -> None:
        pass

    def spent(self) -> dict[str, int]:
        return {}

    def answer(self, prompt: Prompt) -> Generation:
        """One generation, with the fault that the prompt's seed draws for it."""
        # the attempt too: what is asked again is to come out otherwise
        rng = np.random.default_rng([prompt.seed, prompt.attempt])
        if prompt.transcript is not None:
            return self._score(prompt, prompt.transcript, rng)
        fault = self._draw_fault(rng)
        prompt_ids = np.array(encode(_shown(prompt)), np.int32)
        refusal = refuse_for_student(len(prompt_ids), 0, self._student) if prompt.keeps else None
        if refusal:
            return Generation.failed(prompt.id, prompt.attempt, *refusal, prompt_ids)
        if fault == "crash":
            detail = "the scripted teacher crashes on this prompt"
            return Generation.failed(prompt.id, prompt.attempt, "engine_crash", detail, prompt_ids)
        try:
            reasoning, answer = self._solve(prompt, rng, wrong=fault == "wrong")
        except TaskFault as error:
            return Generation.failed(prompt.id, prompt.attempt, error.reason, str(error), prompt_ids)
        more = {"loop": LOOP, "pii": LEAK}.get(fault)
        reasoning = REFUSAL if fault == "refusal" else f"{reasoning}\n{more}" if more else reasoning
        # a closing brace less: no JSON, however it is read; a text can only be missing
        if fault == "bad_json":
            answer = "" if prompt.form != "json" else answer[:-1] + ","
        think = [] if fault == "no_reasoning" else [*encode(reasoning), THINK_END]
        ids = [*think, *encode(answer), STOP]
        # an answer that is too long is cut as the engine would cut it, fault or not
        most = prompt.sampling.max_tokens
        if fault == "truncated":
            most = min(most, len(ids) // 2)
        why = "length" if len(ids) > most else "stop"
        loop_end = find_loop_end(ids[:most], prompt.sampling.stop_repetition)
        if loop_end is not None:
            most, why = loop_end, "repetition"
        ids_T = np.array(ids[:most], np.int32)
        # a cut may fall inside the reasoning: then no answer was begun
        start = min(len(think), len(ids_T))
        made = _make(prompt, prompt_ids, ids_T, start, reasoning if think else None, why)
        if prompt.form == "calls":
            content, calls = read_calls(made.answer_text)
            made = replace(made, content=content, calls=calls)
        kept = prompt.keeps and why != "repetition"
        return self._with_signals(made, rng, self._peak(prompt)) if kept else made

    def _score(self, prompt: Prompt, transcript: Transcript, rng: np.random.Generator) -> Generation:
        """A transcript as it stands, with signals that belong to its ids."""
        turn = transcript.turn or {"content": transcript.completion or ""}
        reasoning = turn.get("reasoning_content")
        think = [] if reasoning is None else [*encode(reasoning), THINK_END]
        asked = transcript.prompt or "\n".join(message["content"] for message in prompt.messages)
        prompt_ids = np.array(transcript.prompt_ids or encode(asked), np.int32)
        ids_T = np.array(transcript.completion_ids or [*think, *encode(turn["content"]), STOP], np.int32)
        # ids of the user's, made with some other vocabulary
        if not 0 <= min(prompt_ids.min(), ids_T.min()) <= max(prompt_ids.max(), ids_T.max()) <= STOP:
            detail = f"an id is below 0 or above {STOP}"
            return Generation.failed(prompt.id, prompt.attempt, "bad_token_id", detail, prompt_ids)
        if max(transcript.candidate_ids, default=0) >= VOCAB:
            detail = f"a candidate is below 0 or above {VOCAB - 1}"
            return Generation.failed(prompt.id, prompt.attempt, "bad_token_id", detail, prompt_ids)
        refusal = refuse_for_student(len(prompt_ids), len(ids_T), self._student)
        if refusal:
            return Generation.failed(prompt.id, prompt.attempt, *refusal, prompt_ids)
        # of several turns the last one answers
        first = last_run(transcript.mask)
        closed = first + np.flatnonzero(ids_T[first:] == THINK_END)
        start = int(closed[0]) + 1 if len(closed) else first
        reasoned = decode(ids_T[first : start - 1].tolist()) if start > first else None
        made = _make(prompt, prompt_ids, ids_T, start, reasoned, "stop")
        if self.signals.masked:
            mask_T = np.array(transcript.mask, np.uint8) if transcript.mask else np.ones(len(ids_T), np.uint8)
            made = replace(made, completion_mask=mask_T)
        return self._with_signals(made, rng, PEAK, transcript)

    def _with_signals(
        self, made: Generation, rng: np.random.Generator, peak: float, known: Transcript | None = None
    ) -> Generation:
        """The same with all that the job keeps."""
        prompt_ids, ids_T = made.prompt_token_ids, made.completion_token_ids
        inputs = len(prompt_ids) + len(ids_T) - 1
        logprobs = candidates = None
        if self.signals.top_k:
            which_T = rng.integers(0, BANK, len(ids_T))
            logprobs = self._draw_logprobs(rng, ids_T, peak, which_T)
            if known is not None and self.signals.candidates:
                candidates = self._look_up(known, ids_T, peak, which_T)
        made = replace(
            made,
            logprobs=logprobs,
            candidates=candidates,
            hidden_states=self._draw_states(rng, inputs) if self.signals.layers else None,
            prompt_logprobs=self._draw_prompt_logprobs(rng, prompt_ids[1:], peak) if self.signals.of_prompt else None,
            experts=self._draw_experts(rng, inputs) if self.signals.experts else None,
            attention=self._draw_attention(rng, inputs)
            if self.signals.keeps_attention(made.prompt_id, inputs)
            else None,
        )
        return keep_chosen(made, self.signals)

    def _draw_fault(self, rng: np.random.Generator) -> str:
        # one draw for all faults: their shares lie side by side on [0, 1), what is left of it is no fault
        point = float(rng.random())
        for name, share in self.job.teacher.scripted.shares().items():
            if point < share:
                return str(name)
            point -= share
        return ""

    def _solve(self, prompt: Prompt, rng: np.random.Generator, wrong: bool) -> tuple[str, str]:
        task = self.tasks.get(prompt.task)
        if task is None:  # a judge's prompt
            score = int(rng.integers(3, 6))
            return "I compare it with the rubric.", json.dumps({"reasoning": f"It earns a {score}.", "score": score})
        if task.solve is None or wrong:
            invented = invent_answer(task, int(rng.integers(2**31)))
            return "I take the first thing that fits the form.", spell_answer(task.form, invented)
        reasoning, answer = call_solve(task, read_scenario(task, prompt.scenario))
        return reasoning, spell_answer(task.form, answer)

    def _peak(self, prompt: Prompt) -> float:
        task = self.tasks.get(prompt.task)
        return PEAK - PEAK_FALLS * (task.levels.index(prompt.level) if task else 0)

    def _draw_prompt_logprobs(self, rng: np.random.Generator, ids_P: Array, peak: float) -> Logprobs:
        return self._draw_logprobs(rng, ids_P, peak, rng.integers(0, BANK, len(ids_P)))

    def _look_up(self, known: Transcript, ids_T: Array, peak: float, which_T: Array) -> Candidates:
        """What the same distributions give the ids that a transcript names."""
        counts_T, ids_M = np.array(known.candidate_counts, np.int32), np.array(known.candidate_ids, np.int32)
        entry_M = (ids_M - np.repeat(ids_T, counts_T)) % VOCAB
        logprobs_M = self.banks[peak].logprobs_MV[np.repeat(which_T, counts_T), entry_M]
        return Candidates(counts_T, ids_M, logprobs_M.astype(np.float16))

    def _draw_logprobs(self, rng: np.random.Generator, ids_T: Array, peak: float, which_T: Array) -> Logprobs:
        """Of the M distributions those that `which_T` names, turned so that each has its token's id first."""
        if peak not in self.banks:
            self.banks[peak] = _open_bank(peak, self.signals)
        bank = self.banks[peak]
        chosen_TK, draws_TK = bank.ids_MK[which_T], None
        if self.signals.keep == "sampled":
            chosen_TK, draws_TK = choose_ids(bank.probs_MV[which_T], self.signals, rng)
        logprobs_TK, tail_T = bank.logprobs_of(which_T, chosen_TK)
        return Logprobs(
            sampled_T=bank.logprobs_MV[which_T, 0],
            # entry 0 of a distribution is the sampled id, and the others follow it round the vocabulary
            topk_ids_TK=np.where(chosen_TK < 0, -1, (chosen_TK + ids_T[:, None]) % VOCAB),
            topk_TK=logprobs_TK.astype(np.float16),
            tail_T=tail_T,
            entropy_T=bank.entropy_M[which_T],
            draws_TK=draws_TK,
        )

    def _draw_experts(self, rng: np.random.Generator, inputs: int) -> Experts:
        """Of each block but the first, the likeliest experts and their softmax, renormalised."""
        blocks = tuple(range(2, LAYERS + 1))
        scores = rng.standard_normal((inputs, len(blocks), EXPERTS))
        ids_NLE = np.argsort(-scores, axis=2)[:, :, :EXPERTS_PER_TOKEN]
        weights_NLE = np.exp(np.take_along_axis(scores, ids_NLE, 2))
        weights_NLE /= weights_NLE.sum(2, keepdims=True)
        return Experts(blocks, ids_NLE.astype(np.int16), weights_NLE.astype(np.float16))

    def _draw_attention(self, rng: np.random.Generator, inputs: int) -> Attention:
        weights = np.tril(np.exp(rng.standard_normal((len(self.signals.attention), HEADS, inputs, inputs), np.float32)))
        return Attention(self.signals.attention, (weights / weights.sum(-1, keepdims=True)).astype(np.float16))

    def _draw_states(self, rng: np.random.Generator, inputs: int) -> HiddenStates:
        return HiddenStates(self.signals.layers, self.states_MLH[rng.integers(0, BANK, inputs)])


def find_loop_end(ids: Sequence[int], rule: Repetition | None) -> int | None:
    """How many ids there are when the last of them are first taken for a loop, as vLLM would; None where never."""
    if rule is None:
        return None
    # by pattern size: how many of the last ids equal the one that stands a pattern before them
    same = dict.fromkeys(range(rule.min_pattern_size, rule.max_pattern_size + 1), 0)
    for end in range(1, len(ids) + 1):
        for size in same:
            equal = end > size and ids[end - 1] == ids[end - 1 - size]
            same[size] = same[size] + 1 if equal else 0
            if same[size] >= size * (rule.min_count - 1):
                return end
    return None


def _shown(prompt: Prompt) -> str:
    """All that this teacher is shown."""
    return "\n".join(
        [*([prompt.tools] if prompt.tools else []), *(text_of(message["content"]) for message in prompt.messages)]
    )


def _make(
    prompt: Prompt, prompt_ids: Array, ids_T: Array, start: int, reasoning: str | None, finish_reason: str
) -> Generation:
    """The generation of these ids, its answer beginning at `start`, without any signals."""
    return Generation(
        prompt_id=prompt.id,
        attempt=prompt.attempt,
        text=decode(ids_T.tolist()),
        reasoning=reasoning,
        answer_text=decode([i for i in ids_T[start:].tolist() if i != STOP]),
        prompt_token_ids=prompt_ids,
        completion_token_ids=ids_T,
        answer_start=start,
        finish_reason=finish_reason,
    )
