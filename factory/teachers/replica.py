"""One of a teacher's engines: started, fed, heard, and started again when it dies, while the others go on.

    resting --its pause is over--> starting --ready--> live
       ^                              |                  |
       +-------- dies, too often: given up --------------+

Nothing here waits: `turn` in `vllm` waits for all replicas at once and lets each do what is due.
"""

import base64
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tenacity import RetryCallState, Retrying, wait_exponential

from factory.errors import DatasetError, TeacherError
from factory.job.teacher import TeacherConfig
from factory.records import Prompt
from factory.teachers.devices import Place
from factory.teachers.engine_process import EngineDied, EngineProcess
from factory.teachers.settings import wait_settings
from factory.teachers.spool import Place as SpoolPlace

Key = tuple[str, int]  # prompt id, attempt
ENGINE_ENVIRONMENT = {
    # one process that we can supervise: of two, the death of the inner one leaves the outer one waiting for ever
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # vLLM has some of its sampler's functions compiled even in an eager engine
    "TORCHDYNAMO_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
OVERRULED = {"VLLM_CPU_KVCACHE_SPACE"}  # whole GiB only, and stronger than teacher.kv_cache_gb
BOUND_CORES = {"VLLM_CPU_OMP_THREADS_BIND"}  # names cores for one engine; replicas are given theirs
PAUSE = wait_exponential(min=0.5, max=60)
NEVER = float("inf")


class Replica:
    """One place for an engine, the prompts that are in it, and what its deaths have told."""

    def __init__(
        self,
        number: int,
        setup: dict[str, Any],
        place: Place,
        log: Path,
        patience: TeacherConfig,
        tell: Callable[..., None],
    ) -> None:
        self.number = number
        self.setup = setup | {"replica": number, "cores": list(place.cores)}
        self.place = place
        self.log = log
        self.patience = patience
        self.tell = tell
        self.engine: EngineProcess | None = None
        # what gives its rows their meaning; None until it is live
        self.info: dict[str, Any] | None = None
        # by the monotonic clock: when it may start, when it was started, when it was last heard
        self.wakes = self.launched = self.heard = 0.0
        self.failed_starts = 0
        # sent to the engine that is live now, and unanswered
        self.in_engine: dict[Key, Prompt] = {}
        # were in an engine when it died; while there are any, they are asked alone and nothing else is
        self.suspects: dict[Key, Prompt] = {}
        # deaths, and no answer between them, nor a prompt found guilty
        self.deaths_in_a_row = 0
        # prompts found guilty, and no answer between them: an engine that dies on each of them is broken itself
        self.killers_in_a_row = 0
        self.rows = self.deaths = 0

    @property
    def live(self) -> bool:
        return self.info is not None

    @property
    def held(self) -> int:
        return len(self.in_engine) + len(self.suspects)

    # --- its engine ---

    def tend(self) -> None:
        """Start the engine, where there is none and its pause is over."""
        if self.engine is not None or time.monotonic() < self.wakes:
            return
        self.launched = time.monotonic()
        self._tell_stage("starting its process")
        given = {name: value for name, value in os.environ.items() if name not in self._overruled()}
        # looked at again at each start; whoever says in the environment how threads wait is obeyed
        waits = wait_settings(self.setup["shares"], self.place.cores)
        environment = waits | given | self._environment() | self.place.environment
        self.engine = EngineProcess(self.setup, environment, self.log)

    def _overruled(self) -> set[str]:
        return OVERRULED | (BOUND_CORES if self.place.cores else set())

    def _environment(self) -> dict[str, str]:
        environment = dict(ENGINE_ENVIRONMENT)
        # a job that is to be compiled needs the compiler
        if not self.setup["settings"].get("enforce_eager"):
            del environment["TORCHDYNAMO_DISABLE"]
        if Path(self.setup["teacher"]["model"]).is_dir():
            # nothing of a local model is on the hub, and asking it waits for time-outs where there is no network
            environment["HF_HUB_OFFLINE"] = "1"
        return environment

    def due(self, since: float) -> float:
        """When something is to be done about it although it is silent; nobody has listened to it before `since`."""
        if self.engine is None:
            return self.wakes
        if not self.live:
            return self.launched + self.patience.start_timeout_s
        # without a prompt it may be silent for as long as it likes
        return max(self.heard, since) + self.patience.hang_timeout_s if self.in_engine else NEVER

    def require_sign_of_life(self, since: float) -> None:
        """Raises EngineDied where it is silent for too long."""
        if self.engine is not None and time.monotonic() >= self.due(since):
            limit = self.patience.hang_timeout_s if self.live else self.patience.start_timeout_s
            raise EngineDied(f"no sign of life for {limit:g} s")

    def hear(self) -> list[SpoolPlace]:
        """Where the generations stand that it has told of. Raises EngineDied, and TeacherError where it is unfit."""
        assert self.engine is not None
        done = []
        for event in self.engine.receive():
            self.heard = time.monotonic()
            if event["event"] == "done":
                done.append(SpoolPlace(event["segment"], event["offset"]))
            elif event["event"] == "stage":
                self._tell_stage(event["stage"])
            elif event["event"] == "ready":
                self.info, self.failed_starts = event["info"], 0
            elif event["event"] == "unfit" and not self.live:
                raise TeacherError(event["message"])
            elif event["event"] == "unfit":
                # after `ready` only the spool's disk can be unfit
                raise DatasetError(f"{event['message']}; committed shards are whole, the same command resumes")
        return done

    def bury(self) -> dict[Key, Prompt]:
        """End the engine after a death, and let the next one start; the prompts that were in it."""
        # a hanging engine is not dead yet
        self.stop()
        self.deaths += 1
        self.failed_starts += not self.live
        self.wakes = time.monotonic() + (pause_after(self.failed_starts) if self.failed_starts else 0.0)
        self.info, lost, self.in_engine = None, self.in_engine, {}
        return lost

    def stop(self) -> None:
        if self.engine is not None:
            self.engine.stop()
            self.engine = None

    def hang_up(self) -> None:
        if self.engine is not None:
            self.engine.hang_up()

    # --- its prompts ---

    def ask(self, prompt: Prompt) -> None:
        """Send a prompt. Raises EngineDied, and has the prompt all the same."""
        assert self.engine is not None
        if not self.in_engine:
            self.heard = time.monotonic()  # it was silent because nobody asked
        self.in_engine[prompt.id, prompt.attempt] = prompt
        # what the engine's process needs of a prompt; the row's scenario and history stay here
        names = ("id", "attempt", "task", "messages", "seed", "keeps", "form", "tools")
        told = {name: getattr(prompt, name) for name in names} | {"sampling": asdict(prompt.sampling)}
        transcript = None if prompt.transcript is None else asdict(prompt.transcript)
        images = [base64.b64encode(png).decode("ascii") for png in prompt.images]
        self.engine.send(told | {"transcript": transcript, "images": images})

    def ask_suspect(self) -> None:
        """Send one of the suspects, alone, where nothing else is in the engine."""
        if self.suspects and not self.in_engine:
            key = next(iter(self.suspects))
            self.ask(self.suspects.pop(key))

    def answered(self, key: Key) -> None:
        """One of its prompts is answered: so the engine works."""
        del self.in_engine[key]
        self.rows += 1
        self.deaths_in_a_row = self.killers_in_a_row = 0

    def _tell_stage(self, stage: str) -> None:
        seconds = round(time.monotonic() - self.launched, 1)
        text = f"engine of {self.patience.model}: {stage} ({seconds:.0f} s since its start)"
        # of several that start together one tells people where they are, and each its later starts
        aloud = self.number == 0 or self.deaths > 0
        named = {"model": self.patience.model, "replica": self.number}
        self.tell("engine", text if aloud else None, **named, stage=stage, seconds=seconds)


def pause_after(failures: int) -> float:
    """Seconds until the next start after so many that failed: longer and longer."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = failures
    return float(PAUSE(state))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of what two engines say of themselves and do not agree in."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
