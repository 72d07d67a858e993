"""Hidden states that the model itself hands out: the way that compiled code and captured graphs leave open.

Many of vLLM's models can (`SupportsEagle3`, vllm/model_executor/models/interfaces.py, vLLM 0.32): told which layers,
they return those states beside their output. Id i there is the state after i blocks, before the final norm, and 0 what
goes into the first: the numbering of ours. The model has to be told before it is compiled, so right after it is loaded.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from factory.teachers.engine.runner import Runner
from factory.teachers.engine.wrap import wrap

# in `additional_config` of vLLM, which all workers have and which is part of what names a compiled model in its cache
KEY: Final = "factory_layers"


def inner_layers(layers: Sequence[int], final_norm: bool, last: int) -> list[int]:
    """Those of the kept layers that the model has to be asked for, ascending: not its own output."""
    return sorted(layer for layer in layers if not (final_norm and layer == last))


def can_hand_out(model_class: Any) -> bool:
    """Whether models of a class can."""
    from vllm.model_executor.models.interfaces import supports_eagle3

    return bool(supports_eagle3(model_class))


def hand_out_states() -> None:
    """Have the workers of this process ask their models for the layers that the engine's settings name."""
    from vllm.v1.worker.gpu_worker import Worker

    wrap(Worker, "load_model", _ask)


def _ask(inner: Callable[..., None], worker: Any, *args: Any, **kwargs: Any) -> None:
    inner(worker, *args, **kwargs)
    layers = worker.vllm_config.additional_config.get(KEY)
    if layers:
        runner = worker.model_runner
        runner.get_model().set_aux_hidden_state_layers(tuple(layers))
        # as if a drafter wanted them: both runners then take the model's output apart
        runner.use_aux_hidden_state_outputs = True


def handed_out(runner: Runner) -> bool:
    """Whether states come from the model itself."""
    return KEY in runner.additional_config
