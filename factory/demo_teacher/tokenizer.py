"""The demo teacher's byte-level BPE tokenizer and chat template.

The pattern keeps a clock time, a year and the month or day of a date in one piece each, and every other digit on its
own: what is compared becomes one token, what is calculated with keeps its columns. The template opens the reasoning
itself, as the model was trained: the prompt ends in `<think>`, or in `<think></think>` where no reasoning is wanted.
"""

from collections.abc import Iterable
from typing import Any

VOCAB_SIZE = 4096
END_OF_TEXT, TURN_START, TURN_END, THINK_START, THINK_END = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    # as the model generates it; its own prompts have no such key, so they are what it was trained on
    "{% if message.reasoning_content is string %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}"
    # transformers drops a line break that follows a block's tag, so one that must stay is an expression;
    # tools and calls as Hermes and Qwen spell them; prompts of tasks without tools are what they were
    "{% if loop.first and tools %}<tools>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>"
    "{% endif %}"
    "{% for call in message.tool_calls or [] %}{% if message.content or not loop.first %}{{ '\\n' }}{% endif %}"
    "<tool_call>\n"
    '{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>"
    "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{% endif %}"
)
# a byte-level BPE merges inside a piece and never across: the first alternative that fits makes one
PIECES = (
    r" ?(?<!\d)\d\d:\d\d(?!\d)",
    r" ?(?<!\d)\d{4}(?=-\d\d)",
    r"(?<=\d)-\d\d(?![\d:])",
    r" ?\d",
    r" ?[A-Za-z]+",
    r" ?[^\sA-Za-z0-9]+",
    r"\s+(?!\S)",
    r"\s",
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Any:
    """A `PreTrainedTokenizerFast` of at most `vocab_size` entries; the same texts give the same tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(PIECES)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END, THINK_START, THINK_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=TURN_END, pad_token=END_OF_TEXT)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
