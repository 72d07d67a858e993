"""A tiny Qwen3 with random weights and its own tokenizer, for tests of the engine: it babbles until it is stopped.

Everything is seeded, so every test process builds the same model, in about ten seconds.
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.tasks.tasks import builtin_root

SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
}
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@functools.cache
def random_teacher() -> str:
    """Folder of the model, built on the first call and gone with the process."""
    folder = Path(tempfile.mkdtemp(prefix="random-teacher-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build(folder)
    return str(folder)


def poisoned_teacher(folder: Path) -> Path:
    """A copy whose chat template never ends for a message with the word POISON in it."""
    shutil.copytree(random_teacher(), folder)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    trap = "{% for m in messages %}{% if 'POISON' in m.content %}" + loops + "{% endif %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(trap + CHAT_TEMPLATE, encoding="utf-8")
    return folder


def build(folder: Path) -> None:
    """Write model, tokenizer and template."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = train_tokenizer()
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    config = Qwen3Config(**SIZES, tie_word_embeddings=False, eos_token_id=end, pad_token_id=pad, bos_token_id=None)
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


TASKS = ("photo_edits", "scheduling", "summarization", "travel_booking")


def corpus() -> Iterator[str]:
    """Text the tokenizer learns from: some built-in tasks, by name, for another task would make another model."""
    root = builtin_root()
    for name in TASKS:
        for pattern in (
            f"prompts/{name}/*.j2",
            f"schemas/{name}.py",
            f"schemas/{name}.*toml",
            f"schemas/_{name}_[!i]*",
        ):
            yield from (path.read_text(encoding="utf-8") for path in sorted(root.glob(pattern)))


def train_tokenizer() -> Any:
    """A byte-level BPE tokenizer over the corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
