"""The student's trainer: each loss against the KL of the whole vocabulary, value and gradient; what it trains on."""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from factory.load import LOGPROB_FLOOR, Row, collate

FOLDER = Path(__file__).parents[2] / "docs/examples/train_student"
FORMAT = (FOLDER.parents[1] / "dataset-format.md").read_text(encoding="utf-8")
N, V = 40, 12  # positions, ids of the vocabulary

sys.path.insert(0, str(FOLDER))
train = import_module("train")
sys.path.remove(str(FOLDER))


def random_pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    """The student's logits [N, V] and the teacher's log-probabilities [N, V]."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, V, generator=draw, dtype=torch.float64).requires_grad_()
    return logits, (2 * torch.randn(N, V, generator=draw, dtype=torch.float64)).log_softmax(-1)


def keep(log_p: Tensor, k: int) -> Any:
    """What a dataset keeps of these distributions with `top_k = k`."""
    logprobs, ids = log_p.topk(k)
    tail = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1).clamp_min(LOGPROB_FLOOR)
    return train.Targets(ids[:, 0], ids, logprobs, torch.ones_like(ids, dtype=torch.bool), tail)


def whole_kl(logits: Tensor, log_p: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)


def gradient(values: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), logits)[0]


@pytest.mark.parametrize("loss", [train.topk_tail, train.topk_renormalised])
def test_with_all_ids_kept_a_loss_is_the_kl_of_the_whole_vocabulary(loss: Callable[..., Tensor]) -> None:
    logits, log_p = random_pair()
    values, kl = loss(logits, keep(log_p, V)), whole_kl(logits, log_p)
    torch.testing.assert_close(values, kl)
    torch.testing.assert_close(gradient(values, logits), gradient(kl, logits))


def test_with_one_id_outside_the_tail_is_that_id() -> None:
    logits, log_p = random_pair()
    values, kl = train.topk_tail(logits, keep(log_p, V - 1)), whole_kl(logits, log_p)
    torch.testing.assert_close(values, kl)
    torch.testing.assert_close(gradient(values, logits), gradient(kl, logits))


def test_the_tail_as_one_bucket_pulls_its_ids_together_and_never_exceeds_the_whole_kl() -> None:
    logits, log_p = random_pair()
    targets = keep(log_p, 4)
    values = train.topk_tail(logits, targets)
    assert (values <= whole_kl(logits, log_p) + 1e-12).all()
    q, p = logits.softmax(-1), log_p.exp()
    inside = torch.zeros(N, V).scatter(-1, targets.ids, 1) > 0
    share = (p * ~inside).sum(-1, keepdim=True) / (q * ~inside).sum(-1, keepdim=True)
    torch.testing.assert_close(gradient(values, logits), torch.where(inside, q - p, q * (1 - share)))


def test_renormalised_over_the_kept_ids_a_student_may_leave_them_unpunished() -> None:
    logits, log_p = random_pair()
    targets = keep(log_p, 4)
    away = (logits - 9 * torch.zeros_like(logits).scatter(-1, targets.ids, 1)).detach()
    torch.testing.assert_close(train.topk_renormalised(away, targets), train.topk_renormalised(logits, targets))
    assert (train.topk_tail(away, targets) > train.topk_tail(logits, targets)).all()


def test_text_has_the_gradient_of_the_whole_kl_in_the_mean_over_what_the_teacher_may_say() -> None:
    logits, log_p = random_pair()
    labels = torch.arange(V)[:, None].expand(V, N)
    weighted = sum(log_p[:, v].exp() * train.text(logits, train.Targets(labels[v])) for v in range(V))
    kl = whole_kl(logits, log_p)
    torch.testing.assert_close(weighted, kl - (log_p.exp() * log_p).sum(-1))
    torch.testing.assert_close(gradient(weighted, logits), gradient(kl, logits))


def draw_systematically(log_p: Tensor, draws: int, u: float) -> Any:
    """Targets as `keep = "sampled"` has them: draws at (i + u) / draws of the cumulative distribution."""
    at = (torch.arange(draws, dtype=torch.float64) + u) / draws
    ids = torch.searchsorted(log_p.exp().cumsum(-1), at.expand(N, draws).contiguous()).clamp_max(V - 1)
    counts = torch.zeros(N, V, dtype=torch.float64).scatter_add(-1, ids, torch.ones(N, draws, dtype=torch.float64))
    weights, kept = (counts / draws).topk(draws)
    return train.Targets(ids[:, 0], kept, log_p.gather(-1, kept), weights > 0, weights=weights)


def test_random_draws_have_the_value_and_the_gradient_of_the_whole_kl_in_the_mean() -> None:
    logits, log_p = random_pair()
    grid = [(n + 0.5) / 400 for n in range(400)]
    each = [train.drawn(logits, draw_systematically(log_p, 6, u)) for u in grid]
    mean, kl = torch.stack(each).mean(0), whole_kl(logits, log_p)
    torch.testing.assert_close(mean, kl - (log_p.exp() * log_p).sum(-1), atol=2e-3, rtol=0)
    torch.testing.assert_close(gradient(mean, logits), gradient(kl, logits), atol=1e-3, rtol=0)
    assert max(float((one - mean).detach().abs().max()) for one in each) > 0.05  # one draw is noise about it


def test_the_fifth_where_the_student_is_least_sure_is_all_that_counts() -> None:
    logits, log_p = random_pair()
    targets = keep(log_p, 4)
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    chosen = entropy >= entropy.sort().values[-N // 5]
    values, all_values = train.unsure(logits, targets), train.topk_tail(logits, targets)
    torch.testing.assert_close(values.mean(), all_values[chosen].mean())
    assert (gradient(values, logits)[~chosen] == 0).all()


def test_hidden_states_match_through_the_map_that_fits_and_no_other() -> None:
    draw = torch.Generator().manual_seed(0)
    states, bridge = torch.randn(N, 5, generator=draw), torch.nn.Linear(5, 7)
    targets = train.Targets(torch.zeros(N), states=bridge(states).detach())
    assert train.match_states(states, targets, bridge).abs().max() < 1e-9
    off = train.match_states(states + 0.1, targets, bridge)
    moved = (bridge(states + 0.1) - targets.states).norm(dim=-1) / targets.states.norm(dim=-1)
    torch.testing.assert_close(off, moved.square())


@pytest.mark.parametrize("loss", [train.topk_tail, train.topk_renormalised])
def test_filler_beside_the_kept_ids_changes_nothing(loss: Callable[..., Tensor]) -> None:
    logits, log_p = random_pair()
    full = keep(log_p, 4)
    none = torch.zeros(N, 2)
    filled = train.Targets(
        full.labels,
        torch.cat([full.ids, none.long()], -1),
        torch.cat([full.logprobs, none.double() + LOGPROB_FLOOR], -1),
        torch.cat([full.kept, none > 0], -1),
        full.tail,
    )
    torch.testing.assert_close(loss(logits, filled), loss(logits, full))
    torch.testing.assert_close(gradient(loss(logits, filled), logits), gradient(loss(logits, full), logits))


def make_row(number: int, prompt: int = 3, completion: int = 5, k: int = 4, hidden: int = 6) -> Row:
    """A row with a distribution everywhere but at its third completion token, as `min_entropy` leaves it."""
    rng = np.random.default_rng(number)
    log_p = np.log(rng.dirichlet(np.ones(V), completion)).astype(np.float32)
    ids = np.argsort(-log_p, -1)[:, :k].astype(np.int32)
    rest = np.array([np.delete(line, kept) for line, kept in zip(log_p, ids, strict=True)])
    logprobs, tail = np.take_along_axis(log_p, ids, -1), np.log(np.exp(rest).sum(-1))
    ids[2], logprobs[2], tail[2] = -1, -np.inf, 0
    states = torch.tensor(rng.normal(size=(prompt + completion - 1, 1, hidden))).to(torch.bfloat16)
    return Row(
        columns={"id": f"row{number}"},
        prompt_token_ids=np.arange(prompt, dtype=np.int32),
        completion_token_ids=rng.integers(0, V, completion).astype(np.int32),
        topk_ids=ids,
        topk_logprobs=logprobs,
        tail_logprobs=tail,
        hidden_states=states,
        layers=(1,),
    )


def test_a_target_stands_where_the_student_predicts_its_token() -> None:
    rows = [make_row(0, prompt=3, completion=5), make_row(1, prompt=1, completion=7)]
    where, targets = train.read_targets(collate(rows, pad_token_id=0))
    assert where.nonzero().tolist() == [[0, s] for s in range(2, 7)] + [[1, s] for s in range(7)]
    assert targets.labels.tolist() == [*rows[0].completion_token_ids, *rows[1].completion_token_ids]
    assert targets.known.tolist() == [n != 2 for n in range(5)] + [n != 2 for n in range(7)]
    kept = targets.known.numpy()
    ids = np.concatenate([row.topk_ids for row in rows])
    np.testing.assert_array_equal(targets.ids.numpy()[kept], ids[kept])
    states = torch.cat([row.predicting_states[:, -1].float() for row in rows])
    torch.testing.assert_close(targets.states, states)


def tiny_student(seed: int = 0) -> Any:
    class Sizes:
        eos_token_id, pad_token_id = 1, 0

        def __len__(self) -> int:
            return V

    return train.new_student(Sizes(), hidden=32, layers=2, seed=seed)


def test_the_loss_of_a_batch_is_that_of_the_documented_loader() -> None:
    (source,) = re.findall(r"^def distillation_loss.*?(?=\n```)", FORMAT, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"torch": torch}
    exec(source, names)
    student, batch = tiny_student(), collate([make_row(0), make_row(1, completion=7)], pad_token_id=0)
    with torch.no_grad():
        logits = student(input_ids=batch["input_ids"]).logits
        documented = names["distillation_loss"](logits, batch)
        ours = train.batch_loss(student, batch, train.topk_tail)
    torch.testing.assert_close(ours, documented, atol=0.02, rtol=0.02)  # ours runs in bfloat16


@pytest.mark.parametrize(
    "name", ["topk_tail", *(pytest.param(n, marks=pytest.mark.long) for n in ("text", "topk_renormalised", "unsure"))]
)
def test_training_lowers_every_loss_and_the_same_seed_ends_in_the_same_weights(name: str) -> None:
    rows, loss = [make_row(number) for number in range(8)], train.LOSSES[name]
    batch = collate(rows, pad_token_id=0)
    ends = []
    for _ in range(2):
        student = tiny_student()
        before = float(train.batch_loss(student, batch, loss).detach())
        train.train(student, [(rows, 30)], loss, rate=2e-2, batch_rows=4)
        assert float(train.batch_loss(student, batch, loss).detach()) < 0.7 * before
        ends.append(student.lm_head.weight.detach())
    assert torch.equal(*ends)


def test_states_are_matched_beside_a_loss_where_that_is_asked() -> None:
    seen: list[float] = []
    options = {"rate": 2e-2, "hidden": True, "log": lambda step, value: seen.append(value)}
    train.train(
        tiny_student(), [([make_row(number) for number in range(8)], 30)], lambda logits, t: 0 * logits[:, 0], **options
    )
    assert seen[-1] < 0.6 * seen[0]


def test_stages_are_trained_on_in_their_order() -> None:
    asked: list[int] = []

    class Stage(list[Row]):
        def __getitem__(self, place: Any) -> Any:
            asked.append(int(super().__getitem__(place)["id"].removeprefix("row")))
            return super().__getitem__(place)

    stages = [Stage(make_row(first + n) for n in range(4)) for first in (0, 10)]
    train.train(tiny_student(), [(stages[0], 3), (stages[1], 2)], train.topk_tail, batch_rows=2)
    assert [n // 10 for n in asked[1:]] == [0] * 6 + [1] * 4  # the first look tells the states' size


def test_each_row_comes_once_an_epoch() -> None:
    lengths = list(np.random.default_rng(0).integers(5, 90, 50))
    found = train.batches(lengths, 8, seed=3)
    epochs = [sorted(place for _ in range(7) for place in next(found)) for _ in range(2)]
    assert epochs == [list(range(50))] * 2


def test_the_trainer_of_transformers_has_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    trainer = object.__new__(import_module("trainer").StudentTrainer)
    student, batch = tiny_student(), collate([make_row(0), make_row(1, completion=7)], pad_token_id=0)
    value, outputs = trainer.compute_loss(student, batch, return_outputs=True, num_items_in_batch=None)
    where, targets = train.read_targets(batch)
    values = train.topk_tail(outputs.logits[where], targets)
    torch.testing.assert_close(value, values.mean())
    torch.testing.assert_close(trainer.compute_loss(student, batch, num_items_in_batch=24), values.sum() / 24)


def test_the_files_are_short_enough_to_be_read() -> None:
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FOLDER.glob("*.py")}
    assert lines["train.py"] <= 250
    assert lines["trainer.py"] <= 25
