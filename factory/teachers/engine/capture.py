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

What belongs to what. A step's tensors have a row for each of its input tokens, request after request in the batch's
order. Positions count from a request's first token, through prompt and completion. Here A generates, B is in the middle
of its prompt (a chunk of it), C comes to the end of its prompt of 8 tokens:

    row of the step       0       1    2    3       4    5
    request               A       B    B    B       C    C
    position             41       0    1    2       6    7      tokens computed before + place in the step
    hidden state        h41      h0   h1   h2      h6   h7      kept at (slot, position)
    logits            row 0               row 3        row 5    the last row of each request, so B of them
    sampled        token 42           thrown away    token 8    what the position before it predicts

So of P prompt and T completion tokens, where the last one is never an input:

    token          p0   p1  ...  pP-1   c0  ...  cT-2   cT-1
    state          h0   h1  ...  hP-1   hP  ...  hN-1    -      N = P + T - 1
    predicted by    -   h0  ...  hP-2  hP-1 ...  hN-2   hN-1    T distributions, or N with those of the prompt

A preempted request leaves the batch and is computed again from position 0 when it comes back. It keeps its slot, and
positions are absolute, so what is computed again overwrites itself; what it had sampled is an input then, and the
distributions it was drawn from stay as they are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.distributed.parallel_state import get_tp_group

from factory.signals import SignalSpec
from factory.teachers.engine.attention import AttentionKeeper
from factory.teachers.engine.batch import Asked, Roster
from factory.teachers.engine.distribution import Distribution, Workspace, fractions, row_width, split_rows
from factory.teachers.engine.layers import StateKeeper, find_blocks
from factory.teachers.engine.pages import Array, Pages, StepRows
from factory.teachers.engine.residual import ResidualProbe
from factory.teachers.engine.routing import ExpertKeeper
from factory.teachers.engine.runner_v1 import RunnerV1, find_missing

SCORED_LOGITS = 1 << 24  # logits held at once when a prefill is scored: 64 MB in float32


class Capture:
    """Everything kept of the requests now inside one worker: of every request while it generates (`decoding`), or of
    scored requests alone.

    `rows` has the packed distributions at (slot, index of the kept token), `states`, `experts` and `attention` what
    belongs to input tokens at (slot, position); each of these three is None where the job or this worker keeps none.
    `step` holds the distributions of the step between its logits and its samples, and is None outside.
    """

    def __init__(self, runner: RunnerV1, signals: SignalSpec, decoding: bool, keeps: bool) -> None:
        self.runner = runner
        self.signals = signals
        self.decoding = decoding
        self.keeps = keeps
        self.roster = Roster(runner, decoding)
        self.rows = Pages(row_width(signals), np.float32, np.nan)
        self.states: StateKeeper | None = None
        self.experts: ExpertKeeper | None = None
        self.attention: AttentionKeeper | None = None
        self.step: Distribution | None = None
        self.probe: ResidualProbe | None = None
        # execute_model ends between a step's logits and its samples: distributions that wait for their tokens must not
        # lose their memory to those of given tokens, which are made right there
        self.of_sampled, self.of_given = Workspace(), Workspace()

    def install(self) -> None:
        """Wrap the runner and hook the layers."""
        signals, model = self.signals, self.runner.model
        # a job that captures by prefill alone leaves the sampling path as vLLM has it
        if signals.top_k and self.decoding and self.keeps:
            self.runner.listen_to_samples(self._around_logits, self._around_sample)
        if signals.layers and self.keeps:
            self.states = StateKeeper(model, signals.layers, signals.final_norm)
        if signals.experts and self.keeps:
            self.experts = ExpertKeeper(model)
        if signals.attention:
            if get_tp_group().world_size > 1:
                raise ValueError("no worker has all heads where tensors are split; leave signals.attention out")
            self.attention = AttentionKeeper(model, signals.attention, signals.attention_tokens, self.runner.device)
        self.runner.listen_to_steps(self._around_execute)

    def _around_logits(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        logits = inner(*args, **kwargs)
        # what a step has left that never came to sample belongs to no token
        self.step = None
        # only the workers that logits are gathered to have them
        if logits is not None:
            batch = self.roster.now()
            index_B = self.runner.next_index_B(len(batch.names))
            self.step = self._reduce(logits, batch.seed_B, index_B, self.of_sampled)
        return logits

    def _around_sample(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        step, self.step = self.step, None
        if step is not None:
            # one column: speculation, which would bring more, is refused where anything is kept
            self._keep_distribution(step, output.sampled_token_ids[:, 0])
        return output

    def _reduce(self, logits: torch.Tensor, seed_B: Array, index_B: Array, workspace: Workspace) -> Distribution:
        """`index_B` counts from the first completion token, so draws are the same however a row is captured."""
        drawn = self.signals.keep == "sampled"
        return Distribution(logits, self.signals, workspace, fractions(seed_B, index_B) if drawn else None)

    def _keep_distribution(self, step: Distribution, sampled_B: torch.Tensor) -> None:
        batch, count = self.roster.now(), len(self.roster.now().names)
        # vLLM samples for every request and throws away what a request inside its prompt was given
        # neither is the one token after a scored completion anybody's
        real_B = batch.keeps_B & (batch.last_id_B < 0) & self.runner.samples_B(count)
        if real_B.any():
            # asked before the runner books the new tokens, so this is the index of the token just sampled
            index_B = self.runner.next_index_B(count) + self._first_index(batch.prompt_B)
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
        if scheduler_output.total_num_scheduled_tokens:
            self._keep_step(scheduler_output)
        if self.states is not None:
            self.states.end_step()
        return result

    def _keep_step(self, scheduler_output: Any) -> None:
        """Take what a forward has left behind of the step's input tokens."""
        batch = self.roster.now()
        inside = self.states is not None or self.experts is not None or bool(batch.attends_B.any())
        any_scored = bool((batch.last_id_B >= 0).any())
        # the same on every worker, as all are told the same: it takes all of them to compute the logits of given tokens
        scores = bool(self.signals.top_k) and (any_scored or (self.decoding and self.signals.of_prompt))
        if not (scores or (inside and (self.decoding or any_scored))):
            return
        rows = self.roster.rows_of_step(scheduler_output)
        if len(rows.row_N):
            if self.states is not None:
                self.states.keep(rows)
            if self.experts is not None:
                self.experts.keep(rows)
        if self.attention is not None:
            self.attention.keep(rows, batch.attends_B)
        if scores:
            self._keep_scored(rows)

    def _keep_scored(self, rows: StepRows) -> None:
        """Compute and reduce the logits that predict tokens which exist: a scored completion, and a kept prompt."""
        batch = self.roster.now()
        # to vLLM the inputs of a scored request are all prompt, P + T - 1 of them; batch.prompt_B has the P
        given_B = self.runner.given_B(len(batch.names))
        scored_B = batch.last_id_B >= 0
        # of a request that is not scored, either all prompt tokens but the first or, from its end on, none
        first_B = np.ones_like(given_B) if self.signals.of_prompt else np.where(scored_B, batch.prompt_B, given_B)
        token_N = rows.position_N + 1  # a position predicts the token after it
        end_B = given_B + scored_B  # the last id of a scored completion is no input, but predicted
        chosen = np.flatnonzero((token_N >= first_B[rows.request_N]) & (token_N < end_B[rows.request_N]))
        token_N, request_N = token_N[chosen], rows.request_N[chosen]
        # the last id of a scored completion is not among the runner's: any known one stands for it in the look-up
        known_N = self.runner.ids_at(request_N, np.minimum(token_N, given_B[request_N] - 1))
        target_N = np.where(token_N < given_B[request_N], known_N, batch.last_id_B[request_N]).astype(np.int64)
        # below 0 for the prompt's tokens
        index_N = token_N - batch.prompt_B[request_N]
        kept_N = index_N + self._first_index(batch.prompt_B)[request_N]
        slot_N, row_N, seed_N = rows.slot_N[chosen], rows.row_N[chosen], batch.seed_B[request_N]
        hidden_NH = self.runner.final_states_NH()
        # a long transcript's logits are never there all at once: positions x vocabulary would be gigabytes
        step = max(16, SCORED_LOGITS // self.runner.vocab_size)
        for part in np.array_split(np.arange(len(chosen)), -(-len(chosen) // step)) if len(chosen) else []:
            logits = self.runner.compute_logits(hidden_NH[torch.from_numpy(row_N[part]).to(hidden_NH.device)])
            if self.keeps:  # with tensor parallelism every worker has a part in the logits
                target = torch.from_numpy(target_N[part]).to(logits.device)
                reduced = self._reduce(logits, seed_N[part], index_N[part], self.of_given)
                self._write(reduced, slot_N[part], kept_N[part], target, np.ones(len(part), np.bool_))

    def learn(self) -> None:
        """Have the forwards from here on tell what each kept layer's block hands on."""
        # the last layer after the final norm is that norm's output
        norm_at = len(find_blocks(self.runner.model)[0]) if self.signals.final_norm else -1
        self.probe = ResidualProbe(self.runner.model, [layer for layer in self.signals.layers if layer != norm_at])

    def learned(self) -> list[int]:
        """Use what was found from here on; the layers of which nothing was."""
        assert self.probe is not None
        sums, self.probe = self.probe.finish(), None
        if self.states is not None:
            self.states.sums = sums
        return [layer for layer, is_sum in sums.items() if is_sum is None]

    def begin(self, name: str, asked: Asked) -> None:
        """What the batch itself does not tell of a request; to be told before its first step."""
        self.roster.begin(name, asked)

    def take(self, name: str, tokens: int, inputs: int) -> dict[str, Array]:
        """The arrays of a finished request of `tokens` completion tokens and `inputs` input tokens; forgets it.

        Distributions are those of the completion, after those of the prompt's tokens but the first where these are
        kept.
        """
        slot, asked = self.roster.slots.get(name), self.roster.asked.get(name)
        if slot is None or not self.keeps or (asked is not None and not asked.keeps):
            self.drop(name)
            return {}
        arrays: dict[str, Array] = {}
        if self.signals.top_k:
            # P - 1 of the prompt and T of the completion are as many as there were inputs
            count = inputs if self.signals.of_prompt else tokens
            arrays |= split_rows(self.rows.take(slot, count), self.signals.top_k)
        arrays |= {} if self.states is None else self.states.take(slot, inputs)
        arrays |= {} if self.experts is None else self.experts.take(slot, inputs)
        if self.attention is not None and asked is not None and asked.attends:
            arrays |= self.attention.take(slot, inputs)
        self.drop(name)
        return arrays

    def drop(self, name: str) -> None:
        """Forget a request."""
        slot = self.roster.forget(name)
        if slot is None:
            return
        for kept in (self.rows, self.states, self.experts, self.attention):
            if kept is not None:
                kept.drop(slot)


class CaptureExtension:
    """Methods that vLLM adds to its worker; called by name through `collective_rpc`."""

    model_runner: Any
    factory_capture: Capture | None

    def factory_install(self, signals: SignalSpec, decoding: bool) -> list[str]:
        """Begin to capture, or name what this worker lacks for it.

        With tensor parallelism only the first worker keeps: it holds whole logits and states.
        """
        # names begin with `factory_`: vLLM refuses an extension that has an attribute of its worker
        self.factory_capture = None
        missing = find_missing(self.model_runner)
        if signals.any and not missing:
            keeps = get_tp_group().rank_in_group == 0
            self.factory_capture = Capture(RunnerV1(self.model_runner), signals, decoding, keeps)
            self.factory_capture.install()
        return missing

    def factory_learn(self, begin: bool) -> list[int]:
        """Begin to find out what the layers hand on, or end that: see `Capture.learn`."""
        if not self.factory_capture:
            return []
        if begin:
            self.factory_capture.learn()
            return []
        return self.factory_capture.learned()

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
