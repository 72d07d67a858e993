"""An engine's process with everything of the real one but the engine: same pipes, same spool, same loop.

It answers a few prompts at a time, in an order of its own. A prompt's text may ask for more: POISON ends the process,
FREEZE stops it, both as long as the prompt is in it; DEAF stops reading its input.
"""

import json
import os
import queue
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from factory.records import Generation

# the real one imports torch, and this process is started dozens of times
sys.modules["factory.teachers.engine.engine"] = SimpleNamespace(Engine=None)  # type: ignore[assignment]
sys.modules["factory.teachers.engine.build"] = SimpleNamespace(Unfit=Exception)  # type: ignore[assignment]

from factory.teachers.engine.process import read_input, serve  # noqa: E402
from factory.teachers.spool import SpoolWriter  # noqa: E402

AT_ONCE = 4


class StandIn:
    """What `serve` needs of an engine."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.spool = SpoolWriter(Path(setup["spool"]), setup["replica"])
        self.requests: dict[str, Any] = {}
        self.reserve = SimpleNamespace(has_room=True)
        self.rng = random.Random(os.getpid())
        self.step_s = float(os.environ.get("STAND_IN_STEP_S", "0.002"))

    def add(self, prompt: dict[str, Any]) -> Generation | None:
        self.requests[f"{prompt['id']}.{prompt['attempt']}"] = prompt
        return None

    def step(self) -> list[Generation]:
        time.sleep(self.step_s)
        for prompt in self.requests.values():
            asked = prompt["messages"][-1]["content"]
            if "POISON" in asked:
                os._exit(3)
            if "FREEZE" in asked:
                os.kill(os.getpid(), signal.SIGSTOP)
        names = self.rng.sample(sorted(self.requests), min(AT_ONCE, len(self.requests)))
        return [answer(self.requests.pop(name)) for name in names]


def answer(prompt: dict[str, Any]) -> Generation:
    ids = np.arange(3, dtype=np.int32)
    text = f"{prompt['id']} {prompt['seed']}"
    return Generation(prompt["id"], prompt["attempt"], text, None, text, ids, ids, 0, "stop")


def main() -> None:
    events = os.fdopen(int(sys.argv[1]), "w", buffering=1)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    setup = json.loads(sys.stdin.readline())
    emit({"event": "stage", "stage": "standing in"})
    how = setup["teacher"].get("how", {}).get(str(setup["replica"]), "")
    if how == "unfit":
        emit({"event": "unfit", "message": "teacher: not fit"})
        return
    if how == "stillborn":
        os._exit(4)
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    engine = StandIn(setup)
    emit({"event": "ready", "info": {"dtype": "float16" if how == "float16" else "float32"}})
    if how == "deaf":
        os.kill(os.getpid(), signal.SIGSTOP)
    threading.Thread(target=read_input, args=(inbox,), daemon=True).start()
    serve(engine, inbox, emit)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
