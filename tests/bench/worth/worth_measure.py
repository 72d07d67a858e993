"""What is measured of a student: KL to its teacher over the whole vocabulary, calibration, how often it is right."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factory.dataset.ledger import read_ledger
from factory.dataset.shards import read_batches, shard_path

BINS = 15


def log_probabilities(model: Any, row: Any) -> Tensor:
    """What a model says at every completion token of a row, float32 [T, V]."""
    tokens = len(row.completion_token_ids)
    ids = torch.tensor([[*row.prompt_token_ids.tolist(), *row.completion_token_ids.tolist()]])
    with torch.no_grad():
        # the last position predicts what comes after the row
        return model(ids, use_cache=False, logits_to_keep=tokens + 1).logits[0, :-1].float().log_softmax(-1)


def compare(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Means over all tokens of (teacher's, student's) log-probabilities [T, V], in nats or shares.

    `kl`: forward KL over the whole vocabulary. `confidence` is what the student gives its likeliest id, `right` what
    the teacher gives that id, which is how often it would be the teacher's next token; `calibration` is their mean
    distance over BINS equal ranges of confidence (expected calibration error, Guo et al. 2017).
    """
    kls, sure, right = [], [], []
    for log_p, log_q in pairs:
        kls.append((log_p.exp() * (log_p - log_q)).sum(-1))
        best, ids = log_q.max(-1)
        sure.append(best.exp())
        right.append(log_p.gather(-1, ids[:, None])[:, 0].exp())
    kl, confidence, share = torch.cat(kls), torch.cat(sure), torch.cat(right)
    return {
        "kl": float(kl.mean()),
        "calibration": calibration_error(confidence, share),
        "confidence": float(confidence.mean()),
        "right": float(share.mean()),
        "tokens": len(kl),
    }


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Mean distance of confidence and share of right ones, over ranges of confidence, weighted by their tokens."""
    places = (confidence * BINS).long().clamp_max(BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).scatter_add(0, places, (confidence - right).double())
    return float(gaps.abs().sum() / len(confidence))


def measure(student: Any, rows: Sequence[Any], said: Sequence[Tensor]) -> dict[str, float]:
    """`compare` over these rows; `said` is what the teacher says of each."""
    return compare((log_p, log_probabilities(student, row)) for row, log_p in zip(rows, said, strict=True))


def count_passes(out: Path) -> dict[str, list[int]]:
    """Of a finished dataset: by task and level, how many answers passed its gate, and how many were asked for."""
    found: dict[str, list[int]] = {}
    for cell, passed in _outcomes(out):
        counts = found.setdefault(cell, [0, 0])
        counts[0] += passed
        counts[1] += 1
    return dict(sorted(found.items()))


def _outcomes(out: Path) -> Iterator[tuple[str, bool]]:
    for shard in sorted(read_ledger(out).entries):
        for folder in ("data", "rejected"):
            for batch in read_batches(out / shard_path(folder, shard), ["task", "level"]):
                yield from ((f"{row['task']}/{row['level']}", folder == "data") for row in batch.to_pylist())
