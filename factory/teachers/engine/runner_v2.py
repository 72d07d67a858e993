"""vLLM's second model runner as capture sees it (vllm/v1/worker/gpu/model_runner.py, input_batch.py and states.py).

The one place that knows its private names (vLLM 0.32). vLLM's choice wherever Triton is, so on GPUs. Requests have
slots that do not move, and a mapping says which rows of a step are theirs; nothing of a step comes to the host by
itself. Its order: the forward inside `execute_model`; logits, the grammar's mask and the samples inside `sample`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from factory.teachers.engine.pages import Array
from factory.teachers.engine.runner import Listener, Step, lacking
from factory.teachers.engine.wrap import wrap


def find_missing(runner: Any) -> list[str]:
    """Which of the places that capture is taken at a model runner does not have."""
    needed = {
        runner: ("model", "sample", "execute_model", "req_states", "execute_model_state"),
        getattr(runner, "model", None): ("compute_logits",),
        getattr(runner, "req_states", None): ("prompt_len",),
    }
    return lacking(needed)


class RunnerV2:
    """A model runner of the second kind."""

    kind = "v2"

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.compute_logits = runner.model.compute_logits
        self.device = runner.device
        self.step: Step | None = None
        # by name: the ids that a request came with, as the scheduler sends them. The runner's own copy is on the device
        self.given: dict[str, list[int]] = {}

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self.runner.get_model()
        return model

    @property
    def vocab_size(self) -> int:
        return int(self.runner.vocab_size)

    @property
    def additional_config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.runner.vllm_config.additional_config
        return config

    def listen(self, listener: Listener, samples: bool) -> None:
        def around_execute(
            inner: Callable[..., Any], scheduled: Any, *args: Any, dummy_run: bool = False, **kwargs: Any
        ) -> Any:
            if not dummy_run:
                self._note_given(scheduled)
            result = inner(scheduled, *args, dummy_run=dummy_run, **kwargs)
            if scheduled.total_num_scheduled_tokens and not dummy_run:
                # between execute_model and sample_tokens the runner keeps its results here, and nowhere afterwards
                state = self.runner.execute_model_state
                self.step = self._step_of(state.input_batch, scheduled)
                listener.keep_forward(self.step, state.hidden_states, state.aux_hidden_states, self)
            return result

        def around_logits(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            logits = inner(*args, **kwargs)
            if self.step is not None:
                listener.keep_logits(self.step, logits)
            return logits

        def around_sample(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            if self.step is not None:
                # one column: speculation, which would bring more, is refused where anything is kept
                listener.keep_sampled(self.step, result[0].sampled_token_ids[:, 0])
            return result

        if samples:
            # called before the grammar's mask is laid over the logits, which happens in place
            wrap(self.runner.model, "compute_logits", around_logits)
            wrap(self.runner, "sample", around_sample)
        wrap(self.runner, "execute_model", around_execute)

    def _note_given(self, scheduled: Any) -> None:
        for name in scheduled.finished_req_ids:
            self.given.pop(name, None)
        # a request that comes back after a preemption is new to this runner, and its own output is part of its ids
        for new in scheduled.scheduled_new_reqs:
            self.given[new.req_id] = new.prefill_token_ids

    def _step_of(self, batch: Any, scheduled: Any) -> Step:
        # what is on the host already: nothing here waits for the device
        given_B = self.runner.req_states.prompt_len.np[batch.idx_mapping_np].astype(np.int64)
        first_B = batch.num_computed_tokens_np.astype(np.int64)
        counts_B = batch.num_scheduled_tokens.astype(np.int64)
        return Step(
            list(batch.req_ids),
            given_B,
            first_B,
            counts_B,
            next_index_B=first_B + counts_B - given_B,
            # what has to be computed before it samples: its prompt, and after a preemption what it had said too
            samples_B=first_B + counts_B >= batch.prefill_len_np,
            preempted=len(scheduled.preempted_req_ids or ()),
        )

    def ids_at(self, request_N: Array, position_N: Array) -> Array:
        assert self.step is not None
        ids_N = np.zeros(len(request_N), np.int64)
        for request in np.unique(request_N):
            here = request_N == request
            first, last = int(position_N[here].min()), int(position_N[here].max())
            known = np.array(self.given[self.step.names[request]][first : last + 1], np.int64)
            ids_N[here] = known[position_N[here] - first]
        return ids_N
