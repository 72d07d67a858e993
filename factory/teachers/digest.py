"""Which model it is: one SHA-256 over a local model's configuration and weights, for the manifest.

Not BLAKE3, as for the files of a dataset: the manifests of all datasets there are have this one, and a resumed job is
held against it. Files are read side by side, a thread for each.

Weights are large and rarely change, so what a file's content hashed to is remembered between runs, beside what the
file system says of the file. The memory is a convenience and never a reason to fail: a file of it that is missing,
broken or cannot be written costs a reading of the weights and nothing else.
"""

import hashlib
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter

# A file system's clock ticks in milliseconds, on some in two seconds: a file that was written to again right after it
# was hashed may show the same time. So only a file that has rested for longer is remembered.
RESTED_NS = 3_000_000_000


class Known(NamedTuple):
    """What is remembered of a file: three numbers that change when it is written to or replaced, and its SHA-256."""

    size: int  # bytes
    mtime_ns: int
    inode: int
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    def is_of(self, status: os.stat_result) -> bool:
        """Whether the file is still the one that was hashed."""
        return self[:3] == (status.st_size, status.st_mtime_ns, status.st_ino)


Memory = dict[str, Known]  # by path, links followed
MEMORY = TypeAdapter(Memory)


def digest_model(model: str) -> str | None:
    """SHA-256 of the configuration and weights of a local model; None for one of the hub, whose revision names it."""
    if not Path(model).is_dir():
        return None
    before = _recall()
    memory, digest = dict(before), hashlib.sha256()
    files = sorted(Path(model).glob("*"))
    files = [path for path in files if path.name == "config.json" or path.suffix in (".safetensors", ".bin", ".pt")]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for path, sha256 in zip(files, threads.map(lambda path: _digest_file(path, memory), files), strict=True):
            # names are part of it: two shards that change places are another model
            digest.update(path.name.encode() + bytes.fromhex(sha256))
    if memory != before:
        _remember(memory)
    return digest.hexdigest()


def _digest_file(path: Path, memory: Memory) -> str:
    """SHA-256 of a file, from `memory` where it has not changed since; else read, and put there."""
    key = os.path.realpath(path)
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        known = memory.get(key)
        if known is not None and known.is_of(status):
            return known.sha256
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        now = Known(status.st_size, status.st_mtime_ns, status.st_ino, sha256)
        # somebody may have written to it meanwhile: then this is the hash of neither state
        if now.is_of(os.fstat(file.fileno())) and status.st_mtime_ns < time.time_ns() - RESTED_NS:
            memory[key] = now
    return sha256


def memory_path() -> Path:
    """The file that holds it, in the user's cache directory (XDG Base Directory Specification).

    Raises RuntimeError for a user without a home.
    """
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # the specification has a relative path ignored
    base = told if told.is_absolute() else Path.home() / ".cache"
    return base / "distillation-factory" / "model-digests.json"


def _recall() -> Memory:
    try:
        return MEMORY.validate_json(memory_path().read_bytes())
    except (OSError, ValueError, RuntimeError):  # pydantic's ValidationError is a ValueError
        return {}


def _remember(memory: Memory) -> None:
    """Replace the file in one step; the last of several runs that write at once wins."""
    there = {key: known for key, known in memory.items() if os.path.exists(key)}
    with suppress(OSError, RuntimeError):
        path = memory_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        # a name of its own: another run may be writing too
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(MEMORY.dump_json(there))
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
