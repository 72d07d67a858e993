"""The demo teacher: a tiny Qwen3 with random weights and its own tokenizer, built on the spot and cached.

It answers nothing sensibly; it shows the whole factory, signals included, on a real engine in seconds. Everything is
seeded, so the same version builds the same model everywhere.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.errors import TeacherError
from factory.records import content_hash
from factory.tasks import builtin_root

RECIPE: dict[str, Any] = {
    "recipe": 1,
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
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def demo_teacher() -> str:
    """Folder of the demo teacher, built by a process of its own if it is not there (about ten seconds)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distillation-factory"
    folder = cache / f"demo-teacher-{content_hash([RECIPE, CHAT_TEMPLATE, list(corpus())], 12)}"
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "factory.teachers.demo", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            told = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise TeacherError(f"teacher.model 'demo': cannot be built in {folder}: {told}")
    return str(folder)


def corpus() -> Iterator[str]:
    """Text the tokenizer learns from: the built-in tasks, as they stand."""
    root = builtin_root()
    for path in [*sorted(root.glob("prompts/*/*.j2")), *sorted(root.glob("schemas/*.py"))]:
        yield path.read_text(encoding="utf-8")


def build(folder: Path) -> None:
    """Write model, tokenizer and template to `folder`, in one step."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = train_tokenizer()
    sizes = {key: value for key, value in RECIPE.items() if key != "recipe"}
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    config = Qwen3Config(**sizes, tie_word_embeddings=False, eos_token_id=end, pad_token_id=pad, bos_token_id=None)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    if not (folder / "config.json").is_file():
        temporary.rename(folder)


def train_tokenizer() -> Any:
    """A byte-level BPE tokenizer over the corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=RECIPE["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


if __name__ == "__main__":
    build(Path(sys.argv[1]))
