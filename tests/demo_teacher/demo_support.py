"""What the demo teacher's tests share: the corpus, a tokenizer learnt from a little of it, and a tiny recipe."""

import functools
from dataclasses import replace
from typing import Any

from factory.demo_teacher.corpus import Corpus, texts
from factory.demo_teacher.recipe import Recipe, draw_tokenizer_examples
from factory.demo_teacher.tokenizer import train_tokenizer

TINY = Recipe(
    steps=4,
    tokenizer_examples=1,
    step_examples=2,
    validation_steps=2,
    validation_examples=1,
    model={
        "vocab_size": 400,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
)


@functools.cache
def shared_corpus() -> Corpus:
    return Corpus()


@functools.cache
def shared_tokenizer() -> Any:
    """A tokenizer of the real kind that has seen five examples of each task and level."""
    corpus = shared_corpus()
    draws = draw_tokenizer_examples(replace(TINY, tokenizer_examples=5), corpus.levels)
    return train_tokenizer(texts(corpus.examples(draws)), 1200)
