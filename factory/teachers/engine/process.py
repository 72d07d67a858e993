"""The engine's process: one vLLM engine fed from standard input, its results on the spool and in one event line each.

Started as `python -m factory.teachers.engine.process EVENT_FD` by `factory.teachers.vllm`. Input is JSON lines: the
setup, then prompts. Events are JSON lines: `ready`, `done` (where a generation stands on the spool), `alive`, or
`unfit` (the job cannot be served, and why). When the input ends the process ends, so it never outlives the one that
started it.
"""

import json
import os
import queue
import sys
import threading
import time
from typing import Any

from factory.errors import redact
from factory.teachers.engine.build import Unfit
from factory.teachers.engine.engine import Engine

SIGN_OF_LIFE_S = 1.0


def read_input(inbox: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Pass input lines on; at the end of input the process ends at once, whatever it is doing."""
    for line in sys.stdin:
        inbox.put(json.loads(line))
    os._exit(0)


def serve(engine: Engine, inbox: "queue.SimpleQueue[dict[str, Any]]", emit: Any) -> None:
    """Feed the engine and step it for ever; an `alive` event every second tells that it is at work."""
    last_sign = time.monotonic()
    while True:
        finished = []
        while not engine.requests or not inbox.empty():
            generation = engine.add(inbox.get())
            if generation is not None:
                finished.append(generation)
                break
        if engine.requests:
            finished += engine.step()
        for generation in finished:
            place = engine.spool.append(generation)
            emit({"event": "done", "segment": place.segment, "offset": place.offset})
        if time.monotonic() - last_sign > SIGN_OF_LIFE_S:
            last_sign = time.monotonic()
            emit({"event": "alive"})


def main() -> None:
    events = os.fdopen(int(sys.argv[1]), "w", buffering=1)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    setup = json.loads(sys.stdin.readline())
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=read_input, args=(inbox,), daemon=True).start()
    try:
        engine = Engine(setup)
    except Unfit as error:
        emit({"event": "unfit", "message": redact(str(error))})
        return
    emit({"event": "ready", "info": engine.info()})
    try:
        serve(engine, inbox, emit)
    except OSError as error:  # the spool's disk is full or gone: a new engine would meet the same
        emit({"event": "unfit", "message": f"{setup['spool']}: cannot be written: {error.strerror or error}"})


if __name__ == "__main__":
    main()
