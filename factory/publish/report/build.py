"""`factory report`: one dataset, or two over the same plan, as one HTML file or as JSON."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from factory import __version__
from factory.dataset.manifest import read_signals, write_atomically
from factory.dataset.sound import require_intact
from factory.publish.report.charts import require_extra
from factory.publish.report.compare import choose_pairs, compare, name_both
from factory.publish.report.counts import describe_head
from factory.publish.report.facts import gather, open_dataset
from factory.publish.report.page import Shown, write_page
from factory.publish.report.payload import describe_row, pack_row
from factory.publish.report.sample import Place, choose_rows, read_places
from factory.publish.report.store import FOLDERS, Store, choose_part
from factory.publish.report.tokens import choose_shards
from factory.publish.targets import making, require_file
from factory.teachers.spelling import open_decoder

ROWS: Final = 60
FILE, BOTH_FILE = "report.html", "comparison.html"
Facts = dict[str, Any]


def read_facts(out: Path, other: Path | None = None) -> Facts:
    """What a report says, without its rows: for machines. Raises DatasetError, or JobError without the extra."""
    require_extra()
    with ExitStack() as stack:
        store, manifest = _open(out, stack)
        facts = gather(store, manifest)
        if other is None:
            return facts
        second, its_manifest = _open(other, stack)
        names = name_both(facts["head"]["name"], other.resolve().name)
        return {"a": facts, "b": gather(second, its_manifest), "both": compare(store, second, names)}


def write_report(out: Path, other: Path | None = None, target: Path | None = None, rows: int = ROWS) -> Path:
    """Write a report of `out`, or of `out` compared with `other`; where it went.

    By default it goes into `out` itself: whoever gets the folder gets the report. Raises DatasetError where there is no
    row to report yet, where a file cannot be read or is not what was written, or where two datasets share no row;
    JobError where no file can be written there.
    """
    require_extra()
    path = target or out / (FILE if other is None else BOTH_FILE)
    with ExitStack() as stack:
        store, manifest = _open(out, stack)
        require_file(path, "a report", FILE)
        facts, both = gather(store, manifest), None
        if other is None:
            shown = _show(store, manifest, rows)
        else:
            second, its_manifest = _open(other, stack)
            names = name_both(facts["head"]["name"], other.resolve().name)
            both = compare(store, second, names) | {"model": describe_head(second.ledger, its_manifest)["model"]}
            shown = _show_both((store, second), (manifest, its_manifest), names, max(1, rows // 2))
    page = write_page(facts, shown, __version__, both).encode("utf-8", "replace")
    with making(path, "name another place with --to FILE"):
        write_atomically(path, page)
    return path


def _open(out: Path, stack: ExitStack) -> tuple[Store, Facts]:
    ledger, manifest = open_dataset(out)
    # the texts that are counted, and below those that are shown; of all other files only numbers are read
    require_intact(ledger, *FOLDERS.values(), shards={*choose_part(ledger), *choose_shards(ledger)})
    return stack.enter_context(Store(ledger)), manifest


def _show(store: Store, manifest: Facts, count: int) -> Shown:
    places = choose_rows(store, count)
    packed = _pack(store, manifest, places)
    shown = [packed[place] for place in places]
    return Shown([about for about, _ in shown], [row for _, row in shown])


def _pack(store: Store, manifest: Facts, places: Sequence[Place]) -> dict[Place, tuple[Facts, str]]:
    signals, decode = read_signals(manifest), open_decoder(manifest)
    top_k = 0 if signals is None else signals.top_k
    require_intact(store.ledger, *FOLDERS.values(), shards={place.shard for place in places} - set(store.part))
    found = read_places(store, list(places))
    return {place: (describe_row(place, row), pack_row(row, top_k, decode)) for place, row in found}


def _show_both(
    stores: tuple[Store, Store], manifests: tuple[Facts, Facts], names: tuple[str, str], count: int
) -> Shown:
    """Rows of the first dataset, each followed by its twin of the second, which the list leaves out."""
    pairs = choose_pairs(stores[0], count)
    first, second = (
        _pack(store, manifest, [pair[side] for pair in pairs])
        for side, (store, manifest) in enumerate(zip(stores, manifests, strict=True))
    )
    chosen = [first[a] for a, _ in pairs], [second[b] for _, b in pairs]
    rows = [about | {"side": name} for name, side in zip(names, chosen, strict=True) for about, _ in side]
    packed = [row for side in chosen for _, row in side]
    return Shown(rows, packed, {number: number + len(pairs) for number in range(len(pairs))})
