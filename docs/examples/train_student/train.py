"""Distil a teacher into a small student, from a dataset of the factory: `python train.py DATASET OUT`.

    load_rows -> collate -> student's states -> its head, where a token is learnt -> a loss -> AdamW

Plain PyTorch, to be copied and changed. A loss takes logits [N, V] of the N positions that predict a completion token,
and what the teacher said there (`Targets`), and gives one number a position. `--stages` trains on a curriculum's stages
in their order; `--rounds` lets the student answer, has the teacher score that (`factory score`) and trains on it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from factory.load import LOGPROB_FLOOR, collate, load_rows
from factory.teachers.demo import FOLDER


@dataclass(frozen=True)
class Targets:
    """What is known of N positions: each predicts one completion token. `None` where the dataset has it not."""

    labels: Tensor  # int64 [N], the token that came
    ids: Tensor | None = None  # int64 [N, k], the teacher's kept ids
    logprobs: Tensor | None = None  # float32 [N, k]
    kept: Tensor | None = None  # bool [N, k]: False is filler, where a position has fewer than k
    tail: Tensor | None = None  # float32 [N], log of the mass outside the kept ids
    weights: Tensor | None = None  # float32 [N, k], shares of the draws, with keep = "sampled"
    known: Tensor | None = None  # bool [N]: whether a distribution is kept here (min_entropy, positions)
    states: Tensor | None = None  # float32 [N, H], the teacher's last kept layer


Loss = Callable[[Tensor, Targets], Tensor]


def text(logits: Tensor, t: Targets) -> Tensor:
    """-log q(token): cross entropy on the teacher's own text (sequence-level distillation, Kim and Rush 2016)."""
    return cross_entropy(logits, t.labels, reduction="none")


def topk_tail(logits: Tensor, t: Targets) -> Tensor:
    """sum_k p log(p/q) + P log(P/Q), P and Q being all mass outside the k ids: forward KL of k + 1 outcomes.

    Hinton et al. 2015 over a coarser set of outcomes: never above the KL of the whole vocabulary, and 0 where that is.
    """
    whole = logits.logsumexp(-1)
    log_q = logits.gather(-1, t.ids) - whole[:, None]
    # summed over the others, not taken as one minus the kept ones, which is noise where these are nearly all
    ids = torch.where(t.kept, t.ids, t.ids[:, :1])
    outside = (logits.scatter(-1, ids, float("-inf")).logsumexp(-1) - whole).clamp_min(LOGPROB_FLOOR)
    return (t.logprobs.exp() * (t.logprobs - log_q) * t.kept).sum(-1) + t.tail.exp() * (t.tail - outside)


def topk_renormalised(logits: Tensor, t: Targets) -> Tensor:
    """sum_k p' log(p'/q'), both renormalised over the k ids, as axolotl does: q may leave them unpunished."""
    log_p = t.logprobs.masked_fill(~t.kept, LOGPROB_FLOOR).log_softmax(-1)
    log_q = logits.gather(-1, t.ids).masked_fill(~t.kept, LOGPROB_FLOOR).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def drawn(logits: Tensor, t: Targets) -> Tensor:
    """-sum_k w log q, w being the shares of random draws (keep = "sampled"; arXiv 2503.16870).

    The mean of w is p for every id of the vocabulary, so the mean gradient is that of the whole KL. Its value is
    the cross entropy, which lies above the KL by the teacher's entropy.
    """
    return -(t.weights * logits.log_softmax(-1).gather(-1, t.ids)).sum(-1)


def unsure(logits: Tensor, t: Targets, share: float = 0.2) -> Tensor:
    """`topk_tail` where the student is least sure, 0 elsewhere; scaled so that a mean is over that `share` alone."""
    log_q = logits.detach().log_softmax(-1)
    entropy = -(log_q.exp() * log_q).sum(-1)
    chosen = torch.zeros_like(entropy)
    chosen[entropy.topk(max(1, round(share * len(entropy)))).indices] = 1
    return topk_tail(logits, t) * chosen * len(chosen) / chosen.sum()


def match_states(states: Tensor, t: Targets, bridge: torch.nn.Linear) -> Tensor:
    """|W h - h'|^2 / |h'|^2: the student's state through a linear map (FitNets, Romero et al. 2015)."""
    return (bridge(states) - t.states).square().sum(-1) / t.states.square().sum(-1).clamp_min(1e-6)


LOSSES: dict[str, Loss] = {f.__name__: f for f in (text, topk_tail, topk_renormalised, drawn, unsure)}


def read_targets(batch: dict[str, Tensor]) -> tuple[Tensor, Targets]:
    """Where the positions are, bool [B, S], and what is known of them. Position s predicts the token after it."""
    where = torch.zeros_like(batch["labels"], dtype=torch.bool)
    where[:, :-1] = batch["labels"][:, 1:] != -100
    names = {"ids": "topk_ids", "logprobs": "topk_logprobs", "kept": "topk_kept", "tail": "tail_logprobs"}
    names |= {"weights": "topk_weights", "known": "topk_mask"}
    found = {name: batch[column][where] for name, column in names.items() if column in batch}
    if "hidden_states" in batch:
        found["states"] = batch["hidden_states"][where][:, -1].float()
    return where, Targets(batch["labels"].roll(-1, 1)[where], **found)


def batch_loss(student: Any, batch: dict[str, Tensor], loss: Loss, bridge: torch.nn.Linear | None = None) -> Tensor:
    """The mean over all positions that the loss knows something of."""
    where, targets = read_targets(batch)
    with torch.autocast(student.device.type, dtype=torch.bfloat16):
        # padding stands at the end, where causal attention never looks back at it
        states = student.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        # the head is the dearest layer of a small student: it runs where a token is learnt and nowhere else
        logits = student.lm_head(states[where])
    values = loss(logits.float(), targets)
    if bridge is not None:
        values = values + match_states(states[where].float(), targets, bridge)
    if loss is text or targets.known is None:
        return values.mean()
    return values[targets.known].sum() / targets.known.sum().clamp_min(1)


def batches(lengths: Sequence[int], batch_rows: int, seed: int) -> Iterator[list[int]]:
    """Places of rows without end, each once an epoch; rows of like length together, so that little is padding."""
    rng = np.random.default_rng(seed)
    while True:
        order, groups = rng.permutation(len(lengths)), []
        for first in range(0, len(order), 8 * batch_rows):
            window = sorted(order[first : first + 8 * batch_rows].tolist(), key=lengths.__getitem__)
            groups += [window[at : at + batch_rows] for at in range(0, len(window), batch_rows)]
        yield from (groups[place] for place in rng.permutation(len(groups)))


def train(
    student: Any,
    stages: Sequence[tuple[Any, int]],
    loss: Loss,
    *,
    rate: float = 2e-3,
    batch_rows: int = 16,
    seed: int = 0,
    hidden: bool = False,
    log: Callable[[int, float], None] = lambda step, value: None,
) -> None:
    """Train on each (rows, steps) in turn, with one optimizer: warm-up, then a learning rate that falls to zero."""
    total = sum(steps for _, steps in stages)
    first = stages[0][0][0]
    bridge = torch.nn.Linear(student.config.hidden_size, first.hidden_states.shape[-1]) if hidden else None
    weights = [*student.parameters(), *(bridge.parameters() if bridge else ())]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / 20, (total - n) / total))
    student.train()
    step = 0
    for number, (rows, steps) in enumerate(stages):
        lengths = [len(row.prompt_token_ids) + len(row.completion_token_ids) for row in rows]
        places = batches(lengths, batch_rows, seed + number)
        for _ in range(steps):
            batch = collate([rows[place] for place in next(places)], pad_token_id=student.config.pad_token_id or 0)
            value = batch_loss(student, batch, loss, bridge)
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            falling.step()
            step += 1
            log(step, float(value.detach()))
    student.eval()


def new_student(tokenizer: Any, hidden: int = 128, layers: int = 3, seed: int = 0) -> Any:
    """A Qwen3 with fresh weights and the teacher's vocabulary."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "head_dim": 32}
    sizes |= {"num_attention_heads": hidden // 32, "num_key_value_heads": 1, "max_position_embeddings": 4096}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **ids))


def write_rollouts(student: Any, rows: Sequence[Any], path: Path, *, max_tokens: int = 512, seed: int = 0) -> None:
    """The student's own answers to these rows' prompts, drawn at temperature 1, as transcripts of ids."""
    torch.manual_seed(seed)
    end, pad = student.config.eos_token_id, student.config.pad_token_id
    with path.open("w", encoding="utf-8") as file, torch.no_grad():
        for first in range(0, len(rows), 32):
            prompts = [rows[place].prompt_token_ids.tolist() for place in range(first, min(first + 32, len(rows)))]
            longest = max(map(len, prompts))
            ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
            lengths = torch.tensor([[len(prompt)] for prompt in prompts])
            seen = (torch.arange(longest) >= longest - lengths).long()
            draw = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": max_tokens}
            made = student.generate(ids, attention_mask=seen, pad_token_id=pad, **draw)[:, longest:].tolist()
            for prompt, answer in zip(prompts, made, strict=True):
                answer = answer[: answer.index(end) + 1] if end in answer else answer
                file.write(json.dumps({"prompt_token_ids": prompt, "completion_token_ids": answer}) + "\n")


def score(transcripts: Path, teacher: str, out: Path, top_k: int = 20) -> Any:
    """The teacher's distributions over these transcripts: rows to train on, as those of a run are."""
    job = {"teacher": {"model": teacher}, "signals": {"top_k": top_k}, "transcripts": {"path": str(transcripts)}}
    path = transcripts.with_suffix(".toml")
    path.write_text(tomli_w.dumps({"out": str(out), **job}), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "factory.cli", "score", str(path), "--allow-outside"], check=True)
    return load_rows(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("dataset", help="a directory, or owner/name on the hub")
    parser.add_argument("out", type=Path, help="the trained student's folder")
    parser.add_argument("--teacher", default=FOLDER, help="whose tokenizer it is, and who scores; default: the demo's")
    parser.add_argument("--student", help="a folder or hub id with the teacher's vocabulary; default: a new, small one")
    parser.add_argument("--loss", choices=LOSSES, default="topk_tail")
    parser.add_argument("--hidden", action="store_true", help="match the teacher's last kept layer beside")
    parser.add_argument(
        "--stages", nargs="+", default=["default"], help="stages of `factory curriculum`, in their order"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=0, help="on-policy rounds afterwards, each of as many steps")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.teacher)
    if asked.student:
        student = AutoModelForCausalLM.from_pretrained(asked.student, dtype=torch.float32)
    else:
        student = new_student(tokenizer, seed=asked.seed)
    options = {"seed": asked.seed, "log": lambda step, value: step % 10 or print(f"step {step}: {value:.4f}")}
    stages = [load_rows(asked.dataset, name, join_hidden_states=asked.hidden) for name in asked.stages]
    share = [(rows, asked.steps // len(stages)) for rows in stages]
    train(student, share, LOSSES[asked.loss], hidden=asked.hidden, **options)
    asked.out.mkdir(parents=True, exist_ok=True)
    for number in range(asked.rounds):
        path = asked.out / f"round-{number}.jsonl"
        write_rollouts(student, stages[-1], path, seed=asked.seed + number)
        own = score(path, str(asked.teacher), asked.out / f"round-{number}")
        train(student, [(own, asked.steps)], topk_tail, **options)
    student.save_pretrained(asked.out / "model")
    tokenizer.save_pretrained(asked.out / "model")


if __name__ == "__main__":
    main()
