"""Which of vLLM's model runners a worker has: vLLM chooses, by the machine and the job, and capture follows."""

from typing import Any

from factory.teachers.engine import runner_v1, runner_v2
from factory.teachers.engine.runner import Runner


def find_missing(runner: Any) -> list[str]:
    """Which of the places that capture is taken at a worker's model runner does not have."""
    return (runner_v2 if is_v2(runner) else runner_v1).find_missing(runner)


def wrap_runner(runner: Any) -> Runner:
    """A worker's model runner as capture sees it."""
    return runner_v2.RunnerV2(runner) if is_v2(runner) else runner_v1.RunnerV1(runner)


def is_v2(runner: Any) -> bool:
    """Whether it is vLLM's second one."""
    return bool(runner.vllm_config.use_v2_model_runner)
