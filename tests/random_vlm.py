"""A tiny Idefics3 with random weights, for tests of pictures: it sees, and babbles.

A picture is cut into up to four parts of 32 x 32 pixels, beside it as a whole; each becomes 4 tokens.
Everything is seeded, so every test process builds the same model.
"""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from random_teacher import train_tokenizer

# the tokens that stand around a picture and for it, as Idefics3's processor writes them
IMAGE_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
GRID_TOKENS = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def random_vlm() -> str:
    """Folder of the model, built on the first call and gone with the process."""
    folder = Path(tempfile.mkdtemp(prefix="random-vlm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build(folder)
    return str(folder)


def build(folder: Path) -> None:
    """Write model, processor, tokenizer and template."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*IMAGE_TOKENS, *GRID_TOKENS]})
    tokenizer.chat_template = CHAT_TEMPLATE
    end, pad, image = (tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>", "<image>"))
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer) + (-len(tokenizer) % 64),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
        "eos_token_id": end,
        "pad_token_id": pad,
        "bos_token_id": None,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "initializer_range": 0.1,
    }
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        scale_factor=2,
        pad_token_id=pad,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
