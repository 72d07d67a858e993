"""Datasets for reports: of outcomes made by hand, with texts and numbers that a test chooses."""

import base64
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from dataset_support import held_ledger, make_prompt

from factory.dataset.entries import summarize_shard
from factory.dataset.shards import write_shard
from factory.records import Generation, Measures, Outcome, Record, Rejection
from factory.signals import Logprobs, SignalSpec
from factory.teachers.scripted import decode

SIGNALS = SignalSpec(top_k=3, rejected_measures=True)
MANIFEST = {
    "job": {"teacher": {"backend": "scripted", "model": "scripted"}},
    "teacher": {"backend": "scripted", "model": "scripted", "details": {}},
    "tasks": {"adding": {"gate": "check", "version": "1.0.0"}},
}


def make_generation(number: int, text: str, answer_start: int = 2, surprise: float = 0.5) -> Generation:
    """A completion whose ids are the text's bytes; the likeliest id is the sampled one, with the surprise given."""
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    tokens = len(ids)
    first = np.float16(-surprise)
    logprobs = Logprobs(
        sampled_T=np.full(tokens, -surprise, np.float32),
        topk_ids_TK=np.stack([ids, (ids + 1) % 256, (ids + 2) % 256], 1),
        topk_TK=np.tile(np.array([first, -4, -5], np.float16), (tokens, 1)),
        tail_T=np.log(np.full(tokens, max(1 - np.exp(first) - np.exp(-4) - np.exp(-5), 1e-6), np.float32)),
        entropy_T=np.full(tokens, surprise, np.float32),
    )
    return Generation(
        prompt_id=f"id{number}",
        attempt=0,
        text=decode(ids.tolist()),
        reasoning=text[:answer_start],
        answer_text=text[answer_start:],
        prompt_token_ids=np.array([7, number % 200], np.int32),
        completion_token_ids=ids,
        answer_start=min(answer_start, tokens),
        finish_reason="stop",
        logprobs=logprobs,
    )


def make_record(number: int, text: str = "ab{}", confidence: float = 0.9, **changed: Any) -> Record:
    measures = Measures(0.5, 0.9, 0.5, confidence, 2, difficulty=0.1 * (number % 9))
    prompt = make_prompt(number, **changed)
    return Record(prompt, make_generation(number, text), "{}", 1.0, measures=measures)


def make_rejection(number: int, text: str = "ab{}", confidence: float = 0.2, **changed: Any) -> Rejection:
    measures = Measures(0.5, 0.9, 0.5, confidence, 2)
    prompt = make_prompt(number, **changed)
    generation = make_generation(number, text)
    return Rejection(prompt, generation, "check", "wrong_total", ("wrong_total: 3",), measures=measures)


def write_dataset(
    out: Path, shards: Sequence[Sequence[Outcome]], planned: int = 0, signals: SignalSpec = SIGNALS, **sections: Any
) -> Path:
    """A dataset of these outcomes, as a run leaves it; `planned` more rows are still to come."""
    rows = sum(map(len, shards))
    plan = {"planned": rows + planned, "shards": len(shards) + (1 if planned else 0), "digest": "d"}
    manifest = MANIFEST | {"signals": asdict(signals)} | sections
    with held_ledger(out, plan, manifest) as ledger:
        for number, outcomes in enumerate(shards):
            placed = [replace(o, prompt=replace(o.prompt, shard=number)) for o in outcomes]
            ledger.commit(summarize_shard(number, placed, write_shard(out, number, placed, signals)))
    return out


def embedded(page: str) -> dict[str, Any]:
    """What the page's scripts are given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    value: dict[str, Any] = json.loads(found[1])
    return value


def unpack(packed: str) -> dict[str, Any]:
    """What the page makes of a packed row."""
    value: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return value
