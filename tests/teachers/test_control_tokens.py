"""Ids of prompts: for every kind of tokenizer those of the model's own chat template, whatever the text holds."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_teacher import corpus

from factory.teachers.control_tokens import ControlTokens
from factory.teachers.prompt_ids import PromptEncoder

TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"]
ORDINARY = ["\n\n", "  ", "   ", "<table>", "</td>"]  # added tokens that control nothing, as Gemma lists them
TEMPLATES = {"turns": TURNS, "inst": INST}


def train(kind: str) -> Any:
    """A tiny tokenizer of one kind, as `tokenizers` holds them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    sentencepiece = [
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    ]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "byte-level BPE":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet)
    elif kind == "BPE with byte fallback":
        raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        raw.normalizer, raw.decoder = sentencepiece
        trainer = trainers.BpeTrainer(vocab_size=1100, special_tokens=[*SPECIAL, *fallback], max_token_length=8)
    else:
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=SPECIAL, unk_token="<unk>")
    trainer.show_progress = False
    raw.train_from_iterator(islice_lines(), trainer)
    if kind == "BPE with byte fallback":  # the bytes are pieces of the vocabulary, and no added tokens
        raw = without_added(raw, set(fallback))
    raw.add_tokens(ORDINARY)
    return raw


def islice_lines() -> Iterator[str]:
    for text in corpus():
        yield from text.splitlines()[:80]


def without_added(raw: Any, names: set[str]) -> Any:
    import json

    from tokenizers import Tokenizer

    body = json.loads(raw.to_str())
    body["added_tokens"] = [token for token in body["added_tokens"] if token["content"] not in names]
    return Tokenizer.from_str(json.dumps(body))


KINDS = ["byte-level BPE", "BPE with byte fallback", "unigram"]


@functools.cache
def tokenizer_of(kind: str, template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train(kind), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


@functools.cache
def encoder_of(kind: str, template: str) -> PromptEncoder:
    return PromptEncoder(tokenizer_of(kind, template), None, {})


ordinary = st.lists(
    st.one_of(
        st.text(max_size=12), st.sampled_from([*ORDINARY, "Reschedule at 09:30", " ", "\n", "<", ">", "<s", "s>"])
    ),
    max_size=8,
).map("".join)
forging = st.lists(
    st.one_of(st.text("ab <>|/s\n", max_size=6), st.sampled_from([*SPECIAL, *ORDINARY, "<<s>s>", "<end_of_<s>turn>"])),
    min_size=1,
    max_size=6,
).map("".join)


def is_free(text: str) -> bool:
    return not any(token in text for token in SPECIAL)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
@given(text=ordinary.filter(is_free), reply=ordinary.filter(is_free))
def test_a_prompt_has_the_ids_of_the_models_own_template(kind: str, template: str, text: str, reply: str) -> None:
    tokenizer = tokenizer_of(kind, template)
    asked = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "b"},
    ]
    right = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert encoder_of(kind, template).encode(asked) == right


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
@given(text=ordinary.filter(is_free), reply=ordinary.filter(lambda text: is_free(text) and bool(text.strip())))
def test_a_scored_turn_has_the_ids_of_the_models_own_template(kind: str, template: str, text: str, reply: str) -> None:
    tokenizer = tokenizer_of(kind, template)
    asked, turn = [{"role": "user", "content": text}], {"role": "assistant", "content": reply}
    transcript = {"completion_ids": (), "completion": None, "turn": turn}
    prompt_ids, completion_ids = encoder_of(kind, template).encode_transcript(asked, transcript)
    whole = tokenizer.apply_chat_template([*asked, turn], return_dict=False)
    both = [*prompt_ids, *completion_ids]
    assert both == whole[: len(both)]
    assert len(whole) - len(both) <= (0 if template == "inst" else 2)  # nothing is left out but a line's end
    assert both[-1] == tokenizer.convert_tokens_to_ids("</s>" if template == "inst" else "<end_of_turn>")
    prompt = encoder_of(kind, template).encode(asked)
    assert prompt[: len(prompt_ids)] == prompt_ids


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
@given(text=forging)
def test_no_text_becomes_a_control_token(kind: str, template: str, text: str) -> None:
    tokenizer, encoder = tokenizer_of(kind, template), encoder_of(kind, template)
    ids = encoder.encode([{"role": "user", "content": text}])
    control = {number for name, number in encoder.control.ids.items() if name != "<unk>"}
    frame = [i for i in encoder.encode([{"role": "user", "content": "a"}]) if i in control]
    assert [i for i in ids if i in control] == frame
    if kind != "unigram":  # that one has no bytes to fall back on
        plain = encoder.encode([{"role": "user", "content": "@@"}])
        assert tokenizer.decode(ids) == tokenizer.decode(plain).replace("@@", text)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=ordinary.filter(is_free), completion=ordinary.filter(is_free).filter(bool))
def test_texts_follow_each_other_with_nothing_between(kind: str, prompt: str, completion: str) -> None:
    tokenizer, encoder = tokenizer_of(kind, "turns"), encoder_of(kind, "turns")
    given_texts = {"completion_ids": (), "prompt": prompt, "completion": completion}
    prompt_ids, completion_ids = encoder.encode_transcript([], given_texts)
    assert prompt_ids == tokenizer.encode(prompt, add_special_tokens=False)
    whole = tokenizer.encode(prompt + completion, add_special_tokens=False)
    if whole[: len(prompt_ids)] == prompt_ids:
        assert prompt_ids + completion_ids == whole


@pytest.mark.parametrize("kind", KINDS)
def test_what_controls_nothing_is_no_control_token(kind: str) -> None:
    control = ControlTokens(tokenizer_of(kind, "turns"), TURNS, None, ())
    assert sorted(control.ids) == sorted(SPECIAL)
    assert control.is_harmless("A <table> with\n\ntwo  gaps")
    assert not control.is_harmless("<end_of_turn>")


def test_a_tokenizer_without_a_copy_has_its_text_cut() -> None:
    class Slow:
        """As a tiktoken of a model's own: no tokenizer.json behind it."""

        def __init__(self, fast: Any) -> None:
            self.fast = fast
            self.added_tokens_decoder, self.all_special_ids = fast.added_tokens_decoder, fast.all_special_ids

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            ids: list[int] = self.fast.encode(text, add_special_tokens=add_special_tokens)
            return ids

    fast = tokenizer_of("byte-level BPE", "turns")
    control = ControlTokens(Slow(fast), TURNS, None, ())
    text, mark = "a <s> b", "\ue000"
    ids = control.encode("<start_of_turn>" + control.mark(text, mark), mark)
    assert [i for i in ids if i in control.ids.values()] == [control.ids["<start_of_turn>"]]
    assert fast.decode(ids) == "<start_of_turn>a <s> b"
