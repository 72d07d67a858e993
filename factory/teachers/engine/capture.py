"""Signals taken inside the engine's worker: the teacher's own distribution at each token, and its hidden states.

Loaded into vLLM's worker through `worker_extension_cls`, driven through `collective_rpc`. Three places are wrapped
(names as in vllm/v1/worker/gpu_model_runner.py, vLLM 0.32):

    model.compute_logits   sees the logits before temperature and grammar mask; everything kept is reduced here
    runner._sample         tells which token was sampled, after mask and temperature
    runner.execute_model   has run the layers whose outputs forward hooks have kept

Routes of experts and attention maps have places of their own, inside the layers: `ExpertKeeper`, `AttentionKeeper`.

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

from factory.signals import SignalSpec
from factory.teachers.engine.attention import AttentionKeeper
from factory.teachers.engine.distribution import Distribution, Workspace, fractions, row_width, split_rows
from factory.teachers.engine.pages import Array, Pages, StepRows
from factory.teachers.engine.routing import ExpertKeeper

SCORED_LOGITS = 1 << 24  # logits held at once when a prefill is scored: 64 MB in float32


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request from its beginning: prompt tokens, the seed of its draws, and, where it is a prefill
    to be scored, the last completion id, which is no input."""

    prompt: int
    seed: int
    last_id: int | None = None
    attends: bool = False  # whether its attention is kept
    keeps: bool = True  # whether anything is


@dataclass(frozen=True, slots=True)
class Batch:
    """The B requests of a step, in the order of every row that the engine computes: slot, and what was asked."""

    names: list[str]
    slot_B: Array
    prompt_B: Array
    seed_B: Array
    last_id_B: Array  # -1 where the request generates
    attends_B: Array
    keeps_B: Array  # of which anything is kept at all: all but a judge's, and, where only prefills are scored, those


NO_NUMBERS = np.zeros(0, np.int64)
NO_BATCH = Batch([], NO_NUMBERS, NO_NUMBERS, NO_NUMBERS, NO_NUMBERS, np.zeros(0, np.bool_), np.zeros(0, np.bool_))


class Capture:
    """Everything kept of the requests now inside one worker: of every request while it generates (`decoding`), or of
    scored requests alone."""

    def __init__(self, runner: Any, signals: SignalSpec, decoding: bool, keeps: bool) -> None:
        self.runner = runner
        self.signals = signals
        self.layers = signals.layers if keeps else ()
        self.decoding = decoding
        self.keeps = keeps
        self.compute_logits = runner.model.compute_logits
        self.asked: dict[str, Asked] = {}
        self.slots: dict[str, int] = {}
        self.free_slots: list[int] = []
        self.batch = NO_BATCH
        self.rows = Pages(row_width(signals), np.float32, np.nan)
        self.states: Pages | None = None
        self.experts: ExpertKeeper | None = None
        self.attention: AttentionKeeper | None = None
        self.step: Distribution | None = None
        self.of_sampled, self.of_given = Workspace(), Workspace()  # the first may wait for its tokens meanwhile
        self.outputs: dict[int, torch.Tensor] = {}

    def install(self) -> None:
        """Wrap the runner and hook the layers."""
        if self.signals.top_k and self.decoding and self.keeps:
            _wrap(self.runner.model, "compute_logits", self._around_logits)
            _wrap(self.runner, "_sample", self._around_sample)
        self._hook_layers()
        model, attention = self.runner.get_model(), self.signals.attention
        if self.signals.experts and self.keeps:
            self.experts = ExpertKeeper(model)
        if attention:
            if get_tp_group().world_size > 1:
                raise ValueError("no worker has all heads where tensors are split; leave signals.attention out")
            self.attention = AttentionKeeper(model, attention, self.signals.attention_tokens, self.runner.device)
        _wrap(self.runner, "execute_model", self._around_execute)

    def _around_logits(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        logits = inner(*args, **kwargs)
        self.step = None
        if logits is not None:
            self.step = self._reduce(logits, self._batch().seed_B, self._next_index(), self.of_sampled)
        return logits

    def _around_sample(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        step, self.step = self.step, None
        if step is not None:
            self._keep_distribution(step, output.sampled_token_ids[:, 0])
        return output

    def _reduce(self, logits: torch.Tensor, seed_B: Array, index_B: Array, workspace: Workspace) -> Distribution:
        """`index_B` counts from the first completion token, so draws are the same however a row is captured."""
        drawn = self.signals.keep == "sampled"
        return Distribution(logits, self.signals, workspace, fractions(seed_B, index_B) if drawn else None)

    def _next_index(self) -> Array:
        """Which output token of each request the logits of this step belong to."""
        batch, count = self.runner.input_batch, len(self._batch().names)
        index: Array = (batch.num_tokens_no_spec[:count] - batch.num_prompt_tokens[:count]).astype(np.int64)
        return index

    def _keep_distribution(self, step: Distribution, sampled_B: torch.Tensor) -> None:
        batch = self._batch()
        # a request still inside its prompt samples nothing
        real_B = batch.keeps_B & ~self.runner.discard_request_mask.np[: len(batch.names)]
        if real_B.any():
            index_B = self._next_index() + self._first_index(batch.prompt_B)
            self._write(step, batch.slot_B, index_B, sampled_B, real_B)

    def _first_index(self, prompt_B: Array) -> Array:
        """Where the first completion token stands among a request's kept tokens: after the prompt's, if those are."""
        return prompt_B - 1 if self.signals.of_prompt else np.zeros_like(prompt_B)

    def _write(self, step: Distribution, slot_B: Array, index_B: Array, token_B: torch.Tensor, real_B: Array) -> None:
        rows_BW = step.rows(token_B)
        if not real_B.all():
            slot_B, index_B, rows_BW = slot_B[real_B], index_B[real_B], rows_BW[real_B]
        self.rows.write(slot_B, index_B, rows_BW)

    def _around_execute(self, inner: Callable[..., Any], scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler_output.preempted_req_ids:  # worth knowing: a larger cache would save the work done twice
            print(
                f"preempted {len(scheduler_output.preempted_req_ids)} requests: the key-value cache is full", flush=True
            )
        result = inner(scheduler_output, *args, **kwargs)
        outputs, self.outputs = self.outputs, {}
        inside = bool(outputs or self.experts or self._batch().attends_B.any())
        if not scheduler_output.total_num_scheduled_tokens:
            return result
        scores = bool(self.signals.top_k) and (self._any_scored() or (self.decoding and self.signals.of_prompt))
        if scores or (inside and (self.decoding or self._any_scored())):
            rows = self._rows_of_step(scheduler_output)
            if outputs and len(rows.row_N):
                self._keep_states(outputs, rows)
            if self.experts is not None and len(rows.row_N):
                self.experts.keep(rows)
            if self.attention is not None:
                self.attention.keep(rows, self._batch().attends_B)
            if scores:
                self._keep_scored(rows)
        return result

    def _any_scored(self) -> bool:
        return bool((self._batch().last_id_B >= 0).any())

    def _rows_of_step(self, scheduler_output: Any) -> StepRows:
        """Where each token of the step belongs, of the requests that are kept."""
        batch = self._batch()
        counts_B = np.array([scheduler_output.num_scheduled_tokens[name] for name in batch.names], np.int64)
        first_B = self.runner.input_batch.num_computed_tokens_cpu[: len(counts_B)].astype(np.int64)
        request_N = np.repeat(np.arange(len(counts_B)), counts_B)
        row_N = np.flatnonzero(batch.keeps_B[request_N])
        request_N = request_N[row_N]
        within_N = row_N - (np.cumsum(counts_B) - counts_B)[request_N]
        return StepRows(row_N, request_N, batch.slot_B[request_N], first_B[request_N] + within_N)

    def _keep_scored(self, rows: StepRows) -> None:
        """Compute and reduce the logits that predict tokens which exist: a scored completion, and a kept prompt."""
        batch, inputs = self._batch(), self.runner.input_batch
        given_B = inputs.num_prompt_tokens[: len(batch.names)].astype(np.int64)  # a scored completion is an input too
        scored_B = batch.last_id_B >= 0
        first_B = np.ones_like(given_B) if self.signals.of_prompt else np.where(scored_B, batch.prompt_B, given_B)
        token_N = rows.position_N + 1  # a position predicts the token after it
        end_B = given_B + scored_B  # the last id of a scored completion is no input, but predicted
        chosen = np.flatnonzero((token_N >= first_B[rows.request_N]) & (token_N < end_B[rows.request_N]))
        token_N, request_N = token_N[chosen], rows.request_N[chosen]
        known_N = inputs.token_ids_cpu[request_N, np.minimum(token_N, given_B[request_N] - 1)]
        target_N = np.where(token_N < given_B[request_N], known_N, batch.last_id_B[request_N]).astype(np.int64)
        index_N = token_N - batch.prompt_B[request_N]
        kept_N = index_N + self._first_index(batch.prompt_B)[request_N]
        slot_N, row_N, seed_N = rows.slot_N[chosen], rows.row_N[chosen], batch.seed_B[request_N]
        hidden_NH = self.runner.execute_model_state.hidden_states
        step = max(16, SCORED_LOGITS // self.runner.model_config.get_vocab_size())
        for part in np.array_split(np.arange(len(chosen)), -(-len(chosen) // step)) if len(chosen) else []:
            logits = self.compute_logits(hidden_NH[torch.from_numpy(row_N[part]).to(hidden_NH.device)])
            if self.keeps:  # with tensor parallelism every worker has a part in the logits
                target = torch.from_numpy(target_N[part]).to(logits.device)
                reduced = self._reduce(logits, seed_N[part], index_N[part], self.of_given)
                self._write(reduced, slot_N[part], kept_N[part], target, np.ones(len(part), np.bool_))

    def _keep_states(self, outputs: dict[int, torch.Tensor], step: StepRows) -> None:
        # models that vLLM runs through transformers keep a batch dimension of one before the tokens
        where = torch.from_numpy(step.row_N).to(outputs[self.layers[0]].device)
        rows = [outputs[layer].flatten(0, -2)[where] for layer in self.layers]
        states_NLH = torch.stack(rows, 1).to(torch.bfloat16)
        bits = states_NLH.flatten(1).cpu().view(torch.int16).numpy().view(np.uint16)
        if self.states is None:
            self.states = Pages(bits.shape[1], np.uint16, 0)
        self.states.write(step.slot_N, step.position_N, bits)

    def _batch(self) -> Batch:
        """The requests of the batch as it is now."""
        inputs = self.runner.input_batch
        if inputs.req_ids != self.batch.names:
            names = list(inputs.req_ids)
            prompts = inputs.num_prompt_tokens[: len(names)].tolist()
            known = [self.asked.get(name) or Asked(prompt, 0) for name, prompt in zip(names, prompts, strict=True)]
            self.batch = Batch(
                names,
                slot_B=np.array([self._slot(name) for name in names], np.int64),
                prompt_B=np.array([one.prompt for one in known], np.int64),
                seed_B=np.array([one.seed for one in known], np.int64),
                last_id_B=np.array([-1 if one.last_id is None else one.last_id for one in known], np.int64),
                attends_B=np.array([one.attends for one in known], np.bool_),
                keeps_B=np.array([one.keeps and (self.decoding or one.last_id is not None) for one in known], np.bool_),
            )
        return self.batch

    def _slot(self, name: str) -> int:
        if name not in self.slots:
            self.slots[name] = self.free_slots.pop() if self.free_slots else len(self.slots)
        return self.slots[name]

    def begin(self, name: str, asked: Asked) -> None:
        """What the batch itself does not tell of a request; to be told before its first step."""
        self.asked[name] = asked

    def take(self, name: str, tokens: int, inputs: int) -> dict[str, Array]:
        """The arrays of a finished request of `tokens` completion tokens and `inputs` input tokens; forgets it.

        Distributions are those of the completion, after those of the prompt's tokens but the first where these are
        kept.
        """
        slot, asked = self.slots.get(name), self.asked.get(name)
        if slot is None or not self.keeps or (asked is not None and not asked.keeps):
            self.drop(name)
            return {}
        arrays: dict[str, Array] = {}
        if self.signals.top_k:
            count = inputs if self.signals.of_prompt else tokens
            arrays |= split_rows(self.rows.take(slot, count), self.signals.top_k)
        if self.states is not None:
            arrays["bits_NLH"] = self.states.take(slot, inputs).reshape(-1, len(self.layers), self._hidden_size())
        arrays |= {} if self.experts is None else self.experts.take(slot, inputs)
        if self.attention is not None and asked is not None and asked.attends:
            arrays |= self.attention.take(slot, inputs)
        self.drop(name)
        return arrays

    def drop(self, name: str) -> None:
        """Forget a request."""
        self.asked.pop(name, None)
        slot = self.slots.pop(name, None)
        if slot is None:
            return
        for kept in (self.rows, self.states, self.experts, self.attention):
            if kept is not None:
                kept.drop(slot)
        self.free_slots.append(slot)
        self.batch = NO_BATCH

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
            elif layer == len(blocks) and self.signals.final_norm:
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


def find_missing(runner: Any) -> list[str]:
    """Which of the places that capture is taken at a model runner does not have."""
    needed = {
        runner: ("model", "_sample", "execute_model", "input_batch", "discard_request_mask", "execute_model_state"),
        getattr(runner, "model", None): ("compute_logits",),
        getattr(runner, "input_batch", None): ("req_ids", "num_tokens_no_spec", "num_prompt_tokens", "token_ids_cpu"),
    }
    return [name for owner, names in needed.items() for name in names if not hasattr(owner, name)]


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    inner = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(inner, *args, **kwargs))


class CaptureExtension:
    """Methods that vLLM adds to its worker; called by name through `collective_rpc`."""

    model_runner: Any
    factory_capture: Capture | None

    def factory_install(self, signals: SignalSpec, decoding: bool) -> list[str]:
        """Begin to capture, or name what this worker lacks for it.

        With tensor parallelism only the first worker keeps: it holds whole logits and states.
        """
        self.factory_capture = None
        missing = find_missing(self.model_runner)
        if signals.any and not missing:
            self.factory_capture = Capture(self.model_runner, signals, decoding, get_tp_group().rank_in_group == 0)
            self.factory_capture.install()
        return missing

    def factory_begin(self, name: str, prompt: int, seed: int, last_id: int | None, attends: bool, keeps: bool) -> None:
        """What is asked of a request: see `Asked`; to be told before its first step."""
        if self.factory_capture:
            self.factory_capture.begin(name, Asked(prompt, seed, last_id, attends, keeps))

    def factory_take(self, name: str, tokens: int, inputs: int) -> dict[str, Array]:
        """Arrays of a finished request; an empty dict from a worker that does not keep any."""
        return self.factory_capture.take(name, tokens, inputs) if self.factory_capture else {}

    def factory_drop(self, name: str) -> None:
        """Forget a request that will not be taken."""
        if self.factory_capture:
            self.factory_capture.drop(name)
