"""Blocks that hand on two tensors, tried: what comes next tells whether their sum is the state, or the first alone."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from factory.teachers.engine.residual import ResidualProbe  # noqa: E402


class Fused(nn.Module):
    """As Llama's in vLLM: the residual is added by whoever comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, positions, hidden_states, residual):  # type: ignore[no-untyped-def]
        residual = hidden_states if residual is None else hidden_states + residual
        return self.inner(residual), residual


class Added(Fused):
    """As Cohere's: the state, and beside it its own input, which nobody uses."""

    def forward(self, positions, hidden_states, residual=None):  # type: ignore[no-untyped-def]
        return hidden_states + self.inner(hidden_states), hidden_states


class Mixed(Fused):
    """Its two tensors are no state in either way."""

    def forward(self, positions, hidden_states, residual):  # type: ignore[no-untyped-def]
        residual = 0.5 * hidden_states if residual is None else hidden_states - 2 * residual
        return self.inner(residual), residual


class Failing(Added):
    """Cannot be called a second time."""

    def forward(self, positions, hidden_states, residual=None):  # type: ignore[no-untyped-def]
        if getattr(self, "called", False):
            raise RuntimeError("called twice")
        self.called = True
        return super().forward(positions, hidden_states, residual)


class Plain(Added):
    """Hands on its state alone."""

    def forward(self, positions, hidden_states, residual=None):  # type: ignore[no-untyped-def]
        return super().forward(positions, hidden_states)[0]


class Norm(nn.Module):
    """Adds the residual, where it is given one that counts."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.adds = adds

    def forward(self, hidden_states, residual=None):  # type: ignore[no-untyped-def]
        state = hidden_states + residual if self.adds and residual is not None else hidden_states
        return nn.functional.layer_norm(state, (8,)), residual


class Model(nn.Module):
    def __init__(self, block: type[Fused], by_keyword: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(3))
        self.norm = Norm(adds=block in (Fused, Mixed))
        self.by_keyword = by_keyword

    def forward(self, hidden_states):  # type: ignore[no-untyped-def]
        positions, residual = torch.arange(5), None
        for layer in self.layers:
            if self.by_keyword:
                output = layer(positions=positions, hidden_states=hidden_states, residual=residual)
            else:
                output = layer(positions, hidden_states, residual)
            hidden_states, residual = output if isinstance(output, tuple) else (output, None)
        return self.norm(hidden_states, residual)[0]


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize(("block", "found"), [(Fused, True), (Added, False), (Mixed, None)])
def test_what_comes_next_tells_what_the_state_is(block: type[Fused], found: bool | None, by_keyword: bool) -> None:
    torch.manual_seed(0)
    model = Model(block, by_keyword)
    layers = [1, 2] if block is Mixed else [1, 2, 3]
    probe = ResidualProbe(model, [0, *layers])
    with torch.inference_mode():
        model(torch.randn(5, 8))
    assert probe.finish() == dict.fromkeys(layers, found)


def test_a_block_that_hands_on_its_state_alone_needs_no_trial() -> None:
    model = Model(Plain, by_keyword=False)
    probe = ResidualProbe(model, [0, 1, 2, 3])
    model(torch.randn(5, 8))
    assert probe.finish() == {}


def test_a_trial_that_fails_tells_nothing_and_harms_nothing() -> None:
    model = Model(Added, by_keyword=False)
    calls = []

    def forward(positions, hidden_states, residual=None):  # type: ignore[no-untyped-def]
        calls.append(residual)
        if residual is not None and len(calls) < 3:
            raise RuntimeError("not to be called with this")
        return Added.forward(model.layers[1], positions, hidden_states, residual)

    model.layers[1].forward = forward
    probe = ResidualProbe(model, [1])
    with pytest.raises(RuntimeError):  # its own call, after the trial, meets the same
        model(torch.randn(5, 8))
    assert probe.finish() == {1: None}


def test_the_trial_leaves_the_model_and_its_answer_as_they_are() -> None:
    torch.manual_seed(0)
    model, states = Model(Fused, by_keyword=False), torch.randn(5, 8)
    with torch.inference_mode():
        before = model(states)
        probe = ResidualProbe(model, [1, 2, 3])
        during = model(states)
        found = dict(probe.finish())
        assert torch.equal(before, during)
        assert torch.equal(before, model(states))
    assert found == probe.sums


@pytest.mark.engine  # imports vLLM
@pytest.mark.parametrize("block", [Fused, Added, Plain])
def test_states_that_a_model_hands_out_are_held_against_its_blocks(block: type[Fused]) -> None:
    torch.manual_seed(0)
    model, given = Model(block, by_keyword=False), torch.randn(5, 8)
    right, hidden_states, residual = {0: given}, given, None
    with torch.inference_mode():
        for layer, module in enumerate(model.layers, 1):
            output = module(torch.arange(5), hidden_states, residual)
            hidden_states, residual = output if isinstance(output, tuple) else (output, None)
            right[layer] = hidden_states + residual if block is Fused else hidden_states
        probe = ResidualProbe(model, [1, 2, 3], hands_out=True)
        probe.compare({2: right[2]})  # no block was heard
        assert probe.sums == {2: None}
        probe.sums.clear()
        model(given)
        probe.compare(right | {2: right[1]})
    found = probe.finish()
    assert "forward" not in vars(model)
    assert [layer for layer, is_sum in found.items() if is_sum is None] == [2]
