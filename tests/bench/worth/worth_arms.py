"""The arms of `make worth`: what a student learns from, by which loss. A cell is an arm, so many rows and a seed."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from worth_data import draw_ids, without_taught
from worth_measure import log_probabilities, measure
from worth_settings import ROOT, Scale, Settings

from factory.load import load_rows

sys.path.insert(0, str(ROOT / "docs/examples/train_student"))
train = import_module("train")  # the trainer that people copy is the one that is measured


@dataclass(frozen=True)
class Arm:
    """How a student is trained."""

    loss: str
    told: str  # for the table
    config: str = "data"  # the dataset its rows are read from
    hidden: bool = False
    stages: bool = False
    right: bool = False  # only rows that the task's check found nothing in
    own: bool = False  # the second half of the steps on its own answers


ARMS = {
    "text": Arm("text", "text"),
    "topk_tail": Arm("topk_tail", "top-20, the tail as one bucket"),
    "topk_renormalised": Arm("topk_renormalised", "top-20, renormalised"),
    "drawn": Arm("drawn", "12 random draws", config="draws"),
    "unsure": Arm("unsure", "top-20 at the fifth of positions where the student is least sure"),
    "hidden": Arm("topk_tail", "top-20 and the last hidden state", hidden=True),
    "curriculum": Arm("topk_tail", "top-20, from where the teacher is sure to where it is not", stages=True),
    "text_right": Arm("text", "text, only answers that pass the check", right=True),
    "topk_tail_right": Arm("topk_tail", "top-20, only answers that pass the check", right=True),
    "on_policy": Arm("topk_tail", "top-20, then as many steps on the student's own answers, scored", own=True),
}


@dataclass(frozen=True, order=True)
class Cell:
    """One student."""

    arm: str
    rows: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.rows}-{self.seed}"


def cut_student(teacher: Any, blocks: Sequence[int]) -> Any:
    """A student of the teacher's embeddings and of some of its decoder blocks (from 1), as depth pruning begins."""
    sizes = teacher.config.to_dict() | {"num_hidden_layers": len(blocks), "layer_types": None}
    student = Qwen3ForCausalLM(Qwen3Config(**sizes)).float()
    source = teacher.state_dict()
    names = {name: name for name in source if not name.startswith("model.layers.")}
    for place, block in enumerate(blocks):
        old, new = f"model.layers.{block - 1}.", f"model.layers.{place}."
        names |= {name.replace(old, new): name for name in source if name.startswith(old)}
    student.load_state_dict({new: source[old] for new, old in names.items()})
    return student


class Bench:
    """What all cells of one process share: the teacher, the datasets, the rows to measure on."""

    def __init__(self, work: Path, settings: Settings, scale: Scale) -> None:
        self.work, self.settings, self.scale = work, settings, scale
        self.teacher = AutoModelForCausalLM.from_pretrained(work / "teacher", dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(work / "teacher")
        self.data = load_rows(work / "data")

    @cached_property
    def held_out(self) -> list[Any]:
        rows = list(load_rows(self.work / "held_out"))
        # the pieces of a text are each another "scenario" by their names, and of other topics
        return rows if self.scale.teacher == "real" else without_taught(rows, self.data)

    @cached_property
    def said(self) -> list[Any]:
        """What the teacher says of the held-out rows: 0.6 GB, and two thirds of the time of measuring a student."""
        return [log_probabilities(self.teacher, row) for row in self.held_out]

    def choose(self, cell: Cell) -> list[str] | None:
        """The ids of the rows that a cell learns from; None where there are too few."""
        ids = self.data["id"]
        if ARMS[cell.arm].right:
            ids = [one for one, findings in zip(ids, self.data["findings"], strict=True) if not findings]
        return draw_ids(ids, cell.rows, cell.seed)

    def rows(self, arm: Arm, ids: Sequence[str]) -> Any:
        """These rows, as an arm's dataset has them."""
        rows = load_rows(self.work / arm.config, join_hidden_states=arm.hidden)
        if arm.config == "data" or self.scale.teacher == "real":
            # the same transcripts, scored twice, have the same ids
            places = {one: at for at, one in enumerate(rows["id"])}
        else:
            # a transcript's own id is a content hash; what it came with stands in its scenario
            places = {json.loads(told)["id"]: at for at, told in enumerate(rows["scenario"])}
        return rows.select([places[one] for one in ids])

    def student(self, seed: int) -> Any:
        """Before it has learnt anything."""
        if self.scale.teacher == "real":
            sizes = self.settings.fresh
            return train.new_student(self.tokenizer, sizes.hidden, sizes.layers, seed)
        return cut_student(self.teacher, self.settings.student.blocks)

    def stages(self, ids: Sequence[str]) -> list[Any]:
        """The same rows in the stages of `factory curriculum`."""
        wanted, found = set(ids), []
        for number in (1, 2, 3):
            rows = load_rows(self.work / "data", f"stage-{number}")
            places = [at for at, one in enumerate(rows["id"]) if one in wanted]
            found.append(rows.select(places))
        return [rows for rows in found if len(rows)]

    def run(self, cell: Cell) -> dict[str, Any] | None:
        """Train and measure one student, and leave it in `students/`. None where rows are too few for it."""
        ids = self.choose(cell)
        if ids is None:
            return None
        began, cpu = time.monotonic(), time.process_time()
        arm, student = ARMS[cell.arm], self.student(cell.seed)
        torch.manual_seed(cell.seed)
        self._train(student, arm, cell, ids)
        seconds = {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        found = measure(student, self.held_out, self.said)
        folder = self.work / "students" / cell.name
        # as it runs in an engine; what is measured here is the student before rounding
        student.to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return {"arm": cell.arm, "rows": cell.rows, "seed": cell.seed, "steps": self.scale.steps, **found, **seconds}

    def _train(self, student: Any, arm: Arm, cell: Cell, ids: Sequence[str]) -> None:
        loss, table = train.LOSSES[arm.loss], self.settings.training
        options = {"rate": table.rate, "batch_rows": table.batch_rows, "seed": cell.seed, "hidden": arm.hidden}
        if arm.stages:
            parts = self.stages(ids)
            train.train(student, [(rows, self.scale.steps // len(parts)) for rows in parts], loss, **options)
            return
        rows = self.rows(arm, ids)
        if not arm.own:
            train.train(student, [(rows, self.scale.steps)], loss, **options)
            return
        train.train(student, [(rows, self.scale.steps - self.scale.steps // 2)], loss, **options)
        folder = self.work / "rounds" / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        asked = rows.select(range(min(len(rows), table.rollouts)))
        train.write_rollouts(student, asked, folder / "answers.jsonl", seed=cell.seed)
        own = train.score(folder / "answers.jsonl", str(self.work / "teacher"), folder / "scored")
        train.train(student, [(own, self.scale.steps // 2)], loss, **options)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """One file a cell, whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
