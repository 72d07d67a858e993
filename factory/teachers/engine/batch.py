"""Who is in a step: the batch's requests in order, with the slot each has and what was asked of it.

The runner knows requests by name and moves them about; slots do not move, so what is kept is addressed by slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from factory.teachers.engine.pages import Array, StepRows
from factory.teachers.engine.runner import Step


@dataclass(frozen=True, slots=True)
class Named:
    """Ids that are given log-probabilities too: the candidates of one scored request."""

    # int64 [M], token after token
    ids_M: Array
    # int64 [T + 1]: those of completion token t are entries ends_T[t] to ends_T[t + 1] - 1
    ends_T: Array


def named_of(ids: Sequence[int], counts: Sequence[int]) -> Named:
    """Flat ids, and how many of them each completion token has."""
    return Named(np.array(ids, np.int64), np.cumsum([0, *counts], dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request from its beginning, and cannot be read off the batch."""

    # P, the tokens of the prompt: of a request to be scored the batch has only prompt and completion together
    prompt: int
    # of the row's random draws; 0 where none are made
    seed: int
    # the last id of a completion to be scored, which is predicted but never an input; None where the request generates
    last_id: int | None = None
    # whether this row is among the share whose attention is kept
    attends: bool = False
    # whether anything is: not of a judge's answers, which become no rows
    keeps: bool = True
    # of a scored completion the ids that are given log-probabilities beside what else is kept
    named: Named | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The B requests of a step, in the order of every row that the engine computes. All arrays are [B].

    It belongs to one order of names. The runner changes that order whenever a request comes, goes or is preempted; a
    step of the same names has the same batch.
    """

    # the engine's own names
    names: list[str]
    # int64: where what is kept of a request stands in every `Pages`
    slot_B: Array
    # int64: P, tokens of the prompt
    prompt_B: Array
    # int64: of the draws
    seed_B: Array
    # int64: -1 where the request generates
    last_id_B: Array
    # bool: whose attention is kept
    attends_B: Array
    # bool: of which anything is kept at all: all but a judge's, and, where only prefills are scored, those
    keeps_B: Array
    # whose ids are given log-probabilities too, by request
    named: list[Named | None]


NO_NUMBERS = np.zeros(0, np.int64)
NO_BATCH = Batch([], NO_NUMBERS, NO_NUMBERS, NO_NUMBERS, NO_NUMBERS, np.zeros(0, np.bool_), np.zeros(0, np.bool_), [])


class Roster:
    """The requests inside one worker, from `begin`, or their first step, until they are forgotten."""

    def __init__(self, decoding: bool) -> None:
        self.decoding = decoding
        self.asked: dict[str, Asked] = {}
        # a preempted request is in no batch for a while, and still has its slot
        self.slots: dict[str, int] = {}
        self.free_slots: list[int] = []
        self.batch = NO_BATCH

    def begin(self, name: str, asked: Asked) -> None:
        """What the batch itself does not tell of a request."""
        self.asked[name] = asked

    def of(self, step: Step) -> Batch:
        """The requests of a step."""
        # most steps have the requests of the one before: comparing names is all they cost
        if step.names != self.batch.names:
            names = step.names
            # who was not told of has nothing special about it, and its prompt is what the runner says
            prompts = step.given_B.tolist()
            known = [self.asked.get(name) or Asked(prompt, 0) for name, prompt in zip(names, prompts, strict=True)]
            self.batch = Batch(
                names,
                slot_B=np.array([self._slot(name) for name in names], np.int64),
                prompt_B=np.array([one.prompt for one in known], np.int64),
                seed_B=np.array([one.seed for one in known], np.int64),
                last_id_B=np.array([-1 if one.last_id is None else one.last_id for one in known], np.int64),
                attends_B=np.array([one.attends for one in known], np.bool_),
                keeps_B=np.array([one.keeps and (self.decoding or one.last_id is not None) for one in known], np.bool_),
                named=[one.named for one in known],
            )
        return self.batch

    def _slot(self, name: str) -> int:
        if name not in self.slots:
            self.slots[name] = self.free_slots.pop() if self.free_slots else len(self.slots)
        return self.slots[name]

    def rows_of(self, step: Step) -> StepRows:
        """Where each token of the step belongs, of the requests that are kept."""
        batch, counts_B = self.of(step), step.counts_B
        request_N = np.repeat(np.arange(len(counts_B)), counts_B)
        row_N = np.flatnonzero(batch.keeps_B[request_N])
        request_N = request_N[row_N]
        # a row's number less those of the requests before it
        within_N = row_N - (np.cumsum(counts_B) - counts_B)[request_N]
        return StepRows(row_N, request_N, batch.slot_B[request_N], step.first_B[request_N] + within_N)

    def forget(self, name: str) -> int | None:
        """Forget a request; the slot it had, which the next one may have."""
        self.asked.pop(name, None)
        slot = self.slots.pop(name, None)
        if slot is not None:
            self.free_slots.append(slot)
            # no batch may go on naming a slot that is free
            self.batch = NO_BATCH
        return slot
