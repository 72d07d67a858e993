"""Hidden states of the teacher: what the kept layers put out for each input token.

Two ways bring a step's outputs, a row for each token in the batch's order; `keep` takes those that belong to requests
that are kept. Forward hooks serve every model, and fire in none that is compiled or captured in a graph. There the
model hands them out itself (`handing_out`). Layer 0 is what goes into the first block, layer i what comes out of block
i, and the last one after the final norm where the job says so, as transformers counts them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from factory.teachers.engine.copies import Copies, to_device
from factory.teachers.engine.handing_out import inner_layers
from factory.teachers.engine.pages import Array, Pages, StepRows


class StateKeeper:
    """States of the requests inside one worker. Raises ValueError for a model whose layers cannot be found.

    `hands_out`: the model hands them out; otherwise its blocks are hooked.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], final_norm: bool, hands_out: bool = False) -> None:
        self.layers = layers
        self.hands_out = hands_out
        # those that the model hands out, in the order it does; the last one after the norm it puts out anyway
        self.inner = inner_layers(layers, final_norm, len(find_blocks(model)[0]))
        # by layer: whether its state is the sum of the two tensors that its block hands on, not the first of them
        # alone; the start-up probe finds out
        self.sums: dict[int, bool | None] = {}
        # by layer: one step's outputs [tokens, H], or [1, tokens, H]; empty between steps
        self.outputs: dict[int, torch.Tensor] = {}
        # [slot, position] -> L * H values as bfloat16 bits; None until a step tells how wide H is
        self.states: Pages | None = None
        if not hands_out:
            self._hook(model, final_norm)

    @property
    def pages(self) -> list[Pages]:
        """Where states are kept."""
        return [] if self.states is None else [self.states]

    def _hook(self, model: nn.Module, final_norm: bool) -> None:
        blocks, trunk = find_blocks(model)
        for layer in self.layers:
            if layer == 0:
                blocks[0].register_forward_pre_hook(self._keeper_of_input(), with_kwargs=True)
            elif layer == len(blocks) and final_norm:
                find_final_norm(trunk).register_forward_hook(self._keeper(layer, residual=False))
            else:
                blocks[layer - 1].register_forward_hook(self._keeper(layer, residual=True))

    def _keeper(self, layer: int, residual: bool) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, tuple):
                self.outputs[layer] = output
            elif residual and self.sums.get(layer) and len(output) > 1:
                # vLLM fuses the addition into the next norm, and hands the residual on beside the branch's output
                self.outputs[layer] = output[0] + output[1]
            else:
                self.outputs[layer] = output[0]

        return keep

    def _keeper_of_input(self) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.is_floating_point()]
            # positions are integers, so the first floating tensor is the hidden state; blocks write into it in place
            self.outputs[0] = tensors[0].clone()

        return keep

    def receive(self, final_NH: torch.Tensor, layers_NH: Sequence[torch.Tensor] | None) -> None:
        """What a model that hands its states out has put out in a step: the last layer after the norm, and the inner
        ones in ascending order."""
        if not self.hands_out:
            return
        given = list(layers_NH or ())
        assert len(given) == len(self.inner), f"the model handed out {len(given)} layers of {self.inner}"
        self.outputs = dict(zip(self.inner, given, strict=True))
        for layer in set(self.layers) - set(self.inner):
            self.outputs[layer] = final_NH

    def handed_out(self) -> dict[int, torch.Tensor]:
        """What the model handed out in this step, by layer."""
        return {layer: self.outputs[layer] for layer in self.inner} if self.hands_out else {}

    def keep(self, step: StepRows, copies: Copies) -> None:
        """Take the states of a step's tokens."""
        if not self.outputs:
            return
        # gathered now: what a captured graph puts out is overwritten by the next step
        where = to_device(step.row_N, self.outputs[self.layers[0]].device)
        # models that vLLM runs through transformers keep a batch dimension of one before the tokens
        whole = [self.outputs[layer].flatten(0, -2) for layer in self.layers]
        # tokens that were split among workers: on the device a row too many would end it without a reason
        assert all(len(rows) > step.row_N[-1] for rows in whole), "this worker has not the states of all tokens"
        rows = [rows[where] for rows in whole]
        # numpy has no bfloat16: its bits travel as integers
        bits_NW = torch.stack(rows, 1).to(torch.bfloat16).flatten(1).view(torch.int16)
        if self.states is None:
            # blank is 0: a position without any state stands out, as no block puts out zeros alone
            self.states = Pages(bits_NW.shape[1], np.uint16, 0)
        copies.send(bits_NW, self.states, step.slot_N, step.position_N)

    def end_step(self) -> None:
        """Let go of a step's outputs, whether any were kept or not."""
        self.outputs.clear()

    def take(self, slot: int, inputs: int) -> dict[str, Array]:
        """The states of a request of so many input tokens; none where no step has had any."""
        if self.states is None:
            return {}
        bits_NW = self.states.take(slot, inputs)
        return {"bits_NLH": bits_NW.reshape(-1, len(self.layers), self.states.width // len(self.layers))}

    def drop(self, slot: int) -> None:
        """Forget a request."""
        if self.states is not None:
            self.states.drop(slot)


def find_blocks(model: nn.Module) -> tuple[nn.ModuleList, nn.Module]:
    """The decoder layers of a model, and the module that holds them: the longest ModuleList called `layers` or `h`."""
    found = [
        (module, model.get_submodule(name.rpartition(".")[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("layers", "h", "blocks")
    ]
    if not found:
        raise ValueError(f"no decoder layers found in {type(model).__name__}; set signals.hidden_layers = []")
    # a model that sees pictures has two such lists: its decoder is taken to be the longer one
    return max(found, key=lambda pair: len(pair[0]))


def find_final_norm(trunk: nn.Module) -> nn.Module:
    """The norm after the last layer."""
    # as Llama and its kin, Jamba, GPT-2 and OPT call it
    for name in ("norm", "final_layernorm", "ln_f", "final_layer_norm"):
        if isinstance(getattr(trunk, name, None), nn.Module):
            return trunk.get_submodule(name)
    raise ValueError(f"no final norm found in {type(trunk).__name__}; set signals.final_norm = false")
