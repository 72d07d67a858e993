"""What the benchmark runs on: a random Qwen3 of 41 million parameters, the demo teacher, and prompts for both."""

import random
import string
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from random_teacher import CHAT_TEMPLATE, SPECIAL_TOKENS, corpus

from factory.job.job import Job
from factory.records import Prompt, Sampling
from factory.runs.prepare import prepare
from factory.signals import SignalSpec
from factory.teachers.demo import demo_teacher

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench"
VOCAB = 32768
RANDOM_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "initializer_range": 0.05,
}
WINDOW = 2048
# those of a job that keeps signals on a processor; text alone too: all engines have the same
SETTINGS = {"enforce_eager": True, "enable_chunked_prefill": False, "enable_prefix_caching": False}
TASKS = ("scheduling", "photo_edits", "summarization", "travel_booking")


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the benchmark: its name in the table, its folder, ids in its vocabulary, the two layers to keep."""

    name: str
    folder: str
    vocab: int
    layers: tuple[int, int]


def random_model() -> Model:
    """The random Qwen3; built on the first call, which takes half a minute."""
    folder = WORK / "random-41m"
    if not (folder / "model.safetensors").is_file():
        build(folder)
    return Model("random 41M, vocabulary 32k", str(folder), VOCAB, (4, 8))


def demo_model() -> Model:
    return Model("demo teacher 3M, vocabulary 4k", demo_teacher(), 4096, (3, 6))


def build(folder: Path) -> None:
    """Write model, tokenizer and template; the weights last, so that a folder with weights is whole."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    config = Qwen3Config(**RANDOM_SIZES, tie_word_embeddings=True, eos_token_id=end, pad_token_id=pad)
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def train_tokenizer() -> Any:
    """A byte-level BPE of exactly 32,768 entries, over the built-in tasks' texts and many random words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*corpus(), *random_texts(2000)], trainer)
    if raw.get_vocab_size() != VOCAB:
        raise SystemExit(f"bench: the tokenizer has {raw.get_vocab_size()} entries, expected {VOCAB}")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def random_texts(count: int) -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(count):
        words = ("".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9))) for _ in range(40))
        yield " ".join(words)


def short_prompts(count: int, longest: int) -> list[Prompt]:
    """Prompts of one line with answers of `longest` / 3 to `longest` tokens: almost all time goes into decoding."""
    rng = random.Random(1)
    prompts = []
    for number in range(count):
        topic = "".join(rng.choices(string.ascii_lowercase, k=6))
        sampling = Sampling(temperature=1.0, max_tokens=rng.randint(longest // 3, longest))
        message = {"role": "user", "content": f"Tell me in a few words what number {number} has to do with {topic}."}
        prompts.append(Prompt(f"p{number}", 0, number, "none", "", (message,), "{}", number, sampling))
    return prompts


def task_prompts(rows: int) -> tuple[list[Prompt], dict[str, Any]]:
    """`rows` prompts of the built-in tasks as a job renders them (temperature 0.7), and their answers' schemas."""
    job = Job.model_validate(
        {
            "out": "out",
            "seed": 11,
            "sampling": {"temperature": 0.7},
            "shard_rows": rows,
            "tasks": [{"name": name, "count": -(-rows // len(TASKS))} for name in TASKS],
        }
    )
    prepared = prepare(job, ROOT)
    rendered = (prepared.render(row) for shard in range(prepared.plan.shards) for row in prepared.plan.rows(shard))
    prompts = [prompt for prompt in rendered if isinstance(prompt, Prompt)]
    return prompts, {name: task.answer_schema for name, task in prepared.tasks.items()}


def as_request(prompt: Prompt, fixed_length: bool) -> dict[str, Any]:
    """What the engine's process is sent of a prompt; `fixed_length` generates `max_tokens` whatever is sampled."""
    sampling: dict[str, Any] = asdict(prompt.sampling) | ({"ignore_eos": True} if fixed_length else {})
    names = ("id", "attempt", "task", "messages", "seed", "keeps", "form", "tools")
    return {name: getattr(prompt, name) for name in names} | {"sampling": sampling, "transcript": None}


def engine_setup(
    model: Model,
    spool: Path,
    max_num_seqs: int,
    capture: str = "decode",
    schemas: dict[str, Any] | None = None,
    compiled: bool = False,
    **signals: Any,
) -> dict[str, Any]:
    """The setup of the engine's process, as `factory.teachers.vllm` sends it; `signals` are fields of a SignalSpec.

    With the answers' `schemas` a grammar holds the model to them.
    """
    from factory.job.teacher import TeacherConfig
    from factory.teachers.models import read_end_ids, read_shape

    teacher = TeacherConfig(
        model=model.folder, max_model_len=WINDOW, max_num_seqs=max_num_seqs, kv_cache_gb=0.5, reasoning="off"
    )
    return {
        "teacher": teacher.model_dump(),
        # text alone too: all engines have the same
        "settings": SETTINGS | {"enforce_eager": not compiled},
        "layers": read_shape(model.folder, teacher).layers,
        "schemas": schemas or {},
        "constrain": bool(schemas),
        "signals": asdict(SignalSpec(**signals)),
        "capture": capture,
        "window": WINDOW,
        "vocab": read_shape(model.folder, teacher).vocab_size,
        "routes": False,
        "probes": [],
        "student": None,
        "scores": False,
        "end_ids": read_end_ids(model.folder, teacher),
        "spool": str(spool),
        "replica": 0,
        "cores": [],
    }
