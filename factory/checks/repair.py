"""Repair: give up what is damaged in a dataset, and only that, so that the run that follows makes it again.

To give up a shard is to drop its line: files without a line are nobody's, and the run replaces them.
"""

from pathlib import Path
from typing import Any

from factory.checks.verify import check_files
from factory.dataset.ledger import LEDGER, scan_ledger, write_ledger
from factory.dataset.manifest import MANIFEST, read_manifest, require_same_job
from factory.errors import DatasetError


def repair(out: Path, plan: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """Drop damaged shards, lines and manifest of a directory that is held; returns what was dropped, as lines.

    A line of the ledger carries its own checksum and those of its shard's files, so nothing else is needed to tell what
    is whole. A damaged manifest is written anew by the run, if the ledger's plan shows that it is the same job's.
    Raises DatasetError, and leaves everything as it is, where the dataset is another job's, or where neither manifest
    nor plan can tell whose it is.
    """
    if not (out / LEDGER).exists():
        return []
    known, entries, dropped = scan_ledger(out)
    try:
        before = read_manifest(out)
    except DatasetError as error:
        # the plan holds the job's digest: it vouches for whose the dataset is when the manifest cannot
        # whether more is planned is no part of whose it is
        if known is None or known | {"ended": True} != plan | {"ended": True}:
            raise DatasetError(f"{error}; and the plan in {LEDGER} is not this job's: it cannot be repaired") from None
        (out / MANIFEST).unlink(missing_ok=True)
        dropped.append(str(error))
    else:
        require_same_job(out, before, manifest)
    for shard, entry in list(entries.items()):
        faults = list(check_files(out, entry))
        # a plan whose own line is damaged cannot tell which shards were never planned; the job's can
        if faults or shard >= plan["shards"]:
            dropped += faults
            del entries[shard]
    if dropped:
        write_ledger(out, known or plan, entries)
    return dropped
