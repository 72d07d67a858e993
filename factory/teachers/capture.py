"""Signals taken inside the engine's worker: the teacher's own distribution at each token, and its hidden states.

Loaded into vLLM's worker through `worker_extension_cls`, driven through `collective_rpc`. Three places are wrapped
(names as in vllm/v1/worker/gpu_model_runner.py, vLLM 0.32):

    model.compute_logits   sees the logits before temperature and grammar mask; everything kept is reduced here
    runner._sample         tells which token was sampled, after mask and temperature
    runner.execute_model   has run the layers whose outputs forward hooks have kept

Positions are absolute, so what is computed again after a preemption overwrites itself.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.distributed.parallel_state import get_tp_group

from factory.teachers.pages import Array, Pages

BLOCK = 64  # vocabulary entries in one block of the two-stage top-k


def exact_topk(values_BV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest values and their indices, descending. Exact, at about half the cost of a plain topk.

    The k largest values lie inside the k blocks with the largest maxima, so only those blocks are searched.
    """
    rows, vocab = values_BV.shape
    blocks = vocab // BLOCK
    if blocks < 4 * k:
        return values_BV.topk(k)
    whole = values_BV[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    best_BK = whole.amax(-1).topk(k).indices
    values = whole.gather(1, best_BK[:, :, None].expand(-1, -1, BLOCK)).reshape(rows, k * BLOCK)
    indices = (best_BK[:, :, None] * BLOCK + torch.arange(BLOCK, device=values.device)).reshape(rows, k * BLOCK)
    rest = torch.arange(blocks * BLOCK, vocab, device=values.device).expand(rows, -1)
    values = torch.cat([values, values_BV[:, blocks * BLOCK :]], 1)
    top = values.topk(k)
    return top.values, torch.cat([indices, rest], 1).gather(1, top.indices)


class Distribution:
    """One step's logits reduced: log-probabilities, the k largest, the mass outside them, the entropy (nats)."""

    def __init__(self, logits_BV: torch.Tensor, k: int) -> None:
        # an id the model rules out has -inf, and 0 * -inf is not a number: a finite floor keeps the entropy exact
        self.logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1).clamp_min_(-1e30)
        self.topk_BK, self.topk_ids_BK = exact_topk(self.logprobs_BV, k)
        probs_BV = self.logprobs_BV.exp()
        self.entropy_B = -torch.einsum("bv,bv->b", probs_BV, self.logprobs_BV)
        # summed without the kept ids rather than as 1 - kept, which would cancel for a peaked distribution
        self.tail_B = probs_BV.scatter_(1, self.topk_ids_BK, 0.0).sum(-1).log()

    def rows(self, sampled_B: torch.Tensor) -> Array:
        """[B, 3 + k] float32: sampled, tail, entropy, then the k log-probabilities."""
        sampled = self.logprobs_BV.gather(1, sampled_B[:, None].long())
        columns = [sampled, self.tail_B[:, None], self.entropy_B[:, None], self.topk_BK]
        packed: Array = torch.cat(columns, 1).cpu().numpy()
        return packed


class Capture:
    """Everything kept of the requests now inside one worker."""

    def __init__(self, runner: Any, top_k: int, layers: list[int], final_norm: bool) -> None:
        self.runner = runner
        self.top_k = top_k
        self.layers = layers
        self.final_norm = final_norm
        self.slots: dict[str, int] = {}
        self.free_slots: list[int] = []
        self.batch: tuple[list[str], Array] = ([], np.zeros(0, np.int64))
        self.floats = Pages(3 + top_k, np.float32, np.nan)
        self.ids = Pages(top_k, np.int32, 0)
        self.states: Pages | None = None
        self.step: Distribution | None = None
        self.outputs: dict[int, torch.Tensor] = {}

    def install(self) -> None:
        """Wrap the runner and hook the layers."""
        if self.top_k:
            _wrap(self.runner.model, "compute_logits", self._around_logits)
            _wrap(self.runner, "_sample", self._around_sample)
        if self.layers:
            self._hook_layers()
            _wrap(self.runner, "execute_model", self._around_execute)

    def _around_logits(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        logits = inner(*args, **kwargs)
        self.step = None if logits is None else Distribution(logits, self.top_k)
        return logits

    def _around_sample(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        step, self.step = self.step, None
        if step is not None:
            self._keep_distribution(step, output.sampled_token_ids[:, 0])
        return output

    def _keep_distribution(self, step: Distribution, sampled_B: torch.Tensor) -> None:
        batch = self.runner.input_batch
        slots_B = self._slots_of_batch()
        # the token sampled now is the output token with this index; a request still inside its prompt samples none
        index_B = batch.num_tokens_no_spec[: len(slots_B)] - batch.num_prompt_tokens[: len(slots_B)]
        real_B = ~self.runner.discard_request_mask.np[: len(slots_B)]
        slots_B, index_B = slots_B[real_B], index_B[real_B].astype(np.int64)
        if len(slots_B):
            self.floats.write(slots_B, index_B, step.rows(sampled_B)[real_B])
            self.ids.write(slots_B, index_B, step.topk_ids_BK.cpu().numpy()[real_B])

    def _around_execute(self, inner: Callable[..., Any], scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler_output.preempted_req_ids:  # worth knowing: a larger cache would save the work done twice
            print(
                f"preempted {len(scheduler_output.preempted_req_ids)} requests: the key-value cache is full", flush=True
            )
        result = inner(scheduler_output, *args, **kwargs)
        outputs, self.outputs = self.outputs, {}
        if outputs and scheduler_output.total_num_scheduled_tokens:
            self._keep_states(outputs, scheduler_output)
        return result

    def _keep_states(self, outputs: dict[int, torch.Tensor], scheduler_output: Any) -> None:
        total = scheduler_output.total_num_scheduled_tokens
        # models that vLLM runs through transformers keep a batch dimension of one before the tokens
        rows = [outputs[layer].flatten(0, -2)[:total] for layer in self.layers]
        states_NLH = torch.stack(rows, 1).to(torch.bfloat16)
        bits = states_NLH.reshape(total, -1).cpu().view(torch.int16).numpy().view(np.uint16)
        slots_B = self._slots_of_batch()
        counts_B = np.array([scheduler_output.num_scheduled_tokens[name] for name in self.batch[0]], np.int64)
        first_B = self.runner.input_batch.num_computed_tokens_cpu[: len(slots_B)].astype(np.int64)
        within_N = np.arange(total) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
        if self.states is None:
            self.states = Pages(bits.shape[1], np.uint16, 0)
        self.states.write(np.repeat(slots_B, counts_B), np.repeat(first_B, counts_B) + within_N, bits)

    def _slots_of_batch(self) -> Array:
        """The slot of each request of the batch, in the batch's order (the order of every row the engine computes)."""
        names = self.runner.input_batch.req_ids
        if names != self.batch[0]:
            self.batch = (list(names), np.array([self._slot(name) for name in names], np.int64))
        return self.batch[1]

    def _slot(self, name: str) -> int:
        if name not in self.slots:
            self.slots[name] = self.free_slots.pop() if self.free_slots else len(self.slots)
        return self.slots[name]

    def take(self, name: str, tokens: int, inputs: int) -> dict[str, Array]:
        """The arrays of a finished request of `tokens` completion tokens and `inputs` input tokens; forgets it."""
        slot = self.slots.get(name)
        if slot is None:
            return {}
        arrays: dict[str, Array] = {}
        if self.top_k:
            floats = self.floats.take(slot, tokens)
            arrays |= {"sampled_T": floats[:, 0].copy(), "tail_T": floats[:, 1].copy()}
            arrays |= {"entropy_T": floats[:, 2].copy(), "topk_TK": floats[:, 3:].astype(np.float16)}
            arrays["topk_ids_TK"] = self.ids.take(slot, tokens)
        if self.states is not None:
            arrays["bits_NLH"] = self.states.take(slot, inputs).reshape(-1, len(self.layers), self._hidden_size())
        self.drop(name)
        return arrays

    def drop(self, name: str) -> None:
        """Forget a request."""
        slot = self.slots.pop(name, None)
        if slot is None:
            return
        for pages in (self.floats, self.ids, self.states):
            if pages is not None:
                pages.drop(slot)
        self.free_slots.append(slot)
        self.batch = ([], np.zeros(0, np.int64))

    def _hidden_size(self) -> int:
        assert self.states is not None
        return self.states.width // len(self.layers)

    def _hook_layers(self) -> None:
        blocks, trunk = find_blocks(self.runner.get_model())
        for layer in self.layers:
            if layer == 0:
                blocks[0].register_forward_pre_hook(self._keeper_of_input(), with_kwargs=True)
            elif layer == len(blocks) and self.final_norm:
                find_final_norm(trunk).register_forward_hook(self._keeper(layer, residual=False))
            else:
                blocks[layer - 1].register_forward_hook(self._keeper(layer, residual=True))

    def _keeper(self, layer: int, residual: bool) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, tuple):
                self.outputs[layer] = output
            elif residual and len(output) > 1 and output[1] is not None:
                self.outputs[layer] = output[0] + output[1]  # vLLM hands the residual on beside the branch's output
            else:
                self.outputs[layer] = output[0]

        return keep

    def _keeper_of_input(self) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.is_floating_point()]
            self.outputs[0] = tensors[0].clone()

        return keep


def find_blocks(model: nn.Module) -> tuple[nn.ModuleList, nn.Module]:
    """The decoder layers of a model, and the module that holds them: the longest ModuleList called `layers` or `h`."""
    found = [
        (module, model.get_submodule(name.rpartition(".")[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("layers", "h", "blocks")
    ]
    if not found:
        raise ValueError(f"no decoder layers found in {type(model).__name__}; set signals.hidden_layers = []")
    return max(found, key=lambda pair: len(pair[0]))


def find_final_norm(trunk: nn.Module) -> nn.Module:
    """The norm after the last layer."""
    for name in ("norm", "final_layernorm", "ln_f", "final_layer_norm"):
        if isinstance(getattr(trunk, name, None), nn.Module):
            return trunk.get_submodule(name)
    raise ValueError(f"no final norm found in {type(trunk).__name__}; set signals.final_norm = false")


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    inner = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(inner, *args, **kwargs))


class CaptureExtension:
    """Methods that vLLM adds to its worker; called by name through `collective_rpc`."""

    model_runner: Any
    factory_capture: Capture | None

    def factory_install(self, top_k: int, layers: list[int], final_norm: bool) -> None:
        """Begin to capture. With tensor parallelism only the first worker does: it holds whole logits and states."""
        self.factory_capture = None
        if get_tp_group().rank_in_group == 0 and (top_k or layers):
            self.factory_capture = Capture(self.model_runner, top_k, layers, final_norm)
            self.factory_capture.install()

    def factory_take(self, name: str, tokens: int, inputs: int) -> dict[str, Array]:
        """Arrays of a finished request; an empty dict from a worker that does not capture."""
        return self.factory_capture.take(name, tokens, inputs) if self.factory_capture else {}

    def factory_drop(self, name: str) -> None:
        """Forget a request that will not be taken."""
        if self.factory_capture:
            self.factory_capture.drop(name)
