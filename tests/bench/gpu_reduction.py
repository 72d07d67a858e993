"""What capture costs a step of a GPU: the reduction, the copies to pinned memory, and hidden states; correctness first.

    python tests/bench/gpu_reduction.py            on a GPU; also runs on a processor, with fewer rows
    TRITON_INTERPRET=1 python tests/bench/gpu_reduction.py     the kernel too, without a GPU: its numbers, not its times

Needs this folder's repository, PyTorch, NumPy and, for the fused reduction, Triton; no vLLM. Ends within five minutes.
Beside each time stands its share of a decode step of an 8B model, 12 to 20 ms; a synthetic step runs beside the copies.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from factory.signals import SignalSpec
from factory.teachers.engine.copies import Copies, SideStream
from factory.teachers.engine.distribution import Distribution, Workspace, split_rows
from factory.teachers.engine.pages import Pages

VOCAB = 151_936
STEP_MS = (12.0, 20.0)  # a decode step of an 8B model
ENDS_AFTER_S = 280.0
LAYERS, HIDDEN = 4, 4096


@dataclass(frozen=True, slots=True)
class Bench:
    """Where it runs and how often; `device` "cuda" or "cpu"."""

    device: torch.device
    rows: int
    rounds: int
    ends: float

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def time_ms(self, work: Callable[[], Any]) -> dict[str, float]:
        """Median and spread of several rounds of a few calls each, in milliseconds a call."""
        calls = 10 if self.on_gpu else 1
        for _ in range(3 if self.on_gpu else 1):
            work()
        found = []
        for _ in range(self.rounds):
            self.wait()
            began = time.perf_counter()
            for _ in range(calls):
                work()
            self.wait()
            found.append((time.perf_counter() - began) / calls * 1e3)
            if time.monotonic() > self.ends:
                break
        return {"median_ms": statistics.median(found), "least_ms": min(found), "most_ms": max(found)}


def open_bench() -> Bench:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    return Bench(device, 256 if on_gpu else 8, 15 if on_gpu else 3, time.monotonic() + ENDS_AFTER_S)


def find_fused(bench: Bench) -> Any:
    """The fused reduction, where Triton can run it here."""
    if not bench.on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    try:
        from factory.teachers.engine.fused import FusedDistribution
    except ImportError:
        return None
    return FusedDistribution


def draw_logits(bench: Bench, seed: int) -> torch.Tensor:
    """[B, V] bfloat16, spread like those of a model that is fairly sure."""
    draw = torch.Generator(bench.device).manual_seed(seed)
    shape = (bench.rows, VOCAB)
    return (torch.randn(shape, generator=draw, device=bench.device) * 3).to(torch.bfloat16)


def check(bench: Bench, reduction: Any, k: int) -> None:
    """Every number of a reduction against float64 over the whole vocabulary. Raises AssertionError."""
    logits = draw_logits(bench, 7)[: 32 if bench.on_gpu else 2]
    exact = torch.log_softmax(logits.double(), -1).cpu().numpy()
    sampled = torch.arange(len(logits), device=bench.device) * 17
    rows = reduction(logits, SignalSpec(top_k=k), Workspace()).rows(sampled)
    kept = split_rows(rows, k)
    ids = kept["topk_ids_TK"].astype(np.int64)
    found = np.take_along_axis(exact, ids, 1)
    np.testing.assert_allclose(found, -np.sort(-exact, 1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(rows[:, 3 : 3 + k], found, atol=1e-4)
    np.testing.assert_allclose(kept["sampled_T"], exact[np.arange(len(exact)), sampled.cpu().numpy()], atol=1e-4)
    np.testing.assert_allclose(kept["entropy_T"], -(np.exp(exact) * exact).sum(1), atol=1e-4)
    outside = np.exp(exact)
    np.put_along_axis(outside, ids, 0.0, 1)
    np.testing.assert_allclose(kept["tail_T"], np.log(outside.sum(1)), atol=1e-4)


def tell(name: str, figures: dict[str, float], shares: bool) -> dict[str, Any]:
    median = figures["median_ms"]
    share = f"  {median / STEP_MS[1]:7.1%} to {median / STEP_MS[0]:.1%} of a step" if shares else ""
    print(f"  {name:<58}{median:10.3f} ms ({figures['least_ms']:.3f} to {figures['most_ms']:.3f}){share}", flush=True)
    return {"what": name} | figures


def time_reductions(bench: Bench, fused: Any) -> list[dict[str, Any]]:
    told = []
    for k in (20, 64):
        for name, reduction in (("plain tensors", Distribution), ("fused", fused)):
            if reduction is None:
                continue
            check(bench, reduction, k)
            # other data from call to call: a branch that is always taken alike looks faster than it is
            inputs, workspace = [draw_logits(bench, seed) for seed in range(4 if bench.on_gpu else 2)], Workspace()
            sampled = torch.zeros(bench.rows, dtype=torch.long, device=bench.device)
            turn = iter(range(1 << 30))

            def reduce(made: Any = reduction, k: int = k, args: Any = (inputs, workspace, sampled, turn)) -> None:
                logits, memory, token, count = args
                made(logits[next(count) % len(logits)], SignalSpec(top_k=k), memory).pack(token)

            shape = f"[{bench.rows}, {VOCAB}] bfloat16, k = {k}"
            told.append(tell(f"reduction, {name}, {shape}", bench.time_ms(reduce), bench.on_gpu))
    return told


def time_copies(bench: Bench) -> list[dict[str, Any]]:
    """A synthetic step alone, and with each way of copying beside it: what a way adds is what it costs."""
    size = 4096 if bench.on_gpu else 512
    weights = torch.randn((size, size), device=bench.device).to(torch.bfloat16 if bench.on_gpu else torch.float32)
    per_step = 1
    if bench.on_gpu:  # as many products as take about 12 ms
        alone = bench.time_ms(lambda: weights @ weights)["median_ms"]
        per_step = max(1, round(STEP_MS[0] / alone))

    def step() -> None:
        for _ in range(per_step):
            torch.mm(weights, weights)

    packed = torch.randn((bench.rows, 3 + 2 * 64), device=bench.device)
    states = torch.randn((bench.rows, LAYERS * HIDDEN), device=bench.device).to(torch.bfloat16).view(torch.int16)
    slots = np.arange(bench.rows)
    told = [tell("a synthetic step", bench.time_ms(step), False)]
    for what, rows, dtype, blank in (
        ("distributions, k = 64", packed, np.float32, np.nan),
        (f"hidden states, {LAYERS} layers of {HIDDEN}", states, np.uint16, 0),
    ):
        lanes = {"a copy that waits": None} | (
            {"pinned, on a side stream": SideStream(bench.device)} if bench.on_gpu else {}
        )
        for way, lane in lanes.items():
            copies, pages, count = Copies(lane), Pages(rows.shape[1], dtype, blank), iter(range(1 << 30))

            def both(rows: Any = rows, copies: Any = copies, pages: Any = pages, count: Any = count) -> None:
                step()
                # the same few positions again and again, so the pages do not grow
                copies.send(rows.clone(), pages, slots, np.full(len(slots), next(count) % 32))

            told.append(tell(f"a step with {what}: {way}", bench.time_ms(both), False))
            for slot in slots:
                copies.finish(int(slot), {pages: 32})
            last = pages.take(0, 1)
            assert (last == rows[:1].cpu().numpy().view(last.dtype)).all(), (
                "the copied row is not the one that was made"
            )
    return told


def main() -> None:
    bench = open_bench()
    fused = find_fused(bench)
    name = torch.cuda.get_device_name(bench.device) if bench.on_gpu else "a processor"
    print(f"on {name}, PyTorch {torch.__version__}; the fused reduction {'runs' if fused else 'cannot run here'}")
    if not bench.on_gpu:
        print("no GPU: these times say nothing about one; under the interpreter the kernel's say nothing at all")
    with torch.inference_mode():
        told = time_reductions(bench, fused) + time_copies(bench)
    print(json.dumps({"device": name, "torch": torch.__version__, "figures": told}))


if __name__ == "__main__":
    main()
