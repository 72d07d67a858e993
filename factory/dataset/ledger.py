"""The ledger: what is planned, what is committed, what is left.

    ledger.jsonl      {"digest": ..., "planned": 512, "shards": 2, "sum": ...}         line 1: the plan, so far
                      {"accepted": ..., "files": [...], "shard": 1, "sum": ...}        then a line a committed shard,
                      {"accepted": ..., "files": [...], "shard": 0, "sum": ...}        in the order of their commits

A shard's line is written last, after its files are whole and in place, so its existence means that the shard is whole.
What a kill leaves behind, by when it comes:

    while a file is written       a `.tmp-` file, which nobody reads and the next write replaces
    between two of its files      files without a line: the shard is made again, to the same bytes
    before its line               the same
    inside its line               a line without its newline: it counts as absent, and is cut off on resume
    after it                      nothing is lost

`sum` in a line is its own checksum, `files` holds those of the shard's files: what is damaged can be told line by line,
and given up by itself. A finished job's lines are put in shard order. A job that wants so many accepted rows plans on
when all that is planned is committed, and so does one that grows: line 1 is replaced then, the others stay. Line 1 of a
part of a plan has `part`, [2, 8] for the second of eight: every eighth shard is its own, `planned` counts their rows.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from factory.dataset.entries import ShardEntry, Totals
from factory.dataset.manifest import (
    MANIFEST,
    command_of,
    no_dataset,
    read_manifest,
    reconcile_manifest,
    require_directory,
    require_plain_path,
    require_same_job,
    seal,
    write_atomically,
)
from factory.dataset.shards import LEDGER as LEDGER
from factory.dataset.shards import ShardFile
from factory.dataset.store import DISK, MARK, Store
from factory.errors import DatasetError
from factory.hashing import canonical_json

# the spool (answers that are not committed yet) is the teachers'; here it only tells whether a job has spent anything
LOCK, SPOOL = ".lock", ".spool"
WORKERS = ".workers"  # folders of a cluster's workers, each with a spool of its own, while they are at work
PUSHED = re.compile(r"train-\d+-[0-9a-f]{12}\.parquet")  # a file of rows in a pushed copy


class Ledger:
    """The ledger of one output directory. Open it with `open_ledger` to run, with `read_ledger` to look."""

    def __init__(self, out: Path, plan: dict[str, Any], entries: dict[int, ShardEntry], store: Store = DISK) -> None:
        self.out = out
        self.store = store
        self.plan = plan
        self.entries = entries
        self.totals = Totals()
        self.totals.plan(plan)
        for entry in entries.values():
            self.totals.add(entry, self.teacher_of(entry.shard))

    def pending(self) -> Iterator[int]:
        """Numbers of the shards that are not committed yet, in order."""
        return (shard for shard in planned_shards(self.plan) if shard not in self.entries)

    def teacher_of(self, shard: int) -> str:
        """Who answered a shard's rows, by name; "" where a dataset has one teacher only."""
        rounds = ((one.get("first_shard", 0), one.get("teacher", "")) for one in self.plan.get("rounds", ()))
        return max((one for one in rounds if one[0] <= shard), default=(0, ""))[1]

    def of_teacher(self, teacher: str) -> "Ledger":
        """The shards of one teacher alone, to look at."""
        own = {shard: entry for shard, entry in self.entries.items() if self.teacher_of(shard) == teacher}
        return Ledger(self.out, self.plan, own, self.store)

    def here(self, shards: Iterable[int], *folders: str) -> AbstractContextManager[None]:
        """Have the files of committed shards, those in these folders, in the directory while the context lasts."""
        files = (file for shard in shards for file in self.entries[shard].files)
        return self.store.here(file for file in files if file.path.partition("/")[0] in folders)

    def replan(self, plan: dict[str, Any]) -> None:
        """Put a longer plan in place of the one so far; what is committed stays."""
        assert plan["planned"] >= self.plan["planned"]
        self.plan = plan
        self.totals.plan(plan)
        write_ledger(self.out, plan, self.entries)

    def commit(self, entry: ShardEntry) -> None:
        """Make a shard count. Its files must be in place."""
        assert entry.accepted + entry.rejected + entry.errors == entry.planned
        assert entry.shard not in self.entries
        self.store.put(entry.files)
        # appended and synced, never rewritten: a kill can tear this line and no other
        with (self.out / LEDGER).open("ab") as handle:
            handle.write(_line(entry))
            handle.flush()
            os.fsync(handle.fileno())
        self.entries[entry.shard] = entry
        self.totals.add(entry, self.teacher_of(entry.shard))

    def finish(self) -> None:
        """Put the lines in shard order, so that the same job leaves the same bytes however it was interrupted."""
        assert self.totals.left == 0
        if self.totals.goals and not self.totals.ended:
            self.plan = self.plan | {"ended": True}
            self.totals.plan(self.plan)
        write_ledger(self.out, self.plan, self.entries)


def planned_shards(plan: Mapping[str, Any]) -> range:
    """The numbers of the shards of a directory: all of the plan, or every nth where it is made in parts."""
    number, of = plan.get("part", (1, 1))
    return range(number - 1, plan["shards"], of)


def write_ledger(out: Path, plan: dict[str, Any], entries: dict[int, ShardEntry]) -> None:
    """Replace the whole ledger in one step, its lines in shard order."""
    lines = [_line(plan), *(_line(entries[shard]) for shard in sorted(entries))]
    write_atomically(out / LEDGER, b"".join(lines))


def _line(value: ShardEntry | dict[str, Any]) -> bytes:
    body = asdict(value) | {"files": [f.told() for f in value.files]} if isinstance(value, ShardEntry) else value
    return (canonical_json(seal(body)) + "\n").encode()


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Make an output directory and hold it against a second run for as long as the context lasts.

    Raises DatasetError where it cannot be written, holds something else, is in use, or has no path to load it by.
    """
    require_plain_path(out)
    require_no_copy(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / MANIFEST).exists() and not (out / LEDGER).exists():
            _require_vacant(out)
        lock = (out / LOCK).open("a+")
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written: {error.strerror}; choose another `out` or mend it") from error
    with lock:
        try:
            # the system lets go of it when the process ends, however it ends: there is no stale lock to break
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise DatasetError(f"{out}: a run is at work here already (process {holder}); wait or stop it") from None
        # told to whoever finds it held; the file stays, for to remove it would let two runs hold two files of one name
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def hold_dataset(out: Path) -> AbstractContextManager[None]:
    """The same for a dataset that is there already: where there is none, nothing is made."""
    read_manifest(out)
    return hold(out)


def open_ledger(out: Path, plan: dict[str, Any], manifest: dict[str, Any], store: Store = DISK) -> Ledger:
    """Begin or resume the dataset in a directory that is held. Raises DatasetError where another job made it."""
    # manifest first: a kill between the two leaves a manifest without a ledger, which the next start completes
    anew = is_unspent(out)
    reconcile_manifest(out, manifest, anew)
    if anew or not (out / LEDGER).exists():
        write_atomically(out / LEDGER, _line(plan))
    return read_ledger(out, mend=True, store=store)


def require_resumable(out: Path, manifest: dict[str, Any]) -> None:
    """Raise DatasetError where a run of this job would not begin or go on in a directory; nothing is touched.

    What only a teacher knows, and whether a run is at work there, is not looked at.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise DatasetError(f"{out}: is not a directory; choose another `out`")
    if not (out / MANIFEST).exists() and not (out / LEDGER).exists():
        _require_vacant(out)
        return
    require_manifest(out)
    if not is_unspent(out):
        require_same_job(out, read_manifest(out), manifest)


def require_no_copy(out: Path) -> None:
    """Raise DatasetError for a pushed copy: a manifest without a ledger, whose files have digests in their names."""
    if (out / LEDGER).exists() or not (out / MANIFEST).exists():
        return
    if any(PUSHED.fullmatch(path.name) for path in (out / "data").glob("*.parquet")):
        raise DatasetError(
            f"{out}: is a pushed copy of a dataset, and has no ledger; factory.load.load_rows reads its rows, and "
            "commands work on the dataset that it was made from"
        )


def require_manifest(out: Path) -> None:
    """Raise DatasetError where there is a ledger but no manifest, and for a pushed copy."""
    require_no_copy(out)
    if (out / LEDGER).exists() and not (out / MANIFEST).exists():
        raise DatasetError(f"{out}: {MANIFEST} is gone; `factory run JOB --repair` writes it")


def is_unspent(out: Path) -> bool:
    """Begun, but with no row made yet: a job that was refused at its first start may be mended and take its place."""
    # answers on the spool were paid for, though no shard is committed yet
    if not (out / LEDGER).exists() or _has_answers(out):
        return False
    return not read_ledger(out).entries


def _has_answers(out: Path) -> bool:
    spools = (out / SPOOL, *(out / WORKERS).glob(f"*/{SPOOL}"))
    return any(path.stat().st_size for spool in spools for path in spool.glob("*"))


def _require_vacant(out: Path) -> None:
    # these and temporary files are what a start that was refused leaves behind
    strangers = sorted(p.name for p in out.iterdir() if p.name not in (LOCK, MARK) and p.name[:5] != ".tmp-")
    if strangers:
        raise DatasetError(
            f"{out}: not empty and not a dataset of the factory (has {strangers[0]}); choose another `out`"
        )


def read_ledger(out: Path, mend: bool = False, store: Store = DISK) -> Ledger:
    """The ledger of a dataset; `mend` also cuts a torn last line off the file.

    Raises DatasetError where there is none, or where any line but a torn last one is not what was written.
    """
    plan, entries, complaints = scan_ledger(out)
    if complaints or plan is None:
        raise DatasetError(complaints[0])
    # only whoever holds the directory may: a reader may look while a run is in the middle of a line
    if mend:
        _cut_torn_line(out / LEDGER)
    return Ledger(out, plan, entries, store)


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def scan_ledger(out: Path) -> tuple[dict[str, Any] | None, dict[int, ShardEntry], list[str]]:
    """What is intact of a ledger: its plan, its entries; and a complaint for each line that is not.

    Raises DatasetError where there is no ledger at all.
    """
    path = out / LEDGER
    try:
        data = path.read_bytes()
    except OSError as error:
        require_directory(out)
        require_no_copy(out)
        if not (out / MANIFEST).exists():
            raise no_dataset(out) from None
        told = f"bring it back from a copy; without it `{command_of(out)} JOB` makes all rows again"
        raise DatasetError(f"{path}: {error.strerror}; {told}") from None
    plan: dict[str, Any] | None = None
    entries: dict[int, ShardEntry] = {}
    complaints: list[str] = []
    lines = data.split(b"\n")[:-1]  # what follows the last newline is a torn line
    for number, line in enumerate(lines, start=1):
        try:
            if number == 1:
                plan = _parse_plan(path, line)
            else:
                entry = _parse_entry(path, number, line)
                _require_new(path, number, entry.shard, entries, plan)
                entries[entry.shard] = entry
        except DatasetError as error:
            complaints.append(str(error))
    return plan, entries, complaints if lines else [f"{path}: empty; it should begin with the plan"]


def _require_new(
    path: Path, number: int, shard: int, entries: dict[int, ShardEntry], plan: dict[str, Any] | None
) -> None:
    if shard in entries or (plan is not None and shard not in planned_shards(plan)):
        raise DatasetError(f"{path}:{number}: damaged: shard {shard} is there twice or was never planned")


def _parse_plan(path: Path, line: bytes) -> dict[str, Any]:
    plan = _parse_line(path, 1, line)
    part = plan.get("part", [1, 1])
    whole = [plan.get("planned"), plan.get("shards"), *(part if isinstance(part, list) and len(part) == 2 else [None])]
    if not all(type(number) is int for number in whole) or not 1 <= part[0] <= part[1]:
        raise DatasetError(f"{path}:1: damaged: not a plan")
    return plan


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{path}:{number}: damaged: {error}") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path}:{number}: damaged: not a JSON object")
    # bytes, not values: what parses to the same but was written otherwise was not written by us
    if _line(value) != line + b"\n":
        raise DatasetError(f"{path}:{number}: damaged: changed since it was written")
    del value["sum"]
    return value


def _parse_entry(path: Path, number: int, line: bytes) -> ShardEntry:
    value = _parse_line(path, number, line)
    try:
        files = tuple(ShardFile(**file) for file in value.pop("files"))
        entry = ShardEntry(**value, files=files)
        Totals().add(entry)  # what cannot be added up was not written by us
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path}:{number}: damaged: not a shard's entry ({error})") from None
    return entry
