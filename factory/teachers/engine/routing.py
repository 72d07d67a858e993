"""Expert routing of a mixture-of-experts teacher: which experts each token went to in each block, and their weights.

vLLM's blocks ask a router object for both (`MoERunner.router.select_experts`, vllm/model_executor/layers/fused_moe,
vLLM 0.32), whatever the scoring: softmax or sigmoid, grouped, with a correction bias, renormalised, scaled. What it
answers is what the block computes with, but for a factor that some models put on the sum. Kernels that route by
themselves do not ask: there the same router is asked beside them, with the same logits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from factory.teachers.engine.copies import AT_ONCE, Copies, to_device
from factory.teachers.engine.pages import Array, Pages, StepRows
from factory.teachers.engine.wrap import wrap

Routes = dict[int, tuple[torch.Tensor, torch.Tensor]]  # by block, from 1: expert ids and weights, [tokens, E] each


class ExpertKeeper:
    """The routes of the requests inside one worker. Raises ValueError for a model whose routes cannot be kept."""

    def __init__(self, model: nn.Module) -> None:
        runners = find_runners(model)
        if not runners:
            raise ValueError(f"no experts found in {type(model).__name__}; set signals.experts = false")
        chosen = {int(runner.moe_config.experts_per_token) for runner in runners.values()}
        if len(chosen) > 1:
            raise ValueError(f"blocks choose {sorted(chosen)} experts; set signals.experts = false")
        self.blocks = sorted(runners)
        self.shape = (-1, len(self.blocks), chosen.pop())
        width = self.shape[1] * self.shape[2]
        self.ids, self.weights = Pages(width, np.int16, -1), Pages(width, np.float16, np.nan)
        # one step's answers, a row for each of its tokens in the batch's order
        self.routes: Routes = {}
        for block, runner in runners.items():
            self._listen_to(block, runner)

    def _listen_to(self, block: int, runner: Any) -> None:
        """Have every forward of a block leave its routes behind."""

        def keep(weights: torch.Tensor, ids: torch.Tensor) -> None:
            self.routes[block] = ids, weights * runner.routed_scaling_factor  # 1 where the router scales by itself

        def around_router(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            answer = inner(*args, **kwargs)
            keep(*answer)
            return answer

        def beside_kernel(inner: Callable[..., Any], **kwargs: Any) -> Any:
            asked = {name: kwargs.get(name) for name in ("hidden_states", "router_logits", "input_ids")}
            keep(*runner.router.select_experts(**asked))
            return inner(**kwargs)

        # a monolithic kernel takes the router's logits and chooses inside itself
        if runner.routed_experts.quant_method.is_monolithic:
            wrap(runner, "_apply_quant_method", beside_kernel)
        else:
            wrap(runner.router, "select_experts", around_router)

    @property
    def pages(self) -> list[Pages]:
        """Where routes are kept."""
        return [self.ids, self.weights]

    def keep(self, step: StepRows, copies: Copies = AT_ONCE) -> None:
        """Take the routes of a step's tokens, heaviest expert first."""
        ids, weights = (torch.stack([self.routes[block][part] for block in self.blocks], 1) for part in (0, 1))
        # tokens that were split among workers: their routes stay blank, and the row is rejected for it
        if len(ids) <= step.row_N.max():
            return
        where = to_device(step.row_N, ids.device)
        weights_NLE, order_NLE = weights[where].sort(dim=-1, descending=True, stable=True)
        ids_NW = ids[where].gather(-1, order_NLE).flatten(1).to(torch.int16)
        copies.send(ids_NW, self.ids, step.slot_N, step.position_N)
        copies.send(weights_NLE.flatten(1).to(torch.float16), self.weights, step.slot_N, step.position_N)

    def take(self, slot: int, inputs: int) -> dict[str, Array]:
        """The arrays of a request of so many input tokens."""
        ids_NLE, weights_NLE = (pages.take(slot, inputs).reshape(self.shape) for pages in (self.ids, self.weights))
        blocks = np.array(self.blocks, np.int32)
        return {"expert_ids_NLE": ids_NLE, "expert_weights_NLE": weights_NLE, "blocks": blocks}

    def drop(self, slot: int) -> None:
        """Forget a request."""
        self.ids.drop(slot)
        self.weights.drop(slot)


def find_runners(model: nn.Module) -> dict[int, Any]:
    """What runs the experts of each block, by the block's number from 1. Raises ValueError for two in one."""
    runners = {}
    for name, module in model.named_modules():
        # the first number of a module's path is that of its block
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if numbers and hasattr(getattr(module, "router", None), "select_experts"):
            if numbers[0] + 1 in runners:
                raise ValueError(f"block {numbers[0] + 1} has experts twice; set signals.experts = false")
            runners[numbers[0] + 1] = module
    return runners
