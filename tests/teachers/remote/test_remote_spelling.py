"""Ids by bytes: each id of a vocabulary is found by the bytes it stands for, and nothing is guessed."""

from typing import Any

import pytest
from remote_support import demo_tokenizer
from scripted_endpoint import bytes_of
from tokenizers import AddedToken, Tokenizer, decoders, models

from factory.teachers.remote.spelling import Spelling, Unspelt, open_spelling


def sentencepiece() -> Tokenizer:
    """A small vocabulary as Gemma's is written: a mark for the space, bytes by their numbers, special tokens."""
    words = ["<pad>", "<eos>", "\u2581a", "b", "\u2581", "\u2581\u2581", "é", "{", "}", "\n", '"']
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    tokenizer.add_tokens([AddedToken("\u2581\u2581", special=False)])  # as Gemma's runs of spaces are
    return tokenizer


def test_every_token_of_a_byte_level_vocabulary_is_found_by_its_bytes() -> None:
    tokenizer = demo_tokenizer()
    spelling = open_spelling(tokenizer)
    special = set(spelling.special.values())
    found = [
        spelling.find(bytes_of(tokenizer, number).decode("utf-8", "replace"), bytes_of(tokenizer, number))
        for number in range(tokenizer.get_vocab_size())
        if number not in special
    ]
    assert found == [number for number in range(tokenizer.get_vocab_size()) if number not in special]
    assert spelling.vocab == tokenizer.get_vocab_size()


def test_special_tokens_are_found_by_their_names() -> None:
    tokenizer = demo_tokenizer()
    spelling = open_spelling(tokenizer)
    assert spelling.find("</think>", None) == tokenizer.token_to_id("</think>")
    assert spelling.find("<|im_end|>", b"<|im_end|>") == tokenizer.token_to_id("<|im_end|>")


@pytest.fixture
def gemma_like() -> tuple[Any, Spelling]:
    tokenizer = sentencepiece()
    return tokenizer, open_spelling(tokenizer)


def test_a_sentencepiece_vocabulary_is_found_by_its_bytes(gemma_like: tuple[Any, Spelling]) -> None:
    tokenizer, spelling = gemma_like
    for text in (" a", "b", " ", "  ", "é", "{", "\n"):
        number = spelling.find(text, text.encode())
        assert tokenizer.decode([number]) == text
        assert not tokenizer.id_to_token(number).startswith("<0x")
    # a byte that no token of text has
    assert tokenizer.id_to_token(spelling.find("\ufffd", b"\xc3")) == "<0xC3>"
    assert tokenizer.id_to_token(spelling.find("z", b"z")) == "<0x7A>"


def test_what_no_id_has_is_not_guessed(gemma_like: tuple[Any, Spelling]) -> None:
    _, spelling = gemma_like
    with pytest.raises(Unspelt, match="is no token"):
        spelling.find(" ab", b" ab")
    with pytest.raises(Unspelt, match="without its bytes"):
        spelling.find("\ufffd", None)


def test_bytes_that_two_ids_have_are_of_none() -> None:
    tokenizer = sentencepiece()
    tokenizer.add_tokens([AddedToken(" a", special=False)])  # spells what "\u2581a" does
    with pytest.raises(Unspelt):
        open_spelling(tokenizer).find(" a", b" a")
