"""Contamination: whether a row shares a run of words with the user's evaluation sets.

Texts are compared as words: NFKC, case folded, punctuation dropped; a character of a script without spaces is a word.
Every run of n words of the sets is kept as 64 bits with its file and row, 14 bytes a run; a row's runs are looked up.
A run that stands in many texts of the sets is boilerplate and tells nothing, so it is left out.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from factory.dataset.shards import sha256_digest
from factory.errors import DatasetError, JobError, one_line
from factory.job.gates import ContaminationConfig
from factory.job.paths import named_files
from factory.signals import Array
from factory.tasks.tables import kind_of, known_endings, scan_table
from factory.texts.texts import every_text, words_of

LEAST_WORDS = 4  # that begin with a letter; with fewer, a run or a short text says too little
COMMON = 10  # texts; as GPT-3's decontamination did for runs that many documents share
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing
TEXT = ".txt"
MOST_FILES = 1 << 16  # their places are kept in 16 bits
Text = tuple[list[str], Sequence[int], str]  # words, the row of the file that each stands in, what these numbers count


@dataclass(frozen=True, slots=True)
class Index:
    """Hashes of all runs of n words, and of all shorter texts as a whole, sorted; beside them the file and the row.

    `hashes_R` uint64 ascending, each once; `file_R` uint16, its place in `files`; `row_R` uint32, its number there,
    from 1, which counts what `units` says. `digests` has the SHA-256 of each file as it was read.
    """

    n: int
    files: tuple[str, ...]
    units: tuple[str, ...]
    hashes_R: Array
    file_R: Array
    row_R: Array
    digests: dict[str, str]

    def find(self, texts: Iterable[str]) -> str | None:
        """Where the first words that texts share with a set stand, and these words; None if they share none.

        The texts are looked at as one, and each that is shorter than a run by itself: it must be equal as a whole.
        """
        parts = [words_of(text) for text in texts]
        whole = [word for part in parts for word in part]
        for words in (whole, *(part for part in parts if len(part) < min(self.n, len(whole)))):
            found = self._look_up(words)
            if found:
                return found
        return None

    def _look_up(self, words: list[str]) -> str | None:
        hashes = run_hashes(words, self.n)
        if not len(hashes) or not len(self.hashes_R):
            return None
        places = np.searchsorted(self.hashes_R, hashes)
        found = np.flatnonzero(self.hashes_R.take(places, mode="clip") == hashes)
        if not len(found):
            return None
        place, first = int(places[found[0]]), int(found[0])
        file, shared = int(self.file_R[place]), " ".join(words[first : first + self.n])
        return f'{self.files[file]} {self.units[file]} {int(self.row_R[place])}: "{shared}"'


def run_hashes(words: Sequence[str], n: int) -> Array:
    """uint64 hash of each run of n words, or of the whole where there are fewer; 0 for a run that says too little."""
    length = min(n, len(words))
    if length < LEAST_WORDS:
        return np.zeros(0, np.uint64)
    # dates, prices and tables share runs of figures by chance: what counts is how many words begin with a letter
    letters_W = np.cumsum([0, *(word[0].isalpha() for word in words)])
    hashes_W = np.fromiter(map(_hash_word, words), np.uint64, len(words))
    hashes_R = np.full(len(words) - length + 1, length, np.uint64)
    for offset in range(length):
        hashes_R = hashes_R * BASE + hashes_W[offset : offset + len(hashes_R)]
    return np.where(letters_W[length:] - letters_W[:-length] >= LEAST_WORDS, hashes_R, np.uint64(0))


@lru_cache(maxsize=1 << 16)
def _hash_word(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def open_index(config: ContaminationConfig) -> Index:
    """Read the evaluation sets. Raises JobError naming the key of a file that is missing or cannot be read."""
    hashes, files, rows = array("Q"), array("H"), array("I")
    seen: set[bytes] = set()
    sets = find_sets(config)
    units = ["row"] * len(sets)
    for number, (path, where) in enumerate(sets.values()):
        for words, row_of, unit in _read(path, config.columns, config.n, where):
            units[number] = unit
            # else a question that a set holds eleven times would count as boilerplate and never be found
            if len(words) >= config.n and _seen_before(words, seen):
                continue
            runs, first = np.unique(run_hashes(words, config.n), return_index=True)
            hashes.frombytes(runs.tobytes())
            files.extend([number] * len(runs))
            rows.extend(row_of[place] for place in first.tolist())
    unique_R, first_R, counts_R = np.unique(np.array(hashes, np.uint64), return_index=True, return_counts=True)
    # 0 stands for every run that says too little
    telling_R = (counts_R <= COMMON) & (unique_R != 0)
    place_R = first_R[telling_R]
    file_R, row_R = np.array(files, np.uint16)[place_R], np.array(rows, np.uint32)[place_R]
    return Index(config.n, tuple(sets), tuple(units), unique_R[telling_R], file_R, row_R, digest_files(config))


def find_sets(config: ContaminationConfig) -> dict[str, tuple[Path, str]]:
    """Each file of the evaluation sets by its name, with its path and the key that names it.

    Of a folder all files, of a pattern those that it finds; one that cannot be read is refused, never left out: what it
    holds would come through. Raises JobError.
    """
    found: dict[str, tuple[Path, str]] = {}
    for number, name in enumerate(config.files):
        where = f"filters.contamination.files.{number}"
        files = named_files(name)
        if not files:
            told = "no file in this folder" if Path(name).is_dir() else "no such file"
            raise JobError(f"{where}: {name}: {told}")
        single = Path(name).is_file()
        for path in files.values():
            if kind_of(path) is None and path.suffix != TEXT:
                step = "" if single else f"; name those to read by a pattern such as {Path(name) / '*.jsonl'}"
                has = f"{TEXT}, {known_endings()}"
                raise JobError(f"{where}: {path}: not a kind of file that is known here (has: {has}){step}")
            found.setdefault(name if single else str(path), (path, where))
    if len(found) > MOST_FILES:
        raise JobError(f"filters.contamination.files: {len(found):,} files (at most {MOST_FILES:,}); join some")
    return found


def _seen_before(words: Sequence[str], seen: set[bytes]) -> bool:
    """A passage that stands word for word in many rows is one text, no boilerplate."""
    digest = blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=12).digest()
    before = digest in seen
    seen.add(digest)
    return before


def digest_files(config: ContaminationConfig) -> dict[str, str]:
    """SHA-256 of each evaluation set: they decide which rows a job keeps."""
    return {name: sha256_digest(path) for name, (path, _) in find_sets(config).items()}


def _read(path: Path, columns: Sequence[str], n: int, where: str) -> Iterator[Text]:
    kind = kind_of(path)
    try:
        yield from _read_lines(path, n) if kind is None else _read_rows(path, kind, columns, n, where)
    except (DatasetError, OSError, ValueError, EOFError) as error:
        raise JobError(f"{where}: {path} cannot be read: {one_line(error, 400)}") from None


def _read_lines(path: Path, n: int) -> Iterator[Text]:
    """The whole file as one text, because lines may be wrapped, and each line that is shorter than a run by itself."""
    words: list[str] = []
    line_of = array("I")
    with path.open(encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, 1):
            here = words_of(line)
            if len(here) < n:
                yield here, [number] * len(here), "line"
            words += here
            line_of.extend([number] * len(here))
    yield words, line_of, "line"


def _read_rows(path: Path, kind: str, columns: Sequence[str], n: int, where: str) -> Iterator[Text]:
    """Each cell of each row, by itself; a few short strings of a larger whole say too little.

    A row that cannot be read ends it: a set that is not read whole would let through what it is there to keep out.
    """
    has: dict[str, None] = {}
    unit, rows = scan_table(path, kind)
    for number, row in rows:
        has |= dict.fromkeys(row)
        for name in columns or row:
            text, plain = read_cell(row.get(name))
            words = words_of(text)
            if plain or len(words) >= n:
                yield words, [number] * len(words), unit
    missing = [name for name in columns if name not in has]
    if missing and has:
        raise JobError(f"{where}: no column {', '.join(missing)} in {path} (has: {', '.join(has)})")


def read_cell(cell: object) -> tuple[str, bool]:
    """The text of a cell, and whether the cell is that text and nothing more.

    Of a list, an object or a string that holds one as JSON it is all strings in it, one after the other.
    """
    if isinstance(cell, str):
        inner = _as_json(cell)
        if inner is None:
            return cell, True
        cell = inner
    return " ".join(text for _, text in every_text(cell)), False


def _as_json(text: str) -> dict[str, Any] | list[Any] | None:
    if not text.startswith(("{", "[")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None
