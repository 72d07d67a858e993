"""Generations of every bad kind a teacher or an engine may hand over, right ones in between; seeded and quick.

Each comes with its prompt and with what must become of it: accepted, or one of a few `stage/reason`s. The task is
`adding` of conftest. Ids are bytes and the scripted teacher's two markers, and are split as a real engine splits them.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_task

from factory.hashing import content_hash
from factory.quality.validate import Gate
from factory.records import Generation, Prompt, Sampling
from factory.signals import Array, HiddenStates, Logprobs, SignalSpec
from factory.tasks.tasks import discover
from factory.teachers.reasoning import Markers, split_completion
from factory.teachers.scripted import STOP, THINK_END, VOCAB, decode, encode

SIGNALS = SignalSpec(top_k=4, layers=(2, 4))
HIDDEN = 8
SHARD_ROWS = 128
MARKERS = Markers("<think>", "</think>", THINK_END)
ACCEPTED = "accepted"
HUGE = 10_000_000
DEEP = 100_000
CYCLES_TO_A_HUGE = 2  # how many rounds through all kinds come between two texts of ten million characters


@dataclass(frozen=True, slots=True)
class Expected:
    """What may become of a generation: `ends` holds "accepted" or "stage/reason", any of which is right."""

    kind: str
    ends: frozenset[str]

    @property
    def accepted(self) -> bool:
        return self.ends == {ACCEPTED}


class Bytes:
    """The scripted teacher's vocabulary as a tokenizer."""

    all_special_ids = [STOP]  # noqa: RUF012

    def get_vocab(self) -> dict[str, int]:
        return {"</think>": THINK_END, "<|end|>": STOP}

    def decode(self, token_ids: Any, **options: Any) -> str:
        return decode(list(token_ids))


@dataclass(frozen=True, slots=True)
class Case:
    """One row to be answered: its scenario's sum, and where to draw from."""

    prompt: Prompt
    total: int
    rng: random.Random
    arrays: np.random.Generator

    def answer(self, total: object = None, words: str = '"done"', more: str = "") -> str:
        return f'{{"total":{self.total if total is None else total},"words":{words}{more}}}'

    def make(self, ids: list[int], **changed: Any) -> Generation:
        """A whole completion with sound signals."""
        ids_T, prompt_ids = np.array(ids, np.int32), np.array([65, 66, 67], np.int32)
        split = split_completion(Bytes(), ids_T, MARKERS)
        made = Generation(
            prompt_id=self.prompt.id,
            attempt=self.prompt.attempt,
            text=split.text,
            reasoning=split.reasoning,
            answer_text=split.answer,
            prompt_token_ids=prompt_ids,
            completion_token_ids=ids_T,
            answer_start=split.answer_start,
            finish_reason="stop",
            logprobs=sound_logprobs(self.arrays, ids_T),
            hidden_states=HiddenStates(SIGNALS.layers, sound_states(self.arrays, len(prompt_ids) + len(ids_T) - 1)),
        )
        return replace(made, **changed)

    def reasoned(self, answer: str, reasoning: str = "I add them.", **changed: Any) -> Generation:
        return self.make([*encode(reasoning), THINK_END, *encode(answer), STOP], **changed)

    def written(self, answer: str, reasoning: str = "why") -> Generation:
        """An answer whose text no byte ids could spell, or that would be too many: the ids are those of a short one."""
        short = self.reasoned(self.answer())
        return replace(short, text=f"{reasoning}</think>{answer}", answer_text=answer, reasoning=reasoning)


def sound_logprobs(arrays: np.random.Generator, ids_T: Array) -> Logprobs:
    """Arrays of the right lengths and signs, not of one distribution."""
    tokens, k = len(ids_T), SIGNALS.top_k
    topk_TK = np.sort(-arrays.random((tokens, k), np.float32))[:, ::-1]
    return Logprobs(
        sampled_T=topk_TK[:, 0].copy(),
        topk_ids_TK=arrays.integers(0, VOCAB, (tokens, k), np.int32),
        topk_TK=topk_TK.astype(np.float16),
        tail_T=-arrays.random(tokens, np.float32),
        entropy_T=arrays.random(tokens, np.float32),
    )


def sound_states(arrays: np.random.Generator, inputs: int) -> Array:
    return arrays.integers(1, 0x7F00, (inputs, len(SIGNALS.layers), HIDDEN), np.uint16)


Make = Callable[[Case], Generation]
KINDS: dict[str, tuple[Make, frozenset[str]]] = {}
HUGE_KINDS: dict[str, tuple[Make, frozenset[str]]] = {}


def kind(name: str, *ends: str, table: dict[str, tuple[Make, frozenset[str]]] = KINDS) -> Callable[[Make], Make]:
    """Register one kind of generation with the ends it may have."""

    def register(make: Make) -> Make:
        assert name not in table
        table[name] = (make, frozenset(ends))
        return make

    return register


def answer_kinds(end: str, **answers: Callable[[Case], str]) -> None:
    """Register answers that stand after a closed reasoning and all end alike."""
    for name, answer in answers.items():
        kind(name, end)(lambda case, answer=answer: case.reasoned(answer(case)))  # type: ignore[misc]


def written_kinds(end: str, **answers: Callable[[Case], str]) -> None:
    """As `answer_kinds`, for answers that are not spelt out in ids."""
    for name, answer in answers.items():
        kind(name, end)(lambda case, answer=answer: case.written(answer(case)))  # type: ignore[misc]


answer_kinds(
    ACCEPTED,
    right_again=lambda case: case.answer(),
    right_with_other_words=lambda case: case.answer(words='"äöü 日本 🙂"'),
    right_in_a_fence=lambda case: f"```json\n{case.answer()}\n```",
    right_with_space_around=lambda case: f" \n\t{case.answer()}\n\n",
    right_with_an_escaped_nul=lambda case: case.answer(words='"\\u0000"'),
)
answer_kinds("check/wrong_total", wrong_sum=lambda case: case.answer(case.total + 1))
answer_kinds(
    "parse/no_answer",
    nothing_after_the_reasoning=lambda case: "",
    space_after_the_reasoning=lambda case: " \n\n ",
    an_empty_fence=lambda case: "```json\n```",
)
answer_kinds(
    "parse/invalid_json",
    trailing_text=lambda case: f"{case.answer()}\n\nI hope that this helps!",
    leading_text=lambda case: f"Sure, here it is: {case.answer()}",
    two_objects=lambda case: case.answer() * 2,
    text_after_a_fence=lambda case: f"```json\n{case.answer()}\n```\nDone.",
    another_language_s_fence=lambda case: f"```python\n{case.answer()}\n```",
    a_fence_left_open=lambda case: f"```json\n{case.answer()}",
    cut_in_the_middle=lambda case: case.answer()[: case.rng.randrange(1, len(case.answer()))],
    no_json_at_all=lambda case: f"The sum is {case.total}.",
    not_a_number=lambda case: case.answer("NaN"),
    infinite=lambda case: case.answer(case.rng.choice(["Infinity", "-Infinity"])),
    a_raw_nul=lambda case: case.answer(words='"do\x00ne"'),
    two_reasonings=lambda case: f"No, wait.</think>{case.answer()}",
    single_quotes=lambda case: case.answer().replace('"', "'"),
)
written_kinds(
    "parse/invalid_json",
    five_thousand_digits=lambda case: case.answer("9" * 5000),
    deep_lists=lambda case: case.answer("[" * DEEP + "]" * DEEP),
    deep_and_never_closed=lambda case: "[" * DEEP,
    deep_objects=lambda case: '{"total":' * DEEP + "1" + "}" * DEEP,
)
answer_kinds(
    "parse/not_an_object",
    a_list=lambda case: f"[{case.answer()}]",
    a_text=lambda case: '"done"',
    a_number=lambda case: str(case.total),
    null=lambda case: "null",
)
answer_kinds(
    "parse/duplicate_keys",
    a_key_twice=lambda case: case.answer(more=f',"total":{case.total}'),
    a_key_twice_in_disguise=lambda case: case.answer(more=f',"\\u0074otal":{case.total}'),
    a_key_twice_within=lambda case: case.answer(more=',"why":{"a":1,"a":1}'),
)
answer_kinds("schema/missing", no_words=lambda case: f'{{"total":{case.total}}}', nothing_inside=lambda case: "{}")
answer_kinds(
    "schema/extra_forbidden",
    a_key_too_many=lambda case: case.answer(more=',"why":"so"'),
    many_keys_too_many=lambda case: case.answer(more="".join(f',"k{number}":0' for number in range(30))),
)
answer_kinds(
    "schema/int_type",
    a_number_as_text=lambda case: case.answer(f'"{case.total}"'),
    a_number_as_a_list=lambda case: case.answer("[1]"),
    a_number_as_null=lambda case: case.answer("null"),
    a_number_as_a_truth=lambda case: case.answer("true"),
)
answer_kinds(
    "schema/string_type",
    words_as_a_number=lambda case: case.answer(words="7"),
    words_as_null=lambda case: case.answer(words="null"),
)
answer_kinds("schema/string_too_long", too_many_words=lambda case: case.answer(words=f'"{"x" * 21}"'))
answer_kinds("schema/greater_than_equal", below_its_bound=lambda case: case.answer(-1))
answer_kinds("schema/less_than_equal", above_its_bound=lambda case: case.answer(1001))
answer_kinds("schema/json_invalid", half_a_pair_escaped=lambda case: case.answer(words='"\\ud83d"'))
written_kinds("schema/less_than_equal", four_thousand_digits=lambda case: case.answer("9" * 4000))
written_kinds("schema/json_invalid", deep_but_read_by_python=lambda case: case.answer("[" * 400 + "]" * 400))
written_kinds("schema/string_unicode", half_a_pair=lambda case: case.answer(words='"\ud83d"'))


@kind("right", ACCEPTED)
def _right(case: Case) -> Generation:
    return case.reasoned(case.answer())


@kind("truncated", "teacher/truncated")
def _truncated(case: Case) -> Generation:
    ids = [*encode("I add them: ä, ö."), THINK_END, *encode(case.answer(words='"äöü"'))]
    return case.make(ids[: case.rng.randrange(1, len(ids))], finish_reason="length")


@kind("no_tokens", "teacher/empty")
def _empty(case: Case) -> Generation:
    return case.make([])


@kind("only_a_stop", "parse/reasoning_not_closed")
def _only_a_stop(case: Case) -> Generation:
    return case.make([STOP])


@kind("reasoning_never_closed", "parse/reasoning_not_closed")
def _never_closed(case: Case) -> Generation:
    return case.make([*encode("Hm, hm, " * case.rng.randrange(1, 9)), *encode(case.answer()), STOP])


@kind("answer_before_the_reasoning", "parse/no_answer", "parse/reasoning_not_closed")
def _answer_first(case: Case) -> Generation:
    end = [STOP] if case.rng.random() < 0.5 else []
    return case.make([*encode(case.answer() + " because I added them"), THINK_END, *end])


@kind("bytes_that_are_no_utf8_in_words", ACCEPTED)
def _bad_bytes_in_words(case: Case) -> Generation:
    bad = [0xFF, 0xC3, 0x28, 0xE2, 0x82, 0xF0]
    ids = [*encode("why"), 0x80, THINK_END, *encode(f'{{"total":{case.total},"words":"'), *bad, *encode('"}'), STOP]
    return case.make(ids)


@kind("bytes_that_are_no_utf8_outside", "parse/invalid_json")
def _bad_bytes_outside(case: Case) -> Generation:
    return case.make([THINK_END, 0xFE, *encode(case.answer()), 0xC0, STOP])


@kind("half_a_pair_in_the_reasoning", ACCEPTED)
def _half_a_pair(case: Case) -> Generation:
    return case.written(case.answer(), reasoning="\udce9 and \ud83d")


@kind("nul_in_the_reasoning", ACCEPTED)
def _nul(case: Case) -> Generation:
    return case.reasoned(case.answer(), reasoning="I add\x00 them.\x00")


@kind("no_reasoning", ACCEPTED)
def _no_reasoning(case: Case) -> Generation:
    return case.make([THINK_END, *encode(case.answer()), STOP])


@kind("a_teacher_that_does_not_reason", ACCEPTED)
def _plain(case: Case) -> Generation:
    made = case.make([*encode(case.answer()), STOP], reasoning=None, answer_start=0)
    return replace(made, answer_text=case.answer())


@kind("failed", "teacher/engine_crash", "teacher/engine_abort", "teacher/refused_by_template", "prompt/prompt_too_long")
def _failed(case: Case) -> Generation:
    name = case.rng.choice(["engine_crash", "engine_abort", "refused_by_template", "prompt_too_long"])
    detail = case.rng.choice(["", "exit code -9", "two\nlines \ud800 and \x00", "x" * 5000])
    return Generation.failed(case.prompt.id, case.prompt.attempt, name, detail)


def damaged(name: str, end: str, damage: Callable[[Case, Generation], dict[str, Any]]) -> None:
    """Register a right answer with one thing wrong in its ids or arrays."""

    def make(case: Case) -> Generation:
        made = _right(case)
        return replace(made, **damage(case, made))

    kind(name, end)(make)


def spoil(case: Case, array: Array, value: float) -> Array:
    """A copy of an array with one element, anywhere, of another value."""
    changed = array.copy()
    changed.flat[case.rng.randrange(changed.size)] = value
    return changed


def in_logprobs(field: str, change: Callable[[Case, Array], Array]) -> Callable[[Case, Generation], dict[str, Any]]:
    def damage(case: Case, made: Generation) -> dict[str, Any]:
        assert made.logprobs is not None
        changed: dict[str, Any] = {field: change(case, getattr(made.logprobs, field))}
        return {"logprobs": replace(made.logprobs, **changed)}

    return damage


def in_states(change: Callable[[Case, Array], Array]) -> Callable[[Case, Generation], dict[str, Any]]:
    def damage(case: Case, made: Generation) -> dict[str, Any]:
        assert made.hidden_states is not None
        return {"hidden_states": replace(made.hidden_states, bits_NLH=change(case, made.hidden_states.bits_NLH))}

    return damage


def in_ids(value: int) -> Callable[[Case, Generation], dict[str, Any]]:
    def damage(case: Case, made: Generation) -> dict[str, Any]:
        name = case.rng.choice(["prompt_token_ids", "completion_token_ids"])
        return {name: spoil(case, getattr(made, name).astype(np.int64), value)}

    return damage


def longer(case: Case, array: Array) -> Array:
    return np.concatenate([array, array[-1:]])


def shorter(case: Case, array: Array) -> Array:
    return array[:-1]


def blank_one(case: Case, bits_NLH: Array) -> Array:
    changed = bits_NLH.copy()
    changed[case.rng.randrange(len(changed)), 0] = case.rng.choice([0, 0x8000])
    return changed


def other_k(case: Case, made: Generation) -> dict[str, Any]:
    assert made.logprobs is not None
    ids_TK, values_TK = made.logprobs.topk_ids_TK[:, :-1], made.logprobs.topk_TK[:, :-1]
    return {"logprobs": replace(made.logprobs, topk_ids_TK=ids_TK, topk_TK=values_TK)}


def other_layers(case: Case, made: Generation) -> dict[str, Any]:
    assert made.hidden_states is not None
    return {"hidden_states": HiddenStates((2, 3), made.hidden_states.bits_NLH)}


MISALIGNED, NONFINITE = "signals/misaligned", "signals/nonfinite"
for _field in ("sampled_T", "topk_ids_TK", "topk_TK", "tail_T", "entropy_T"):
    damaged(f"{_field}_too_short", MISALIGNED, in_logprobs(_field, shorter))
    damaged(f"{_field}_too_long", MISALIGNED, in_logprobs(_field, longer))
for _field in ("sampled_T", "topk_TK", "tail_T"):
    damaged(f"{_field}_nan", NONFINITE, in_logprobs(_field, lambda case, array: spoil(case, array, np.nan)))
    damaged(f"{_field}_infinite", NONFINITE, in_logprobs(_field, lambda case, array: spoil(case, array, np.inf)))
    damaged(f"{_field}_positive", NONFINITE, in_logprobs(_field, lambda case, array: spoil(case, array, 0.5)))
    damaged(f"{_field}_minus_infinity", ACCEPTED, in_logprobs(_field, lambda case, array: spoil(case, array, -np.inf)))
damaged("entropy_nan", NONFINITE, in_logprobs("entropy_T", lambda case, array: spoil(case, array, np.nan)))
damaged("entropy_infinite", NONFINITE, in_logprobs("entropy_T", lambda case, array: spoil(case, array, np.inf)))
damaged("entropy_negative", NONFINITE, in_logprobs("entropy_T", lambda case, array: spoil(case, array, -0.5)))
damaged("ids_of_another_k", MISALIGNED, in_logprobs("topk_ids_TK", lambda case, array: array[:, :-1]))
damaged("another_k", MISALIGNED, other_k)
damaged("a_kept_id_below_0", "signals/bad_token_id", in_logprobs("topk_ids_TK", lambda c, a: spoil(c, a, -1)))
damaged("a_kept_id_outside", "signals/bad_token_id", in_logprobs("topk_ids_TK", lambda c, a: spoil(c, a, VOCAB)))
damaged("no_logprobs", "signals/missing", lambda case, made: {"logprobs": None})
damaged("no_states", "signals/missing", lambda case, made: {"hidden_states": None})
damaged("an_id_below_0", "signals/bad_token_id", in_ids(-1))
damaged("an_id_outside", "signals/bad_token_id", in_ids(VOCAB))
damaged("an_id_of_forty_bits", "signals/bad_token_id", in_ids(2**40 + 65))
damaged("an_answer_before_its_tokens", MISALIGNED, lambda case, made: {"answer_start": -1})
damaged("states_nan", NONFINITE, in_states(lambda case, bits_NLH: spoil(case, bits_NLH, 0x7FC1)))
damaged("states_infinite", NONFINITE, in_states(lambda case, bits_NLH: spoil(case, bits_NLH, 0xFF80)))
damaged("a_blank_state", NONFINITE, in_states(blank_one))
damaged("states_too_short", MISALIGNED, in_states(shorter))
damaged("states_too_long", MISALIGNED, in_states(longer))
damaged("states_of_no_token", MISALIGNED, in_states(lambda case, bits_NLH: bits_NLH[:0]))
damaged("states_of_one_layer", MISALIGNED, in_states(lambda case, bits_NLH: bits_NLH[:, :1]))
damaged("states_without_layers", MISALIGNED, in_states(lambda case, bits_NLH: bits_NLH[:, 0]))
damaged("states_of_other_layers", MISALIGNED, other_layers)


@kind("huge_words", "schema/string_too_long", table=HUGE_KINDS)
def _huge_words(case: Case) -> Generation:
    return case.written(case.answer(words=f'"{"ä" * (HUGE // 2)}"'))


@kind("huge_reasoning", ACCEPTED, table=HUGE_KINDS)
def _huge_reasoning(case: Case) -> Generation:
    return case.written(case.answer(), reasoning="I think. " * (HUGE // 9))


@kind("huge_key", "schema/extra_forbidden", table=HUGE_KINDS)
def _huge_key(case: Case) -> Generation:
    return case.written(case.answer(more=f',"{"k" * HUGE}":1'))


@kind("huge_key_twice", "parse/duplicate_keys", table=HUGE_KINDS)
def _huge_key_twice(case: Case) -> Generation:
    return case.written(case.answer(more=f',"{"k" * (HUGE // 2)}":1' * 2))


@kind("many_keys_and_one_twice", "parse/duplicate_keys", table=HUGE_KINDS)
def _many_keys(case: Case) -> Generation:
    return case.written(case.answer(more="".join(f',"{number}":1' for number in range(HUGE // 100)) + ',"99999":1'))


def make_bad_generations(seed: int, count: int) -> Iterator[tuple[Prompt, Generation, Expected]]:
    """`count` generations, every kind about as often, a right answer after every third and a huge text now and then.

    Prompts lie in shards of SHARD_ROWS, in order, with ids of their own for every seed.
    """
    rng, arrays = random.Random(seed), np.random.default_rng(seed)
    names = _draw_kinds(rng)
    for number in range(count):
        name = next(names)
        make, ends = KINDS.get(name) or HUGE_KINDS[name]
        case = _make_case(seed, number, rng, arrays)
        yield case.prompt, make(case), Expected(name, ends)


def _draw_kinds(rng: random.Random) -> Iterator[str]:
    huge = sorted(HUGE_KINDS)
    cycle = 0
    while True:
        names = [*KINDS, *["right"] * (len(KINDS) // 3)]
        if cycle % CYCLES_TO_A_HUGE == 0:
            names.append(huge[cycle // CYCLES_TO_A_HUGE % len(huge)])
        rng.shuffle(names)
        yield from names
        cycle += 1


def _make_case(seed: int, number: int, rng: random.Random, arrays: np.random.Generator) -> Case:
    a, b = rng.randrange(100), rng.randrange(100)
    messages = ({"role": "user", "content": f"Add {a} and {b}."},)
    prompt = Prompt(
        id=content_hash(["bad", seed, number]),
        shard=number // SHARD_ROWS,
        position=number % SHARD_ROWS,
        task="adding",
        level="hard",
        messages=messages,
        scenario=f'{{"a":{a},"b":{b}}}',
        seed=number,
        sampling=Sampling(),
    )
    return Case(prompt, a + b, rng, arrays)


def adding_gate(root: Path, check: bool = True) -> Gate:
    """The gate of the task `adding`, written under `root`, that knows which signals a row must carry."""
    write_task(root)
    return Gate(discover(root, ["adding"]).tasks["adding"], check, SIGNALS, VOCAB)
