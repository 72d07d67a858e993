"""vLLM's first model runner as capture sees it (vllm/v1/worker/gpu_model_runner.py and gpu_input_batch.py, vLLM 0.32).

The one place that knows its private names: what may be listened at, and which numbers tell what a step was. B requests
of a step, in the order of every row that the runner computes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from factory.teachers.engine.pages import Array
from factory.teachers.engine.wrap import wrap

Around = Callable[..., Any]


def find_missing(runner: Any) -> list[str]:
    """Which of the places that capture is taken at a model runner does not have."""
    needed = {
        runner: ("model", "_sample", "execute_model", "input_batch", "discard_request_mask", "execute_model_state"),
        getattr(runner, "model", None): ("compute_logits",),
        getattr(runner, "input_batch", None): ("req_ids", "num_tokens_no_spec", "num_prompt_tokens", "token_ids_cpu"),
    }
    return [name for owner, names in needed.items() for name in names if not hasattr(owner, name)]


class RunnerV1:
    """A model runner of the first kind; all arrays are of the step it is in."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        # the model's own, before anything listens to it: logits of given tokens are no step's logits
        self.compute_logits = runner.model.compute_logits
        self.device = runner.device

    @property
    def model(self) -> nn.Module:
        """The model itself, without what the runner wraps around it."""
        model: nn.Module = self.runner.get_model()
        return model

    @property
    def vocab_size(self) -> int:
        return int(self.runner.model_config.get_vocab_size())

    def listen_to_steps(self, around: Around) -> None:
        """`around(inner, scheduler_output)`: the forward of a step and its logits."""
        wrap(self.runner, "execute_model", around)

    def listen_to_samples(self, around_logits: Around, around_sample: Around) -> None:
        """`around_logits(inner, ...)` and `around_sample(inner, ...)`: the logits, then the tokens drawn from them."""
        # called before the grammar's mask is laid over the logits, which happens in place
        wrap(self.runner.model, "compute_logits", around_logits)
        wrap(self.runner, "_sample", around_sample)

    def names(self) -> list[str]:
        """The requests of the batch."""
        names: list[str] = self.runner.input_batch.req_ids
        return names

    def given_B(self, count: int) -> Array:
        """How many tokens each request came with: its prompt, and, where it is scored, all but its last token."""
        given_B: Array = self.runner.input_batch.num_prompt_tokens[:count].astype(np.int64)
        return given_B

    def next_index_B(self, count: int) -> Array:
        """Which output token of each request the logits of this step belong to: as many as it has already."""
        # tokens that are known, prompt and output; `no_spec`: none that a speculation has only guessed
        known_B = self.runner.input_batch.num_tokens_no_spec[:count].astype(np.int64)
        index_B: Array = known_B - self.given_B(count)
        return index_B

    def samples_B(self, count: int) -> Array:
        """Whether the token sampled for each request counts: not while it is still inside its prompt."""
        # set by the runner where prompt or, after a preemption, known output is left to compute after this step
        samples_B: Array = ~self.runner.discard_request_mask.np[:count]
        return samples_B

    def first_position_B(self, count: int) -> Array:
        """The absolute position of each request's first token in this step."""
        # as it was when the step began: the runner adds the step's tokens when the next one is prepared
        first_B: Array = self.runner.input_batch.num_computed_tokens_cpu[:count].astype(np.int64)
        return first_B

    def ids_at(self, request_N: Array, position_N: Array) -> Array:
        """Token ids that are known, by the request's place in the batch and the token's position."""
        ids_N: Array = self.runner.input_batch.token_ids_cpu[request_N, position_N]
        return ids_N

    def final_states_NH(self) -> torch.Tensor:
        """What the step's logits are computed from, a row for each of its tokens."""
        # between execute_model and sample_tokens the runner keeps its results here, and nowhere afterwards
        states_NH: torch.Tensor = self.runner.execute_model_state.hidden_states
        return states_NH
