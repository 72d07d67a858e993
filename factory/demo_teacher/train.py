"""Train the demo teacher: `python -m factory.demo_teacher.train OUT`, and the same again to go on where it was cut off.

A Qwen3 of about three million parameters learns to continue rendered prompts of the built-in tasks with their reference
reasoning and answer. Plain PyTorch and transformers; the loss covers the completion only. Everything a step needs
follows from its number, so a run that was cut off goes on from its last checkpoint as if nothing had happened.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon
from transformers import AutoTokenizer

from factory.dataset.manifest import find_changes
from factory.dataset.shards import sha256_digest
from factory.demo_teacher.card import WEIGHTS
from factory.demo_teacher.corpus import Corpus, encode, texts
from factory.demo_teacher.network import begin_from, export, new_model
from factory.demo_teacher.recipe import TASK_WEIGHTS, TASKS, Recipe, draw_step, draw_tokenizer_examples
from factory.demo_teacher.tokenizer import PIECES, train_tokenizer
from factory.errors import FactoryError, TeacherError
from factory.terminal import report

CHECKPOINT_STEPS = 100
# memory and padding; the gradient is the same but for rounding
MICROBATCH_TOKENS = 4096
RECIPE, LOG, CHECKPOINT, MODEL = "recipe.json", "training.jsonl", "checkpoint.pt", "model"


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [B, T], padded at the end, and the target of each position [B, T]: -100 where there is no loss."""

    ids: torch.Tensor
    targets: torch.Tensor


def token_weights(targets: torch.Tensor) -> torch.Tensor:
    """What each of the N positions with a loss of `targets` [B, T] weighs [N]: the root of its row's count, inverted.

    Between a mean over tokens, where a day's plan of 900 weighs as twenty remembered facts, and one over rows, where
    its tokens would hardly be learnt.
    """
    chosen = targets != -100
    return chosen.sum(1, keepdim=True).rsqrt().expand_as(targets)[chosen]


class Trainer:
    """Model, optimizers and the place reached. `compiled` only decides how fast a step is, once it is compiled."""

    def __init__(
        self, out: Path, recipe: Recipe, device: str, compiled: bool = True, start: Path | None = None
    ) -> None:
        self.out, self.recipe, self.device, self.start = out, recipe, device, start
        self.corpus = Corpus()
        self._require_same_recipe()
        self.tokenizer = self._open_tokenizer()
        torch.manual_seed(0)
        self.model = new_model(self.tokenizer, recipe.model)
        if start is not None:
            begin_from(self.model, self.tokenizer, start)
        self.model.to(device)
        self.forward = torch.compile(self.model.model, dynamic=True) if compiled else self.model.model
        # Muon is for matrices inside the network: embeddings (the tied head with them) and norms go to AdamW
        hidden = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        rate = recipe.learning_rate
        self.optimizers = [
            Muon(hidden, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        if (out / CHECKPOINT).is_file():
            self.load_checkpoint()

    def _require_same_recipe(self) -> None:
        """Keep the recipe in OUT, or hold it against the one that is there. Raises TeacherError."""
        recipe = asdict(self.recipe) | {"tasks": TASK_WEIGHTS, "pieces": PIECES, "examples": self.corpus.digest()}
        recipe["start"] = self.start and sha256_digest(self.start / WEIGHTS)
        # as it reads back: tuples have become lists
        recipe = json.loads(json.dumps(recipe))
        path = self.out / RECIPE
        self.out.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            # how long it goes on may be thought better of while it does: only what is still to come hangs on it
            before = json.loads(path.read_text(encoding="utf-8")) | {"steps": recipe["steps"]}
            changes = "; ".join(find_changes(before, recipe))
            if changes:
                raise TeacherError(f"{self.out}: trained by another recipe ({changes}); remove it or name another OUT")
            path.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        elif any((self.out / name).exists() for name in (CHECKPOINT, "tokenizer.json")):
            raise TeacherError(f"{self.out}: has a model but no {RECIPE}; remove it or name another OUT")
        else:
            path.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")

    def _open_tokenizer(self) -> Any:
        if (self.out / "tokenizer.json").is_file():
            return AutoTokenizer.from_pretrained(self.out)
        draws = draw_tokenizer_examples(self.recipe, self.corpus.levels)
        tokenizer = train_tokenizer(texts(self.corpus.examples(draws)), self.recipe.model["vocab_size"])
        tokenizer.save_pretrained(self.out)
        return tokenizer

    def run(self) -> None:
        """All steps that are left; a checkpoint now and then, the finished model at the end."""
        while self.step < self.recipe.steps:
            began = time.monotonic()
            loss, count = self.train_step()
            self.tokens += count
            self.seconds += time.monotonic() - began
            last = self.step == self.recipe.steps
            if self.step % 10 == 0:
                self._log({"loss": round(loss, 4)})
            if self.step % self.recipe.validation_steps == 0 or last:
                self._log({"validation": self.validate()})
            if self.step % CHECKPOINT_STEPS == 0 or last:
                self.save_checkpoint()
        export(self.model, self.tokenizer, self.recipe.model, self.out / MODEL)
        shutil.copyfile(self.out / LOG, self.out / MODEL / LOG)

    def train_step(self) -> tuple[float, int]:
        """One step: its mean loss a token, and the tokens it took, padding included."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate_at(self.step)
        batches = self._batches()
        # over the whole step, so that how it is cut into batches does not weigh tokens differently
        weights = sum(float(token_weights(b.targets).sum()) for b in batches)
        total = 0.0
        for batch in batches:
            loss = self._loss(batch) / weights
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total, sum(b.ids.numel() for b in batches)

    def _batches(self) -> list[Batch]:
        """The examples of this step, short ones together."""
        examples = self.corpus.examples(draw_step(self.recipe, self.step, self.corpus.levels))
        with_system = self.recipe.has_system(self.step)
        rows = [encode(self.tokenizer, example, with_system) for example in examples]
        batches: list[Batch] = []
        group: list[tuple[list[int], int]] = []
        for row in sorted(rows, key=lambda row: len(row[0])):
            if group and len(row[0]) * (len(group) + 1) > MICROBATCH_TOKENS:
                batches.append(self._pad(group))
                group = []
            group.append(row)
        return [*batches, self._pad(group)]

    def _pad(self, rows: list[tuple[list[int], int]]) -> Batch:
        longest = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
        targets = torch.full_like(ids, -100)
        for row, (tokens, prompt) in enumerate(rows):
            # the last token of the prompt predicts the first of the completion
            targets[row, prompt - 1 : len(tokens) - 1] = ids[row, prompt : len(tokens)]
        return Batch(ids.to(self.device), targets.to(self.device))

    def _logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, V] and targets [N] of the positions with a loss."""
        with torch.autocast(self.device, dtype=torch.bfloat16):
            states = self.forward(input_ids=batch.ids, use_cache=False).last_hidden_state
            # the head is the dearest layer of a small model: it runs where there is a loss, nowhere else
            chosen = batch.targets != -100
            return self.model.lm_head(states[chosen]).float(), batch.targets[chosen]

    def _loss(self, batch: Batch) -> torch.Tensor:
        logits, targets = self._logits(batch)
        return (cross_entropy(logits, targets, reduction="none") * token_weights(batch.targets)).sum()

    def validate(self) -> dict[str, list[float]]:
        """For each task and level: mean loss, and the share of completions whose every token is the likeliest one."""
        cells = [(task, level) for task in TASKS for level in self.corpus.levels[task]]
        with torch.no_grad():
            return {f"{task}/{level}": self._validate_cell(task, level) for task, level in cells}

    def _validate_cell(self, task: str, level: str) -> list[float]:
        with_system = self.recipe.has_system(self.step)
        losses, counts, right = 0.0, 0, 0
        for number in range(self.recipe.validation_examples):
            example = self.corpus.held_out(task, level, number)
            logits, targets = self._logits(self._pad([encode(self.tokenizer, example, with_system)]))
            losses += float(cross_entropy(logits, targets, reduction="sum"))
            counts += len(targets)
            right += bool((logits.argmax(-1) == targets).all())
        return [round(losses / counts, 4), round(right / self.recipe.validation_examples, 3)]

    def _log(self, values: dict[str, Any]) -> None:
        line = json.dumps({"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds), **values})
        with (self.out / LOG).open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, flush=True)

    def save_checkpoint(self) -> None:
        """Everything the same command needs to go on, replaced in one step."""
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        temporary = self.out / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(self.out / CHECKPOINT)

    def load_checkpoint(self) -> None:
        """Go on from the checkpoint in OUT; what the log tells of later steps is forgotten."""
        state = torch.load(self.out / CHECKPOINT, map_location=self.device, weights_only=True)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.model.load_state_dict(state["model"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        lines = (self.out / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
        # a run that was cut off after its checkpoint has told of steps that are now taken once more
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        (self.out / LOG).write_text("".join(kept), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Command line: exit code 0, or 2 and one line."""
    parser = argparse.ArgumentParser(description="Train the demo teacher, or go on where OUT was left.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for checkpoint, log and the finished model/")
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="default: %(default)s")
    parser.add_argument("--start", type=Path, metavar="MODEL", help="begin with the weights of an earlier one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="begin at once, with slower steps")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps: must be at least 1, got {options.steps}")
    try:
        Trainer(options.out, Recipe(steps=options.steps), options.device, not options.no_compile, options.start).run()
    except FactoryError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
