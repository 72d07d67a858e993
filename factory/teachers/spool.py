"""The spool: finished generations on disk between the engine's process and ours, arrays as whole buffers.

Segment files hold frames one after another: magic, length, CRC-32, then a JSON head and the arrays' bytes. A frame is
readable once its bytes are there, so what had finished before a crash is found again and not paid for twice. A segment
is deleted when every generation in it has been released.

    segment   frame frame frame ...                          000000-0.gen, 000001-1.gen, ...: number-writer
    frame     magic 4 | length 8 | CRC-32 4 | payload        the length counts the payload alone
    payload   length of head 4 | head (JSON) | arrays, one after another, as the head lists them

One process writes a segment and never goes back in it; each new one begins a segment of its own, and each replica of a
teacher is another writer. The supervising process reads, and it alone deletes. Nothing is synced to the disk: the spool
is to survive a process, not the machine, and what a power cut takes from it is asked again.
"""

import json
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.messages import ToolCall
from factory.records import Generation
from factory.signals import (
    CANDIDATE_ARRAYS,
    LOGPROB_ARRAYS,
    Array,
    Attention,
    Candidates,
    Experts,
    HiddenStates,
    Logprobs,
)
from factory.usage import Usage

FRAME = struct.Struct("<4sQI")  # magic, payload bytes, CRC-32 of the payload
HEAD = struct.Struct("<I")  # bytes of the JSON head
MAGIC = b"FGEN"
SEGMENT_BYTES = 64 * 1024 * 1024
PROMPT = "prompt."  # before the names of the arrays that belong to the prompt's tokens
TEXTS = (
    "prompt_id",
    "attempt",
    "text",
    "reasoning",
    "answer_text",
    "answer_start",
    "finish_reason",
    "failure",
    "failure_detail",
    "without_ids",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a frame stands."""

    segment: str
    offset: int


class SpoolWriter:
    """The engine's side: appends generations, beginning a new segment when one is full.

    `writer` is the replica's number: of those that are at work at once each needs its own.
    """

    def __init__(self, folder: Path, writer: int = 0) -> None:
        self.folder = folder
        self.writer = writer
        self.handle = self._next_segment()

    def append(self, generation: Generation) -> Place:
        """Write one generation; it is in the hands of the operating system when this returns."""
        if self.handle.tell() > SEGMENT_BYTES:
            self.handle.close()
            self.handle = self._next_segment()
        place = Place(Path(self.handle.name).name, self.handle.tell())
        head, buffers = pack(generation)
        crc = zlib.crc32(head)
        for buffer in buffers:
            crc = zlib.crc32(buffer, crc)
        self.handle.write(FRAME.pack(MAGIC, len(head) + sum(b.nbytes for b in buffers), crc))
        self.handle.write(head)
        for buffer in buffers:
            self.handle.write(buffer)
        self.handle.flush()
        return place

    def _next_segment(self) -> Any:
        # after those of all writers, so that names sort in the order of writing whoever wrote them
        taken = [int(path.stem.partition("-")[0]) for path in self.folder.glob("*.gen")]
        # "xb": whoever comes second gets an error, not a shared file
        return (self.folder / f"{max(taken, default=-1) + 1:06d}-{self.writer}.gen").open("xb")


class Spool:
    """Our side: reads generations as views of mapped files, and deletes segments that are no longer needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # by segment: generations in it that nobody has released
        self.live: Counter[str] = Counter()
        # (prompt id, attempt) -> segment
        self.segments: dict[tuple[str, int], str] = {}
        # by segment: its bytes, mapped
        self.maps: dict[str, Array] = {}
        # segments of an earlier run: nobody writes to them any more
        self.recovered: set[str] = set()
        # by writer: the segment last read from. Every frame of an older one of the same writer has been told of by now
        self.newest: dict[str, str] = {}

    def recover(self) -> dict[tuple[str, int], Place]:
        """Generations left by an earlier run, by (prompt id, attempt); torn frames end their segment."""
        found: dict[tuple[str, int], Place] = {}
        for path in sorted(self.folder.glob("*.gen")):
            for offset, head in scan(path):
                key = head["prompt_id"], head["attempt"]
                found[key] = Place(path.name, offset)
                self._hold(key, path.name)
            self.recovered.add(path.name)
        return found

    def read(self, place: Place) -> Generation:
        """The generation at a place; its arrays are views of the mapped segment."""
        # a map is as long as the file was when it was made, and the file grows: then it is mapped again; views of the
        # old map stay good, as they hold it
        data = self.maps.get(place.segment)
        if data is None or len(data) <= place.offset + FRAME.size:
            data = self.maps[place.segment] = _map(self.folder / place.segment)
        _, length, _ = FRAME.unpack(data[place.offset : place.offset + FRAME.size].tobytes())
        first = place.offset + FRAME.size
        if len(data) < first + length:
            data = self.maps[place.segment] = _map(self.folder / place.segment)
        generation = unpack(data[first : first + length])
        self._hold((generation.prompt_id, generation.attempt), place.segment)
        if place.segment not in self.recovered:
            self._move_on(place.segment)
        return generation

    def release(self, prompt_id: str, attempts: int) -> None:
        """Attempts 0..attempts of a prompt are committed elsewhere."""
        for attempt in range(attempts + 1):
            segment = self.segments.pop((prompt_id, attempt), None)
            if segment is not None:
                self.live[segment] -= 1
                self._sweep(segment)

    def _hold(self, key: tuple[str, int], segment: str) -> None:
        # a prompt that was answered, not told of because the engine died, and answered again stands there twice
        before = self.segments.get(key)
        if before is not None:
            self.live[before] -= 1
        self.segments[key] = segment
        self.live[segment] += 1

    def _move_on(self, segment: str) -> None:
        """A segment was read from: its writer does not write to older ones any more."""
        before = self.newest.get(writer_of(segment), "")
        if segment > before:
            self.newest[writer_of(segment)] = segment
            # all in it may have been released while it could still grow
            self._sweep(before)

    def _sweep(self, segment: str) -> None:
        # in a writer's newest one more frames may stand than have been told of
        over = segment in self.recovered or segment < self.newest.get(writer_of(segment), "")
        if segment and over and not self.live[segment]:
            self.maps.pop(segment, None)
            (self.folder / segment).unlink(missing_ok=True)


def join_spools(old: Path, new: Path) -> None:
    """Move the segments of a spool that nobody writes to any more behind those of another that nobody reads yet."""
    new.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.stem.partition("-")[0]) for path in new.glob("*.gen")), default=-1)
    for place, path in enumerate(sorted(old.glob("*.gen"))):
        path.replace(new / f"{number + place:06d}-{writer_of(path.name)}.gen")


def writer_of(segment: str) -> str:
    """Who wrote a segment, by its name."""
    return Path(segment).stem.partition("-")[2]


def _map(path: Path) -> Array:
    """A file's bytes as a plain array: slicing a `memmap` itself costs ten times as much."""
    return np.memmap(path, np.uint8, "r").view(np.ndarray)


def scan(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset and head of every whole frame of a segment, up to the first that is torn or damaged."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        while True:
            offset = handle.tell()
            frame = handle.read(FRAME.size)
            if len(frame) < FRAME.size:
                return
            magic, length, crc = FRAME.unpack(frame)
            # a length that is not true must not become an allocation
            if magic != MAGIC or offset + FRAME.size + length > size:
                return
            payload = handle.read(length)
            if zlib.crc32(payload) != crc:
                return
            yield offset, read_head(memoryview(payload))[0]


def read_head(payload: memoryview) -> tuple[dict[str, Any], int]:
    """A payload's JSON head, and where the arrays begin."""
    (length,) = HEAD.unpack(payload[: HEAD.size])
    end = HEAD.size + length
    return json.loads(bytes(payload[HEAD.size : end])), end


def pack(generation: Generation) -> tuple[bytes, list[memoryview]]:
    """A generation as a head and the buffers that follow it."""
    arrays = {"prompt_token_ids": generation.prompt_token_ids, "completion_token_ids": generation.completion_token_ids}
    head: dict[str, Any] = {name: getattr(generation, name) for name in TEXTS}
    head |= {} if generation.usage is None else {"usage": asdict(generation.usage)}
    if generation.content or generation.calls:
        head |= {"content": generation.content, "calls": [(call.name, call.arguments) for call in generation.calls]}
    for prefix, logprobs in (("", generation.logprobs), (PROMPT, generation.prompt_logprobs)):
        arrays |= {} if logprobs is None else {prefix + name: array for name, array in logprobs.arrays().items()}
    if generation.hidden_states is not None:
        states = generation.hidden_states
        arrays["bits_NLH"] = states.bits_NLH
        arrays |= {} if states.positions_N is None else {"positions_N": states.positions_N}
        head["layers"] = states.layers
    if generation.experts is not None:
        experts = generation.experts
        arrays |= {"expert_ids_NLE": experts.ids_NLE, "expert_weights_NLE": experts.weights_NLE}
        head["blocks"] = experts.blocks
    if generation.attention is not None:
        arrays["maps_LHNN"] = generation.attention.maps_LHNN
        head["attention"] = generation.attention.blocks
    if generation.candidates is not None:
        arrays |= {name: getattr(generation.candidates, name) for name in CANDIDATE_ARRAYS}
    if generation.completion_mask is not None:
        arrays["completion_mask"] = generation.completion_mask
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    head["arrays"] = [(name, array.dtype.str, array.shape) for name, array in contiguous.items()]
    text = json.dumps(head).encode()
    # so that the first array begins at a multiple of 8
    text += b" " * (-(HEAD.size + len(text)) % 8)
    return HEAD.pack(len(text)) + text, [array.reshape(-1).view(np.uint8).data for array in contiguous.values()]


def unpack(payload: Array) -> Generation:
    """The generation inside a frame's payload (uint8)."""
    head, position = read_head(payload.data)
    arrays: dict[str, Array] = {}
    for name, dtype, shape in head["arrays"]:
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        arrays[name] = np.frombuffer(payload[position : position + size].data, dtype).reshape(shape)
        position += size
    layers, bits_NLH = tuple(head.get("layers", ())), arrays.get("bits_NLH")
    return Generation(
        **{name: head[name] for name in TEXTS},
        usage=Usage(**head["usage"]) if "usage" in head else None,
        content=head.get("content", ""),
        calls=tuple(ToolCall(*call) for call in head.get("calls", ())),
        prompt_token_ids=arrays["prompt_token_ids"],
        completion_token_ids=arrays["completion_token_ids"],
        logprobs=as_logprobs(arrays),
        prompt_logprobs=as_logprobs(arrays, PROMPT),
        hidden_states=None if bits_NLH is None else HiddenStates(layers, bits_NLH, arrays.get("positions_N")),
        experts=as_experts(head.get("blocks", ()), arrays),
        attention=Attention(tuple(head["attention"]), arrays["maps_LHNN"]) if "attention" in head else None,
        completion_mask=arrays.get("completion_mask"),
        candidates=Candidates(*(arrays[name] for name in CANDIDATE_ARRAYS)) if CANDIDATE_ARRAYS[0] in arrays else None,
    )


def as_experts(blocks: Sequence[int], arrays: Mapping[str, Array]) -> Experts | None:
    """The routes that named arrays hold, of these decoder blocks; None without any block."""
    return Experts(tuple(blocks), arrays["expert_ids_NLE"], arrays["expert_weights_NLE"]) if blocks else None


def as_logprobs(arrays: Mapping[str, Array], prefix: str = "") -> Logprobs | None:
    """The distributions that named arrays hold; None where none of them is there."""
    found = {name: arrays[prefix + name] for name in LOGPROB_ARRAYS if prefix + name in arrays}
    return Logprobs(**found) if found else None
