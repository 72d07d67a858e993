"""What is kept of candidates: each id's number beside its token, however rows are batched, cut and mixed."""

import numpy as np
import pytest
import torch

from factory.signals import Array, SignalSpec
from factory.teachers.engine.batch import Named, named_of
from factory.teachers.engine.candidates import CandidateKeeper, as_float16
from factory.teachers.engine.copies import open_copies
from factory.teachers.engine.distribution import Distribution, Workspace, fractions

VOCAB = 300


def reduce(logits: torch.Tensor, keep: str = "top_k") -> Distribution:
    signals = SignalSpec(top_k=4, keep=keep, top_p=0.5)  # type: ignore[arg-type]
    zeros = np.zeros(len(logits), np.int64)
    return Distribution(logits, signals, Workspace(), fractions(zeros, zeros) if keep == "sampled" else None)


@pytest.mark.parametrize("keep", ["top_k", "top_p", "sampled"])
def test_any_id_of_any_row_can_be_looked_up(keep: str) -> None:
    logits = torch.randn((6, VOCAB), generator=torch.Generator().manual_seed(1)) * 5
    logits[2, 7] = -torch.inf
    made = reduce(logits, keep)
    # packed first, as capture does: nothing of that may change what is looked up
    made.rows(torch.arange(6))
    row, ids = torch.tensor([0, 5, 5, 2]), torch.tensor([0, 299, 3, 7])
    expected = torch.log_softmax(logits.double(), -1)[row, ids].numpy()
    np.testing.assert_allclose(made.at(row, ids)[:3], expected[:3], atol=1e-5)
    assert made.at(row, ids)[3] <= -1e30
    assert np.isneginf(as_float16(made.at(row, ids).numpy())[3])


def test_numbers_of_many_requests_come_back_whole_from_steps_that_mix_them() -> None:
    """Three requests in five batches, in an order of no request's own; one of them names nothing."""
    rng, keeper, copies = np.random.default_rng(2), CandidateKeeper(), open_copies(torch.device("cpu"))
    lengths, slots = [40, 17, 25], np.array([5, 0, 3])
    logits = [torch.from_numpy(rng.normal(0, 4, (length, VOCAB)).astype(np.float32)) for length in lengths]
    named: list[Named | None] = []
    for length in lengths:
        counts = rng.integers(0, 9, length)
        ids = np.concatenate([rng.choice(VOCAB, count, replace=False) for count in counts])
        named.append(named_of(ids.tolist(), counts.tolist()))
    named[1] = None
    places = [(request, token) for request, length in enumerate(lengths) for token in range(-3, length)]
    order = rng.permutation(len(places))
    for part in np.array_split(order, 5):
        request_N, index_N = (np.array([places[at][axis] for at in part]) for axis in (0, 1))
        rows = torch.stack([logits[r][max(t, 0)] for r, t in zip(request_N, index_N, strict=True)])
        keeper.keep(reduce(rows), named, request_N, slots[request_N], index_N, copies)
    for request, of in enumerate(named):
        if of is None:
            continue
        token_M = np.repeat(np.arange(lengths[request]), np.diff(of.ends_T))
        expected: Array = torch.log_softmax(logits[request].double(), -1)[token_M, of.ids_M].numpy()
        found = keeper.take(int(slots[request]), of)["candidates_M"]
        assert len(found) == len(of.ids_M)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert keeper.take(0, named_of([1], [1]))["candidates_M"].size == 0


def test_a_number_that_never_came_is_no_number() -> None:
    keeper, copies = CandidateKeeper(), open_copies(torch.device("cpu"))
    of = named_of([1, 2, 3], [1, 2])
    keeper.keep(reduce(torch.zeros(1, VOCAB)), [of], np.array([0]), np.array([4]), np.array([1]), copies)
    assert np.isnan(keeper.take(4, of)["candidates_M"]).tolist() == [True, False, False]
