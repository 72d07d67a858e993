"""Duplicates: accepted rows that were there already, across a whole dataset.

Exact: the same task, prompt text and answer. Near: much the same values in scenario and answer, by the Jaccard
similarity of their shingles (runs of three words). MinHash finds the candidates, their shingles decide: a row below the
threshold is never called a near duplicate. Why so: docs/decisions/0008-duplicates-and-difficulty.md.
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from factory.dataset.ledger import Ledger
from factory.dataset.shards import read_batches, shard_path
from factory.hashing import canonical_json
from factory.job.gates import FiltersConfig
from factory.messages import text_of
from factory.quality.samples import canonical_answer
from factory.quality.withhold import DUPLICATE, NEAR_DUPLICATE
from factory.records import Form, Outcome, Record
from factory.signals import Array
from factory.texts.texts import leaves, normalize, words_of

SHINGLE_WORDS: Final = 3
KEPT_HASHES: Final = 512  # a row with more shingles is compared by its smallest hashes: an estimate within about 0.02
SEED: Final = 1
PERMUTATIONS: Final = 160  # at most: more find fewer false candidates, and cost memory
MISSED: Final = 1e-3  # share of pairs at the very threshold that may be overlooked


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as the `default` config holds it; `messages` is its column `prompt`."""

    id: str
    prompt_id: str
    task: str
    messages: Sequence[Mapping[str, Any]]
    scenario: str
    answer: str
    repaired: bool = False
    form: Form = "json"
    level: str = ""


def as_stored(record: Record) -> StoredRow:
    """A record as the row that it will be."""
    prompt = record.prompt
    said = prompt.messages, prompt.scenario, record.answer, prompt.repaired, prompt.form, prompt.level
    return StoredRow(prompt.id, prompt.group or prompt.id, prompt.task, *said)


class Duplicates:
    """What the rows so far were like. Rows must come in the order of their shards, each once."""

    def __init__(self, config: FiltersConfig) -> None:
        self._exact: dict[bytes, str] | None = {} if config.duplicates else None
        self._threshold = config.near_duplicates
        self._near: dict[str, NearIndex] = {}

    def check(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """One shard's outcomes with each record that was there already as a rejection; the others are remembered."""
        return [self._decide(outcome) if isinstance(outcome, Record) else outcome for outcome in outcomes]

    def remember(self, rows: Iterable[StoredRow]) -> None:
        """Take rows that an earlier run accepted as they are."""
        for row in rows:
            if self._exact is not None:
                self._exact.setdefault(digest_row(row), row.id)
            if self._threshold is not None:
                index = self._index_of(row.task, self._threshold)
                index.add(row, index.sketch(row))

    def _decide(self, record: Record) -> Outcome:
        found = self.find(as_stored(record))
        return record if found is None else record.reject("filter", found[0], (found[1],))

    def find(self, row: StoredRow) -> tuple[str, str] | None:
        """Why a row was there already: reason and finding. None where it was not; it is remembered then."""
        digest = b""
        if self._exact is not None:
            digest = digest_row(row)
            if digest in self._exact:
                return DUPLICATE, f"duplicate: like row {self._exact[digest]}"
        if self._threshold is not None:
            index = self._index_of(row.task, self._threshold)
            sketch = index.sketch(row)
            near = index.find(row, sketch)
            if near is not None:
                return NEAR_DUPLICATE, f"near_duplicate: {near[0]:.2f} like row {near[1]}"
            index.add(row, sketch)
        if self._exact is not None:
            self._exact[digest] = row.id
        return None

    def _index_of(self, task: str, threshold: float) -> "NearIndex":
        if task not in self._near:
            self._near[task] = NearIndex(threshold)
        return self._near[task]


class Deduplication:
    """The duplicates of a dataset, with what earlier runs committed."""

    def __init__(self, config: FiltersConfig, ledger: Ledger, forms: Mapping[str, Form]) -> None:
        self.duplicates, self.forms = Duplicates(config), forms
        self.ledger = ledger
        self.earlier = deque(sorted(ledger.entries))

    def find(self, shard: int, row: StoredRow) -> tuple[str, str] | None:
        """Why a row of a shard was there already; None where it was not. Rows must come in the plan's order."""
        while self.earlier and self.earlier[0] < shard:
            earlier = self.earlier.popleft()
            with self.ledger.here([earlier], "data"):
                self.duplicates.remember(stored_rows(self.ledger.out, earlier, self.forms))
        return self.duplicates.find(row)


def stored_rows(out: Path, shard: int, forms: Mapping[str, Form] = MappingProxyType({})) -> Iterator[StoredRow]:
    """What a committed shard accepted, as far as duplicates are concerned; `forms` are those of tasks' answers."""
    columns = ["id", "prompt_id", "task", "level", "prompt", "scenario", "answer", "repaired"]
    for batch in read_batches(out / shard_path("data", shard), columns):
        for row in batch.to_pylist():
            named = {"messages" if name == "prompt" else name: row[name] for name in columns}
            yield StoredRow(**named, form=forms.get(row["task"], "json"))


@dataclass(frozen=True, slots=True)
class Sketch:
    """A row's shingles: the MinHash of all of them, and uint32 hashes of them, sorted, the smallest of too many."""

    minhash: Any
    hashes: Array


class NearIndex:
    """Rows of one task by the MinHash bands of their shingles, with the hashes that they are compared by."""

    def __init__(self, threshold: float) -> None:
        from rensa import RMinHashLSH

        per_band, bands = shape_bands(threshold)
        self._threshold = threshold
        self._permutations = per_band * bands
        self._bands = RMinHashLSH(threshold, self._permutations, bands)
        self._ids: list[str] = []
        self._groups: list[str] = []
        self._hashes: list[bytes] = []

    def sketch(self, row: StoredRow) -> Sketch | None:
        """What a row is compared by; None where it has no words at all."""
        from rensa import RMinHash

        shingles = list_shingles(row)
        if not shingles:
            return None
        minhash = RMinHash(self._permutations, SEED)
        minhash.update(shingles)
        # the upper half of each 64-bit hash: two of one row's few hundred meet in it in one row of 100,000
        hashes = np.array(RMinHash.hash_token_sets([shingles])[0], dtype=np.uint64) >> np.uint64(32)
        return Sketch(minhash, np.unique(hashes.astype(np.uint32))[:KEPT_HASHES])

    def find(self, row: StoredRow, sketch: Sketch | None) -> tuple[float, str] | None:
        """Similarity and id of the row of another prompt that is most similar, at the threshold or above; the first."""
        numbers = sorted(self._bands.query(sketch.minhash)) if sketch else []
        best, twin = 0.0, ""
        for number in numbers:
            if sketch is None or self._groups[number] == row.prompt_id:
                continue
            similarity = estimate_jaccard(sketch.hashes, np.frombuffer(self._hashes[number], np.uint32))
            if similarity > best:
                best, twin = similarity, self._ids[number]
        return (best, twin) if best >= self._threshold else None

    def add(self, row: StoredRow, sketch: Sketch | None) -> None:
        if sketch is None:
            return
        self._bands.insert(len(self._ids), sketch.minhash)
        self._ids.append(row.id)
        self._groups.append(row.id if row.prompt_id == row.id else row.prompt_id)  # one text in memory, not two
        self._hashes.append(sketch.hashes.tobytes())


def digest_row(row: StoredRow) -> bytes:
    """16 bytes for a row's task, prompt text (Unicode form, case and spaces aside) and answer (as a JSON value).

    A conversation's earlier turns belong to the prompt; the two turns of a repair do not.
    """
    # a repaired row is like another when its request and its final answer are, however it came to it
    asked = row.messages[:-2] if row.repaired else row.messages
    prompt = [[message["role"], normalize(text_of(message["content"]))] for message in asked]
    identity = canonical_json([row.task, prompt, canonical_answer(row.answer, row.form)])
    return blake2b(identity.encode("utf-8", "replace"), digest_size=16).digest()


def list_shingles(row: StoredRow) -> list[str]:
    """The runs of three words in the values of a row's scenario and answer, each once; the one of all, if shorter.

    Runs go on from one value to the next: that sets apart rows that draw single values from the same small lists.
    """
    answer = words_of(row.answer) if row.form == "text" else split_words(row.answer)
    words = [*split_words(row.scenario), *answer]
    runs = zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False)
    return list(dict.fromkeys(map(" ".join, runs))) or ([" ".join(words)] if words else [])


def split_words(text: str) -> Iterator[str]:
    """The words of all values in a JSON text, in order, without keys and nulls; a number or a boolean is one word."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    for _, leaf in leaves(value):
        if isinstance(leaf, str):
            yield from words_of(leaf)
        elif leaf is not None:
            yield json.dumps(leaf)


def estimate_jaccard(a: Array, b: Array) -> float:
    """Jaccard similarity of two sets by their hashes; exact where neither was cut to its smallest ones."""
    bound = min((hashes[-1] for hashes in (a, b) if len(hashes) == KEPT_HASHES), default=None)
    if bound is not None:
        a, b = (hashes[: np.searchsorted(hashes, bound, "right")] for hashes in (a, b))
    both = np.sort(np.concatenate((a, b)))
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / (len(both) - common)


def shape_bands(threshold: float) -> tuple[int, int]:
    """Hashes per band and number of bands: as many per band as find all but MISSED of the pairs at the threshold."""
    shapes = ((n, math.ceil(math.log(MISSED) / math.log1p(-(threshold**n)))) for n in range(1, PERMUTATIONS + 1))
    return max((per_band, bands) for per_band, bands in shapes if per_band * bands <= PERMUTATIONS)
