"""Batches: each has something to learn from, so no loss over it is NaN, wherever its rows are cut."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import DatasetError
from factory.load import Row, collate

DOCS = (Path(__file__).parents[2] / "docs/dataset-format.md").read_text(encoding="utf-8")
VOCABULARY = 50


def documented_loss() -> Any:
    names: dict[str, Any] = {"torch": torch}
    (source,) = re.findall(r"^def distillation_loss.*?(?=\n```)", DOCS, re.DOTALL | re.MULTILINE)
    exec(source, names)
    return names["distillation_loss"]


def make_row(prompt: int, completion: int, kept: int, seed: int) -> Row:
    """A row of which the first `kept` completion tokens have distributions, some of them with nothing left outside."""
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(VOCABULARY)[:3] for _ in range(completion)], np.int32).reshape(completion, 3)
    logprobs = np.log(rng.dirichlet(np.ones(4), completion)).astype(np.float32)
    ids[kept:] = -1
    logprobs[kept:] = [-np.inf, -np.inf, -np.inf, 0]
    logprobs[: kept // 2, 3] = -np.inf
    return Row(
        columns={"id": f"row{seed}"},
        prompt_token_ids=np.arange(prompt, dtype=np.int32),
        completion_token_ids=np.arange(completion, dtype=np.int32),
        topk_ids=ids,
        topk_logprobs=logprobs[:, :3],
        tail_logprobs=logprobs[:, 3],
    )


ROWS = st.lists(
    st.builds(make_row, st.integers(1, 9), st.integers(0, 6), st.integers(0, 6), st.integers(0, 99)),
    min_size=1,
    max_size=4,
)


@given(rows=ROWS, max_length=st.none() | st.integers(1, 14))
def test_every_batch_that_is_given_has_finite_losses_and_gradients(rows: list[Row], max_length: int | None) -> None:
    fit = [place for place, row in enumerate(rows) if row.fits(max_length or 100)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if not fit:
            hint = "leave" if max_length is None else "raise max_length, or leave"
            with pytest.raises(DatasetError, match=rf"no completion token.*; {hint} such rows out"):
                collate(rows, 0, max_length=max_length)
            return
        batch = collate(rows, 0, max_length=max_length)
    assert batch["row"].tolist() == fit
    assert len(told) == (len(fit) < len(rows))
    logits = torch.randn(*batch["input_ids"].shape, VOCABULARY, requires_grad=True)
    flat = logits[:, :-1].reshape(-1, VOCABULARY)
    cross_entropy = torch.nn.functional.cross_entropy(flat, batch["labels"][:, 1:].reshape(-1))
    loss = documented_loss()(logits, batch) + cross_entropy
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_row_that_is_left_out_is_named_with_the_length_of_its_prompt() -> None:
    rows = [make_row(8, 2, 2, 1), make_row(2, 2, 2, 2)]
    with pytest.warns(UserWarning, match=r"left out: 1 of 2 rows .* max_length = 8: row1 \(prompt of 8\); raise"):
        batch = collate(rows, 0, max_length=8)
    assert batch["input_ids"].shape == (1, 4)
    assert batch["row"].tolist() == [1]
