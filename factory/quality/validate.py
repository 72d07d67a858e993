"""Validation: sound signals, then the task's pydantic Answer, then its check; ends in a Record or a Rejection."""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from factory.records import Generation, Outcome, Prompt, Record, Rejection
from factory.signals import Array, Experts, HiddenStates, Logprobs, SignalSpec
from factory.tasks.answers import has_sets, repeats
from factory.tasks.calls import UnknownTool, call_check, read_answer, read_scenario
from factory.tasks.faults import TaskFault
from factory.tasks.tasks import Task

FINDING_CODE = re.compile(r"([a-z][a-z0-9_]{0,63}):")
MAX_PROBLEMS = 20  # of one answer that are told
MAX_FINDING = 2000  # characters: a finding may quote what a teacher wrote, however long
TOLERANCE = 1e-3  # of log-probabilities above 0 and entropies below it, which are rounding
MAX_VOCAB = 2**31  # ids are stored as int32


@dataclass(frozen=True, slots=True)
class Gate:
    """What a row of one task must pass: `check` False keeps schema-valid answers that are wrong, findings attached.

    Without a task there is nothing to check but the signals: the row is a transcript that was scored.
    `signals` is what every row must carry and `vocab` how many ids there are, where the teacher has told.
    """

    task: Task | None
    check: bool
    signals: SignalSpec | None = None
    vocab: int | None = None


def validate(gate: Gate, prompt: Prompt, generation: Generation, answer_json: str) -> Outcome:
    """Decide one parsed answer. Never raises for anything a teacher may have written or a check may do."""
    damage = find_damage(generation, gate.signals, gate.vocab)
    # before the answer is looked at: a row with unsound signals is our fault, however right it is
    if damage:
        return Rejection(prompt, generation, "signals", damage[0], (damage[1],), kind="error")
    if gate.task is None:
        return Record(prompt, generation, answer_json, score=1.0)
    try:
        # strict: "3" for 3 is a fault of the teacher, and a student would learn it
        answer = read_answer(gate.task, answer_json)
    except ValidationError as error:
        reason, problems = _describe(error)
        return Rejection(prompt, generation, "schema", reason, problems)
    except UnknownTool as error:
        return Rejection(prompt, generation, "schema", "unknown_tool", (f"unknown_tool: {error}",))
    except TaskFault as fault:  # pydantic lets through what a task's own validator raises, but for ValueError
        return Rejection(prompt, generation, "schema", fault.reason, (_cut(fault),), kind="error")
    repeated = find_repeated(gate.task, answer_json)
    if repeated:
        return Rejection(prompt, generation, "schema", "not_unique", repeated)
    try:
        findings = run_check(gate.task, prompt.scenario, answer)
    except TaskFault as fault:  # an error of this row alone
        return Rejection(prompt, generation, "check", fault.reason, (_cut(fault),), kind="error")
    if findings and gate.check:
        return Rejection(prompt, generation, "check", finding_code(findings[0]), findings, answer=answer_json)
    return Record(prompt, generation, answer_json, score=0.0 if findings else 1.0, findings=findings)


def run_check(task: Task, scenario_json: str, answer: Any) -> tuple[str, ...]:
    """The findings of a task's check; empty means that the answer is right. Raises TaskFault."""
    return call_check(task, read_scenario(task, scenario_json), answer)


def find_repeated(task: Task, answer_json: str) -> tuple[str, ...]:
    """What stands twice in a set of the answer: neither the grammar nor pydantic says a word about it."""
    if not has_sets(task.answer_schema):
        return ()
    return tuple(repeats(task.answer_schema, json.loads(answer_json)))[:MAX_PROBLEMS]


def finding_code(finding: str) -> str:
    """The machine-readable code a finding begins with (`busy_overlap: ...`), or `check_failed` where it has none."""
    match = FINDING_CODE.match(finding)
    return match.group(1) if match else "check_failed"


def find_damage(
    generation: Generation, signals: SignalSpec | None = None, vocab: int | None = None
) -> tuple[str, str] | None:
    """Reason and detail where a generation's arrays do not belong to its tokens or hold no numbers; None if sound.

    `signals` also asks for arrays of that k and of those layers, `vocab` for ids below it.
    """
    asked, vocab = signals or SignalSpec(), vocab or MAX_VOCAB
    # an endpoint's row whose ids cannot be known says so and keeps no signals: that is no damage
    if generation.without_ids and asked.source == "endpoint" and not len(generation.completion_token_ids):
        return None
    logprobs, of_prompt, states = generation.logprobs, generation.prompt_logprobs, generation.hidden_states
    expected = ((asked.top_k, logprobs), (asked.of_prompt, of_prompt), (asked.layers, states))
    if any(wanted and came is None for wanted, came in (*expected, (asked.experts, generation.experts))):
        return "missing", f"the job keeps {asked.top_k} logprobs and layers {list(asked.layers)}; they did not come"
    damage = _damage_of_ids(generation, vocab)
    if damage is None and asked.masked:
        damage = _damage_of_mask(generation)
    if damage is None and logprobs is not None:
        damage = _damage_of_logprobs(logprobs, len(generation.completion_token_ids), asked, vocab)
    if damage is None and asked.candidates:
        damage = _damage_of_candidates(generation, vocab)
    if damage is None and of_prompt is not None:
        damage = _damage_of_logprobs(of_prompt, len(generation.prompt_token_ids) - 1, asked, vocab)
    if damage is None and states is not None:
        damage = _damage_of_states(states, _input_length(generation), asked)
    if damage is None and generation.experts is not None:
        damage = _damage_of_experts(generation.experts, _input_length(generation))
    if damage is None:
        damage = _damage_of_attention(generation, asked)
    return damage


def _damage_of_ids(generation: Generation, vocab: int) -> tuple[str, str] | None:
    tokens = len(generation.completion_token_ids)
    if not 0 <= generation.answer_start < tokens:
        return "misaligned", f"an answer that begins at token {generation.answer_start} of {tokens}"
    for ids in (generation.prompt_token_ids, generation.completion_token_ids):
        if not _are_ids(ids, vocab):
            return "bad_token_id", f"ids from {ids.min()} to {ids.max()} in a vocabulary of {vocab}"
    return None


def _damage_of_mask(generation: Generation) -> tuple[str, str] | None:
    mask_T, tokens = generation.completion_mask, len(generation.completion_token_ids)
    if mask_T is None or len(mask_T) != tokens:
        return "misaligned", f"a mask of {None if mask_T is None else len(mask_T)} entries for {tokens} tokens"
    if mask_T.max() > 1 or not (mask_T[0] and mask_T[-1]):
        return "misaligned", "a mask with other numbers than 0 and 1, or that does not begin and end in a scored token"
    return None


def _damage_of_candidates(generation: Generation, vocab: int) -> tuple[str, str] | None:
    found, tokens = generation.candidates, len(generation.completion_token_ids)
    if found is None:
        return "missing", "the data names candidates, and their log-probabilities did not come"
    lengths = len(found.ids_M), len(found.logprobs_M), int(found.counts_T.sum())
    if len(found.counts_T) != tokens or len(set(lengths)) > 1:
        return "misaligned", f"candidates of {len(found.counts_T)} tokens of {tokens}; ids, logprobs, counts: {lengths}"
    if not _are_ids(found.ids_M, vocab):
        return "bad_token_id", f"a candidate is below 0 or outside the vocabulary of {vocab}"
    if not _are_logprobs(found.logprobs_M):
        return "nonfinite", "a candidate's log-probability is not a number or is above 0"
    return None


def _damage_of_logprobs(logprobs: Logprobs, tokens: int, asked: SignalSpec, vocab: int) -> tuple[str, str] | None:
    k, arrays = asked.top_k, logprobs.arrays()
    lengths = {len(array) for array in arrays.values()}
    if lengths != {tokens} or logprobs.topk_ids_TK.shape != logprobs.topk_TK.shape:
        return "misaligned", f"logprobs of length {sorted(lengths)} for {tokens} tokens"
    if k and logprobs.topk_TK.shape != (tokens, k):
        return "misaligned", f"top-k logprobs of shape {logprobs.topk_TK.shape} for {tokens} tokens and k={k}"
    ids = logprobs.topk_ids_TK
    if asked.ragged:
        kept_TK = logprobs.kept_TK
        if (kept_TK[:, 1:] > kept_TK[:, :-1]).any():
            return "misaligned", "a position has an id after an entry that has none"
        ids = ids[kept_TK]
    if not _are_ids(ids, vocab):
        return "bad_token_id", f"a kept id is below 0 or outside the vocabulary of {vocab}"
    if asked.keep == "sampled" and not _are_draws(logprobs, k):
        return "misaligned", f"a position does not have {k} draws, or has an id that was never drawn"
    if not _are_logprobs(logprobs.sampled_T) or not _are_logprobs(logprobs.topk_TK):
        return "nonfinite", "a kept log-probability is not a number or is above 0"
    if not np.isfinite(logprobs.entropy_T).all() or not _are_logprobs(logprobs.tail_T):
        return "nonfinite", "an entropy is not a number, or a tail mass is not or is above 1"
    if (logprobs.entropy_T < -TOLERANCE).any():
        return "nonfinite", "an entropy is below 0"
    return None


def _are_draws(logprobs: Logprobs, draws: int) -> bool:
    """Whether every kept id was drawn, and each position that has any ids has all of its draws."""
    if logprobs.draws_TK is None:
        return False
    kept_TK, sums_T = logprobs.kept_TK, logprobs.draws_TK.sum(1)
    return bool(((logprobs.draws_TK > 0) == kept_TK).all() and (sums_T == np.where(kept_TK[:, 0], draws, 0)).all())


def _damage_of_states(states: HiddenStates, inputs: int, asked: SignalSpec) -> tuple[str, str] | None:
    layers, positions_N = asked.layers, states.positions_N
    if states.bits_NLH.ndim != 3 or states.bits_NLH.shape[1] != len(states.layers):
        return "misaligned", f"hidden states of shape {states.bits_NLH.shape} for {len(states.layers)} layers"
    if layers and states.layers != layers:
        return "misaligned", f"hidden states of layers {list(states.layers)}, the job keeps {list(layers)}"
    if positions_N is not None and asked.hidden_positions != "all":
        if len(positions_N) and not 0 <= positions_N[0] <= positions_N[-1] < inputs:
            return "misaligned", f"hidden states at positions up to {positions_N[-1]} of {inputs} input tokens"
        inputs = len(positions_N)
    if len(states.bits_NLH) != inputs:
        return "misaligned", f"hidden states of {len(states.bits_NLH)} positions for {inputs} input tokens"
    if _any_nonfinite_or_blank(states):
        return "nonfinite", "a hidden state is all zero, infinite or not a number"
    return None


def _damage_of_experts(experts: Experts, inputs: int) -> tuple[str, str] | None:
    shapes = experts.ids_NLE.shape, experts.weights_NLE.shape
    if shapes[0] != shapes[1] or shapes[0][:2] != (inputs, len(experts.blocks)):
        return "misaligned", f"experts of shape {shapes[0]} for {inputs} input tokens and {len(experts.blocks)} blocks"
    if (experts.ids_NLE < 0).any() or not np.isfinite(experts.weights_NLE).all():
        return "nonfinite", "the experts of a token are not known, or a weight is not a number"
    return None


def _damage_of_attention(generation: Generation, asked: SignalSpec) -> tuple[str, str] | None:
    inputs, attention = _input_length(generation), generation.attention
    if attention is None:
        wanted = asked.keeps_attention(generation.prompt_id, inputs)
        return ("missing", "the row is one of those whose attention is kept, and it did not come") if wanted else None
    shape = attention.maps_LHNN.shape
    if len(shape) != 4 or (shape[0], *shape[2:]) != (len(attention.blocks), inputs, inputs):
        return "misaligned", f"attention of shape {shape} for {inputs} input tokens and {len(attention.blocks)} blocks"
    if not np.isfinite(attention.maps_LHNN).all():
        return "nonfinite", "an attention weight is not a number"
    return None


def _input_length(generation: Generation) -> int:
    """Tokens the model was given as input: all but the last sampled one."""
    return len(generation.prompt_token_ids) + len(generation.completion_token_ids) - 1


def _are_ids(ids: Array, vocab: int) -> bool:
    return not ids.size or bool(ids.min() >= 0 and ids.max() < vocab)


def _are_logprobs(values: Array) -> bool:
    as_float = np.asarray(values, dtype=np.float32)
    return not np.isnan(as_float).any() and bool((as_float <= TOLERANCE).all())


def _any_nonfinite_or_blank(states: HiddenStates) -> bool:
    """bfloat16 is infinite or NaN where its 8 exponent bits are all set; a state vector of zeros was never written.

    Only an embedding (layer 0) may be zero: that of a padding token often is, and a teacher may sample that token.
    """
    blocks_L = np.array(states.layers) > 0
    nonfinite = ((states.bits_NLH & 0x7F80) == 0x7F80).any()
    blank = ~(states.bits_NLH[:, blocks_L] & 0x7FFF).any(axis=2)
    return bool(nonfinite or blank.any())


def _describe(error: ValidationError) -> tuple[str, tuple[str, ...]]:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = (f"{'.'.join(str(part) for part in p['loc']) or 'answer'}: {p['msg']}" for p in problems[:MAX_PROBLEMS])
    return str(problems[0]["type"]), tuple(line[:MAX_FINDING] for line in lines)


def _cut(fault: TaskFault) -> str:
    return str(fault)[:MAX_FINDING]
