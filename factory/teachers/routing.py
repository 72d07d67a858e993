"""Expert routing of a mixture-of-experts teacher: which experts each token went to in each block, and their weights.

vLLM's blocks ask a router object for both (`MoERunner.router.select_experts`, vllm/model_executor/layers/fused_moe,
vLLM 0.32), whatever the scoring: softmax or sigmoid, grouped, with a correction bias, renormalised, scaled. What it
answers is what the block computes with. Kernels that route by themselves do not ask: there the same router is asked
beside them, with the same logits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Routes = dict[int, tuple[torch.Tensor, torch.Tensor]]  # by block, from 1: expert ids and weights, [tokens, E] each


def keep_routes(model: nn.Module, routes: Routes) -> list[int]:
    """Have every forward leave its routes in `routes`; the blocks that have experts, ascending. Raises ValueError."""
    found = find_runners(model)
    if not found:
        raise ValueError(f"no experts found in {type(model).__name__}; set signals.experts = false")
    for block, runner in found.items():
        if runner.routed_experts.quant_method.is_monolithic:
            _wrap(runner, "_apply_quant_method", _ask_beside(runner.router, block, routes))
        else:
            _wrap(runner.router, "select_experts", _listen(block, routes))
    return sorted(found)


def find_runners(model: nn.Module) -> dict[int, Any]:
    """What runs the experts of each block, by the block's number from 1."""
    runners = {}
    for name, module in model.named_modules():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if numbers and hasattr(getattr(module, "router", None), "select_experts"):
            runners[numbers[0] + 1] = module
    return runners


def _listen(block: int, routes: Routes) -> Callable[..., Any]:
    def around(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        weights, ids = inner(*args, **kwargs)
        routes[block] = ids, weights
        return weights, ids

    return around


def _ask_beside(router: Any, block: int, routes: Routes) -> Callable[..., Any]:
    def around(inner: Callable[..., Any], **kwargs: Any) -> Any:
        asked = {name: kwargs.get(name) for name in ("hidden_states", "router_logits", "input_ids")}
        weights, ids = router.select_experts(**asked)
        routes[block] = ids, weights
        return inner(**kwargs)

    return around


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    inner = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(inner, *args, **kwargs))
