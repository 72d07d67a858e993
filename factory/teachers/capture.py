"""Signals taken inside the engine's worker: the teacher's own distribution at each token, and its hidden states.

Loaded into vLLM's worker through `worker_extension_cls`, driven through `collective_rpc`. Three places are wrapped
(names as in vllm/v1/worker/gpu_model_runner.py, vLLM 0.32):

    model.compute_logits   sees the logits before temperature and grammar mask; everything kept is reduced here
    runner._sample         tells which token was sampled, after mask and temperature
    runner.execute_model   has run the layers whose outputs forward hooks have kept

Two ways lead to the same numbers. While generating, each step's logits are reduced as they come. A *scored* request
is a prefill over ids that exist: the logits of the positions that predict its completion are computed from the step's
final hidden states, a few hundred rows at a time, and reduced the same way.

Positions are absolute, so what is computed again after a preemption overwrites itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.distributed.parallel_state import get_tp_group

from factory.teachers.pages import Array, Pages

BLOCK = 64  # vocabulary entries in one block of the two-stage top-k
SCORED_LOGITS = 1 << 24  # logits held at once when a prefill is scored: 64 MB in float32


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


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """What to keep: k, resolved layers, the last of them after the final norm or before; of every request while it
    generates (`decoding`), or of scored requests alone."""

    top_k: int
    layers: list[int]
    final_norm: bool
    decoding: bool


@dataclass(frozen=True, slots=True)
class StepRows:
    """N tokens of one step that belong to requests that are kept: row in the step's tensors, number of the request in
    the batch, its slot, absolute position of the token."""

    row_N: Array
    request_N: Array
    slot_N: Array
    position_N: Array


class Capture:
    """Everything kept of the requests now inside one worker."""

    def __init__(self, runner: Any, plan: CapturePlan, keeps: bool) -> None:
        self.runner = runner
        self.top_k = plan.top_k
        self.layers = plan.layers if keeps else []
        self.final_norm = plan.final_norm
        self.decoding = plan.decoding and keeps
        self.keeps = keeps
        self.compute_logits = runner.model.compute_logits
        self.scored: dict[str, tuple[int, Array]] = {}  # prompt tokens, completion ids
        self.slots: dict[str, int] = {}
        self.free_slots: list[int] = []
        self.batch: tuple[list[str], Array] = ([], np.zeros(0, np.int64))
        self.floats = Pages(3 + plan.top_k, np.float32, np.nan)
        self.ids = Pages(plan.top_k, np.int32, 0)
        self.states: Pages | None = None
        self.step: Distribution | None = None
        self.outputs: dict[int, torch.Tensor] = {}

    def install(self) -> None:
        """Wrap the runner and hook the layers."""
        if self.top_k and self.decoding:
            _wrap(self.runner.model, "compute_logits", self._around_logits)
            _wrap(self.runner, "_sample", self._around_sample)
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
        if scheduler_output.total_num_scheduled_tokens and (self.scored or (outputs and self.decoding)):
            rows = self._rows_of_step(scheduler_output)
            if outputs and len(rows.row_N):
                self._keep_states(outputs, rows)
            if self.scored and self.top_k:
                self._keep_scored(rows)
        return result

    def _rows_of_step(self, scheduler_output: Any) -> StepRows:
        """Where each token of the step belongs, of the requests that are kept."""
        slots_B = self._slots_of_batch()
        names = self.batch[0]
        counts_B = np.array([scheduler_output.num_scheduled_tokens[name] for name in names], np.int64)
        first_B = self.runner.input_batch.num_computed_tokens_cpu[: len(slots_B)].astype(np.int64)
        request_N = np.repeat(np.arange(len(names)), counts_B)
        row_N = np.arange(len(request_N))
        if not self.decoding:
            row_N = row_N[np.array([name in self.scored for name in names], bool)[request_N]]
        request_N = request_N[row_N]
        within_N = row_N - (np.cumsum(counts_B) - counts_B)[request_N]
        return StepRows(row_N, request_N, slots_B[request_N], first_B[request_N] + within_N)

    def _keep_scored(self, rows: StepRows) -> None:
        """Compute and reduce the logits that predict the completions of scored requests."""
        index_N = np.full(len(rows.row_N), -1, np.int64)
        target_N = np.zeros(len(rows.row_N), np.int64)
        for number, name in enumerate(self.batch[0]):
            if name in self.scored:
                prompt, ids_T = self.scored[name]
                of_request = np.flatnonzero(rows.request_N == number)
                index = rows.position_N[of_request] + 1 - prompt  # a position predicts the token after it
                real = (index >= 0) & (index < len(ids_T))
                index_N[of_request[real]], target_N[of_request[real]] = index[real], ids_T[index[real]]
        chosen = np.flatnonzero(index_N >= 0)
        hidden_NH = self.runner.execute_model_state.hidden_states
        step = max(16, SCORED_LOGITS // self.runner.model_config.get_vocab_size())
        for part in np.array_split(chosen, -(-len(chosen) // step)) if len(chosen) else []:
            where = torch.from_numpy(rows.row_N[part]).to(hidden_NH.device)
            logits = self.compute_logits(hidden_NH[where])  # with tensor parallelism every worker has a part in this
            if self.keeps:
                kept = Distribution(logits, self.top_k)
                targets = torch.from_numpy(target_N[part]).to(logits.device)
                self.floats.write(rows.slot_N[part], index_N[part], kept.rows(targets))
                self.ids.write(rows.slot_N[part], index_N[part], kept.topk_ids_BK.cpu().numpy())

    def _keep_states(self, outputs: dict[int, torch.Tensor], step: StepRows) -> None:
        # models that vLLM runs through transformers keep a batch dimension of one before the tokens
        where = torch.from_numpy(step.row_N).to(outputs[self.layers[0]].device)
        rows = [outputs[layer].flatten(0, -2)[where] for layer in self.layers]
        states_NLH = torch.stack(rows, 1).to(torch.bfloat16)
        bits = states_NLH.flatten(1).cpu().view(torch.int16).numpy().view(np.uint16)
        if self.states is None:
            self.states = Pages(bits.shape[1], np.uint16, 0)
        self.states.write(step.slot_N, step.position_N, bits)

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

    def score(self, name: str, prompt: int, completion_ids: list[int]) -> None:
        """Say that a request is a prefill over `prompt` tokens and all but the last of these completion ids."""
        self.scored[name] = (prompt, np.array(completion_ids, np.int64))

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
        self.scored.pop(name, None)
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
        if not self.layers:
            return
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

    def factory_install(self, top_k: int, layers: list[int], final_norm: bool, decoding: bool) -> None:
        """Begin to capture. With tensor parallelism only the first worker keeps: it holds whole logits and states."""
        self.factory_capture = None
        if top_k or layers:
            keeps = get_tp_group().rank_in_group == 0
            plan = CapturePlan(top_k, layers, final_norm, decoding)
            self.factory_capture = Capture(self.model_runner, plan, keeps)
            self.factory_capture.install()

    def factory_score(self, name: str, prompt: int, completion_ids: list[int]) -> None:
        """A request is a prefill whose completion is to be scored; to be told before its first step."""
        if self.factory_capture:
            self.factory_capture.score(name, prompt, completion_ids)

    def factory_take(self, name: str, tokens: int, inputs: int) -> dict[str, Array]:
        """Arrays of a finished request; an empty dict from a worker that does not keep any."""
        return self.factory_capture.take(name, tokens, inputs) if self.factory_capture else {}

    def factory_drop(self, name: str) -> None:
        """Forget a request that will not be taken."""
        if self.factory_capture:
            self.factory_capture.drop(name)
