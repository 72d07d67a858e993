"""A dataset in an object store, and the working folder in which it is made: spool, ledger, and shards on their way.

    shard written in the folder -> its files uploaded -> its line in the folder's ledger
    now and then                -> job.toml, templates, manifest, ledger, README uploaded, in this order
    then                        -> the shard's files are taken out of the folder

So the store's ledger names only what is whole there, and its card only what its ledger names: a reader sees the dataset
of one moment or that of another. What a kill leaves behind, by when it comes:

    while a file is uploaded      nothing: an object is there whole or not at all
    between upload and line       objects that no ledger names: the shard is made again, and they are replaced
    between line and upload       the folder's ledger is ahead of the store's: the same command on this machine goes on
    of the ledger                 from the folder's, on another machine from the store's

One writer at a time: `.writer` is created where there is none, and taken away at an orderly end. It names its folder,
so that the same command goes on after a kill. Every object is written on a condition (see `bucket`): nobody overwrites
what he has not seen.
"""

import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from blake3 import blake3

from factory.dataset.bucket import GO_ON, Bucket, Conflict, Objects, Seen, Url
from factory.dataset.entries import ShardEntry
from factory.dataset.history import HISTORY
from factory.dataset.ledger import LEDGER, read_ledger
from factory.dataset.manifest import MANIFEST, no_dataset, write_atomically
from factory.dataset.shards import ShardFile, file_digest
from factory.dataset.store import MARK, Tell
from factory.errors import DatasetError

WRITER: Final = ".writer"
FILES_AT_ONCE: Final = 2
SHARE: Final = 20  # the ledger is uploaded whole: it takes at most one part in so many of the time
# a shard's files; a curriculum and aligned configs have other names
SHARD: Final = re.compile(r"[a-z_]+/train-\d{5,}\.parquet")
BEGUN: Final = re.compile(r"job\.toml|templates/.+")  # what a first start may leave without anything else
ACCOUNT: Final = re.compile(r"(usage|batches)[^/]*\.jsonl")
SMALL: Final = ("job.toml", "templates/**/*", "usage*.jsonl", "batches*.jsonl", MANIFEST, LEDGER, "README.md", HISTORY)
LOOKED_AT: Final = (MANIFEST, LEDGER, HISTORY, "usage.jsonl", "usage.judge.jsonl")
HELD: Final = "wait or stop it; where it is gone for good, --take-over goes on in its place"


class ObjectStore:
    """Keeps one dataset at an address while it is made in a folder. `take_over`: from a writer that is gone."""

    def __init__(self, url: Url, take_over: bool = False, objects: Objects | None = None) -> None:
        self.url, self.take_over = url, take_over
        self.bucket = Bucket(url, objects)
        self.out = Path()
        self.held = ""  # the ETag of our own WRITER
        self.there: dict[str, str] = {}  # ETags of objects that may be replaced
        self.saved: dict[str, str] = {}  # digests of what was uploaded as it is now
        self.uploaded: list[ShardFile] = []  # still here, too
        self.next_save = 0.0
        self.brought = False

    @property
    def address(self) -> str:
        return str(self.url)

    @contextmanager
    def hold(self, out: Path, tell: Tell) -> Iterator[None]:
        """See `Store`. Raises DatasetError where another writer has it, or it is not a dataset that a run can go on
        with."""
        self.out = out
        self._become_writer()
        try:
            objects = self.bucket.list()
            self._require_own(objects)
            self.bucket.give_up_parts()
            if dropped := self._bring(objects):
                told = f"{dropped} shards that were made here are not there, where another run went on; made again"
                tell("dropped", f"{self.url}: {told}", shards=dropped)
            self.brought = True
            yield
        except BaseException:
            # what is committed is uploaded if it can be; the error is told, whatever comes of that
            with suppress(DatasetError):
                self._leave()
            raise
        if self.bucket.down is not None:  # whoever met it has made do without, as a card may
            raise self.bucket.down
        self._leave()

    def _leave(self) -> None:
        """The last upload, and nobody's from now on."""
        if self.bucket.down is not None:
            return
        if self.brought and (self.out / MANIFEST).exists() and (self.out / LEDGER).exists():
            self.save(now=True)
        with suppress(Conflict):
            self.bucket.remove(WRITER, self.held)

    # ── one writer ──

    def _become_writer(self) -> None:
        """Make WRITER ours. Raises DatasetError where it is another's, or where the store takes no conditions."""
        mark = self._read_mark()
        told = mark | {"host": platform.node(), "process": os.getpid(), "since": _now()}
        body = json.dumps(told, sort_keys=True).encode()
        try:
            self.held = self.bucket.put(WRITER, body)
        except Conflict:
            self.held = self._follow(mark, body)
        for over in (None, '"00000000000000000000000000000000"'):
            with suppress(Conflict):
                self.bucket.remove(WRITER, self.bucket.put(WRITER, b"none", over=over))
                raise DatasetError(
                    f"{self.url}: this store overwrites objects against a condition (If-None-Match, If-Match), so two "
                    f"runs could destroy each other's rows; write to a directory and copy it, or take another store"
                )

    def _follow(self, mark: dict[str, str], body: bytes) -> str:
        """Go on as the writer that is named already, where that is this folder's or may be replaced."""
        try:
            etag: str | None
            data, etag = self.bucket.read(WRITER)
            before = json.loads(data)
            ours = bool(before["token"] == mark["token"])
            who = f"process {before['process']} on {before['host']}, since {before['since']}"
        except FileNotFoundError:  # it has left meanwhile
            ours, who, etag = True, "", None
        except (ValueError, KeyError, TypeError):
            ours, who = False, "unknown"
        if not (ours or self.take_over):
            raise DatasetError(f"{self.url}: a run is at work there already ({who}); {HELD}")
        try:
            return self.bucket.put(WRITER, body, over=etag)
        except Conflict:
            raise DatasetError(f"{self.url}: another run begins there at this moment; {HELD}") from None

    def _read_mark(self) -> dict[str, str]:
        """What names the folder: its own token, and the address that it is of."""
        path = self.out / MARK
        with suppress(FileNotFoundError, ValueError, TypeError):
            mark = json.loads(path.read_bytes())
            if mark["url"] != str(self.url):
                told = f"holds what is under way to {mark['url']}, and not to {self.url}"
                raise DatasetError(f"{self.out}: {told}; choose another store.folder")
            return {"url": mark["url"], "token": mark["token"]}
        if (self.out / LEDGER).exists():
            raise DatasetError(f"{self.out}: is a dataset of its own; choose another store.folder to work in")
        mark = {"url": str(self.url), "token": secrets.token_hex(16)}
        write_atomically(path, json.dumps(mark).encode())
        return mark

    def _require_held(self) -> None:
        now = self.bucket.look(WRITER)
        if now is None or now.etag != self.held:
            raise self._lost()

    def _lost(self) -> DatasetError:
        told = f"{self.url}: another run has taken over there, so this one stops; what it committed stays"
        self.bucket.down = DatasetError(told)
        return self.bucket.down

    # ── what is there ──

    def _require_own(self, objects: dict[str, Seen]) -> None:
        """Raise DatasetError where there is something that no run makes."""
        begun = MANIFEST in objects or LEDGER in objects
        small = {"README.md", MANIFEST, LEDGER, HISTORY}
        for name in sorted(objects.keys() - {WRITER}):
            if BEGUN.fullmatch(name) or (begun and (name in small or SHARD.fullmatch(name) or ACCOUNT.fullmatch(name))):
                continue
            if begun:
                told = f"has {name}, which no run makes; copy it to a directory, and go on there with --out"
            else:
                told = f"not empty and not a dataset of the factory (has {name}); choose another `out`"
            raise DatasetError(f"{self.url}: {told}")

    def _bring(self, objects: dict[str, Seen]) -> int:
        """Let the folder hold the dataset as it is, but for the files of its shards; how many shards it loses by it."""
        self.there = {name: seen.etag for name, seen in objects.items()}
        before: dict[int, ShardEntry] = {}
        with suppress(DatasetError):  # none is here, or a damaged one
            before = read_ledger(self.out).entries
        if LEDGER not in objects:
            if before:
                raise DatasetError(
                    f"{self.url}: is empty, and {self.out} has the ledger of {len(before)} shards that were there; "
                    f"bring them back, or remove {self.out} to begin anew"
                )
            return 0
        if not _is_ahead(self.out, self.bucket.read(LEDGER)[0]):
            self._replace(objects)
        entries = read_ledger(self.out).entries
        for file in (file for entry in entries.values() for file in entry.files):
            seen = objects.get(file.path)
            if seen is None or seen.bytes != file.bytes:
                told = "missing" if seen is None else f"{seen.bytes} bytes, committed with {file.bytes}"
                raise DatasetError(
                    f"{self.url}/{file.path}: {told}; bring it back, or copy all to a directory, mend it there with "
                    f"`--out DIR --repair`, and copy it back"
                )
            del self.there[file.path]
            if (self.out / file.path).exists():  # a kill came before it was taken away
                self.uploaded.append(file)
        return len(before.keys() - entries.keys())

    def _replace(self, objects: dict[str, Seen]) -> None:
        """Put what is there in place of what is here; answers on the spool stay."""
        for path in self.out.iterdir():
            if path.name.startswith("."):
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        # the ledger last: what is begun without it is brought anew
        for name in sorted(objects, key=lambda name: (name == LEDGER, name)):
            if not SHARD.fullmatch(name) and name != WRITER:
                self.bucket.fetch(name, self.out / name)
                self.saved[name] = file_digest(self.out / name)

    # ── what goes there ──

    def put(self, files: Sequence[ShardFile]) -> None:
        """See `Store`."""
        self._require_held()
        with ThreadPoolExecutor(FILES_AT_ONCE) as lanes:
            list(lanes.map(lambda file: self._put(file.path, self.out / file.path, file.blake3), files))
        self.uploaded += files

    def save(self, now: bool = False) -> None:
        """See `Store`. Not at every shard, unless it is quick: see SHARE."""
        began = time.monotonic()
        if not now and began < self.next_save:
            return
        self._require_held()
        small = [path for pattern in SMALL for path in sorted(self.out.glob(pattern)) if path.is_file()]
        names = {path.relative_to(self.out).as_posix(): path for path in small}
        for name, path in names.items():
            data = path.read_bytes()
            digest = blake3(data).hexdigest()
            if self.saved.get(name) != digest:
                self._put(name, data, digest)
                self.saved[name] = digest
        for name in [name for name in self.there if name.startswith("templates/") and name not in names]:
            with suppress(Conflict):
                self.bucket.remove(name, self.there.pop(name))
        # only now: what the store's ledger names can be fetched again
        for file in self.uploaded:
            (self.out / file.path).unlink(missing_ok=True)
        self.uploaded = []
        self.next_save = time.monotonic() + SHARE * (time.monotonic() - began)

    def _put(self, name: str, data: bytes | Path, digest: str = "") -> str:
        """Write an object in place of the one that we know of."""
        try:
            etag = self.bucket.put(name, data, digest, self.there.get(name))
        except Conflict:
            # what we do not know of was left by a writer before us; one that came after us is not to be touched
            seen = self.bucket.look(name)
            self._require_held()
            try:
                etag = self.bucket.put(name, data, digest, seen.etag if seen is not None else None)
            except Conflict:
                raise self._lost() from None
        if not SHARD.fullmatch(name):
            self.there[name] = etag
        return etag

    @contextmanager
    def here(self, files: Iterable[ShardFile]) -> Iterator[None]:
        """See `Store`. Raises DatasetError where a file is not what was committed."""
        brought: list[Path] = []
        try:
            for file in files:
                path = self.out / file.path
                if path.exists():
                    continue
                brought.append(path)
                with suppress(FileNotFoundError):
                    self.bucket.fetch(file.path, path)
                if not path.exists() or not file.matches(path):
                    told = "is gone, or its bytes have changed since it was committed"
                    raise DatasetError(f"{self.url}/{file.path}: {told}; bring it back; {GO_ON}")
            yield
        finally:
            for path in brought:
                path.unlink(missing_ok=True)


def _is_ahead(out: Path, theirs: bytes) -> bool:
    """Whether a folder's ledger has all that the store's has, of the same plan or one that goes on from it."""
    try:
        mine = read_ledger(out)
    except DatasetError:
        return False
    plan, *shards = theirs.splitlines()
    its, own = json.loads(plan), set((out / LEDGER).read_bytes().splitlines())
    return own >= set(shards) and mine.plan["digest"] == its["digest"] and mine.plan["planned"] >= its["planned"]


@contextmanager
def view(url: Url) -> Iterator[Path]:
    """A folder with what tells of a dataset's state: its manifest, ledger, runs and account, and no row."""
    bucket = Bucket(url)
    with tempfile.TemporaryDirectory(prefix="factory-view-") as name:
        for small in LOOKED_AT:
            with suppress(FileNotFoundError):
                bucket.fetch(small, Path(name) / small)
        if not (Path(name) / MANIFEST).exists():
            raise no_dataset(url)
        yield Path(name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
