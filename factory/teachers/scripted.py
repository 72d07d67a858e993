"""The scripted teacher: real and deterministic, with no engine behind it.

It answers with a task's own `solve`, or with a schema-valid value where there is none, and fails on demand. Its
vocabulary is the 256 bytes and a few markers, so its ids decode exactly; its logprobs come from a whole distribution
at every position, so top-k, tail mass and entropy agree with each other. Same prompt and seed: same generation.
"""

import json
from collections import deque
from dataclasses import replace

import numpy as np

from factory.job.job import Job
from factory.records import (
    Array,
    Attention,
    Experts,
    Generation,
    HiddenStates,
    Logprobs,
    Prompt,
    TeacherInfo,
    Transcript,
)
from factory.tasks.calls import call_solve, invent_answer, read_scenario
from factory.tasks.faults import TaskFault
from factory.tasks.tasks import Task
from factory.teachers.chosen import choose_ids, keep_chosen
from factory.teachers.fit import refuse_for_student
from factory.teachers.models import ModelShape, resolve_signals

THINK_END, STOP = 256, 257
VOCAB, LAYERS, HIDDEN = 260, 4, 16
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
    parts: list[bytes] = [SPECIAL_TEXT[i].encode() if i in SPECIAL_TEXT else bytes([i]) for i in ids]
    return b"".join(parts).decode("utf-8", "replace")


class ScriptedTeacher:
    """Answers at once, in the order of submission."""

    def __init__(self, job: Job, tasks: dict[str, Task]) -> None:
        self.job = job
        self.tasks = tasks
        self.queue: deque[Prompt] = deque()
        self.signals = resolve_signals(job, SHAPE)
        self._student = None if job.student is None else job.student.max_tokens
        details = {"vocab_size": VOCAB, "layers": LAYERS, "hidden_size": HIDDEN}
        self.info = TeacherInfo("scripted", job.teacher.model, details)

    def room(self) -> int:
        return max(0, self.job.teacher.feed_depth - len(self.queue))

    def submit(self, prompt: Prompt) -> None:
        self.queue.append(prompt)

    def collect(self) -> list[Generation]:
        return [self.answer(self.queue.popleft())] if self.queue else []

    def release(self, prompt_id: str, attempts: int) -> None:
        pass

    def answer(self, prompt: Prompt) -> Generation:
        """One generation, with the fault that the prompt's seed draws for it."""
        rng = np.random.default_rng([prompt.seed, prompt.attempt])
        if prompt.transcript is not None:
            return self._score(prompt, prompt.transcript, rng)
        fault = self._draw_fault(rng)
        prompt_ids = np.array(encode("\n".join(m["content"] for m in prompt.messages)), np.int32)
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
        if fault == "bad_json":
            answer = answer[:-1] + ","
        think = [] if fault == "no_reasoning" else [*encode(reasoning), THINK_END]
        ids = [*think, *encode(answer), STOP]
        most = prompt.sampling.max_tokens
        if fault == "truncated":
            most = min(most, len(ids) // 2)
        cut = len(ids) > most
        ids_T = np.array(ids[:most], np.int32)
        start = min(len(think), len(ids_T))
        made = Generation(
            prompt_id=prompt.id,
            attempt=prompt.attempt,
            text=decode(ids_T.tolist()),
            reasoning=reasoning if think else None,
            answer_text=decode([i for i in ids_T[start:].tolist() if i != STOP]),
            prompt_token_ids=prompt_ids,
            completion_token_ids=ids_T,
            answer_start=start,
            finish_reason="length" if cut else "stop",
        )
        return self._with_signals(made, rng, self._peak(prompt)) if prompt.keeps else made

    def _score(self, prompt: Prompt, transcript: Transcript, rng: np.random.Generator) -> Generation:
        """A transcript as it stands, with signals that belong to its ids."""
        turn = transcript.turn or {"content": transcript.completion or ""}
        reasoning = turn.get("reasoning_content")
        think = [] if reasoning is None else [*encode(reasoning), THINK_END]
        asked = transcript.prompt or "\n".join(message["content"] for message in prompt.messages)
        prompt_ids = np.array(transcript.prompt_ids or encode(asked), np.int32)
        ids_T = np.array(transcript.completion_ids or [*think, *encode(turn["content"]), STOP], np.int32)
        if not 0 <= min(prompt_ids.min(), ids_T.min()) <= max(prompt_ids.max(), ids_T.max()) <= STOP:
            detail = f"an id is below 0 or above {STOP}"
            return Generation.failed(prompt.id, prompt.attempt, "bad_token_id", detail, prompt_ids)
        refusal = refuse_for_student(len(prompt_ids), len(ids_T), self._student)
        if refusal:
            return Generation.failed(prompt.id, prompt.attempt, *refusal, prompt_ids)
        closed = np.flatnonzero(ids_T == THINK_END)
        start = int(closed[0]) + 1 if len(closed) else 0
        made = Generation(
            prompt_id=prompt.id,
            attempt=prompt.attempt,
            text=decode(ids_T.tolist()),
            reasoning=decode(ids_T[: start - 1].tolist()) if start else None,
            answer_text=decode([i for i in ids_T[start:].tolist() if i != STOP]),
            prompt_token_ids=prompt_ids,
            completion_token_ids=ids_T,
            answer_start=start,
            finish_reason="stop",
        )
        return self._with_signals(made, rng, PEAK)

    def _with_signals(self, made: Generation, rng: np.random.Generator, peak: float) -> Generation:
        """The same with all that the job keeps."""
        prompt_ids, ids_T = made.prompt_token_ids, made.completion_token_ids
        inputs = len(prompt_ids) + len(ids_T) - 1
        made = replace(
            made,
            logprobs=self._draw_logprobs(rng, ids_T, peak) if self.signals.top_k else None,
            hidden_states=self._draw_states(rng, inputs) if self.signals.layers else None,
            prompt_logprobs=self._draw_logprobs(rng, prompt_ids[1:], peak) if self.signals.of_prompt else None,
            experts=self._draw_experts(rng, inputs) if self.signals.experts else None,
            attention=self._draw_attention(rng, inputs)
            if self.signals.keeps_attention(made.prompt_id, inputs)
            else None,
        )
        return keep_chosen(made, self.signals)

    def _draw_fault(self, rng: np.random.Generator) -> str:
        point = float(rng.random())
        for name, share in self.job.teacher.scripted.model_dump().items():
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
            return "I take the first thing that fits the form.", invent_answer(task, int(rng.integers(2**31)))
        return call_solve(task, read_scenario(task, prompt.scenario))

    def _peak(self, prompt: Prompt) -> float:
        task = self.tasks.get(prompt.task)
        return PEAK - PEAK_FALLS * (task.levels.index(prompt.level) if task else 0)

    def _draw_logprobs(self, rng: np.random.Generator, ids_T: Array, peak: float) -> Logprobs:
        logits_TV = rng.standard_normal((len(ids_T), VOCAB), np.float32)
        logits_TV[np.arange(len(ids_T)), ids_T] += peak
        logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(1, keepdims=True))
        probs_TV = np.exp(logprobs_TV)
        ids_TK, draws_TK = choose_ids(probs_TV, self.signals, rng)
        kept_TK = ids_TK >= 0
        outside_TV = probs_TV.copy()
        np.put_along_axis(outside_TV, np.where(kept_TK, ids_TK, ids_TK[:, :1]), 0.0, 1)
        with np.errstate(divide="ignore"):
            tail_T = np.log(outside_TV.sum(1))
        return Logprobs(
            sampled_T=logprobs_TV[np.arange(len(ids_T)), ids_T],
            topk_ids_TK=ids_TK,
            topk_TK=np.where(kept_TK, np.take_along_axis(logprobs_TV, ids_TK, 1), -np.inf).astype(np.float16),
            tail_T=tail_T,
            entropy_T=-(probs_TV * logprobs_TV).sum(1),
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
        states = rng.standard_normal((inputs, len(self.signals.layers), HIDDEN), np.float32)
        return HiddenStates(self.signals.layers, (states.view(np.uint32) >> 16).astype(np.uint16))
