"""vLLM's first model runner as capture sees it (vllm/v1/worker/gpu_model_runner.py and gpu_input_batch.py, vLLM 0.32).

The one place that knows its private names. It runs where Triton is not: on processors, most of all. Its order: the
forward and its logits inside `execute_model`, the grammar's mask and the samples inside `sample_tokens`.
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
        runner: ("model", "_sample", "execute_model", "input_batch", "discard_request_mask", "execute_model_state"),
        getattr(runner, "model", None): ("compute_logits",),
        getattr(runner, "input_batch", None): ("req_ids", "num_tokens_no_spec", "num_prompt_tokens", "token_ids_cpu"),
    }
    return lacking(needed)


class RunnerV1:
    """A model runner of the first kind."""

    kind = "v1"

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.compute_logits = runner.model.compute_logits
        self.device = runner.device
        self.scheduled: Any = None
        # of the step the runner is in; made when it is first asked for
        self.step: Step | None = None

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self.runner.get_model()
        return model

    @property
    def vocab_size(self) -> int:
        return int(self.runner.model_config.get_vocab_size())

    @property
    def additional_config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.runner.vllm_config.additional_config
        return config

    def listen(self, listener: Listener, samples: bool) -> None:
        def around_execute(inner: Callable[..., Any], scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            self.scheduled, self.step = scheduled, None
            result = inner(scheduled, *args, **kwargs)
            if scheduled.total_num_scheduled_tokens:
                # between execute_model and sample_tokens the runner keeps its results here, and nowhere afterwards
                state = self.runner.execute_model_state
                listener.keep_forward(self._now(), state.hidden_states, state.aux_hidden_states, self)
            return result

        def around_logits(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            logits = inner(*args, **kwargs)
            listener.keep_logits(self._now(), logits)
            return logits

        def around_sample(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            # one column: speculation, which would bring more, is refused where anything is kept
            listener.keep_sampled(self._now(), output.sampled_token_ids[:, 0])
            return output

        if samples:
            # called before the grammar's mask is laid over the logits, which happens in place
            wrap(self.runner.model, "compute_logits", around_logits)
            wrap(self.runner, "_sample", around_sample)
        wrap(self.runner, "execute_model", around_execute)

    def _now(self) -> Step:
        """The step that the runner is in: from its logits on until the next one is prepared."""
        if self.step is None:
            batch, scheduled = self.runner.input_batch, self.scheduled
            names = list(batch.req_ids)  # a copy, as the runner changes its own list in place
            count = len(names)
            given_B = batch.num_prompt_tokens[:count].astype(np.int64)
            self.step = Step(
                names,
                given_B,
                # as it was when the step began: the runner adds the step's tokens when the next one is prepared
                first_B=batch.num_computed_tokens_cpu[:count].astype(np.int64),
                counts_B=np.array([scheduled.num_scheduled_tokens[name] for name in names], np.int64),
                # tokens that are known, prompt and output; `no_spec`: none that a speculation has only guessed. The
                # runner books the new tokens after it has sampled them
                next_index_B=batch.num_tokens_no_spec[:count].astype(np.int64) - given_B,
                samples_B=~self.runner.discard_request_mask.np[:count],
                preempted=len(scheduled.preempted_req_ids or ()),
            )
        return self.step

    def ids_at(self, request_N: Array, position_N: Array) -> Array:
        ids_N: Array = self.runner.input_batch.token_ids_cpu[request_N, position_N]
        return ids_N
