"""The engine's process: one vLLM engine fed from standard input, its results on the spool and in one event line each.

Started as `python -m factory.teachers.engine.process EVENT_FD` by `factory.teachers.vllm`. Input is JSON lines: the
setup, then prompts. Events are JSON lines: `stage` (what the start is at), `ready`, `done` (where a generation stands
on the spool), `alive`, or `unfit` (the job cannot be served, and why). When the input ends the process ends, so it
never outlives the one that started it.

    stdin  -> reading thread -> inbox -> main thread -> engine -> spool segment, then one event line
    prints of ours, of vLLM and of its libraries -> stdout and stderr -> engine.log, never the event pipe

Two threads, and each thing has one owner: the reading thread alone touches stdin; the main thread alone the engine, the
spool and the events. The inbox is all they share. Nothing is told before it is on the spool, so a generation that the
other side knows of survives this process, and one it does not know of is found there by the next run or asked again.

What an end means: `unfit` and then exit 0, nobody needs to start again; the input's end, exit 0; anything else is a
death, after which the other side starts a new process and asks what was open once more.
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
    # not sys.exit, which would end this thread alone while the other one may be minutes deep in a forward or a loading;
    # nothing is lost, as each frame and each event was flushed when it was written
    os._exit(0)


def serve(engine: Engine, inbox: "queue.SimpleQueue[dict[str, Any]]", emit: Any) -> None:
    """Feed the engine and step it for ever; an `alive` event every second tells that it is at work."""
    last_sign = time.monotonic()
    while True:
        finished = []
        # with work in the engine only what has come already is taken; without any, the next prompt is waited for.
        # Nobody misses a sign of life then: the other side waits for one only while a prompt is open
        # What waits for memory stays in the inbox, unanswered, and so nobody sends more
        while not engine.requests or (engine.reserve.has_room and not inbox.empty()):
            generation = engine.add(inbox.get())
            if generation is not None:
                # it could not be begun: told now, because the next turn of this loop may wait for ever
                finished.append(generation)
                break
        if engine.requests:
            finished += engine.step()
        for generation in finished:
            place = engine.spool.append(generation)
            emit({"event": "done", "segment": place.segment, "offset": place.offset})
        # after a step, not from a thread of its own: an engine that hangs inside a step is to fall silent
        if time.monotonic() - last_sign > SIGN_OF_LIFE_S:
            last_sign = time.monotonic()
            emit({"event": "alive"})


def main() -> None:
    events = os.fdopen(int(sys.argv[1]), "w", buffering=1)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    # read before the thread begins: from then on stdin is the thread's
    setup = json.loads(sys.stdin.readline())
    # before any thread begins, which keeps the cores that it begins with
    if setup["cores"]:
        os.sched_setaffinity(0, setup["cores"])
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    # begun before the engine is built: who started us may be gone before that is done
    threading.Thread(target=read_input, args=(inbox,), daemon=True).start()
    try:
        engine = Engine(setup, lambda stage: emit({"event": "stage", "stage": stage}))
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
