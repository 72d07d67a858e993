"""Signals taken inside the engine's worker: the teacher's own distribution at each token, and its hidden states.

Loaded into vLLM's worker through `worker_extension_cls`, driven through `collective_rpc`. The worker's model runner
(`runner_v1`, `runner_v2`) tells of every step:

    logits    before temperature and grammar mask; everything kept is reduced here
    sampled   which tokens were drawn, after mask and temperature, on the device: nobody has waited for them
    forward   what the layers put out, and what the logits are computed from

Nothing here waits for the device: what is kept is copied beside the engine's work (`copies`). Routes of
experts and attention maps have places of their own, inside the layers: `ExpertKeeper`, `AttentionKeeper`.

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

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.distributed.parallel_state import get_tp_group

from factory.signals import SignalSpec
from factory.teachers.engine.attention import AttentionKeeper
from factory.teachers.engine.batch import Asked, Batch, Roster, named_of
from factory.teachers.engine.candidates import CandidateKeeper
from factory.teachers.engine.copies import open_copies, to_device
from factory.teachers.engine.distribution import Distribution, Workspace, fractions, row_width, split_rows
from factory.teachers.engine.handing_out import hand_out_states, handed_out
from factory.teachers.engine.layers import StateKeeper, find_blocks
from factory.teachers.engine.pages import Array, Pages, StepRows
from factory.teachers.engine.reduce import Reduced, reduce_logits
from factory.teachers.engine.residual import ResidualProbe
from factory.teachers.engine.routing import ExpertKeeper
from factory.teachers.engine.runner import Known, Runner, Step
from factory.teachers.engine.runners import find_missing, wrap_runner

SCORED_LOGITS = 1 << 24  # logits held at once when a prefill is scored: 64 MB in float32


class Capture:
    """Everything kept of the requests now inside one worker: of every request while it generates (`decoding`), or of
    scored requests alone. It is the `Listener` of the worker's runner.

    `rows` has the packed distributions at (slot, index of the kept token), `states`, `experts` and `attention` what
    belongs to input tokens at (slot, position); each of these three is None where the job or this worker keeps none.
    `step` holds the distributions of the step between its logits and its samples, and is None outside.
    """

    def __init__(self, runner: Runner, signals: SignalSpec, decoding: bool, keeps: bool) -> None:
        self.runner = runner
        self.signals = signals
        self.decoding = decoding
        self.keeps = keeps
        self.roster = Roster(decoding)
        self.copies = open_copies(runner.device)
        self.rows = Pages(row_width(signals), np.float32, np.nan)
        self.states: StateKeeper | None = None
        self.experts: ExpertKeeper | None = None
        self.attention: AttentionKeeper | None = None
        self.candidates = CandidateKeeper() if signals.candidates and keeps else None
        self.step: Reduced | None = None
        self.probe: ResidualProbe | None = None
        # a runner may make a step's logits before it is done with the forward: distributions that wait for their tokens
        # must not lose their memory to those of given tokens, which are made right there
        self.of_sampled, self.of_given = Workspace(), Workspace()

    def install(self) -> None:
        """Listen to the runner and hook the layers."""
        signals, model = self.signals, self.runner.model
        if signals.layers and self.keeps:
            self.states = StateKeeper(model, signals.layers, signals.final_norm, handed_out(self.runner))
        if signals.experts and self.keeps:
            self.experts = ExpertKeeper(model)
        if signals.attention:
            if get_tp_group().world_size > 1:
                raise ValueError("no worker has all heads where tensors are split; leave signals.attention out")
            self.attention = AttentionKeeper(model, signals.attention, signals.attention_tokens, self.runner.device)
        # a job that captures by prefill alone leaves the sampling path as vLLM has it
        self.runner.listen(self, samples=bool(signals.top_k and self.decoding and self.keeps))

    def keep_logits(self, step: Step, logits_BV: torch.Tensor | None) -> None:
        """Reduce a step's logits, which wait for their tokens then."""
        # what a step has left that never came to sample belongs to no token
        self.step = None
        # only the workers that logits are gathered to have them
        if logits_BV is not None:
            self.step = self._reduce(logits_BV, self.roster.of(step).seed_B, step.next_index_B, self.of_sampled)

    def keep_sampled(self, step: Step, sampled_B: torch.Tensor) -> None:
        """Keep a step's distributions, of the requests that have sampled a token of theirs."""
        reduced, self.step = self.step, None
        if reduced is None:
            return
        batch = self.roster.of(step)
        # vLLM samples for every request and throws away what a request inside its prompt was given
        # neither is the one token after a scored completion anybody's
        real_B = batch.keeps_B & (batch.last_id_B < 0) & step.samples_B
        if real_B.any():
            self._write(reduced, batch.slot_B, step.next_index_B + self._first_index(batch.prompt_B), sampled_B, real_B)

    def _reduce(self, logits: torch.Tensor, seed_B: Array, index_B: Array, workspace: Workspace) -> Reduced:
        """`index_B` counts from the first completion token, so draws are the same however a row is captured."""
        if self.signals.keep == "sampled":
            return Distribution(logits, self.signals, workspace, fractions(seed_B, index_B))
        return reduce_logits(logits, self.signals, workspace)

    def _first_index(self, prompt_B: Array) -> Array:
        """Where the first completion token stands among a request's kept tokens: after the prompt's, if those are."""
        return prompt_B - 1 if self.signals.of_prompt else np.zeros_like(prompt_B)

    def _write(self, step: Reduced, slot_B: Array, index_B: Array, token_B: torch.Tensor, real_B: Array) -> None:
        self.copies.send(step.pack(token_B), self.rows, slot_B, index_B, None if real_B.all() else real_B)

    def keep_forward(
        self, step: Step, final_NH: torch.Tensor, layers_NH: Sequence[torch.Tensor] | None, known: Known
    ) -> None:
        """Take what a forward has left behind of the step's input tokens."""
        if step.preempted:  # worth knowing: a larger cache would save the work done twice
            print(f"preempted {step.preempted} requests: the key-value cache is full", flush=True)
        if self.states is not None:
            self.states.receive(final_NH, layers_NH)
            if self.probe is not None and self.states.hands_out:
                self.probe.compare(self.states.handed_out())
        self._keep_step(step, final_NH, known)
        if self.states is not None:
            self.states.end_step()

    def _keep_step(self, step: Step, final_NH: torch.Tensor, known: Known) -> None:
        batch = self.roster.of(step)
        inside = self.states is not None or self.experts is not None or bool(batch.attends_B.any())
        any_scored = bool((batch.last_id_B >= 0).any())
        # the same on every worker, as all are told the same: it takes all of them to compute the logits of given tokens
        scores = bool(self.signals.top_k) and (any_scored or (self.decoding and self.signals.of_prompt))
        if not (scores or (inside and (self.decoding or any_scored))):
            return
        rows = self.roster.rows_of(step)
        if len(rows.row_N):
            if self.states is not None:
                self.states.keep(rows, self.copies)
            if self.experts is not None:
                self.experts.keep(rows, self.copies)
        if self.attention is not None:
            self.attention.keep(rows, batch.attends_B, self.copies)
        if scores:
            self._keep_scored(step, batch, rows, final_NH, known)

    def _keep_scored(self, step: Step, batch: Batch, rows: StepRows, final_NH: torch.Tensor, known: Known) -> None:
        """Compute and reduce the logits that predict tokens which exist: a scored completion, and a kept prompt."""
        # to vLLM the inputs of a scored request are all prompt, P + T - 1 of them; batch.prompt_B has the P
        given_B, scored_B = step.given_B, batch.last_id_B >= 0
        # of a request that is not scored, either all prompt tokens but the first or, from its end on, none
        first_B = np.ones_like(given_B) if self.signals.of_prompt else np.where(scored_B, batch.prompt_B, given_B)
        token_N = rows.position_N + 1  # a position predicts the token after it
        end_B = given_B + scored_B  # the last id of a scored completion is no input, but predicted
        chosen = np.flatnonzero((token_N >= first_B[rows.request_N]) & (token_N < end_B[rows.request_N]))
        token_N, request_N = token_N[chosen], rows.request_N[chosen]
        # the last id of a scored completion is not among the runner's: any known one stands for it in the look-up
        known_N = known.ids_at(request_N, np.minimum(token_N, given_B[request_N] - 1))
        target_N = np.where(token_N < given_B[request_N], known_N, batch.last_id_B[request_N]).astype(np.int64)
        # below 0 for the prompt's tokens
        index_N = token_N - batch.prompt_B[request_N]
        kept_N = index_N + self._first_index(batch.prompt_B)[request_N]
        slot_N, row_N, seed_N = rows.slot_N[chosen], rows.row_N[chosen], batch.seed_B[request_N]
        # a long transcript's logits are never there all at once: positions x vocabulary would be gigabytes
        most = max(16, SCORED_LOGITS // self.runner.vocab_size)
        for part in np.array_split(np.arange(len(chosen)), -(-len(chosen) // most)) if len(chosen) else []:
            logits = self.runner.compute_logits(final_NH[to_device(row_N[part], final_NH.device)])
            if self.keeps:  # with tensor parallelism every worker has a part in the logits
                target = to_device(target_N[part], logits.device)
                reduced = self._reduce(logits, seed_N[part], index_N[part], self.of_given)
                self._write(reduced, slot_N[part], kept_N[part], target, np.ones(len(part), np.bool_))
                if self.candidates is not None:
                    of_part = request_N[part], slot_N[part], index_N[part]
                    self.candidates.keep(reduced, batch.named, *of_part, self.copies)

    def learn(self) -> None:
        """Have the forwards from here on tell what each kept layer's block hands on."""
        # the last layer after the final norm is that norm's output
        norm_at = len(find_blocks(self.runner.model)[0]) if self.signals.final_norm else -1
        layers = [layer for layer in self.signals.layers if layer != norm_at]
        self.probe = ResidualProbe(self.runner.model, layers, handed_out(self.runner))

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
        # P - 1 of the prompt and T of the completion are as many as there were inputs
        count = inputs if self.signals.of_prompt else tokens
        named = None if asked is None or self.candidates is None else asked.named
        of_inputs = [keeper for keeper in (self.states, self.experts, self.attention) if keeper is not None]
        lengths = {self.rows: count} | {part: inputs for keeper in of_inputs for part in keeper.pages}
        if self.candidates is not None and named is not None:
            lengths[self.candidates.pages] = len(named.ids_M)
        self.copies.finish(slot, lengths)
        arrays: dict[str, Array] = {}
        if self.candidates is not None and named is not None:
            arrays |= self.candidates.take(slot, named)
        if self.signals.top_k:
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
        self.copies.forget(slot)
        for kept in (self.rows, self.states, self.experts, self.attention, self.candidates):
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
            self.factory_capture = Capture(wrap_runner(self.model_runner), signals, decoding, keeps)
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

    def factory_begin(
        self,
        name: str,
        prompt: int,
        seed: int,
        last_id: int | None,
        attends: bool,
        keeps: bool,
        candidates: tuple[list[int], list[int]] | None = None,
    ) -> None:
        """What is asked of a request: see `Asked`; to be told before its first step. `candidates`: flat ids, and how
        many of them each completion token has."""
        if self.factory_capture:
            named = None if candidates is None else named_of(*candidates)
            self.factory_capture.begin(name, Asked(prompt, seed, last_id, attends, keeps, named))

    def factory_take(self, name: str, tokens: int, inputs: int) -> dict[str, Array]:
        """Arrays of a finished request; an empty dict from a worker that does not keep any."""
        return self.factory_capture.take(name, tokens, inputs) if self.factory_capture else {}

    def factory_drop(self, name: str) -> None:
        """Forget a request that will not be taken."""
        if self.factory_capture:
            self.factory_capture.drop(name)


# vLLM imports this module in each worker before it makes one, and workers may be processes of their own: the only
# chance to be heard before a model is compiled
hand_out_states()
