"""The fused reduction against the plain one, under Triton's interpreter where no GPU is at hand.

`make integration-v2` runs it; anywhere else it is skipped with its reason.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from factory.signals import SignalSpec
from factory.teachers.engine.distribution import Distribution, Workspace, split_rows

pytestmark = pytest.mark.runner_v2
pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

from factory.teachers.engine.fused import FusedDistribution  # noqa: E402

PLAIN = SignalSpec(top_k=5)


def draw_logits(seed: int, rows: int, vocab: int, spread: float = 3.0) -> torch.Tensor:
    return (torch.randn((rows, vocab), generator=torch.Generator().manual_seed(seed)) * spread).to(DEVICE)


def both(logits: torch.Tensor, signals: SignalSpec, sampled: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Packed rows of both reductions; the logits are changed after they were reduced, as a sampler does."""
    plain = Distribution(logits, signals, Workspace())
    fused = FusedDistribution(logits, signals, Workspace())
    logits.fill_(7.0)
    return fused.rows(sampled), plain.rows(sampled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("vocab", "k"), [(70, 5), (2048, 20), (4096 + 7, 64), (32_768, 64), (151_936, 20)])
def test_every_number_is_that_of_the_plain_reduction(vocab: int, k: int, dtype: torch.dtype) -> None:
    logits = draw_logits(vocab + k, 3, vocab).to(dtype)
    exact = torch.log_softmax(logits.double(), -1).cpu().numpy()
    sampled = torch.tensor([0, vocab // 2, vocab - 1], device=DEVICE)
    fused, plain = both(logits, replace(PLAIN, top_k=k), sampled)
    mine, other = split_rows(fused, k), split_rows(plain, k)
    np.testing.assert_allclose(mine["sampled_T"], exact[np.arange(3), sampled.cpu().numpy()], atol=2e-6, rtol=2e-6)
    for name in ("sampled_T", "tail_T", "entropy_T"):
        np.testing.assert_allclose(mine[name], other[name], atol=1e-5, rtol=1e-5, err_msg=name)
    # ids of equal logits may change places, and at the end stand for each other
    kept = np.take_along_axis(exact, mine["topk_ids_TK"].astype(np.int64), 1)
    np.testing.assert_allclose(kept, -np.sort(-exact, 1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(fused[:, 3 : 3 + k], kept, atol=1e-5)
    assert all(len(set(ids)) == k for ids in mine["topk_ids_TK"].tolist())


@pytest.mark.parametrize("spread", [0.0, 60.0])
def test_flat_and_peaked_rows_are_exact(spread: float) -> None:
    logits = draw_logits(1, 4, 3000, spread)
    exact = torch.log_softmax(logits.double(), -1).cpu().numpy()
    rows, _ = both(logits, PLAIN, torch.tensor([0, 1, 2, 2999], device=DEVICE))
    outside = np.exp(exact)
    np.put_along_axis(outside, split_rows(rows, 5)["topk_ids_TK"].astype(np.int64), 0.0, 1)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(rows[:, 1], np.log(outside.sum(1)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(rows[:, 2], -(np.exp(exact) * exact).sum(1), rtol=1e-4, atol=1e-5)


def test_ids_that_the_model_rules_out_do_not_spoil_a_row() -> None:
    logits = draw_logits(2, 2, 400)
    logits[:, 7:] = -torch.inf
    exact = torch.log_softmax(logits[:, :7].double(), -1).cpu().numpy()
    rows, plain = both(logits, replace(PLAIN, top_k=9), torch.tensor([3, 399], device=DEVICE))
    assert not np.isnan(rows).any()
    assert rows[1, 0] == pytest.approx(-1e30)
    np.testing.assert_allclose(rows[:, 2], -(np.exp(exact) * exact).sum(1), atol=1e-5)
    np.testing.assert_allclose(rows[:, 1], plain[:, 1])


def test_a_logit_that_is_no_number_shows() -> None:
    logits = draw_logits(3, 2, 5000)
    logits[1, 4321] = torch.nan
    rows, _ = both(logits, PLAIN, torch.tensor([0, 0], device=DEVICE))
    assert not np.isnan(rows[0]).any()
    assert np.isnan(rows[1, 2])


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.999])
def test_a_mass_keeps_as_many_ids_as_the_plain_reduction(top_p: float) -> None:
    logits, signals = draw_logits(6, 6, 2000, 2.5), SignalSpec(top_k=40, keep="top_p", top_p=top_p)
    fused, plain = both(logits, signals, torch.zeros(6, dtype=torch.long, device=DEVICE))
    assert np.array_equal(split_rows(fused, 40)["topk_ids_TK"], split_rows(plain, 40)["topk_ids_TK"])
    np.testing.assert_allclose(fused[:, :3], plain[:, :3], atol=1e-5)


def test_rows_that_lie_apart_in_memory_are_read_where_they_are() -> None:
    wide = draw_logits(8, 4, 5000)
    fused, plain = both(wide[::2, :4321], PLAIN, torch.tensor([1, 4320], device=DEVICE))
    np.testing.assert_allclose(fused[:, :8], plain[:, :8], atol=1e-5)


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from factory.teachers.engine.fused import _reduce_blocks

for kind in ("*bf16", "*fp16", "*fp32"):
    types = dict(logits=kind, row_stride="i32", copy=kind, copy_stride="i32", maxima="*fp32", sums="*fp32")
    types |= dict(products="*fp32", vocab="i32", blocks="i32", COUNT="constexpr", SIZE="constexpr", LEAST="constexpr")
    source = ASTSource(fn=_reduce_blocks, signature=types, constexprs={"COUNT": 64, "SIZE": 64, "LEAST": -1e30})
    for generation in (80, 90):
        made = triton.compile(source, target=GPUTarget("cuda", generation, 32))
        print(kind, generation, len(made.asm["cubin"]))
"""


def test_the_kernel_compiles_for_two_generations_of_gpus(tmp_path: Path) -> None:
    """To machine code, which needs no GPU; that it runs there is not shown by this."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    told = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr[-2000:]
    assert len(told.stdout.splitlines()) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_id_is_looked_up_as_the_plain_reduction_does(dtype: torch.dtype) -> None:
    """After a sampler has written into the logits, and in the last block, which is not whole."""
    logits = draw_logits(8, 4, 4096 + 7).to(dtype)
    logits[1, 9] = -torch.inf
    exact = torch.log_softmax(logits.double(), -1)
    plain = Distribution(logits, PLAIN, Workspace())
    fused = FusedDistribution(logits, PLAIN, Workspace())
    logits.fill_(7.0)
    row, ids = (torch.tensor(values, device=DEVICE) for values in ([0, 3, 3, 2, 1], [0, 4102, 4096, 77, 9]))
    np.testing.assert_allclose(fused.at(row, ids)[:4].cpu(), exact[row, ids][:4].cpu(), atol=1e-5)
    np.testing.assert_allclose(fused.at(row, ids).cpu(), plain.at(row, ids).cpu(), atol=1e-5)
    assert fused.at(row, ids)[4] <= -1e29
